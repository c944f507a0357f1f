"""Energy-based models: Du and Mordatch, 2019, https://arxiv.org/abs/1903.08689."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check, _seed
from .. import functional as GF
from .autoregressive import evaluating, reporting
from .diffusion_image import ImageDiffusion


class EnergyModel(ImageDiffusion):
    """An energy of images, learned by making that of data lower than that of what Langevin dynamics finds
    (Du and Mordatch, 2019, arXiv:1903.08689): implicit generation, from noise or from a buffer of what
    earlier steps of training found, which the model keeps.

    The energy is a residual network's, of weights with spectral normalisation.

    Args:
        image_shape: (C, H, W).
        channels: of the network's first layer, which twice as many follow each time the image is halved.
        num_scales: resolutions.
        langevin_steps: in training, at each step of it.
        step_size: what the gradient of the energy is multiplied by in a step, at most 0.01 of it an element.
        noise: standard deviation of a step's noise, below that of the dynamics proper, as published.
        buffer_size: images that the buffer holds.
        fresh: the share of training's chains that begin with noise.
        penalty: of the squares of the energies, which keeps them near zero.
        num_levels: values a subpixel can take.
        num_labels: number of classes to condition on; None for an unconditional model.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

    family = "energy model"
    unit = "energy of data less that of samples"

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
        super().__init__(image_shape, num_levels, num_labels)
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
        self.config = {
            "image_shape": self.image_shape,
            "channels": channels,
            "num_scales": num_scales,
            "langevin_steps": langevin_steps,
            "step_size": step_size,
            "noise": noise,
            "buffer_size": buffer_size,
            "fresh": fresh,
            "penalty": penalty,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }
        self.register_buffer("buffer", torch.rand(buffer_size, *self.image_shape) * 2 - 1)
        self.register_buffer("buffer_label", torch.randint(num_labels or 1, (buffer_size,)))
        self.network = EnergyNetwork(self.image_shape[0], channels, num_scales, num_labels)

    def energy(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Of each image, (B,): minus the log-density, up to a constant that nobody knows."""
        return self.network(x, label)

    forward = energy

    def score(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Minus the energy's gradient by `x`."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(x, label).sum(), x)
        return -gradient

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The mean energy of `x` less that of as many samples, which in training chains of Langevin dynamics
        move first; and the penalty. Noise is from torch's global generator."""
        label = self.check_input(x, label)
        count, device = len(x), x.device
        chosen = torch.randint(len(self.buffer), (count,), device=device)
        start, start_label = self.buffer[chosen].to(x.dtype), self.buffer_label[chosen]
        fresh = torch.rand(count, device=device) < self.config["fresh"]
        start = torch.where(fresh.view(-1, 1, 1, 1), torch.rand_like(start) * 2 - 1, start)
        if label is not None:
            start_label = torch.where(fresh, label, start_label)
        found_label = None if label is None else start_label
        if self.training:
            with evaluating(self):
                start = self.langevin(start, found_label, self.config["langevin_steps"])
            self.buffer[chosen], self.buffer_label[chosen] = start.to(self.buffer.dtype), start_label
        # Dequantized a little, lest data be told from samples by lying on levels.
        real = x + 0.005 * torch.randn_like(x) if self.training else x
        data, found = self.energy(torch.cat([real, start]), _both(label, found_label)).chunk(2)
        difference = data.mean() - found.mean()
        if not self.training:
            return difference
        return difference + self.config["penalty"] * (data.square() + found.square()).mean()

    @torch.no_grad()
    def langevin(
        self,
        x: Tensor,
        label: Tensor | None,
        steps: int,
        seed=None,
        advance=lambda more: None,
    ) -> Tensor:
        """`steps` of Langevin dynamics from `x`, within [-1, 1], all with draws of one seed."""
        seed = _seed.as_tensor(seed, x.device)
        size, noise = self.config["step_size"], self.config["noise"]
        for draw in range(1, steps + 1):
            score = self.score(x, label).clamp(-0.01, 0.01)
            x = GF.langevin_step(
                x, score, step_size=size, temperature=noise**2 / (2 * size), seed=seed, draw=draw
            ).clamp(-1, 1)
            advance(1)
        return x

    def draw(
        self, n: int, seed: Tensor, label: Tensor | None, *, guidance, progress, langevin_steps: int = 400
    ) -> Tensor:
        """By Langevin dynamics from uniform noise.

        Args:
            langevin_steps: how many.
        """
        _check.at_least(1, langevin_steps=langevin_steps)
        normal = GF.standard_normal((n, *self.image_shape), seed=seed, dtype=self.dtype, device=self.device)
        x = 2 * torch.special.ndtr(normal) - 1
        with reporting(progress, langevin_steps, "step") as advance:
            return self.langevin(x, label, langevin_steps, seed, advance)


class EnergyNetwork(nn.Module):
    """Residual blocks at each resolution, and a number for each image: of what is left, summed over pixels;
    for each class a weighting of its own."""

    def __init__(self, in_channels: int, channels: int, num_scales: int, num_labels: int | None):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        widths = [channels * 2**scale for scale in range(num_scales)]
        self.blocks = nn.ModuleList(
            EnergyBlock(before, width) for before, width in zip([channels, *widths], widths, strict=False)
        )
        self.out = nn.Linear(widths[-1], num_labels or 1)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.stem(x)
        for number, block in enumerate(self.blocks):
            h = block(F.avg_pool2d(h, 2, ceil_mode=True) if number else h)
        energies = self.out(F.silu(h).sum((2, 3)))
        return energies[:, 0] if label is None else energies.gather(1, label[:, None])[:, 0]


class EnergyBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        spectral = nn.utils.parametrizations.spectral_norm
        self.first = spectral(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.second = spectral(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(F.silu(self.first(F.silu(x))))


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None else torch.cat([first, second])
