"""Flow matching: Lipman et al., 2023, https://arxiv.org/abs/2210.02747.

The straight paths are those of Liu et al., 2023, https://arxiv.org/abs/2209.03003.
"""

from typing import Any

import torch
from torch import Tensor

from ... import _check, diffusion
from ... import functional as GF
from ..._progress import Progress
from ..networks.unet import UNetConfig
from .image import OdeImageDiffusion
from .ode import LogDensity, Velocity
from .settings import unet_settings

TIMES = ("uniform", "logit_normal")


class FlowMatching(OdeImageDiffusion):
    """Flow matching on straight paths (Lipman et al., 2023, arXiv:2210.02747).

    The network predicts the velocity `noise - x` of the path `(1 - t) * x + t * noise` from data, at t = 0,
    to noise, at t = 1; the ODE of the expected velocity carries noise to images (Liu et al., 2023,
    arXiv:2209.03003).

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(multipliers) - 1)`.
        times: Distribution of the training times: "uniform", or "logit_normal", denser in the middle (Esser
            et al., 2024, arXiv:2403.03206).
        label_dropout: Share of training images whose class the network does not see, for guidance.
        dequantize: Train on uniformly dequantized images, of which `log_prob` is the density.
        num_levels: Number of values of a subpixel.
        num_labels: Number of classes to condition on; None for an unconditional model.
        network: Fields of `gmfast.models.networks.unet.UNetConfig` other than the published ones.

    Raises:
        ValueError: For an argument out of range, naming it. TypeError: For an unknown one.
    """

    settings = unet_settings()
    network = UNetConfig(channels=128, multipliers=(2, 2, 2), num_blocks=4, attention=(16,), dropout=0.1)

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        *,
        times: str = "uniform",
        label_dropout: float = 0.1,
        dequantize: bool = True,
        num_levels: int = 256,
        num_labels: int | None = None,
        **network: Any,
    ):
        super().__init__(image_shape, num_levels, num_labels, label_dropout, dequantize)
        _check.one_of("times", times, TIMES)
        self.times = times
        self.unet = self.build_unet(network, 1000.0)

    def velocity(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """dx/dt of `x (B, C, H, W)` at times `t (B,)`, from 0 at data to 1 at noise."""
        return self.unet(x, t, label)

    forward = velocity

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Mean squared error of the velocity; torch's global generator draws noise and times."""
        label = self.training_label(self.check_input(x, label))
        draw = torch.rand if self.times == "uniform" else torch.randn
        t = draw(x.shape[0], dtype=x.dtype, device=x.device)
        if self.times == "logit_normal":
            t = torch.sigmoid(t)
        noised, target = GF.q_sample(self.continuous(x), 1 - t, t, target="flow")
        return (self.velocity(noised, t, label) - target).square().mean()

    def ode(self, label: Tensor | None) -> tuple[Velocity, LogDensity]:
        """Velocity at the cube of the time: short steps near data, where densities are steep."""

        def velocity(y, u):
            return self.velocity(y, u**3, label) * (3 * u.square()).view(-1, 1, 1, 1)

        return velocity, GF.gaussian_log_prob

    def draw(
        self,
        n: int,
        seed: Tensor,
        label: Tensor | None,
        *,
        guidance: float | None,
        progress: Progress,
        sampler: str | diffusion.Sampler = "heun",
        steps: int = 25,
    ) -> Tensor:
        """Draw `n` images by a sampler of `gmfast.diffusion`.

        Args:
            n: Number of images.
            seed: int64 tensor `()`.
            label: Classes, int64 `(n,)`, or None.
            guidance: Guidance scale, or None.
            progress: See `sample`.
            sampler: Name or object; "heun" takes two passes a step, "flow_euler" one.
            steps: Number of steps.
        """
        return self.diffuse(
            self,
            n,
            seed,
            label,
            guidance,
            sampler=sampler,
            schedule="flow",
            steps=steps,
            prediction="flow",
            progress=progress,
        )
