import math

import mpmath
import pytest
import torch
from ops.contracts import (
    DTYPES,
    HALVES,
    LAYOUTS,
    FlowContracts,
    assert_same,
    is_channels_last,
    results,
    strided,
    threads,
)

import gmfast.functional as GF
from gmfast import _library, reference

cdf = GF.logistic_mixture_cdf
EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}


def random_inputs(shape, components, dtype=torch.float64, scale=1.0, seed=0):
    """x and its parameters, normal and `scale` times normal."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    params = [scale * torch.randn(*shape, components, generator=generator) for _ in range(3)]
    return [t.to(dtype) for t in (x, *params)]


def of_convolution(param, channels):
    """(B, C, *S, K) in the memory of a convolution's (B, C·K, *S)."""
    return param.unflatten(1, (channels, -1)).movedim(2, -1)


class Mixture(FlowContracts):
    """Parameters as a convolution gives them: (B, C·K, *S)."""

    conditioned = (1, 2, 3)
    headroom = 1e-3
    channels, components = 2, 3

    def forward(self, x, *params, inverse=False):
        return cdf(x, *(of_convolution(p, self.channels) for p in params), inverse=inverse)

    def plain_forward(self, x, *params, inverse=False):
        params = [of_convolution(p, self.channels) for p in params]
        return reference.logistic_mixture_cdf(x, *params, inverse=inverse)

    def inputs(self, shape, dtype, device):
        batch, *spatial = shape
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, self.channels, *spatial, generator=generator)
        count = self.channels * self.components
        params = [torch.randn(batch, count, *spatial, generator=generator) * s for s in (1, 1, 0.5)]
        return [t.to(device, dtype) for t in (x, *params)]

    def operators(self, x, *params):
        params = [of_convolution(p, self.channels) for p in params]
        ops = torch.ops.gmfast
        for per_element in (False, True):
            yield ops.logistic_mixture_cdf.default, (x, *params, self.inverse, per_element, True)
            grad_log_det = x.detach() if per_element else x.detach().flatten(1).sum(1)
            for grads in ((x.detach(), grad_log_det), (None, grad_log_det), (x.detach(), None)):
                arguments = (*grads, x, *params, self.inverse, per_element, 15)
                yield ops.logistic_mixture_cdf_backward.default, arguments

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layout_of_results(self, device, layout):
        """y and x's gradient as everywhere; a parameter's gradient has its order of dimensions in memory."""
        inputs = [t.float().to(device) for t in random_inputs((3, 4, 5, 6), 7)]
        laid_out = [LAYOUTS[layout](t) for t in inputs]
        laid_out[2] = of_convolution(laid_out[2].movedim(-1, 2).contiguous().flatten(1, 2), 4)
        laid_out[3] = laid_out[3].permute(0, 4, 3, 1, 2).contiguous().permute(0, 3, 4, 2, 1)
        y, _, *grads = results(lambda *t: cdf(*t, inverse=self.inverse), laid_out, torch.ones_like)
        dense = is_channels_last if layout.startswith("channels_last") else torch.Tensor.is_contiguous
        assert all(map(dense, (y, grads[0])))
        for grad, tensor in zip(grads[1:], laid_out[1:], strict=True):
            order = sorted(range(tensor.dim()), key=lambda d: -tensor.stride(d))
            assert grad.permute(order).is_contiguous()
        expected = results(lambda *t: cdf(*t, inverse=self.inverse), inputs, torch.ones_like)
        assert_same([y, *grads], [expected[0], *expected[2:]])


class TestForward(Mixture):
    pass


class TestInverse(Mixture):
    inverse = True


# ---------------------------------------------------------------------------------------------------------
# Values, against mpmath
# ---------------------------------------------------------------------------------------------------------


def exact(x, logits, means, log_scales):
    """logit F and its log-derivative by their definition, with as many digits as they need."""
    with mpmath.workdps(60):
        x, logits, means, log_scales = (
            mpmath.mpf(x),
            *([mpmath.mpf(v) for v in values] for values in (logits, means, log_scales)),
        )
        total = sum(mpmath.exp(a) for a in logits)
        below = above = density = 0
        for a, m, s in zip(logits, means, log_scales, strict=True):
            z = (x - m) * mpmath.exp(-s)
            near = mpmath.exp(-abs(z))
            large, small = 1 / (1 + near), near / (1 + near)
            weight = mpmath.exp(a) / total
            below += weight * (small if z < 0 else large)
            above += weight * (large if z < 0 else small)
            density += weight * small * large * mpmath.exp(-s)
        return mpmath.log(below) - mpmath.log(above), mpmath.log(density) - mpmath.log(below * above)


EXTREMES = {
    "one component": (0.3, [1.5], [0.25], [-1.0]),
    "one component, far left": (-1e4, [0.0], [0.0], [0.0]),
    "one component, narrow": (1.5, [0.0], [-1.25], [-7.0]),
    "one component, wide": (3.0, [0.0], [1.0], [7.0]),
    "beyond 16": (20.0, [0.0, 1.0], [0.0, 1.0], [0.0, -0.5]),
    "beyond 88": (-100.0, [0.0, 1.0, -2.0], [0.0, 1.0, 3.0], [0.0, -0.5, -2.0]),
    "beyond 1e4": (2e4, [0.0, 1.0, -2.0], [0.0, 1.0, 3.0], [0.0, -0.5, 0.25]),
    "far outside narrow components": (5.0, [0.0, 0.5], [-1.0, 1.0], [-7.0, -6.5]),
    "between far components": (3.0, [0.0, 0.5], [-1000.0, 1000.0], [0.0, 0.0]),
    "between, nearer one": (-990.0, [0.0, 0.5], [-1000.0, 1000.0], [0.0, 0.0]),
    "between three, the middle one rare": (2.0, [0.0, -60.0, 0.5], [-500.0, 0.0, 500.0], [0.0, 1.0, 0.0]),
    "narrow and wide": (0.01, [0.0, 0.0], [0.0, 0.0], [-7.0, 7.0]),
    "at a mean": (0.5, [0.0, 0.0], [0.5, 2.0], [-7.0, -7.0]),
    "a rare component owns the tail": (-300.0, [0.0, -100.0], [0.0, 0.0], [-1.0, 3.0]),
    "a rare component does not matter": (0.75, [0.0, -1e4], [0.0, 0.0], [-1.0, 3.0]),
    "the larger logits": (0.75, [1e4, 1e4 + 1], [0.0, 1.0], [-1.0, 1.0]),
    "very narrow": (1e-6, [0.0, 1.0], [0.0, 1e-6], [-20.0, -15.0]),
    "very wide": (1e8, [0.0, 1.0], [0.0, 1e6], [20.0, 15.0]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EXTREMES)
def test_extremes(device, name, dtype):
    """y to its rounding error and that of z, which y's slope amplifies no further than |y|."""
    inputs = [torch.tensor([v], dtype=dtype, device=device) for v in EXTREMES[name]]
    values = [inputs[0].item(), *(t[0].tolist() for t in inputs[1:])]
    y, log_derivative = (t.item() for t in cdf(*inputs, reduction="none"))
    exact_y, exact_log_derivative = exact(*values)
    assert abs(y - exact_y) <= 8 * EPS[dtype] * (1 + abs(exact_y))
    # In the density the largest z of all stands for what is exponentiated.
    z = max(abs(values[0] - m) * math.exp(-s) for m, s in zip(*values[2:], strict=True))
    scale = 1 + min(z, abs(exact_log_derivative) + abs(exact_y)) + abs(exact_log_derivative)
    assert abs(log_derivative - exact_log_derivative) <= 8 * EPS[dtype] * scale

    # The inverse: y lies between what is a few roundings of x away.
    x, back = (
        t.item() for t in cdf(torch.full_like(inputs[0], y), *inputs[1:], inverse=True, reduction="none")
    )
    below, above = (exact(x + sign * 4 * EPS[dtype] * abs(x), *values[1:])[0] for sign in (-1, 1))
    room = 8 * EPS[dtype] * (1 + abs(y))
    assert below - room <= y <= above + room
    again = cdf(torch.full_like(inputs[0], x), *inputs[1:], reduction="none")[1].item()
    assert abs(back + again) <= 2 * EPS[dtype] * scale  # two loops, which a compiler may contract differently


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("components", [1, 2, 5, 16, 17, 32, 64])
def test_any_number_of_components(device, components, dtype):
    x, *params = (t.to(device) for t in random_inputs((2, 37), components, dtype, scale=2))
    y, log_derivative = cdf(x, *params, reduction="none")
    for i in range(0, 74, 5):
        values = [t.flatten(0, 1)[i].tolist() for t in (x, *params)]
        exact_y, exact_log_derivative = exact(*values)
        assert abs(y.flatten()[i].item() - exact_y) <= 8 * EPS[dtype] * (1 + abs(exact_y))
        error = abs(log_derivative.flatten()[i].item() - exact_log_derivative)
        assert error <= 32 * EPS[dtype] * (1 + abs(exact_y) + abs(exact_log_derivative))


@pytest.mark.parametrize("inverse", [False, True])
def test_one_component_is_affine(device, inverse):
    x, logits, means, log_scales = (t.to(device) for t in random_inputs((50,), 1, scale=2))
    y, log_derivative = cdf(x, logits, means, log_scales, inverse=inverse, reduction="none")
    mean, log_scale = means[:, 0], log_scales[:, 0]
    expected = mean + log_scale.exp() * x if inverse else (x - mean) * (-log_scale).exp()
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(log_derivative, log_scale if inverse else -log_scale, rtol=1e-13, atol=1e-13)


# ---------------------------------------------------------------------------------------------------------
# Both ways
# ---------------------------------------------------------------------------------------------------------


def assert_solves(x, y, params, precision=None):
    """T(x) = y but for a few roundings of x and of y, however steep or flat the transform T is there."""
    precision = EPS[x.dtype] if precision is None else precision
    x, y, *params = (t.double() for t in (x, y, *params))
    room = 8 * precision * (1 + y.abs())
    below, above = (cdf(x + sign * 4 * precision * x.abs(), *params)[0] for sign in (-1, 1))
    assert ((below - room <= y) & (y <= above + room)).all()


@pytest.mark.parametrize("scale", [1, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inverse_at_any_parameters(device, dtype, scale):
    y, *params = (t.to(device) for t in random_inputs((50, 40), 8, dtype, scale))
    y *= 5
    x, log_derivative = cdf(y, *params, inverse=True, reduction="none")
    assert_solves(x, y, params)
    again = cdf(x, *params, reduction="none")[1]
    assert ((log_derivative + again).abs() <= 2 * EPS[again.dtype] * (1 + again.abs())).all()


@pytest.mark.parametrize("scale", [1, 3, 10])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inverse_of_forward(device, dtype, scale):
    """x comes back to its own rounding and that of y times dx/dy, where the slope there is the same."""
    x, *params = (t.to(device) for t in random_inputs((50, 40), 8, dtype, scale))
    y, log_derivative = cdf(x, *params, reduction="none")
    back, log_derivative_back = cdf(y, *params, inverse=True, reduction="none")
    # float16 does not hold every y, nor what x a rounded y may stand for.
    inside = (
        y.isfinite() & back.isfinite() if dtype == torch.float16 else torch.ones_like(x, dtype=torch.bool)
    )
    assert inside.double().mean() > 0.9 and not back.isnan().any()
    assert back[inside].isfinite().all() and log_derivative_back[inside].isfinite().all()
    x, y, back, log_derivative, log_derivative_back = (
        t[inside] for t in (x, y, back, log_derivative, log_derivative_back)
    )
    params = [p[inside] for p in params]
    assert_solves(back, cdf(x.double(), *(p.double() for p in params))[0], params, EPS[dtype])
    linear = (log_derivative + log_derivative_back).abs() < 0.1
    assert linear.double().mean() > (0.5 if dtype in HALVES else 0.8)
    bound = EPS[dtype] * (x.double().abs() + (1 + y.double().abs()) * torch.exp(-log_derivative.double()))
    assert ((back.double() - x.double()).abs() <= 8 * bound)[linear].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inverse_in_the_tails(device, dtype):
    _, *params = random_inputs((9,), 4, dtype, scale=3)
    y = torch.tensor([-1e30, -1e10, -1e4, -200.0, 0.0, 200.0, 1e4, 1e10, 1e30], dtype=dtype)
    y, *params = (t.to(device) for t in (y, *params))
    x, _ = cdf(y, *params, inverse=True)
    again, _ = cdf(x, *params)
    torch.testing.assert_close(again, y, rtol=8 * EPS[dtype], atol=1e3 * EPS[dtype])


@pytest.mark.parametrize("inverse", [False, True])
def test_reductions(device, inverse):
    inputs = [t.to(device) for t in random_inputs((3, 4, 5), 6)]
    y, log_derivative = cdf(*inputs, inverse=inverse, reduction="none")
    again, log_det = cdf(*inputs, inverse=inverse)
    assert torch.equal(y, again) and log_derivative.shape == inputs[0].shape
    torch.testing.assert_close(log_det, log_derivative.flatten(1).sum(1), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_of_the_elementwise_form(device, inverse):
    leaves = [t.to(device).requires_grad_() for t in random_inputs((2, 3), 4)]
    call = lambda *t: cdf(*t, inverse=inverse, reduction="none")  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)
    assert_same(
        results(call, [strided(t, step={1: 2}) for t in leaves], lambda y: strided(torch.ones_like(y))),
        results(call, leaves, torch.ones_like),
    )


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", [3, 10])
def test_gradients_far_apart(device, inverse, scale):
    """Against float64 autograd through the reference, where sums underflow in float32."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 9, generator=generator) * (200 if inverse else 30)
    params = [scale * torch.randn(40, 9, 5, generator=generator) for _ in range(3)]
    inputs = [t.to(device) for t in (x, *params)]
    call = lambda module: lambda *t: module.logistic_mixture_cdf(*t, inverse=inverse, reduction="none")  # noqa: E731
    doubles = [t.double() for t in inputs]
    for actual, expected in zip(results(call(GF), doubles), results(call(reference), doubles), strict=True):
        off = (actual - expected).abs() / (1 + expected.abs())
        # The inverse is conditioned by dx/dy, as test_inverse_of_forward has it; most are not badly so.
        assert off.isfinite().all() and off.flatten().quantile(0.98 if inverse else 1.0) < 1e-9
    if not inverse:
        for actual, expected in zip(
            results(call(GF), inputs), results(call(reference), doubles), strict=True
        ):
            assert ((actual - expected).abs() <= 2e-5 * (1 + expected.abs())).all()


def test_second_derivative_of_halves(device):
    """Of the inverse too, whose gradient is computed from a solution that is not rounded to half."""
    inputs = random_inputs((2, 3), 4)
    for inverse in (False, True):
        seconds = []
        for dtype in (torch.bfloat16, torch.float64):
            leaves = [t.bfloat16().to(device, dtype).requires_grad_() for t in inputs]
            y, log_det = cdf(*leaves, inverse=inverse)
            gradients = torch.autograd.grad([y.double().sum(), log_det.sum()], leaves, create_graph=True)
            total = sum(g.double().square().sum() for g in gradients)
            seconds.append(torch.autograd.grad(total, leaves))
        for half, double in zip(*seconds, strict=True):
            assert half.dtype == torch.bfloat16 and double.abs().max() > 0
            torch.testing.assert_close(
                half.double(), double, rtol=0.05, atol=0.05 * double.abs().max().item()
            )


@pytest.mark.parametrize("inverse", [False, True])
def test_mixed_dtypes(device, inverse):
    x, *params = (t.to(device) for t in random_inputs((3, 7), 4, torch.float32))
    for dtypes in ([torch.float32] + [torch.bfloat16] * 3, [torch.float32, torch.float64, torch.float16] * 2):
        inputs = [t.to(d) for t, d in zip((x, *params), dtypes, strict=False)]
        y, log_det, *grads = results(lambda *t: cdf(*t, inverse=inverse), inputs, torch.ones_like)
        compute = torch.float64 if torch.float64 in dtypes else torch.float32
        assert (y.dtype, log_det.dtype) == (torch.float32, compute)
        assert [g.dtype for g in grads] == [t.dtype for t in inputs]
        expected = results(
            lambda *t: cdf(*t, inverse=inverse), [t.to(compute) for t in inputs], torch.ones_like
        )
        assert_same(
            [y, log_det, *grads], [e.to(a.dtype) for a, e in zip((y, log_det, *grads), expected, strict=True)]
        )


@pytest.mark.skipif(_library._C is None, reason="about the compiled library")
def test_parameters_are_read_in_place(device):
    """Views of one convolution's output, innermost or not, and slices of one tensor."""
    x = torch.randn(2, 3, 4, 5, device=device)
    convolution = torch.randn(2, 3 * 14, 4, 5, device=device)
    views = [
        convolution.unflatten(1, (3, 14))[:, :, 2:].movedim(2, -1).split(4, -1),
        convolution.to(memory_format=torch.channels_last)
        .unflatten(1, (3, 14))
        .movedim(2, -1)[..., 2:]
        .split(4, -1),
        torch.randn(2, 3, 4, 5, 12, device=device).split(4, -1),
    ]
    for params in views:
        expected = cdf(x, *(p.contiguous() for p in params))
        with torch.profiler.profile() as profile:
            actual = cdf(x, *params)
        assert_same(actual, expected)
        names = {event.key for event in profile.key_averages()}
        assert not names & {"aten::copy_", "aten::clone", "aten::contiguous"}, names


def test_same_bits_among_other_elements(device):
    """An element in whose vector another one underflows is computed as by itself."""
    x, *params = (t.to(device) for t in random_inputs((1, 40), 5, torch.float32))
    expected = [cdf(x, *params, inverse=inverse, reduction="none") for inverse in (False, True)]
    changed = x.clone()
    changed[:, ::3] = 1e4
    for inverse, before in zip((False, True), expected, strict=True):
        after = cdf(changed, *params, inverse=inverse, reduction="none")
        kept = [torch.arange(40) % 3 != 0]
        assert_same([t[:, kept[0]] for t in after], [t[:, kept[0]] for t in before])


def test_same_bits_whatever_the_batch(device):
    x, *params = (t.to(device) for t in random_inputs((5, 700), 3, torch.float32))
    for inverse in (False, True):
        whole = cdf(x, *params, inverse=inverse)
        for i in range(5):
            part = cdf(*(t[i : i + 1] for t in (x, *params)), inverse=inverse)
            assert_same(part, [t[i : i + 1] for t in whole])
        with threads(1):
            assert_same(cdf(x, *params, inverse=inverse), whole)


X, PARAMS = torch.zeros(2, 3), [torch.zeros(2, 3, 4)] * 3


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((0.0, *PARAMS), {}, TypeError, r"x: expected a torch\.Tensor, got float"),
        ((X.int(), *PARAMS), {}, TypeError, r"x: expected float32, .* got int32"),
        ((torch.zeros(()), *PARAMS), {}, ValueError, r"x: expected shape \(B, \*D\), got a scalar"),
        ((X, None, *PARAMS[1:]), {}, TypeError, r"logits: expected a torch\.Tensor, got NoneType"),
        ((X, PARAMS[0], PARAMS[1][:1], PARAMS[2]), {}, ValueError, r"means: expected .* got \(1, 3, 4\)"),
        ((X, *PARAMS[:2], PARAMS[2][..., 0]), {}, ValueError, r"log_scales: expected shape .* got \(2, 3\)"),
        ((X, *PARAMS[:2], PARAMS[2][..., :3]), {}, ValueError, r"log_scales: expected the 4 comp.* got 3"),
        ((X, *[p[..., :0] for p in PARAMS]), {}, ValueError, r"logits: expected shape .* got \(2, 3, 0\)"),
        ((X, *PARAMS), {"reduction": "mean"}, ValueError, r"reduction: expected one of 'sum', 'none', got"),
        ((X, PARAMS[0].to("meta"), *PARAMS[1:]), {}, ValueError, r"one device, got cpu and meta"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        cdf(*arguments, **options)
