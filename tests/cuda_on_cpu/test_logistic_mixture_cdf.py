"""The CUDA kernels of the logistic-mixture transform, run as C++."""

import itertools

import pytest
import torch
from cuda_on_cpu.emulator import SANITIZERS, image, run

from gmfast import reference

pytestmark = pytest.mark.cuda_on_cpu

f32, f64, bf16, f16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
TRANSFORM, BACKWARD = range(2)

# batch, rows, columns, components; samples that share a block, and that take one and three of them.
SHAPES = [
    (3, 2, 7, 5),
    (300, 1, 3, 2),
    (2, 1, 1, 1),
    (2, 3, 67, 3),
    (2, 4, 150, 2),
    (0, 2, 3, 2),
    (2, 0, 3, 2),
]
# x, logits, means, log_scales
DTYPES = [(f32,) * 4, (f64,) * 4, (f32, bf16, bf16, bf16), (f16,) * 4, (f32, f64, f16, bf16)]


def components_inner(t):
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def every_other(t):
    wide = torch.full((t.shape[0], 2 * t.shape[1], t.shape[2], 3 * t.shape[3]), float("nan"), dtype=t.dtype)
    return wide[:, ::2, :, 1::3].copy_(t)


LAYOUTS = [torch.Tensor.contiguous, components_inner, every_other]


def inputs(shape, dtypes, generator):
    """x (B, 1, rows, columns), some so far out that sums underflow, and parameters (B, K, rows, columns)."""
    batch, rows, columns, components = shape
    x = 2 * torch.randn(batch, 1, rows, columns, generator=generator)
    x[..., ::3] *= 50
    params = [torch.randn(batch, components, rows, columns, generator=generator) for _ in range(3)]
    return [t.to(d) for t, d in zip((x, *params), dtypes, strict=True)]


def expected_of(tensors, grads, inverse):
    """y and its log-derivative, then the gradients, in float64; each with the component dimension second."""
    x, *params = (t.double().requires_grad_() for t in tensors)
    y, log_derivative = reference.logistic_mixture_cdf(
        x[:, 0], *(p.movedim(1, -1) for p in params), inverse=inverse, reduction="none"
    )
    y, log_derivative = y[:, None], log_derivative[:, None]
    outputs = [(o, g) for o, g in zip((y, log_derivative), grads, strict=True) if g is not None]
    gradients = torch.autograd.grad(
        [o for o, _ in outputs], [x, *params], [g.double().expand_as(o) for o, g in outputs]
    )
    return y.detach(), log_derivative.detach(), gradients


def case(kind, shape, dtypes, layouts, inverse, with_grads, generator):
    """The items of a case, and triples of (what is filled, what is to be in it, relative error)."""
    batch, rows, columns, _ = shape
    tensors = inputs(shape, dtypes, generator)
    compute = f64 if f64 in dtypes else f32
    of_sample = with_grads == 2  # a gradient of log_det (B,), expanded
    grads = [
        torch.randn(batch, 1, rows, columns, generator=generator).to(dtypes[0]) if with_grads != 1 else None,
        torch.randn(batch, 1, 1 if of_sample else rows, 1 if of_sample else columns, generator=generator).to(
            compute
        )
        if with_grads
        else None,
    ]
    y, log_derivative, gradients = expected_of(tensors, grads, inverse)
    laid_out = [layouts[0](tensors[0]), *map(layouts[1], tensors[1:])]
    empty = lambda like, dtype: torch.full(like.shape, float("nan"), dtype=dtype)  # noqa: E731
    # Logarithms of densities err as the largest z does, of some thousands; an inverse as y times dx/dy.
    error = torch.finfo(compute).eps * (2000 if inverse else 400)
    if kind == TRANSFORM:
        out = layouts[0](empty(y, dtypes[0]))
        solution, per_element = empty(y, compute), empty(y, compute)
        log_det = torch.full((batch,), float("nan"), dtype=compute)
        items = [*image(out), solution, per_element, log_det]
        results = [
            (out, y, error + torch.finfo(dtypes[0]).eps),
            (solution, y, error),
            (per_element, log_derivative, error),
            (log_det, log_derivative.flatten(1).sum(1), error * max(1, rows * columns)),
        ]
    else:
        # The gradient is computed at the data, of the inverse its solution.
        if inverse:
            laid_out[0] = layouts[0](y.to(compute))
        filled = [layouts[1](empty(t, t.dtype)) for t in (laid_out[0], *tensors[1:])]
        shown = [None if g is None else g.expand_as(y) for g in grads]
        items = [i for t in (*shown, *filled) for i in image(t)]
        results = [
            (f, g, 20 * error + torch.finfo(f.dtype).eps) for f, g in zip(filled, gradients, strict=True)
        ]
    inputs_of = [i for t in laid_out for i in image(t)]
    return [kind, *shape, int(inverse), *inputs_of, *items], results


def check(cases):
    for items, results in cases:
        for i, (result, expected, error) in enumerate(results):
            off = (result.double() - expected).abs() / (1 + expected.abs())
            assert (off <= error).all(), (items[:6], i, result.dtype, off.max().item(), error)
            if result._base is not None:
                outside = result._base.numel() - result.numel()
                assert result._base.isnan().sum() == outside, "written beside the result"


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("kind", [TRANSFORM, BACKWARD], ids=["transform", "backward"])
def test_kernels(sanitizer, kind, inverse):
    generator = torch.Generator().manual_seed(0)
    cases = []
    for i, (shape, dtypes) in enumerate(itertools.product(SHAPES, DTYPES)):
        if sanitizer == "thread" and i % 3:
            continue
        layouts = LAYOUTS[i % 3], LAYOUTS[(i // 3 + i) % 3]
        cases.append(case(kind, shape, dtypes, layouts, inverse, i % 3, generator))
    run("logistic_mixture_cdf", sanitizer, [items for items, _ in cases])
    check(cases)
