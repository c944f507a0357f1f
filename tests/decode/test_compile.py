"""Sequentials as decode programs, against their own forward pass."""

import copy
import re

import pytest
import torch
from decode.stepping import EXECUTORS, outputs, predictions, started
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gmfast import _library, decode
from gmfast.nn import CausalConv1d, ConcatELU, GatedActivation, MaskedConv2d

sizes = st.integers(1, 20)
few = settings(max_examples=30)


def activations(draw, channels, coupled=True):
    """Up to two successive activations, and their number of output channels."""
    modules = []
    for _ in range(draw(st.integers(0, 2))):
        module = draw(st.sampled_from([nn.ReLU, nn.ELU, nn.SiLU, nn.Dropout, ConcatELU, GatedActivation]))
        if module in (ConcatELU, GatedActivation) and not coupled:
            continue
        if module is GatedActivation and channels % 2:
            continue
        channels = {ConcatELU: 2 * channels, GatedActivation: channels // 2}.get(module, channels)
        modules.append(module())
    return modules, channels


@st.composite
def sounds(draw):
    """A Sequential of causal convolutions, and its numbers of input channels and positions."""
    first = channels = draw(sizes)
    modules, channels = activations(draw, channels)
    for index in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["dense", "depthwise", "groups", "one tap"]))
        if kind == "one tap" and index > 0:
            modules.append(nn.Conv1d(channels, out := draw(sizes), 1, bias=draw(st.booleans())))
        else:
            activation = draw(st.sampled_from([None, "silu", "gated"]))
            out = draw(sizes) * (2 if activation == "gated" else 1)
            groups = 1
            if kind == "depthwise":
                out = groups = channels
                activation = None if activation == "gated" and channels % 2 else activation
            if kind == "groups":
                groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
                out *= groups
            options = {"dilation": draw(st.integers(1, 5)), "groups": groups, "bias": draw(st.booleans())}
            modules.append(
                CausalConv1d(channels, out, draw(st.integers(1, 4)), activation=activation, **options)
            )
            out = out // 2 if activation == "gated" else out
        more, channels = activations(draw, out)
        modules += more
    half = len(modules) // 2
    return nn.Sequential(nn.Sequential(*modules[:half]), *modules[half:]), first, draw(st.integers(1, 24))


@st.composite
def images(draw, mask_type):
    """A Sequential of masked convolutions, and its input channels, image size and channel groups."""
    groups = draw(st.integers(1, 3)) if mask_type == "A" else 1
    first = channels = groups * draw(st.integers(1, 7))
    modules, channels = activations(draw, channels, groups == 1)
    if groups == 1 and draw(st.booleans()):
        modules.append(nn.Conv2d(channels, out := draw(sizes), 1))
        channels = out
    for index in range(draw(st.integers(1, 3))):
        out = groups * draw(st.integers(1, 7))
        if index > 0 and groups == 1 and draw(st.booleans()):
            modules.append(nn.Conv2d(channels, out, 1))
        else:
            kernel = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 3, 5]))
            options = {
                "mask_type": mask_type if index == 0 else "B",
                "channel_groups": groups,
                "dilation": (draw(st.integers(1, 2)), draw(st.integers(1, 3))),
                "bias": draw(st.booleans()),
            }
            modules.append(MaskedConv2d(channels, out, kernel, **options))
        more, channels = activations(draw, out, groups == 1)
        modules += more
    return nn.Sequential(*modules), first, (draw(st.integers(1, 5)), draw(st.integers(1, 6))), groups


def assert_equals_forward(module, channels, size, batch, groups=1):
    """Compare a program in float64, and one in float32, with the module in float64."""
    module = module.double().eval()
    positions = size if isinstance(size, int) else size[0] * size[1]
    x = torch.randn(batch, channels, positions, dtype=torch.double)
    with torch.no_grad():
        whole = x if isinstance(size, int) else x.unflatten(2, size)
        expected = module(whole).flatten(2)
    predicts = any(getattr(m, "mask_type", "B") == "A" for m in module)
    scale = 1 + expected.abs().max()
    for dtype, tolerance, executors in (
        (torch.float64, 1e-11, EXECUTORS),
        (torch.float32, 1e-5, EXECUTORS[:1]),
    ):
        program = decode.compile(
            copy.deepcopy(module).to(dtype), image_size=None if isinstance(size, int) else size
        )
        for executor in executors:
            run = started(program, executor, batch)
            made = predictions(run, x, groups) if predicts else outputs(run, x)
            assert made.dtype == dtype
            assert (made - expected).abs().max() <= tolerance * scale, (executor, dtype)


@few
@given(sounds(), sizes)
def test_causal_convolutions(sound, batch):
    assert_equals_forward(*sound, batch)


@few
@given(images("B"), sizes)
def test_masked_convolutions(image, batch):
    module, channels, size, _ = image
    assert_equals_forward(module, channels, size, batch)


@few
@given(images("A"), sizes)
def test_masked_convolutions_that_predict(image, batch):
    module, channels, size, groups = image
    assert_equals_forward(module, channels, size, batch, groups)


@pytest.mark.parametrize("groups", [1, 3])
def test_convolution_of_type_a_that_sees_nothing(groups):
    """A 1×1 kernel of type A reads earlier colours only; the first colour and a gate read nothing."""
    conv = MaskedConv2d(3, 6, 1, mask_type="A", channel_groups=groups)
    assert_equals_forward(nn.Sequential(conv), 3, (2, 2), 3, groups)
    if groups == 1:
        assert_equals_forward(nn.Sequential(conv, GatedActivation()), 3, (2, 2), 3)


def test_wide_layers():
    """Layers of several panels, the last of them incomplete."""
    wide = nn.Sequential(
        CausalConv1d(1, 150, 2, dilation=3),
        ConcatELU(),
        CausalConv1d(300, 300, 3, groups=300, activation="gated"),
        CausalConv1d(150, 134, 1, activation="gated"),
        nn.Conv1d(67, 131, 1),
    )
    for batch in (1, 2, 3, 13):
        assert_equals_forward(wide, 1, 6, batch)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("how", ["option", "module"])
def test_bfloat16_weights(executor, how):
    """The program equals the module with weights, but not biases, rounded to bfloat16."""
    module = nn.Sequential(CausalConv1d(3, 40, 3), ConcatELU(), CausalConv1d(80, 80, 2, groups=80), nn.ReLU())
    rounded = copy.deepcopy(module).double()
    with torch.no_grad():
        for name, p in rounded.named_parameters():
            if how == "module" or name.endswith("weight"):
                p.copy_(p.bfloat16())
    if how == "module":
        program = decode.compile(module.bfloat16())
    else:
        program = decode.compile(module, weights="bfloat16")
    assert program.weight_bytes == 2 * sum(c.weight.numel() for c in module if hasattr(c, "weight"))
    x = torch.randn(2, 3, 9)
    made = outputs(started(program, executor, 2), x)
    assert made.dtype == torch.float32
    assert (made - rounded(x.double())).abs().max() < 2e-6
    exact = outputs(started(decode.compile(copy.deepcopy(rounded).float()), executor, 2), x)
    assert torch.equal(exact, made)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_weights_are_those_at_the_time_of_compiling(executor, monkeypatch):
    if executor == "reference":
        monkeypatch.setattr(_library, "devices", frozenset())
    module = nn.Sequential(CausalConv1d(3, 4, 2), CausalConv1d(4, 4, 2, groups=4))
    program, x = decode.compile(module), torch.randn(2, 3, 5)
    before = outputs(program.start(2), x)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert torch.equal(outputs(program.start(2), x), before) and before.any()
    assert not outputs(decode.compile(module).start(2), x).any()


def test_a_part_called_decoder_is_a_part():
    module = nn.Sequential()
    module.add_module("decoder", CausalConv1d(2, 3, 2))
    assert_equals_forward(module, 2, 4, 1)
    autoencoder = nn.Module()
    autoencoder.decoder = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"^module: expected a Sequential or .*, got Module$"):
        decode.compile(autoencoder)


def test_a_subclass_that_computes_the_same():
    """Such as torch's parametrizations create."""
    conv = nn.utils.parametrizations.weight_norm(CausalConv1d(3, 4, 2))
    assert_equals_forward(nn.Sequential(conv, nn.ReLU()), 3, 4, 1)
    unstarted = copy.deepcopy(decode.compile(nn.Sequential(conv)))  # it holds no graph of the weights
    assert unstarted.start(1).step(torch.ones(1, 3, dtype=torch.double)).shape == (1, 4)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Doubled(CausalConv1d):
    def forward(self, x):
        return 2 * super().forward(x)


class Scaled(nn.Dropout):
    def forward(self, x):
        return 3 * x


CAUSAL, MASKED = CausalConv1d(4, 4, 2), MaskedConv2d(4, 4, 3)
TYPE_A = MaskedConv2d(4, 4, 3, mask_type="A")
HOOKED = CausalConv1d(4, 4, 2)
HOOKED.register_forward_pre_hook(lambda conv, x: None)  # which may set its weight, as spectral_norm does
GROUPS = MaskedConv2d(4, 4, 3, mask_type="A", channel_groups=2)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            CAUSAL,
            "module: expected a Sequential or an autoregressive model of gmfast.models, got CausalConv1d",
        ),
        (CAUSAL.forward, "module: expected a torch.nn.Module, got method"),
        (nn.Sequential(nn.ReLU()), "module: expected a Sequential with CausalConv1d, .*, got neither"),
        (nn.Sequential(CAUSAL, MASKED), "module: expected .* with MaskedConv2d, got both"),
        (nn.Sequential(CAUSAL, nn.Softmax(1)), "module: expected causal convolutions .*, got Softmax"),
        (nn.Sequential(CAUSAL, Residual(CAUSAL)), "module: .* without a forward .* own, got Residual"),
        (Residual(CAUSAL), "module: .* without a forward pass or hooks of their own, got Residual"),
        (
            nn.Sequential(Doubled(4, 4, 2)),
            "module: .* without a forward pass or hooks of their own, got Doubled",
        ),
        (nn.Sequential(HOOKED), "module: .* hooks of their own, got CausalConv1d"),
        (
            nn.Sequential(CAUSAL, Scaled()),
            "module: .* without a forward pass or hooks of their own, got Scaled",
        ),
        (nn.Sequential(CAUSAL, nn.Conv1d(4, 4, 3)), r"module: .* to have one tap, .*, got Conv1d\(4, 4, .*"),
        (nn.Sequential(CAUSAL, nn.Conv1d(4, 4, 1, 2)), r"module: .*, stride 1, .*, got Conv1d\(4, 4, .*"),
        (
            nn.Sequential(CAUSAL, nn.Conv1d(4, 4, 1, padding=1)),
            r"module: .* no padding .*, got Conv1d\(4, .*",
        ),
        (nn.Sequential(CAUSAL, nn.Conv1d(4, 4, 1, groups=2)), r"module: .* and no groups, got Conv1d\(4, .*"),
        (nn.Sequential(CAUSAL, nn.ELU(0.5)), r"module: expected dim=1 and alpha=1, got ELU\(alpha=0.5\)"),
        (nn.Sequential(CAUSAL, ConcatELU(2)), r"module: expected dim=1 and alpha=1, got ConcatELU\(dim=2\)"),
        (nn.Sequential(GROUPS, GatedActivation()), "module: expected no GatedActivation with several .*"),
        (nn.Sequential(GROUPS, ConcatELU()), "module: expected no ConcatELU with several channel_groups, .*"),
        (
            nn.Sequential(GROUPS, nn.Conv2d(4, 4, 1)),
            "module: expected only masked convolutions with several .*",
        ),
    ],
)
def test_modules_that_cannot_be_compiled(module, message):
    parts = module.modules() if isinstance(module, nn.Module) else ()
    size = (3, 3) if any(isinstance(m, MaskedConv2d) for m in parts) else None
    with pytest.raises(TypeError, match=f"^{message}$"):
        decode.compile(module, image_size=size)


@pytest.mark.parametrize(
    ("modules", "options", "message"),
    [
        ([CAUSAL], {"image_size": (3, 3)}, r"image_size: expected None for sound, got \(3, 3\)"),
        ([MASKED], {}, "image_size: expected a positive height and width, got None"),
        ([MASKED], {"image_size": (0, 3)}, r"image_size: expected a positive height and width, got \(0, 3\)"),
        ([MASKED], {"image_size": 8}, "image_size: expected a positive height and width, got 8"),
        ([CAUSAL], {"order": 1}, "order: expected no such argument for a Sequential"),
        ([CAUSAL], {"weights": "int8"}, "weights: expected None or \"bfloat16\" for .* float32, got 'int8'"),
        (
            [MASKED, TYPE_A],
            {},
            "module: expected mask type A in the first convolution only, got it elsewhere",
        ),
        ([GROUPS, MASKED], {}, "module: expected one number of channel_groups in all layers, got 2 and 1"),
        (
            [MaskedConv2d(4, 4, 3, channel_groups=2)],
            {},
            "module: expected mask type A in the first convolution of several channel_groups",
        ),
        (
            [CAUSAL, CausalConv1d(6, 4, 2)],
            {},
            r"module: expected a convolution of 4 channels, got CausalConv1d\(6, .*",
        ),
        (
            [CausalConv1d(4, 5, 2), GatedActivation()],
            {},
            "module: expected an even number of channels for a gate, got 5",
        ),
    ],
)
def test_wrong_arguments(modules, options, message):
    masked = isinstance(modules[0], MaskedConv2d) and modules != [MASKED]
    with pytest.raises(ValueError, match=f"^{message}$"):
        decode.compile(nn.Sequential(*modules), **({"image_size": (3, 3)} if masked else {}), **options)


def test_weights_of_float64_stay():
    with pytest.raises(ValueError, match="weights: expected None for a model in float64, got 'bfloat16'"):
        decode.compile(nn.Sequential(CausalConv1d(4, 4, 2)).double(), weights="bfloat16")


def test_wrong_steps():
    """Each raises its message and changes nothing: the next right call returns what it would have."""
    module = nn.Sequential(TYPE_A, MASKED)
    program, x = decode.compile(module, image_size=(1, 3)), torch.randn(2, 4, 3)
    expected = predictions(copy.copy(program).start(2), x)

    def refuses(message, *args, error=ValueError, **options):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            program.step(*args, **options)

    refuses("start: expected a call of start before this one")
    assert repr(program).endswith(" MiB of float32 weights on cpu, not started)")
    with pytest.raises(ValueError, match="start: expected a call of start before this one"):
        _ = program.position
    with pytest.raises(TypeError, match="batch: expected an int, got float"):
        program.start(1.5)
    with pytest.raises(ValueError, match="batch: expected a number of samples, got -1"):
        program.start(-1)
    with pytest.raises(
        ValueError, match="label: expected None, because the model is not conditional, got cl"
    ):
        program.start(2, torch.zeros(2, dtype=torch.long))
    program.start(2)
    refuses("x: expected None at the start, got a value", x[:, :, 0])
    said = [program.step()]
    for position in range(2):
        refuses(f"x: expected a tensor of shape (2, 4), the value at position {position}, got None")
        refuses("x: expected shape (2, 4), got (2, 3)", x[:, :3, position])
        refuses("x: expected a tensor, got list", x[:, :, position].tolist(), error=TypeError)
        refuses(
            "local: expected None, because the model takes none, got", x[:, :, position], x[:, :, position]
        )
        said.append(program.step(x[:, :, position]))
    assert program.position == 2 and program.length == 3
    assert repr(program).endswith("MiB of float32 weights on cpu, batch 2, at position 2 of 3)")
    refuses("x: expected a position to come, got one behind all 3", x[:, :, 2])
    assert torch.equal(torch.stack(said, 2), expected)
    with pytest.raises(ValueError, match="sample: expected a program that ends in a distribution, got one"):
        program.sample(x)
    seen = decode.compile(nn.Sequential(MASKED), image_size=(1, 1)).start(1)
    seen.step(x[:1, :, 0])
    with pytest.raises(ValueError, match="x: expected a position to come, got one behind all 1"):
        seen.step(x[:1, :, 0])
