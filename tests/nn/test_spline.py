import math

import pytest
import torch
from nn.transform_contracts import Conditioner, Contracts
from torch import nn

from gmfast.nn import (
    MaskedSplineAutoregressive,
    PeriodicShift,
    Spline,
    SplineCoupling,
    cubic_spline,
    linear_spline,
    naive_inverse,
    quadratic_spline,
)

BOX = {"left": -1.0, "right": 3.0, "bottom": -2.0, "top": 0.5}
#: Rounding of a result comes back larger where the spline is flat.
FLAT = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


class TestBox(Contracts):
    shape = (3, 2)
    round_trip = FLAT

    def build(self):
        return SplineCoupling(Conditioner(2, 13, scale=0.5), num_bins=4, tails=None, **BOX)


class TestBoxWithLinearTails(Contracts):
    shape, context_shape = (2, 3), (2,)
    round_trip = FLAT

    def build(self):
        net = Conditioner(1, 11, context=2, scale=0.5)
        return SplineCoupling(net, num_bins=4, left=-2.0, right=1.0, bottom=-1.0, top=3.0)


class Angles(Contracts):
    """Inputs within the period, where the wrapping is the identity."""

    def inputs(self, batch, device, dtype=torch.float64):
        x, context = super().inputs(batch, device, dtype)
        return torch.tanh(x) * 3, context


class TestCircular(Angles):
    shape = (3, 2)
    round_trip = FLAT

    def build(self):
        net = Conditioner(2, 12, scale=0.5)
        return SplineCoupling(net, num_bins=4, tails="circular", bound=math.pi)


class TestByColumn(Angles):
    shape, context_shape = (4,), (2,)
    round_trip = FLAT

    def build(self):
        net = Conditioner(1, 3 * 13, context=2, scale=0.5)
        tails = ["linear", "circular", None]
        return SplineCoupling(net, num_bins=4, tails=tails, transformed=3, bound=math.pi)


class TestQuadratic(Contracts):
    shape = (3, 2)
    round_trip = FLAT

    def build(self):
        return SplineCoupling(Conditioner(2, 7, scale=0.5), num_bins=4, kind="quadratic", bound=2.0)


class TestCubic(Contracts):
    shape = (3, 2)
    round_trip = FLAT

    def build(self):
        return SplineCoupling(Conditioner(2, 10, scale=0.5), num_bins=4, kind="cubic", tails=None, bound=2.0)


class TestLinear(Contracts):
    shape = (3, 2)
    round_trip = FLAT

    def build(self):
        return Spline((3,), 4, kind="linear", bound=2.0, identity_init=False)


class TestPeriodicShift(Angles):
    shape, keeps_volume = (3, 2), True

    def build(self):
        return PeriodicShift(3, [0, 2], shift=0.1)

    def test_wraps(self):
        shift = PeriodicShift(2, [1], left=0.0, right=2.0, shift=torch.tensor([0.5, 1.5]), trainable=False)
        z, log_det = shift(torch.tensor([[5.0, 1.0], [5.0, 0.25]]))
        torch.testing.assert_close(z, torch.tensor([[5.0, 0.5], [5.0, 1.75]]))
        assert not list(shift.parameters()) and torch.equal(log_det, torch.zeros(2))


KINDS = ("rational_quadratic", "linear", "quadratic", "cubic")


@pytest.mark.parametrize("kind", KINDS)
def test_box(kind):
    """The corners are met, and the log-derivative is autograd's, within the box and outside."""
    torch.manual_seed(0)
    for tails in ("linear", None):
        spline = Spline(1, 5, kind=kind, tails=tails, identity_init=False, **BOX).double()
        x = torch.tensor([-1.0, 3.0, -4.0, 6.0, *torch.linspace(-0.9, 2.9, 7).tolist()], dtype=torch.float64)
        x = x[:, None].requires_grad_()
        z, log_det = spline(x)
        torch.testing.assert_close(z[:2, 0], torch.tensor([-2.0, 0.5], dtype=torch.float64))
        (slope,) = torch.autograd.grad(z.sum(), x, create_graph=True)
        torch.testing.assert_close(log_det[2:], slope[2:, 0].log())
        back, log_det_back = spline.inverse(z)
        torch.testing.assert_close(back, x)
        torch.testing.assert_close(log_det_back[2:], -log_det[2:])
        if tails == "linear":
            torch.testing.assert_close(z[2:4, 0], -2 + 2.5 * (x[2:4, 0] + 1) / 4)
            if kind in ("rational_quadratic", "quadratic"):  # no kink
                torch.testing.assert_close(log_det[:2], torch.full_like(log_det[:2], math.log(2.5 / 4)))


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_has_second_derivatives(kind):
    torch.manual_seed(0)
    spline = Spline(3, 4, kind=kind, identity_init=False, bound=2.0).double()
    z = torch.randn(4, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: spline.inverse(z), (z,))


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_identity(kind):
    torch.manual_seed(0)
    x, features = torch.randn(20, 4) * 2, torch.randn(20, 3)
    for tails in ("linear", None, "circular") if kind == "rational_quadratic" else ("linear", None):
        options = {"kind": kind, "tails": tails, "identity_init": True}
        count = Spline(1, 5, kind=kind, tails=tails).spline.num_params
        net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2 * count))
        transforms = [
            (SplineCoupling(net, num_bins=5, bound=9.0, **options), None),
            (
                MaskedSplineAutoregressive(4, num_bins=5, bound=9.0, num_context=3, direct=True, **options),
                features,
            ),
            (Spline(4, 5, bound=9.0, **options), None),
        ]
        for transform, context in transforms:
            for call in (transform, transform.inverse):
                z, log_det = call(x, context)
                torch.testing.assert_close(z, x, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(log_det, torch.zeros(20), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="identity_init: expected a conditioner whose last layer"):
        SplineCoupling(nn.Tanh(), identity_init=True)


def test_circles_are_closed():
    """Values and slopes are the same at both ends, and a value beyond one comes in at the other."""
    torch.manual_seed(0)
    spline = Spline(2, 4, tails="circular", bound=math.pi, identity_init=False).double()
    ends = torch.tensor([[-math.pi] * 2, [math.pi - 1e-12] * 2], dtype=torch.float64)
    _, log_det = spline(ends)
    torch.testing.assert_close(log_det[0], log_det[1])
    x = torch.randn(5, 2, dtype=torch.float64)
    for a, e in zip(spline(x + 2 * math.pi), spline(x), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("num_context", [0, 2])
@pytest.mark.parametrize("tails", [["linear", "circular", None, "circular"], "circular", None])
def test_autoregressive(tails, num_context):
    """By column, in an order: the incremental inverse knows which column it is at."""
    torch.manual_seed(0)
    transform = MaskedSplineAutoregressive(
        4,
        (16,),
        num_bins=4,
        tails=tails,
        order=[2, 0, 3, 1],
        left=-3.0,
        right=3.0,
        bottom=-1.0,
        top=2.0,
        num_context=num_context,
    ).double()
    with torch.no_grad():
        for p in transform.parameters():
            p.mul_(3)
    x = torch.tanh(torch.randn(6, 4, dtype=torch.float64)) * 3
    context = torch.randn(6, 2, dtype=torch.float64) if num_context else None
    z, log_det = transform(x, context)
    jacobian = torch.autograd.functional.jacobian(lambda x: transform(x, context)[0].sum(0), x).transpose(
        0, 1
    )
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_det)
    with torch.no_grad():
        back, log_det_back = transform.inverse(z, context)
        with naive_inverse(transform):
            again, _ = transform.inverse(z, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(again, x)
    torch.testing.assert_close(log_det_back, -log_det)


def test_errors():
    with pytest.raises(ValueError, match=r"left: expected a number below right=1\.0, got 2\.0"):
        Spline(1, left=2.0, right=1.0)
    with pytest.raises(ValueError, match="tails: expected one of 'linear', None, got 'circular'"):
        Spline(1, kind="cubic", tails="circular")
    with pytest.raises(ValueError, match="tails: expected 2, one for each column, got 3"):
        Spline(2, tails=["linear"] * 3)(torch.randn(1, 2))
    with pytest.raises(ValueError, match="kind: expected one of"):
        Spline(1, kind="quartic")
    with pytest.raises(ValueError, match=r"derivatives: expected shape \(B, \*D, 2\), got \(3, 3\)"):
        cubic_spline(torch.rand(3), torch.rand(3, 4), torch.rand(3, 4), torch.rand(3, 3))


@pytest.mark.peers
class TestPeers:
    """The same numbers in float64."""

    @pytest.mark.parametrize("inverse", [False, True])
    def test_nflows(self, inverse):
        splines = pytest.importorskip("nflows.transforms.splines")
        torch.manual_seed(0)
        x = torch.rand(6, 5, dtype=torch.float64) * 0.9
        raw = torch.randn(6, 5, 26, dtype=torch.float64)
        raw[..., 7], raw[..., 15] = -4.0, -4.0  # their last knot is moved by 1e-6
        w, h, d = raw[..., :8], raw[..., 8:17], raw[..., 17:]
        end = raw[..., 24:25], raw[..., 25:]
        options = {"inverse": inverse}
        pairs = [
            (linear_spline(x, w, reduction="none", **options), splines.linear_spline(x, w, **options)),
            (
                quadratic_spline(x, w, h, reduction="none", **options),
                splines.quadratic_spline(x, w, h, **options),
            ),
            (
                cubic_spline(x, w, h[..., :8], torch.cat(end, -1), reduction="none", **options),
                splines.cubic_spline(x, w, h[..., :8], *end, **options),
            ),
        ]
        box = {"left": 0.0, "right": 1.0, "bottom": 0.1, "top": 0.7}
        at = x * 0.6 + 0.1 if inverse else x
        spline = SplineCoupling(nn.Identity(), num_bins=8, tails=None, **box).spline
        params = torch.cat([w, h[..., :8], d], -1)
        theirs = splines.rational_quadratic_spline(at, w, h[..., :8], d, **box, **options)
        pairs.append((spline(at, params, inverse, "none"), theirs))
        for ours, theirs in pairs:
            for a, e in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("inverse", [False, True])
    def test_normflows(self, inverse):
        splines = pytest.importorskip("normflows.utils.splines")
        torch.manual_seed(0)
        x = torch.rand(6, 3, dtype=torch.float64) * 6 - 3
        w, h, d = (torch.randn(6, 3, n, dtype=torch.float64) for n in (8, 8, 9))
        for tails, raw in (("circular", d[..., :8]), (["linear", "circular", "circular"], d)):
            theirs = splines.unconstrained_rational_quadratic_spline(
                x, w, h, raw, inverse=inverse, tails=tails, tail_bound=math.pi
            )
            spline = SplineCoupling(nn.Identity(), num_bins=8, tails=tails, bound=math.pi).spline
            ours = spline(x, torch.cat([w, h, raw], -1), inverse, "none")
            for a, e in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-6)
