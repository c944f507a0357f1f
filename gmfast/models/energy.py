"""Energy-based models: Du and Mordatch, 2019, https://arxiv.org/abs/1903.08689."""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check, _library, _seed
from .. import functional as GF
from .._processes import gather_equal
from .._progress import Progress, reporting
from .base import Batch, Model, check_image_shape, evaluating, quantize
from .networks.parametrized import spectral_norm

_SMALL = {"channels": 32, "langevin_steps": 20, "buffer_size": 1024}
_DIGITS = {"lr": 0.0003, "options": {**_SMALL, "num_scales": 2}}


class EnergyModel(Model):
    """Energy-based model of images (Du and Mordatch, 2019, arXiv:1903.08689).

    Training lowers the energy of data and raises that of samples, which Langevin dynamics draws from noise or
    from a replay buffer of earlier samples. The energy is a residual network with spectral normalisation.

    Images are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`.

    Args:
        image_shape: (C, H, W).
        channels: Channels of the network at the highest resolution; they double at each lower one.
        num_scales: Number of resolutions, each half the one before.
        langevin_steps: Langevin steps at each step of training.
        step_size: Factor of the energy's gradient in a Langevin step; each gradient is clamped to 0.01.
        noise: Standard deviation of a step's noise, below that of Langevin dynamics proper, as published.
        buffer_size: Number of images in the replay buffer.
        fresh: Share of the chains in training that start from noise.
        penalty: Weight of the mean squared energies in the loss, which keeps energies near zero.
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.

    Raises:
        ValueError: For an argument out of range, naming it.
    """

    modalities = frozenset({"images"})
    family = "energy model"
    settings: ClassVar = {
        "digits": _DIGITS,
        "binary-digits": _DIGITS,
        "photos": {"size": 16, "batch_size": 32, "lr": 0.0003, "options": {**_SMALL, "num_scales": 3}},
    }
    metrics: ClassVar = {"loss": "energy of data less that of samples"}
    shardable: ClassVar = False  # Langevin dynamics
    evaluate_size = 32

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        channels: int = 128,
        num_scales: int = 4,
        langevin_steps: int = 60,
        step_size: float = 10.0,
        noise: float = 0.005,
        buffer_size: int = 10_000,
        fresh: float = 0.05,
        penalty: float = 0.1,
        num_levels: int = 256,
        num_labels: int | None = None,
    ):
        super().__init__(num_levels, num_labels)
        self.image_shape = check_image_shape(image_shape)
        _check.at_least(
            1,
            channels=channels,
            num_scales=num_scales,
            langevin_steps=langevin_steps,
            buffer_size=buffer_size,
        )
        if not 0 <= fresh <= 1:
            raise ValueError(f"fresh: expected a number from 0 to 1, got {fresh}")
        for name, value in {"step_size": step_size, "noise": noise}.items():
            if not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if not penalty >= 0:
            raise ValueError(f"penalty: expected 0 or more, got {penalty}")
        self.langevin_steps, self.step_size, self.noise = langevin_steps, step_size, noise
        self.fresh, self.penalty = fresh, penalty
        self.register_buffer("buffer", torch.rand(buffer_size, *self.image_shape) * 2 - 1)
        self.register_buffer("buffer_label", torch.randint(num_labels or 1, (buffer_size,)))
        self.network = EnergyNetwork(self.image_shape[0], channels, num_scales, num_labels)

    def energy(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Energy of each image, `(B,)`: minus the log-density, up to an unknown constant."""
        _check.no_proxy("x", x)
        return self.network(x, label)

    forward = energy

    def score(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Minus the gradient of the energy with respect to `x`."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(x, label).sum(), x)
        return -gradient

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Mean energy of images less that of as many samples, and in training mode the penalty.

        Torch's global generator draws the noise.
        """
        data, found = self._energies(x, label)
        difference = data.mean() - found.mean()
        if not self.training:
            return difference
        return difference + self.penalty * (data.square() + found.square()).mean()

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`: energy of each image less the mean energy of as many samples, `(B,)`."""
        data, found = self._energies(*batch)
        return {"loss": data - found.mean()}

    def _energies(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Energies of images and of samples from the buffer, `(B,)` each.

        In training mode, Langevin dynamics moves the samples first.
        """
        label = self.check_input(x, label)
        count, device = x.shape[0], x.device
        chosen = torch.randint(len(self.buffer), (count,), device=device)
        start, start_label = self.buffer[chosen].to(x.dtype), self.buffer_label[chosen]
        fresh = torch.rand(count, device=device) < self.fresh
        start = torch.where(fresh.view(-1, 1, 1, 1), torch.rand_like(start) * 2 - 1, start)
        if label is not None:
            start_label = torch.where(fresh, label, start_label)
        found_label = None if label is None else start_label
        if self.training:
            if _library._functorch_is_active():
                raise RuntimeError(
                    "loss: expected eval mode or a call outside of torch.func's transforms, because training "
                    "writes the replay buffer, got training mode"
                )
            with evaluating(self):
                start = self.langevin(start, found_label, self.langevin_steps)
            # What all processes drew, as one process with the whole batch would write it.
            where, drawn, classes = map(gather_equal, (chosen, start.to(self.buffer.dtype), start_label))
            self.buffer[where], self.buffer_label[where] = drawn, classes
        # A little noise, so that quantization does not separate data from samples.
        real = x + 0.005 * torch.randn_like(x) if self.training else x
        both = None if label is None else torch.cat([label, found_label])
        energies = self.energy(torch.cat([real, start]), both)
        return energies[:count], energies[count:]

    @torch.no_grad()
    def langevin(
        self,
        x: Tensor,
        label: Tensor | None,
        steps: int,
        seed: int | Tensor | torch.Generator | None = None,
        advance: Callable[[int], object] = lambda more: None,
    ) -> Tensor:
        """Langevin dynamics from `x (B, C, H, W)`, clamped to [-1, 1].

        Args:
            x: Start of the chains.
            label: Classes, int64 `(B,)`, or None.
            steps: Number of steps.
            seed: One seed of all steps: an int, an int64 tensor, or a `torch.Generator`.
            advance: Called with 1 after each step.
        """
        seed = _seed.as_tensor(seed, x.device)
        size = self.step_size
        temperature = self.noise**2 / (2 * size)
        for draw in range(1, steps + 1):
            score = self.score(x, label).clamp(-0.01, 0.01)
            x = GF.langevin_step(
                x, score, step_size=size, temperature=temperature, seed=seed, draw=draw
            ).clamp(-1, 1)
            advance(1)
        return x

    def sample(
        self,
        n: int,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        label: Tensor | int | None = None,
        progress: Progress = False,
        langevin_steps: int = 400,
    ) -> Tensor:
        """Draw `n` images, `(n, C, H, W)`, by Langevin dynamics from uniform noise.

        Values are rounded to the nearest level.

        Args:
            n: Number of images, 0 or more.
            seed: An int, an int64 tensor, or a `torch.Generator`; image i is the same whatever `n` is, unless
                a value lies within rounding of the boundary between two levels.
            label: One class or `(n,)` of them, for a conditional model.
            progress: True shows a bar; a function is called with the steps done and their number.
            langevin_steps: Number of steps.

        Raises:
            ValueError: For values, naming the argument. TypeError: For types.
        """
        n, seed, label = self.request(n, seed=seed, label=label)
        _check.at_least(1, langevin_steps=langevin_steps)
        if n == 0:
            return torch.empty(0, *self.image_shape, dtype=self.dtype, device=self.device)
        normal = GF.standard_normal((n, *self.image_shape), seed=seed, dtype=self.dtype, device=self.device)
        x = 2 * torch.special.ndtr(normal) - 1
        with evaluating(self), reporting(progress, langevin_steps, "step") as advance:
            x = self.langevin(x, label, langevin_steps, seed, advance)
        return quantize(x, self.num_levels)

    def check_input(self, x: Tensor, label: Tensor | None = None) -> Tensor | None:
        """Check a batch of images and return its labels as int64; values are checked on the CPU only.

        Raises:
            ValueError: For the shape or values of `x`, or labels that do not fit. TypeError: For integers.
        """
        label = super().check_input(x, label)
        _check.values("x", x, -1 - 1e-6, 1 + 1e-6)
        return label


class EnergyNetwork(nn.Module):
    """Residual network with a scalar output for each class, a linear map of features summed over pixels."""

    def __init__(self, in_channels: int, channels: int, num_scales: int, num_labels: int | None):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        widths = [channels * 2**scale for scale in range(num_scales)]
        self.blocks = nn.ModuleList(
            EnergyBlock(before, width) for before, width in zip([channels, *widths], widths, strict=False)
        )
        self.out = nn.Linear(widths[-1], num_labels or 1)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Map images `x (B, C, H, W)` of classes `label (B,)` to energies, `(B,)`."""
        h = self.stem(x)
        for number, block in enumerate(self.blocks):
            h = block(F.avg_pool2d(h, 2, ceil_mode=True) if number else h)
        energies = self.out(F.silu(h).sum((2, 3)))
        return energies[:, 0] if label is None else energies.gather(1, label[:, None])[:, 0]


class EnergyBlock(nn.Module):
    """Residual block of two convolutions with spectral normalisation."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.second = spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map `x (B, inputs, H, W)` to `(B, outputs, H, W)`."""
        return self.shortcut(x) + self.second(F.silu(self.first(F.silu(x))))
