"""The CUDA kernels on rows, run as C++."""

import pytest
import torch
from cuda_on_cpu.emulator import DTYPES, SANITIZERS, image, run

from gmfast import reference

pytestmark = pytest.mark.cuda_on_cpu

f32, f64, bf16 = torch.float32, torch.float64, torch.bfloat16

# batch, rows, inner: one element, odd sizes, several blocks of a sample and of a channel's sum.
SHAPES = [(1, 1, 1), (3, 5, 7), (2, 3, 1100), (5, 1, 40), (2, 600, 35), (3, 2, 2900)]


def row_operand(tensor):
    """The items of a (batch, rows, inner) tensor; broadcast sizes have stride 0."""
    if tensor is None:
        return [None]
    return image(tensor)


def channels(tensor):
    return [tensor, DTYPES.index(tensor.dtype)]


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_actnorm(sanitizer):
    generator = torch.Generator().manual_seed(0)
    cases = []
    for i, (shape, dtype, inner) in enumerate(
        (s, d, c) for s in SHAPES for d in (f32, f64, bf16) for c in (False, True)
    ):
        inverse = bool(i % 2)
        compute = f64 if dtype == f64 else f32
        x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        count = shape[2] if inner else shape[1]
        shift, log_scale = (torch.randn(count, generator=generator).to(compute) for _ in range(2))
        grad_log_det = torch.randn(shape[0], generator=generator).to(compute)

        exact = [t.double().requires_grad_() for t in (x, shift, log_scale)]
        ordered = exact[0].transpose(1, 2) if inner else exact[0]
        y, log_det = reference.actnorm(ordered, *exact[1:], inverse=inverse)
        y = y.transpose(1, 2) if inner else y
        gradients = torch.autograd.grad([y, log_det], exact, [grad.double(), grad_log_det.double()])

        filled = [torch.full_like(x, torch.nan), torch.full_like(grad_log_det, torch.nan)]
        items = [0, inner, *shape, inverse, DTYPES.index(compute), *row_operand(x), *row_operand(filled[0])]
        items += [*channels(shift), *channels(log_scale), filled[1]]
        cases.append((items, filled, [y.detach(), log_det.detach()]))
        filled = [torch.full_like(t, torch.nan) for t in (x, shift, log_scale)]
        items = [1, inner, *shape, inverse, DTYPES.index(compute), *row_operand(grad), *row_operand(x)]
        items += [*channels(shift), *channels(log_scale), grad_log_det, *row_operand(filled[0])]
        cases.append(([*items, *channels(filled[1]), *channels(filled[2])], filled, gradients))
    run("actnorm", sanitizer, [items for items, *_ in cases])
    for items, filled, expected in cases:
        for result, e in zip(filled, expected, strict=True):
            bound = 60 * torch.finfo(result.dtype).eps * (1 + e.abs().max())
            assert ((result.double() - e).abs() <= bound).all(), (items[:7], result.dtype)
