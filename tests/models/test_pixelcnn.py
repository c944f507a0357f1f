import copy

import pytest
import torch
from models.image_contracts import Contracts, earlier, images

from gmfast.models import PixelCNN


class TestContracts(Contracts):
    model = PixelCNN

    def tiny(self):
        return {"nr_resnet": 5, "nr_filters": 12}

    def visible(self, height, width):
        """All but the blind spot: the first layer looks three columns to the right, in the row above and
        further up, and each row up adds a column."""
        row, column = torch.arange(height * width) // width, torch.arange(height * width) % width
        up, right = row[:, None] - row, column - column[:, None]
        return earlier(height, width) & (right <= up + 2)


@pytest.mark.parametrize("nr_resnet", [4, 8])
def test_the_blind_spot(nr_resnet):
    """Which pixels the one at @ sees (#): no depth reaches the others before it."""
    model = TestContracts().build((1, 4, 9), nr_resnet=nr_resnet)
    x = images(model, 8).requires_grad_()
    model(x)[:, :, 3, 1].sum().backward()
    seen = (x.grad != 0).any(0)[0]
    picture = ["".join("#" if pixel else "." for pixel in row) for row in seen]
    picture[3] = picture[3][:1] + "@" + picture[3][2:]
    assert picture == [
        "#######..",
        "######...",
        "#####....",
        "#@.......",
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_samples_in_float32(dtype):
    model = TestContracts().build((3, 4, 4)).to(dtype)
    x = model.sample(3, seed=1)
    assert x.dtype == dtype and torch.equal(x, copy.deepcopy(model).float().sample(3, seed=1).to(dtype))
    assert model.sample(3, seed=1, method="naive").dtype == dtype


def test_parameter_count():
    """Weights that are masked included."""
    h, out, levels, blocks = 126, 1023, 256, 15
    expected = (
        3 * 2 * h * 49 + 2 * h
        + blocks * (2 * h * h + h + 9 * h * h + h + 2 * h * h + 2 * h)
        + 2 * h * out + out
        + out * 3 * levels + 3 * levels
    )  # fmt: skip
    with torch.device("meta"):
        model = PixelCNN()
    assert sum(p.numel() for p in model.parameters()) == expected


def test_it_has_no_classes():
    model = TestContracts().build((1, 3, 4))
    for call in (
        lambda label: model.loss(images(model, 2), label),
        lambda label: model.sample(2, label=label),
    ):
        with pytest.raises(ValueError, match="label: expected None, because the model is not conditional"):
            call(torch.tensor([0, 1]))
