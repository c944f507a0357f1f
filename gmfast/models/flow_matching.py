"""Flow matching: Lipman et al., 2023, https://arxiv.org/abs/2210.02747; Liu et al., 2023,
https://arxiv.org/abs/2209.03003."""

import torch
from torch import Tensor

from .. import _check
from .. import functional as GF
from .diffusion_image import OdeImageDiffusion, unet_arguments

TIMES = ("uniform", "logit_normal")


class FlowMatching(OdeImageDiffusion):
    """Flow matching on straight lines from data, at t = 0, to noise, at t = 1: the network is trained to give
    the velocity `noise - x` of `(1 - t) * x + t * noise`, and the ODE of its expectation carries the noise to
    images (Lipman et al., 2023, arXiv:2210.02747; Liu et al., 2023, arXiv:2209.03003).

    Args:
        image_shape: (C, H, W); H and W are multiples of `2 ** (len(multipliers) - 1)`.
        channels, multipliers, num_blocks, attention, dropout: of the network (`gmfast.models.unet.UNet`).
        times: of training: "uniform", or "logit_normal", more in the middle (Esser et al., 2024,
            arXiv:2403.03206).
        label_dropout, dequantize: as of `gmfast.models.diffusion_image.ImageDiffusion`.
        num_levels: values a subpixel can take.
        num_labels: number of classes to condition on; None for an unconditional model.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        channels: int = 128,
        multipliers: tuple[int, ...] = (2, 2, 2),
        num_blocks: int = 4,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        times: str = "uniform",
        label_dropout: float = 0.1,
        dequantize: bool = True,
        num_levels: int = 256,
        num_labels: int | None = None,
    ):
        super().__init__(image_shape, num_levels, num_labels, label_dropout, dequantize)
        _check.one_of("times", times, TIMES)
        unet = unet_arguments(channels, multipliers, num_blocks, attention, dropout)
        self.config = {
            "image_shape": self.image_shape,
            **unet,
            "times": times,
            "label_dropout": label_dropout,
            "dequantize": dequantize,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }
        self.times = times
        self.unet = self.build_unet(unet, 1000.0)

    def velocity(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """dx/dt of `x (B, C, H, W)` at times `t (B,)` from 0, data, to 1, noise."""
        return self.unet(x, t, label)

    forward = velocity

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """The velocity's mean squared error, with noise from torch's global generator."""
        label = self.training_label(self.check_input(x, label))
        draw = torch.rand if self.times == "uniform" else torch.randn
        t = draw(len(x), dtype=x.dtype, device=x.device)
        if self.times == "logit_normal":
            t = torch.sigmoid(t)
        noised, target = GF.q_sample(self.continuous(x), 1 - t, t, target="flow")
        return (self.velocity(noised, t, label) - target).square().mean()

    def ode(self, label: Tensor | None):
        """Its times are the cubes of equally spaced ones: near data, where a density of many levels needs
        them, they lie close."""

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
        progress,
        sampler="heun",
        steps: int = 25,
    ) -> Tensor:
        """By a sampler of `gmfast.diffusion`.

        Args:
            sampler: a name or an object; "heun" takes two passes a step, "flow_euler" one.
            steps: of the sampler.
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
