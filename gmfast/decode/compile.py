"""Compiling modules to decode programs."""

import copy
from itertools import chain

import torch
from torch import nn

from ..nn import CausalConv1d, ConcatELU, GatedActivation, MaskedConv2d
from .builder import Builder, Tap, Value, causal_conv_taps, masked_conv_taps, matrix
from .program import Program

_ELEMENTWISE = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.ELU: "elu",
    ConcatELU: "concat_elu",
    GatedActivation: "gate",
}
_CHANNELS = {"gate": 0.5, "concat_elu": 2}  # that come out of an activation, for each that goes in
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_CONVS = (CausalConv1d, MaskedConv2d, nn.Conv1d, nn.Conv2d)
# What is known to be computed. A subclass may change anything but this.
_FORWARDS = {kind.forward for kind in (nn.Sequential, *_ELEMENTWISE, *_NOTHING, *_CONVS)}


def compile(
    module: nn.Module,
    *,
    image_size: tuple[int, int] | None = None,
    weights: str | None = None,
    **options,
) -> Program:
    """Compiles a causal model to a program that computes one position after another, each from what is
    remembered of the ones before, and to rounding as the module does for all at once.

    Args:
        module: one of `gmfast.models`' autoregressive models, or a `Sequential` of `CausalConv1d` or
            `MaskedConv2d`, convolutions with one tap, and ReLU, ELU, SiLU, `GatedActivation`, `ConcatELU` and
            Dropout (which is inactive).
        image_size: height and width, for a `Sequential` of `MaskedConv2d`.
        weights: "bfloat16" keeps the weights in that format, half the memory to read at each position; all
            arithmetic stays in float32.
        options: what a model's `decoder` takes, such as MADE's `order`.

    A `Sequential` whose first masked convolution is of type A predicts: its program takes None first, then
    each value, and returns what is said about the next. Any other takes the input at a position and returns
    its output. Colours of a masked convolution with `channel_groups` are positions of their own.

    The weights are those of now: after further training, compile again.

    Raises TypeError, naming the module, for what cannot be compiled, and ValueError for wrong arguments.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    like = next(chain(module.parameters(), [torch.zeros(())]))
    if like.dtype in (torch.float16, torch.bfloat16):  # what layers make of their weights is not rounded
        module = copy.deepcopy(module).float()
    if hasattr(type(module), "decoder"):  # a module may have a part of that name
        if image_size is not None:
            raise ValueError(f"image_size: expected None for a {type(module).__name__}, got {image_size}")
        with torch.no_grad():
            builder = module.decoder(**options)
    elif isinstance(module, nn.Sequential):
        if options:
            raise ValueError(f"{next(iter(options))}: expected no such argument for a Sequential")
        with torch.no_grad():
            builder = _sequential(list(_flatten(module)), image_size)
    else:
        raise TypeError(
            "module: expected a Sequential or an autoregressive model of gmfast.models, got "
            f"{type(module).__name__}"
        )
    return Program(builder, like, weights)


def _flatten(module: nn.Module):
    """What a Sequential computes, one by one. Raises TypeError for a forward pass that is not known."""
    if type(module).forward not in _FORWARDS or module._forward_hooks or module._forward_pre_hooks:
        raise TypeError(
            "module: expected causal convolutions and ReLU, ELU, SiLU, GatedActivation, ConcatELU and "
            f"Dropout, without a forward pass or hooks of their own, got {type(module).__name__}"
        )
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _flatten(child)
    elif not isinstance(module, _NOTHING):
        yield module


def _sequential(modules: list[nn.Module], image_size: tuple[int, int] | None) -> Builder:
    sound = [m for m in modules if isinstance(m, CausalConv1d)]
    image = [m for m in modules if isinstance(m, MaskedConv2d)]
    if bool(sound) == bool(image):
        raise TypeError(
            "module: expected a Sequential with CausalConv1d, or one with MaskedConv2d, got "
            + ("both" if sound else "neither")
        )
    fits = image_size is None if sound else _is_size(image_size)
    if not fits:
        expected = "None for sound" if sound else "a positive height and width"
        raise ValueError(f"image_size: expected {expected}, got {image_size!r}")
    groups = image[0].channel_groups if image else 1
    for conv in image:
        if conv.channel_groups != groups:
            raise ValueError(
                f"module: expected one number of channel_groups in all layers, got {groups} and "
                f"{conv.channel_groups}"
            )
        if (conv.mask_type == "A") != (conv is image[0] and image[0].mask_type == "A"):
            raise ValueError("module: expected mask type A in the first convolution only, got it elsewhere")
    predicts = bool(image) and image[0].mask_type == "A"
    if groups > 1 and not predicts:
        raise ValueError("module: expected mask type A in the first convolution of several channel_groups")
    height, width = image_size or (None, 1)
    return _build(Builder(height, width), _fuse(modules, groups), groups, predicts)


def _is_size(size) -> bool:
    return isinstance(size, (tuple, list)) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)


def _fuse(modules: list[nn.Module], groups: int) -> list[tuple[nn.Module | None, str]]:
    """Layers, each a convolution (or None) and the activation of what it makes."""
    layers = []
    for module in modules:
        activation = _ELEMENTWISE.get(type(module))
        if activation is None:
            own = getattr(module, "activation", None) or "none"
            layers.append((_check_conv(module, groups), "none"))
            if own == "none":
                continue
            activation = "gate" if own == "gated" else own
        elif groups > 1 and activation in ("gate", "concat_elu"):
            raise TypeError(
                f"module: expected no {type(module).__name__} with several channel_groups, got one"
            )
        elif getattr(module, "dim", 1) != 1 or getattr(module, "alpha", 1.0) != 1.0:
            raise TypeError(f"module: expected dim=1 and alpha=1, got {module}")
        # A layer applies one activation, to convolutions of which it computes all channels at once.
        if layers and layers[-1][1] == "none" and not _is_split(layers[-1][0]):
            layers[-1] = layers[-1][0], activation
        else:
            layers.append((None, activation))
    return layers


def _build(builder: Builder, layers, groups: int, predicts: bool) -> Builder:
    source = builder.value(_input_channels(layers))
    network = []  # each layer with what it sees and what it makes: groups of channels fill that in turn
    below, channels = source, source.channels
    for conv, activation in layers:
        if conv is not None:
            if conv.in_channels != channels:
                raise ValueError(f"module: expected a convolution of {channels} channels, got {conv}")
            channels = conv.out_channels
        if activation == "gate" and channels % 2:
            raise ValueError(f"module: expected an even number of channels for a gate, got {channels}")
        channels = int(channels * _CHANNELS.get(activation, 1))
        made = builder.value(channels)
        network.append((conv, activation, below, made))
        below = made
    # What comes before a convolution of type A sees a position's own value, and so waits until it is known.
    masked = [isinstance(conv, MaskedConv2d) for conv, _ in layers]
    waiting = masked.index(True) if predicts else 0
    if not predicts:
        builder.draw(None, None, source, channels=source.channels)
        builder.output = below
    for group in range(groups):
        for layer in network[waiting:]:
            _append(builder, *layer, group, groups)
        if predicts:
            own = source.channels // groups
            builder.draw(
                None,
                below,
                source[group * own],
                channels=own,
                first_channel=group * own,
                total_channels=source.channels,
            )
        for layer in network[:waiting]:
            _append(builder, *layer, group, groups)
    return builder


def _append(
    builder: Builder, conv, activation: str, below: Value, made: Value, group: int, groups: int
) -> None:
    """Appends what computes a group's channels of `made`."""
    halves = 2 if activation == "gate" else 1
    first = group * made.channels // groups
    if conv is None:
        share = below.channels // groups
        operands = [([], None, share // halves, below[group * share])]
    else:
        outputs = conv.out_channels // groups // halves
        operands = [(taps, bias, outputs, None) for taps, bias in _taps(below, conv, group)]
    for taps, bias, outputs, add in operands:
        form = {"activation": activation, "out": made[first]}
        if activation == "concat_elu":
            form = {"activated": made, "activated_by": activation}
        builder.layer(taps, bias, outputs=outputs, add=add, **form)
        first += builder.steps[-1].outputs


def _input_channels(layers) -> int:
    """Channels of the input, from the first convolution's and the activations before it."""
    share = 1.0
    for conv, activation in layers:
        if conv is not None:
            return int(conv.in_channels / share)
        share *= _CHANNELS.get(activation, 1)


def _is_split(conv: nn.Module | None) -> bool:
    """Whether groups of its channels are layers of their own."""
    groups = getattr(conv, "groups", 1)
    return groups > 1 and not groups == conv.in_channels == conv.out_channels


def _taps(value: Value, conv: nn.Module, group: int) -> list[tuple[list[Tap], torch.Tensor | None]]:
    """What each group of a convolution's outputs sees, and its bias; of a masked one, one group's."""
    if isinstance(conv, MaskedConv2d):
        return [masked_conv_taps(value, conv, group)]
    if not isinstance(conv, CausalConv1d):
        return [([Tap(value, matrix(conv))], conv.bias)]
    groups = conv.groups if _is_split(conv) else 1
    biases = [None] * groups if conv.bias is None else conv.bias.chunk(groups)
    return [(causal_conv_taps(value, conv, group=g), bias) for g, bias in enumerate(biases)]


def _check_conv(module: nn.Module, channel_groups: int) -> nn.Module:
    """The convolution. Raises TypeError for what is none that can be compiled."""
    if isinstance(module, (CausalConv1d, MaskedConv2d)):
        return module
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        if channel_groups > 1:
            raise TypeError(
                f"module: expected only masked convolutions with several channel_groups, got {module}"
            )
        once = all(size == 1 for size in (*module.kernel_size, *module.stride))
        if once and module.groups == 1 and not any(module.padding):
            return module
        raise TypeError(
            "module: expected plain convolutions to have one tap, stride 1, no padding and no groups, got "
            f"{module}"
        )
    raise TypeError(f"module: expected causal convolutions and activations, got {type(module).__name__}")
