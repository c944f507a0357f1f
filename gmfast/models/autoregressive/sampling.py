"""Sampling of autoregressive models: by a decode program, or by one full pass for each position."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ... import _check, decode
from ..._progress import Progress, reporting
from ..base import Cached
from .heads import Head


def place_given(given: Tensor | None, mask: Tensor | None, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Fill `empty` with the given values that are kept.

    Args:
        given: Values in [-1, 1] of a shape that expands to that of `empty`; None: nothing is kept.
        mask: Nonzero where values are kept, likewise.
        empty: Zeros `(n, *S)`, changed in place.

    Returns:
        `empty`, and booleans of its shape that are true where a value is kept.

    Raises:
        ValueError: For one of `given` and `mask` without the other, shapes, and values to keep outside [-1,
            1], which are checked on the CPU only. TypeError: For integers, and for what is no tensor.
    """
    shape = tuple(empty.shape)
    if given is None:
        if mask is not None:
            raise ValueError("mask: expected None without given, got a mask")
        return empty, torch.zeros_like(empty, dtype=torch.bool)
    if mask is None:
        raise ValueError("mask: expected which values of given are kept, got None")
    _check.tensor("given", given)
    _check.tensor("mask", mask)
    if not given.is_floating_point():
        raise TypeError(f"given: expected floating point numbers in [-1, 1], got {given.dtype}")
    for name, tensor in (("given", given), ("mask", mask)):
        try:
            tensor.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"{name}: expected a shape that expands to {shape}, got {tuple(tensor.shape)}"
            ) from None
    keep = (mask.to(empty.device) != 0).expand(shape)
    empty.copy_(torch.where(keep, given.to(empty), empty))
    if empty.device.type == "cpu":
        wrong = ~(empty.abs() <= 1 + 1e-6)  # true of NaN too; levels may round to a little over 1
        if wrong.any():
            raise ValueError(
                f"given: expected values in [-1, 1] where mask keeps them, got {empty[wrong][0].item()}"
            )
    return empty, keep


@torch.no_grad()
def sample_cached(
    model: Cached,
    x: Tensor,
    keep: Tensor,
    *,
    seed: Tensor,
    temperature: float = 1.0,
    label: Tensor | None = None,
    weights: str | None = None,
    progress: Progress = False,
    samples: Tensor | None = None,
    local: Tensor | None = None,
    **options,
) -> Tensor:
    """Draw the samples of `sample_naive` by a decode program; half-precision models run in float32.

    Args:
        model: The model.
        x: `(n, C, *S)`, holding the given values; it may change.
        keep: Booleans like `x`, true where a value is given.
        seed: int64 tensor `()`.
        temperature: Factor of the noise.
        label: Class indices `(n,)`.
        weights: Dtype that weights are rounded to, as in `gmfast.decode.compile`.
        progress: As in `Model.sample`.
        samples: Indices of the samples in the noise, as in `Program.sample`.
        local: Local features, likewise.
        **options: Arguments of the model's `decoder`.
    """
    program = decode.compile(model, weights=weights, **options).start(len(x), label)
    flat = x.flatten(2).to(program.dtype).contiguous()
    with reporting(progress, flat.shape[2], "position") as advance:
        program.sample(
            flat,
            keep.flatten(2) if keep.any() else None,
            seed=seed,
            temperature=temperature,
            samples=samples,
            local=local,
            progress=advance,
        )
    return flat.view_as(x).to(x.dtype)


@torch.no_grad()
def sample_naive(
    params_of: Callable[[Tensor], Tensor],
    head: Head,
    x: Tensor,
    keep: Tensor,
    order: Sequence[tuple[int, slice]],
    *,
    seed: Tensor,
    temperature: float = 1.0,
    progress: Progress = False,
) -> Tensor:
    """Draw samples with one full pass for each position, in place.

    Noise is keyed by (seed, sample, position), so drawing at all positions and keeping one gives each
    position noise of its own.

    Args:
        params_of: The head's parameters at every position of `x`.
        head: The head.
        x: Contiguous `(n, C, *S)`, holding the given values.
        keep: Booleans like `x`, true where a value is given.
        order: Positions and channels in the order they are drawn in: index into the flattened S, and a slice.
        seed: int64 tensor `()`.
        temperature: Factor of the noise.
        progress: As in `Model.sample`.

    Returns:
        `x`.
    """
    flat, keep = x.flatten(2), keep.flatten(2)
    with reporting(progress, len(order), "draw") as advance:
        for position, channels in order:
            keep_here = keep[:, channels, position]
            if not keep_here.all():
                draw = head.sample(params_of(x), x.shape[1], seed=seed, temperature=temperature)
                here, drawn = (values[:, channels, position] for values in (flat, draw.flatten(2)))
                here.copy_(torch.where(keep_here, here, drawn))
            advance(1)
    return x
