"""One step of any linear diffusion sampler."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from .. import _check, _library, _seed, reference
from .._library import operator, without_gradient
from .._table import COLUMNS
from ._layout import compute_dtype, empty_as

# Flags of `present`, DiffusionOption in csrc/ops/codes.h: the tensors in `others`, in this order, before the
# histories; whether the seed is a number; the results wanted.
_UNCONDITIONAL, _VARIANCE, _NOISE, _STEPS, _SEEDS, _SEED, _X0, _KEPT = (1 << bit for bit in range(8))


def diffusion_step(
    x: Tensor,
    model_output: Tensor,
    table: Tensor,
    *,
    step: int | Tensor = 0,
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
    guidance_rescale: float = 0.0,
    variance: Tensor | None = None,
    clip: float | None = None,
    threshold: float | None = None,
    threshold_max: float | None = None,
    history: Sequence[Tensor] = (),
    noise: Tensor | None = None,
    seed: int | Tensor | torch.Generator | None = None,
    x0: bool = False,
    kept: bool = False,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Take one step of any linear sampler of a diffusion, score or flow model, in one pass over memory.

    With the model's output m, guided as `unconditional` + g·(m - `unconditional`), and one row of the table::

        x0 = f(x0_x·x + x0_m·m)                       # f: the identity, a clamp or dynamic thresholding
        result = x·X + m·M + x0·E + Σ h_k·C_k + z·D

    Args:
        x: Floating point, shape `(B, *S)`, any strides.
        model_output: m, in the shape of `x`, of the prediction that the table's columns `x0_x` and `x0_m`
            turn into x0.
        table: Coefficients, float64 `(steps, 20)` on the device of `x`, with the columns of
            `gmfast.diffusion.COLUMNS`; `gmfast.diffusion.plan` makes a sampler's.
        step: Row of the table: an int, or an int64 tensor on the device, `()` or, for a row for each sample,
            `(B,)`. A tensor is never synchronised with the host, and its values are clamped to the table.
        unconditional: Model output without the condition, for classifier-free guidance (Ho and Salimans,
            2022, arXiv:2207.12598).
        guidance: Guidance scale g; 1 without an `unconditional`.
        guidance_rescale: φ in [0, 1] of Lin et al. (2024, arXiv:2305.08891): the fraction of the guided
            output that is rescaled to the standard deviation of `model_output`, for each sample. A sample
            with standard deviation 0 is not rescaled.
        variance: v of a learned range (Nichol and Dhariwal, 2021, arXiv:2102.09672), in the shape of `x`: the
            noise's coefficient is multiplied by exp(¼(max + min) + ¼(max - min)·v) with the columns
            `log_var_max` and `log_var_min`.
        clip: f clamps to [-clip, clip]; ignored with a `threshold`.
        threshold: f clamps to ±s and divides by s, where s is this quantile of each sample's |x0|, at least 1
            and at most `threshold_max` (Saharia et al., "Imagen", 2022, arXiv:2205.11487).
        threshold_max: Upper bound of s; None for no bound.
        history: Up to four tensors in the shape of `x`, for `h1` ... `h4`. One whose coefficient is 0 is not
            read; a missing one counts as 0.
        noise: z, in the shape of `x`; else drawn, where the row's `noise` is not 0.
        seed: An int, an int64 tensor on the device, `()` or, for a seed for each sample, `(B,)`, or a
            `torch.Generator`; None for no noise unless given. The noise of sample *i* at step *k* does not
            depend on the batch size, the number of threads or the device.
        x0: Whether to also return x0.
        kept: Whether to also return a second sum, with the table's columns `kept_...`.
        out: Tensor for the result, in the shape and dtype of `x`; may be `x` or a history itself.

    Returns:
        The result, in the shape and dtype of `x`; or a tuple of it, x0 and the kept sum, of those asked for.
        Computed in float32 (float64 where an input is float64) and rounded once; noise is drawn in the
        computation's dtype. Where a gradient is needed, plain PyTorch computes it.

    Raises:
        ValueError: For shapes and values.
        TypeError: For dtypes.

    Equivalent to::

        row = dict(zip(gmfast.diffusion.COLUMNS, table[step]))
        m = unconditional + guidance * (model_output - unconditional)
        x0 = (row["x0_x"] * x + row["x0_m"] * m).clamp(-clip, clip)
        result = row["x"] * x + row["m"] * m + row["x0"] * x0 + row["noise"] * torch.randn_like(x)
        result = result + row["h1"] * history[0]  # and so on
    """
    others, present, number, first = [], 0, 0, 0
    if x0:
        present |= _X0
    if kept:
        present |= _KEPT
    if unconditional is not None:
        others.append(unconditional)
        present |= _UNCONDITIONAL
    if variance is not None:
        others.append(variance)
        present |= _VARIANCE
    if noise is not None:
        others.append(noise)
        present |= _NOISE
        seed = None
    if isinstance(step, torch.Tensor):
        others.append(step)
        present |= _STEPS
        row = 0
    else:
        row = step
    if seed is not None:
        first = _seed.first()
        if isinstance(seed, torch.Generator):
            _check.floating("x", x)
            seed = _seed.as_tensor(seed, x.device)
        if isinstance(seed, torch.Tensor):
            others.append(seed)
            present |= _SEEDS
        else:
            number = seed
            present |= _SEED
    options = ()
    # Python checks the arguments only after the operator has refused them, so that valid calls do not pay.
    try:
        others += history
        if guidance != 1 or guidance_rescale != 0 or threshold is not None or first:
            _check_guided(unconditional, guidance, guidance_rescale)
            options = (clip, number, guidance, guidance_rescale, threshold, threshold_max, first)
        elif clip is not None or present & _SEED:
            options = (clip, number)
        if not (is_compiling() or _needs_pytorch(x, model_output, others, out)):
            if out is None:
                results = _step_now(x, model_output, table, others, present, row, *options)
                return tuple(results) if x0 or kept else results[0]
            predicted, sum_kept = _step_to_now(out, x, model_output, table, others, present, row, *options)
            if not out.is_inference():
                torch.autograd.graph.increment_version(
                    out
                )  # autograd must notice that a saved tensor changed
            if not (x0 or kept):
                return out
            return (out, predicted, sum_kept) if x0 and kept else (out, predicted if x0 else sum_kept)
        failure = None
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        failure = error
    _check_arguments(x, model_output, table, step, unconditional, variance, history, noise, out)
    check_options(guidance, guidance_rescale, clip, threshold, threshold_max)
    _check_guided(unconditional, guidance, guidance_rescale)
    if seed is not None:
        seed = _seed.of_samples(seed, x.shape[0], x.device)
    if failure is not None and not (number and not -(2**63) <= number < 2**63):
        raise failure

    given = {"unconditional": unconditional, "variance": variance, "noise": noise}
    if failure is not None or _has_operator(x, model_output, others, out):
        if present & _SEED:  # as a tensor: torch.compile must not specialise on the seed
            others.insert(len(others) - len(history), seed)
            present += _SEEDS - _SEED
            options = (clip, 0, *options[2:])
        results = _step(x, model_output, table, others, present, row, *options)
    else:
        dtype = compute_dtype(x, model_output, *history, *(t for t in given.values() if t is not None))
        results = reference.diffusion_step(
            x.to(dtype),
            model_output.to(dtype),
            table,
            step=step,
            guidance=guidance,
            guidance_rescale=guidance_rescale,
            clip=clip,
            threshold=threshold,
            threshold_max=threshold_max,
            history=[h.to(dtype) for h in history],
            seed=seed,
            x0=x0,
            kept=kept,
            **{name: t if t is None else t.to(dtype) for name, t in given.items()},
        )
        results = [t.to(x.dtype) for t in (results if isinstance(results, tuple) else (results,))]
    if out is not None:
        results = [out.copy_(results[0]), *results[1:]]
    return tuple(results) if x0 or kept else results[0]


def _needs_pytorch(x, model_output, others, out):
    """Whether the operator cannot take the call, or not before the arguments are checked."""
    if (
        _library._functorch_is_active()
        or forward_ad._current_level >= 0
        or ("cpu" if x.is_cpu else x.device.type)
        not in _library.devices  # faster than the name of a torch.device
    ):
        return True
    if torch.is_grad_enabled():
        if x.requires_grad or model_output.requires_grad or (out is not None and out.requires_grad):
            return True
        for tensor in others:
            if tensor.requires_grad:
                return True
    return False


def _has_operator(x, model_output, others, out):
    """Whether the operator takes checked arguments while torch.compile traces the call."""
    if x.device.type not in _library.devices or not is_compiling():
        return False
    tensors = [x, model_output, *others, *([] if out is None else [out])]
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def _check_arguments(x, model_output, table, step, unconditional, variance, history, noise, out):
    _check.floating("x", x)
    if x.dim() == 0:
        raise ValueError("x: expected shape (B, *S), got a scalar")
    if not isinstance(history, tuple | list):
        raise TypeError(f"history: expected a tuple or a list of tensors, got {type(history).__name__}")
    if len(history) > 4:
        raise ValueError(f"history: expected at most 4 tensors, got {len(history)}")
    tensors = {"model_output": model_output, "unconditional": unconditional, "variance": variance}
    tensors |= {"noise": noise, "out": out, **{f"history[{i}]": h for i, h in enumerate(history)}}
    for name, tensor in tensors.items():
        if tensor is None and name != "model_output" and "history" not in name:
            continue
        _check.floating(name, tensor)
        if tensor.shape != x.shape:
            raise ValueError(f"{name}: expected shape {tuple(x.shape)}, got {tuple(tensor.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: expected a tensor on {x.device}, got one on {tensor.device}")
    if out is not None:
        if out.dtype != x.dtype:
            raise TypeError(f"out: expected {str(x.dtype)[6:]}, the dtype of x, got {str(out.dtype)[6:]}")
        if any(n > 1 and stride == 0 for n, stride in zip(out.shape, out.stride(), strict=True)):
            raise ValueError("out: expected memory of its own for each element, got an expanded tensor")
    _check.tensor("table", table)
    columns = len(COLUMNS)
    if table.dtype != torch.float64:
        raise TypeError(f"table: expected float64, got {str(table.dtype)[6:]}")
    if table.dim() != 2 or table.shape[1] != columns or table.shape[0] == 0:
        raise ValueError(f"table: expected shape (steps, {columns}), got {tuple(table.shape)}")
    if table.device != x.device:
        raise ValueError(f"table: expected a tensor on {x.device}, got one on {table.device}")
    if isinstance(step, torch.Tensor):
        if step.dtype != torch.int64:
            raise TypeError(f"step: expected an int or an int64 tensor, got {str(step.dtype)[6:]}")
        if step.numel() != 1 and step.shape != x.shape[:1]:
            raise ValueError(f"step: expected shape () or ({x.shape[0]},), got {tuple(step.shape)}")
        if step.device != x.device:
            raise ValueError(f"step: expected a tensor on {x.device}, got one on {step.device}")
    else:
        _check.integer("step", step)
        if not 0 <= step < table.shape[0]:
            raise ValueError(f"step: expected 0 to {table.shape[0] - 1}, got {step}")


def _check_guided(unconditional, guidance, guidance_rescale):
    if unconditional is None and (guidance != 1 or guidance_rescale != 0):
        raise ValueError("unconditional: expected a tensor, as guidance is given, got None")


def check_options(guidance, guidance_rescale, clip, threshold, threshold_max):
    """Check the options that are numbers; `gmfast.diffusion.sample` takes them too."""
    _check.number("guidance", guidance, -math.inf, math.inf)
    _check.number("guidance_rescale", guidance_rescale, 0, 1)
    if clip is not None:
        _check.number("clip", clip, 0, math.inf)
    if threshold is not None:
        _check.number("threshold", threshold, 0, 1)
    if threshold_max is not None:
        _check.number("threshold_max", threshold_max, 0, math.inf)
        if threshold_max == 0:
            raise ValueError("threshold_max: expected a positive number, got 0")


def _fake(x, model_output, table, others, present, *_):
    _on_one_device(x, model_output, table, *others)
    return [empty_as(x, x.shape) for _ in range(1 + bool(present & _X0) + bool(present & _KEPT))]


def _fake_to(out, x, model_output, table, others, present, *_):
    _on_one_device(x, out, model_output, table, *others)
    return tuple(empty_as(x, x.shape if present & wanted else (0,)) for wanted in (_X0, _KEPT))


def _on_one_device(x, *tensors):
    # The dispatcher sends a call here if any one of its tensors is on the meta device.
    if any(tensor.device != x.device for tensor in tensors):
        raise ValueError("expected all tensors on one device")


_step = operator("diffusion_step", fake=_fake)
_step_to = operator("diffusion_step_to", fake=_fake_to)
_step_now, _step_to_now = without_gradient("diffusion_step"), without_gradient("diffusion_step_to")
