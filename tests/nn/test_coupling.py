import copy

import pytest
import torch
from nn.transform_contracts import Conditioner, Contracts
from torch import nn

import gmfast.functional as GF
from gmfast.nn import AffineCoupling, LogisticMixtureCoupling, Permute, Sequential, SplineCoupling
from gmfast.nn.spline import SplineFunction

CHECKERBOARD = (torch.arange(3)[:, None] + torch.arange(2)) % 2

#: Rounding of a result comes back larger where the transform is flat.
STEEP = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


class TestAffine(Contracts):
    shape = (5, 2, 2)

    def build(self):
        return AffineCoupling(Conditioner(3, 4))


@pytest.mark.filterwarnings("ignore:.*functorch transform.*")
class TestAffineOfGlow(Contracts):
    shape, context_shape = (4, 3), (2,)

    def build(self):
        conditioner = Conditioner(1, 6, context=2)
        return AffineCoupling(
            conditioner, scale_map="sigmoid", shift_first=True, interleaved=True, transformed=3
        )


class TestAdditive(Contracts):
    shape, keeps_volume = (6,), True

    def build(self):
        return AffineCoupling(Conditioner(3, 3), additive=True)


class TestAffineCheckerboard(Contracts):
    shape = (2, 3, 2)

    def build(self):
        return AffineCoupling(Conditioner(2, 4), scale_map="tanh", mask=CHECKERBOARD)


class TestSpline(Contracts):
    shape = (3, 2, 2)

    def build(self):
        return SplineCoupling(Conditioner(2, 11, scale=0.5), num_bins=4, bound=2.0)


class TestSplineCheckerboard(Contracts):
    shape, context_shape = (2, 3, 2), (2,)

    def build(self):
        return SplineCoupling(Conditioner(2, 22, context=2, scale=0.5), num_bins=4, mask=CHECKERBOARD)


class TestLogisticMixture(Contracts):
    shape = (3, 2, 2)
    round_trip = STEEP

    def build(self):
        return LogisticMixtureCoupling(Conditioner(2, 11, scale=0.5), num_components=3)


class TestLogisticMixtureCheckerboard(Contracts):
    shape = (2, 3, 2)
    round_trip = STEEP

    def build(self):
        return LogisticMixtureCoupling(Conditioner(2, 22, scale=0.5), num_components=3, mask=CHECKERBOARD)


class Fixed(nn.Module):
    """A conditioner with one answer, and a memory of what it saw."""

    def __init__(self, params):
        super().__init__()
        self.params = params

    def forward(self, x):
        self.saw = x
        return self.params


def test_affine_layouts():
    x, params = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    shift, scale = params.chunk(2, 1)
    coupling = AffineCoupling(Fixed(params), scale_map="atan", clamp=1.5)
    expected = GF.affine_coupling(x, shift, scale, scale_map="atan", clamp=1.5)
    for a, e in zip(coupling(x), expected, strict=True):
        assert torch.equal(a, e)
    assert torch.equal(coupling.conditioner.saw, x[:, :3])
    interleaved = torch.stack([shift, scale], 2).flatten(1, 2)
    coupling = AffineCoupling(Fixed(interleaved), scale_map="atan", clamp=1.5, interleaved=True)
    for a, e in zip(coupling(x), expected, strict=True):
        assert torch.equal(a, e)


def test_spline_layout():
    """Channel c·num_params + p of the conditioner's result is parameter p of transformed channel c."""
    x, params = torch.randn(2, 4, 3), torch.randn(2, 2 * 11, 3)
    y, log_det = SplineCoupling(Fixed(params), num_bins=4, bound=2.0)(x)
    elements = params.view(2, 2, 11, 3).movedim(2, -1)
    tail, expected = GF.rational_quadratic_spline(x[:, 2:], *elements.split([4, 4, 3], -1), bound=2.0)
    assert torch.equal(y[:, :2], x[:, :2])
    torch.testing.assert_close(y[:, 2:], tail)
    torch.testing.assert_close(log_det, expected)


def test_logistic_mixture_layout():
    x, params = torch.randn(2, 4, 3), torch.randn(2, 2 * 8, 3)
    y, log_det = LogisticMixtureCoupling(Fixed(params), num_components=2)(x)
    elements = params.view(2, 2, 8, 3).movedim(2, -1)
    shift, scale, *mixture = elements.split([1, 1, 2, 2, 2], -1)
    tail, expected = GF.logistic_mixture_cdf(x[:, 2:], *mixture)
    scale = 2 * torch.tanh(scale[..., 0] / 2)
    torch.testing.assert_close(y[:, 2:], tail * scale.exp() + shift[..., 0])
    torch.testing.assert_close(log_det, expected + scale.flatten(1).sum(1))


@pytest.mark.parametrize("kind", [AffineCoupling, SplineCoupling, LogisticMixtureCoupling])
def test_masks(kind):
    """Where the mask is 1 elements pass, to the bit, and the conditioner sees only those."""
    numbers = {AffineCoupling: 2, SplineCoupling: 23, LogisticMixtureCoupling: 98}[kind]
    coupling = kind(Fixed(torch.randn(4, 2 * numbers, 3, 2)), mask=CHECKERBOARD)
    x = torch.randn(4, 2, 3, 2)
    y, _ = coupling(x)
    passed = CHECKERBOARD.bool().expand(4, 2, 3, 2)
    assert torch.equal(y[passed], x[passed]) and (y[~passed] != x[~passed]).all()
    assert torch.equal(coupling.conditioner.saw, torch.where(passed, x, 0.0))


def test_errors():
    with pytest.raises(ValueError, match="transformed: expected None with a mask, got 1"):
        AffineCoupling(nn.Identity(), transformed=1, mask=CHECKERBOARD)
    with pytest.raises(
        ValueError, match=r"conditioner: expected 2 numbers for each .* \(3, 4\), got \(3, 2\)"
    ):
        AffineCoupling(nn.Identity())(torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"x: expected at least 2 channels to transform 1 of them, got 1"):
        AffineCoupling(nn.Identity())(torch.randn(3, 1))
    with pytest.raises(ValueError, match=r"x: expected \(B, C, \*S\), got \(3,\)"):
        AffineCoupling(nn.Identity())(torch.randn(3))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AffineCoupling, {"scale_map": "softplus"}, r"scale_map: expected one of 'exp', .*, got 'softplus'"),
        (AffineCoupling, {"clamp": 0}, r"clamp: expected a number in \[0.001, 80\], got 0"),
        (AffineCoupling, {"transformed": 0}, "transformed: expected at least 1, got 0"),
        (SplineCoupling, {"num_bins": 0}, "num_bins: expected at least 1, got 0"),
        (SplineCoupling, {"bound": -1}, "bound: expected a number in .*, got -1"),
        (
            SplineCoupling,
            {"min_bin_width": 0.2},
            r"min_bin_width: expected a number in \[0, 0.125\], got 0.2",
        ),
        (SplineCoupling, {"min_derivative": -1.0}, "min_derivative: expected a number in .*, got -1.0"),
        (LogisticMixtureCoupling, {"num_components": 0}, "num_components: expected at least 1, got 0"),
        (LogisticMixtureCoupling, {"scale_map": "no"}, "scale_map: expected one of .*, got 'no'"),
        (LogisticMixtureCoupling, {"clamp": 100}, "clamp: expected a number in .*, got 100"),
    ],
)
def test_options_are_checked_at_once(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(nn.Identity(), **options)


def test_repr():
    net = nn.Identity()
    assert "scale_map='exp', mask=(3, 2)" in repr(AffineCoupling(net, mask=CHECKERBOARD))
    assert "scale_map='atan', clamp=1.5, shift_first=True, interleaved=True, transformed=2" in repr(
        AffineCoupling(net, scale_map="atan", clamp=1.5, shift_first=True, interleaved=True, transformed=2)
    )
    assert "additive=True" in repr(AffineCoupling(net, additive=True))
    assert "num_bins=4, bound=2.0" in repr(SplineCoupling(net, num_bins=4, bound=2.0))
    assert "num_components=5, scale_map='tanh'" in repr(LogisticMixtureCoupling(net, num_components=5))


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_many_spline_couplings_undo_themselves_in_float32(scale):
    """To four times what a float64 computation loses that stores each layer's values in float32."""
    torch.manual_seed(0)
    transforms = []
    for _ in range(50):
        net = nn.Linear(2, 46)
        with torch.no_grad():
            net.weight *= scale
            net.bias *= scale
        SplineFunction(8).start_near_identity(net.bias)
        transforms += [SplineCoupling(net), Permute([2, 3, 0, 1])]
    flow = Sequential(*transforms)
    exact = copy.deepcopy(flow).double()
    x = torch.randn(2000, 4)
    with torch.no_grad():
        ours = flow.inverse(flow(x)[0])[0]
        stored = x
        for transform in exact:
            stored = transform(stored.double())[0].float()
        for transform in reversed(list(exact)):
            stored = transform.inverse(stored.double())[0].float()
    error, floor = ((y - x).square().mean().sqrt() for y in (ours, stored))
    assert error <= 4 * floor + torch.finfo(torch.float32).eps
