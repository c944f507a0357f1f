"""Each row of docs/migration.md as code, on the same weights.

Needs the `[peers]` extra; where a library is missing its tests are skipped.
"""

import math

import pytest
import torch
from torch import nn

import gmfast.functional as GF
import gmfast.nn as gnn

pytestmark = pytest.mark.peers


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class WithContext(nn.Module):
    """A layer that is called as nflows calls networks."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, context=None):
        return self.layer(x)


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def assert_equal(actual, expected):
    """Of pairs (z, log_det)."""
    for a, e in zip(actual, expected, strict=True):
        assert e.abs().max() > 0.01, "nothing to compare"
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


def assert_both_directions(ours, forward, inverse, x):
    """`ours` takes x as `forward` does and comes back as `inverse` does."""
    with torch.no_grad():
        z, log_det = forward(x)
        assert_equal(ours(x), (z, log_det))
        assert_equal(ours.inverse(z), inverse(z))


class TestNflows:
    """`transform(x) -> (z, logabsdet)` from data to noise, as ours."""

    @pytest.fixture(autouse=True)
    def nflows(self):
        return pytest.importorskip("nflows.transforms")

    @pytest.mark.parametrize("shape", [(5, 6), (5, 6, 4, 4)])
    def test_rational_quadratic_coupling(self, nflows, shape):
        make = conv if len(shape) == 4 else nn.Linear
        mask = [0, 0, 0, 1, 1, 1]
        theirs = nflows.PiecewiseRationalQuadraticCouplingTransform(
            mask, lambda i, o: WithContext(make(i, o)), num_bins=8, tails="linear", tail_bound=3.0
        )
        ours = gnn.SplineCoupling(theirs.transform_net, num_bins=8, bound=3.0)
        assert_both_directions(ours, theirs, theirs.inverse, torch.randn(shape) * 2)

    def test_rational_quadratic_function(self, nflows):
        from nflows.transforms.splines import unconstrained_rational_quadratic_spline

        x, widths, heights = torch.randn(5, 6) * 2, torch.randn(5, 6, 8), torch.randn(5, 6, 8)
        derivatives = torch.randn(5, 6, 7)
        for inverse in (False, True):
            expected = unconstrained_rational_quadratic_spline(
                x, widths, heights, derivatives, inverse=inverse, tail_bound=3.0
            )
            actual = GF.rational_quadratic_spline(
                x, widths, heights, derivatives, bound=3.0, inverse=inverse, reduction="none"
            )
            assert_equal(actual, expected)

    def test_rational_quadratic_function_on_an_interval(self, nflows):
        from nflows.transforms.splines import rational_quadratic_spline

        x, widths, heights = torch.rand(5, 6) * 6 - 3, torch.randn(5, 6, 8), torch.randn(5, 6, 8)
        derivatives = torch.randn(5, 6, 9)
        expected = rational_quadratic_spline(
            x, widths, heights, derivatives, left=-3.0, right=3.0, bottom=-3.0, top=3.0
        )
        actual = GF.rational_quadratic_spline(
            x, widths, heights, derivatives, bound=3.0, tails=None, reduction="none"
        )
        assert_equal(actual, expected)

    def test_affine_coupling(self, nflows):
        """Their scale is sigmoid(a + 2) + 0.001: the same but for that, which no map of ours adds."""
        theirs = nflows.AffineCouplingTransform([0, 0, 0, 1, 1, 1], lambda i, o: WithContext(conv(i, o)))
        ours = gnn.AffineCoupling(theirs.transform_net, scale_map="sigmoid")
        x = torch.randn(5, 6, 4, 4)
        with torch.no_grad():
            params = ours.params(x)
            scale = torch.sigmoid(params[:, 3:] + 2)
            z, log_det = theirs(x)
            z[:, 3:] -= 1e-3 * x[:, 3:]
            log_det -= torch.log1p(1e-3 / scale).flatten(1).sum(1)
            assert_equal(ours(x), (z, log_det))

    def test_additive_coupling(self, nflows):
        theirs = nflows.AdditiveCouplingTransform([0, 0, 0, 1, 1, 1], lambda i, o: WithContext(conv(i, o)))
        ours = gnn.AffineCoupling(theirs.transform_net, additive=True)
        x = torch.randn(5, 6, 4, 4)
        with torch.no_grad():
            torch.testing.assert_close(ours(x)[0], theirs(x)[0])
            torch.testing.assert_close(ours.inverse(x)[0], theirs.inverse(x)[0])

    def test_act_norm(self, nflows):
        theirs, ours = nflows.ActNorm(6), gnn.ActNorm(6)
        x = torch.randn(5, 6, 4, 4) * 3 + 1
        theirs(x)
        with torch.no_grad():
            ours.load_state_dict(
                {
                    "log_scale": theirs.log_scale,
                    "shift": theirs.shift * torch.exp(-theirs.log_scale),
                    "initialized": theirs.initialized,
                }
            )
        assert_both_directions(ours, theirs, theirs.inverse, x)

    def test_act_norm_after_the_first_batch(self, nflows):
        """They divide by n - 1 for the variance, we by n."""
        theirs, ours = nflows.ActNorm(6), gnn.ActNorm(6)
        x = torch.randn(5, 6, 4, 4) * 3 + 1
        ratio = math.sqrt(79 / 80)
        (z, log_det), expected = ours(x), theirs(x)
        assert_equal((z * ratio, log_det + 96 * math.log(ratio)), expected)
        assert (z - expected[0]).abs().max() > 0.01

    def test_one_by_one_convolution(self, nflows):
        theirs, ours = nflows.OneByOneConvolution(6, identity_init=False), gnn.InvertibleConv1x1(6)
        matrix = torch.empty(6, 6)
        with torch.no_grad():
            matrix[:, theirs.permutation._permutation] = theirs.weight()
        ours.set_weight(matrix)
        assert_both_directions(ours, theirs, theirs.inverse, torch.randn(5, 6, 4, 4))


class TestNormflows:
    """`flow(z) -> (x, log_det)` goes from noise to data, and `flow.inverse(x)` from data to noise: our
    `inverse` and `forward`."""

    @pytest.fixture(autouse=True)
    def flows(self):
        return pytest.importorskip("normflows").flows

    def test_rational_quadratic_coupling(self, flows):
        theirs = flows.CoupledRationalQuadraticSpline(
            6, 1, 16, num_bins=8, tail_bound=3.0, reverse_mask=False
        )
        coupling = theirs.prqct
        coupling.unconditional_transform = None  # ours leaves the other half as it is
        net = coupling.transform_net
        # The mask picks every other feature. Widths and heights are divided by the root of the net's width.
        order = torch.cat([coupling.identity_features, coupling.transform_features])
        scale = torch.ones(3, 23)
        scale[:, :16] = 16**-0.5
        with torch.no_grad():
            for p in net.final_layer.parameters():
                p.normal_()
        ours = gnn.Sequential(
            gnn.Permute(order),
            gnn.SplineCoupling(lambda x: net(x) * scale.flatten(), num_bins=8, bound=3.0),
            gnn.Permute(order.argsort()),
        )
        assert_both_directions(ours, theirs.inverse, theirs, torch.randn(5, 6) * 2)

    @pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "sigmoid_inv"])
    def test_affine_coupling(self, flows, scale_map):
        theirs = flows.AffineCouplingBlock(conv(3, 6), scale_map=scale_map)
        net = theirs.flows[1].param_map
        if scale_map == "sigmoid":  # x = z / s + t, so z = (x - t)·s
            ours = gnn.AffineCoupling(
                lambda x: net(x) * torch.tensor([-1.0, 1.0] * 3)[:, None, None],
                scale_map="sigmoid",
                shift_first=True,
                interleaved=True,
            )
        else:
            name = {"exp": "exp", "sigmoid_inv": "sigmoid"}[scale_map]
            ours = gnn.Inverse(gnn.AffineCoupling(net, scale_map=name, interleaved=True))
        assert_both_directions(ours, theirs.inverse, theirs, torch.randn(5, 6, 4, 4))

    def test_act_norm(self, flows):
        theirs, ours = flows.ActNorm((6, 1, 1)), gnn.ActNorm(6)
        x = torch.randn(5, 6, 4, 4) * 3 + 1
        theirs.inverse(x)
        with torch.no_grad():
            ours.load_state_dict(
                {
                    "shift": -theirs.t.flatten(),
                    "log_scale": -theirs.s.flatten(),
                    "initialized": torch.tensor(True),
                }
            )

        # Their log-determinant is one number for the batch.
        def each(pair):
            return pair[0], pair[1].expand(5)

        assert_both_directions(ours, lambda x: each(theirs.inverse(x)), lambda z: each(theirs(z)), x)

    @pytest.mark.parametrize("lu", [False, True])
    def test_invertible_convolution(self, flows, lu):
        theirs = flows.Invertible1x1Conv(6, use_lu=lu)
        with torch.no_grad():
            for p in theirs.parameters():
                p.add_(0.1 * torch.randn_like(p))
            weight = theirs._assemble_W() if lu else theirs.W
        ours = gnn.InvertibleConv1x1(6, lu=lu)
        ours.set_weight(weight)
        x = torch.randn(5, 6, 4, 4)

        def each(pair):
            return pair[0], pair[1].expand(5)

        assert_both_directions(ours, lambda x: each(theirs.inverse(x)), lambda z: each(theirs(z)), x)


class TestZuko:
    """`flow(context).transform` goes from data to noise, as ours; parameters' names are theirs."""

    @pytest.fixture(autouse=True)
    def transforms(self):
        return pytest.importorskip("zuko.transforms")

    @torch.no_grad()
    def test_flow(self, transforms):
        """A whole one, with a context: a coupling of the elements where their mask is false."""
        import zuko

        theirs = zuko.flows.NICE(6, 3, transforms=2)

        def coupling(part):
            def net(x, context):
                return part.hyper(torch.cat([x, context], 1))

            order = torch.cat([part.mask.nonzero()[:, 0], (~part.mask).nonzero()[:, 0]])
            ours = gnn.AffineCoupling(net, scale_map="softclip", interleaved=True)
            return gnn.Permute(order), ours, gnn.Permute(order.argsort())

        first, second = theirs.transform.transforms
        flow = gnn.Flow((6,), [*coupling(first), *coupling(second)])
        x, c = torch.randn(5, 6), torch.randn(5, 3)
        z, log_det = theirs(c).transform.call_and_ladj(x)
        assert_equal(flow.transform(x, c), (z, log_det))
        back = theirs(c).transform.inv.call_and_ladj(z)
        assert_equal(flow.transform.inverse(z, c), back)
        assert_equal([flow.log_prob(x, c)], [theirs(c).log_prob(x)])
        assert_equal([flow.log_prob(x, c[:1])], [theirs(c[0]).log_prob(x)])

    def test_monotonic_affine(self, transforms):
        x, shift, scale = torch.randn(3, 5, 6)
        theirs = transforms.MonotonicAffineTransform(shift, scale)
        z, log_derivative = theirs.call_and_ladj(x)
        assert_equal(GF.affine_coupling(x, shift, scale, scale_map="softclip"), (z, log_derivative.sum(1)))

    def test_monotonic_rational_quadratic(self, transforms):
        x, widths, heights = torch.randn(5, 6) * 2, torch.randn(5, 6, 8), torch.randn(5, 6, 8)
        derivatives = torch.randn(5, 6, 7)
        theirs = transforms.MonotonicRQSTransform(widths, heights, derivatives, bound=5.0, slope=1e-3)
        z, log_derivative = theirs.call_and_ladj(x)

        def softclip(raw, factor):
            return raw / (1 + (factor * raw / math.log(1e-3)).abs())

        actual = GF.rational_quadratic_spline(
            x,
            softclip(widths, 2),
            softclip(heights, 2),
            torch.exp(softclip(derivatives, 1)).expm1().log(),  # the inverse of softplus
            bound=5.0,
            min_bin_width=0.0,
            min_bin_height=0.0,
            min_derivative=0.0,
            reduction="none",
        )
        assert_equal(actual, (z, log_derivative))


class TestFreia:
    """`block([x]) -> ((z,), log_det)` from data to noise, as ours, and `rev=True` back."""

    @pytest.fixture(autouse=True)
    def modules(self):
        return pytest.importorskip("FrEIA.modules")

    @pytest.mark.parametrize("activation", ["ATAN", "TANH"])
    def test_glow_coupling(self, modules, activation):
        theirs = modules.GLOWCouplingBlock(
            [(6, 4, 4)], subnet_constructor=conv, clamp=2.0, clamp_activation=activation
        )

        def conditioner(net):
            """Their networks give scales before shifts; our tanh divides its argument by the clamp."""
            factor = 2.0 if activation == "TANH" else 1.0

            def params(x):
                scale, shift = net(x).chunk(2, 1)
                return torch.cat([shift, factor * scale], 1)

            return params

        swap = [3, 4, 5, 0, 1, 2]
        map_ = {"ATAN": "atan", "TANH": "tanh"}[activation]
        ours = gnn.Sequential(  # the first half given the second, then the second given the first
            gnn.Permute(swap),
            gnn.AffineCoupling(conditioner(theirs.subnet2), scale_map=map_, clamp=2.0),
            gnn.Permute(swap),
            gnn.AffineCoupling(conditioner(theirs.subnet1), scale_map=map_, clamp=2.0),
        )

        def forward(x, rev=False):
            (z,), log_det = theirs([x], rev=rev)
            return z, log_det

        assert_both_directions(ours, forward, lambda z: forward(z, rev=True), torch.randn(5, 6, 4, 4))
