import pytest
import torch
from models.flow_contracts import FlowContracts
from models.image_contracts import images

from gmfast.models import NICE


class TestNICE(FlowContracts):
    model = NICE
    smallest = (1, 1, 2)
    image_shape = (1, 2, 4)

    def tiny(self):
        return {"hidden": 12, "num_hidden": 2}

    def test_odd_numbers_of_values(self):
        model = self.build((1, 1, 5), num_couplings=3)
        x = images(model, 2)
        y, _ = model.dequantize(x, torch.tensor(0))
        z, _ = model.transform(y)
        assert (model.transform.inverse(z)[0] - y).abs().max() < 1e-12
        jacobian = torch.autograd.functional.jacobian(lambda y: model.transform(y)[0].sum(0), y)
        assert (jacobian.flatten(2).transpose(0, 1).diagonal(dim1=1, dim2=2) != 0).any()


class TestNICEOfNormalNoise(TestNICE):
    def tiny(self):
        return super().tiny() | {"base": "normal", "alpha": 0.05}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_models_draw(dtype):
    model = NICE((1, 2, 4), hidden=8).to(dtype).eval()
    x = model.sample(64, seed=1)
    assert x.dtype == dtype and x.isfinite().all() and x.unique().numel() > 10


def test_couplings_keep_volume():
    """All of the log-determinant is that of the scales and of the levels."""
    model = NICE((1, 2, 4), hidden=8, num_levels=5)
    x = images(model, 3).float()
    model.initialize(x)
    torch.manual_seed(0)
    _, log_det = model(x)
    scales = model.transform[-1].log_scale
    assert torch.allclose(log_det, (scales.sum() - 8 * torch.tensor(5.0).log()).expand(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (1, 1, 1)}, r"image_shape: expected at least two values, got \(1, 1, 1\)"),
        ({"num_couplings": 1}, "num_couplings: expected at least 2, got 1"),
        ({"hidden": 0}, "hidden: expected at least 1, got 0"),
        ({"base": "cauchy"}, "base: expected logistic or normal, got 'cauchy'"),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        NICE(**options)
