"""WaveNet: van den Oord et al., 2016, https://arxiv.org/abs/1609.03499.

A sound is predicted sample after sample. The wave is moved one sample to the right and then seen only through
causal convolutions, so that what is predicted at a time has seen the samples before it. Dilations double from
layer to layer, and start again with each cycle.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check, _seed
from .. import functional as GF
from ..decode.builder import Builder, Tap, causal_conv_taps, matrix
from ..nn import CausalConv1d
from .autoregressive import (
    Progress,
    check_label,
    check_request,
    evaluating,
    kept,
    labels_of,
    reporting,
    sample_cached,
)
from .heads import make_head
from .image import label_embedding


class Layer(nn.Module):
    """A dilated causal convolution, the conditions added to it, the gate, and 1×1 convolutions of that: one
    to the skip connections and, but in the last layer, one added to the layer's input for the next layer."""

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

    def forward(self, x, label=None, local=None):
        """x (B, R, T) to what goes on (B, R, T) and what skips (B, S, T)."""
        h = self.conv(x)
        if self.label is not None:
            h = h + self.label(label).unsqueeze(2)
        if self.local is not None:
            h = h + self.local(local)
        if self.conv.activation is None:
            h = GF.gated_activation(h)
        return x if self.residual is None else x + self.residual(h), self.skip(h)


class WaveNet(nn.Module):
    """WaveNet (van den Oord et al., 2016): an exact likelihood for sound, sample after sample.

    Sounds are floats (B, 1, T) in [-1, 1], of any length T, class `v` of `num_levels` at
    `2 * v / (num_levels - 1) - 1`. With μ-law companding the classes are those of the companded sound
    (`gmfast.audio.mulaw_encode`). Before the start of a sound there are zeros.

    Args:
        length: samples in a sound that `sample` draws, unless told otherwise.
        num_cycles, layers_per_cycle: each cycle has layers of dilation 1, 2, 4, …
        kernel_size: taps of every causal convolution.
        residual_channels: features that run from layer to layer.
        skip_channels: features that every layer adds to for the output.
        head: "categorical", a softmax over the levels, or "mixture", discretized logistics (Salimans et al.,
            2017; for sound: van den Oord et al., 2018, arXiv:1711.10433), which suits 65536 levels.
        nr_logistic_mix: components of the mixture.
        num_levels: values a sample can take.
        num_labels: number of classes for global conditioning (a speaker); None for none.
        local_channels: features that come with every sample for local conditioning (a spectrogram, at the
            sample rate); 0 for none.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

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
        super().__init__()
        _check.at_least(
            1,
            length=length,
            num_cycles=num_cycles,
            layers_per_cycle=layers_per_cycle,
            residual_channels=residual_channels,
            skip_channels=skip_channels,
            num_labels=1 if num_labels is None else num_labels,
        )
        _check.at_least(2, kernel_size=kernel_size)
        _check.at_least(0, local_channels=local_channels)
        self.config = {
            "length": length,
            "num_cycles": num_cycles,
            "layers_per_cycle": layers_per_cycle,
            "kernel_size": kernel_size,
            "residual_channels": residual_channels,
            "skip_channels": skip_channels,
            "head": head,
            "nr_logistic_mix": nr_logistic_mix,
            "num_levels": num_levels,
            "num_labels": num_labels,
            "local_channels": local_channels,
        }
        self.length, self.num_levels = length, num_levels
        self.num_labels, self.local_channels = num_labels, local_channels
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
        #: How many samples before it a prediction depends on.
        self.receptive_field = 1 + (kernel_size - 1) * (1 + sum(dilations))

    def forward(self, x: Tensor, label: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        """Parameters of every sample's distribution given the samples before it.

        `x (B, 1, T)` in [-1, 1]; `label (B,)` integers and `local (B, local_channels, T)` for a model
        conditioned on them. Returns `(B, P, T)`, P as the head wants it. Those at t depend on the
        `receptive_field` samples x[t-1], x[t-2], …, on the label, and on local features up to and with t.
        """
        if x.dim() != 3 or x.shape[1] != 1 or x.shape[2] < 1:
            raise ValueError(f"x: expected shape (B, 1, T) with T > 0, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected floating point numbers in [-1, 1], got {x.dtype}")
        label = self._check_conditions(label, local, len(x), x.shape[2])
        return self.output(self._skips(F.pad(x, (1, -1)), label, local))

    def log_prob(self, x: Tensor, label: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        """Log-probability of each sound, (B,), in nats."""
        return -self.head.nll(x, self(x, label, local)).sum(1)

    def loss(self, x: Tensor, label: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of the batch, a scalar in bits per sample."""
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
        # What skips is summed once, over the channels of all layers.
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
        """Draws `n` sounds, (n, 1, length) in [-1, 1]. Arguments are those of `ImageModel.sample`, and for a
        model conditioned on them the features `local` (n, local_channels, length).

        A sound begins the same whatever `length` is. With method="naive" a sample takes a pass over its
        receptive field, unless it is given for all sounds. `gmfast.decode.compile` has the form for a stream
        without end.
        """
        check_request(n, method, temperature, weights, "sounds")
        if local is not None:
            _check.tensor("local", local)
        if length is None:
            length = self.length if local is None else local.shape[-1:].numel()
        if length < 1:
            raise ValueError(f"length: expected a positive number of samples, got {length}")
        weight = self.input.weight
        label = labels_of(label, n, self.num_labels, weight.device)
        self._check_conditions(label, local, n, length)
        local = local if local is None else local.to(weight)
        seed = _seed.as_tensor(seed, weight.device)
        past = weight.new_zeros(n, 1, length + 1)  # the sample at t is past[t + 1]
        x, keep = kept(given, mask, past[:, :, 1:])
        noise = {"seed": seed, "temperature": temperature}
        with evaluating(self):
            if method == "cached":
                conditions = {"label": label, "local": local}
                return sample_cached(self, x, keep, **noise, **conditions, weights=weights, progress=progress)
            # What all sounds are given needs no prediction.
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

    def _skips(self, previous, label, local):
        """Sum of what skips to the output, (B, S, T), where the sample at t - 1 is `previous` (B, 1, T) at
        t."""
        x, total = self.input(previous), 0.0
        for layer in self.layers:
            x, skip = layer(x, label, local)
            total = total + skip
        return total

    def _check_conditions(self, label, local, count, length):
        """The labels as int64."""
        label = check_label(label, count, self.num_labels)
        if not self.local_channels:
            if local is not None:
                raise ValueError(
                    "local: expected None, because the model has no local_channels, got features"
                )
            return label
        expected = (count, self.local_channels, length)
        if local is None or tuple(local.shape) != expected:
            came = None if local is None else tuple(local.shape)
            raise ValueError(f"local: expected shape {expected}, got {came}")
        return label
