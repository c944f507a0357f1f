import copy
import math

import pytest
import torch
from models.flow_contracts import FlowContracts
from models.image_contracts import images

import gmfast.functional as GF
from gmfast.models import FlowPP
from gmfast.models.flows.flowpp import Checkerboard


class TestFlowPP(FlowContracts):
    model = FlowPP
    smallest = (1, 4, 4)

    def tiny(self):
        return {
            "num_couplings": (1, 1, 1),
            "num_filters": 4,
            "num_blocks": 1,
            "num_components": 2,
            "num_heads": 2,
            "dropout": 0.0,
            "dequantizer_couplings": 2,
            "dequantizer_filters": 4,
            "dequantizer_blocks": 1,
        }

    def test_probabilities_are_those_of_samples(self):
        """2 ** 16 cells are too many. The bound is the density at levels and noise less that of the noise,
        which has a test of its own below."""
        model = self.build()
        x = images(model, 4)
        noise = GF.standard_normal(x.shape, seed=3, dtype=torch.float64)
        u, log_density = model.dequantizer(x, noise)
        y, log_det = model.continuous(x, u)
        z, more = model.transform(y)
        normal = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
        assert torch.allclose(model.log_prob(x, seed=3), normal + log_det + more - log_density)

    def test_density_of_the_noise(self):
        """It depends on the image, and is that of the map from normal noise by its Jacobian."""
        model = self.build()
        x = images(model, 2)
        noise = torch.randn(2, *self.image_shape, dtype=torch.double)
        u, log_density = model.dequantizer(x, noise)
        assert ((u > 0) & (u < 1)).all()
        jacobian = torch.autograd.functional.jacobian(lambda e: model.dequantizer(x, e)[0].sum(0), noise)
        jacobian = jacobian.flatten(0, 2).transpose(0, 1).flatten(2)
        normal = -0.5 * (noise.square() + math.log(2 * math.pi)).flatten(1).sum(1)
        assert torch.allclose(log_density, normal - torch.linalg.slogdet(jacobian).logabsdet)
        assert not torch.isclose(model.dequantizer(-x, noise)[0], u).any()


class TestFlowPPOfUniformNoise(TestFlowPP):
    image_shape = (1, 4, 8)

    def tiny(self):
        return super().tiny() | {"dequantizer_couplings": 0, "num_couplings": (2, 1, 0), "num_components": 1}

    test_density_of_the_noise = None
    test_probabilities_are_those_of_samples = None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_models_dequantize_in_float32(dtype):
    """Whatever half precision has of the noise, its place in the level and its density agree."""
    torch.manual_seed(0)
    model = FlowPP(
        (3, 16, 16),
        (0, 0, 0),
        num_filters=4,
        num_blocks=0,
        num_components=2,
        dequantizer_couplings=1,
        dequantizer_filters=4,
        dequantizer_blocks=0,
        num_levels=65536,
    )
    half = copy.deepcopy(model).to(dtype)
    x = images(model, 2).to(dtype)
    noise = GF.standard_normal(x.shape, seed=1, dtype=dtype)
    with torch.no_grad():
        u, log_density = half.dequantizer(x, noise)
        _, expected = half.float().dequantizer(x.float(), noise.float())
        assert u.dtype == log_density.dtype == torch.float32
        torch.testing.assert_close(log_density, expected, rtol=0, atol=1.5)
        assert half.to(dtype).log_prob(x, seed=1).isfinite().all()


def test_checkerboard_splits_fields():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    y, log_det = Checkerboard()(x)
    assert y.shape == (1, 2, 4, 2) and log_det.tolist() == [0]
    assert y[0, 0].tolist() == [[0, 2], [5, 7], [8, 10], [13, 15]]
    assert y[0, 1].tolist() == [[1, 3], [4, 6], [9, 11], [12, 14]]
    x = torch.randn(2, 3, 6, 4)
    assert torch.equal(Checkerboard().inverse(Checkerboard()(x)[0])[0], x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_shape": (1, 8, 6)},
            r"image_shape: expected H and W to be multiples of 4, which are halved 2 times, got \(1, 8, 6\)",
        ),
        ({"num_couplings": (1, 2)}, r"num_couplings: expected three numbers, got \(1, 2\)"),
        ({"num_filters": 30}, "num_filters: expected a multiple of num_heads=4, got 30"),
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
        ({"num_components": 0}, "num_components: expected at least 1, got 0"),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        FlowPP(**options)
