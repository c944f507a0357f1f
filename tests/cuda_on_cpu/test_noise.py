"""The CUDA kernels on rows with noise, run as C++."""

import itertools

import pytest
import torch
from cuda_on_cpu.emulator import DTYPES, SANITIZERS, image, run
from cuda_on_cpu.test_rows import SHAPES, apart, check, compute_dtype, unfilled

from gmfast import _philox, reference

pytestmark = pytest.mark.cuda_on_cpu

f32, f64, bf16, f16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def noise_of(kind, i, shape, compute, generator):
    """The noise in float64, and the items that say where it comes from: given, or drawn with one seed for all
    or with one for each sample, or in another order than the walk's, whose innermost are then channels. With
    one for all, it counts from another sample each time."""
    first = i * 7 % 5
    if kind == "given":
        noise = torch.randn(shape, generator=generator).to(compute)
        return noise.double(), [*image(apart(noise)), None, 0, 0, 0, 1]
    if kind == "channels":
        seed, shape = torch.tensor(i - 5), (shape[0], shape[2], shape[1])
        noise = _philox.array_normal(seed, shape, compute, "cpu", i, first)
        return noise.mT.double(), [None, seed, 0, first, i, shape[1]]
    seed = torch.tensor(i - 5) if kind == "drawn" else torch.arange(shape[0]) + 2**40
    noise = _philox.array_normal(seed, shape, compute, "cpu", i, first)
    return noise.double(), [None, seed, seed.dim(), first, i, 1]


def numbers(value):
    """A number, or a tensor (B,)."""
    if isinstance(value, float):
        return [value, None, 0]
    return [0.0, value, DTYPES.index(value.dtype)]


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_q_sample(sanitizer):
    generator = torch.Generator().manual_seed(0)
    items, results = [], []
    targets = (None, "epsilon", "v", "flow")
    kinds = ("given", "drawn", "seeds", "channels")
    for i, (shape, kind) in enumerate(itertools.product(SHAPES, kinds)):
        dtype, place = (f32, f64, bf16, f16)[(i + i // 4) % 4], apart if i // 3 % 2 else torch.clone
        code = (3 * i + i // 8) % 4
        compute, target = compute_dtype(dtype), targets[code]
        x = torch.randn(shape, generator=generator).to(dtype)
        noise, of_noise = noise_of(kind, i, shape, compute, generator)
        alpha = 0.75 if i % 5 == 0 else torch.rand(shape[0], generator=generator).to(DTYPES[i // 3 % 4])
        sigma = torch.rand(shape[0], generator=generator).to(DTYPES[i // 2 % 4])
        expected = reference.q_sample(x.double(), alpha, sigma, noise=noise, target=target)
        expected = (expected,) if target is None else expected
        filled = [place(unfilled(x)) for _ in expected]
        head = [*shape, DTYPES.index(compute), code, 0, *image(place(x)), *of_noise]
        head += [*numbers(alpha), *numbers(sigma)]
        items.append([*head, *image(filled[0]), *image(filled[1] if target else None)])
        results.append((("forward", shape, dtype, kind, target), list(zip(filled, expected, strict=True))))

        # Gradients: of the results in, of x and noise out.
        if target in ("v", "flow"):
            grads = [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]
            leaves = [x.double().requires_grad_(), noise.clone().requires_grad_()]
            ys = reference.q_sample(leaves[0], alpha, sigma, noise=leaves[1], target=target)
            expected = torch.autograd.grad(ys, leaves, [g.double() for g in grads])
            filled = [unfilled(x), apart(unfilled(x))]
            wanted = [*image(filled[0]), *image(filled[1] if i % 3 else None)]
            tail = [
                *image(place(grads[0])),
                *image(grads[1]),
                None,
                0,
                0,
                0,
                1,
                *numbers(alpha),
                *numbers(sigma),
            ]
            items.append([*shape, DTYPES.index(compute), code, 1, *tail, *wanted])
            pairs = list(zip(filled, expected, strict=True))[: 2 if i % 3 else 1]
            results.append((("backward", shape, dtype, target), pairs))
    run("q_sample", sanitizer, items)
    check(results)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_langevin_step(sanitizer):
    generator = torch.Generator().manual_seed(0)
    items, results = [], []
    forms = itertools.product(("given", "drawn", "seeds"), ("number", "numbers", "snr"))
    for i, (shape, (kind, form)) in enumerate(itertools.product(SHAPES, forms)):
        dtype, place = (f32, f64, bf16, f16)[i % 4], apart if i // 2 % 2 else torch.clone
        compute = compute_dtype(dtype)
        x, score = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        noise, of_noise = noise_of(kind, i, shape, compute, generator)
        step = 0.2 if form != "numbers" else torch.rand(shape[0], generator=generator).to(compute)
        options = {"snr": step} if form == "snr" else {"step_size": step}
        options |= {"alpha": 0.9, "temperature": 0.5}
        expected = reference.langevin_step(
            x.double(), score.double(), noise=noise, return_mean=True, **options
        )
        filled = [place(unfilled(x)) for _ in range(2)]
        head = [*shape, DTYPES.index(compute), form == "snr", 0.9, 0.5]
        head += [*image(place(x)), *image(place(score)), *of_noise, *numbers(step)]
        items.append([*head, *image(filled[0]), *image(filled[1] if i % 3 else None)])
        pairs = list(zip(filled, expected, strict=True))[: 2 if i % 3 else 1]
        results.append(((shape, dtype, kind, form), pairs))
    run("langevin_step", sanitizer, items)
    check(results)
