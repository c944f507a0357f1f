"""Compilation of modules to decode programs.

A model of `gmfast.models` describes itself (`decoder()`); a `Sequential` is described here, in three passes:
flattened to known modules, fused to pairs of a convolution and an activation, and appended layer by layer.
"""

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

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
#: Channels out of an activation for each channel that goes in, where that is not 1.
_CHANNELS = {"gate": 0.5, "concat_elu": 2}
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_CONVS = (CausalConv1d, MaskedConv2d, nn.Conv1d, nn.Conv2d)
# The forward passes that are understood; a subclass that keeps one of them computes the same.
_FORWARDS = {kind.forward for kind in (nn.Sequential, *_ELEMENTWISE, *_IDENTITIES, *_CONVS)}


def compile(
    module: nn.Module,
    *,
    image_size: tuple[int, int] | None = None,
    weights: str | None = None,
    **options: Any,
) -> Program:
    """Compile a causal model to a program that computes one position after another from cached activations.

    To rounding, the program computes what the module does for all positions at once. The weights are those at
    the time of compiling: after further training, compile again.

    A `Sequential` whose first masked convolution is of type A predicts: its program takes None first, then
    each value, and returns the prediction for the next. Any other takes the input at a position and returns
    its output there. With `channel_groups`, each group of colours is predicted and fed by itself.

    Args:
        module: One of `gmfast.models`' autoregressive models, or a `Sequential` of `CausalConv1d` or
            `MaskedConv2d`, convolutions with one tap, and ReLU, ELU, SiLU, `GatedActivation`, `ConcatELU` and
            Dropout (which is inactive).
        image_size: Height and width, for a `Sequential` of `MaskedConv2d`.
        weights: "bfloat16" keeps the weights in that format: half the memory to read at each position. All
            arithmetic stays in float32.
        options: Arguments of the model's `decoder`, such as MADE's `order`.

    Returns:
        The program, not started.

    Raises:
        TypeError: A module cannot be compiled; the message names it.
        ValueError: An argument is wrong.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    like = next(chain(module.parameters(), [torch.zeros(())]))
    if like.dtype in (torch.float16, torch.bfloat16):  # derived weights are not rounded
        module = copy.deepcopy(module).float()
    if hasattr(type(module), "decoder"):  # not on an instance: a submodule may have that name
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


def _flatten(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of nested Sequentials, without identities.

    Raises:
        TypeError: A module has an unknown forward pass, or hooks.
    """
    if type(module).forward not in _FORWARDS or module._forward_hooks or module._forward_pre_hooks:
        raise TypeError(
            "module: expected causal convolutions and ReLU, ELU, SiLU, GatedActivation, ConcatELU and "
            f"Dropout, without a forward pass or hooks of their own, got {type(module).__name__}"
        )
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _flatten(child)
    elif not isinstance(module, _IDENTITIES):
        yield module


def _sequential(modules: list[nn.Module], image_size: tuple[int, int] | None) -> Builder:
    """Describe a flattened Sequential as a program, for sound or for images of a size."""
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


def _is_size(size: object) -> bool:
    return isinstance(size, (tuple, list)) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)


def _fuse(modules: list[nn.Module], groups: int) -> list[tuple[nn.Module | None, str]]:
    """Pair each convolution with the activation of its output; either may be missing (None, "none")."""
    layers: list[tuple[nn.Module | None, str]] = []
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
        # A layer of the program has one activation, and can only gate channels that it computes itself.
        if layers and layers[-1][1] == "none" and not _is_split(layers[-1][0]):
            layers[-1] = layers[-1][0], activation
        else:
            layers.append((None, activation))
    return layers


def _build(
    builder: Builder, layers: list[tuple[nn.Module | None, str]], groups: int, predicts: bool
) -> Builder:
    """Append fused layers, once for each channel group, and the draws between the groups."""
    source = builder.value(_input_channels(layers))
    network = []  # each layer with its input and output values, which the channel groups fill in turn
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
    # Layers before a convolution of type A read the position's own value, so they run behind its draw.
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
    builder: Builder,
    conv: nn.Module | None,
    activation: str,
    below: Value,
    made: Value,
    group: int,
    groups: int,
) -> None:
    """Append the layers that compute a channel group of `made` from `below`."""
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


def _input_channels(layers: list[tuple[nn.Module | None, str]]) -> int:
    """Return the input's number of channels: the first convolution's, before the activations ahead of it."""
    share = 1.0
    for conv, activation in layers:
        if conv is not None:
            return int(conv.in_channels / share)
        share *= _CHANNELS.get(activation, 1)


def _is_split(conv: nn.Module | None) -> bool:
    """Return whether each group of a convolution becomes a layer of its own; a depthwise one's do not."""
    groups = getattr(conv, "groups", 1)
    return groups > 1 and not groups == conv.in_channels == conv.out_channels


def _taps(value: Value, conv: nn.Module, group: int) -> list[tuple[list[Tap], torch.Tensor | None]]:
    """Return taps and bias of each group of a convolution, or of one channel group of a masked one."""
    if isinstance(conv, MaskedConv2d):
        return [masked_conv_taps(value, conv, group)]
    if not isinstance(conv, CausalConv1d):
        return [([Tap(value, matrix(conv))], conv.bias)]
    groups = conv.groups if _is_split(conv) else 1
    biases = [None] * groups if conv.bias is None else conv.bias.chunk(groups)
    return [(causal_conv_taps(value, conv, group=g), bias) for g, bias in enumerate(biases)]


def _check_conv(module: nn.Module, channel_groups: int) -> nn.Module:
    """Return the convolution.

    Raises:
        TypeError: The module is not a convolution that can be compiled.
    """
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
