"""The CUDA kernels on rows, and of noise alone, run as C++."""

import itertools

import pytest
import torch
from cuda_on_cpu.emulator import DTYPES, SANITIZERS, image, run

from gmfast import _philox, reference
from gmfast._seed import first_sample

pytestmark = pytest.mark.cuda_on_cpu

f32, f64, bf16, f16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
LEVEL_TYPES = [None, torch.uint8, torch.int16, torch.int32, torch.int64]  # as LevelType numbers them

# batch, rows, inner: one element, odd sizes, several blocks of a sample and of a channel's sum, samples that
# share a block.
SHAPES = [(1, 1, 1), (3, 5, 7), (2, 3, 1100), (5, 1, 40), (2, 600, 35), (3, 2, 4400)]


# Where channels are the rows, or inside of them: many would be a block for each, which here takes long.
BY_CHANNELS = {False: [s for s in SHAPES if s[1] <= 5], True: [s for s in SHAPES if s[2] <= 1100]}


def compute_dtype(dtype):
    return f64 if dtype == f64 else f32


def apart(tensor):
    """The same values in rows with NaN between them."""
    batch, rows, inner = tensor.shape
    wide = torch.full((batch, rows + 1, inner + 3), torch.nan, dtype=tensor.dtype)
    return wide[:, 1:, 1:-2].copy_(tensor)


def unfilled(tensor):
    return torch.full_like(tensor, torch.nan)


def channels(tensor):
    return [tensor, 0 if tensor is None else DTYPES.index(tensor.dtype)]


def levels(tensor):
    """As image(), also of integers, whose DType says nothing."""
    return image(tensor) if tensor.dtype in DTYPES else [tensor, 0, 0, *tensor.stride()]


def check(cases):
    """Every result against what it should be: (what the case is, [(result, expected), ...])."""
    for what, results in cases:
        for index, (result, expected) in enumerate(results):
            bound = 60 * torch.finfo(result.dtype).eps * (1 + expected.double().abs().max())
            assert ((result.double() - expected.double()).abs() <= bound).all(), (what, index)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_actnorm(sanitizer):
    generator = torch.Generator().manual_seed(0)
    items, results = [], []
    for i, (shape, inner, kind) in enumerate(itertools.product(SHAPES, (False, True), range(2))):
        if shape not in BY_CHANNELS[inner]:
            continue
        dtype = (f32, f64, bf16)[i % 3]
        inverse, place = bool(kind), apart if i // 3 % 2 else torch.clone
        compute = compute_dtype(dtype)
        x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        count = shape[2] if inner else shape[1]
        shift, log_scale = (torch.randn(count, generator=generator).to(compute) for _ in range(2))
        grad_log_det = torch.randn(shape[0], generator=generator).to(compute)

        exact = [t.double().requires_grad_() for t in (x, shift, log_scale)]
        ordered = exact[0].transpose(1, 2) if inner else exact[0]
        y, log_det = reference.actnorm(ordered, *exact[1:], inverse=inverse)
        y = y.transpose(1, 2) if inner else y
        gradients = torch.autograd.grad([y, log_det], exact, [grad.double(), grad_log_det.double()])

        head = [inner, *shape, inverse, DTYPES.index(compute), *image(place(x))]
        head += [*channels(shift), *channels(log_scale)]
        filled = [place(unfilled(x)), unfilled(grad_log_det)]
        items.append([0, *head, *image(filled[0]), filled[1]])
        results.append((("forward", shape, dtype, inner), list(zip(filled, (y, log_det), strict=True))))
        filled = [place(unfilled(x)), unfilled(shift), unfilled(log_scale)]
        wanted = [filled[0], *(filled[1:] if i % 4 else (None, None))]
        tail = [*image(place(grad)), grad_log_det, *image(wanted[0])]
        items.append([1, *head, *tail, *channels(wanted[1]), *channels(wanted[2])])
        pairs = [(f, g) for f, w, g in zip(filled, wanted, gradients, strict=True) if w is not None]
        results.append((("backward", shape, dtype, inner), pairs))
    run("actnorm", sanitizer, items)
    check(results)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_gaussian_log_prob(sanitizer):
    generator = torch.Generator().manual_seed(0)
    items, results = [], []
    # mean and log_std: none, of every element, of every channel and summed over the rest, the first of which
    # are the rows, the latter with channels innermost
    for i, (shape, form) in enumerate(itertools.product(SHAPES, ("none", "whole", "rows", "inner"))):
        if form in ("rows", "inner") and shape not in BY_CHANNELS[form == "inner"]:
            continue
        dtype, place = (f32, f64, bf16)[i % 3], apart if i // 3 % 2 else torch.clone
        compute = compute_dtype(dtype)
        z = torch.randn(shape, generator=generator).to(dtype)
        grad = torch.randn(shape[0], generator=generator).to(compute)
        sizes = {"whole": shape, "rows": (1, shape[1], 1), "inner": (1, 1, shape[2])}.get(form, (1, 1, 1))
        mean, log_std = (torch.randn(sizes, generator=generator).to(compute) for _ in range(2))
        if form == "none":
            mean, log_std = torch.zeros_like(mean), torch.zeros_like(log_std)

        exact = [t.double().requires_grad_() for t in (z, mean, log_std)]
        log_prob = reference.gaussian_log_prob(*exact)
        gradients = torch.autograd.grad(log_prob, exact, grad.double())

        head = [*shape, DTYPES.index(compute), *image(place(z))]
        head += (
            [None, None] if form == "none" else [*image(mean.expand(shape)), *image(log_std.expand(shape))]
        )
        filled = unfilled(grad)
        items.append([0, *head, filled])
        results.append((("forward", shape, dtype, form), [(filled, log_prob)]))
        filled = [place(unfilled(z)), unfilled(mean), unfilled(log_std)]
        tail = [None, None] if form != "whole" else [*image(filled[1]), *image(filled[2])]
        summed = filled[1:] if form in ("rows", "inner") else (None, None)
        tail += [*channels(summed[0]), *channels(summed[1])]
        items.append([1, *head, form == "inner", grad, *image(filled[0]), *tail])
        pairs = list(zip(filled, gradients, strict=True))
        results.append((("backward", shape, dtype, form), pairs[: 1 if form == "none" else 3]))
    run("gaussian_log_prob", sanitizer, items)
    check(results)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_dequantize_logit(sanitizer):
    generator = torch.Generator().manual_seed(0)
    items, results = [], []
    num_levels, alpha = 32, 0.05
    kinds = ("integers", "drawn", "given", "inverse", "quantize")
    for i, (shape, kind) in enumerate(itertools.product(SHAPES, kinds)):
        # Integers give float32, and have no gradient.
        level_type = 1 + i // 5 % 4 if kind == "integers" else 0
        kind = ("drawn", "given")[i % 2] if level_type else kind
        dtype, place = f32 if level_type else (f32, f64, bf16)[i % 3], apart if i // 3 % 2 else torch.clone
        compute, inverse = compute_dtype(dtype), kind in ("inverse", "quantize")
        seed = torch.tensor(i - 5) if kind == "drawn" else None
        level = torch.randint(num_levels, shape, generator=generator)
        x = level.to(LEVEL_TYPES[level_type] or dtype)
        noise = torch.rand(shape, generator=generator).to(dtype)
        if kind == "drawn":
            margin = num_levels * 2.0 ** (-50 if compute == f64 else -21)
            noise = _philox.array_uniform(seed, shape, compute, x.device, i).clamp(margin, 1 - margin)
        if inverse:
            x = reference.dequantize_logit(
                level.double(), num_levels=num_levels, alpha=alpha, noise=torch.full(shape, 0.5).double()
            )[0].to(dtype)
        grad, grad_log_det = (torch.randn(s, generator=generator) for s in (shape, shape[:1]))
        grad, grad_log_det = grad.to(dtype), grad_log_det.to(compute)

        exact = [t.double().requires_grad_() for t in (x, noise)]
        options = {"num_levels": num_levels, "alpha": alpha, "inverse": inverse}
        options |= {"quantize": kind == "quantize", "noise": None if inverse else exact[1]}
        y, log_det = reference.dequantize_logit(exact[0], **options)
        total = (log_det * grad_log_det.double()).sum()
        if kind != "quantize":
            total = total + (y * grad.double()).sum()
        gradients = torch.autograd.grad(total, exact, allow_unused=True)

        of_x = levels(x) if level_type else image(place(x))
        of_noise = image(place(noise) if kind == "given" else None)
        head = [
            *shape,
            DTYPES.index(compute),
            alpha,
            float(num_levels),
            inverse,
            kind == "quantize",
            level_type,
        ]
        head += [*of_x, *of_noise, seed, 0, i]
        filled = [place(unfilled(grad)), unfilled(grad_log_det)]
        items.append([0, *head, *image(filled[0]), filled[1]])
        results.append((("forward", shape, dtype, kind), list(zip(filled, (y, log_det), strict=True))))
        by_x = None if level_type else place(unfilled(grad))
        by_noise = place(unfilled(grad)) if kind == "given" else None
        items.append([1, *head, *image(place(grad)), grad_log_det, *image(by_x), *image(by_noise)])
        pairs = [(g, w) for g, w in zip((by_x, by_noise), gradients, strict=True) if g is not None]
        results.append((("backward", shape, dtype, kind), pairs))
    run("dequantize_logit", sanitizer, items)
    check(results)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_gaussian_kl(sanitizer):
    generator = torch.Generator().manual_seed(0)
    items, results = [], []
    for i, shape in enumerate(SHAPES):
        dtype, place = (f32, f64, bf16)[i % 3], apart if i % 2 else torch.clone
        compute = compute_dtype(dtype)
        *tensors, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(5))
        if i % 2:
            tensors[3] = tensors[3][:, :1, :1].expand(shape)

        exact = [t.double().requires_grad_() for t in tensors]
        kl = reference.gaussian_kl(*exact)
        gradients = torch.autograd.grad(kl, exact, grad.double())

        operands = [image(place(t) if i % 2 == 0 or j < 3 else t) for j, t in enumerate(tensors)]
        head = [*shape, DTYPES.index(compute), *itertools.chain(*operands)]
        filled = place(unfilled(grad.to(compute)))
        items.append([0, *head, *image(filled)])
        results.append((("forward", shape, dtype), [(filled, kl)]))
        filled = [place(unfilled(grad)) for _ in range(4)]
        wanted = [None if j == i else f for j, f in enumerate(filled)]
        items.append([1, *head, *image(place(grad)), *itertools.chain(*map(image, wanted))])
        pairs = [(f, g) for f, g, w in zip(filled, gradients, wanted, strict=True) if w is not None]
        results.append((("backward", shape, dtype), pairs))
    run("gaussian_kl", sanitizer, items)
    check(results)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_discretized_gaussian_nll(sanitizer):
    generator = torch.Generator().manual_seed(0)
    items, results = [], []
    for i, (shape, exact_form) in enumerate(itertools.product(SHAPES, (True, False))):
        dtype, place = (f32, f64, bf16)[i % 3], apart if i % 4 > 1 else torch.clone
        compute = compute_dtype(dtype)
        x = (torch.randint(-1, 33, shape, generator=generator).clamp(0, 31) * (2 / 31) - 1).to(dtype)
        # The tails of the published form cancel.
        mean = x + (torch.randn(shape, generator=generator) / (10 if exact_form else 50)).to(dtype)
        log_scale = (torch.randn(shape, generator=generator) / 2 - 2).to(dtype)
        grad = torch.randn(shape, generator=generator).to(dtype)

        exact = [t.double().requires_grad_() for t in (x, mean, log_scale)]
        formulation = "exact" if exact_form else "improved_ddpm"
        nll = reference.discretized_gaussian_nll(*exact, num_classes=32, formulation=formulation)
        gradients = torch.autograd.grad(nll, exact, grad.double())

        operands = [image(place(t)) for t in (x, mean, log_scale)]
        head = [*shape, DTYPES.index(compute), 32, exact_form, *itertools.chain(*operands)]
        filled = place(unfilled(grad.to(compute)))
        items.append([0, *head, *image(filled)])
        results.append((("forward", shape, dtype, formulation), [(filled, nll)]))
        filled = [place(unfilled(grad)) for _ in range(3)]
        wanted = [None if i % 4 == 3 else filled[0], *filled[1:]]
        items.append([1, *head, *image(place(grad)), *itertools.chain(*map(image, wanted))])
        pairs = [(f, g) for f, g, w in zip(filled, gradients, wanted, strict=True) if w is not None]
        results.append((("backward", shape, dtype, formulation), pairs))
    run("discretized_gaussian_nll", sanitizer, items)
    check(results)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_diffusion_hybrid_loss(sanitizer):
    generator = torch.Generator().manual_seed(0)
    items, results = [], []
    steps = 4
    table = torch.full((steps, 20), torch.nan, dtype=f64)
    columns = {0: (1.1, 2), 1: (-0.4, -1.5), 2: (0.1, 0.6), 4: (0.9, 0.4), 18: (-4, -1), 19: (-3, -0.5)}
    for column, ends in columns.items():
        table[:, column] = torch.linspace(*ends, steps, dtype=f64)
    for i, shape in enumerate([*SHAPES, (2, 1, 3)]):
        dtype, place = (f32, f64, bf16)[i % 3], apart if i % 2 else torch.clone
        compute = compute_dtype(dtype)
        output = torch.randn(shape[0], 2 * shape[1], shape[2], generator=generator).to(dtype) / 2
        x0 = torch.randint(-1, 257, shape, generator=generator).clamp(0, 255) / 127.5 - 1
        noise = torch.randn(shape, generator=generator)
        x_t = 0.8 * x0 + 0.3 * noise
        x0, noise, x_t = (t.to(dtype) for t in (x0, noise, x_t))
        timestep = torch.arange(shape[0]) % steps
        grads = [torch.randn(shape[0], generator=generator).to(compute) for _ in range(2)]

        exact = output.double().requires_grad_()
        images = [t.double() for t in (x0, x_t, noise)]
        losses = reference.diffusion_hybrid_loss(exact, *images, table, timestep)
        (gradient,) = torch.autograd.grad(losses, exact, [g.double() for g in grads])

        whole = place(output)
        operands = [*whole.chunk(2, 1), *(place(t) for t in (x0, x_t, noise))]
        head = [*shape, DTYPES.index(compute), True]
        head += [*itertools.chain(*map(image, operands)), steps, table, timestep]
        filled = [torch.full_like(g, torch.nan) for g in grads]
        items.append([0, *head, *filled])
        results.append((("forward", shape, dtype), list(zip(filled, losses, strict=True))))
        filled = [place(unfilled(x0)) for _ in range(2)]
        items.append([1, *head, *grads, *itertools.chain(*map(image, filled))])
        pairs = list(zip(filled, gradient.chunk(2, 1), strict=True))
        results.append((("backward", shape, dtype), pairs))
    run("diffusion_hybrid_loss", sanitizer, items)
    check(results)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_standard_normal(sanitizer):
    items, results = [], []
    sizes = [(1, 1), (3, 15), (2, 65), (2, 2100), (4, 257)]
    for i, (shape, dtype) in enumerate(itertools.product(sizes, DTYPES)):
        own = i % 3 == 2  # a seed for each sample
        seed = torch.arange(2**62 - i, 2**62 - i + shape[0]) if own else torch.tensor(2**62 - i)
        out = torch.full(shape, torch.nan, dtype=dtype)
        items.append([*shape, seed, int(own), i, out, DTYPES.index(dtype)])
        with first_sample(i):
            expected = reference.standard_normal(shape, seed=seed, dtype=compute_dtype(dtype))
        results.append(((shape, dtype), [(out, expected)]))
    run("standard_normal", sanitizer, items)
    check(results)
