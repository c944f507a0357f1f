import pytest
import torch
import torch.nn.functional as F
from models.flow_contracts import FlowContracts, Reversible
from models.image_contracts import images

from gmfast.models import Glow
from gmfast.models.flows.glow import NormalizedConv2d


class TestGlow(FlowContracts, Reversible):
    model = Glow
    scale = 0.02  # sigmoid scales near zero cannot be undone

    def tiny(self):
        return {"num_scales": 1, "num_steps": 2, "width": 8}

    def test_reversible_training_saves_the_same_at_any_depth(self):
        stored = [self.saved_bytes(False, num_steps=n) for n in (2, 8)]
        recomputed = [self.saved_bytes(True, num_steps=n) for n in (2, 8)]
        assert stored[1] > 3 * stored[0] and recomputed[1] == recomputed[0] < 0.5 * stored[0]


class TestGlowOfTwoScales(TestGlow):
    def tiny(self):
        return super().tiny() | {"num_scales": 2, "lu": False, "alpha": 0.05}

    smallest = (1, 4, 4)

    def test_probabilities_are_those_of_samples(self):
        """2 ** 16 cells are too many."""


class TestGlowOfAdditiveCouplings(TestGlow):
    def tiny(self):
        return super().tiny() | {"coupling": "additive"}


def test_parameter_count_of_the_published_model():
    def step(channels, width=512):
        half = channels // 2
        network = 9 * half * width + width**2 + 9 * width * channels + 2 * 2 * width + 2 * channels
        return 2 * channels + 2 * channels**2 + channels + network

    def split(channels):
        half = channels // 2
        return 9 * half * channels + 2 * channels

    expected = 32 * (step(12) + step(24) + step(48)) + split(12) + split(24) + 2 * 2 * 48
    with torch.device("meta"):
        model = Glow()
    assert sum(p.numel() for p in model.parameters()) == expected


def test_a_flow_begins_as_rotations_of_normalised_channels():
    """Networks that begin at zero leave a step's scale at sigmoid(2) and the priors standard normal."""
    model = Glow((1, 4, 4), num_scales=1, num_steps=1, width=8, num_levels=5).double()
    x = images(model, 4096)
    model.initialize(x)
    z, _ = model(x, seed=1)
    squeezed = F.pixel_unshuffle(z, 2)
    deviation = squeezed.transpose(0, 1).flatten(1).std(1)
    # Normalised, then rotated: the deviations' squares sum to the number of channels before the couplings.
    gain = torch.tensor([1, 1, 1, 1], dtype=torch.double)
    gain[2:] = torch.sigmoid(torch.tensor(2.0, dtype=torch.double))
    assert ((deviation / gain).square().sum() - 4).abs() < 0.01


def test_normalized_convolution():
    """Its result has mean 0 and variance 1 over the first batch, and is the two operations one by one."""
    conv = NormalizedConv2d(3, 5, 3).double()
    x = torch.randn(16, 3, 6, 6, dtype=torch.double) * 3 + 1
    variance, mean = torch.var_mean(conv(x), (0, 2, 3), correction=0)
    assert mean.abs().max() < 1e-12 and (variance - 1).abs().max() < 1e-12
    x = torch.randn(2, 3, 6, 6, dtype=torch.double)
    with torch.no_grad():
        conv.shift.add_(torch.randn(5))
        expected = F.conv2d(x, conv.weight, padding=1) + conv.shift.view(5, 1, 1)
        assert torch.allclose(conv(x), expected * conv.log_scale.exp().view(5, 1, 1))
    assert conv.initialized


def test_classes_shift_the_prior():
    """With networks that begin at zero, the label acts through the prior alone."""
    model = Glow((1, 4, 4), num_scales=1, num_steps=1, width=4, num_levels=5, num_labels=2).double()
    x, label = images(model, 2), torch.tensor([0, 1])
    model.initialize(x, label)
    model.eval()
    prior = model.transform[-2].conditioner
    with torch.no_grad():
        prior.embedding.weight[1] = torch.arange(8.0).double() / 10
        same = x[:1].expand(2, -1, -1, -1)
        y, _ = model.continuous(same, torch.full_like(same, 0.5))
        z, _ = model.transform(y, label)
    first, second = F.pixel_unshuffle(z, 2)
    shift, log_scale = prior.embedding.weight[1].detach().view(2, 4, 1, 1)
    assert torch.allclose(second, (first + shift) * log_scale.exp())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_shape": (1, 8, 12)},
            r"image_shape: expected H and W to be multiples of 8, which are halved 3 times, got \(1, 8, 12\)",
        ),
        ({"num_steps": 0}, "num_steps: expected at least 1, got 0"),
        ({"coupling": "spline"}, "coupling: expected affine or additive, got 'spline'"),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Glow(**options)
