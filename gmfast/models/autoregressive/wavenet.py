"""WaveNet: van den Oord et al., 2016, https://arxiv.org/abs/1609.03499.

Sound is predicted sample by sample. The waveform is shifted by one sample and then read by causal
convolutions alone, so that a prediction depends on the samples before it. Dilations double from layer to
layer, and start again with each cycle.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import _check
from ... import functional as GF
from ..._progress import Progress, reporting
from ...decode.builder import Builder, Tap, causal_conv_taps, matrix
from ...nn import CausalConv1d
from ..base import Cached, Likelihood, Model, check_label, check_method, evaluating
from ..networks.labels import label_embedding
from .heads import make_head
from .sampling import place_given, sample_cached


class Layer(nn.Module):
    """Gated residual layer: a dilated causal convolution, the conditions, the gate, and 1×1 convolutions.

    One 1×1 convolution leads to the skip connections; another, which the last layer has not, is added to the
    layer's input.
    """

    def __init__(
        self,
        residual_channels: int,
        skip_channels: int,
        kernel_size: int,
        dilation: int,
        num_labels: int | None,
        local_channels: int,
        last: bool,
    ):
        super().__init__()
        gates = 2 * residual_channels
        self.label = label_embedding(num_labels, gates)
        self.local = nn.Conv1d(local_channels, gates, 1, bias=False) if local_channels else None
        conditional = self.label is not None or self.local is not None
        self.conv = CausalConv1d(
            residual_channels,
            gates,
            kernel_size,
            dilation=dilation,
            activation=None if conditional else "gated",
        )
        self.skip = nn.Conv1d(residual_channels, skip_channels, 1)
        self.residual = None if last else nn.Conv1d(residual_channels, residual_channels, 1)

    def forward(
        self, x: Tensor, label: Tensor | None = None, local: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map features `(B, R, T)` to the next layer's input `(B, R, T)` and the skip output `(B, S, T)`."""
        h = self.conv(x)
        if self.label is not None:
            h = h + self.label(label).unsqueeze(2)
        if self.local is not None:
            h = h + self.local(local)
        if self.conv.activation is None:
            h = GF.gated_activation(h)
        return x if self.residual is None else x + self.residual(h), self.skip(h)


class WaveNet(Cached, Likelihood, Model):
    """WaveNet (van den Oord et al., 2016, arXiv:1609.03499): an exact likelihood of sound.

    Sounds are floats (B, 1, T) in [-1, 1], of any length T, class `v` of `num_levels` at
    `2 * v / (num_levels - 1) - 1`. With μ-law companding the classes are those of the companded sound
    (`gmfast.audio.mulaw_encode`). Before the start of a sound there are zeros.

    Args:
        length: Samples in a sound that `sample` draws, unless told otherwise.
        num_cycles: Number of cycles of dilations.
        layers_per_cycle: Layers in a cycle, of dilations 1, 2, 4, …
        kernel_size: Taps of every causal convolution.
        residual_channels: Features of the residual connections.
        skip_channels: Features of the skip connections.
        head: "categorical", a softmax over the levels, or "mixture", discretized logistics (Salimans et al.,
            2017; for sound: van den Oord et al., 2018, arXiv:1711.10433), which suits 65536 levels.
        nr_logistic_mix: Components of the mixture.
        num_levels: Number of values of a sample.
        num_labels: Number of classes for global conditioning (a speaker); None for none.
        local_channels: Features at every sample for local conditioning (a spectrogram, at the sample rate);
            0 for none.

    Raises:
        ValueError: For values out of range, naming the argument.
    """

    modalities = frozenset({"sound"})
    family = "autoregressive model"
    data = "speech"
    settings: ClassVar = {
        None: {
            "batch_size": 4,
            "lr": 0.002,
            "options": {
                "num_cycles": 2,
                "layers_per_cycle": 8,
                "residual_channels": 32,
                "skip_channels": 64,
            },
        },
    }

    def __init__(
        self,
        length: int = 16000,
        num_cycles: int = 3,
        layers_per_cycle: int = 10,
        kernel_size: int = 2,
        residual_channels: int = 64,
        skip_channels: int = 256,
        head: str = "categorical",
        nr_logistic_mix: int = 10,
        num_levels: int = 256,
        num_labels: int | None = None,
        local_channels: int = 0,
    ):
        super().__init__(num_levels, num_labels)
        _check.at_least(
            1,
            length=length,
            num_cycles=num_cycles,
            layers_per_cycle=layers_per_cycle,
            residual_channels=residual_channels,
            skip_channels=skip_channels,
        )
        _check.at_least(2, kernel_size=kernel_size)
        _check.at_least(0, local_channels=local_channels)
        self.length, self.local_channels = length, local_channels
        self.head = make_head(head, num_levels, nr_logistic_mix, ("categorical", "mixture"))

        dilations = [2**i for _ in range(num_cycles) for i in range(layers_per_cycle)]
        self.input = CausalConv1d(1, residual_channels, kernel_size)
        self.layers = nn.ModuleList(
            Layer(
                residual_channels,
                skip_channels,
                kernel_size,
                dilation,
                num_labels,
                local_channels,
                last=i == len(dilations) - 1,
            )
            for i, dilation in enumerate(dilations)
        )
        self.output = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(skip_channels, skip_channels, 1),
            nn.ReLU(),
            nn.Conv1d(skip_channels, self.head.num_params(1), 1),
        )
        #: Receptive field: the number of samples before it that a prediction depends on.
        self.receptive_field = 1 + (kernel_size - 1) * (1 + sum(dilations))

    def forward(self, x: Tensor, label: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        """Parameters of every sample's distribution given the samples before it.

        Args:
            x: Sound `(B, 1, T)` in [-1, 1].
            label: Class indices `(B,)` for a model with global conditioning.
            local: Features `(B, local_channels, T)` for a model with local conditioning.

        Returns:
            `(B, P, T)`, the P parameters of the head. Those at t depend on the `receptive_field` samples
            x[t-1], x[t-2], …, on the label, and on local features up to and including t.
        """
        _check.no_proxy("x", x)
        if x.dim() != 3 or x.shape[1] != 1 or x.shape[2] < 1:
            raise ValueError(f"x: expected shape (B, 1, T) with T > 0, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected floating point numbers in [-1, 1], got {x.dtype}")
        label = check_label(label, x.shape[0], self.num_labels)
        self._check_local(local, x.shape[0], x.shape[2])
        return self.output(self._skips(F.pad(x[..., :-1], (1, 0)), label, local))

    def log_prob(self, x: Tensor, label: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        """Log-probability of each sound, `(B,)`, in nats."""
        return -self.head.nll(x, self(x, label, local)).sum(1)

    def loss(self, x: Tensor, label: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of the batch in bits per sample, a scalar."""
        return self.head.bits_per_dim(x, self(x, label, local))

    def decoder(self) -> Builder:
        """The model as a decode program."""
        builder = Builder(height=None, width=1)
        x = builder.value(1)
        local = builder.local_features(self.local_channels) if self.local_channels else None
        size = self.input.out_channels
        h = builder.value(size)
        builder.layer(causal_conv_taps(x, self.input, row=-1), self.input.bias, out=h)
        skips = []
        for layer in self.layers:
            taps = causal_conv_taps(h, layer.conv)
            if local is not None:
                taps.append(Tap(local, matrix(layer.local)))
            gated = builder.value(size)
            embedding = None if layer.label is None else layer.label.weight
            builder.layer(taps, layer.conv.bias, embedding=embedding, activation="gate", out=gated)
            skips.append(Tap(gated, matrix(layer.skip)))
            if layer.residual is not None:
                h, below = builder.value(size), h
                taps = [Tap(gated, matrix(layer.residual))]
                builder.layer(taps, layer.residual.bias, residual=below, out=h)
        # One layer sums the skip connections of all layers.
        y = builder.value(self.layers[0].skip.out_channels)
        builder.layer(skips, sum(layer.skip.bias for layer in self.layers), activation="relu", out=y)
        for layer, activation in ((self.output[1], "relu"), (self.output[3], "none")):
            y, below = builder.value(layer.out_channels), y
            builder.layer([Tap(below, matrix(layer))], layer.bias, activation=activation, out=y)
        builder.draw(self.head, y, x)
        return builder

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        method: str = "cached",
        label: Tensor | int | None = None,
        temperature: float = 1.0,
        given: Tensor | None = None,
        mask: Tensor | None = None,
        progress: Progress = False,
        length: int | None = None,
        local: Tensor | None = None,
        weights: str | None = None,
    ) -> Tensor:
        """Draw `n` sounds, `(n, 1, length)` in [-1, 1].

        Arguments are those of `PixelCNN.sample`, and `length` and `local`. A sound begins the same for any
        `length`. With method="naive" a sample takes a pass over its receptive field, unless it is given for
        all sounds. `gmfast.decode.compile` has the form for an endless stream.

        Args:
            n: Number of sounds, 0 or more.
            seed: As in `PixelCNN.sample`.
            method: "cached" or "naive".
            label: One class or `(n,)` of them, for a model with global conditioning.
            temperature: Factor of the noise.
            given: Values that are kept where `mask` is not zero.
            mask: Nonzero where a value is given.
            progress: As in `PixelCNN.sample`.
            length: Samples in a sound; by default that of `local`, else the model's.
            local: Features `(n, local_channels, length)` for a model with local conditioning.
            weights: Dtype that weights are rounded to.

        Raises:
            ValueError: For values, naming the argument. TypeError: For types.
        """
        check_method(method, weights)
        request = self.request(n, seed=seed, label=label, temperature=temperature)
        if local is not None:
            _check.tensor("local", local)
        if length is None:
            length = self.length if local is None else local.shape[-1:].numel()
        if length < 1:
            raise ValueError(f"length: expected a positive number of samples, got {length}")
        weight, label = self.input.weight, request.label
        self._check_local(local, n, length)
        local = local if local is None else local.to(weight)
        past = weight.new_zeros(n, 1, length + 1)  # the sample at t is past[t + 1]
        x, keep = place_given(given, mask, past[:, :, 1:])
        noise = {"seed": request.seed, "temperature": temperature}
        with evaluating(self):
            if method == "cached":
                conditions = {"label": label, "local": local}
                return sample_cached(self, x, keep, **noise, **conditions, weights=weights, progress=progress)
            # A sample that all sounds are given needs no prediction.
            times = (~keep.flatten(1).all(0)).nonzero().flatten().tolist()
            with reporting(progress, len(times), "sample") as advance:
                for t in times:
                    seen = slice(max(0, t + 1 - self.receptive_field), t + 1)
                    features = local if local is None else local[:, :, seen]
                    skips = self._skips(past[:, :, seen], label, features)
                    draw = self.head.sample(self.output(skips[:, :, -1:]), 1, position=t, **noise)
                    here = x[:, :, t : t + 1]
                    here.copy_(torch.where(keep[:, :, t : t + 1], here, draw))
                    advance(1)
        return x.contiguous()

    def _skips(self, previous: Tensor, label: Tensor | None, local: Tensor | None) -> Tensor:
        """Sum of the skip outputs, `(B, S, T)`, where `previous (B, 1, T)` at t is the sample at t - 1."""
        x, total = self.input(previous), 0.0
        for layer in self.layers:
            x, skip = layer(x, label, local)
            total = total + skip
        return total

    def _check_local(self, local: Tensor | None, count: int, length: int) -> None:
        if not self.local_channels:
            if local is not None:
                raise ValueError(
                    "local: expected None, because the model has no local_channels, got features"
                )
            return
        expected = (count, self.local_channels, length)
        if local is None or tuple(local.shape) != expected:
            came = None if local is None else tuple(local.shape)
            raise ValueError(f"local: expected shape {expected}, got {came}")

    @classmethod
    def data_arguments(cls, shape: tuple[int, ...], num_levels: int | None) -> dict[str, Any]:
        """Length and levels of the clips, which have no local features."""
        return {"length": shape[-1], "num_levels": num_levels, "local_channels": 0}

    @classmethod
    def settings_for(cls, data: str, *, encoding: str | None = None) -> dict[str, Any]:
        """Settings that suit a data set; a softmax over 65536 linear levels would be most of the model."""
        settings = super().settings_for(data)
        if encoding == "linear":
            settings["options"] = {**settings["options"], "head": "mixture"}
        return settings
