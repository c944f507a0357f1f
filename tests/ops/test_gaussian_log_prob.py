import math

import pytest
import torch
from ops.contracts import LAYOUTS, Contracts, assert_same, results, threads

import gmfast.functional as GF
from gmfast import reference

BACKWARD = torch.ops.gmfast.gaussian_log_prob_backward


class TestContracts(Contracts):
    conditioned = (1, 2)
    summed = (0,)
    headroom = 1e-20

    def call(self, z, mean, log_std):
        return GF.gaussian_log_prob(z, mean, log_std)

    def plain(self, z, mean, log_std):
        return reference.gaussian_log_prob(z, mean, log_std)

    def inputs(self, shape, dtype, device):
        batch, *spatial = shape
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(batch, 6, *spatial, generator=generator).to(device, dtype) for _ in range(3)]

    def operators(self, z, mean, log_std):
        log_prob = GF.gaussian_log_prob(z, mean, log_std).detach().requires_grad_()
        return [
            (torch.ops.gmfast.gaussian_log_prob.default, (z, mean, log_std)),
            (BACKWARD.default, (log_prob, z, mean, log_std, True, True, True)),
        ]

    def test_finite_at_the_extremes(self, device):
        """As far as z² and exp(-log_std) have numbers."""
        z = torch.tensor([[1e12, 0.0], [-1e12, 1.0]], device=device, dtype=torch.float64)
        for dtype in (torch.float32, torch.float64):
            for log_std in (-30.0, 0.0, 30.0):
                mean = -z[0] if 1 in self.shared else -z
                tensors = [t.to(dtype) for t in (z, mean, torch.full_like(mean, log_std / 3))]
                ours = results(self.call, tensors)
                exact = results(self.plain, [t.double() for t in tensors])
                for a, e in zip(ours, exact, strict=True):
                    assert not a.isnan().any()
                    torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=1e-5)


class TestPerChannel(TestContracts):
    """mean and log_std for each channel, their gradients sums over samples and pixels."""

    conditioned = (0,)
    shared = (1, 2)
    summed = (0, 2, 3)

    def call(self, z, mean, log_std):
        ones = [1] * (z.dim() - 2)
        return GF.gaussian_log_prob(z, mean.view(-1, *ones), log_std.view(-1, *ones))

    def plain(self, z, mean, log_std):
        ones = [1] * (z.dim() - 2)
        return reference.gaussian_log_prob(z, mean.view(-1, *ones), log_std.view(-1, *ones))

    def inputs(self, shape, dtype, device):
        z, *_ = super().inputs(shape, dtype, device)
        generator = torch.Generator().manual_seed(1)
        return [z, *(torch.randn(6, generator=generator).to(z) for _ in range(2))]

    def operators(self, z, mean, log_std):
        return []  # those of TestContracts


def broadcasts(z):
    """Shapes of mean and log_std: of channels, scalars, samples, pixels, rows, everything."""
    b, c, h, w = z.shape
    return [(c, 1, 1), (), (1,), (1, c, 1, 1), (b, 1, 1, 1), (h, w), (w,), (h, 1), (b, c, 1, 1), (1, c, h, w)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_other_pixel"])
@pytest.mark.parametrize("which", range(10))
def test_broadcast_parameters(device, layout, which):
    z = LAYOUTS[layout](torch.randn(3, 5, 4, 6, device=device, dtype=torch.float64))
    shape = broadcasts(z)[which]
    for mean_shape, log_std_shape in ((shape, shape), (shape, z.shape), (z.shape, shape)):
        tensors = [z, torch.randn(mean_shape).to(z), torch.randn(log_std_shape).to(z)]
        ours = results(GF.gaussian_log_prob, tensors)
        for a, e in zip(ours, results(reference.gaussian_log_prob, tensors), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


def test_without_parameters(device):
    z = torch.randn(7, 3, 5, device=device, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.zeros_like(z), 1)
    torch.testing.assert_close(GF.gaussian_log_prob(z), normal.log_prob(z).flatten(1).sum(1))
    for tensors in ([z, z.flip(0)], [z, None, z.flip(0)]):
        (index,) = [i for i, t in enumerate(tensors) if i and t is not None]

        def call(z, p, function=GF.gaussian_log_prob, index=index):
            return function(z, p) if index == 1 else function(z, None, p)

        given = [z, tensors[index]]
        ours = results(call, given)
        exact = results(lambda *t, call=call: call(*t, function=reference.gaussian_log_prob), given)
        for a, e in zip(ours, exact, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)
        assert torch.autograd.gradgradcheck(call, [t[:2, :2, :2].clone().requires_grad_() for t in given])


def test_of_torch_distributions(device):
    z, mean = torch.randn(2, 4, 9, device=device).unbind(0)
    log_std = torch.randn(4, 9, device=device)
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(z).sum(1)
    torch.testing.assert_close(GF.gaussian_log_prob(z, mean, log_std), expected)


def test_chunks_of_a_network(device):
    z, both = torch.randn(4, 6, 5, 7, device=device), torch.randn(4, 12, 5, 7, device=device)
    for layout in ("contiguous", "channels_last"):
        laid_out = LAYOUTS[layout](both)
        expected = results(GF.gaussian_log_prob, [z, *(t.contiguous() for t in both.chunk(2, 1))])
        assert_same(results(GF.gaussian_log_prob, [z, *laid_out.chunk(2, 1)]), expected, (0,))


@pytest.mark.parametrize("shape", [(1, 3, 200, 200), (5, 2), (300, 70), (2, 1, 9000)])
@pytest.mark.parametrize("parameters", ["full", "channels", "scalar"])
def test_same_bits_for_any_threads(device, shape, parameters):
    z = torch.randn(shape, device=device)
    of = {"full": shape, "channels": (shape[1], *[1] * (len(shape) - 2)), "scalar": ()}[parameters]
    tensors = [z, torch.randn(of, device=device), torch.randn(of, device=device)]
    with threads(1):
        alone = results(GF.gaussian_log_prob, tensors)
    exact = results(reference.gaussian_log_prob, [t.double() for t in tensors])
    for a, e in zip(alone, exact, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=1e-5 * z.numel() ** 0.5)
    for count in (2, 3):
        with threads(count):
            assert_same(results(GF.gaussian_log_prob, tensors), alone)


def test_one_dimension(device):
    z, mean, log_std = torch.randn(3, 5, device=device, dtype=torch.float64).unbind(0)
    expected = -0.5 * ((z - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(GF.gaussian_log_prob(z, mean, log_std), expected)
    expected = -0.5 * (z - mean[0]) ** 2 - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(GF.gaussian_log_prob(z, mean[0]), expected)


def test_mixed_dtypes(device):
    z = torch.randn(3, 4, 5, device=device)
    mean, log_std = torch.randn(3, 4, 5, device=device).bfloat16(), torch.randn(4, 1, device=device).half()
    ours = results(GF.gaussian_log_prob, [z, mean, log_std])
    assert [t.dtype for t in ours] == [torch.float32, torch.float32, torch.bfloat16, torch.float16]
    expected = results(GF.gaussian_log_prob, [z, mean.float(), log_std.float()])
    assert_same(ours, [e.to(t) for e, t in zip(expected, ours, strict=True)])


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("z",), TypeError, r"z: expected a torch\.Tensor, got str"),
        ((torch.ones(()),), ValueError, r"z: expected shape \(B, \*S\), got a scalar"),
        ((torch.ones(2, 3), torch.ones(2)), ValueError, r"mean: .* broadcasts to \(2, 3\), got \(2,\)"),
        ((torch.ones(2, 3), None, torch.ones(1, 2, 3)), ValueError, r"log_std: .* got \(1, 2, 3\)"),
        ((torch.ones(2, 3), 0.0), TypeError, r"mean: expected a torch\.Tensor, got float"),
        ((torch.ones(2, 3, dtype=torch.int32),), TypeError, r"z: expected float32, .* got int32"),
        ((torch.ones(2, 3), torch.ones(3, device="meta")), ValueError, "one device"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GF.gaussian_log_prob(*arguments)
