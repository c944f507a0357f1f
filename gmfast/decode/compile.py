"""Compiling modules to decode programs."""

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
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)


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

    A `Sequential` that begins with type A predicts: its program takes None first, then each value, and
    returns what is said about the next. Any other takes the input at a position and returns its output.
    Colours of a masked convolution with `channel_groups` are positions of their own.

    The weights are those of now: after further training, compile again.

    Raises TypeError, naming the module, for what cannot be compiled, and ValueError for wrong arguments.
    """
    if hasattr(module, "decoder"):
        if image_size is not None:
            raise ValueError(f"image_size: expected None for a {type(module).__name__}, got {image_size}")
        builder = module.decoder(**options)
    elif isinstance(module, nn.Sequential):
        if options:
            raise ValueError(f"{next(iter(options))}: expected no such argument for a Sequential")
        builder = _sequential(list(_flatten(module)), image_size)
    else:
        raise TypeError(
            "module: expected a Sequential or an autoregressive model of gmfast.models, got "
            f"{type(module).__name__}"
        )
    return Program(builder, next(chain(module.parameters(), [torch.zeros(())])), weights)


def _flatten(module: nn.Sequential):
    for child in module:
        if isinstance(child, nn.Sequential):
            yield from _flatten(child)
        elif not isinstance(child, _NOTHING):
            yield child


def _sequential(modules: list[nn.Module], image_size: tuple[int, int] | None) -> Builder:
    sound = [m for m in modules if isinstance(m, CausalConv1d)]
    image = [m for m in modules if isinstance(m, MaskedConv2d)]
    if bool(sound) == bool(image):
        raise TypeError(
            "module: expected a Sequential with CausalConv1d, or one with MaskedConv2d, got "
            + ("both" if sound else "neither")
        )
    if (image_size is None) != bool(sound):
        raise ValueError(
            f"image_size: expected {'(height, width)' if image else 'None for sound'}, got {image_size}"
        )
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
    if image_size is not None and (height < 1 or width < 1):
        raise ValueError(f"image_size: expected a positive height and width, got {image_size}")

    return _build(Builder(height, width), _fuse(modules, groups), groups, predicts)


def _fuse(modules: list[nn.Module], groups: int) -> list[tuple[nn.Module | None, str]]:
    """Layers, each a convolution (or None) and the activation of what it makes."""
    layers = []
    for module in modules:
        activation = _ELEMENTWISE.get(type(module))
        if activation is None:
            own = getattr(module, "activation", None) or "none"
            layers.append((_check_conv(module), "none"))
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
    channels = _input_channels(layers)
    source = builder.value(channels)
    values = []  # what each layer makes: groups of channels fill it in turn
    for conv, activation in layers:
        channels = conv.out_channels if conv is not None else channels
        channels = channels // 2 if activation == "gate" else channels
        channels = channels * 2 if activation == "concat_elu" else channels
        values.append(builder.value(channels))
    if not predicts:
        builder.draw(None, None, source, channels=source.channels)
    for group in range(groups):
        value = source
        for (conv, activation), made in zip(layers, values, strict=True):
            if conv is None:
                share = value.channels // groups
                operands = [([], None, share // (2 if activation == "gate" else 1), group * share)]
            else:
                operands = [(taps, bias, None, None) for taps, bias in _taps(value, conv, group)]
            first = group * made.channels // groups
            for taps, bias, outputs, add in operands:
                form = {"activation": activation, "out": made[first]}
                if activation == "concat_elu":
                    form = {"activated": made, "activated_by": activation}
                builder.layer(taps, bias, outputs=outputs, add=None if add is None else value[add], **form)
                first += builder.steps[-1].outputs
            value = made
        if predicts:
            own = source.channels // groups
            builder.draw(
                None,
                value,
                source[group * own],
                channels=own,
                first_channel=group * own,
                total_channels=source.channels,
            )
        else:
            builder.output = value
    return builder


def _input_channels(layers) -> int:
    """Channels of the input, from the first convolution's and the activations before it."""
    double = 1.0
    for conv, activation in layers:
        if conv is not None:
            return int(conv.in_channels * double)
        double *= {"gate": 2, "concat_elu": 0.5}.get(activation, 1)


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


def _check_conv(module: nn.Module) -> nn.Module:
    """The convolution. Raises TypeError for what is none that can be compiled."""
    if isinstance(module, (CausalConv1d, MaskedConv2d)):
        return module
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        once = all(size == 1 for size in (*module.kernel_size, *module.stride))
        if once and module.groups == 1 and not any(module.padding):
            return module
        raise TypeError(
            "module: expected plain convolutions to have one tap, stride 1, no padding and no groups, got "
            f"{module}"
        )
    raise TypeError(f"module: expected causal convolutions and activations, got {type(module).__name__}")
