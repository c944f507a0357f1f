"""The CUDA kernels of the affine coupling, run as C++."""

import itertools

import pytest
import torch
from cuda_on_cpu.emulator import DTYPES, SANITIZERS, image, run

from gmfast import reference

pytestmark = pytest.mark.cuda_on_cpu

f32, f64, bf16, f16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
MAPS = (None, "exp", "sigmoid", "tanh", "atan", "softclip")

# batch, rows and inner of what is transformed, of what is copied: packs and single elements, a sample to a
# thread, a warp, a block and several blocks.
SHAPES = [(2, 1, 2400, 1, 800), (3, 5, 7, 5, 3), (2, 1, 64, 0, 0), (2, 3, 701, 2, 701), (70, 1, 3, 1, 2)]
RARE_SHAPES = [(0, 1, 8, 1, 8), (2, 0, 5, 1, 4), (1, 1, 8, 2, 8)]
COMPUTED = [(f32, f32), (f64, f64), (bf16, bf16), (f32, bf16), (f16, f16), (f32, f64)]  # x, parameters


def whole(t):
    return t.contiguous()


def every_other(t):
    batch, rows, inner = t.shape
    wide = torch.full((batch, rows, 2 * inner + 1), float("nan"), dtype=t.dtype)
    return wide[:, :, 1::2].copy_(t)


def transposed(t):
    return t.transpose(1, 2).contiguous().transpose(1, 2)


LAYOUTS = [whole, every_other, transposed]


def case(shape, dtypes, layout, name, shift_first, inverse, from_output, masked, generator):
    """The items of a forward and of a backward case, and what must come of them."""
    batch, rows, inner, kept_rows, kept_inner = shape
    of_x, of_params = dtypes
    compute = f64 if f64 in dtypes else f32
    kept_sizes = (batch, kept_rows, kept_inner)
    make = lambda dtype, *sizes: torch.randn(sizes, generator=generator).to(dtype)  # noqa: E731
    empty = lambda t, use: use(torch.full(t.shape, float("nan"), dtype=t.dtype))  # noqa: E731
    x, kept_x = make(of_x, batch, rows, inner), make(of_x, *kept_sizes)
    shift, scale = make(of_params, batch, rows, inner), make(of_params, batch, rows, inner)
    mask = (make(f32, 1, rows, inner) < 0).to(of_x).expand(batch, -1, -1) if masked else None
    grad_y, grad_kept = make(of_x, batch, rows, inner), make(of_x, *kept_sizes)
    grad_log_det = make(compute, batch)

    exact = [t.double().requires_grad_() for t in (x, shift, scale)]
    options = {"scale_map": name or "exp", "shift_first": shift_first, "inverse": inverse}
    flat = [t.flatten(1) for t in exact]
    if name is None:
        flat[2] = None
    y, log_det = reference.affine_coupling(
        *flat, mask=mask[0].flatten() if masked and batch else None, **options
    )
    y = y.view(batch, rows, inner)
    total = (y * grad_y.double()).sum() + (log_det * grad_log_det.double()).sum()
    wanted = torch.autograd.grad(total, exact, allow_unused=True)

    place = lambda t: image(t) if t is not None and t.numel() else [None]  # noqa: E731
    of_scale = None if name is None else layout(scale)
    sizes = [*shape, MAPS.index(name), shift_first, inverse]
    out, out_kept = empty(x, layout), empty(kept_x, whole)
    out_log_det = torch.full((batch,), float("nan"), dtype=compute)
    tail = [*place(layout(shift)), *place(of_scale), *place(mask)]
    head = [*sizes, False, 2.0, DTYPES.index(compute), *place(layout(x)), *place(kept_x), *tail]
    forward = [0, *head, *place(out), *place(out_kept), out_log_det]
    known = y.detach().to(of_x) if from_output else x
    head = [*sizes, from_output, 2.0, DTYPES.index(compute), *place(layout(known)), *place(kept_x), *tail]
    grads = [empty(t, layout) for t in (x, shift, scale)]
    grad_kept_x = empty(kept_x, whole)
    backward = [1, *head, *place(layout(grad_y)), *place(grad_kept), grad_log_det, DTYPES.index(compute)]
    backward += [*place(grads[0]), *place(grad_kept_x), *place(grads[1])]
    backward += place(grads[2]) if name else [None]
    results = [(out, y.detach()), (out_kept, kept_x), (out_log_det, log_det.detach())]
    coarse = 8 * torch.finfo(of_x).eps if from_output else 0  # y was rounded
    results += [(g, w, coarse) for g, w in zip(grads, wanted, strict=True) if w is not None]
    return [forward, backward], [*results, (grad_kept_x, grad_kept)]


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_affine_coupling(sanitizer):
    generator = torch.Generator().manual_seed(0)
    items, checks = [], []
    variants = list(itertools.product(MAPS, (False, True), (False, True)))
    for i, (name, shift_first, inverse) in enumerate(variants):
        shape, layout = SHAPES[i % len(SHAPES)], LAYOUTS[i // 2 % 3]
        masked = i % 3 == 0 and shape[4] == 0
        arguments = (COMPUTED[i % len(COMPUTED)], layout, name, shift_first, inverse, i % 4 == 1, masked)
        cases, results = case(shape, *arguments, generator)
        items += cases
        checks.append(((shape, *arguments), results))
    packs = [
        (SHAPES[2 * (i % 2)], d, whole, "tanh", False, False, False, i % 2) for i, d in enumerate(COMPUTED)
    ]
    rare = [(shape, (f32, f32), whole, "exp", True, True, False, False) for shape in RARE_SHAPES]
    for arguments in packs + rare:
        cases, results = case(*arguments, generator)
        items += cases
        checks.append((arguments, results))
    run("affine_coupling", sanitizer, items)
    for arguments, results in checks:
        for i, (got, expected, *coarse) in enumerate(results):
            error = 40 * torch.finfo(torch.promote_types(got.dtype, f32)).eps + torch.finfo(got.dtype).eps
            off = (got.double() - expected.double()).abs() / (1 + expected.double().abs())
            assert (off <= error + sum(coarse)).all(), (arguments, i, off.max().item())
            if got._base is not None and got._base.numel() > got.numel():
                outside = got._base.numel() - got.numel()
                assert got._base.isnan().sum() == outside, "written beside the result"
