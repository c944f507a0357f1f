"""Sequences fed step by step against one pass over them; what happens to the state, and to what else."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.contracts import DTYPES, LAYOUTS, assert_same, bounded, layouts, threads

import gmfast.functional as GF
from gmfast import reference

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 6e-2, torch.float16: 8e-3}


def inputs(shape, dtype, device, *, taps=4, dilation=1, groups=None, out_channels=None):
    """x (B, C, T), weight, bias and a state, float32 numbers as `dtype`; depthwise without `groups`."""
    batch, channels, _ = shape
    generator = torch.Generator().manual_seed(0)
    out_channels = out_channels or channels
    per_group = channels // (groups or channels)
    state = (batch, channels, (taps - 1) * dilation)
    return [
        torch.randn(size, generator=generator).to(device, dtype)
        for size in (shape, (out_channels, per_group, taps), (out_channels,), state)
    ]


def step_by_step(x, state, weight, bias, sizes, **options):
    """The outputs of updates by `sizes` samples each; a size of None is one sample without its dimension."""
    outputs, position = [], 0
    for size in sizes:
        part = x[:, :, position] if size is None else x[:, :, position : position + size]
        y = GF.causal_conv1d_update(part, state, weight, bias, **options)
        assert y.dim() == part.dim() and y.dtype == x.dtype and not y.requires_grad
        outputs.append(y.unsqueeze(2) if size is None else y)
        position += 1 if size is None else size
    assert position == x.shape[2]
    return torch.cat(outputs, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "silu", "gated"])
@pytest.mark.parametrize("taps, dilation", [(4, 1), (2, 7), (1, 1)])
def test_depthwise_steps_are_one_pass(device, taps, dilation, activation, dtype):
    """To the bit, whatever the vectors and their ends."""
    x, weight, bias, state = inputs((2, 38, 20), dtype, device, taps=taps, dilation=dilation)
    options = {"dilation": dilation, "groups": 38, "activation": activation}
    for b in (bias, None):
        y, final = GF.causal_conv1d(x, weight, b, initial_state=state, return_state=True, **options)
        for sizes in ([None] * 20, [1, 3, 16], [20], [None, 2, 0, 17]):
            running = state.clone()
            assert_same([step_by_step(x, running, weight, b, sizes, **options), running], [y, final])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "silu", "gated"])
@pytest.mark.parametrize("groups", [1, 2])
def test_dense_steps_are_one_pass(device, groups, activation, dtype):
    """The state to the bit, the outputs to rounding."""
    x, weight, bias, state = inputs(
        (2, 6, 9), dtype, device, taps=3, dilation=4, groups=groups, out_channels=8
    )
    options = {"dilation": 4, "groups": groups, "activation": activation}
    y, final = GF.causal_conv1d(x, weight, bias, initial_state=state, return_state=True, **options)
    exact = reference.causal_conv1d(
        *(t.double() for t in (x, weight, bias)), initial_state=state.double(), **options
    )
    scale = TOLERANCE[dtype] * (1 + exact.abs().max())
    for sizes in ([None] * 9, [2, 3, 4]):
        running = state.clone()
        steps = step_by_step(x, running, weight, bias, sizes, **options)
        assert_same([running], [final])
        assert (steps - exact).abs().max() <= scale
        assert (steps - y).abs().max() <= 2 * scale


@settings(bounded, max_examples=30)
@given(data=st.data())
def test_any_layout(device, data):
    """States and inputs of any strides, in place, and nothing written beside."""
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(0, 9)))
    taps, dilation = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 2, 9]))
    dtype = data.draw(st.sampled_from(DTYPES))
    groups = shape[1] if data.draw(st.booleans(), "depthwise") else 1
    x, weight, bias, state = inputs(shape, dtype, device, taps=taps, dilation=dilation, groups=groups)
    options = {
        "dilation": dilation,
        "groups": groups,
        "activation": data.draw(st.sampled_from([None, "silu"])),
    }
    running = state.clone()
    expected = GF.causal_conv1d_update(x, running, weight, bias, **options)
    laid_out = [data.draw(layouts(t.dim()))(t) for t in (x, state, weight, bias)]
    y = GF.causal_conv1d_update(laid_out[0], laid_out[1], *laid_out[2:], **options)
    assert_same([laid_out[1]], [running])
    if groups == 1:  # a matrix product, whose order is torch's
        torch.testing.assert_close(y, expected, rtol=TOLERANCE[dtype], atol=4 * TOLERANCE[dtype])
    else:
        assert_same([y], [expected])
    buffer = laid_out[1]._base
    if buffer is not None:
        assert buffer.isnan().sum() == buffer.numel() - state.numel(), "written beside the state"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [6, 1])
def test_longer_states(device, groups, dtype):
    """States of more inputs than the taps reach: shifted, and as circular buffers, by rows and in order."""
    x, weight, bias, _ = inputs((3, 6, 40), dtype, device, dilation=2, groups=groups)
    options = {"dilation": 2, "groups": groups, "activation": "silu"}
    for entries in (6, 11):
        past = torch.randn(3, 6, entries, device=device).to(dtype)
        expected, _ = GF.causal_conv1d(
            x, weight, bias, initial_state=past[:, :, -6:], return_state=True, **options
        )
        every = torch.cat([past, x], 2)
        seen = torch.tensor([0, entries + 3, 1000], dtype=torch.int32, device=device)
        shifted, circular = past.clone(), torch.zeros(5, 6, entries, dtype=dtype, device=device)
        rows = torch.tensor([4, 0, 1], device=device)
        number = torch.arange(-entries, 40, device=device)
        for i in range(3):
            circular[rows[i], :, (number[:entries] + seen[i]) % entries] = past[i]
        untouched, begin = circular[2:4].clone(), 0
        for size in (1, 2, 1, 9, 13, 14):
            part = x[:, :, begin : begin + size]
            in_order = GF.causal_conv1d_update(part, shifted, weight, bias, **options)
            around = GF.causal_conv1d_update(
                part, circular, weight, bias, state_indices=rows, cache_seqlens=seen + begin, **options
            )
            assert_same([around], [in_order])
            tolerance = 0 if groups == 6 else 4 * TOLERANCE[dtype]
            torch.testing.assert_close(
                in_order, expected[:, :, begin : begin + size], rtol=tolerance, atol=tolerance
            )
            begin += size
            assert torch.equal(shifted, every[:, :, begin : begin + entries])
            for i in range(3):
                entry = (number[begin : begin + entries] + seen[i]) % entries
                assert torch.equal(circular[rows[i]][:, entry], shifted[i])
        assert torch.equal(circular[2:4], untouched)


def test_more_samples_than_a_circular_state_keeps(device):
    x, weight, bias, _ = inputs((2, 6, 150), torch.float32, device)
    seen = torch.tensor([5, 2], device=device)
    for dense in (False, True):
        w = weight.expand(-1, 6, -1) if dense else weight
        options = {"groups": 1 if dense else 6, "cache_seqlens": seen}
        state = torch.randn(2, 6, 7, device=device)
        in_reference = state.clone()
        y = GF.causal_conv1d_update(x, state, w, bias, **options)
        z = reference.causal_conv1d_update(x, in_reference, w, bias, **options)
        torch.testing.assert_close((y, state), (z, in_reference))


@pytest.mark.parametrize("groups", [4, 1])
def test_float32_parameters_are_not_rounded(device, groups):
    x, weight, bias, state = inputs((2, 4, 9), torch.float32, device, groups=groups)
    x, state = x.bfloat16(), state.bfloat16()
    expected = GF.causal_conv1d(x, weight, bias, initial_state=state, groups=groups)
    torch.testing.assert_close(
        GF.causal_conv1d_update(x, state, weight, bias, groups=groups), expected, rtol=2**-8, atol=1e-6
    )


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("groups", [38, 2, 1])
def test_state_indices(device, groups, index_dtype):
    """They pick rows; a negative one gives zeros and touches nothing."""
    x, weight, bias, _ = inputs((4, 38, 2), torch.float32, device, groups=groups)
    options = {"groups": groups, "activation": "silu"}
    states = torch.randn(6, 38, 3, device=device)
    before = states.clone()
    indices = torch.tensor([5, -1, 0, -7], dtype=index_dtype, device=device)
    y = GF.causal_conv1d_update(x, states, weight, bias, state_indices=indices, **options)
    live, rows = torch.tensor([0, 2]), torch.tensor([5, 0])
    picked = before[rows]
    expected = GF.causal_conv1d_update(x[live], picked, weight, bias, **options)
    torch.testing.assert_close(y[live], expected)
    assert torch.equal(y[[1, 3]], torch.zeros_like(y[[1, 3]]))
    assert torch.equal(states[rows], picked)
    untouched = torch.tensor([1, 2, 3, 4])
    assert torch.equal(states[untouched], before[untouched])

    in_reference = before.clone()
    z = reference.causal_conv1d_update(x, in_reference, weight, bias, state_indices=indices, **options)
    torch.testing.assert_close((y, states), (z, in_reference))
    every_other = torch.stack([indices, indices], 1)[:, 0]
    again = before.clone()
    assert torch.equal(
        GF.causal_conv1d_update(x, again, weight, bias, state_indices=every_other, **options), y
    )


def test_index_beyond_the_state(device):
    x, weight, bias, state = inputs((2, 3, 1), torch.float32, device)
    before = state.clone()
    call = partial(
        GF.causal_conv1d_update,
        x,
        state,
        weight,
        bias,
        groups=3,
        state_indices=torch.tensor([0, 2]).to(device),
    )
    if device.type == "cpu":
        with pytest.raises(ValueError, match="state_indices: expected less than 2, got 2"):
            call()
        assert torch.equal(state, before)
    else:
        y = call()
        assert torch.equal(y[1], torch.zeros_like(y[1])) and torch.equal(state[1], before[1])


@pytest.mark.parametrize("groups", [4, 1])
def test_state_of_another_dtype(device, groups):
    """Computed in the state's: a bfloat16 network may keep float32 states."""
    x, weight, bias, state = inputs((2, 4, 5), torch.bfloat16, device, groups=groups)
    single, wide = state.float(), state.float()
    y = GF.causal_conv1d_update(x, single, weight, bias, groups=groups)
    expected = GF.causal_conv1d_update(x.float(), wide, weight.float(), bias.float(), groups=groups)
    assert_same([y, single], [expected.bfloat16(), wide])
    with torch.autocast(device.type, torch.bfloat16):
        autocast = GF.causal_conv1d_update(
            x.float(), state.float(), weight.float(), bias.float(), groups=groups
        )
    assert_same([autocast], [y])


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 3, 0)])
@pytest.mark.parametrize("groups", [3, 1])
def test_empty(device, groups, shape):
    x, weight, bias, state = inputs(shape, torch.float32, device, groups=groups)
    before = state.clone()
    assert GF.causal_conv1d_update(x, state, weight, bias, groups=groups).shape == shape
    assert torch.equal(state, before)


def test_same_bits_whatever_the_threads(device):
    x, weight, bias, state = inputs((5, 700, 3), torch.float32, device, dilation=9)
    call = partial(GF.causal_conv1d_update, dilation=9, groups=700, activation="silu")
    runs = []
    for count in (1, 2, 3):
        running = state.clone()
        with threads(count):
            runs.append([call(x, running, weight, bias), running])
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])


@pytest.mark.parametrize("groups", [4, 1])
def test_nothing_is_recorded(device, groups):
    x, weight, bias, state = (
        t.requires_grad_() for t in inputs((2, 4, 1), torch.float32, device, groups=groups)
    )
    assert not GF.causal_conv1d_update(x, state, weight, bias, groups=groups).requires_grad
    with torch.inference_mode():
        GF.causal_conv1d_update(x, state.clone(), weight, bias, groups=groups)


def test_a_state_that_a_gradient_needs_is_missed(device):
    """As after any change in place: an error, not a gradient of other numbers."""
    x, weight, bias, state = inputs((2, 4, 1), torch.float32, device)
    weight.requires_grad_()
    y = GF.causal_conv1d(x, weight, bias, groups=4, initial_state=state)
    GF.causal_conv1d_update(x, state, weight, bias, groups=4)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- What PyTorch does with operators ----------------------------------------------------------------


def test_torch_opcheck(device):
    x, weight, bias, state = inputs((2, 3, 2), torch.float32, device)
    indices = torch.tensor([1, -1], device=device)
    update, window = (
        torch.ops.gmfast.causal_conv1d_update.default,
        torch.ops.gmfast.causal_conv1d_window.default,
    )
    for layout in ("contiguous", "channels_last"):
        some = LAYOUTS[layout](x), LAYOUTS[layout](state)
        torch.library.opcheck(update, (*some, weight, bias, None, 1, True))
        torch.library.opcheck(window, (*some, None, 4, 1))
    torch.library.opcheck(update, (x, state, weight, None, indices, 1, False))
    torch.library.opcheck(window, (x, state, indices, 4, 1))
    longer = torch.randn(2, 3, 5, device=device)
    torch.library.opcheck(update, (x, longer, weight, bias, None, 1, True, indices))
    torch.library.opcheck(window, (x, longer, None, 4, 1, indices))


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
@pytest.mark.parametrize("groups", [4, 1])
def test_torch_compile(device, groups, backend):
    """The state is changed in compiled code too, through a view of a larger buffer."""
    torch._dynamo.reset()
    x, weight, bias, state = inputs((2, 4, 1), torch.float32, device, groups=groups)
    weight.requires_grad_()

    def two_steps(x, buffer):
        call = partial(GF.causal_conv1d_update, weight=weight, bias=bias, groups=groups)
        return call(x, buffer[:, 1]), call(x, buffer[:, 1])

    compiled = torch.compile(two_steps, fullgraph=True, backend=backend)
    buffers = [torch.stack([state, state], 1) for _ in range(2)]
    assert_same([*compiled(x, buffers[0]), buffers[0]], [*two_steps(x, buffers[1]), buffers[1]])


def test_torch_export(device):
    class Module(torch.nn.Module):
        def forward(self, x, state, weight, bias):
            return GF.causal_conv1d_update(x, state, weight, bias, groups=4), state + 0

    tensors = inputs((2, 4, 1), torch.float32, device)
    x, weight, bias, state = tensors
    program = torch.export.export(Module(), (x, state.clone(), weight, bias))
    running, exported = state.clone(), state.clone()
    y = GF.causal_conv1d_update(x, running, weight, bias, groups=4)
    assert_same(program.module()(x, exported, weight, bias), (y, running))
    assert_same([exported], [running])


# ---- Errors ------------------------------------------------------------------------------------------

X, STATE, WEIGHT = torch.ones(2, 3), torch.ones(2, 3, 1), torch.ones(3, 1, 2)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.ones(3)}, ValueError, r"x: expected shape \(B, C\) or \(B, C, L\), got \(3,\)"),
        ({"x": 1.0}, TypeError, r"x: expected a torch\.Tensor, got float"),
        ({"state": None}, TypeError, r"state: expected a torch\.Tensor, got NoneType"),
        ({"state": torch.ones(2, 3, 0)}, ValueError, r"state: expected shape \(2, 3, 1\), got \(2, 3, 0\)"),
        ({"state": torch.ones(1, 3, 1)}, ValueError, r"state: expected shape \(2, 3, 1\), got \(1, 3, 1\)"),
        ({"dilation": 2}, ValueError, r"state: expected shape \(2, 3, 2\), got \(2, 3, 1\)"),
        ({"weight": torch.ones(3, 2, 2)}, ValueError, r"weight: expected shape \(O, 1, k\), got \(3, 2, 2\)"),
        ({"activation": "tanh"}, ValueError, r"activation: expected one of .* got 'tanh'"),
        ({"state_indices": [0, 1]}, TypeError, r"state_indices: expected a torch\.Tensor, got list"),
        (
            {"state_indices": torch.zeros(2)},
            TypeError,
            r"state_indices: expected int32 or int64, got float32",
        ),
        (
            {"state_indices": torch.zeros(3, dtype=torch.int64)},
            ValueError,
            r"state_indices: expected shape \(2,\), got \(3,\)",
        ),
        (
            {"state_indices": torch.zeros(2, dtype=torch.int64), "state": torch.ones(5, 2, 1)},
            ValueError,
            r"state: expected shape \(rows, 3, 1\), got \(5, 2, 1\)",
        ),
        ({"cache_seqlens": 3}, TypeError, r"cache_seqlens: expected a torch\.Tensor, got int"),
        (
            {"cache_seqlens": torch.zeros(3, dtype=torch.int32)},
            ValueError,
            r"cache_seqlens: expected shape \(2,\), got \(3,\)",
        ),
        ({"weight": torch.ones(3, 1, 2, device="meta")}, ValueError, r"one device, got cpu and meta"),
    ],
)
def test_bad_arguments(change, error, message):
    state = STATE.clone()
    arguments = {"x": X, "state": state, "weight": WEIGHT, "groups": 3, **change}
    with pytest.raises(error, match=message):
        GF.causal_conv1d_update(**arguments)
    assert torch.equal(state, STATE)


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3), (3, 4, 0)])
def test_empty_of_several_groups(device, shape):
    x, weight = torch.zeros(shape, device=device), torch.zeros(6, 2, 3, device=device)
    state = torch.ones(shape[0], 4, 2, device=device)
    y = GF.causal_conv1d_update(x, state, weight, groups=2)
    assert y.shape == (shape[0], 6, *shape[2:]) and (state == 1).all()


def test_many_samples_at_once(device):
    """More than a dense update gathers in one piece: still one pass, its state to the bit."""
    x, weight = torch.randn(2, 4, 150, device=device), torch.randn(6, 4, 3, device=device)
    state = torch.randn(2, 4, 4, device=device)
    expected, final = GF.causal_conv1d(x, weight, dilation=2, initial_state=state, return_state=True)
    torch.testing.assert_close(GF.causal_conv1d_update(x, state, weight, dilation=2), expected)
    assert torch.equal(state, final)


def test_expanded_state_is_refused(device):
    state = torch.zeros(1, 4, 2, device=device).expand(3, 4, 2)
    weight = torch.randn(4, 1, 3, device=device)
    with pytest.raises(ValueError, match="state: expected memory of its own for each element"):
        GF.causal_conv1d_update(torch.randn(3, 4, device=device), state, weight, groups=4)
