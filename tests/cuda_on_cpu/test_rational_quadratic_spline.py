"""The CUDA kernels of the rational-quadratic spline, run as C++."""

import itertools

import pytest
import torch
from cuda_on_cpu.emulator import SANITIZERS, image, run

from gmfast import reference

pytestmark = pytest.mark.cuda_on_cpu

f32, f64, bf16, f16 = torch.float32, torch.float64, torch.bfloat16, torch.float16

# batch, groups, pixels, bins: samples of a thread, of some threads, of a block, of several blocks.
SHAPES = [(1, 1, 1, 1), (130, 1, 3, 2), (3, 2, 17, 5), (2, 1, 300, 8), (2, 5, 129, 3), (1, 1, 5, 64)]
EMPTY = [(0, 1, 5, 2), (2, 1, 0, 2)]
# x, parameters
DTYPES = [(f32, f32), (f64, f64), (f32, bf16), (f16, f16), (bf16, f32)]


def contiguous(t):
    return t.contiguous()


def bins_outside(t):
    """(batch, groups, bins, pixels) in memory, as a convolution's output."""
    return t.transpose(2, 3).contiguous().transpose(2, 3)


def every_other(t):
    wide = torch.full([2 * n for n in t.shape], float("nan"), dtype=t.dtype)
    return wide[1::2, ::2, ::2, 1::2].copy_(t)


LAYOUTS = [contiguous, bins_outside, every_other]


def grid(tensor):
    """The items that make a (batch, groups, pixels, bins) tensor a Grid, its bins as channels."""
    return image(None if tensor is None else tensor.movedim(3, 1))


def case(shape, dtypes, layout, linear, inverse, backward, wanted, generator):
    """The items of a case, and triples of (what is filled, what is to be in it, error)."""
    batch, groups, pixels, bins = shape
    counts = (bins, bins, bins - 1 if linear else bins + 1)
    x = (1.7 * torch.randn(batch, groups, pixels, generator=generator)).to(dtypes[0])
    params = [
        layout(torch.randn(batch, groups, pixels, count, generator=generator).to(dtypes[1]))
        for count in counts
    ]
    x = layout(x.unsqueeze(-1))
    exact = [t.double().requires_grad_() for t in (x.squeeze(-1), *params)]
    y, log = reference.rational_quadratic_spline(
        *exact, tails="linear" if linear else None, inverse=inverse, reduction="none"
    )
    compute = torch.promote_types(torch.promote_types(*dtypes), f32)
    eps = torch.finfo(compute).eps
    items = [backward, *shape, 3.0, 1e-3, linear, inverse]
    for t in (x, *params):
        items += grid(t)

    def empty(t, dtype):
        return layout(torch.full(t.shape, float("nan"), dtype=dtype))

    if not backward:
        filled = empty(x, dtypes[0])
        logs = torch.full((batch, groups * pixels), float("nan"), dtype=compute) if wanted else None
        log_det = torch.full((batch,), float("nan"), dtype=compute)
        items += [*grid(filled), logs, log_det]
        results = [
            (filled.squeeze(-1), y.detach(), eps * 200 + torch.finfo(dtypes[0]).eps),
            (log_det, log.detach().flatten(1).sum(1), eps * 2000),
        ]
        if wanted:
            results.append((logs, log.detach().flatten(1), eps * 2000))
        return items, results

    grad_y = torch.randn(batch, groups, pixels, 1, generator=generator)
    grad_log = torch.randn(batch, 1, 1, 1, generator=generator).expand_as(grad_y)
    expected = torch.autograd.grad(
        (y, log), exact, (grad_y.squeeze(-1).double(), grad_log.squeeze(-1).double())
    )
    items += [*grid(grad_y), *grid(grad_log)]
    results = []
    for i, (t, e) in enumerate(zip((x, *params), expected, strict=True)):
        filled = empty(t, t.dtype) if wanted or i == 1 else None
        items += grid(filled)
        if filled is not None:
            error = eps * 30000 + torch.finfo(t.dtype).eps
            results.append((filled, e.unsqueeze(-1) if i == 0 else e, error))
    return items, results


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_both_directions(sanitizer):
    generator = torch.Generator().manual_seed(0)
    variants = itertools.product((True, False), (False, True), (False, True))  # tails, inverse, backward
    cases = []
    for turn, (variant, shape) in enumerate(itertools.product(variants, SHAPES)):
        dtypes, layout = DTYPES[turn % 5], LAYOUTS[turn // 2 % 3]
        cases.append(case(shape, dtypes, layout, *variant, turn % 3 > 0, generator))
    for shape, backward in itertools.product(EMPTY, (False, True)):
        cases.append(case(shape, (f32, f32), contiguous, True, False, backward, True, generator))
    run("rational_quadratic_spline", sanitizer, [items for items, _ in cases])
    for items, results in cases:
        for i, (result, expected, error) in enumerate(results):
            off = (result.double() - expected).abs() / (1 + expected.abs())
            assert (off <= error).all(), (items[:9], i, result.dtype, off.max().item(), error)
            if result._base is not None:
                outside = result._base.numel() - result.numel()
                assert result._base.isnan().sum() == outside, "written beside the result"
