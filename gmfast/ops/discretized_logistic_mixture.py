"""The discretized logistic mixture likelihood of PixelCNN++ and its sampler."""

import torch
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor

from .. import _check, _seed, reference
from .._library import has_kernel, in_functorch_or_trace, operator
from ._layout import compute_dtype, empty_as
from ._second_order import pull_back

FORMULATIONS = ("exact", "pixelcnnpp")
REDUCTIONS = ("none", "batch", "sum", "mean", "bits_per_dim")
_REDUCTION_CODE = {name: code for code, name in enumerate(REDUCTIONS)}


def discretized_logistic_mixture_nll(
    x, params, *, num_classes=256, log_scale_min=-7.0, formulation="exact", reduction="none"
):
    """Negative log-likelihood of pixels under a mixture of discretized logistics, in nats.

    A pixel's class is one of `num_classes` equally spaced values in [-1, 1]; its probability is the
    logistic's mass in the bin around it, the two outermost bins reaching to infinity. The K components
    share their weights across colours; green's and blue's means depend on the colours before them
    (Salimans et al., "PixelCNN++", 2017, arXiv:1701.05517). Loss and gradient are computed in one pass.

    Args:
        x: `(B, C, *S)` in [-1, 1], C = 1 or 3, any number of spatial dimensions. Values are not looked at:
            bytes, and numbers in [0, 1] or [0, 255], give a wrong loss. From bytes: `x / 127.5 - 1`.
        params: `(B, 3K, *S)` for C = 1, laid out `[logits K | means K | log_scales K]`; `(B, 10K, *S)`
            for C = 3, laid out `[logits K | R: means K, log_scales K, coeffs K | G: ... | B: ...]`.
        num_classes: number of values a pixel can take, at least 2.
        log_scale_min: log-scales below are raised to it and get no gradient. At least -20.
        formulation: `"exact"` is the exact bin mass. `"pixelcnnpp"` is the published approximation
            (edges at ±0.999; the density at the bin's centre where the mass is under 1e-5), for
            comparison with old numbers; it is off by up to 2 nats a pixel.
        reduction: `"none"` gives `(B, *S)`, `"batch"` `(B,)` summed over the rest, `"sum"` a scalar,
            `"mean"` the mean over the batch of `"batch"`, `"bits_per_dim"` sum / (B·C·|S|·ln 2).

    Returns:
        The loss in float64 if an input is float64, else float32 (also for half inputs).
        Differentiable to any order in `x` and `params`, beyond the first by way of plain PyTorch. A pixel
        within half a bin of ±1 counts as the outermost class. Finite where parameters are within a
        millionth of the dtype's largest number.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to `gmfast.reference.discretized_logistic_mixture_nll`; for one channel, away from the
    edges, with d = 1 / (num_classes - 1)::

        logits, means, log_scales = params.chunk(3, 1)
        inv_scale = torch.exp(-log_scales.clamp(min=log_scale_min))
        mass = torch.sigmoid((x - means + d) * inv_scale) - torch.sigmoid((x - means - d) * inv_scale)
        nll = -torch.logsumexp(logits.log_softmax(1) + mass.log(), 1)
    """
    _check.floating("x", x)
    channels = x.shape[1] if x.dim() > 1 else 0
    if channels != 1 and channels != 3:
        raise ValueError(f"x: expected shape (B, 1, *S) or (B, 3, *S), got {tuple(x.shape)}")
    channels = 1 if channels == 1 else 3  # an int, which torch.jit.trace's sizes are not
    check_params(params, channels, num_classes, log_scale_min)
    if x.shape[:1] != params.shape[:1] or x.shape[2:] != params.shape[2:]:
        raise ValueError(
            f"params: expected the batch and spatial sizes of x {tuple(x.shape)}, got {tuple(params.shape)}"
        )
    _check.one_of("formulation", formulation, FORMULATIONS)
    _check.one_of("reduction", reduction, REDUCTIONS)

    too_many = params.is_cuda and params.shape[1] > 256 * (3 if channels == 1 else 10)
    if too_many or not has_kernel(x, params):
        dtype = compute_dtype(x, params)
        return reference.discretized_logistic_mixture_nll(
            x.to(dtype),
            params.to(dtype),
            num_classes=num_classes,
            log_scale_min=log_scale_min,
            formulation=formulation,
            reduction=reduction,
        )
    # With the loss, but for torch.func and torch.jit.trace, which have outputs of their own of each call.
    grad = torch.is_grad_enabled() and not in_functorch_or_trace()
    return _nll(
        x,
        params,
        num_classes,
        log_scale_min,
        formulation == "pixelcnnpp",
        _REDUCTION_CODE[reduction],
        grad and x.requires_grad,
        grad and params.requires_grad,
    )[0]


def discretized_logistic_mixture_sample(
    params,
    *,
    channels=3,
    num_classes=256,
    log_scale_min=-7.0,
    temperature=1.0,
    quantize=True,
    seed=None,
):
    """Draw pixels from a mixture of discretized logistics.

    With `quantize` and `temperature=1` their distribution is exactly the one whose likelihood
    `discretized_logistic_mixture_nll` gives. A component is picked by inverse CDF, then the colours are drawn
    in order, each clamped to [-1, 1], rounded to the nearest class, and used in the means of the next
    (Salimans et al., 2017).

    Args:
        params: `(B, 3K, *S)` for one channel, `(B, 10K, *S)` for three, laid out as for the likelihood.
        channels: 1 or 3.
        num_classes: as for the likelihood.
        log_scale_min: as for the likelihood.
        temperature: divides the logits and multiplies the logistic noise; 0 gives the mean of the most
            probable component.
        quantize: False leaves out the rounding.
        seed: an int, an int64 tensor on the device of `params`, or a `torch.Generator`. Sample *i* of a
            batch is the same whatever the batch size, the threads and, to rounding, the device.

    Returns:
        `(B, C, *S)` in [-1, 1], float64 for float64 params, else float32. Not differentiable.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.

    Equivalent to `gmfast.reference.discretized_logistic_mixture_sample` with the same seed.
    """
    check_params(params, channels, num_classes, log_scale_min)
    _check.number("temperature", temperature, 0, 1e30)
    seed = _seed.as_tensor(seed, params.device)
    params = params.detach()
    if not has_kernel(params):
        return reference.discretized_logistic_mixture_sample(
            params,
            channels=channels,
            num_classes=num_classes,
            log_scale_min=log_scale_min,
            temperature=temperature,
            quantize=quantize,
            seed=seed,
        )
    options = (channels, num_classes, log_scale_min, temperature, quantize, _seed.first())
    return _sample(params, seed, *options)


def check_params(params, channels, num_classes, log_scale_min):
    """Raises for what is not a mixture of pixels of `channels` colours."""
    _check.floating("params", params)
    _check.one_of("channels", channels, (1, 3))
    per_component = 3 if channels == 1 else 10
    if params.dim() < 2:
        raise ValueError(f"params: expected shape (B, {per_component}*K, *S), got {tuple(params.shape)}")
    if params.shape[1] == 0 or params.shape[1] % per_component:
        raise ValueError(
            f"params: expected {per_component}*K channels for {channels}-channel x, got {params.shape[1]}"
        )
    _check.integer("num_classes", num_classes)
    if not 2 <= num_classes <= 2**24:
        raise ValueError(f"num_classes: expected 2 to 2**24, got {num_classes}")
    _check.number("log_scale_min", log_scale_min, -20, 20)


def _nll_fake(x, params, num_classes, log_scale_min, pixelcnnpp, reduction, want_grad_x, want_grad_params):
    shape = (x.shape[0], *x.shape[2:])[: (x.dim() - 1, 1, 0, 0, 0)[reduction]]
    return (
        x.new_empty(shape, dtype=compute_dtype(x, params)),
        *(
            empty_as(t, t.shape if wanted else (0,), torch.float32 if t.dtype == torch.float16 else t.dtype)
            for t, wanted in ((x, want_grad_x), (params, want_grad_params))
        ),
    )


def _nll_setup_context(ctx, inputs, output):
    x, params, *ctx.options = inputs
    ctx.save_for_backward(x, params)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.gradients = output[1:]


def _differentiable_gradients(x, params, options, needed, grad_loss):
    """The gradients by way of plain PyTorch, for whoever differentiates them again."""
    num_classes, log_scale_min, pixelcnnpp, reduction, *_ = options
    dtype = compute_dtype(x, params)

    def loss(*wanted):
        wanted = iter(wanted)
        inputs = (next(wanted) if need else t for t, need in zip((x, params), needed, strict=True))
        return [
            reference.discretized_logistic_mixture_nll(
                *(t.to(dtype) for t in inputs),
                num_classes=num_classes,
                log_scale_min=log_scale_min,
                formulation="pixelcnnpp" if pixelcnnpp else "exact",
                reduction=REDUCTIONS[reduction],
            )
        ]

    wanted = [t for t, need in zip((x, params), needed, strict=True) if need]
    gradients = iter(pull_back(loss, wanted, [grad_loss]))
    return [next(gradients) if need else None for need in needed]


def _nll_backward(ctx, grad_loss, *_):
    needed = ctx.needs_input_grad[:2]
    if grad_loss is None:
        return (None,) * len(ctx.needs_input_grad)
    tensors = ctx.saved_tensors
    if torch.is_grad_enabled():
        gradients = _differentiable_gradients(*tensors, ctx.options, needed, grad_loss)
        return *gradients, None, None, None, None, None, None
    # The first backward takes the gradients that came with the loss, and where they are nobody else's may
    # write to them; a further one, through a retained graph, computes them again.
    gradients, in_place = ctx.gradients, getattr(ctx, "private", False)
    if in_place:
        ctx.gradients = None
    if gradients is None or any(n and not w for n, w in zip(needed, ctx.options[4:], strict=True)):
        gradients = _nll(*tensors, *ctx.options[:4], *needed)[1:]
    dtypes = [tensor.dtype for tensor in tensors]
    gradients = [
        _scale(gradient, grad_loss, in_place).to(dtype) if need else None
        for gradient, dtype, need in zip(gradients, dtypes, needed, strict=True)
    ]
    return *gradients, None, None, None, None, None, None


def _scale(gradient, grad_loss, in_place):
    """Multiply gradient (B, C, *S) by grad_loss (), (B,) or (B, *S)."""
    batched = is_functorch_wrapped_tensor(grad_loss) or is_legacy_batchedtensor(grad_loss)
    in_place = in_place and type(grad_loss) is torch.Tensor and not batched
    if grad_loss.dim():
        ones = [1] * (gradient.dim() - 1 - grad_loss.dim())
        grad_loss = grad_loss.reshape(grad_loss.shape[0], 1, *grad_loss.shape[1:], *ones)
    elif in_place and grad_loss.device.type == "cpu" and grad_loss.item() == 1:
        return gradient  # what loss.backward() hands in: a look is cheaper than a pass over the gradient
    return gradient.mul_(grad_loss) if in_place else gradient * grad_loss


def _sample_fake(params, seed, channels, num_classes, log_scale_min, temperature, quantize, first=0):
    return params.new_empty((params.shape[0], channels, *params.shape[2:]), dtype=compute_dtype(params))


_nll = operator(
    "discretized_logistic_mixture_nll",
    fake=_nll_fake,
    setup_context=_nll_setup_context,
    backward=_nll_backward,
)
_sample = operator("discretized_logistic_mixture_sample", fake=_sample_fake)
