"""What autoregressive models share: checks of their arguments, and sampling, by a decode program or with one
full pass for each position."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .. import _check, decode
from .._progress import Progress, reporting

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_label(label: Tensor | None, count: int, num_labels: int | None) -> Tensor | None:
    """`label` as int64. Raises ValueError unless it is `count` integers below `num_labels`, or None where
    that is None.

    Values are looked at on the CPU only: elsewhere the host would have to wait for the device.
    """
    if num_labels is None:
        if label is not None:
            raise ValueError("label: expected None, because the model is not conditional, got labels")
        return None
    if label is None:
        raise ValueError(f"label: expected {count} integers below {num_labels}, got None")
    if not isinstance(label, Tensor):
        raise TypeError(f"label: expected a tensor of {count} integers, got {type(label).__name__}")
    if label.shape != (count,) or label.dtype not in INTEGERS:
        raise ValueError(f"label: expected {count} integers, got {label.dtype} of shape {tuple(label.shape)}")
    label = label.long()
    if label.device.type == "cpu" and count and not torch.compiler.is_compiling():
        low, high = label.aminmax()
        if low < 0 or high >= num_labels:
            raise ValueError(
                f"label: expected integers from 0 to {num_labels - 1}, "
                f"got values from {int(low)} to {int(high)}"
            )
    return label


def check_request(n: int, method: str, temperature: float, weights: str | None, what: str) -> None:
    """Raises ValueError or TypeError for what no model can be asked to sample."""
    _check.integer("n", n)
    if n < 0:
        raise ValueError(f"n: expected a number of {what}, got {n}")
    if method not in ("cached", "naive"):
        raise ValueError(f'method: expected "cached" or "naive", got {method!r}')
    if method == "naive" and weights is not None:
        raise ValueError(f'weights: expected None with method="naive", got {weights!r}')
    _check.number("temperature", temperature, 0, 1e30)


def labels_of(label: Tensor | int | None, n: int, num_labels: int | None, device) -> Tensor | None:
    """One class, or one for each of `n` samples, as the latter, int64."""
    if label is not None:
        label = torch.as_tensor(label)
        label = label.expand(n) if label.dim() == 0 else label
    label = check_label(label, n, num_labels)
    return None if label is None else label.to(device)


def kept(given: Tensor | None, mask: Tensor | None, empty: Tensor) -> tuple[Tensor, Tensor]:
    """`empty` (n, *S), zeros, with what is given where it is kept, and booleans that say where that is: where
    `mask` is not zero. Both expand to that shape; with neither nothing is kept.

    Raises ValueError for one without the other, for shapes and for values to keep outside [-1, 1] (which are
    looked at on the CPU only), TypeError for integers and for what is no tensor."""
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
        wrong = ~(empty.abs() <= 1 + 1e-6)  # which NaN is too; levels may round to a little over 1
        if wrong.any():
            raise ValueError(
                f"given: expected values in [-1, 1] where mask keeps them, got {empty[wrong][0].item()}"
            )
    return empty, keep


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and each of its modules in its own former mode afterwards."""
    were_training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in were_training:
            module.training = training


@torch.no_grad()
def sample_cached(
    model: nn.Module,
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
    """What `sample_naive` returns, by a decode program: in float32 where the model is in half precision. `x`
    may change.

    `weights` and `options` are those of `gmfast.decode.compile`, `samples` and `local` those of
    `Program.sample`."""
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
    head,
    x: Tensor,
    keep: Tensor,
    order: Sequence[tuple[int, slice]],
    *,
    seed: Tensor,
    temperature: float = 1.0,
    progress: Progress = False,
) -> Tensor:
    """Fills `x` (n, C, *S) in place and returns it.

    Positions and channels come in `order`: (flat index into S, slice of channels). Where `keep` is true x
    holds what is given, and stays. `params_of(x)` gives the head's parameters at every position. Noise is
    keyed by (seed, sample, position), so drawing at all positions and keeping one gives each position noise
    of its own.
    """
    flat, keep = x.flatten(2), keep.flatten(2)  # x is contiguous: a view
    with reporting(progress, len(order), "draw") as advance:
        for position, channels in order:
            keep_here = keep[:, channels, position]
            if not keep_here.all():
                draw = head.sample(params_of(x), x.shape[1], seed=seed, temperature=temperature)
                here, drawn = (values[:, channels, position] for values in (flat, draw.flatten(2)))
                here.copy_(torch.where(keep_here, here, drawn))
            advance(1)
    return x
