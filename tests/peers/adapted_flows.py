"""A pytest plugin: nflows' and zuko's splines and affine maps compute by gmfast, through adapters.

Their signatures stay, so that the libraries' own tests run as they are. GMFAST_OUTCOMES names a JSON file for
the outcomes, and for the number of calls of each adapter; GMFAST_ADAPT=0 leaves the libraries alone.
"""

import json
import os
import sys
from collections import Counter

import torch

import gmfast.functional as GF

outcomes, calls = {}, Counter()


def spline(x, widths, heights, derivatives, **options):
    """The spline of x (*D), element by element, with parameters that are broadcast to it."""
    widths, heights, derivatives = (
        p.expand(*x.shape, p.shape[-1])[None] for p in (widths, heights, derivatives)
    )
    y, log_det = GF.rational_quadratic_spline(
        x[None], widths, heights, derivatives, reduction="none", **options
    )
    return y[0], log_det[0].to(x.dtype)


def affine(x, shift, log_scale, inverse=False):
    """The affine map of x (B, *D), and its log-determinant, summed over each sample."""
    y, log_det = GF.affine_coupling(x, shift, log_scale, scale_map="exp", inverse=inverse)
    return y, log_det.to(x.dtype)


def adapt_nflows():
    """Replace nflows' rational-quadratic splines wherever they were imported, and the affine elements."""
    import nflows.transforms as transforms
    from nflows.transforms.splines import rational_quadratic as original

    bounded, unbounded = original.rational_quadratic_spline, original.unconstrained_rational_quadratic_spline

    def minima(options):
        names = ("min_bin_width", "min_bin_height", "min_derivative")
        return {name: options.get(name, 1e-3) for name in names}

    def rational_quadratic_spline(
        inputs,
        unnormalized_widths,
        unnormalized_heights,
        unnormalized_derivatives,
        inverse=False,
        left=0.0,
        right=1.0,
        bottom=0.0,
        top=1.0,
        **options,
    ):
        if inputs.min() < left or inputs.max() > right:
            raise original.InputOutsideDomain
        assert (left, right) == (bottom, top)
        calls["nflows bounded spline"] += 1
        half, middle = (right - left) / 2, (right + left) / 2
        y, log_det = spline(
            inputs - middle,
            unnormalized_widths,
            unnormalized_heights,
            unnormalized_derivatives,
            bound=half,
            tails=None,
            inverse=inverse,
            **minima(options),
        )
        return y + middle, log_det

    def unconstrained_rational_quadratic_spline(
        inputs,
        unnormalized_widths,
        unnormalized_heights,
        unnormalized_derivatives,
        inverse=False,
        tails="linear",
        tail_bound=1.0,
        **options,
    ):
        calls["nflows spline"] += 1
        inner = unnormalized_widths.shape[-1] - 1  # a test gives more slopes, which nflows does not check
        return spline(
            inputs,
            unnormalized_widths,
            unnormalized_heights,
            unnormalized_derivatives[..., :inner],
            bound=tail_bound,
            tails=tails,
            inverse=inverse,
            **minima(options),
        )

    ours = {bounded: rational_quadratic_spline, unbounded: unconstrained_rational_quadratic_spline}
    for module in [m for name, m in sys.modules.items() if name.startswith("nflows")]:
        for name, value in list(vars(module).items()):
            if value in (bounded, unbounded):
                setattr(module, name, ours[value])

    def forward(self, inputs, transform_params=None, autoregressive_params=None):
        calls["nflows affine"] += 1
        scale, shift = parts(self, autoregressive_params if transform_params is None else transform_params)
        return affine(inputs, shift, scale.log())

    def inverse(self, inputs, transform_params=None, autoregressive_params=None):
        calls["nflows affine"] += 1
        scale, shift = parts(self, autoregressive_params if transform_params is None else transform_params)
        return affine(inputs, shift, scale.log(), inverse=True)

    def parts(self, parameters):
        if hasattr(self, "_scale_and_shift"):
            return self._scale_and_shift(parameters)
        raw, shift = self._unconstrained_scale_and_shift(parameters)
        return torch.nn.functional.softplus(raw) + self._epsilon, shift

    coupling = transforms.coupling.AffineCouplingTransform
    coupling._coupling_transform_forward, coupling._coupling_transform_inverse = forward, inverse
    masked = transforms.autoregressive.MaskedAffineAutoregressiveTransform
    masked._elementwise_forward, masked._elementwise_inverse = forward, inverse


def adapt_zuko():
    """Replace the maps of zuko's affine and rational-quadratic transforms."""
    from zuko import transforms

    rqs, plain = transforms.MonotonicRQSTransform, transforms.MonotonicAffineTransform
    construct = rqs.__init__

    def __init__(self, widths, heights, derivatives, bound=5.0, slope=1e-3, **options):
        construct(self, widths, heights, derivatives, bound, slope, **options)
        limit = abs(torch.tensor(slope).log().item())
        bins = [raw / (1 + abs(2 * raw / limit)) for raw in (widths, heights)]
        slopes = derivatives / (1 + abs(derivatives / limit))  # their logarithms
        self.raw = (*bins, slopes.exp().expm1().log()), bound

    def run(self, x, inverse=False):
        calls["zuko spline"] += 1
        raw, bound = self.raw
        none = {"min_bin_width": 0.0, "min_bin_height": 0.0, "min_derivative": 0.0}
        return spline(x, *raw, bound=bound, inverse=inverse, **none)

    rqs.__init__, rqs.call_and_ladj = __init__, run
    rqs._call = lambda self, x: run(self, x)[0]
    rqs._inverse = lambda self, y: run(self, y, inverse=True)[0]

    def scaled(self, x, inverse=False):
        calls["zuko affine"] += 1
        shape = torch.broadcast_shapes(x.shape, self.shift.shape, self.log_scale.shape)
        x, shift, log_scale = (t.expand(shape).reshape(1, -1) for t in (x, self.shift, self.log_scale))
        return affine(x, shift, log_scale, inverse)[0].reshape(shape)

    plain._call, plain._inverse = scaled, lambda self, y: scaled(self, y, inverse=True)


def pytest_configure(config):
    if os.environ.get("GMFAST_ADAPT") == "1":
        {"nflows": adapt_nflows, "zuko": adapt_zuko}[os.environ["GMFAST_PEER"]]()


def pytest_runtest_setup(item):
    torch.manual_seed(0)


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish(session):
    with open(os.environ["GMFAST_OUTCOMES"], "w") as file:
        json.dump({"outcomes": outcomes, "calls": calls}, file)
