import math

import mpmath
import pytest
import torch
from ops.contracts import LAYOUTS, Contracts, results

import gmfast.functional as GF
from gmfast import reference

BACKWARD = torch.ops.gmfast.discretized_gaussian_nll_backward
f32, f64 = torch.float32, torch.float64


class TestContracts(Contracts):
    conditioned = (1, 2)
    headroom = 0.1
    formulation = "exact"
    spread = 0.2

    def call(self, *tensors):
        return GF.discretized_gaussian_nll(*tensors, num_classes=32, formulation=self.formulation)

    def plain(self, *tensors):
        return reference.discretized_gaussian_nll(*tensors, num_classes=32, formulation=self.formulation)

    def inputs(self, shape, dtype, device):
        batch, *spatial = shape
        shape = (batch, 6, *spatial)
        generator = torch.Generator().manual_seed(0)
        level = torch.randint(32, shape, generator=generator)
        level = level * (torch.rand(shape, generator=generator) > 0.2)  # many at the end
        x = (level * (2 / 31) - 1).to(device, dtype)
        mean = x.cpu().float() + self.spread * torch.randn(shape, generator=generator)
        log_scale = torch.randn(shape, generator=generator) / 2 - 1.5
        return [x, mean.to(device, dtype), log_scale.to(device, dtype)]

    def operators(self, *tensors):
        grad = torch.ones_like(tensors[0]).requires_grad_()
        options = 32, self.formulation == "exact"
        return [
            (torch.ops.gmfast.discretized_gaussian_nll.default, (*tensors, *options)),
            (BACKWARD.default, (grad, *tensors, *options, True, True, True)),
        ]


class TestImprovedDDPM(TestContracts):
    formulation = "improved_ddpm"
    spread = 0.05  # its tails cancel, in float64 too


def exact_bin(x, mean, log_scale, num_classes):
    """-log P and its derivatives by mean and log_scale."""
    x, mean, log_scale = (mpmath.mpf(float(v)) for v in (x, mean, log_scale))
    half, inverse = mpmath.mpf(1) / (num_classes - 1), mpmath.exp(-log_scale)
    upper, lower = (x - mean + half) * inverse, (x - mean - half) * inverse
    if x < -1 + half:
        lower = -mpmath.inf
    if x > 1 - half:
        upper = mpmath.inf
    # Of the tails on the side away from the mean, which do not cancel in so many digits.
    q = lambda v: mpmath.erfc(v / mpmath.sqrt(2)) / 2  # noqa: E731
    low, high = (-upper, -lower) if upper + lower < 0 else (lower, upper)
    p = q(low) - q(high)
    outside = q(-low) + q(high)
    density = lambda v: 0 if mpmath.isinf(v) else mpmath.npdf(v)  # noqa: E731
    moment = lambda v: 0 if mpmath.isinf(v) else v * mpmath.npdf(v)  # noqa: E731
    nll = -mpmath.log1p(-outside) if outside < 0.5 else -mpmath.log(p)
    by_mean = (density(upper) - density(lower)) * inverse / p
    return nll, by_mean, (moment(upper) - moment(lower)) / p


def points(num_classes, count, dtype, seed):
    """Levels, many at the ends, from the bin of the mean to 1e4 standard deviations from it."""
    generator = torch.Generator().manual_seed(seed)
    uniform = lambda: torch.rand(count, generator=generator, dtype=f64)  # noqa: E731
    level = (uniform() * num_classes).floor() * (uniform() > 0.2)
    level = torch.where(uniform() > 0.9, num_classes - 1, level)
    x = (level * 2 / (num_classes - 1) - 1).to(dtype)
    log_scale = (uniform() * 24 - 14).to(dtype)
    sign = torch.where(uniform() > 0.5, 1, -1)
    far = sign * 10 ** (uniform() * 8 - 4) * log_scale.double().exp()
    offset = torch.where(uniform() > 0.5, far, (uniform() * 6 - 3) / (num_classes - 1))
    return x, (x.double() - offset).to(dtype), log_scale


@pytest.mark.parametrize("dtype, ulp", [(f32, 7), (f64, 12)])
@pytest.mark.parametrize("num_classes", [2, 4, 256, 65536])
def test_of_many_digits(device, num_classes, dtype, ulp):
    """Centre, tails to 1e4 standard deviations, narrow and wide scales, both ends: values and gradients."""
    x, mean, log_scale = points(num_classes, 300, dtype, seed=num_classes)
    call = lambda *t: GF.discretized_gaussian_nll(*t, num_classes=num_classes)  # noqa: E731
    tensors = [t.to(device) for t in (x, mean, log_scale)]
    nll, by_x, by_mean, by_log_scale = (t.cpu() for t in results(call, tensors, torch.ones_like))
    assert torch.equal(by_x, -by_mean)
    eps = torch.finfo(dtype).eps
    compared = 0
    with mpmath.workdps(60):
        for i in range(len(x)):
            exact = exact_bin(x[i], mean[i], log_scale[i], num_classes)
            if exact[0] < 1e-25:
                assert nll[i] < 2e-25
                continue
            # A mass near 1 is the exponential of what has been rounded.
            factor = ulp * max(1.0, -math.log(exact[0]))
            floors = 0.0, 0.0, 1.0 if exact[0] > 0.01 else 0.0
            for got, want, floor in zip((nll, by_mean, by_log_scale), exact, floors, strict=True):
                bound = factor * eps * max(abs(want), floor)
                assert abs(mpmath.mpf(float(got[i])) - want) <= bound + 1e-35, (x[i], mean[i], log_scale[i])
            compared += 1
    assert compared > 150


def improved_diffusion(x, means, log_scales):
    """As published, https://github.com/openai/improved-diffusion (losses.py), in float64."""

    def cdf(v):
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (v + 0.044715 * v**3)))

    inv_stdv = torch.exp(-log_scales)
    plus, minus = cdf(inv_stdv * (x - means + 1.0 / 255.0)), cdf(inv_stdv * (x - means - 1.0 / 255.0))
    inside = torch.log((plus - minus).clamp(min=1e-12))
    log_probs = torch.where(x > 0.999, torch.log((1.0 - minus).clamp(min=1e-12)), inside)
    return -torch.where(x < -0.999, torch.log(plus.clamp(min=1e-12)), log_probs)


def test_published(device):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randint(256, (4000,), generator=generator) / 127.5 - 1).double().to(device)
    x[:500], x[500:1000] = -1, 1
    mean = x + 0.1 * torch.randn(4000, generator=generator).double().to(device)
    log_scale = (torch.rand(4000, generator=generator).double() * 5 - 5).to(device)
    call = lambda *t: GF.discretized_gaussian_nll(*t, formulation="improved_ddpm")  # noqa: E731
    expected = results(improved_diffusion, [x, mean, log_scale], torch.ones_like)
    assert (expected[0] > 27.6).any()  # some are clamped
    for a, e in zip(results(call, [x, mean, log_scale], torch.ones_like), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)  # what is published cancels


@pytest.mark.parametrize("num_classes", [2, 3, 256])
def test_probabilities_of_all_levels_add_to_one(device, num_classes):
    levels = torch.linspace(-1, 1, num_classes, device=device, dtype=f64)[:, None]
    mean = torch.linspace(-2, 2, 9, device=device, dtype=f64)
    for log_scale in (-6.0, -3.0, 0.0, 3.0):
        p = torch.exp(
            -GF.discretized_gaussian_nll(levels.expand(-1, 9), mean, log_scale, num_classes=num_classes)
        )
        torch.testing.assert_close(p.sum(0), torch.ones_like(mean), rtol=1e-10, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_other_pixel"])
@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (5, 1, 1), (6,), (), (1, 5, 4, 1)])
def test_broadcast(device, layout, shape):
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(3, 5, 4, 6, generator=generator, dtype=f64).to(device) * 2 - 1
    small = torch.rand(shape, generator=generator, dtype=f64).to(device)
    x = LAYOUTS[layout](whole)
    for tensors in ([x, small, small - 2], [x, whole.flip(0), small], [x, small, whole.flip(1) - 2]):
        ours = results(GF.discretized_gaussian_nll, tensors)
        for a, e in zip(ours, results(reference.discretized_gaussian_nll, tensors), strict=True):
            assert a.shape == e.shape
            torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-8)


def test_numbers_and_few_dimensions(device):
    for shape in ((), (7,), (2, 3)):
        x = torch.rand(shape, device=device)
        expected = reference.discretized_gaussian_nll(x.double(), torch.tensor(0.1), torch.tensor(-1.0))
        nll = GF.discretized_gaussian_nll(x, 0.1, -1)
        assert nll.dtype == f32
        torch.testing.assert_close(nll.double(), expected, rtol=1e-5, atol=1e-5)


def test_mixed_dtypes(device):
    x, mean, log_scale = TestContracts().inputs((2, 9), f32, device)
    halves = [x, mean.bfloat16(), log_scale.half()]
    ours = results(GF.discretized_gaussian_nll, halves)
    assert [t.dtype for t in ours] == [f32, f32, torch.bfloat16, torch.float16]
    expected = results(GF.discretized_gaussian_nll, [t.float() for t in halves])
    assert all(torch.equal(a, e.to(a.dtype)) for a, e in zip(ours, expected, strict=True))


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        (("x", 0, 0), {}, TypeError, r"x: expected a torch\.Tensor, got str"),
        ((0.5, 0, 0), {}, TypeError, r"x: expected a torch\.Tensor, got float"),
        ((torch.ones(2), "0", 0), {}, TypeError, r"mean: expected a torch\.Tensor or a number, got str"),
        ((torch.ones(2), 0, torch.ones(3)), {}, ValueError, r"log_scale: .* \(2,\), got \(3,\)"),
        (
            (torch.ones(2), torch.ones(2, 2), 0),
            {},
            ValueError,
            r"mean: .* broadcasts to \(2,\), got \(2, 2\)",
        ),
        ((torch.ones(2), 0, 0), {"num_classes": 1}, ValueError, "num_classes: expected 2 to .*, got 1"),
        ((torch.ones(2), 0, 0), {"num_classes": 2.0}, TypeError, "num_classes: expected an int, got float"),
        ((torch.ones(2), 0, 0), {"formulation": "tanh"}, ValueError, "formulation: expected one of 'exact'"),
        ((torch.ones(2, dtype=torch.uint8), 0, 0), {}, TypeError, "x: expected float32, .* got uint8"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        GF.discretized_gaussian_nll(*arguments, **options)
