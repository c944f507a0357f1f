import pytest
import torch
import torch.nn.functional as F

from gmfast.models.networks.unet import Attention, Block, UNet, UNetConfig, sinusoids


def unet(attention=(4,), **options):
    torch.manual_seed(0)
    config = UNetConfig(channels=8, multipliers=(1, 2, 1), num_blocks=2, attention=attention, dropout=0.0)
    return UNet((1, 8, 4), 3, config, **options).double()


def test_result_begins_at_zero_and_depends_on_all_that_is_given():
    model = unet(num_labels=3)
    x = torch.randn(2, 1, 8, 4, dtype=torch.double)
    level, label = torch.tensor([1.0, 500.0]), torch.tensor([0, 2])
    assert model(x, level, label).shape == (2, 3, 8, 4) and not model(x, level, label).any()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    y = model(x, level, label)
    each = torch.cat([model(x[i : i + 1], level[i : i + 1], label[i : i + 1]) for i in range(2)])
    assert torch.allclose(y, each)
    assert not torch.isclose(y, model(x, level + 1, label)).any()
    assert not torch.isclose(y, model(x, level, label - label + 1)).any()
    none = model(x, level)
    assert torch.equal(none, model(x, level, torch.tensor([3, 3]))) and not torch.isclose(none, y).any()
    scaled = unet(num_labels=3, level_scale=4.0)
    scaled.load_state_dict(model.state_dict())
    assert torch.allclose(scaled(x, level / 4, label), y)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x, level, label)[0, 0, 0, 0], x)
    assert gradient[0].all() and not gradient[1].any()  # attention and two halvings see all of it


def test_every_parameter_has_a_gradient():
    model = unet(num_labels=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    model(
        torch.randn(4, 1, 8, 4).double(), torch.arange(4.0) * 50, torch.tensor([0, 1, 2, 0])
    ).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_attention_is_at_the_heights_that_are_named():
    heights = []
    model = unet(attention=(2, 8))
    for module in model.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda _, arguments, __: heights.append(arguments[0].shape[2]))
    model(torch.randn(1, 1, 8, 4).double(), torch.ones(1))
    assert heights == [8, 8, 2, 2, 2, 2, 2, 2, 8, 8, 8]


def test_attention_is_that_of_the_formula():
    torch.manual_seed(0)
    layer = Attention(128).double()
    torch.nn.init.normal_(layer.out.weight, 0.0, 0.2)
    x = torch.randn(2, 128, 2, 3, dtype=torch.double)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, 1)
    heads = []
    for part in (slice(0, 64), slice(64, 128)):
        scores = torch.einsum("bci,bcj->bij", q[:, part], k[:, part]) / 8
        heads.append(torch.einsum("bij,bcj->bci", scores.softmax(2), v[:, part]))
    expected = x + layer.out(torch.cat(heads, 1).view_as(x))
    assert torch.allclose(layer(x), expected)


def test_a_block_is_that_of_the_formula():
    torch.manual_seed(0)
    block = Block(4, 8, 5, 0.0, False).double()
    torch.nn.init.normal_(block.second.weight, 0.0, 0.2)
    x, features = torch.randn(2, 4, 3, 3, dtype=torch.double), torch.randn(2, 5, dtype=torch.double)
    norm, _, conv = block.first
    h = block.norm(conv(F.silu(norm(x))))
    modulation = block.modulation(features).view(2, 2, 8, 1, 1)
    h = h * (1 + modulation[:, 0]) + modulation[:, 1]
    assert torch.allclose(block(x, features), block.shortcut(x) + block.second(F.silu(h)))


def test_sinusoids():
    level = torch.tensor([0.0, 3.0])
    rows = sinusoids(level, 8)
    assert torch.equal(rows[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    frequencies = 10000.0 ** -(torch.arange(4) / 4)
    assert torch.allclose(rows[1], torch.cat([(3 * frequencies).cos(), (3 * frequencies).sin()]))


@pytest.mark.parametrize("channels", [32, 64])
def test_parameter_count(channels):
    """Of one resolution and one block, without attention."""
    c, f = channels, 4 * channels

    def block(inputs):
        shortcut = (inputs + 1) * c if inputs != c else 0
        norms = 2 * inputs + 2 * c
        return norms + 9 * inputs * c + c + (f + 1) * 2 * c + 9 * c * c + c + shortcut

    level = (c + 1) * f + (f + 1) * f
    expected = level + 9 * c + c + block(c) + 2 * block(c) + 2 * block(2 * c) + 2 * c + 9 * c + 1
    model = UNet((1, 4, 4), 1, UNetConfig(channels, (1,), 1, (), 0.0))
    # The middle's first block is followed by attention only where the height is named.
    assert sum(p.numel() for p in model.parameters()) == expected
