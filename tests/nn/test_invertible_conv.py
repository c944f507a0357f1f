import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from nn.transform_contracts import Contracts

from gmfast.nn import InvertibleConv1x1

BOTH = pytest.mark.parametrize("lu", [True, False], ids=["lu", "plain"])


class TestLU(Contracts):
    shape = (5, 2, 3)

    def build(self):
        return InvertibleConv1x1(5)


class TestPlain(Contracts):
    shape = (5, 3)

    def build(self):
        return InvertibleConv1x1(5, lu=False)


@BOTH
@pytest.mark.parametrize("positions", [(), (7,), (4, 6), (2, 3, 2), (2, 1, 3, 2)])
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_is_a_convolution(lu, positions, channels):
    layer = InvertibleConv1x1(channels, lu=lu).double()
    weight = torch.randn(channels, channels, dtype=torch.float64)
    layer.set_weight(weight)
    torch.testing.assert_close(layer.weight(torch.float64), weight)
    torch.testing.assert_close(layer.inverse_weight(), weight.inverse())
    x = torch.randn(3, channels, *positions, dtype=torch.float64)
    y, log_det = layer(x)
    torch.testing.assert_close(y, torch.einsum("oi,bi...->bo...", weight, x))
    expected = weight.slogdet().logabsdet * torch.Size(positions).numel()
    torch.testing.assert_close(log_det, expected.expand(3))
    back, log_det_back = layer.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)


@BOTH
def test_starts_as_a_rotation(lu):
    layer, other = InvertibleConv1x1(12, lu=lu), InvertibleConv1x1(12, lu=lu)
    weight = layer.weight().detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(12))
    assert layer(torch.randn(2, 12))[1].abs().max() < 1e-5
    assert not torch.allclose(weight, other.weight())


def test_signs_and_permutation_are_fixed():
    layer = InvertibleConv1x1(6)
    assert {name for name, _ in layer.named_parameters()} == {"lower", "upper", "log_diagonal"}
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p) * 3)
    sign, log_abs_det = layer.weight(torch.float64).slogdet()
    torch.testing.assert_close(log_abs_det, layer.log_diagonal.sum().double(), rtol=1e-5, atol=1e-5)
    assert sign != 0


@BOTH
def test_keeps_the_layout(lu):
    layer, x = InvertibleConv1x1(4, lu=lu), torch.randn(2, 4, 3, 5)
    expected = layer(x)[0]
    y = layer(x.contiguous(memory_format=torch.channels_last))[0]
    assert expected.is_contiguous() and y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected)


@BOTH
def test_vectors_of_any_strides(lu):
    layer = InvertibleConv1x1(5, lu=lu).double()
    numbers = torch.randn(40, dtype=torch.float64)
    for x in (numbers[:20].view(5, 4).t(), numbers.view(4, 10)[:, ::2]):
        for direction in (layer, layer.inverse):
            torch.testing.assert_close(direction(x)[0], direction(x.contiguous())[0])


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_weights_invert_in_float64(lu, dtype):
    """The inverse is that of the weight as it is held, not one of a sum of roundings."""
    layer = InvertibleConv1x1(16, lu=lu).to(dtype)
    identity = layer.weight(torch.float64) @ layer.inverse_weight()
    torch.testing.assert_close(identity, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-10)


class TestCache:
    @pytest.fixture(params=[True, False], ids=["lu", "plain"])
    def layer(self, request):
        return InvertibleConv1x1(4, lu=request.param).eval()

    @pytest.fixture
    def solved(self, layer, monkeypatch):
        """How often the inverse was worked out."""
        times, work = [], layer.inverse_weight
        monkeypatch.setattr(layer, "inverse_weight", lambda: (times.append(1), work())[1])
        return times

    def test_once_in_eval_mode(self, layer, solved):
        z = torch.randn(3, 4)
        with torch.no_grad():
            first = layer.inverse(z)[0]
            assert torch.equal(layer.inverse(z)[0], first) and len(solved) == 1
            layer.train().inverse(z)
            layer.inverse(z)
            assert len(solved) == 3
        layer.eval().inverse(z)[0].sum().backward()
        assert len(solved) == 4 and all(p.grad is not None for p in layer.parameters())

    @torch.no_grad()
    def test_no_result_of_an_older_weight(self, layer):
        x = torch.randn(3, 4)

        def assert_fresh():
            torch.testing.assert_close(layer.inverse(layer(x)[0])[0], x, rtol=1e-4, atol=1e-4)

        assert_fresh()
        for p in layer.parameters():
            p.add_(torch.randn_like(p))
        assert_fresh()
        layer.load_state_dict(InvertibleConv1x1(4, lu=layer.lu).state_dict())
        assert_fresh()
        layer.set_weight(torch.randn(4, 4) + 3 * torch.eye(4))
        assert_fresh()
        layer.load_state_dict(InvertibleConv1x1(4, lu=layer.lu).state_dict(), assign=True)
        assert_fresh()
        for p in layer.parameters():
            p.grad = torch.randn_like(p)
        layer.train()
        torch.optim.SGD(layer.parameters(), lr=1.0, fused=True).step()
        layer.eval()
        assert_fresh()
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            for p in other.parameters():
                p.data.mul_(1.5)
            torch.testing.assert_close(other.eval().inverse(other(x)[0])[0], x, rtol=1e-4, atol=1e-4)
        half = layer.to(torch.bfloat16)
        torch.testing.assert_close(
            half.inverse(x)[0], F.linear(x, half.inverse_weight().float()), rtol=1e-5, atol=1e-5
        )
        layer.float()
        zero = {n: torch.zeros_like(p) for n, p in layer.named_parameters()}
        if layer.lu:
            expected = torch.linalg.inv(torch.func.functional_call(Weight(layer), prefixed(zero)))
            torch.testing.assert_close(
                torch.func.functional_call(Inverse(layer), prefixed(zero), (x,)), x @ expected.T
            )
        assert_fresh()

    def test_inference_mode(self, layer):
        x = torch.randn(3, 4)
        with torch.inference_mode():
            layer.inverse(x)
        with torch.no_grad():
            layer.inverse(x)
        layer.inverse(x.requires_grad_())[0].sum().backward()
        assert x.grad.abs().sum() > 0


class Weight(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.weight()


class Inverse(Weight):
    def forward(self, z):
        return self.layer.inverse(z)[0]


def prefixed(parameters):
    return {f"layer.{name}": p for name, p in parameters.items()}


def test_float32_round_trip_of_an_ill_conditioned_weight():
    """Singular values from 1 to 1e3: the error is the condition times rounding, no more."""
    layer = InvertibleConv1x1(32)
    u, v = (torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))[0] for _ in range(2))
    layer.set_weight(u @ torch.diag(torch.logspace(0, 3, 32, dtype=torch.float64)) @ v)
    x = torch.randn(64, 32)
    assert (layer.inverse(layer(x)[0])[0] - x).abs().max() < 1e3 * 32 * torch.finfo(torch.float32).eps


def test_errors():
    with pytest.raises(ValueError, match="channels: expected at least 1, got 0"):
        InvertibleConv1x1(0)
    with pytest.raises(ValueError, match=r"weight: expected \(3, 3\), got \(2, 2\)"):
        InvertibleConv1x1(3).set_weight(torch.eye(2))
    with pytest.raises(ValueError, match="weight: expected an invertible matrix, got a singular one"):
        InvertibleConv1x1(2).set_weight(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"x: expected 3 channels in dimension 1, got shape \(5, 4\)"):
        InvertibleConv1x1(3)(torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"z: expected 3 channels in dimension 1, got shape \(3,\)"):
        InvertibleConv1x1(3).inverse(torch.randn(3))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_float32_matrix_of_half_inputs_is_not_rounded(lu, dtype):
    """Nor is its gradient, and the inverse undoes it to x's rounding."""
    torch.manual_seed(0)
    module = InvertibleConv1x1(6, lu=lu)
    x = torch.randn(4, 6, 5, 5).to(dtype)
    y, _ = module(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    actual = [p.grad for p in module.parameters()]
    exact = copy.deepcopy(module).double()
    z, _ = exact(x.double())
    expected = torch.autograd.grad(z, list(exact.parameters()), grad.double(), allow_unused=True)
    torch.testing.assert_close(y, z.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    for a, e in zip(actual, expected, strict=True):
        if e is not None:
            torch.testing.assert_close(a, e.float(), rtol=1e-5, atol=1e-4)
    assert (module.inverse(y)[0] - x).abs().max() <= 8 * torch.finfo(dtype).eps


def test_integers_are_refused():
    """They would be multiplied by a matrix rounded to integers."""
    transform = InvertibleConv1x1(3)
    for call, name in ((transform, "x"), (transform.inverse, "z")):
        with pytest.raises(
            TypeError, match=f"{name}: expected float32, float64, bfloat16 or float16, got int64"
        ):
            call(torch.ones(2, 3, dtype=torch.int64))
