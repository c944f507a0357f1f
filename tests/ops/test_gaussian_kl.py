import itertools

import pytest
import torch
from ops.contracts import LAYOUTS, Contracts, results

import gmfast.functional as GF
from gmfast import reference

BACKWARD = torch.ops.gmfast.gaussian_kl_backward


class TestContracts(Contracts):
    conditioned = (0, 1, 2, 3)
    headroom = 0.1

    def call(self, *tensors):
        return GF.gaussian_kl(*tensors)

    def plain(self, *tensors):
        return reference.gaussian_kl(*tensors)

    def inputs(self, shape, dtype, device):
        batch, *spatial = shape
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(batch, 6, *spatial, generator=generator).to(device, dtype) for _ in range(4)]

    def operators(self, *tensors):
        grad = torch.ones_like(tensors[0]).requires_grad_()
        return [
            (torch.ops.gmfast.gaussian_kl.default, tensors),
            (BACKWARD.default, (grad, *tensors, True, True, True, True)),
        ]


SHAPES = [(3, 5, 4, 6), (3, 1, 1, 1), (5, 1, 1), (6,), (), (1, 5, 4, 1)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_other_pixel"])
@pytest.mark.parametrize("shape", SHAPES)
def test_broadcast(device, layout, shape):
    generator = torch.Generator().manual_seed(0)
    for where in itertools.product((False, True), repeat=4):
        tensors = [
            torch.randn(shape if own else SHAPES[0], generator=generator, dtype=torch.float64).to(device)
            for own in where
        ]
        tensors = [t if own else LAYOUTS[layout](t) for t, own in zip(tensors, where, strict=True)]
        ours, exact = results(GF.gaussian_kl, tensors), results(reference.gaussian_kl, tensors)
        for a, e in zip(ours, exact, strict=True):
            assert a.shape == e.shape
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


def test_broadcast_of_everything(device):
    """No tensor has the shape of the result."""
    shapes = [(3, 1, 1, 1), (5, 1, 1), (6,), (4, 1)]
    tensors = [torch.randn(shape, device=device, dtype=torch.float64) for shape in shapes]
    for a, e in zip(results(GF.gaussian_kl, tensors), results(reference.gaussian_kl, tensors), strict=True):
        assert a.shape == e.shape
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


def test_numbers(device):
    """A variational autoencoder's prior; numbers change no dtype."""
    for shape in ((7, 5), (7,), ()):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            mean, logvar = (torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(2))
            kl = GF.gaussian_kl(mean, logvar, 0, 0.0)
            doubles = [t.detach().double().requires_grad_() for t in (mean, logvar)]
            exact = -0.5 * (1 + doubles[1] - doubles[0] ** 2 - doubles[1].exp())
            assert kl.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=1e-6)
            gradients = torch.autograd.grad(kl.sum(), [mean, logvar])
            for a, e in zip(gradients, torch.autograd.grad(exact.sum(), doubles), strict=True):
                torch.testing.assert_close(a, e.to(dtype))


def test_of_torch_distributions(device):
    mean1, logvar1, mean2, logvar2 = torch.randn(4, 6, 9, device=device).unbind(0)
    normal = [torch.distributions.Normal(m, (v / 2).exp()) for m, v in ((mean1, logvar1), (mean2, logvar2))]
    expected = torch.distributions.kl_divergence(*normal)
    torch.testing.assert_close(GF.gaussian_kl(mean1, logvar1, mean2, logvar2), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_accurate_where_nearly_equal(device, dtype):
    """Relatively: e^r - 1 - r is r²/2 + r³/6 + r⁴/24 there."""
    eps = torch.finfo(dtype).eps
    ratio = torch.logspace(-9, -4, 500, dtype=torch.float64).to(dtype) * torch.tensor([1, -1]).repeat(250)
    mean = torch.zeros_like(ratio).to(device)
    r = ratio.double()
    exact = 0.5 * r**2 * (0.5 + r / 6 + r**2 / 24 + r**3 / 120)
    kl = GF.gaussian_kl(mean, ratio.to(device), mean, 0.0).cpu().double()
    assert ((kl - exact).abs() <= 4 * eps * exact).all()


def test_accurate_everywhere(device):
    r = torch.linspace(-150, 85, 4001).float()
    d = torch.linspace(-3, 3, 4001).float()
    v = torch.linspace(-20, 20, 4001)[torch.randperm(4001, generator=torch.Generator().manual_seed(0))]
    tensors = [t.to(device) for t in (d, (r + v).float(), torch.zeros_like(d), v)]
    exact = reference.gaussian_kl(*(t.cpu().double() for t in tensors))
    kl = GF.gaussian_kl(*tensors).cpu().double()
    # The rounding of a log-variance counts as the exponent that it is.
    assert ((kl - exact).abs() <= (12 + 2 * r.abs() + 2 * v.abs()) * 2**-24 * exact).all()


def test_equal_and_narrow(device):
    """0 times infinity is 0: a mean that is hit, however narrow the distribution."""
    mean = torch.tensor([1.5, -2.0], device=device)
    kl = GF.gaussian_kl(mean, -1e4, mean, -1e4)
    assert torch.equal(kl, torch.zeros_like(mean))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((torch.ones(2), "0", 0, 0), TypeError, r"logvar1: expected a torch\.Tensor or a number, got str"),
        ((0, 0, 0, 0), TypeError, r"expected at least one torch\.Tensor"),
        ((torch.ones(2), 0, torch.ones(3), 0), ValueError, r"that broadcast, got \(2,\), \(\), \(3,\), \(\)"),
        ((torch.ones(2, dtype=torch.int32), 0, 0, 0), TypeError, "mean1: expected float32, .* got int32"),
        ((torch.ones(2), torch.ones(2, device="meta"), 0, 0), ValueError, "one device"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GF.gaussian_kl(*arguments)
