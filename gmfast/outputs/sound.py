"""Sound as a WAV file, with a picture of its waveform and spectrogram."""

from pathlib import Path

import numpy as np
from torch import Tensor

from .. import audio
from ..data import Dataset
from . import base


class Output(base.Output):
    """A WAV file of the clips one after another, and a picture beside it."""

    count = 1
    default = "samples.wav"
    batch = 16
    options = frozenset({"length", "compare", "weights"})
    dimension = "sample"

    def write(self, out: Path, samples: Tensor) -> list[Path]:
        """Write clips `(n, 1, T)`, companded as in training."""
        rate = self.settings.rate
        wave = audio.ENCODINGS[self.settings.encoding].decode(samples).flatten()
        audio.write(out, wave, rate)
        drawn = out.with_suffix(".png")
        picture(drawn, wave, rate)
        return [out, drawn]

    def report(self, samples: Tensor, seconds: float) -> str:
        """Return the line that reports the speed beside real time."""
        duration = samples.numel() / self.settings.rate
        return f"{duration:.2f} s of sound in {seconds:.2f} s: {duration / seconds:.1f} times real time"

    def baseline(self, dataset: Dataset, conditional: bool) -> tuple[str, float]:
        """A histogram of all samples."""
        return "histogram of all samples", dataset.histogram_bits_per_dim(conditional)


def picture(path: Path, x: Tensor, rate: int) -> None:
    """Write a PNG of a waveform above its spectrogram."""
    from matplotlib.figure import Figure
    from scipy.signal import spectrogram

    x = x.cpu().numpy()
    figure = Figure(figsize=(10, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(np.arange(len(x)) / rate, x, linewidth=0.5)
    above.set(ylim=(-1, 1), ylabel="amplitude")
    window = min(256, len(x))
    frequencies, times, power = spectrogram(x, rate, "hann", nperseg=window, noverlap=window * 3 // 4)
    decibels = 10 * np.log10(power + 1e-12)  # per Hz; silence is a floor
    below.pcolormesh(times, frequencies, decibels, vmin=decibels.max() - 80, shading="nearest")
    below.set(xlabel="seconds", ylabel="Hz")
    figure.savefig(path, format="png")
