import math

import pytest
import torch
from torch import nn

from gmfast.models import MADE, GatedPixelCNN, PixelCNN, PixelCNNPP, WaveNet
from gmfast.models.autoregressive.heads import Categorical, make_head
from gmfast.models.base import check_label, evaluating

IMAGES = {"image_shape": (1, 4, 4), "num_levels": 2}
MODELS = [
    PixelCNN(**IMAGES, nr_resnet=1, nr_filters=2, nr_out_filters=4),
    GatedPixelCNN(**IMAGES, nr_layers=1, nr_filters=2, nr_out_filters=4, kernel_size=3),
    PixelCNNPP(**IMAGES, nr_resnet=1, nr_filters=2, nr_logistic_mix=1),
    MADE(**IMAGES, hidden=(4,)),
    WaveNet(length=2, num_cycles=1, layers_per_cycle=2, residual_channels=2, skip_channels=2),
]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_temperature_sharpens_the_softmax(temperature):
    """At T the level of probability p is drawn with p**(1/T) over their sum."""
    probability = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.double)
    count = 20000
    params = probability.log()[None, :, None].expand(1, -1, count)
    x = make_head("categorical", 4, 1).sample(params, 1, seed=torch.tensor(0), temperature=temperature)
    frequencies = torch.bincount(((x.flatten() + 1) * 1.5).round().long(), minlength=4) / count
    expected = probability ** (1 / temperature) / (probability ** (1 / temperature)).sum()
    assert ((frequencies - expected).abs() < 4.5 * (expected * (1 - expected) / count).sqrt()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "levels"), [("categorical", 256), ("bernoulli", 2), ("mixture", 256)])
def test_draws_lie_on_the_grid_whatever_the_parameters_dtype(dtype, name, levels):
    head = make_head(name, levels, 2)
    x = head.sample(torch.randn(2, head.num_params(1), 50).to(dtype), 1, seed=torch.tensor(0))
    assert x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    level = (x.double() + 1) * ((levels - 1) / 2)
    assert (level - level.round()).abs().max() < 1e-4


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_temperature_is_a_number_from_0(model):
    assert model.sample(2, seed=0, temperature=0).isfinite().all()
    for wrong in (-0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"temperature: expected a number in .*, got {wrong}"):
            model.sample(2, temperature=wrong)
    with pytest.raises(TypeError, match="temperature: expected a number, got bool"):
        model.sample(2, temperature=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_are_integers_of_any_width(dtype):
    label = check_label(torch.tensor([2, 0, 1]).to(dtype), 3, 3)
    assert label.dtype == torch.int64 and label.tolist() == [2, 0, 1]
    conditional = MADE(**IMAGES, num_labels=3, hidden=(4,))
    assert conditional.request(2, seed=0, label=label[0].to(dtype)).label.tolist() == [2, 2]
    options = {"num_labels": 3, "hidden": (4,)}
    assert MADE(**IMAGES, **options).loss(-torch.ones(3, 1, 4, 4), label.to(dtype)).isfinite()


@pytest.mark.parametrize("label", [True, 1.0, torch.tensor([True, False]), torch.tensor([0.0, 1.0])])
def test_labels_are_neither_booleans_nor_floats(label):
    with pytest.raises(ValueError, match=r"label: expected 2 integers, got torch.(bool|float32) of shape"):
        MADE(**IMAGES, num_labels=3, hidden=(4,)).sample(2, label=label)


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert model.training and model[0].training and not model[1].training


def test_a_wrong_head():
    with pytest.raises(ValueError, match="head: expected one of categorical, bernoulli, mixture, got 'x'"):
        make_head("x", 4, 1)
    with pytest.raises(ValueError, match=r"num_levels: expected at most 4096 .*, got 4097"):
        make_head("categorical", 4097, 1)


@pytest.mark.parametrize(
    "x", [torch.tensor([[0.0, 255.0]]), torch.tensor([[-1.5, 0.0]]), torch.tensor([[math.nan, 0.0]])]
)
def test_categorical_refuses_values_that_are_no_level(x):
    with pytest.raises(ValueError, match=r"x: expected values in \[-1, 1\], got values from"):
        Categorical(17).nll(x.unsqueeze(1), torch.zeros(1, 17, 2))
