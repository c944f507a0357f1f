"""The CUDA kernels of the discretized logistic mixture, run as C++."""

import itertools

import pytest
import torch
from cuda_on_cpu.emulator import SANITIZERS, image, run

from gmfast import reference
from gmfast._seed import first_sample

pytestmark = pytest.mark.cuda_on_cpu

f32, f64, bf16, f16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
NLL, SAMPLE = range(2)
NUM_CLASSES, LOG_SCALE_MIN = 256, -7.0
TOTAL_SCALE, GRADIENT_SCALE = 0.5, 0.25

# batch, pixels, mixtures; the last have blocks of 16, 2 and 1 pixels.
SHAPES = [(1, 1, 1), (3, 43, 5), (2, 33, 2), (1, 129, 1), (2, 129, 2), (2, 10, 5)]
RARE_SHAPES = [(1, 19, 17), (1, 3, 130), (1, 2, 256), (0, 5, 2), (2, 0, 2)]
# x, params
DTYPES = [(f32, f32), (f64, f64), (f32, bf16), (f16, f16), (f32, f64), (bf16, f32), (f64, f16)]


def contiguous(t):
    return t.contiguous()


def channels_last(t):
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def channels_last_slice(t):
    """The first channels of a wider tensor, as a chunk of a convolution's output."""
    wide = torch.full((t.shape[0], t.shape[2], t.shape[1] + 3), float("nan"), dtype=t.dtype)
    return wide.transpose(1, 2)[:, : t.shape[1]].copy_(t)


def every_other(t):
    batch, channels, pixels = t.shape
    wide = torch.full((batch, 2 * channels, 3 * pixels), float("nan"), dtype=t.dtype)
    return wide[:, ::2, 1::3].copy_(t)


LAYOUTS = [contiguous, channels_last, every_other, channels_last_slice]


def inputs(channels, shape, dtypes, generator):
    """Pixels at the centres of classes, both ends among them, and parameters near them."""
    batch, pixels, mixtures = shape
    classes = torch.randint(-3, 259, (batch, channels, pixels), generator=generator).clamp(0, 255)
    x = classes.double() / 127.5 - 1
    params = torch.randn(batch, (3 if channels == 1 else 10) * mixtures, pixels, generator=generator)
    of_colour = 2 if channels == 1 else 3
    rows = params[:, mixtures:].view(batch, channels, of_colour, mixtures, pixels)
    rows[:, :, 0] *= 0.5
    rows[:, :, 1] = rows[:, :, 1] * 1.2 - 2.5
    return x.to(dtypes[0]), params.to(dtypes[1])


def nll_case(channels, formulation, wanted, shape, dtypes, layouts, generator):
    """The items of a case, and pairs of (what is filled, what is to be in it, relative error)."""
    batch, pixels, mixtures = shape
    x, params = inputs(channels, shape, dtypes, generator)
    x = x[:1].expand_as(x) if batch == 2 else layouts[0](x)
    compute = torch.promote_types(torch.promote_types(*dtypes), f32)
    exact_x, exact_params = x.to(f64, copy=True).requires_grad_(), params.double().requires_grad_()
    exact = reference.discretized_logistic_mixture_nll(
        exact_x, exact_params, log_scale_min=LOG_SCALE_MIN, formulation=formulation
    )
    expected = torch.autograd.grad(exact.sum(), [exact_x, exact_params])
    exact = exact.detach()

    grads = [
        layouts[1](torch.full(t.shape, float("nan"), dtype=t.dtype)) if name in wanted else None
        for name, t in (("x", x), ("params", params))
    ]
    loss = torch.full((batch, pixels), float("nan"), dtype=compute)
    over_batch = batch % 2 == 0
    total = torch.full(() if over_batch else (batch,), float("nan"), dtype=compute)
    items = [NLL, batch, pixels, channels, mixtures, NUM_CLASSES, LOG_SCALE_MIN]
    items += [
        formulation == "pixelcnnpp",
        over_batch,
        TOTAL_SCALE,
        GRADIENT_SCALE,
        *image(x),
        *image(layouts[0](params)),
    ]
    items += [*image(grads[0]), *image(grads[1]), loss, total]

    # A difference of sigmoids loses up to five digits.
    error = torch.finfo(compute).eps * (1e4 if formulation == "pixelcnnpp" else 20)
    exact_total = TOTAL_SCALE * (exact.sum() if over_batch else exact.sum(1))
    results = [(loss, exact, error), (total, exact_total, error)]
    for grad, value in zip(grads, expected, strict=True):
        if grad is not None:
            results.append((grad, GRADIENT_SCALE * value, error * 60 + torch.finfo(grad.dtype).eps))
    return items, results


def check(cases):
    for items, results in cases:
        for i, (result, expected, error) in enumerate(results):
            off = (result.double() - expected).abs() / (1 + expected.abs())
            assert (off <= error).all(), (items[:9], i, result.dtype, off.max().item(), error)
            if result._base is not None:
                outside = result._base.numel() - result.numel()
                assert result._base.isnan().sum() == outside, "written beside the result"


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_nll(sanitizer):
    generator = torch.Generator().manual_seed(0)
    variants = itertools.product((1, 3), ("exact", "pixelcnnpp"), ((), ("params",), ("x",), ("x", "params")))
    cases = []
    for i, (variant, single) in enumerate(itertools.product(variants, (True, False))):
        dtypes = [d for d in DTYPES if (f64 not in d) == single]
        for j in range(2):
            turn = 2 * i + j
            layouts = LAYOUTS[turn % 4], LAYOUTS[(turn // 4 + j) % 4]
            shape = SHAPES[turn % len(SHAPES)]
            cases.append(nll_case(*variant, shape, dtypes[turn % len(dtypes)], layouts, generator))
    for i, shape in enumerate(RARE_SHAPES):
        layouts = LAYOUTS[1 - i % 2], LAYOUTS[i % 2]
        cases.append(nll_case(3, "exact", ("x", "params"), shape, (f32, f32), layouts, generator))
    run("discretized_logistic_mixture", sanitizer, [items for items, _ in cases])
    check(cases)


def test_too_many_mixtures_are_refused():
    items, _ = nll_case(1, "exact", (), (1, 1, 513), (f32, f32), LAYOUTS[:2], torch.Generator())
    with pytest.raises(AssertionError, match="expected at most 512 mixtures on a CUDA device, got 513"):
        run("discretized_logistic_mixture", "address", [items])


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sample(sanitizer):
    generator = torch.Generator().manual_seed(0)
    cases = []
    for i, (channels, dtype, quantize) in enumerate(
        itertools.product((1, 3), (f32, f64, bf16), (True, False))
    ):
        shape = [(2, 33, 5), (3, 43, 1), (1, 129, 2)][i % 3]
        batch, pixels, mixtures = shape
        _, params = inputs(channels, shape, (f32, dtype), generator)
        seed = torch.tensor([-5, 2**40 + 3, 7][i % 3])
        temperature = [1.0, 0.7, 0.0][i // 2 % 3]
        x = torch.full((batch, channels, pixels), float("nan"), dtype=torch.promote_types(dtype, f32))
        with first_sample(i):
            expected = reference.discretized_logistic_mixture_sample(
                params, channels=channels, temperature=temperature, quantize=quantize, seed=seed
            )
        items = [SAMPLE, batch, pixels, channels, mixtures, NUM_CLASSES, LOG_SCALE_MIN, temperature]
        cases.append(([*items, quantize, *image(LAYOUTS[i % 4](params)), seed, 0, i, x], x, expected))
    run("discretized_logistic_mixture", sanitizer, [items for items, *_ in cases])
    for items, x, expected in cases:
        # Rounding may carry a pixel, and with it the colours after it, over an edge of a class.
        right = ((x - expected).abs() <= 200 * torch.finfo(x.dtype).eps).double().mean()
        assert right >= (1 if x.dtype == f64 or not items[8] else 0.98), (items[:9], x.dtype, right)
