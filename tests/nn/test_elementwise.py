"""Transforms by formulas of their own: elementwise ones, planar, radial and Householder's."""

import copy
import math

import pytest
import torch
from nn.transform_contracts import DIRECTIONS, ROUND_TRIP, Directed, directed, jacobian_log_det
from torch import distributions as D

from gmfast import nn as gnn

SCALE = torch.tensor([[2.0], [-0.5], [1.5]])

#: Each, and how inputs come from normal ones.
TRANSFORMS = {
    "affine": (
        lambda: gnn.Affine((3, 1), shift=0.5, scale=torch.tensor([[2.0], [-0.5], [1.5]])),
        lambda x: x,
    ),
    "sigmoid": (lambda: gnn.Sigmoid(1.5), lambda x: x),
    "logit": (gnn.Logit, torch.sigmoid),
    "tanh": (gnn.Tanh, lambda x: x),
    "exp": (gnn.Exp, lambda x: x),
    "log": (lambda: gnn.Inverse(gnn.Exp()), lambda x: x.exp()),
    "softplus": (gnn.Softplus, lambda x: x),
    "leaky relu": (lambda: gnn.LeakyReLU(0.2), lambda x: x),
    "cubic": (lambda: gnn.Cubic(0.3), lambda x: x),
    "power": (lambda: gnn.SignedPower(1.7), lambda x: x),
    "cauchy": (gnn.CauchyCDF, lambda x: x),
    "softclip": (lambda: gnn.Softclip(5.0), lambda x: x),
    "planar": (lambda: gnn.Planar((3, 2)), lambda x: x),
    "radial": (lambda: gnn.Radial((3, 2)), lambda x: x),
    "householder": (lambda: gnn.Householder(3, 3), lambda x: x),
}


@pytest.fixture(params=TRANSFORMS)
def case(request):
    torch.manual_seed(0)
    build, domain = TRANSFORMS[request.param]
    transform = build().double()
    for p in transform.parameters():
        p.data += 0.5 * torch.randn_like(p)
    return transform, domain(torch.randn(4, 3, 2, dtype=torch.float64))


@DIRECTIONS
def test_log_det_and_gradients(case, inverse):
    transform, x = case
    x = transform(x)[0].detach() if inverse else x
    y, log_det = directed(transform, inverse)(x)
    assert y.shape == x.shape and log_det.shape == (4,)
    for i in range(4):
        expected = jacobian_log_det(lambda x: directed(transform, inverse)(x)[0], x[i : i + 1])
        torch.testing.assert_close(log_det[i], expected, rtol=1e-9, atol=1e-9)
    back, log_det_back = directed(transform, not inverse)(y)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-9, atol=1e-9)
    leaves = [x.requires_grad_(), *transform.parameters()]
    names = [f"transform.{n}" for n, _ in transform.named_parameters()]

    def call(x, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(Directed(transform, inverse), named, (x,))

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@torch.no_grad()
def test_dtypes_copies_and_empty_batches(case):
    transform, x = case
    expected, expected_log_det = transform(x)
    for dtype in (torch.float32, torch.bfloat16):
        moved = copy.deepcopy(transform).to(dtype)
        z, log_det = moved(x.to(dtype))
        assert z.dtype == dtype and log_det.dtype == torch.float32
        eps = 64 * torch.finfo(dtype).eps
        torch.testing.assert_close(z.double(), expected, rtol=eps, atol=eps)
        torch.testing.assert_close(log_det.double(), expected_log_det, rtol=eps, atol=6 * eps)
        if dtype == torch.float32:
            assert (moved.inverse(z)[0] - x).abs().max() < ROUND_TRIP[dtype] * x.abs().max()
    z, log_det = transform(x[:0])
    assert z.shape == (0, 3, 2) and log_det.shape == (0,)


def test_torch_compile_and_reversible_training():
    chosen = [gnn.Affine((3, 1)), gnn.Planar((3, 2)), gnn.Radial((3, 2)), gnn.Householder(3), gnn.Tanh()]
    stack = gnn.Sequential(chosen).double()
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    for inverse in (False, True):
        at = stack(x)[0].detach().requires_grad_() if inverse else x
        torch.compiler.reset()
        compiled = torch.compile(Directed(stack, inverse), fullgraph=True, backend="eager")
        leaves = [at, *stack.parameters()]
        results = []
        for call in (directed(stack, inverse), compiled, directed(stack, inverse)):
            stack.reversible = len(results) == 2
            y, log_det = call(at)
            results.append((y, log_det, *torch.autograd.grad(y.square().sum() + log_det.sum(), leaves)))
        for other in results[1:]:
            for a, e in zip(other, results[0], strict=True):
                torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-8)


def test_far_values():
    """Finite where the functions are, and as exact as the type."""
    x = torch.tensor([[-80.0], [-30.0], [30.0], [80.0]])
    for transform in (
        gnn.Sigmoid(),
        gnn.Tanh(),
        gnn.Softplus(),
        gnn.Cubic(),
        gnn.CauchyCDF(),
        gnn.Softclip(),
    ):
        log_det = transform(x)[1]
        torch.testing.assert_close(log_det.double(), transform(x.double())[1], rtol=1e-5, atol=1e-6)
        assert log_det.isfinite().all()
    z = gnn.Softplus()(x)[0]
    torch.testing.assert_close(gnn.Softplus().inverse(z)[0], x)


def test_against_torch_distributions():
    x = torch.randn(5, 3, dtype=torch.float64)
    pairs = [
        (gnn.Sigmoid(), D.SigmoidTransform()),
        (gnn.Tanh(), D.TanhTransform()),
        (gnn.Exp(), D.ExpTransform()),
        (gnn.Softplus(), D.SoftplusTransform()),
        (gnn.Affine(shift=2.0, scale=-3.0).double(), D.AffineTransform(2.0, -3.0)),
    ]
    for ours, theirs in pairs:
        z, log_det = ours(x)
        torch.testing.assert_close(z, theirs(x))
        torch.testing.assert_close(log_det, theirs.log_abs_det_jacobian(x, theirs(x)).sum(1))


def test_errors():
    with pytest.raises(ValueError, match="scale: expected numbers other than 0, got 0"):
        gnn.Affine(scale=0.0)
    with pytest.raises(ValueError, match="negative_slope: expected a finite positive number, got 0"):
        gnn.LeakyReLU(0)
    with pytest.raises(ValueError, match=r"x: expected \(B, 3\), got \(2, 4\)"):
        gnn.Planar(3)(torch.randn(2, 4))
    with pytest.raises(TypeError, match="x: expected float32"):
        gnn.Tanh()(torch.arange(3)[None])


@pytest.mark.peers
class TestPeers:
    def test_nflows(self):
        theirs = pytest.importorskip("nflows.transforms")
        nonlinearities = theirs.nonlinearities
        torch.manual_seed(0)
        x = torch.randn(5, 3)
        householder = theirs.HouseholderSequence(3, 4)
        torch.nn.init.normal_(householder.q_vectors)
        ours = gnn.Householder(3, 4)
        ours.vectors.data.copy_(householder.q_vectors)
        pairs = [
            (ours, householder),
            (gnn.LeakyReLU(0.2), nonlinearities.LeakyReLU(0.2)),
            (gnn.CauchyCDF(), nonlinearities.CauchyCDF()),
            (gnn.Sigmoid(2.0), nonlinearities.Sigmoid(2.0)),
            (gnn.Tanh(), nonlinearities.Tanh()),
        ]
        for a, b in pairs:
            z, log_det = b(x)
            for ours, expected in ((a(x), (z, log_det)), (a.inverse(z), b.inverse(z))):
                torch.testing.assert_close(ours[0], expected[0], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(ours[1], expected[1], rtol=1e-3, atol=1e-3)

    def test_normflows(self):
        theirs = pytest.importorskip("normflows.flows")
        torch.manual_seed(0)
        x = torch.randn(5, 3)
        planar, ours = theirs.Planar((3,)), gnn.Planar(3)
        ours.u.data.copy_(planar.u[0].detach())
        ours.w.data.copy_(planar.w[0].detach())
        radial, other = theirs.Radial((3,)), gnn.Radial(3)
        other.centre.data.copy_(radial.z_0[0].detach())
        other.log_alpha.data.copy_(radial.alpha[0].detach().abs().log())
        other.raw_beta.data.copy_(radial.beta[0].detach())
        for a, b in ((ours, planar), (other, radial)):
            for actual, expected in zip(a(x), b(x), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)

    def test_zuko(self):
        theirs = pytest.importorskip("zuko.transforms")
        x = torch.randn(5, 3, dtype=torch.float64)
        power = torch.tensor(math.log(1.7), dtype=torch.float64)
        pairs = [
            (gnn.Softclip(5.0), theirs.SoftclipTransform(5.0)),
            (gnn.SignedPower(1.7), theirs.SignedPowerTransform(power)),
        ]
        for ours, transform in pairs:
            z, log_det = ours(x)
            torch.testing.assert_close(z, transform(x))
            torch.testing.assert_close(log_det, transform.log_abs_det_jacobian(x, z).sum(1))
