import pytest
import torch
from models.image_contracts import Contracts, heads, images

from gmfast.models import GatedPixelCNN
from gmfast.models.autoregressive.gated_pixelcnn import VerticalConv2d


class TestContracts(Contracts):
    """Of a conditional model. Every earlier pixel is visible: there is no blind spot."""

    model = GatedPixelCNN

    def tiny(self):
        return {"nr_layers": 4, "nr_filters": 12, "kernel_size": 5, "num_labels": 3}

    @heads
    def test_every_label_matters(self, channels, head):
        model = self.build((channels, 3, 2), head)
        label = torch.arange(3)
        x = images(model, 1).expand(3, -1, -1, -1)
        assert model.log_prob(x, label).unique().numel() == 3
        samples = model.float().sample(6, seed=0, label=label.repeat(2))
        assert torch.equal(samples[1:2], model.sample(2, seed=0, label=1)[1:])
        assert not torch.equal(samples, model.sample(6, seed=0, label=label.roll(1).repeat(2)))
        # The gradient reaches the embeddings of the labels present, in both stacks, and no other.
        model.loss(x[:2].float(), label[:2]).backward()
        for layer in model.layers[:-1]:
            for embedding in (layer.embed_v, layer.embed_h):
                grad = embedding.weight.grad.abs().sum(1)
                assert (grad[:2] > 0).all() and grad[2] == 0


def test_every_parameter_is_used():
    model = TestContracts().build((3, 4, 4))
    model.loss(images(model, 2), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_vertical_convolution_sees_its_rows_and_the_rows_above(kernel_size):
    """As the square kernel whose lower rows are zero."""
    conv = VerticalConv2d(2, 3, kernel_size).double()
    x = torch.randn(2, 2, 6, 5, dtype=torch.double)
    weight = torch.zeros(3, 2, kernel_size, kernel_size, dtype=torch.double)
    weight[:, :, : kernel_size // 2 + 1] = conv.weight.detach()
    with torch.no_grad():
        y = conv(x)
        assert torch.allclose(y, torch.nn.functional.conv2d(x, weight, conv.bias, padding="same"), atol=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 4])
def test_wrong_kernel_size(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size: expected an odd number from 3, got {kernel_size}"):
        GatedPixelCNN(kernel_size=kernel_size)


def test_wrong_number_of_layers():
    with pytest.raises(ValueError, match="nr_layers: expected at least 1, got 0"):
        GatedPixelCNN(nr_layers=0)
