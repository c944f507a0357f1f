import pytest
import torch
import torch.nn.functional as F
from nn.transform_contracts import Conditioner, Contracts
from torch import nn

from gmfast.nn import (
    ActNorm,
    AffineCoupling,
    Inverse,
    InvertibleConv1x1,
    Permute,
    Sequential,
    Split,
    Squeeze2d,
)


class TestSqueeze2d(Contracts):
    shape, keeps_volume = (4, 4, 6), True

    def build(self):
        return Squeeze2d()

    def test_is_pixel_unshuffle(self):
        x = torch.randn(2, 3, 6, 9)
        y, log_det = Squeeze2d(3)(x)
        assert torch.equal(y, F.pixel_unshuffle(x, 3)) and torch.equal(log_det, torch.zeros(2))

    def test_errors(self):
        with pytest.raises(ValueError, match=r"x: expected \(B, C, H, W\) with H and W multiples of 2"):
            Squeeze2d()(torch.randn(1, 2, 4, 5))
        with pytest.raises(ValueError, match=r"z: expected \(B, C, H, W\) with C a multiple of 4"):
            Squeeze2d().inverse(torch.randn(1, 6, 4, 4))
        with pytest.raises(ValueError, match="factor: expected at least 1, got 0"):
            Squeeze2d(0)


class TestPermute(Contracts):
    shape, keeps_volume = (5, 3), True

    def build(self):
        return Permute.random(5, seed=torch.initial_seed())

    def test_order(self):
        x = torch.randn(2, 3)
        assert torch.equal(Permute([2, 0, 1])(x)[0], x[:, [2, 0, 1]])
        assert torch.equal(Permute.reverse(3)(x)[0], x.flip(1))
        assert torch.equal(Permute(torch.tensor([2, 0, 1])).inverse(x)[0], x[:, [1, 2, 0]])

    def test_repr(self):
        assert repr(Permute([1, 0])) == "Permute([1, 0])" and repr(Permute.reverse(99)) == "Permute(99)"

    def test_errors(self):
        with pytest.raises(ValueError, match=r"order: expected a permutation of 0 to 2, got \[0, 0, 1\]"):
            Permute([0, 0, 1])
        with pytest.raises(ValueError, match=r"x: expected 3 channels in dimension 1, got shape \(2, 4\)"):
            Permute.reverse(3)(torch.randn(2, 4))


class TestInverse(Contracts):
    def build(self):
        return Inverse(AffineCoupling(Conditioner(2, 4), scale_map="tanh"))

    def test_exchanges_directions(self, transform, device):
        x, _ = self.inputs(2, device)
        inner = transform.transform
        for a, e in zip(transform(x), inner.inverse(x), strict=True):
            assert torch.equal(a, e)


class TestSplit(Contracts):
    shape = (5, 2, 2)

    def build(self):
        return Split(Sequential(InvertibleConv1x1(3), AffineCoupling(Conditioner(2, 2))))

    @torch.no_grad()
    def test_leaves_the_last_channels(self, transform, device):
        x, _ = self.inputs(2, device)
        y, log_det = transform(x)
        first, expected = transform.transform(x[:, :3])
        assert torch.equal(y, torch.cat([first, x[:, 3:]], 1)) and torch.equal(log_det, expected)

    def test_errors(self):
        with pytest.raises(ValueError, match="x: expected more than kept=4 channels, got 4"):
            Split(Sequential(), kept=4)(torch.randn(2, 4))
        with pytest.raises(ValueError, match=r"transform: expected a result of the shape of its input"):
            Split(Squeeze2d())(torch.randn(2, 4, 4, 4))


class TestMultiScale(Contracts):
    """Every kind of transform, with contexts, nested as in a multi-scale flow."""

    shape, context_shape = (2, 4, 4), (3,)

    def build(self):
        def step(channels):
            kept = channels - channels // 2
            coupling = Conditioner(kept, 2 * (channels // 2), context=3)
            return ActNorm(channels), InvertibleConv1x1(channels), AffineCoupling(coupling, scale_map="tanh")

        inner = [Squeeze2d(), *step(16), Inverse(Squeeze2d())]
        return Sequential(Squeeze2d(), *step(8), Split(Sequential(inner)), Inverse(Squeeze2d()))


class TestIdentity(Contracts):
    keeps_volume = keeps_values = True

    def build(self):
        return Sequential()


class TestSequential:
    def test_adds_log_determinants_in_order(self):
        first, second = ActNorm(2).eval(), Permute.reverse(2)
        with torch.no_grad():
            first.log_scale.copy_(torch.tensor([1.0, 2.0]))
        x = torch.randn(4, 2)
        y, log_det = Sequential(first, second)(x)
        torch.testing.assert_close(y, (x * torch.tensor([1.0, 2.0]).exp()).flip(1))
        torch.testing.assert_close(log_det, torch.full((4,), 3.0))

    def test_is_a_sequence(self):
        steps = [Permute.reverse(2) for _ in range(3)]
        sequence = Sequential(steps, reversible=True)
        assert len(sequence) == 3 and list(sequence) == steps and sequence[1] is steps[1]
        assert list(sequence[1:]) == steps[1:] and sequence[1:].reversible

    def test_refuses_what_has_no_inverse(self):
        with pytest.raises(
            TypeError, match="transforms: expected modules with forward and inverse, got Linear"
        ):
            Sequential(nn.Linear(2, 2))
