"""The CUDA kernels of gated_activation and concat_elu, run as C++."""

import itertools

import pytest
import torch
from cuda_on_cpu.emulator import DTYPES, SANITIZERS, operand, run

from gmfast import reference

pytestmark = pytest.mark.cuda_on_cpu

# outer, rows, inner: one element, lines shorter and longer than a block, multiples of a pack and not.
SHAPES = [(1, 1, 1), (3, 1, 33), (2, 1, 1032), (130, 1, 16), (2, 5, 16), (2, 3, 7), (1, 1, 0)]
GATE, GATE_BACKWARD, ELU, ELU_BACKWARD = range(4)


def layouts(outer, rows, inner):
    """Functions that lay a contiguous (outer, r, inner) tensor out otherwise, its values kept."""

    def contiguous(t):
        return t.contiguous()

    def sliced(t):  # what a slice of a wider tensor looks like, packs still aligned
        wide = torch.full((t.shape[0], t.shape[1] + 2, inner + 16), float("nan"), dtype=t.dtype)
        view = wide[:, 1:-1, :inner]
        return view.copy_(t)

    def unaligned(t):  # the first element is not at a multiple of 16 bytes
        wide = torch.full((t.shape[0], t.shape[1], inner + 9), float("nan"), dtype=t.dtype)
        view = wide[..., 3 : 3 + inner]
        return view.copy_(t)

    return [contiguous, sliced, unaligned]


def tolerance(dtype, expected, scale):
    """Four ulp of what enters the arithmetic, and half of one of what is stored."""
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    stored = torch.finfo(dtype)
    return 4 * unit * (scale + expected.abs()) + stored.eps / 2 * (expected.abs() + stored.tiny)


def derivative(function, inputs, grad):
    inputs = [t.double().requires_grad_() for t in inputs]
    return torch.autograd.grad(function(*inputs), inputs, grad.double())[0]


def case(kernel, shape, layout, dtype, generator):
    """The items of a case, the tensor that it fills, what is to be in it, and how far off it may be."""
    outer, rows, inner = shape
    grad = torch.ones(())

    def random(halves):
        values = 4 * torch.randn(outer, halves * rows, inner, generator=generator)
        return layout(values.to(dtype))

    def empty(halves):
        return layout(torch.full((outer, halves * rows, inner), float("nan"), dtype=dtype))

    if kernel == GATE:
        x, y = random(2), empty(1)
        residual = random(1) if inner % 2 else None
        expected = reference.gated_activation(x.double(), residual.double() if inner % 2 else None)
        operands = operand(x, 2), operand(residual, 1), operand(y, 1)
    elif kernel == GATE_BACKWARD:
        grad, x, y = random(1)[:1].expand(outer, rows, inner), random(2), empty(2)
        expected = derivative(reference.gated_activation, [x], grad)
        operands = operand(grad, 1), operand(x, 2), operand(y, 2)
    elif kernel == ELU:
        x, y = random(1), empty(2)
        expected = reference.concat_elu(x.double())
        operands = operand(x, 1), [None], operand(y, 2)
    else:
        grad, x, y = random(2)[:1].expand(outer, 2 * rows, inner), random(1), empty(1)
        expected = derivative(reference.concat_elu, [x], grad)
        operands = operand(grad, 2), operand(x, 1), operand(y, 1)
    allowed = tolerance(dtype, expected, max(grad.double().abs().flatten().tolist(), default=1))
    return [kernel, *shape, *itertools.chain(*operands)], y, expected, allowed


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_pairs(sanitizer):
    generator = torch.Generator().manual_seed(0)
    cases = [
        case(kernel, shape, layout, dtype, generator)
        for kernel in range(4)
        for dtype in DTYPES
        for i, shape in enumerate(SHAPES)
        for j, layout in enumerate(layouts(*shape))
        if (i + j + kernel + DTYPES.index(dtype)) % 3 == 0
    ]
    run("pairs", sanitizer, [items for items, *_ in cases])
    for items, y, expected, allowed in cases:
        wrong = ~((y.double() - expected).abs() <= allowed)
        assert not wrong.any(), (items[:4], y.dtype, y[wrong], expected[wrong])
        if y._base is not None:
            assert y._base.isnan().sum() == y._base.numel() - y.numel(), "written beside the result"
