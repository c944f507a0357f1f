"""Checks of what a decode program is asked to do, each with a message that names the argument.

Nothing is changed before everything was checked. Values of tensors are only read on the CPU, where that does
not wait for a device.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _check, _seed
from .builder import Plan
from .packing import Format


@dataclass(frozen=True)
class SampleRequest:
    """Positions to draw: the arguments of `Program.sample`, checked and on the program's device.

    `end` is the position behind the last one to draw. `keep` (uint8, as x) marks what is given.
    """

    x: Tensor
    keep: Tensor | None
    samples: Tensor
    features: Tensor | None
    seed: Tensor
    temperature: float
    end: int
    progress: Callable[[int], None] | None


def sample_request(
    plan: Plan,
    form: Format,
    batch: int,
    x: Tensor,
    keep: Tensor | None,
    *,
    seed: int | Tensor | torch.Generator | None,
    temperature: float,
    samples: Tensor | None,
    local: Tensor | None,
    progress: Callable[[int], None] | None,
) -> SampleRequest:
    """Return the request that the arguments of `Program.sample` make.

    Raises:
        ValueError: A shape or value does not fit the program, or it has no distribution to draw from.
        TypeError: An argument has the wrong type.
    """
    if any(draw.head is None for draw in plan.draws):
        raise ValueError("sample: expected a program that ends in a distribution, got one without a head")
    _check.number("temperature", temperature, 0, 1e30)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress: expected a function, got {type(progress).__name__}")
    _check_x(plan, form, batch, x)
    return SampleRequest(
        x=x,
        keep=None if keep is None else _given(keep, x, joint=plan.draws[0].channels > 1),
        samples=_noise_indices(samples, batch, form.device),
        features=check_features(plan, form, batch, local, x.shape[2]),
        seed=_seed.as_tensor(seed, form.device),
        temperature=temperature,
        end=x.shape[2] if plan.length is None else plan.length,
        progress=progress,
    )


def _check_x(plan: Plan, form: Format, batch: int, x: Tensor) -> None:
    """Raise unless the draws fill `x` (batch, channels, positions)."""
    _check.tensor("x", x)
    positions = x.shape[-1:].numel() if plan.length is None else plan.length
    if any(draw.position is not None for draw in plan.draws):
        positions = 1 + max(draw.position for draw in plan.draws)
    expected = (batch, plan.draws[0].total_channels, positions)
    fits = x.dtype == form.dtype and x.device == form.device and x.is_contiguous()
    if tuple(x.shape) != expected or not fits:
        raise ValueError(
            f"x: expected a contiguous tensor of {form.dtype} of shape {expected} on {form.device}, got "
            f"{x.dtype} of shape {tuple(x.shape)} on {x.device}"
        )


def _given(keep: Tensor, x: Tensor, joint: bool) -> Tensor:
    """Return the mask of given elements as bytes, expanded to the shape of `x`.

    Channels that are drawn together (`joint`) must be given together.
    """
    _check.tensor("keep", keep)
    try:
        keep = (keep != 0).expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"keep: expected a shape that expands to {tuple(x.shape)}, got {tuple(keep.shape)}"
        ) from None
    if joint and (keep != keep[:, :1]).any():
        raise ValueError("keep: expected the same for all channels, which are drawn together")
    return keep.to(x.device, torch.uint8).contiguous()


def _noise_indices(samples: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """Return the index of each sample in the noise, (batch,) int64."""
    if samples is None:
        return torch.arange(batch, device=device) + _seed.first()
    _check.tensor("samples", samples)
    if samples.shape != (batch,) or samples.dtype != torch.int64 or samples.device != device:
        raise ValueError(
            f"samples: expected {batch} int64 indices on {device}, got {samples.dtype} of "
            f"shape {tuple(samples.shape)} on {samples.device}"
        )
    if samples.device.type == "cpu" and batch:
        low, high = samples.aminmax()
        if low < 0 or high >= 2**32:
            raise ValueError(
                f"samples: expected indices from 0 to 2**32 - 1, got values from {low} to {high}"
            )
    return samples.contiguous()


def check_features(plan: Plan, form: Format, batch: int, local: Tensor | None, *length: int) -> Tensor | None:
    """Return the local features of `length` positions, or of one, as (batch, features, length)."""
    if plan.features is None:
        if local is not None:
            raise ValueError("local: expected None, because the model takes none, got features")
        return None
    expected = (batch, plan.features.channels, *length)
    if local is not None:
        _check.tensor("local", local)
    if local is None or tuple(local.shape) != expected:
        came = None if local is None else tuple(local.shape)
        raise ValueError(f"local: expected shape {expected}, got {came}")
    local = local if length else local.unsqueeze(2)
    return local.to(form.device, form.dtype).contiguous()


def check_fed(
    plan: Plan, form: Format, batch: int, cursor: tuple[int, int], x: Tensor | None
) -> Tensor | None:
    """Return the value for the draw at the cursor, (batch, channels); None before the first draw."""
    draw, position = plan.draw_at(*cursor), cursor[0]
    if position == plan.length or plan.is_last_draw(*cursor):
        raise ValueError(f"x: expected a position to come, got one behind all {plan.length}")
    if draw is None:
        if x is not None:
            raise ValueError("x: expected None at the start, got a value")
        return None
    if x is None:
        raise ValueError(
            f"x: expected a tensor of shape ({batch}, {draw.channels}), the value at position {position}, "
            "got None"
        )
    _check.tensor("x", x)
    if tuple(x.shape) != (batch, draw.channels):
        raise ValueError(f"x: expected shape ({batch}, {draw.channels}), got {tuple(x.shape)}")
    return x.to(form.device, form.dtype).contiguous()


def check_batch(batch: int) -> None:
    """Raise unless `batch` is a number of samples."""
    _check.integer("batch", batch)
    if batch < 0:
        raise ValueError(f"batch: expected a number of samples, got {batch}")


def check_label(plan: Plan, form: Format, batch: int, label: Tensor | None) -> Tensor | None:
    """Return a copy of the class labels as int64, (batch,), on the program's device."""
    embedding = next((layer.embedding for layer in plan.layers if layer.embedding is not None), None)
    if (embedding is None) != (label is None):
        expected = "None, because the model is not conditional" if embedding is None else f"{batch} classes"
        raise ValueError(f"label: expected {expected}, got {'None' if label is None else 'classes'}")
    if label is None:
        return None
    _check.tensor("label", label)
    integers = not (label.is_floating_point() or label.is_complex() or label.dtype == torch.bool)
    if label.shape != (batch,) or not integers:
        raise ValueError(f"label: expected {batch} classes, got {label.dtype} of shape {tuple(label.shape)}")
    label, last = label.to(form.device, torch.int64, copy=True), len(embedding) - 1
    if label.device.type == "cpu" and batch and (label.min() < 0 or label.max() > last):
        raise ValueError(
            f"label: expected classes from 0 to {last}, got values from {label.min()} to {label.max()}"
        )
    return label


def check_state(plan: Plan, state: dict[str, Tensor]) -> tuple[int, tuple[int, int]]:
    """Return the batch size and the cursor of a state dict.

    Raises:
        ValueError: The state is not one of this program.
    """
    first, cursor = state.get("values.0"), state.get("cursor")
    if not isinstance(first, Tensor) or first.dim() != 4 or cursor is None:
        raise ValueError("state: expected what state_dict of a program returns, got no values or no cursor")
    batch = first.shape[2]
    for i, value in enumerate(plan.values):
        saved, expected = state.get(f"values.{i}"), value.ring_shape(plan.width, batch)
        if saved is None or tuple(saved.shape) != expected:
            came = None if saved is None else tuple(saved.shape)
            raise ValueError(f"state: expected values.{i} of shape {expected}, got {came}")
    return batch, _check_cursor(plan, cursor)


def _check_cursor(plan: Plan, cursor: Tensor) -> tuple[int, int]:
    """Return a cursor at a draw or between positions, where programs stop."""
    place = tuple(cursor.tolist()) if isinstance(cursor, Tensor) and cursor.dim() == 1 else ()
    if len(place) == 2 and all(type(n) is int for n in place):
        position, step = place
        known = 0 <= position <= plan.end and 0 <= step < len(plan.steps)
        if known and (step == 0 or plan.draw_at(position, step) is not None):
            return place
    raise ValueError(f"state: expected a cursor at a draw or between positions, got {cursor}")
