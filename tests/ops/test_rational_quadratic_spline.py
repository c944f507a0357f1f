import math

import mpmath
import pytest
import torch
from ops.contracts import (
    DTYPES,
    LAYOUTS,
    FlowContracts,
    assert_accurate,
    assert_same,
    results,
    threads,
)

import gmfast.functional as GF
from gmfast import reference


def counts_of(bins, tails):
    return (bins, bins, bins - 1 if tails == "linear" else bins + 1)


def raw_bins(shape, bins, tails, dtype, device, scale=1.0, seed=1):
    """Raw widths, heights and derivatives for x of `shape`: float32 numbers as `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (scale * torch.randn(*shape, count, generator=generator)).to(device, dtype)
        for count in counts_of(bins, tails)
    ]


def bins_last(params, channels):
    """A convolution's output (B, C*K, *S) as (B, C, *S, K), a view."""
    return params.unflatten(1, (channels, params.shape[1] // channels)).movedim(2, -1)


ROUND_TRIP = dict(zip(DTYPES, (1e-3, 1e-11, 0.5, 0.1), strict=True))
ROUND_TRIP_OF_LINES = dict(zip(DTYPES, (1e-3, 1e-11, 1.0, 1.0), strict=True))  # whose slope may be small


class TestContracts(FlowContracts):
    """The parameters as a convolution gives them, in the contracts' layouts."""

    tails = "linear"
    bins = 5
    conditioned = (1, 2, 3)
    block = 10  # all channels of a tensor have one role
    headroom = 1e-20  # of raw derivatives: their squares are computed
    # Rounding y moves x by as much over the slope.
    round_trip = ROUND_TRIP

    def forward(self, x, *params, inverse=False):
        params = [bins_last(p, x.shape[1]) for p in params]
        return GF.rational_quadratic_spline(x, *params, tails=self.tails, inverse=inverse)

    def plain_forward(self, x, *params, inverse=False):
        params = [bins_last(p, x.shape[1]) for p in params]
        return reference.rational_quadratic_spline(x, *params, tails=self.tails, inverse=inverse)

    def inputs(self, shape, dtype, device, channels=2):
        batch, *spatial = shape
        generator = torch.Generator().manual_seed(0)
        x = 1.7 * torch.randn(batch, channels, *spatial, generator=generator)
        params = [
            torch.randn(batch, channels * count, *spatial, generator=generator)
            for count in counts_of(self.bins, self.tails)
        ]
        return [t.to(device, dtype) for t in (x, *params)]

    def operators(self, x, *params):
        inputs = [x, *(bins_last(p, x.shape[1]).detach().requires_grad_(p.requires_grad) for p in params)]
        y, log_det = (
            torch.ones_like(t)
            for t in GF.rational_quadratic_spline(*inputs, tails=self.tails, inverse=self.inverse)
        )
        options = (3.0, self.tails == "linear", 1e-3, 1e-3, 1e-3, self.inverse, True)
        return [
            (torch.ops.gmfast.rational_quadratic_spline.default, (*inputs, *options)),
            (
                torch.ops.gmfast.rational_quadratic_spline_backward.default,
                (y, log_det, *inputs, *options, True, True, True, True),
            ),
        ]

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layout_of_results(self, device, layout):
        """y and x's gradient as everywhere; a parameter's gradient has its order of dimensions in memory, so
        that what follows need not transpose it."""
        x, *params = (LAYOUTS[layout](t) for t in self.inputs((3, 5, 19), torch.float32, device))
        inputs = [x, *(bins_last(p, 2) for p in params)]
        y, _, grad_x, *grads = results(
            lambda *t: GF.rational_quadratic_spline(*t, tails=self.tails, inverse=self.inverse), inputs
        )
        for t in (y, grad_x):
            last = layout.startswith("channels_last")
            assert t.movedim(1, -1).is_contiguous() if last else t.is_contiguous()
        for grad, tensor in zip(grads, inputs[1:], strict=True):
            order = sorted(range(tensor.dim()), key=lambda d: -tensor.stride(d))
            assert grad.permute(order).is_contiguous()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    def test_nan_is_not_hidden(self, device, dtype):
        """A NaN in x, or in any width or height of an element within the bounds, shows in both results."""
        for i in range(3):
            inputs = self.inputs((1, 2), dtype, device)
            inputs[0].clamp_(-2, 2)
            for channel in range(inputs[i].shape[1]):
                poisoned = [t.clone() for t in inputs]
                poisoned[i][0, channel, 1] = math.nan
                element = channel * 2 // inputs[i].shape[1]
                y, log_det = self.call(*poisoned)
                expected = torch.zeros_like(y, dtype=torch.bool)
                expected[0, element, 1] = True
                assert torch.equal(y.isnan(), expected) and log_det.isnan().all(), (i, channel)
                assert torch.equal(self.plain(*poisoned)[0].isnan(), expected)


class TestInverse(TestContracts):
    inverse = True


class TestPacked(TestContracts):
    """The parameters in one tensor, as a convolution gives them."""

    conditioned = (1,)

    def forward(self, x, params, inverse=False):
        params = bins_last(params, x.shape[1])
        return GF.rational_quadratic_spline(
            x, params, None, None, tails=self.tails, inverse=inverse, packed=True
        )

    def plain_forward(self, x, params, inverse=False):
        params = bins_last(params, x.shape[1])
        return reference.rational_quadratic_spline(
            x, params, None, None, tails=self.tails, inverse=inverse, packed=True
        )

    def inputs(self, shape, dtype, device, channels=2):
        x, *params = super().inputs(shape, dtype, device, channels)
        parts = [p.unflatten(1, (channels, p.shape[1] // channels)) for p in params]
        return [x, torch.cat(parts, 2).flatten(1, 2)]

    def operators(self, x, params):
        inputs = [x, bins_last(params, x.shape[1]).detach().requires_grad_(params.requires_grad), None, None]
        options = (3.0, self.tails == "linear", 1e-3, 1e-3, 1e-3, self.inverse, True)
        y, log_det = (
            torch.ones_like(t) for t in torch.ops.gmfast.rational_quadratic_spline(*inputs, *options)
        )
        return [
            (torch.ops.gmfast.rational_quadratic_spline.default, (*inputs, *options)),
            (
                torch.ops.gmfast.rational_quadratic_spline_backward.default,
                (y, log_det, *inputs, *options, True, True, False, False),
            ),
        ]

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layout_of_results(self, device, layout):
        x, params = (LAYOUTS[layout](t) for t in self.inputs((3, 5, 19), torch.float32, device))
        params = bins_last(params, 2)
        *_, grad = results(
            lambda *t: GF.rational_quadratic_spline(*t, None, None, packed=True, inverse=self.inverse),
            [x, params],
        )
        order = sorted(range(grad.dim()), key=lambda d: -params.stride(d))
        assert grad.permute(order).is_contiguous()

    test_nan_is_not_hidden = None  # of the same kernels


class TestUnboundedTails(TestContracts):
    tails = None
    round_trip = ROUND_TRIP_OF_LINES


class TestUnboundedTailsInverse(TestUnboundedTails):
    inverse = True


def accurate_reference(x, *params, **options):
    """In float64, where it is the truth, with the knots added up from the nearer bound.

    Half a turn makes a spline of a spline, its bins the other way round. From the farther bound a knot is
    off by several ulp of the bound, which the worst element of `test_bins` multiplies to 500 times the
    kernel's error; plain PyTorch's float32 sums, which add up in float64, do not show it.
    """
    y, log = reference.rational_quadratic_spline(x, *params, **options)
    if x.dtype != torch.float64:
        return y, log
    turned = (p.flip(-1) for p in params)
    turned_y, turned_log = reference.rational_quadratic_spline(-x, *turned, **options)
    return torch.where(x > 0, -turned_y, y), torch.where(x > 0, turned_log, log)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", ["linear", None])
@pytest.mark.parametrize("bins", [1, 2, 3, 8, 17, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bins(device, dtype, bins, tails, inverse):
    """Any number of them, with the options that are not the default."""
    x = 2 * torch.randn(5, 77, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    options = {"tails": tails, "inverse": inverse, "bound": 4.0, "min_bin_width": 5e-3}
    options |= {"min_bin_height": 2e-3, "min_derivative": 1e-2, "reduction": "none"}
    call, plain = (
        lambda *t, f=f: f(*t, **options) for f in (GF.rational_quadratic_spline, accurate_reference)
    )
    inputs = [x, *raw_bins((5, 77), bins, tails, dtype, device)]
    if inputs[-1].numel() == 0:  # one bin with both slopes 1 is the identity, and no parameter matters
        y, log = call(*inputs)
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(log, torch.zeros_like(log), rtol=0, atol=1e-5)
        return
    if bins == 1:  # of one share nothing depends on the raw number
        widths, heights = inputs[1:3]
        call, plain = (lambda x, d, f=f: f(x, widths.to(x), heights.to(x), d) for f in (call, plain))
        inputs = [x, inputs[3]]
    assert_accurate(call, plain, inputs, block=77)  # over all elements


def exact_spline(x, widths, heights, derivatives, bound=3.0, least=1e-3):
    """One element in 50 digits, with linear tails: the value and the logarithm of the derivative."""
    if abs(x) > bound:
        return x, mpmath.mpf(0)

    def knots(raw):
        weights = [mpmath.exp(r) for r in raw]
        shares = [least + (1 - least * len(raw)) * w / mpmath.fsum(weights) for w in weights]
        return [2 * bound * mpmath.fsum(shares[:k]) - bound for k in range(len(raw) + 1)]

    across, up = knots(widths), knots(heights)
    slopes = [1, *(least + mpmath.log(1 + mpmath.exp(r)) for r in derivatives), 1]
    k = max(i for i in range(len(widths)) if i == 0 or across[i] <= x)
    w, h, d0, d1 = across[k + 1] - across[k], up[k + 1] - up[k], slopes[k], slopes[k + 1]
    s, theta = h / w, (x - across[k]) / w
    mixed = theta * (1 - theta)
    denominator = s + (d0 + d1 - 2 * s) * mixed
    slope = s**2 * (d1 * theta**2 + 2 * s * mixed + d0 * (1 - theta) ** 2) / denominator**2
    return up[k] + h * (s * theta**2 + d0 * mixed) / denominator, mpmath.log(slope)


@pytest.mark.parametrize("scale", [1, 10])
def test_against_mpmath(device, scale):
    x = 1.5 * torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    params = raw_bins((40, 1), 6, "linear", torch.float64, "cpu", scale)
    with mpmath.workdps(50):
        exact = [
            exact_spline(
                mpmath.mpf(row[0].item()), *([mpmath.mpf(v) for v in t[0].tolist()] for t in row[1:])
            )
            for row in zip(x, *params, strict=True)
        ]
    expected = [torch.tensor([float(e[i]) for e in exact], dtype=torch.float64) for i in (0, 1)]
    y, log_det = GF.rational_quadratic_spline(x.to(device), *(p.to(device) for p in params))
    torch.testing.assert_close(y[:, 0].cpu(), expected[0], rtol=1e-12, atol=1e-12)
    # Rounding moves a knot by an ulp of the bound, in bins as narrow as the least.
    torch.testing.assert_close(log_det.cpu(), expected[1], rtol=1e-9, atol=1e-9)
    back, _ = GF.rational_quadratic_spline(
        expected[0][:, None].to(device), *(p.to(device) for p in params), inverse=True
    )
    conditioning = (-expected[1]).exp().clamp(min=1)
    assert ((back[:, 0].cpu() - x[:, 0]).abs() <= 1e-13 * conditioning).all()


@pytest.mark.parametrize("tails", ["linear", None])
@pytest.mark.parametrize("scale", [1, 4, 10])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-5), (torch.float64, 4e-14)], ids=str)
def test_round_trip_at_large_parameters(device, dtype, bound, scale, tails):
    """|f(f^-1(y)) - y|, which the slope does not amplify where it is small, relative to the slope where it is
    large."""
    y = torch.linspace(-3.5, 3.5, 4000).expand(4, -1).to(device, dtype)
    params = raw_bins((4, 4000), 8, tails, dtype, device, scale)
    x, log_inverse = GF.rational_quadratic_spline(y, *params, tails=tails, inverse=True, reduction="none")
    back, log = GF.rational_quadratic_spline(x, *params, tails=tails, reduction="none")
    assert x.isfinite().all() and log.isfinite().all() and log_inverse.isfinite().all()
    slope = torch.maximum(log.exp(), (-log_inverse).exp()).clamp(min=1)
    assert ((back - y).abs() <= bound * slope).all()


def test_knots_and_bounds(device):
    """At a knot both bins give its height and slope; at the bounds the value is the bound."""
    widths, heights, derivatives = (
        t[0, 0] for t in raw_bins((1, 1), 8, "linear", torch.float64, device, scale=2.0)
    )
    w, h = (6 * (1e-3 + (1 - 8e-3) * t.softmax(-1)) for t in (widths, heights))
    knots_x, knots_y = w.cumsum(0) - 3, h.cumsum(0) - 3
    slopes = 1e-3 + torch.nn.functional.softplus(derivatives)
    for nudge in (0, 1e-13, -1e-13):
        x = (knots_x[:-1] + nudge).unsqueeze(0)
        params = [t.expand(1, 7, -1) for t in (widths, heights, derivatives)]
        y, log = GF.rational_quadratic_spline(x, *params, reduction="none")
        torch.testing.assert_close(y[0], knots_y[:-1], rtol=0, atol=1e-11)
        torch.testing.assert_close(log[0], slopes.log(), rtol=0, atol=1e-6)
    ends = torch.tensor([[-3.0, 3.0]], dtype=torch.float64, device=device)
    params = [t.expand(1, 2, -1) for t in (widths, heights, derivatives)]
    for inverse in (False, True):
        y, log = GF.rational_quadratic_spline(ends, *params, inverse=inverse, reduction="none")
        torch.testing.assert_close(y, ends, rtol=0, atol=1e-14)
        torch.testing.assert_close(log, torch.zeros_like(log), rtol=0, atol=1e-12)


@pytest.mark.parametrize("inverse", [False, True])
def test_all_in_the_tails(device, inverse):
    x = torch.tensor([[-1e30, -7.0, -3.0000002, 3.0000002, 40.0]], device=device)
    params = raw_bins((1, 5), 8, "linear", torch.float32, device)
    y, log_det, grad_x, *grads = results(
        lambda *t: GF.rational_quadratic_spline(*t, inverse=inverse), [x, *params], torch.ones_like
    )
    assert torch.equal(y, x) and torch.equal(log_det, torch.zeros_like(log_det))
    assert torch.equal(grad_x, torch.ones_like(x)) and all((g == 0).all() for g in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", [False, True])
def test_linear_tails_beside_bins_of_no_width(device, inverse, dtype):
    """Without a least width the first bins may vanish between -bound and the next number."""
    x = torch.tensor([[-5.0, 4.0]], dtype=dtype, device=device)
    narrow = torch.tensor([-800.0, 0, 0, -800], dtype=dtype, device=device).expand(1, 2, -1)
    raw = torch.tensor([3.0, 0, -2], dtype=dtype, device=device).expand(1, 2, -1)
    options = {"min_bin_width": 0.0, "min_bin_height": 0.0, "inverse": inverse}
    y, log_det, grad_x, *grads = results(
        lambda *t: GF.rational_quadratic_spline(*t, **options), [x, narrow, narrow, raw], torch.ones_like
    )
    assert torch.equal(y, x) and torch.equal(log_det, torch.zeros_like(log_det))
    assert torch.equal(grad_x, torch.ones_like(x)) and all((g == 0).all() for g in grads)
    y, log_det = reference.rational_quadratic_spline(x, narrow, narrow, raw, **options)
    assert torch.equal(y, x) and torch.equal(log_det, torch.zeros_like(log_det))


def test_reference_of_one_number_a_sample(device):
    """x of (B,), whose log-derivatives have nothing to be summed over."""
    x, *params = (
        t[:, 0]
        for t in (torch.ones(3, 1, device=device), *raw_bins((3, 1), 4, "linear", torch.float32, device))
    )
    expected = GF.rational_quadratic_spline(x, *params)
    for ours, truth in zip(reference.rational_quadratic_spline(x, *params), expected, strict=True):
        torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("inverse", [False, True])
def test_lines_beyond_the_bounds(device, inverse):
    """With tails=None the slopes at the ends go on."""
    x = torch.tensor([[-5.0, 3.5]], dtype=torch.float64, device=device)
    params = raw_bins((1, 2), 4, None, torch.float64, device)
    y, log = GF.rational_quadratic_spline(x, *params, tails=None, inverse=inverse, reduction="none")
    slopes = 1e-3 + torch.nn.functional.softplus(torch.stack([params[2][0, 0, 0], params[2][0, 1, -1]]))
    slopes = 1 / slopes if inverse else slopes
    ends = torch.tensor([-3.0, 3.0], dtype=torch.float64, device=device)
    torch.testing.assert_close(y[0], ends + (x[0] - ends) * slopes)
    torch.testing.assert_close(log[0], slopes.log())


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", [1, 10])
def test_monotone(device, scale, inverse):
    x = torch.linspace(-4, 4, 20001, device=device).unsqueeze(0)
    params = [t.expand(1, 20001, -1) for t in raw_bins((1, 1), 8, "linear", torch.float32, device, scale)]
    y, log = GF.rational_quadratic_spline(x, *params, inverse=inverse, reduction="none")
    steps = y.diff()
    assert (steps >= -1e-6).all() and y.abs().max() == 4
    # What the steps add up to is what the derivative integrates to.
    assert log.isfinite().all()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("layout", ["slices", "convolution"])
def test_views_of_one_tensor(device, layout, inverse):
    """All three parameters in one tensor, bins innermost or outside the pixels: read in place, same bits."""
    x = 2 * torch.randn(2, 3, 9, 17, device=device)
    counts = [8, 8, 7]
    if layout == "slices":
        params = torch.randn(2, 3, 9, 17, 23, device=device).split(counts, -1)
    else:
        params = (
            torch.randn(2, 69, 9, 17, device=device).view(2, 3, 23, 9, 17).movedim(2, -1).split(counts, -1)
        )
    call = lambda *t: GF.rational_quadratic_spline(*t, inverse=inverse)  # noqa: E731
    assert_same(results(call, [x, *params]), results(call, [x, *(p.contiguous() for p in params)]))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", ["linear", None])
@pytest.mark.parametrize("bins", [1, 2, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["slices", "convolution", "every other"])
def test_packed_is_its_slices(device, layout, dtype, bins, tails, inverse):
    """The same bits, and the gradient lies as the tensor does."""
    counts = counts_of(bins, tails)
    x = (2 * torch.randn(3, 4, 50)).to(device, dtype)
    if layout == "convolution":
        params = torch.randn(3, 4, sum(counts), 50).to(device, dtype).movedim(2, -1)
    elif layout == "slices":
        params = torch.randn(3, 4, 50, sum(counts)).to(device, dtype)
    else:
        params = torch.randn(3, 8, 50, 2 * sum(counts)).to(device, dtype)[:, ::2, :, ::2]
    options = {"tails": tails, "inverse": inverse}
    actual = results(
        lambda x, p: GF.rational_quadratic_spline(x, p, None, None, packed=True, **options), [x, params]
    )
    slices = lambda x, p: GF.rational_quadratic_spline(x, *p.split(counts, -1), **options)  # noqa: E731
    assert_same(actual, results(slices, [x, params]))
    if layout != "every other":
        assert actual[-1].stride() == params.stride()
    plain = lambda x, p: reference.rational_quadratic_spline(  # noqa: E731
        x, p, None, None, packed=True, **options
    )
    double = [x.double(), params.double()]
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual[0].double(), plain(*double)[0], rtol=tolerance, atol=tolerance * 100)


def test_log_det_does_not_depend_on_threads_or_batch(device):
    for elements in (3, 255, 256, 257, 3000):
        x = 2 * torch.randn(9, elements, device=device)
        params = raw_bins((9, elements), 8, "linear", torch.float32, device)
        with threads(1):
            expected = GF.rational_quadratic_spline(x, *params)
        with threads(3):
            assert_same(GF.rational_quadratic_spline(x, *params), expected)
        alone = GF.rational_quadratic_spline(*(t[4:5] for t in (x, *params)))
        assert_same(alone, [e[4:5] for e in expected])
        each = GF.rational_quadratic_spline(x, *params, reduction="none")[1]
        torch.testing.assert_close(expected[1], each.double().sum(1).float())


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": 1}, TypeError, r"x: expected a torch\.Tensor, got int"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, TypeError, r"x: expected float32, .* got int64"),
        ({"widths": torch.ones(2, 4, 5)}, ValueError, r"widths: expected shape \(2, 3, K\), got \(2, 4, 5\)"),
        ({"widths": torch.ones(2, 3, 0)}, ValueError, r"widths: expected shape \(2, 3, K\)"),
        (
            {"heights": torch.ones(2, 3, 4)},
            ValueError,
            r"heights: expected shape \(2, 3, 5\), got \(2, 3, 4\)",
        ),
        ({"derivatives": torch.ones(2, 3, 6)}, ValueError, r"derivatives: expected shape \(2, 3, 4\)"),
        ({"tails": None}, ValueError, r"derivatives: expected shape \(2, 3, 6\), got \(2, 3, 4\)"),
        (
            {"packed": True},
            ValueError,
            r"heights: expected None, as widths holds all \(packed=True\), got a tensor",
        ),
        (
            {"packed": True, "heights": None, "derivatives": None},
            ValueError,
            r"widths: expected shape \(2, 3, 3\*K-1\) \(packed=True\), got \(2, 3, 6\)",
        ),
        ({"heights": None}, TypeError, r"heights: expected a torch\.Tensor, got NoneType"),
        ({"packed": "chunk"}, ValueError, r"packed: expected one of False, True, got 'chunk'"),
        ({"tails": "circular"}, ValueError, r"tails: expected one of 'linear', None, got 'circular'"),
        ({"bound": 0.0}, ValueError, r"bound: expected a number in"),
        ({"min_bin_width": 0.3}, ValueError, r"min_bin_width: expected a number in \[0, 0\.2\], got 0\.3"),
        ({"inverse": 1}, ValueError, r"inverse: expected one of False, True, got 1"),
        ({"reduction": "mean"}, ValueError, r"reduction: expected one of 'sum', 'none', got 'mean'"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"x": torch.ones(2, 3), "widths": torch.ones(2, 3, 5), "heights": torch.ones(2, 3, 5)}
    arguments |= {"derivatives": torch.ones(2, 3, 4)}
    if change.get("packed") is True:
        arguments["widths"] = torch.ones(2, 3, 6)
    with pytest.raises(error, match=message):
        GF.rational_quadratic_spline(**(arguments | change))


@pytest.mark.peers
@pytest.mark.parametrize("inverse", [False, True])
def test_zuko(inverse):
    """MonotonicRQSTransform(w, h, d): raw numbers are first squashed to [-1/a, 1/a], a = ln(1e3) for the
    softmaxes, slopes are exponentials; sizes have no minimum. So ours at min 0, with log(exp(slope) - 1)."""
    transforms = pytest.importorskip("zuko.transforms")
    w, h, d = (torch.randn(4, 6, k, dtype=torch.float64) for k in (8, 8, 7))
    x = torch.randn(4, 6, dtype=torch.float64) * 2
    theirs = transforms.MonotonicRQSTransform(w, h, d, bound=3.0)
    squashed = [t / (1 + (2 * t / math.log(1e-3)).abs()) for t in (w, h)]
    slopes = (d / (1 + (d / math.log(1e-3)).abs())).exp()
    options = {"min_bin_width": 0.0, "min_bin_height": 0.0, "min_derivative": 0.0, "reduction": "none"}
    y, log = GF.rational_quadratic_spline(x, *squashed, slopes.expm1().log(), inverse=inverse, **options)
    transform = theirs.inv if inverse else theirs
    expected = transform(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(log, transform.log_abs_det_jacobian(x, expected))


@pytest.mark.peers
@pytest.mark.parametrize("inverse", [False, True])
def test_normflows(inverse):
    splines = pytest.importorskip("normflows.utils.splines")
    x = torch.randn(4, 6, dtype=torch.float64) * 2
    params = raw_bins((4, 6), 8, "linear", torch.float64, "cpu")
    expected = splines.unconstrained_rational_quadratic_spline(x, *params, inverse=inverse, tail_bound=3.0)
    actual = GF.rational_quadratic_spline(x, *params, inverse=inverse, reduction="none")
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)
