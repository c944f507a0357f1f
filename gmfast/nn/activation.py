"""Activations as modules."""

from torch import Tensor, nn

from .. import functional as GF


class GatedActivation(nn.Module):
    """Gated activation `tanh(a) * sigmoid(b) [+ residual]` (van den Oord et al., 2016, arXiv:1606.05328).

    a and b are the halves of the input along `dim`; the output has half its size there.

    Args:
        dim: the dimension that is halved.
    """

    def __init__(self, dim: int = 1):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply it to `x`; `residual` has the output's shape."""
        return GF.gated_activation(x, residual, dim=self.dim)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"dim={self.dim}"


class ConcatELU(nn.Module):
    """Concatenated ELU, `elu(cat([x, -x], dim))`, of PixelCNN++ (Salimans et al., 2017, arXiv:1701.05517).

    Args:
        dim: the dimension that is doubled.
    """

    def __init__(self, dim: int = 1):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to `x`."""
        return GF.concat_elu(x, self.dim)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"dim={self.dim}"
