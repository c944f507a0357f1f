"""Masked and causal convolutions, each with a step for one position at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import _check
from .. import functional as GF
from .._conv_mask import conv_mask
from ..ops.causal_conv1d import ACTIVATIONS, SYNONYMS


@dataclass
class RasterState:
    """State of a `MaskedConv2d` that is computed pixel by pixel.

    Attributes:
        canvas: inputs so far, zeros elsewhere, (B, C, H + rows above, W + columns to both sides).
        height, width: H and W.
        position: raster index of the next pixel.
    """

    canvas: Tensor
    height: int
    width: int
    position: int = 0


class MaskedConv2d(nn.Conv2d):
    """Masked convolution of PixelCNN (van den Oord et al., 2016, arXiv:1601.06759).

    The receptive field is, in raster order, the pixels before the current one (type A), or up to it (type B).
    Takes `nn.Conv2d`'s arguments, initialises like it and loads its state dict. `stride` and `groups` must be
    1, `padding` zeros that preserve the size.

    Args:
        mask_type, channel_groups: as in `gmfast.functional.masked_conv2d`.

    Raises:
        ValueError: naming the argument, for a convolution that cannot be masked.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = "same",
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        *,
        mask_type: str = "B",
        channel_groups: int = 1,
    ):
        _check_sizes(in_channels, out_channels, kernel_size, groups=groups, channel_groups=channel_groups)
        if stride not in (1, (1, 1)):
            raise ValueError(f"stride: expected 1, got {stride}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(f"kernel_size: expected odd sizes, got {self.kernel_size}")
        same = tuple(d * (k // 2) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        if self.padding not in ("same", same):
            raise ValueError(f'padding: expected "same" or {same}, got {self.padding!r}')
        if groups != 1:
            raise ValueError(f"groups: expected 1 (channel_groups orders the colours), got {groups}")
        if padding_mode != "zeros":
            raise ValueError(f'padding_mode: expected "zeros", got {padding_mode!r}')
        if mask_type not in ("A", "B"):
            raise ValueError(f"mask_type: expected 'A' or 'B', got {mask_type!r}")
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channel_groups < 1 or channels % channel_groups:
                raise ValueError(
                    f"{name}: expected a multiple of channel_groups={channel_groups}, got {channels}"
                )
        self.mask_type, self.channel_groups = mask_type, channel_groups

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x (B, I, H, W)`; returns (B, O, H, W)."""
        return GF.masked_conv2d(
            x,
            self.weight,
            self.bias,
            mask_type=self.mask_type,
            channel_groups=self.channel_groups,
            dilation=self.dilation,
        )

    def init_state(self, batch: int, height: int, width: int) -> RasterState:
        """Return the state before the first pixel of `batch` images of `height` rows and `width` columns."""
        (rows, columns), (down, right) = self.kernel_size, self.dilation
        size = height + rows // 2 * down, width + columns // 2 * right * 2
        return RasterState(self.weight.new_zeros(batch, self.in_channels, *size), height, width)

    def step(self, x: Tensor, state: RasterState, *, advance: bool = True) -> Tensor:
        """Compute the output (B, O) at the next pixel in raster order.

        Args:
            x: the input at that pixel, (B, I).
            state: changed in place.
            advance: whether to go on to the next pixel. If not, the call can be repeated when more of `x` is
                known: type A does not read it, and colour groups read the earlier groups.
        """
        row, column = divmod(state.position, state.width)
        if row >= state.height:
            raise ValueError(f"state: expected a pixel to come, got one behind all {state.position}")
        (rows, columns), (down, right) = self.kernel_size, self.dilation
        above, left = rows // 2 * down, columns // 2 * right
        state.canvas[:, :, row + above, column + left] = x
        state.position += advance
        seen = state.canvas[:, :, row : row + above + 1 : down, column : column + 2 * left + 1 : right]
        mask = conv_mask(self.weight.shape, self.mask_type, self.channel_groups, self.weight.device)
        weight = torch.where(mask, self.weight, 0.0)[:, :, : rows // 2 + 1]
        y = torch.einsum("bihw,oihw->bo", seen, weight)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"{super().extra_repr()}, mask_type={self.mask_type!r}, channel_groups={self.channel_groups}"


class CausalConv1d(nn.Conv1d):
    """Causal convolution, whose output at time t depends on inputs up to t, with its activation fused.

    Takes `nn.Conv1d`'s arguments, initialises like it and loads its state dict. `stride` must be 1 and
    `padding` 0: the input is padded on the left inside.

    Args:
        activation: as in `gmfast.functional.causal_conv1d`; with "gated" the output has half of
            `out_channels`.

    Raises:
        ValueError: naming the argument, for a convolution that cannot be causal.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        *,
        activation: str | None = None,
    ):
        _check_sizes(in_channels, out_channels, kernel_size, groups=groups)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        if self.stride != (1,):
            raise ValueError(f"stride: expected 1, got {self.stride[0]}")
        if self.padding != (0,):
            raise ValueError(
                f"padding: expected 0 (what comes before the start is zeros), got {self.padding}"
            )
        if padding_mode != "zeros":
            raise ValueError(f'padding_mode: expected "zeros", got {padding_mode!r}')
        activation = SYNONYMS.get(activation, activation) if isinstance(activation, str) else activation
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected None, 'silu' or 'gated', got {activation!r}")
        if activation == "gated" and out_channels % 2:
            raise ValueError(f"out_channels: expected an even number for a gate, got {out_channels}")
        self.activation = activation

    def forward(
        self,
        x: Tensor,
        initial_state: Tensor | None = None,
        return_state: bool = False,
        *,
        seq_idx: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Convolve `x (B, C, T)`, as `gmfast.functional.causal_conv1d`.

        Args:
            x: the input.
            initial_state: of the samples before the first, as `init_state`; None: zeros.
            return_state: whether to return the state behind the last sample too.
            seq_idx: (B, T), the sequence of each input, of several packed one behind the other.
            lengths: (B,), the true lengths of a right-padded batch.
        """
        return GF.causal_conv1d(
            x,
            self.weight,
            self.bias,
            dilation=self.dilation[0],
            groups=self.groups,
            activation=self.activation,
            initial_state=initial_state,
            return_state=return_state,
            seq_idx=seq_idx,
            lengths=lengths,
        )

    def init_state(self, batch: int) -> Tensor:
        """Return the state before the first sample, (B, C, (k-1)*dilation) zeros."""
        return self.weight.new_zeros(batch, self.in_channels, (self.kernel_size[0] - 1) * self.dilation[0])

    def step(self, x: Tensor, state: Tensor, *, cache_seqlens: Tensor | None = None) -> Tensor:
        """Compute the output for the next sample `x` (B, C), or several (B, C, L); `state` is updated.

        With `cache_seqlens` (B,), the number of samples that came before, the state is a circular buffer.
        """
        return GF.causal_conv1d_update(
            x,
            state,
            self.weight,
            self.bias,
            dilation=self.dilation[0],
            groups=self.groups,
            activation=self.activation,
            cache_seqlens=cache_seqlens,
        )

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return super().extra_repr() + (f", activation={self.activation!r}" if self.activation else "")


def _check_sizes(
    in_channels: int, out_channels: int, kernel_size: int | tuple[int, ...], **groups: int
) -> None:
    """Check what torch would find when it makes the weight."""
    _check.at_least(1, in_channels=in_channels, out_channels=out_channels, **groups)
    for size in kernel_size if isinstance(kernel_size, tuple) else (kernel_size,):
        _check.at_least(1, kernel_size=size)
