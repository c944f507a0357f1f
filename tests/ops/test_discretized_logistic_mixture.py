import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.contracts import (
    DTYPES,
    HALVES,
    LAYOUTS,
    OPCHECKS,
    Contracts,
    assert_accurate,
    assert_same,
    bounded,
    layouts,
    results,
    signs,
    threads,
)
from scipy import stats

import gmfast.functional as GF
from gmfast import _philox, reference

nll = GF.discretized_logistic_mixture_nll
sample = GF.discretized_logistic_mixture_sample

FORMULATIONS = ["exact", "pixelcnnpp"]
REDUCTIONS = ["none", "batch", "sum", "mean", "bits_per_dim"]


def random_params(shape, channels, mixtures, spread=1.0, seed=0, log_scale=-3.0):
    """What a network gives for images: (B, P, *S) float32, log-scales on both sides of the minimum of -7."""
    batch, *spatial = shape
    generator = torch.Generator().manual_seed(seed)
    params = torch.randn(batch, (3 if channels == 1 else 10) * mixtures, *spatial, generator=generator)
    _, means, log_scales, _ = reference.discretized_logistic_mixture.split_params(params, channels)
    means *= 0.5
    log_scales *= 2 * spread
    log_scales += log_scale
    return params


def random_pixels(shape, channels, num_classes=256, seed=0):
    """Classes' values (B, C, *S), float32."""
    batch, *spatial = shape
    generator = torch.Generator().manual_seed(seed)
    return class_values(num_classes)[
        torch.randint(num_classes, (batch, channels, *spatial), generator=generator)
    ].float()


def class_values(num_classes):
    return torch.arange(num_classes, dtype=torch.float64) * (2 / (num_classes - 1)) - 1


# ---------------------------------------------------------------------------------------------------------
# Likelihood: the contracts
# ---------------------------------------------------------------------------------------------------------


class TestThreeChannels(Contracts):
    conditioned = (1,)
    keeps_layout = False
    # Its compile test differentiates the sum of all outputs, the gradients, which have none, among them.
    opcheck_with_gradients = OPCHECKS[:3]
    headroom = 1e-6  # differences are multiplied by e^7 and added up
    channels, mixtures, formulation = 3, 3, "exact"

    @property
    def block(self):
        return self.mixtures

    def call(self, x, params):
        return nll(x, params, formulation=self.formulation)

    def plain(self, x, params):
        return reference.discretized_logistic_mixture_nll(x, params, formulation=self.formulation)

    def inputs(self, shape, dtype, device):
        x = random_pixels(shape, self.channels)
        params = random_params(shape, self.channels, self.mixtures)
        if len(shape) < 3 and max(shape) < 4:  # gradcheck's step of 1e-6 is not small against e^-7
            params = random_params(shape, self.channels, self.mixtures, spread=0.2, log_scale=-1)
        return [x.to(device, dtype), params.to(device, dtype)]

    def operators(self, x, params):
        pixelcnnpp = self.formulation == "pixelcnnpp"
        nothing = x.detach(), params.detach()
        operator = torch.ops.gmfast.discretized_logistic_mixture_nll.default
        return [
            (operator, (x, params, 256, -7.0, pixelcnnpp, 0, True, True)),
            (operator, (*nothing, 256, -7.0, pixelcnnpp, 1, False, False)),
            (operator, (nothing[0], params, 256, -7.0, pixelcnnpp, 2, False, True)),
        ]


class TestOneChannel(TestThreeChannels):
    channels, mixtures = 1, 5


class TestThreeChannelsPixelcnnpp(TestThreeChannels):
    formulation = "pixelcnnpp"


class TestOneChannelPixelcnnpp(TestOneChannel):
    formulation = "pixelcnnpp"


@pytest.mark.parametrize("params_dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_mixed_dtypes(device, params_dtype, channels):
    """Computed in the wider dtype, at least float32; each gradient in its input's."""
    x = random_pixels((2, 9, 13), channels).to(device)
    params = random_params((2, 9, 13), channels, 4).to(device, params_dtype)
    wide = torch.promote_types(torch.float32, params_dtype)
    mixed = results(nll, [x, params], signs)
    assert [t.dtype for t in mixed] == [wide, torch.float32, params_dtype]
    expected = results(nll, [x.to(wide), params.to(wide)], signs)
    assert_same(mixed, [e.to(m.dtype) for e, m in zip(expected, mixed, strict=True)])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mixtures", [2, 5, 10, 33])
def test_mixtures(device, mixtures, dtype, channels):
    x = random_pixels((2, 30, 31), channels).to(device, dtype)
    params = random_params((2, 30, 31), channels, mixtures).to(device, dtype)
    assert_accurate(nll, reference.discretized_logistic_mixture_nll, [x, params], mixtures)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_component(device, dtype, channels, formulation):
    """Its weight is 1 whatever its logit, so it is that of two equal ones, and the logit has no gradient."""
    x = random_pixels((2, 30, 31), channels).to(device, dtype)
    params = random_params((2, 30, 31), channels, 1).to(device, dtype)
    loss, _, grad = results(lambda x, p: nll(x, p, formulation=formulation), [x, params])
    twice = nll(x, params.repeat_interleave(2, 1), formulation=formulation)
    torch.testing.assert_close(loss, twice, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    assert grad[:, 0].abs().max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_classes", [2, 3, 16, 256, 65536])
def test_num_classes(device, num_classes, dtype, channels):
    def bound(function):
        return lambda x, params: function(x, params, num_classes=num_classes, log_scale_min=-12.0)

    x = random_pixels((2, 30, 31), channels, num_classes).to(device, dtype)
    params = random_params((2, 30, 31), channels, 4).to(device, dtype)
    assert_accurate(bound(nll), bound(reference.discretized_logistic_mixture_nll), [x, params], 4)


@bounded
@given(data=st.data())
def test_any_values(device, data):
    """Any pixel, not only classes' values, under any moderate parameters, against float64."""
    channels = data.draw(st.sampled_from([1, 3]), label="channels")
    mixtures = data.draw(st.integers(1, 4), label="mixtures")
    num_classes = data.draw(st.sampled_from([2, 5, 256, 1000]), label="num_classes")
    width = st.floats(-1, 1, width=16)
    count = (3 if channels == 1 else 10) * mixtures
    pixel = data.draw(st.lists(width, min_size=channels, max_size=channels), label="pixel")
    values = data.draw(st.lists(st.floats(-8, 8, width=16), min_size=count, max_size=count), label="params")
    exact = mp_nll(pixel, values, num_classes)
    for dtype in (torch.float32, torch.float64):
        x, params = (torch.tensor([v], dtype=dtype, device=device) for v in (pixel, values))
        # The standardised edges reach 9 e^7 per colour, and each is rounded a few times.
        scale = 10 + sum(9 * math.exp(min(7, -v)) for v in values)
        error = abs(float(nll(x, params, num_classes=num_classes)) - exact)
        assert error <= torch.finfo(dtype).eps * scale


# ---------------------------------------------------------------------------------------------------------
# Likelihood: independent of the reference
# ---------------------------------------------------------------------------------------------------------


def mp_nll(pixel, params, num_classes=256):
    """Sixty digits, straight from the definition: the mass of a bin is a difference of the CDF."""
    with mpmath.workdps(60):
        values = ([mpmath.mpf(v) for v in numbers] for numbers in (pixel, params))
        return float(mp_nll_exactly(*values, num_classes))


def mp_nll_exactly(pixel, params, num_classes=256, log_scale_min=-7):
    channels = len(pixel)
    mixtures = len(params) // (3 if channels == 1 else 10)
    logits, *blocks = (params[i : i + mixtures] for i in range(0, len(params), mixtures))
    per_colour = len(blocks) // channels  # means, log-scales and, for three, coefficients
    half_bin = mpmath.mpf(1) / (num_classes - 1)

    def probability(value, mean, log_scale):
        """Of the bin around `value`, mirrored where the CDF is near 1, as differences cancel there."""
        if value > mean:
            value, mean = -value, -mean
        inverse = mpmath.exp(-max(log_scale, log_scale_min))
        upper, lower = (
            1 / (1 + mpmath.exp((mean - edge) * inverse)) for edge in (value + half_bin, value - half_bin)
        )
        return (1 if value > 1 - half_bin else upper) - (0 if value < -1 + half_bin else lower)

    total = mpmath.mpf(0)
    for k in range(mixtures):
        mass = mpmath.exp(logits[k])
        for c in range(channels):
            mean, log_scale = blocks[c * per_colour][k], blocks[c * per_colour + 1][k]
            if c == 1:
                mean += mpmath.tanh(blocks[2][k]) * pixel[0]
            if c == 2:
                mean += mpmath.tanh(blocks[5][k]) * pixel[0] + mpmath.tanh(blocks[8][k]) * pixel[1]
            mass *= probability(pixel[c], mean, log_scale)
        total += mass
    return mpmath.log(sum(mpmath.exp(v) for v in logits)) - mpmath.log(total)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_classes", [2, 16, 256, 65536])
def test_value_against_mpmath(device, channels, num_classes):
    x = random_pixels((60,), channels, num_classes).double()
    params = random_params((60,), channels, 3).double()
    rows = zip(x.tolist(), params.tolist(), strict=True)
    exact = torch.tensor([mp_nll(*row, num_classes) for row in rows], dtype=torch.float64)
    for function in (nll, reference.discretized_logistic_mixture_nll):
        loss = function(x.to(device), params.to(device), num_classes=num_classes).cpu()
        # Standardised edges reach 3 e^7, and so does what they round; log-probabilities are of their size.
        torch.testing.assert_close(loss, exact, rtol=1e-14, atol=3e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_gradient_against_mpmath(device, channels):
    """Central differences in sixty digits are exact to double precision."""
    x = random_pixels((6,), channels).double()
    params = random_params((6,), channels, 2).double()
    _, grad_x, grad_params = results(nll, [x.to(device), params.to(device)], torch.ones_like)
    grads = torch.cat([grad_x, grad_params], 1).cpu()
    step = mpmath.mpf(10) ** -20
    with mpmath.workdps(60):
        for row in range(len(x)):
            values = [mpmath.mpf(v) for v in x[row].tolist() + params[row].tolist()]
            for i in range(len(values)):
                up, down = ([*values[:i], values[i] + s, *values[i + 1 :]] for s in (step, -step))
                slope = (
                    mp_nll_exactly(up[:channels], up[channels:])
                    - mp_nll_exactly(down[:channels], down[channels:])
                ) / (2 * step)
                assert grads[row, i].item() == pytest.approx(float(slope), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("num_classes", [2, 3, 16, 256, 65536])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-4)], ids=str)
def test_one_channel_sums_to_one(device, num_classes, dtype, tolerance):
    """The tolerance: probabilities err by the rounding of edges, up to e^7 of their own size."""
    x = class_values(num_classes).to(device, dtype)[None, None]
    for seed in range(4):
        params = random_params((1, 1), 1, 5, seed=seed).to(device, dtype).expand(1, 15, num_classes)
        total = torch.exp(-nll(x, params, num_classes=num_classes).double()).sum().item()
        assert total == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("num_classes", [2, 5, 11])
def test_three_channels_sum_to_one(device, num_classes):
    triples = torch.cartesian_prod(*[class_values(num_classes)] * 3).T[None].to(device)
    for seed in range(4):
        params = random_params((1, 1), 3, 4, seed=seed).double().to(device).expand(1, 40, num_classes**3)
        total = torch.exp(-nll(triples, params, num_classes=num_classes)).sum().item()
        assert total == pytest.approx(1, abs=1e-11)


def published_loss(x, params):
    """As PixelCNN++ states it: 256 classes, channels last, in NumPy."""

    def softplus(v):
        return np.logaddexp(0, v)

    def sigmoid(v):
        return np.exp(-softplus(-v))

    x, rest = np.moveaxis(x, 1, -1), np.moveaxis(params, 1, -1)
    mixtures = rest.shape[-1] // 10
    logits = rest[..., :mixtures]
    rest = rest[..., mixtures:].reshape(*x.shape, 3 * mixtures)
    means, log_scales = rest[..., :mixtures].copy(), np.maximum(rest[..., mixtures : 2 * mixtures], -7)
    coeffs = np.tanh(rest[..., 2 * mixtures :])
    red, green = x[..., 0, None], x[..., 1, None]
    means[..., 1, :] += coeffs[..., 0, :] * red
    means[..., 2, :] += coeffs[..., 1, :] * red + coeffs[..., 2, :] * green
    centred = x[..., None] - means
    inv_stdv = np.exp(-log_scales)
    plus_in, min_in, mid_in = ((centred + shift) * inv_stdv for shift in (1 / 255, -1 / 255, 0))
    cdf_delta = sigmoid(plus_in) - sigmoid(min_in)
    log_probs = np.where(
        x[..., None] < -0.999,
        plus_in - softplus(plus_in),
        np.where(
            x[..., None] > 0.999,
            -softplus(min_in),
            np.where(
                cdf_delta > 1e-5,
                np.log(np.maximum(cdf_delta, 1e-12)),
                mid_in - log_scales - 2 * softplus(mid_in) - np.log(127.5),
            ),
        ),
    )
    joint = log_probs.sum(-2) + logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    return -np.logaddexp.reduce(joint, -1), cdf_delta


def test_pixelcnnpp_is_the_published_formula(device):
    x, params = random_pixels((4, 16, 16), 3).double(), random_params((4, 16, 16), 3, 10).double()
    expected, cdf_delta = published_loss(x.numpy(), params.numpy())
    assert 0.02 < (cdf_delta <= 1e-5).mean() < 0.98  # both branches are taken
    loss = nll(x.to(device), params.to(device), formulation="pixelcnnpp").cpu()
    # Near 1e-5 the difference of two sigmoids has lost five digits.
    torch.testing.assert_close(loss, torch.from_numpy(expected), rtol=1e-13, atol=1e-10)
    exact = nll(x.to(device), params.to(device)).cpu()
    assert 0.1 < (loss - exact).abs().max() < 3 * 2.2  # the two formulations do differ


# ---------------------------------------------------------------------------------------------------------
# Likelihood: reductions, edges, errors
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (3, 17, 65)])
def test_reductions(device, shape, channels, dtype):
    x = random_pixels(shape, channels).to(device, dtype)
    params = random_params(shape, channels, 3).to(device, dtype)
    each, *grads = results(nll, [x, params], torch.ones_like)
    total = each.double().sum()
    expected = {
        "none": each.double(),
        "batch": each.double().flatten(1).sum(1) if len(shape) > 1 else each.double(),
        "sum": total,
        "mean": total / shape[0],
        "bits_per_dim": total / (x.numel() * math.log(2)),
    }
    eps = torch.finfo(each.dtype).eps
    for reduction in REDUCTIONS:
        loss, *reduced_grads = results(
            lambda x, p, r=reduction: nll(x, p, reduction=r), [x, params], torch.ones_like
        )
        # Sums are accumulated in float64 and rounded once; the quotient is rounded once more.
        # float64 itself rounds at every addition.
        error = (loss.double() - expected[reduction]).abs() / expected[reduction].abs()
        assert loss.dtype == each.dtype and loss.shape == expected[reduction].shape
        assert error.max() <= eps * (each.numel() if dtype == torch.float64 else 1)
        factor = expected[reduction].sum() / total
        for ulps, g, one in zip((16, 4), reduced_grads, grads, strict=True):
            # Weights, of size 1, are scaled before they are subtracted from each other, and for x the
            # components' shares before they are added, some of them larger than their sum.
            rounding = ulps * torch.finfo(g.dtype).eps * factor * (one.double().abs() + 1)
            assert ((g.double() - one.double() * factor).abs() <= rounding).all()


def test_reductions_of_nothing(device):
    x, params = torch.zeros(0, 3, 4, device=device), torch.zeros(0, 20, 4, device=device, requires_grad=True)
    assert nll(x, params, reduction="batch").shape == (0,)
    assert nll(x, params, reduction="sum").item() == 0
    for reduction in ("mean", "bits_per_dim"):
        assert nll(x, params, reduction=reduction).isnan()
    nll(x, params, reduction="mean").backward()
    assert params.grad.shape == params.shape


@pytest.mark.parametrize("reduction", ["batch", "sum", "mean"])
def test_reduced_loss_has_the_same_bits_whatever_the_threads(device, reduction):
    inputs = random_pixels((3, 65, 129), 3).to(device), random_params((3, 65, 129), 3, 3).to(device)
    with threads(1):
        expected = nll(*inputs, reduction=reduction)
    for count in (2, 3):
        with threads(count):
            assert torch.equal(nll(*inputs, reduction=reduction), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", [3, 16])
def test_outermost_classes_reach_to_infinity(device, dtype, num_classes):
    """x = ±1, and anything within half a bin of it: log F(-1 + δ), log(1 - F(1 - δ))."""
    half_bin = 1 / (num_classes - 1)
    mean, log_scale = 0.25, -1.5
    params = torch.tensor([0, mean, log_scale], device=device, dtype=dtype).reshape(1, 3, 1)
    logistic = stats.logistic(mean, math.exp(log_scale))
    tolerance = 1e-14 if dtype == torch.float64 else 2e-6
    for distance, inside in ((0.0, True), (0.9, True), (1.1, False)):
        offset = distance * half_bin
        for sign in (-1, 1):
            x = torch.tensor(sign * (1 - offset), device=device, dtype=dtype).reshape(1, 1, 1)
            loss = nll(x, params, num_classes=num_classes).item()
            x = x.item()  # as the dtype rounded it
            if inside:
                log_prob = logistic.logcdf(x + half_bin) if sign < 0 else logistic.logsf(x - half_bin)
            else:
                log_prob = math.log(logistic.cdf(x + half_bin) - logistic.cdf(x - half_bin))
            assert loss == pytest.approx(-log_prob, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("log_scale_min", [-7.0, -3.0])
def test_log_scale_minimum(device, dtype, formulation, log_scale_min):
    """Below: the value at the minimum and no gradient. At it: the gradient that the clamp lets through."""
    log_scales = torch.tensor([log_scale_min - 1e4, log_scale_min - 0.5, log_scale_min, log_scale_min + 0.5])
    params = torch.stack([torch.zeros(4), torch.full((4,), 0.125), log_scales])[None].to(device, dtype)
    x = torch.full((1, 1, 4), 0.1328125, device=device, dtype=dtype)
    loss, _, grad = results(
        lambda x, p: nll(x, p, log_scale_min=log_scale_min, formulation=formulation),
        [x, params],
        torch.ones_like,
    )
    assert (loss[0, :3] == loss[0, 2]).all() and loss[0, 3] != loss[0, 2]
    by_mean, by_log_scale = grad[0, 1], grad[0, 2]
    assert (by_mean[:3] == by_mean[2]).all() and by_mean[2] != 0
    assert (by_log_scale[:2] == 0).all() and (by_log_scale[2:] != 0).all()
    expected = torch.autograd.functional.jacobian(
        lambda p: reference.discretized_logistic_mixture_nll(
            x.double(), p, log_scale_min=log_scale_min, formulation=formulation
        ).sum(),
        params.double(),
    )[0, 2, 2]
    # The difference of sigmoids cancels in pixelcnnpp, a few hundred times.
    rounding = torch.finfo(dtype).eps if formulation == "exact" else max(1e-4, torch.finfo(dtype).eps)
    assert by_log_scale[2].item() == pytest.approx(expected.item(), rel=8 * rounding)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_at_extreme_parameters(device, dtype, channels):
    """Parameters of ±1e4: not finite only, but right."""
    x = random_pixels((1, 2000), channels).to(device, dtype)
    params = random_params((1, 2000), channels, 2)
    extreme = torch.randint(3, params.shape, generator=torch.Generator().manual_seed(7))
    params = torch.where(extreme == 0, -1e4, torch.where(extreme == 1, 1e4, params)).to(device, dtype)
    exact = reference.discretized_logistic_mixture_nll(x.double(), params.double())
    loss = nll(x, params)
    # What rounds: parameters of 1e4, means standardised by up to e^7, and the loss itself.
    eps = torch.finfo(loss.dtype).eps
    error = (loss.double() - exact).abs()
    assert (error <= eps * (2e3 * 10 + 4 * exact)).all(), error.max()


@pytest.mark.parametrize("log_scale_min", [-20.0, -7.0])
@pytest.mark.parametrize("num_classes", [2, 256, 65536, 2**24])
@pytest.mark.parametrize("channels", [1, 3])
def test_finite_over_the_documented_domain(device, channels, num_classes, log_scale_min):
    params = random_params((1, 1000), channels, 3, spread=8, log_scale=0).to(device)
    for dtype in (torch.float32, torch.float64):
        for x in (random_pixels((1, 1000), channels, num_classes), torch.ones(1, channels, 1000)):
            for formulation in FORMULATIONS:
                for tensor in results(
                    lambda x, p, f=formulation: nll(
                        x, p, num_classes=num_classes, log_scale_min=log_scale_min, formulation=f
                    ),
                    [x.to(device, dtype), params.to(dtype)],
                ):
                    assert tensor.isfinite().all()


def test_operator_itself(device):
    """It computes a gradient that was not asked for in backward, and leaves the outputs as they were."""
    x, params = torch.zeros(1, 1, device=device), torch.zeros(1, 3, device=device, requires_grad=True)
    (expected,) = torch.autograd.grad(3 * nll(x, params).sum(), params)
    for wanted in (False, True):
        loss, _, grad = torch.ops.gmfast.discretized_logistic_mixture_nll(
            x, params, 256, -7.0, False, 0, False, wanted
        )
        before = grad.clone()
        torch.testing.assert_close(torch.autograd.grad(3 * loss.sum(), params)[0], expected)
        assert torch.equal(grad, before) and grad.numel() == wanted * 3


@pytest.mark.parametrize("channels", [1, 3])
def test_float16_gradient_is_scaled_before_it_is_rounded(device, channels):
    """Gradients beyond 65504 and below 6e-8 occur on the way to ordinary ones."""
    x = torch.zeros(16, channels, 16, 16, device=device)
    params = random_params((16, 16, 16), channels, 1).to(device)
    params[:, 1] = 300.0
    leaf = params.half().requires_grad_()
    exact = leaf.detach().double().requires_grad_()
    for scale in (1.0, 1e-4, 0.0, 1024.0):
        (grad,) = torch.autograd.grad(scale * nll(x, leaf, reduction="bits_per_dim"), leaf)
        plain = reference.discretized_logistic_mixture_nll(x.double(), exact, reduction="bits_per_dim")
        (truth,) = torch.autograd.grad(scale * plain, exact)
        assert grad.dtype == torch.float16
        torch.testing.assert_close(grad, truth.half(), rtol=4e-3, atol=1e-7)


@pytest.mark.parametrize("value", [1.0, 2.0])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gradient_by_the_incoming_gradient(device, reduction, value):
    """Linear in it, whatever the value, and differentiable again by it and by `params`."""
    params = random_params((2, 5), 1, 2).to(device).requires_grad_()
    x = random_pixels((2, 5), 1).to(device)
    weight = torch.tensor(value, device=device, requires_grad=True)
    loss = nll(x, params, reduction=reduction)
    (grad,) = torch.autograd.grad((weight * loss).sum(), params, create_graph=True)
    (by_weight,) = torch.autograd.grad(grad.square().sum() / 2, weight, retain_graph=True)
    torch.testing.assert_close(by_weight, grad.detach().square().sum() / value)
    (again,) = torch.autograd.grad(grad.square().sum(), params)
    plain = reference.discretized_logistic_mixture_nll(x, params, reduction=reduction)
    (grad,) = torch.autograd.grad((weight * plain).sum(), params, create_graph=True)
    torch.testing.assert_close(again, torch.autograd.grad(grad.square().sum(), params)[0])


def test_returned_gradients_are_the_callers(device):
    """Changing one in place changes no other, nor what a retained graph gives the next time."""
    params = random_params((2, 5), 1, 2).to(device).requires_grad_()
    loss = nll(random_pixels((2, 5), 1).to(device), params, reduction="sum")
    (first,) = torch.autograd.grad(loss, params, retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, params, retain_graph=True)
    assert_same([second], [kept])
    loss.backward(retain_graph=True)
    params.grad.zero_()
    loss.backward()
    assert_same([params.grad], [kept])


ONE, THREE = torch.zeros(2, 1, 4), torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    "x, params, options, error, message",
    [
        ([0.0], THREE, {}, TypeError, r"x: expected a torch\.Tensor, got list"),
        (ONE, [0.0], {}, TypeError, r"params: expected a torch\.Tensor, got list"),
        (ONE.int(), THREE, {}, TypeError, r"x: expected float32, .* got int32"),
        (ONE, THREE.long(), {}, TypeError, r"params: expected float32, .* got int64"),
        (torch.zeros(3), THREE, {}, ValueError, r"x: .* \(B, 1, \*S\) or \(B, 3, \*S\), got \(3,\)"),
        (torch.zeros(2, 2, 4), THREE, {}, ValueError, r"x: expected shape .* got \(2, 2, 4\)"),
        (ONE, torch.zeros(3), {}, ValueError, r"params: expected shape \(B, 3\*K, \*S\), got \(3,\)"),
        (ONE, torch.zeros(2, 4, 4), {}, ValueError, r"params: expected 3\*K channels for 1-channel x, got 4"),
        (ONE, torch.zeros(2, 0, 4), {}, ValueError, r"params: expected 3\*K channels for 1-channel x, got 0"),
        (THREE, torch.zeros(2, 97, 4), {}, ValueError, r"params: expected 10\*K channels .* got 97"),
        (ONE, torch.zeros(3, 3, 4), {}, ValueError, r"params: .* sizes of x \(2, 1, 4\), got \(3, 3, 4\)"),
        (ONE, torch.zeros(2, 3, 5), {}, ValueError, r"params: .* sizes of x \(2, 1, 4\), got \(2, 3, 5\)"),
        (ONE, torch.zeros(2, 3), {}, ValueError, r"params: .* sizes of x \(2, 1, 4\), got \(2, 3\)"),
        (ONE, torch.zeros(1, 3, 4), {}, ValueError, r"params: .* sizes of x \(2, 1, 4\), got \(1, 3, 4\)"),
        (ONE, THREE.to("meta"), {}, ValueError, r"expected all tensors on one device, got cpu and meta"),
        (ONE, THREE, {"num_classes": 1}, ValueError, r"num_classes: expected 2 to 2\*\*24, got 1"),
        (ONE, THREE, {"num_classes": 2**24 + 1}, ValueError, r"num_classes: expected 2 .*, got 16777217"),
        (ONE, THREE, {"num_classes": 256.0}, TypeError, r"num_classes: expected an int, got float"),
        (ONE, THREE, {"num_classes": True}, TypeError, r"num_classes: expected an int, got bool"),
        (ONE, THREE, {"log_scale_min": -20.5}, ValueError, r"log_scale_min: expected a number .* got -20\.5"),
        (ONE, THREE, {"log_scale_min": math.nan}, ValueError, r"log_scale_min: expected a number .* got nan"),
        (ONE, THREE, {"log_scale_min": "low"}, TypeError, r"log_scale_min: expected a number, got str"),
        (ONE, THREE, {"formulation": "tanh"}, ValueError, r"formulation: .*'pixelcnnpp', got 'tanh'"),
        (ONE, THREE, {"reduction": "average"}, ValueError, r"reduction: .*'bits_per_dim', got 'average'"),
        (ONE, THREE, {"reduction": None}, ValueError, r"reduction: .*'bits_per_dim', got None"),
    ],
)  # fmt: skip
def test_bad_arguments(x, params, options, error, message):
    with pytest.raises(error, match=message):
        nll(x, params, **options)


# ---------------------------------------------------------------------------------------------------------
# Sampler
# ---------------------------------------------------------------------------------------------------------


def plain_sample(params, **options):
    seed = options.pop("seed")
    seed = torch.tensor((seed + 2**63) % 2**64 - 2**63, device=params.device)
    return reference.discretized_logistic_mixture_sample(params, seed=seed, **options)


def sample_by_hand(params, channels, seed, num_classes, log_scale_min=-7.0, temperature=1.0, single=True):
    """In NumPy's float64 from the same uniform numbers: x, and each pixel's distance to another outcome.

    The distance is the smallest, over the choice of the component (in probability) and the rounding of
    each colour (in x), by which a draw would have had to differ.
    """
    batch, count, pixels = params.shape
    mixtures = count // (3 if channels == 1 else 10)
    dtype = torch.float32 if single else torch.float64
    u = _philox.uniform(torch.tensor(seed), batch, (pixels,), 1 + channels, dtype, "cpu").double().numpy()
    p = params.double().cpu().numpy()
    x, margin = np.zeros((batch, channels, pixels)), np.full((batch, pixels), np.inf)
    for b, i in itertools.product(range(batch), range(pixels)):
        logits, rest = p[b, :mixtures, i], p[b, mixtures:, i].reshape(channels, -1, mixtures)
        weights = np.exp((logits - logits.max()) / temperature)
        edges = np.cumsum(weights) / weights.sum()
        k = min(int(np.searchsorted(edges, u[b, 0, i], side="right")), mixtures - 1)
        if mixtures > 1:
            margin[b, i] = np.abs(edges[:-1] - u[b, 0, i]).min()
        for c in range(channels):
            mean = rest[c, 0, k]
            if c == 1:
                mean += np.tanh(rest[0, 2, k]) * x[b, 0, i]
            if c == 2:
                mean += np.tanh(rest[1, 2, k]) * x[b, 0, i] + np.tanh(rest[2, 2, k]) * x[b, 1, i]
            scale = np.exp(max(rest[c, 1, k], log_scale_min)) * temperature
            value = np.clip(stats.logistic.ppf(u[b, 1 + c, i], mean, scale), -1, 1)
            place = (value + 1) * (num_classes - 1) / 2
            margin[b, i] = min(margin[b, i], abs(place - np.floor(place) - 0.5) * 2 / (num_classes - 1))
            x[b, c, i] = np.rint(place) * 2 / (num_classes - 1) - 1
    return torch.from_numpy(x), torch.from_numpy(margin)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", [2, 16, 256])
def test_sample_by_hand(device, dtype, channels, num_classes):
    """The same class everywhere but where rounding may tip the scales, which is rare."""
    params = random_params((3, 400), channels, 5).to(device, dtype)
    double = dtype == torch.float64
    x = sample(params, channels=channels, num_classes=num_classes, seed=11)
    assert x.dtype == (torch.float64 if double else torch.float32) and x.shape == (3, channels, 400)
    expected, margin = sample_by_hand(params, channels, 11, num_classes, single=not double)
    clear = margin > (1e-13 if double else 1e-5)
    assert clear.double().mean() > 0.99
    error = (x.double().cpu() - expected).abs().amax(1)
    assert error[clear].max() <= 2 * torch.finfo(x.dtype).eps
    for class_of in (x, expected):
        place = (class_of.double() + 1) * (num_classes - 1) / 2
        assert (place - place.round()).abs().max() <= num_classes * torch.finfo(x.dtype).eps
    assert x.min() >= -1 and x.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_sample_against_the_reference(device, dtype, channels, temperature):
    """Without rounding to classes, values agree to rounding; a component chosen otherwise is rare."""
    params = random_params((4, 30, 31), channels, 5).to(device, dtype)
    options = {"channels": channels, "quantize": False, "temperature": temperature, "seed": -5}
    x, expected = sample(params, **options), plain_sample(params, **options)
    assert x.dtype == expected.dtype
    error = (x - expected).abs().amax(1)
    # Means and noise, of a few units, are rounded a few times each.
    assert (error > 32 * torch.finfo(x.dtype).eps).double().mean() <= (0 if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_sample_of_every_layout(device, layout, dtype):
    for channels in (1, 3):
        params = random_params((3, 5, 19), channels, 4).to(device, dtype)
        laid_out = LAYOUTS[layout](params)
        assert_same(
            [sample(laid_out, channels=channels, seed=3)], [sample(params, channels=channels, seed=3)]
        )
        assert_same([laid_out.contiguous()], [params])


@bounded
@given(data=st.data())
def test_sample_of_any_layout(device, data):
    shape = data.draw(st.lists(st.integers(0, 18), max_size=3).map(tuple), label="spatial")
    params = random_params((data.draw(st.integers(0, 3), label="batch"), *shape), 3, 2).to(device)
    laid_out = data.draw(layouts(params.dim()))(params)
    x = sample(laid_out, seed=1)
    assert x.shape == (params.shape[0], 3, *shape)
    assert_same([x], [sample(params, seed=1)])


def test_sample_is_keyed_by_sample_and_position(device):
    params = random_params((1, 1), 3, 4).to(device).expand(5, 40, 1134)
    whole = sample(params, seed=7)
    for batch in range(5):
        assert_same([sample(params[:batch], seed=7)], [whole[:batch]])
    for size in (1, 15, 16, 17, 63, 64, 65, 129):
        assert_same([sample(params[..., :size], seed=7)], [whole[..., :size]])
    assert_same([sample(params.unflatten(2, (2, 27, 21)), seed=7)], [whole.unflatten(2, (2, 27, 21))])
    for count in (1, 2, 3):
        with threads(count):
            assert_same([sample(params, seed=7)], [whole])
    # Equal parameters, yet no two samples or seeds alike.
    images = [*whole, *sample(params, seed=8)]
    assert all((a != b).double().mean() > 0.5 for a, b in itertools.combinations(images, 2))


def test_seeds(device):
    params = random_params((2, 300), 3, 3).to(device)

    def drawn(seed):
        return sample(params, seed=seed)

    for seed in (0, 1, -1, 2**31, 2**32 + 1, 2**63 - 1, 2**63, -(2**63), 2**64 - 1):
        wrapped = (seed + 2**63) % 2**64 - 2**63
        assert torch.equal(drawn(seed), drawn(torch.tensor(wrapped, device=device)))
        assert torch.equal(drawn(seed), drawn(torch.tensor([wrapped], device=device)))
    assert torch.equal(drawn(2**63), drawn(-(2**63)))
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(ValueError, match=f"seed: expected an int from .*, got {seed}"):
            drawn(seed)
    # Every word of the seed counts.
    distinct = [drawn(seed) for seed in (0, 1, 2**31, 2**32, 2**63)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(distinct, 2))

    generator = torch.Generator(device).manual_seed(4)
    first, second = drawn(generator), drawn(generator)
    assert not torch.equal(first, second)
    generator.manual_seed(4)
    assert torch.equal(drawn(generator), first)
    assert torch.equal(drawn(torch.Generator().manual_seed(4)), drawn(torch.Generator().manual_seed(4)))

    torch.manual_seed(9)
    first, second = drawn(None), drawn(None)
    torch.manual_seed(9)
    assert torch.equal(drawn(None), first) and not torch.equal(first, second)


def chi_square(counts, probabilities):
    """The p-value of `counts`, classes expected fewer than 5 times taken together."""
    expected = probabilities / probabilities.sum() * counts.sum()
    rare = expected < 5
    pairs = [(c, e) for c, e in zip(counts[~rare], expected[~rare], strict=True)]
    if expected[rare].sum() > 5:
        pairs.append((counts[rare].sum(), expected[rare].sum()))
    observed, expected = np.array(pairs).T
    return stats.chi2.sf((((observed - expected) ** 2) / expected).sum(), len(observed) - 1)


def class_index(x, num_classes):
    return torch.round((x.double() + 1) * ((num_classes - 1) / 2)).long()


# A sampler that is right fails a test of this level for one seed in ten thousand; these seeds pass.
LEVEL = 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("num_classes", [2, 16, 256])
@pytest.mark.parametrize("mixtures", [1, 5])
def test_frequencies_of_one_channel(device, dtype, num_classes, mixtures):
    draws = 200_000
    params = random_params((1, 1), 1, mixtures, seed=3).to(device, dtype)
    x = sample(params.expand(-1, -1, draws), channels=1, num_classes=num_classes, seed=5)
    counts = torch.bincount(class_index(x, num_classes).flatten().cpu(), minlength=num_classes).numpy()
    classes = class_values(num_classes).to(device)[None, None]
    loss = nll(classes, params.double().expand(-1, -1, num_classes), num_classes=num_classes)
    probabilities = torch.exp(-loss).flatten().cpu().numpy()
    assert (counts > 0).sum() >= min(num_classes, 10)
    assert chi_square(counts, probabilities) > LEVEL


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_classes, across", [(2, "positions"), (4, "positions"), (4, "samples")])
def test_frequencies_of_three_channels(device, dtype, num_classes, across):
    """Over all triples, so that the coupling of colours and the component they share are seen."""
    draws = 200_000
    params = random_params((1, 1), 3, 3, seed=1, log_scale=-1, spread=0.5).to(device, dtype)
    many = params.expand(-1, -1, draws) if across == "positions" else params.expand(draws, -1, -1)
    red, green, blue = class_index(sample(many, num_classes=num_classes, seed=5), num_classes).unbind(1)
    index = ((red * num_classes + green) * num_classes + blue).flatten().cpu()
    counts = torch.bincount(index, minlength=num_classes**3).numpy()
    triples = torch.cartesian_prod(*[class_values(num_classes)] * 3).T[None].to(device)
    loss = nll(triples, params.double().expand(-1, -1, num_classes**3), num_classes=num_classes)
    assert chi_square(counts, torch.exp(-loss).flatten().cpu().numpy()) > LEVEL


def test_draws_are_independent(device):
    """Neighbours in position, in the batch, in colour and in seed are uncorrelated."""
    params = torch.zeros(400, 10, 500, device=device)  # one logistic a colour, no coupling
    params[:, [2, 5, 8]] = -3.0
    x = sample(params, quantize=False, seed=2).double()
    y = sample(params, quantize=False, seed=3).double()
    pairs = {
        "position": (x[:, :, 1:], x[:, :, :-1]),
        "sample": (x[1:], x[:-1]),
        "colour": (x[:, 1:], x[:, :-1]),
        "seed": (x, y),
    }
    for name, (a, b) in pairs.items():
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
        # A correlation of n independent pairs has standard deviation 1/sqrt(n).
        assert abs(correlation) < 4 / math.sqrt(a.numel()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mean, log_scale", [(0.0, -3.0), (0.8, -1.5), (-0.3, 1.0)])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_continuous_samples_follow_the_clamped_logistic(device, dtype, mean, log_scale, temperature):
    """Kolmogorov-Smirnov; atoms at ±1 only make the test milder."""
    draws = 100_000
    params = torch.tensor([0.0, mean, log_scale], dtype=dtype, device=device)[None, :, None].expand(
        -1, -1, draws
    )
    x = sample(params, channels=1, quantize=False, temperature=temperature, seed=1).flatten().cpu().double()
    x = np.sort(x.numpy())
    assert x[0] >= -1 and x[-1] <= 1
    cdf = stats.logistic.cdf(x, params[0, 1, 0].item(), math.exp(log_scale) * temperature)
    rank = np.arange(1, draws + 1) / draws
    interior = (x > -1) & (x < 1)
    distance = max(np.abs(rank - cdf)[interior].max(), np.abs(rank - 1 / draws - cdf)[interior].max())
    assert interior.mean() > 0.1
    assert distance < math.sqrt(-math.log(LEVEL / 2) / 2 / draws)


def test_temperature(device):
    """Noise is proportional to it; at 0 the mean of the most probable component is left."""
    params = torch.zeros(2, 3, 500, device=device, dtype=torch.float64)
    params[:, 1], params[:, 2] = 0.125, -5.0
    options = {"channels": 1, "quantize": False, "seed": 6}
    noise = sample(params, **options) - 0.125
    for temperature in (0.0, 0.25, 0.5, 2.0):
        spread = sample(params, temperature=temperature, **options) - 0.125
        torch.testing.assert_close(spread, temperature * noise, rtol=1e-9, atol=1e-15)
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(3) * math.exp(-5), rel=0.1)

    params = random_params((2, 300), 3, 4).to(device)
    x = sample(params, temperature=0.0, quantize=False, seed=1)
    assert torch.equal(x, sample(params, temperature=0.0, quantize=False, seed=2))
    best = params[:, :4].argmax(1)[:, None, None].expand(-1, 9, -1, -1)
    mean = params[:, 4:].unflatten(1, (9, 4)).gather(2, best).squeeze(2)  # R, G, B × mean, log-scale, coeff
    red = mean[:, 0].clamp(-1, 1)
    green = (mean[:, 3] + mean[:, 2].tanh() * red).clamp(-1, 1)
    blue = (mean[:, 6] + mean[:, 5].tanh() * red + mean[:, 8].tanh() * green).clamp(-1, 1)
    torch.testing.assert_close(x, torch.stack([red, green, blue], 1), rtol=0, atol=1e-6)


def test_temperature_picks_components(device):
    """Logits divided by the temperature: the share of the first of two components is σ(logit / T)."""
    draws = 100_000
    params = torch.tensor([[0.5, 0.0, 0.75, -0.75, -9.0, -9.0]], device=device)[..., None].expand(
        -1, -1, draws
    )
    for temperature in (0.25, 1.0, 4.0):
        x = sample(params, channels=1, temperature=temperature, seed=1)
        share = (x > 0).double().mean().item()
        expected = 1 / (1 + math.exp(-0.5 / temperature))
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / draws)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sample_at_extreme_parameters(device, dtype):
    values = torch.tensor([-1e4, 0, 1e4], dtype=dtype)
    for channels in (1, 3):
        shape = random_params((2, 500), channels, 3).shape
        params = values[torch.randint(3, shape, generator=torch.Generator().manual_seed(1))].to(device)
        for temperature in (0.0, 1e-6, 1.0, 1e4):
            for quantize in (True, False):
                x = sample(params, channels=channels, temperature=temperature, quantize=quantize, seed=0)
                assert x.isfinite().all() and x.abs().max() <= 1
    # Below the minimum a log-scale is the minimum.
    low = random_params((2, 500), 1, 1, log_scale=-30, spread=0.1).to(device)
    raised = low.clone()
    raised[:, 2] = -7
    assert_same([sample(low, channels=1, seed=1)], [sample(raised, channels=1, seed=1)])


def test_sample_has_no_gradient(device):
    params = random_params((2, 9), 3, 2).to(device).requires_grad_()
    x = sample(params, seed=1)
    assert not x.requires_grad
    with torch.inference_mode():
        assert torch.equal(sample(params, seed=1), x)


@pytest.mark.parametrize("shape", [(0,), (0, 4, 5), (2, 0), (2, 3, 0)])
def test_sample_of_nothing(device, shape):
    assert sample(random_params(shape, 3, 2).to(device), seed=1).shape == (shape[0], 3, *shape[1:])


@pytest.mark.parametrize("spatial", [(), (1,), (60,), (12, 5), (3, 4, 5)])
def test_sample_in_any_number_of_spatial_dimensions(device, spatial):
    params = random_params((2, math.prod(spatial)), 3, 2).to(device)
    x = sample(params.reshape(2, 20, *spatial), seed=1)
    assert_same([x], [sample(params, seed=1).reshape(2, 3, *spatial)])


def test_torch_opcheck_of_sample(device):
    params = random_params((2, 5, 7), 3, 2).to(device)
    seed = torch.tensor(3, device=device)
    for p in (params, LAYOUTS["channels_last"](params)):
        arguments = (p, seed, 3, 256, -7.0, 1.0, True)
        torch.library.opcheck(torch.ops.gmfast.discretized_logistic_mixture_sample.default, arguments)


def test_torch_compile_of_sample(device):
    """With seeds of every kind that a graph can hold; a new seed gives new noise."""
    torch._dynamo.reset()
    params = random_params((2, 5, 7), 3, 2).to(device)
    compiled = torch.compile(lambda p, seed: sample(p + 0.5, seed=seed), fullgraph=True, backend="aot_eager")
    for seed in (1, 2, 3, -4, 2**62 + 1):
        assert torch.equal(compiled(params, seed), sample(params + 0.5, seed=seed))
        tensor = torch.tensor(seed, device=device)
        assert torch.equal(compiled(params, tensor), sample(params + 0.5, seed=seed))
    assert not torch.equal(compiled(params, None), compiled(params, None))


def test_torch_export_of_sample(device):
    class Module(torch.nn.Module):
        def forward(self, params, seed):
            return sample(params, seed=seed)

    params = random_params((2, 5, 7), 3, 2).to(device)
    program = torch.export.export(Module(), (params, torch.tensor(1, device=device)))
    for seed in (1, 2):
        x = program.module()(params, torch.tensor(seed, device=device))
        assert torch.equal(x, sample(params, seed=seed))


PARAMS = torch.zeros(2, 30, 4)


@pytest.mark.parametrize(
    "params, options, error, message",
    [
        ([0.0], {}, TypeError, r"params: expected a torch\.Tensor, got list"),
        (PARAMS.int(), {}, TypeError, r"params: expected float32, .* got int32"),
        (PARAMS, {"channels": 2}, ValueError, r"channels: expected one of 1, 3, got 2"),
        (torch.zeros(30), {}, ValueError, r"params: expected shape \(B, 10\*K, \*S\), got \(30,\)"),
        (torch.zeros(2, 31), {}, ValueError, r"params: expected 10\*K channels for 3-channel x, got 31"),
        (torch.zeros(2, 31), {"channels": 1}, ValueError, r"params: expected 3\*K channels .* got 31"),
        (PARAMS, {"num_classes": 0}, ValueError, r"num_classes: expected 2 to 2\*\*24, got 0"),
        (PARAMS, {"num_classes": "256"}, TypeError, r"num_classes: expected an int, got str"),
        (PARAMS, {"log_scale_min": -21}, ValueError, r"log_scale_min: expected a number in .* got -21"),
        (PARAMS, {"temperature": -1.0}, ValueError, r"temperature: .* number in \[0, 1e\+30\], got -1\.0"),
        (PARAMS, {"temperature": math.inf}, ValueError, r"temperature: .* number in \[0, 1e\+30\], got inf"),
        (PARAMS, {"temperature": math.nan}, ValueError, r"temperature: .* number in \[0, 1e\+30\], got nan"),
        (PARAMS, {"temperature": "hot"}, TypeError, r"temperature: expected a number, got str"),
        (PARAMS, {"seed": 1.0}, TypeError, r"seed: expected an int, an int64 tensor, .* got float"),
        (PARAMS, {"seed": True}, TypeError, r"seed: expected an int, an int64 tensor, .* got bool"),
        (PARAMS, {"seed": torch.tensor([1, 2])}, ValueError, r"seed: .* tensor of one element, got \(2,\)"),
        (PARAMS, {"seed": torch.tensor(1, device="meta")}, ValueError, r"seed: .* on cpu, got one on meta"),
    ],
)  # fmt: skip
def test_bad_arguments_of_sample(params, options, error, message):
    with pytest.raises(error, match=message):
        sample(params, **options)


def test_seed_of_another_dtype_is_a_type_error():
    with pytest.raises(TypeError, match=r"seed: expected an int64 tensor, got int32"):
        sample(PARAMS, seed=torch.tensor(1, dtype=torch.int32))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_sample_of_halves_is_that_of_float32(device, dtype):
    params = random_params((2, 300), 3, 3).to(device, dtype)
    assert_same([sample(params, seed=1)], [sample(params.float(), seed=1)])
