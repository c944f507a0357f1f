"""Activations as modules."""

from torch import Tensor, nn

from .. import functional as GF


class GatedActivation(nn.Module):
    """`tanh(a) * sigmoid(b) [+ residual]`, a and b the halves of the input along `dim` (van den Oord et al.,
    2016, arXiv:1606.05328). The output has half as many entries along `dim`."""

    def __init__(self, dim: int = 1):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return GF.gated_activation(x, residual, dim=self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class ConcatELU(nn.Module):
    """`elu(cat([x, -x], dim))`, the non-linearity of PixelCNN++ (Salimans et al., 2017, arXiv:1701.05517).
    The output has twice as many entries along `dim`."""

    def __init__(self, dim: int = 1):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return GF.concat_elu(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
