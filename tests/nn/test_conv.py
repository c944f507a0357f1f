import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gmfast.nn import CausalConv1d, MaskedConv2d


def masked(mask_type="B", **options):
    torch.manual_seed(0)
    return MaskedConv2d(3, 6, (3, 5), mask_type=mask_type, **options)


@pytest.mark.parametrize("padding", ["same", 1, (1, 2)])
def test_takes_the_place_of_a_plain_convolution(padding):
    """The same arguments, parameters, state dict and, but for the mask, the same results."""
    kernel = 3 if padding == 1 else (3, 5)
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 8, kernel, padding=padding)
    torch.manual_seed(0)
    ours = MaskedConv2d(4, 8, kernel, padding=padding)
    assert isinstance(ours, nn.Conv2d)
    assert torch.equal(ours.weight, plain.weight) and torch.equal(ours.bias, plain.bias)
    with torch.no_grad():
        plain.weight.mul_(2)
    assert ours.load_state_dict(plain.state_dict()) == ([], [])
    assert plain.load_state_dict(ours.state_dict()) == ([], [])
    x = torch.randn(2, 4, 6, 7)
    mask = torch.zeros_like(plain.weight)
    mask[:, :, 0] = 1
    mask[:, :, 1, : plain.weight.shape[3] // 2 + 1] = 1
    expected = F.conv2d(x, plain.weight * mask, plain.bias, padding="same")
    torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(torch.no_grad()(ours)(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
def test_no_result_of_an_older_weight(fused):
    """Fused optimizers change a weight without telling torch's version counter, as `.data` does."""
    layer, x = masked(), torch.randn(2, 3, 6, 7)
    before = layer(x)
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD([layer.weight], lr=1.0, fused=fused).step()
    after = layer(x)
    assert not torch.allclose(after, before)
    layer.weight.data.neg_()
    torch.testing.assert_close(layer(x) - layer.bias[:, None, None], layer.bias[:, None, None] - after)


@torch.no_grad()
def test_copies_are_independent():
    layer = masked()
    x = torch.randn(2, 3, 6, 7)
    y = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), y)
        other.weight.zero_()
        assert not torch.equal(other(x), y) and torch.equal(layer(x), y)
    with torch.inference_mode():
        assert torch.equal(masked()(x), y)
    zero = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
    assert not torch.func.functional_call(layer, zero, (x,)).any() and torch.equal(layer(x), y)


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("channel_groups", [1, 3])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
def test_pixel_by_pixel(mask_type, channel_groups, dilation):
    """The one-position form gives what the whole image gives, and does not look at what comes later."""
    layer = masked(mask_type, channel_groups=channel_groups, dilation=dilation).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.double)
    state, pixels = layer.init_state(2, 5, 6), []
    for pixel in x.flatten(2).unbind(2):
        seen = 0 if mask_type == "A" and channel_groups == 1 else pixel
        first = layer.step(seen + torch.zeros_like(pixel), state, advance=False)
        pixels.append(layer.step(pixel, state))
        assert torch.equal(first, pixels[-1])
    torch.testing.assert_close(torch.stack(pixels, 2).view(2, 6, 5, 6), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", [None, "silu", "gated"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (4, 1), (2, 3)])
def test_sample_by_sample(activation, groups, kernel, dilation):
    layer = CausalConv1d(4, 8, kernel, dilation=dilation, groups=groups, activation=activation).double()
    x = torch.randn(2, 4, 11, dtype=torch.double)
    y, final = layer(x, return_state=True)
    state = layer.init_state(2)
    with torch.no_grad():
        samples = [layer.step(sample, state) for sample in x[:, :, :7].unbind(2)]
        samples.append(layer.step(x[:, :, 7:], state).unbind(2))
    torch.testing.assert_close(torch.stack([*samples[:-1], *samples[-1]], 2), y, rtol=1e-12, atol=1e-12)
    assert torch.equal(state, final)


def test_causal_of_packed_and_padded_sequences():
    layer = CausalConv1d(4, 4, 3, groups=4, activation="swish")
    x = torch.randn(2, 4, 9)
    seq_idx, lengths = torch.tensor([[0] * 4 + [1] * 5] * 2), torch.tensor([9, 6])
    y, state = layer(x, return_state=True, seq_idx=seq_idx, lengths=lengths)
    torch.testing.assert_close(y[:, :, 4:6], layer(x[:, :, 4:])[:, :, :2])
    assert (y[1, :, 6:] == 0).all() and torch.equal(state[1], x[1, :, 4:6])
    circular = layer.init_state(2)
    seen = torch.zeros(2, dtype=torch.int64)
    outputs = [layer.step(sample, circular, cache_seqlens=seen + i) for i, sample in enumerate(x.unbind(2))]
    torch.testing.assert_close(torch.stack(outputs, 2), layer(x))


def test_causal_takes_the_place_of_a_plain_convolution():
    torch.manual_seed(0)
    plain = nn.Conv1d(4, 8, 3, dilation=2)
    torch.manual_seed(0)
    ours = CausalConv1d(4, 8, 3, dilation=2)
    assert isinstance(ours, nn.Conv1d) and torch.equal(ours.weight, plain.weight)
    assert ours.load_state_dict(plain.state_dict()) == ([], [])
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(ours(x), plain(F.pad(x, (4, 0))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, r"kernel_size: expected odd sizes, got \(4, 4\)"),
        ({"stride": 2}, "stride: expected 1, got 2"),
        ({"padding": 0}, r'padding: expected "same" or \(1, 1\), got \(0, 0\)'),
        ({"groups": 3}, r"groups: expected 1 \(channel_groups orders the colours\), got 3"),
        ({"padding_mode": "reflect"}, "padding_mode: expected \"zeros\", got 'reflect'"),
        ({"mask_type": "C"}, "mask_type: expected 'A' or 'B', got 'C'"),
        (
            {"channel_groups": 3, "out_channels": 4},
            "out_channels: expected a multiple of channel_groups=3, got 4",
        ),
    ],
)
def test_masked_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskedConv2d(**({"in_channels": 3, "out_channels": 6, "kernel_size": 3} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 2}, "stride: expected 1, got 2"),
        ({"padding": 1}, "padding: expected 0"),
        ({"padding_mode": "circular"}, "padding_mode: expected \"zeros\", got 'circular'"),
        ({"activation": "relu"}, "activation: expected None, 'silu' or 'gated', got 'relu'"),
        (
            {"activation": "gated", "out_channels": 5},
            "out_channels: expected an even number for a gate, got 5",
        ),
    ],
)
def test_causal_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        CausalConv1d(**({"in_channels": 3, "out_channels": 6, "kernel_size": 3} | arguments))
