import importlib.metadata
import importlib.util
import json
import math
import pickle
import re
import struct
import sys

import pytest
import torch
from PIL import Image

from gmfast import audio, cli
from gmfast.data import Dataset, load
from gmfast.outputs import sound
from gmfast.training import Settings, Trainer, load_run

soundfile = pytest.importorskip("soundfile")


def write_wav(path, rate, frames, code, bits, channels=1):
    """A WAV file by hand: `frames` are the bytes of the samples, `code` 1 for PCM and 3 for floats."""
    block = channels * bits // 8
    header = struct.pack("<4sIHHIIHH", b"fmt ", 16, code, channels, rate, rate * block, block, bits)
    body = b"WAVE" + header + struct.pack("<4sI", b"data", len(frames)) + frames + b"\0" * (len(frames) % 2)
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)


def tone(rate, seconds=0.5, frequency=440, amplitude=0.5):
    return amplitude * torch.sin(torch.arange(int(rate * seconds)) * (2 * math.pi * frequency / rate))


def test_mulaw_is_g711s_curve():
    """Against the formula in numbers of its own, at points where it can be worked out, and round trip."""
    x = torch.linspace(-1, 1, 1001, dtype=torch.double)
    y = audio.mulaw_encode(x)
    expected = [math.copysign(math.log(1 + 255 * abs(v)) / math.log(256), v) if v else 0 for v in x.tolist()]
    assert torch.allclose(y, torch.tensor(expected, dtype=torch.double), rtol=1e-12, atol=1e-15)
    assert audio.mulaw_encode(torch.tensor(15 / 255).double()).item() == pytest.approx(0.5)  # 16² = 256
    assert torch.allclose(audio.mulaw_decode(y), x, atol=1e-12)
    levels = audio.mulaw_decode(torch.linspace(-1, 1, 256, dtype=torch.double))
    assert levels.diff().min() > 0 and levels[[0, -1]].tolist() == pytest.approx([-1, 1])
    assert levels[128] < 2e-4 and levels[-1] - levels[-2] > 0.03  # fine where it is quiet


@pytest.mark.parametrize(
    ("code", "bits", "pack", "tolerance"),
    [
        (1, 8, lambda v: struct.pack("B", round(v * 128) + 128), 1 / 128),
        (1, 16, lambda v: struct.pack("<h", round(v * 32768)), 2**-15),
        (1, 24, lambda v: struct.pack("<i", round(v * 2**23))[:3], 2**-22),
        (1, 32, lambda v: struct.pack("<i", round(v * 2**31)), 2**-22),
        (3, 32, lambda v: struct.pack("<f", v), 2**-22),
        (3, 64, lambda v: struct.pack("<d", v), 2**-22),
    ],
)
def test_reading_every_format_of_samples(tmp_path, code, bits, pack, tolerance):
    wave = [-0.75, 0.0, 0.5, 0.25, -0.125, 0.3, -0.001]
    write_wav(tmp_path / "x.wav", 8000, b"".join(map(pack, wave)), code, bits)
    x, rate = audio.read(tmp_path / "x.wav")
    assert rate == 8000 and x.dtype == torch.float32
    assert torch.allclose(x, torch.tensor(wave), rtol=0, atol=tolerance)


def test_stereo_is_mixed_and_rates_are_changed(tmp_path):
    left, right = tone(11025, frequency=300), tone(11025, frequency=500)
    frames = torch.stack([left, right], 1).numpy().astype("<f4").tobytes()
    write_wav(tmp_path / "x.wav", 11025, frames, 3, 32, channels=2)
    x, _ = audio.read(tmp_path / "x.wav")
    assert torch.allclose(x, (left + right) / 2, atol=1e-7)
    x, rate = audio.read(tmp_path / "x.wav", 8000)
    expected = (tone(8000, frequency=300) + tone(8000, frequency=500)) / 2
    assert rate == 8000 and len(x) == 4000
    assert torch.allclose(x[200:-200], expected[200:4000][:-200], atol=0.01)


@pytest.mark.parametrize("rate", [None, 8000, 16000, 44100])
def test_sections_are_parts_of_the_whole(tmp_path, rate):
    noise = torch.rand(3001, generator=torch.Generator().manual_seed(0)) - 0.5
    audio.write(tmp_path / "x.flac", noise, 11025)
    whole, _ = audio.read(tmp_path / "x.flac", rate)
    assert audio.length(tmp_path / "x.flac", rate) == (len(whole), rate or 11025)
    for start, stop in (
        (0, len(whole)),
        (0, 1),
        (700, 1100),
        (1999, 2177),
        (len(whole) - 5, len(whole)),
        (9, 9),
    ):
        section, _ = audio.read(tmp_path / "x.flac", rate, start=start, stop=stop)
        assert torch.allclose(section, whole[start:stop], rtol=0, atol=1e-7)
    with pytest.raises(
        ValueError, match=f"start, stop: expected a section of the {len(whole)} .* in .*x.flac"
    ):
        audio.read(tmp_path / "x.flac", rate, start=5, stop=len(whole) + 1)


def test_writing_and_a_picture(tmp_path):
    x = tone(8000)
    audio.write(tmp_path / "x.wav", x, 8000)
    assert soundfile.info(tmp_path / "x.wav").subtype == "PCM_16"
    assert torch.allclose(audio.read(tmp_path / "x.wav")[0], x, atol=2**-15)
    for name, wave in (("tone", x), ("silence", torch.zeros(100))):
        sound.picture(tmp_path / f"{name}.png", wave, 8000)
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size == (1000, 500)


def test_clips_of_a_file_hold_out_the_end(tmp_path):
    ramp = torch.arange(10000) / 10000
    audio.write(tmp_path / "ramp.wav", ramp, 8000)
    dataset = load(tmp_path / "ramp.wav", size=500, encoding="linear")
    assert dataset.name == "ramp" and dataset.rate == 8000 and dataset.items == "clips"
    assert dataset.num_levels == 65536 and dataset.train.dtype == torch.int32
    train, heldout = (
        ((clips.double() * (2 / 65535) - 1) * 10000).round() for clips in (dataset.train, dataset.heldout)
    )
    assert train.shape == (1 + (8000 - 500) // 7, 1, 500) and heldout.shape == (4, 1, 500)
    assert (train[:, 0, 0].diff() - 7).abs().max() <= 1 and train.max() < 8000 <= heldout.min() + 1
    assert (heldout[:, 0, 0] - torch.arange(8000, 10000, 500)).abs().max() <= 1
    mulaw = load(tmp_path / "ramp.wav", size=500)
    assert mulaw.train.dtype == torch.uint8 and mulaw.num_levels == 256
    decoded = audio.mulaw_decode(mulaw.heldout.double() * (2 / 255) - 1)
    assert torch.allclose(decoded, heldout / 10000, atol=0.022)  # half a step at ±1


def test_a_folder_of_sounds(tmp_path):
    (tmp_path / "sub").mkdir()
    audio.write(tmp_path / "a.wav", tone(8000, 1.0), 8000)
    audio.write(tmp_path / "sub" / "b.wav", tone(8000, 2.0), 8000)
    audio.write(tmp_path / "short.wav", tone(8000, 0.01), 8000)
    dataset = load(tmp_path, size=800)
    assert len(dataset.heldout) == 2 + 4 and dataset.train.shape[1:] == (1, 800)
    audio.write(tmp_path / "c.wav", tone(16000, 1.0), 16000)
    with pytest.raises(ValueError, match=r"rate: expected one .* files in .* have \[8000, 16000\] Hz"):
        load(tmp_path, size=800)
    assert load(tmp_path, size=800, rate=8000).rate == 8000
    with pytest.raises(
        ValueError, match=r"size: expected at most 3200 samples, a fifth of the longest recording in .* 9000"
    ):
        load(tmp_path, size=9000, rate=8000)
    (tmp_path / "d.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"data: expected a sound file, got .*d.wav"):
        load(tmp_path, rate=8000)
    with pytest.raises(ValueError, match="encoding: expected mulaw or linear, got 'alaw'"):
        load(tmp_path, encoding="alaw")


def test_short_files_make_no_clip_of_the_long_ones_vanish(tmp_path):
    audio.write(tmp_path / "a.wav", tone(8000, 1.0), 8000)
    alone = load(tmp_path, size=800)
    for i in range(20):
        audio.write(tmp_path / f"short{i}.wav", tone(8000, 0.1), 8000)
    assert torch.equal(load(tmp_path, size=800).train, alone.train)


def test_clips_are_read_when_they_are_indexed(tmp_path):
    """The samples in memory, whatever is asked for at once, without the rest of the files."""
    for name, seconds in (("a", 1.0), ("b", 0.01), ("c", 2.0)):
        audio.write(tmp_path / f"{name}.wav", tone(8000, seconds), 8000)
    held = load(tmp_path, size=300, rate=6000)
    lazy = pickle.loads(pickle.dumps(load(tmp_path, size=300, rate=6000, in_memory=False)))
    for name, x in (("train", held.train), ("heldout", held.heldout)):
        split = lazy.split(name)
        assert len(split) == len(x) and split.shape == (1, 300)
        for chosen in (range(len(x)), range(1, 3), [2, 0, 1, 1], torch.arange(len(x)).flip(0)):
            assert torch.equal(split.__getitems__(chosen).x, x[torch.as_tensor(chosen)])
        assert torch.equal(split[3][0], x[3]) and split[3][1] is None
        with pytest.raises(IndexError):
            split[len(x)]
    assert lazy.heldout.describe(4) == f"{tmp_path / 'c.wav'} from sample 9600 on"
    (tmp_path / "c.wav").write_bytes((tmp_path / "c.wav").read_bytes()[:20000])
    with pytest.raises(ValueError, match=r"expected .* in .*c.wav"):
        lazy.heldout[11]


def test_folders_and_hidden_files_are_no_sounds(tmp_path):
    audio.write(tmp_path / "a.wav", tone(8000, 1.0), 8000)
    (tmp_path / "b.wav").mkdir()
    (tmp_path / "._a.wav").write_bytes(b"no sound")
    assert load(tmp_path, size=800).train.equal(load(tmp_path / "a.wav", size=800).train)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path, value):
    write_wav(tmp_path / "x.wav", 8000, struct.pack("<2f", 0.5, value), 3, 32)
    with pytest.raises(ValueError, match=r"data: expected finite samples in .*x.wav, got NaN or infinity"):
        audio.read(tmp_path / "x.wav")


@pytest.mark.parametrize("name", ["speech", "flute"])
def test_the_recordings_are_real(name):
    if importlib.util.find_spec("pyo") is None:
        pytest.skip("the package pyo is not installed")
    dataset = load(name)
    assert dataset.rate == 8000 and dataset.train.shape[1:] == (1, 4096) and len(dataset.heldout) == 2
    assert dataset.train.unique().numel() > 200
    x = audio.mulaw_decode(dataset.train.double() * (2 / 255) - 1)
    assert x.diff(dim=2).abs().mean() < 0.7 * x.std()  # of white noise it would be 1.1


def test_a_recording_without_its_package(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(
        ModuleNotFoundError, match=r"expected the package pyo, whose recording 'flute' is .*, or a WAV file"
    ):
        load("flute")


def test_histogram_baseline_of_sound_has_one_distribution():
    train = torch.tensor([[[0, 0, 1]], [[2, 0, 0]]], dtype=torch.uint8)
    heldout = torch.tensor([[[0, 1, 3]]], dtype=torch.uint8)
    dataset = Dataset("toy", train, heldout, num_levels=4, rate=8000)
    expected = -(math.log2(5 / 10) + math.log2(2 / 10) + math.log2(1 / 10)) / 3
    assert dataset.histogram_bits_per_dim() == pytest.approx(expected, rel=1e-6)


TINY = {"num_cycles": 1, "layers_per_cycle": 3, "residual_channels": 4, "skip_channels": 8}


@pytest.fixture
def recording(tmp_path):
    """Half a second of a tone in noise."""
    audio.write(tmp_path / "tone.wav", tone(8000) + 0.05 * torch.randn(4000), 8000)
    return tmp_path / "tone.wav"


@pytest.mark.parametrize("options", [{}, {"encoding": "linear"}])
def test_training_on_sound_learns(tmp_path, recording, options):
    head = {"head": "mixture", "nr_logistic_mix": 3} if options else {}
    settings = Settings(
        model="wavenet", data=str(recording), size=200, batch_size=16, lr=0.02, options=TINY | head, **options
    )
    trainer = Trainer.start(settings, tmp_path / "run")
    assert trainer.settings.rate == 8000 and trainer.model.config["length"] == 200
    before = trainer.evaluate()
    trainer.fit(12, progress=False)
    assert trainer.evaluate() < before - 0.2
    model, loaded, _ = load_run(tmp_path / "run")
    assert loaded == trainer.settings and model.config == trainer.model.config
    Trainer.resume(tmp_path / "run")


def test_what_does_not_go_together(tmp_path, recording):
    with pytest.raises(ValueError, match="data: expected sound for wavenet, but digits is images"):
        Trainer.start(Settings(model="wavenet", data="digits"), tmp_path / "run")
    with pytest.raises(ValueError, match="data: expected images for pixelcnnpp, but tone is clips"):
        Trainer.start(Settings(data=str(recording), size=200), tmp_path / "run")
    with pytest.raises(ValueError, match=r"batch_size: expected at most the .* training clips of tone"):
        Trainer.start(
            Settings(model="wavenet", data=str(recording), size=200, batch_size=5000), tmp_path / "run"
        )


def test_the_command(monkeypatch, capsys, tmp_path, recording):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["gmfast", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            assert stop.code in (0, 2)
        return capsys.readouterr()

    run, out = tmp_path / "run", tmp_path / "out" / "x.wav"
    options = [f"--set={name}={value}" for name, value in TINY.items()]
    command("train", "wavenet", "--data", recording, "--out", run, "--rate=4000", "--size=200", "--steps=2",
            "--batch-size=8", *options)  # fmt: skip
    assert json.loads((run / "last/state.json").read_text())["settings"]["rate"] == 4000
    model, histogram = command("evaluate", run).out.splitlines()
    assert model.startswith("wavenet at step 2: ") and model.endswith(" bits per sample on 2 clips")
    dataset = load(recording, rate=4000, size=200)
    assert histogram == f"histogram of all samples: {dataset.histogram_bits_per_dim():.4f} bits per sample"
    sampled = command("sample", run, "--n=2", "--length=60", "--out", out)
    assert sampled.out == f"{out}\n{out.with_suffix('.png')}\n"
    assert re.search(r"0\.03 s of sound in \d+\.\d\d s: \d+\.\d times real time\n$", sampled.err)
    wave, rate = audio.read(out)
    assert rate == 4000 and len(wave) == 120
    expected = load_run(run)[0].sample(2, seed=0, length=60)
    assert torch.allclose(wave, audio.mulaw_decode(expected).flatten(), atol=2**-14)
    assert Image.open(out.with_suffix(".png")).size == (1000, 500)
    for name in ("x.png", "x.mp3"):
        assert f"out: expected a .wav file, got {name}" in command("sample", run, "--out", name).err
