import math

import pytest
import torch
from ops.contracts import DTYPES, LAYOUTS, FlowContracts, assert_same, results, threads
from scipy import stats

import gmfast.functional as GF
from gmfast import _philox, reference

LEVELS = 16


class TestContracts(FlowContracts):
    """With noise given, as variational dequantization has it."""

    conditioned = (1,)

    def forward(self, x, noise, inverse=False):
        if inverse:
            return GF.dequantize_logit(x, num_levels=LEVELS, inverse=True, quantize=False)
        return GF.dequantize_logit(x, num_levels=LEVELS, noise=noise)

    def plain_forward(self, x, noise, inverse=False):
        if inverse:
            return reference.dequantize_logit(x, num_levels=LEVELS, inverse=True, quantize=False)
        return reference.dequantize_logit(x, num_levels=LEVELS, noise=noise)

    def inputs(self, shape, dtype, device):
        batch, *spatial = shape
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(LEVELS, (batch, 6, *spatial), generator=generator)
        return [x.to(device, dtype), torch.rand(x.shape, generator=generator).to(device, dtype)]

    def operators(self, x, noise):
        y, log_det = (t.detach().requires_grad_() for t in self.forward(x, noise))
        seed, options = torch.tensor(3, device=x.device), (LEVELS, 0.05, False, True)
        gradient = torch.ops.gmfast.dequantize_logit_backward.default
        return [
            (torch.ops.gmfast.dequantize_logit.default, (x, noise, None, *options)),
            (torch.ops.gmfast.dequantize_logit.default, (x, None, seed, *options)),
            (gradient, (y, log_det, x, noise, None, *options, 0, True, True)),
        ]

    def test_round_trip(self, device):
        """x + u comes back."""
        for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.3)):
            x, noise = self.inputs((4, 9, 7), dtype, device)
            y, log_det = self.forward(x, noise)
            back, log_det_back = self.forward(y, noise, inverse=True)
            assert ((back - (x + noise)).abs() <= bound).all()
            assert ((log_det + log_det_back).abs() <= bound * x[0].numel()).all()

    def test_finite_at_the_extremes(self, device):
        """The ends of the range, where with alpha = 0 a probability tends to 0."""
        x = torch.tensor([[0.0, 0.0, 15.0, 15.0]], device=device)
        noise = torch.tensor([[0.0, 1e-6, 0.5, 1 - 2**-24]], device=device)
        for alpha in (0.0, 1e-6, 0.05, 0.49):
            tensors = [x, noise]
            for dtype in (torch.float32, torch.float64):
                tensors = [t.to(dtype) for t in tensors]
                y, log_det, *_ = results(
                    lambda x, u, alpha=alpha: GF.dequantize_logit(x, num_levels=16, alpha=alpha, noise=u),
                    tensors,
                )
                assert y.isfinite().all() and log_det.isfinite().all()
                q = alpha + (1 - 2 * alpha) * (1 - (x.double() + noise.double()) / 16)
                expected = torch.log((1 - q) / q)
                torch.testing.assert_close(y[:, 1:].double(), expected[:, 1:], rtol=2e-6, atol=1e-6)


class TestInverse(TestContracts):
    inverse = True
    conditioned = (0,)

    def call(self, x):
        return self.forward(x, None, inverse=True)

    def plain(self, x):
        return self.plain_forward(x, None, inverse=True)

    def inputs(self, shape, dtype, device):
        batch, *spatial = shape
        generator = torch.Generator().manual_seed(0)
        return [(2 * torch.randn(batch, 6, *spatial, generator=generator)).to(device, dtype)]

    def operators(self, x):
        y, log_det = (t.detach().requires_grad_() for t in self.call(x))
        options = (LEVELS, 0.05, True, False)
        gradient = torch.ops.gmfast.dequantize_logit_backward.default
        return [
            (torch.ops.gmfast.dequantize_logit.default, (x, None, None, *options)),
            (gradient, (y, log_det, x, None, None, *options, 0, True, False)),
        ]

    test_round_trip = None

    def test_finite_at_the_extremes(self, device):
        """All that is finite: far out the probability is at its end."""
        x = torch.tensor([[-1e30, -200.0, -20.0, 0.0, 20.0, 200.0, 1e30]], device=device)
        y, log_det, grad = results(lambda x: GF.dequantize_logit(x, inverse=True, quantize=False), [x])
        assert y.isfinite().all() and log_det.isfinite().all() and grad.isfinite().all()
        levels = GF.dequantize_logit(x, inverse=True)[0]
        assert levels.tolist() == [[0, 0, 0, 128, 255, 255, 255]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, *DTYPES], ids=str)
@pytest.mark.parametrize("shape", [(3, 3, 8, 9), (2, 1, 70, 70), (5, 7), (4,), (0, 3), (2, 0)])
def test_drawn_noise_is_the_reference(device, dtype, shape):
    x = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    y, log_det = GF.dequantize_logit(x, seed=5)
    flat = x if x.dim() > 1 else x[:, None]
    plain = reference.dequantize_logit(flat.to(computed), seed=torch.tensor(5, device=device))
    assert y.dtype == (dtype if dtype.is_floating_point else torch.float32)
    tolerance = 8 * torch.finfo(y.dtype).eps
    torch.testing.assert_close(y, plain[0].view(shape).to(y.dtype), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(log_det, plain[1], rtol=1e-5, atol=1e-4)
    same = _philox.array_uniform(torch.tensor(5, device=device), flat.shape, computed, device)
    given = GF.dequantize_logit(x, noise=same.view(shape))  # but for the margin at the ends
    torch.testing.assert_close(y, given[0].to(y.dtype), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32], ids=str)
def test_drawn_noise_does_not_depend_on_layout_batch_or_threads(device, layout, dtype):
    x = torch.randint(200, (3, 4, 9, 19), device=device)
    expected, log_det = GF.dequantize_logit(x.to(dtype), seed=5)
    laid_out = LAYOUTS[layout](x.double()).to(dtype)  # keeps the strides
    for count in (1, 2, 3):
        with threads(count):
            y, log_det_again = GF.dequantize_logit(laid_out, seed=5)
            assert torch.equal(y, expected)
            torch.testing.assert_close(log_det_again, log_det, rtol=1e-6, atol=1e-4)
            assert_same(GF.dequantize_logit(x[:2].to(dtype), seed=5), [expected[:2], log_det[:2]])


def test_gradient_with_drawn_noise(device):
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](torch.randint(256, (3, 4, 9, 19), device=device).double())

        def call(x, function=GF.dequantize_logit):
            return function(x, seed=torch.tensor(5, device=device))

        ours = results(call, [x])
        for a, e in zip(ours, results(lambda x: call(x, reference.dequantize_logit), [x]), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "num_levels, dtype",
    [(2, torch.float32), (256, torch.float32), (65536, torch.float32), (2**24, torch.float64)],
)
@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.05])
def test_levels_come_back_exactly(device, num_levels, dtype, alpha):
    x = torch.randint(num_levels, (4, 3, 200, 200), device=device)
    x[:, 0, 0] = torch.randint(2, (4, 200), device=device) * (num_levels - 1)
    y, log_det = GF.dequantize_logit(x.to(dtype), num_levels=num_levels, alpha=alpha, seed=1)
    assert y.isfinite().all() and log_det.isfinite().all()
    back, log_det_back = GF.dequantize_logit(y, num_levels=num_levels, alpha=alpha, inverse=True)
    assert torch.equal(back.long(), x)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-5, atol=1e-3)


def test_noise_is_uniform(device):
    x = torch.zeros(4, 100_000, device=device, dtype=torch.float64)
    y, _ = GF.dequantize_logit(x, num_levels=1, alpha=0.0, seed=2)
    assert stats.kstest(torch.sigmoid(y).flatten().cpu().numpy(), "uniform").pvalue > 1e-3


def test_quantized_levels_have_no_gradient(device):
    x = torch.randn(2, 5, device=device, dtype=torch.float64, requires_grad=True)
    y, log_det = GF.dequantize_logit(x, inverse=True)
    assert torch.autograd.grad(y.sum(), x, retain_graph=True)[0].abs().max() == 0
    (grad,) = torch.autograd.grad(log_det.sum(), x)
    torch.testing.assert_close(grad, -torch.tanh(x.detach() / 2))


def test_integers_with_noise_of_a_network(device):
    x = torch.randint(256, (2, 3, 5), device=device, dtype=torch.uint8)
    u = torch.rand(2, 3, 5, device=device, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: GF.dequantize_logit(x, noise=u), [u])
    assert torch.autograd.gradgradcheck(lambda u: GF.dequantize_logit(x, noise=u), [u])
    assert GF.dequantize_logit(x, noise=u)[0].dtype == torch.float64


def test_log_det_of_one_element(device):
    y, log_det = GF.dequantize_logit(
        torch.full((1, 1), 3.0).to(device),
        num_levels=8,
        alpha=0.1,
        noise=torch.full((1, 1), 0.5).to(device),
    )
    p = 0.1 + 0.8 * 3.5 / 8
    assert y.item() == pytest.approx(math.log(p / (1 - p)), rel=1e-5)
    assert log_det.item() == pytest.approx(math.log(0.8 / 8 / p / (1 - p)), rel=1e-6)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        (("x",), {}, TypeError, "x: expected a tensor, got str"),
        ((torch.ones(2, dtype=torch.bool),), {}, TypeError, "x: expected float32, .* got bool"),
        ((torch.ones(2, 2, dtype=torch.uint8),), {"inverse": True}, TypeError, "x: expected float32"),
        ((torch.ones(()),), {}, ValueError, r"x: expected shape \(B, \*S\), got a scalar"),
        ((torch.ones(2, 2),), {"num_levels": 0}, ValueError, r"num_levels: expected 1 to 2\*\*24, got 0"),
        ((torch.ones(2, 2),), {"num_levels": 2.0}, TypeError, "num_levels: expected an int, got float"),
        ((torch.ones(2, 2),), {"alpha": 0.5}, ValueError, r"alpha: expected a number in \[0, 0\.5\)"),
        ((torch.ones(2, 2),), {"alpha": -0.1}, ValueError, "alpha: expected a number in"),
        ((torch.ones(2, 2),), {"noise": torch.ones(2)}, ValueError, r"noise: expected shape \(2, 2\), got"),
        ((torch.ones(2, 2),), {"noise": 0.5}, TypeError, "noise: expected a torch.Tensor, got float"),
        (
            (torch.ones(2, 2),),
            {"noise": torch.ones(2, 2), "inverse": True},
            ValueError,
            "noise: expected None for the inverse",
        ),
        ((torch.ones(2, 2),), {"seed": 1.5}, TypeError, "seed: expected an int"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        GF.dequantize_logit(*arguments, **options)
