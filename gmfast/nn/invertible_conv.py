"""Invertible 1×1 convolution: a learned linear map of the channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from ..ops._layout import without_autocast
from .transform import Transform


class InvertibleConv1x1(Transform):
    """Invertible 1×1 convolution `y = W x`, W a matrix over the channels (Glow, arXiv:1807.03039).

    Takes `(B, C)`, `(B, C, T)`, `(B, C, H, W)` and so on; `log_det` is (number of positions)·log|det W|. W is
    initialised to a random rotation. With `lu`, W = P L U with P fixed, L unit lower triangular and U upper
    triangular with a diagonal of fixed signs: W cannot become singular, and log|det W| is a sum. Without, W
    is one parameter, and the log-determinant needs a decomposition at each call.

    The matrix is computed in float32 or better (its inverse in float64), whatever the dtype of `x`, and
    applied in the dtype of `x`, under autocast too: rounding to autocast's dtype is not invertible.

    In eval mode without gradients the inverse of W is cached. `train()`, `load_state_dict`, `to()` and every
    change of a parameter that its version counts invalidate it. Fused optimizers and writes to `.data` are
    not counted: after them call `eval()` again.

    Args:
        channels: C.
        lu: whether W is parametrised as P L U.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(self, channels: int, *, lu: bool = True, device=None, dtype=None):
        super().__init__()
        _check.at_least(1, channels=channels)
        self.channels, self.lu = channels, lu
        self._cached = None
        if lu:
            self.lower = nn.Parameter(torch.empty(channels, channels, device=device, dtype=dtype))
            self.upper = nn.Parameter(torch.empty(channels, channels, device=device, dtype=dtype))
            self.log_diagonal = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
            self.register_buffer("sign", torch.empty(channels, device=device, dtype=dtype))
            # Row i of W is row order[i] of L U.
            self.register_buffer("order", torch.empty(channels, device=device, dtype=torch.int64))
        else:
            self.matrix = nn.Parameter(torch.empty(channels, channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set W to a random rotation, drawn from torch's global generator."""
        like = self.lower if self.lu else self.matrix
        self.set_weight(nn.init.orthogonal_(torch.empty_like(like, dtype=torch.float64)))

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Set W to `weight` (C, C), such as another library's.

        Raises:
            ValueError: for another shape, or with `lu` a singular matrix.
        """
        if tuple(weight.shape) != (self.channels, self.channels):
            raise ValueError(
                f"weight: expected ({self.channels}, {self.channels}), got {tuple(weight.shape)}"
            )
        self._cached = None
        if not self.lu:
            self.matrix.copy_(weight)
            return
        if weight.is_meta:
            return
        permutation, lower, upper = torch.linalg.lu(weight.to(torch.float64))
        diagonal = upper.diagonal()
        if not (diagonal != 0).all():
            raise ValueError("weight: expected an invertible matrix, got a singular one")
        self.order.copy_(permutation.argmax(1))
        self.lower.copy_(lower.tril(-1))
        self.upper.copy_(upper.triu(1))
        self.log_diagonal.copy_(diagonal.abs().log())
        self.sign.copy_(diagonal.sign())

    def factors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Return L and U of W = P L U."""
        lower, upper, log_diagonal = (p.to(dtype) for p in (self.lower, self.upper, self.log_diagonal))
        unit = torch.eye(self.channels, dtype=dtype, device=lower.device)
        return lower.tril(-1) + unit, upper.triu(1) + torch.diag(self.sign.to(dtype) * log_diagonal.exp())

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return W (C, C), differentiable."""
        if not self.lu:
            return self.matrix.to(dtype)
        lower, upper = self.factors(dtype)
        return (lower @ upper).index_select(0, self.order)

    def inverse_weight(self) -> Tensor:
        """Return the inverse of W (C, C) in float64, differentiable."""
        if not self.lu:
            return torch.linalg.inv_ex(self.matrix.to(torch.float64)).inverse
        lower, upper = self.factors()
        # (P L U)⁻¹ = U⁻¹ L⁻¹ Pᵀ: its columns are in the order of W's rows.
        permuted = torch.eye(self.channels, dtype=torch.float64, device=lower.device)
        permuted = permuted.index_select(1, self.order)
        inner = torch.linalg.solve_triangular(lower, permuted, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, inner, upper=True)

    def log_abs_det(self) -> Tensor:
        """Return log|det W|, in float32 or better."""
        if self.lu:
            dtype = torch.promote_types(self.log_diagonal.dtype, torch.float32)
            return self.log_diagonal.sum(dtype=dtype)
        return torch.linalg.slogdet(self.matrix.to(torch.float64)).logabsdet

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Multiply the channels of `x` by W."""
        _check.tensor("x", x)
        _check.floating("x", x)
        _check.channels("x", x, self.channels)
        with without_autocast(x):
            weight = self.weight(torch.promote_types(x.dtype, torch.float32))
            return self._apply_matrix(weight, x), self._log_det(x)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Multiply the channels of `z` by the inverse of W."""
        _check.tensor("z", z)
        _check.floating("z", z)
        _check.channels("z", z, self.channels)
        with without_autocast(z):
            weight = self._cached_inverse(torch.promote_types(z.dtype, torch.float32))
            return self._apply_matrix(weight, z), -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return (self.log_abs_det() * x.shape[2:].numel()).to(dtype).expand(x.shape[0])

    def _apply_matrix(self, weight: Tensor, x: Tensor) -> Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):
            # A matrix and its inverse that are both rounded to halves are not each other's inverse.
            return self._apply_matrix(weight, x.float()).to(x.dtype)
        weight = weight.to(x.dtype)
        last = x.movedim(1, -1)
        if x.dim() == 2 or last.is_contiguous():  # channels_last: the result is laid out alike
            return F.linear(last, weight).movedim(-1, 1)
        # A matrix product, as a convolution may round float32 to TF32.
        return (weight @ x.flatten(2)).view(x.shape)

    def _cached_inverse(self, dtype: torch.dtype) -> Tensor:
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.inverse_weight()
        parameters = tuple(self.parameters())
        if any(p.is_inference() for p in parameters):
            return self.inverse_weight()
        # The key holds the parameters themselves: an id alone could be that of a later object.
        key = dtype, *((p, p._version) for p in parameters)
        if self._cached is None or not _same(self._cached[0], key):
            self._cached = key, self.inverse_weight().to(dtype)
        return self._cached[1]

    def train(self, mode: bool = True) -> "InvertibleConv1x1":
        """Set the mode, and forget the cached inverse."""
        self._cached = None
        return super().train(mode)

    def _apply(self, *args, **kwargs):
        self._cached = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self._cached = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self):
        return {**self.__dict__, "_cached": None}

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"{self.channels}, lu={self.lu}"


def _same(one: tuple, other: tuple) -> bool:
    return one[0] == other[0] and all(
        p is q and version == other_version
        for (p, version), (q, other_version) in zip(one[1:], other[1:], strict=True)
    )
