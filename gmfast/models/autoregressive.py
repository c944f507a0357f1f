"""What autoregressive models share: checks of their arguments, and sampling with one full pass for each
position."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def check_label(label: Tensor | None, count: int, num_labels: int | None) -> None:
    """Raises ValueError unless `label` is `count` integers below `num_labels`, or None where that is None.

    Values are looked at on the CPU only: elsewhere the host would have to wait for the device.
    """
    if num_labels is None:
        if label is not None:
            raise ValueError("label: expected None, because the model is not conditional, got labels")
        return
    if label is None:
        raise ValueError(f"label: expected {count} integers below {num_labels}, got None")
    if label.shape != (count,) or label.is_floating_point():
        raise ValueError(f"label: expected {count} integers, got {label.dtype} of shape {tuple(label.shape)}")
    if label.device.type == "cpu" and count and not torch.compiler.is_compiling():
        low, high = label.aminmax()
        if low < 0 or high >= num_labels:
            raise ValueError(
                f"label: expected integers from 0 to {num_labels - 1}, "
                f"got values from {int(low)} to {int(high)}"
            )


def given_mask(mask: Tensor | None, given: Tensor | None, shape: tuple[int, ...], device) -> Tensor:
    """Booleans (n, C, *S): which values of `given` are kept: those where `mask` is not zero. Both expand to
    that shape; with neither nothing is kept. Raises ValueError for one without the other."""
    if given is None:
        if mask is not None:
            raise ValueError(f"mask: expected None without given, got {tuple(mask.shape)}")
        return torch.zeros(shape, dtype=torch.bool, device=device)
    if mask is None:
        raise ValueError("mask: expected which values of given are kept, got None")
    try:
        given.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"given: expected a shape that expands to {tuple(shape)}, got {tuple(given.shape)}"
        ) from None
    try:
        return (mask.to(device) != 0).expand(shape)
    except RuntimeError:
        raise ValueError(
            f"mask: expected a shape that expands to {tuple(shape)}, got {tuple(mask.shape)}"
        ) from None


@torch.no_grad()
def sample_naive(
    params_of: Callable[[Tensor], Tensor],
    head,
    x: Tensor,
    keep: Tensor,
    order: Iterable[tuple[int, slice]],
    *,
    seed: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Fills `x` (n, C, *S) in place and returns it.

    Positions and channels come in `order`: (flat index into S, slice of channels). Where `keep` is true x
    holds what is given, and stays. `params_of(x)` gives the head's parameters at every position. Noise is
    keyed by (seed, sample, position), so drawing at all positions and keeping one gives each position noise
    of its own.
    """
    flat, kept = x.flatten(2), keep.flatten(2)  # x is contiguous: a view
    for position, channels in order:
        keep_here = kept[:, channels, position]
        if keep_here.all():
            continue
        draw = head.sample(params_of(x), x.shape[1], seed=seed, temperature=temperature)
        here = flat[:, channels, position]
        flat[:, channels, position] = torch.where(keep_here, here, draw.flatten(2)[:, channels, position])
    return x
