"""The depthwise kernels in every layout and dtype; dense and grouped convolutions against the reference."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.contracts import (
    DTYPES,
    HALVES,
    LAYOUTS,
    OPCHECKS,
    assert_accurate,
    assert_same,
    bounded,
    incoming,
    is_channels_last,
    layouts,
    results,
    signs,
    strided,
    threads,
    with_gradients,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import gmfast.functional as GF
from gmfast import reference

X, WEIGHT, BIAS, STATE = range(4)
# Those that lay out three dimensions.
LAYOUTS = {name: layout for name, layout in LAYOUTS.items() if name != "every_other_row"}


def depthwise(x, weight, bias=None, state=None, *, module=GF, **options):
    return module.causal_conv1d(x, weight, bias, groups=x.shape[1], initial_state=state, **options)


plain = partial(depthwise, module=reference)


def inputs(shape, dtype, device, *, taps=4, dilation=1, per_group=1, out_channels=None):
    """x, weight, bias and initial_state: float32 numbers as `dtype`."""
    batch, channels, _ = shape
    generator = torch.Generator().manual_seed(0)
    out_channels = out_channels or channels
    sizes = [
        shape,
        (out_channels, per_group, taps),
        (out_channels,),
        (batch, channels, (taps - 1) * dilation),
    ]
    scales = [1, 1 / math.sqrt(per_group * taps), 1, 1]
    return [
        (scale * torch.randn(size, generator=generator)).to(device, dtype)
        for size, scale in zip(sizes, scales, strict=True)
    ]


def assert_same_but_sums(actual, expected):
    """The same bits, but for the gradients of weight and bias: sums, whose order the layout decides."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if i in (1 + WEIGHT, 1 + BIAS):
            assert a.dtype == e.dtype
            unit = 8 * torch.finfo(a.dtype).eps
            torch.testing.assert_close(a, e, rtol=unit, atol=unit * float(e.abs().max()))
        else:
            assert_same([a], [e])


def packing(shape, seed, device):
    """Sequences of a batch with padding among them, indices that come back, and lengths."""
    generator = torch.Generator().manual_seed(seed)
    batch, _, length = shape
    changes = (torch.rand(batch, length, generator=generator) < 0.1).cumsum(1)
    seq_idx = (changes + torch.arange(1, batch + 1)[:, None]) % 4 - 1
    lengths = torch.randint(length + 1, (batch,), generator=generator)
    return {"seq_idx": seq_idx.to(device, torch.int32), "lengths": lengths.to(device)}


# ---- Numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "taps, dilation, activation", [(4, 1, "silu"), (4, 1, None), (2, 37, "gated"), (7, 3, "silu")]
)
def test_accuracy(device, layout, taps, dilation, activation, dtype):
    tensors = inputs((2, 70, 300), dtype, device, taps=taps, dilation=dilation)
    tensors[X] = LAYOUTS[layout](tensors[X])
    options = {"dilation": dilation, "activation": activation}
    assert_accurate(partial(depthwise, **options), partial(plain, **options), tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "silu", "gated"])
@pytest.mark.parametrize("groups", [1, 2])
def test_dense_and_grouped(device, groups, activation, dtype):
    tensors = inputs((2, 6, 40), dtype, device, taps=3, dilation=2, per_group=6 // groups, out_channels=8)

    def call(module, x, weight, bias, state):
        return module.causal_conv1d(
            x, weight, bias, dilation=2, groups=groups, activation=activation, initial_state=state
        )

    # All channels are sums of one kind; the eight numbers of one channel's state make no mean.
    assert_accurate(partial(call, GF), partial(call, reference), tensors, block=None)
    y, state = GF.causal_conv1d(*tensors[:2], dilation=2, groups=groups, return_state=True)
    assert y.shape == (2, 8, 40) and torch.equal(state, tensors[X][:, :, 36:])


def test_channel_multiplier(device):
    """groups = C, but two outputs for each channel."""
    x, weight, bias, _ = inputs((2, 6, 40), torch.float32, device, out_channels=12)
    torch.testing.assert_close(depthwise(x, weight, bias), plain(x, weight, bias))


def test_longer_than_the_kernel_reaches(device):
    """Taps more than 1024 time steps apart go another way."""
    tensors = inputs((1, 3, 1100), torch.float32, device, taps=2, dilation=1025)
    options = {"dilation": 1025, "activation": "silu"}
    for actual, expected in zip(
        results(partial(depthwise, **options), tensors),
        results(partial(plain, **options), tensors),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


@settings(bounded, max_examples=25)
@given(data=st.data())
def test_any_size_layout_and_dtype(device, data):
    size = partial(st.integers, 1)
    shape = data.draw(st.tuples(size(3), size(70), st.sampled_from([1, 2, 5, 17, 63, 64, 65, 129, 2050])))
    taps, dilation = data.draw(size(9), "taps"), data.draw(st.sampled_from([1, 2, 5, 64]), "dilation")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    options = {"dilation": dilation, "activation": data.draw(st.sampled_from([None, "silu"]))}
    tensors = inputs(shape, dtype, device, taps=taps, dilation=dilation)
    if data.draw(st.booleans(), "without a state"):
        tensors.pop()
    if data.draw(st.booleans(), "packed"):
        options |= packing(shape, data.draw(st.integers(0, 9), "seed"), device)
    expected = results(partial(depthwise, **options), tensors)
    exact = results(partial(plain, **options), [t.double() for t in tensors])
    tolerance = 40 * max(torch.finfo(dtype).eps, torch.finfo(torch.float64).eps)
    for e, x in zip(expected, exact, strict=True):
        allowed = tolerance * (1 + max(x.abs().flatten().tolist(), default=0))
        assert ((e.double() - x).abs() <= allowed).all()
    laid_out = [data.draw(layouts(t.dim()))(t) for t in tensors]
    layout = data.draw(layouts(3))
    actual = results(partial(depthwise, **options), laid_out, lambda y: layout(incoming(y)))
    assert_same_but_sums(actual, expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_compute_in_float32(device, dtype):
    tensors = inputs((2, 9, 65), dtype, device)
    call = partial(depthwise, activation="silu")
    halves = results(call, tensors, signs)
    singles = results(call, [t.float() for t in tensors], signs)
    assert_same(halves, [s.to(dtype) for s in singles])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_finite_at_the_extremes(device, activation, dtype):
    """SiLU and its derivative far out, where e^z overflows."""
    largest = torch.finfo(dtype).max
    x = torch.tensor(
        [-largest, -1e4, -100, -20, -0.0, 0.0, 20, 100, 1e4, largest], dtype=dtype, device=device
    )
    weight = torch.ones(1, 1, 1, dtype=dtype, device=device)
    call = partial(depthwise, activation=activation)
    y, grad, _ = results(call, [x.view(1, 1, -1), weight], torch.ones_like)
    exact_y, exact_grad, _ = results(
        partial(plain, activation=activation), [x.double().view(1, 1, -1), weight.double()], torch.ones_like
    )
    for actual, exact in ((y, exact_y), (grad, exact_grad)):
        torch.testing.assert_close(actual, exact.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


# ---- Time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nothing_sees_ahead(device, layout):
    """A NaN shows at its own time and a tap's distance later, in its channel and sample alone; an output's
    gradient reaches as far back."""
    x, weight, bias, _ = inputs((2, 5, 200), torch.float32, device, taps=3, dilation=50)
    x = LAYOUTS[layout](x)
    for time in (0, 49, 99, 150, 199):
        seen = torch.zeros_like(x, dtype=torch.bool)
        seen[1, 2, [t for t in (time, time + 50, time + 100) if t < 200]] = True
        poisoned = x.clone()
        poisoned[1, 2, time] = math.nan
        assert torch.equal(depthwise(poisoned, weight, bias, dilation=50, activation="silu").isnan(), seen)
        leaf = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(depthwise(leaf, weight, bias, dilation=50)[1, 2, time], leaf)
        sees = torch.zeros_like(seen)
        sees[1, 2, [t for t in (time, time - 50, time - 100) if t >= 0]] = True
        assert torch.equal(grad != 0, sees)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_the_end_does_not_spoil_the_gradient(device, value):
    """Where the sequence ends there are no outputs, and no gradient of theirs that infinity makes a NaN."""
    x, weight, _, _ = inputs((1, 2, 70), torch.float32, device)
    x[..., -1] = value
    (grad,) = torch.autograd.grad(
        depthwise(leaf := x.requires_grad_(), weight, activation="silu")[..., :60].sum(), leaf
    )
    assert grad.isfinite()[..., :60].all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["silu", "gated"])
def test_chunks_with_states_are_one_pass(device, activation, layout, dtype):
    x, weight, bias, state = inputs((2, 70, 150), dtype, device, taps=3, dilation=4)
    call = partial(depthwise, dilation=4, activation=activation, return_state=True)
    x = LAYOUTS[layout](x)
    for initial in (state, None):
        whole, final = call(x, weight, bias, initial)
        parts, carried = [], initial
        for part in x.split([1, 2, 9, 64, 74], 2):
            y, carried = call(part, weight, bias, carried)
            parts.append(y)
        assert_same([torch.cat(parts, 2), carried], [whole, final])
        assert torch.equal(final, x[:, :, -8:])


def test_chunks_give_the_same_gradients(device):
    """Also through the state that is carried."""
    tensors = inputs((2, 5, 90), torch.float64, device, taps=3, dilation=4)
    call = partial(depthwise, dilation=4, activation="silu", return_state=True)

    def chunked(x, weight, bias, state):
        first, carried = call(x[:, :, :3], weight, bias, state)
        second, carried = call(x[:, :, 3:], weight, bias, carried)
        return torch.cat([first, second, carried], 2)

    whole = lambda *tensors: torch.cat(call(*tensors), 2)  # noqa: E731
    for actual, expected in zip(results(chunked, tensors), results(whole, tensors), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("length", [0, 1, 5, 6, 7])
def test_the_state_is_the_last_inputs(device, length):
    x, weight, bias, state = inputs((2, 3, length), torch.float32, device, dilation=2)
    before = state.clone()
    y, final = depthwise(x, weight, bias, state, dilation=2, return_state=True)
    assert y.shape == x.shape and torch.equal(final, torch.cat([state, x], 2)[:, :, length:])
    _, from_zeros = depthwise(x, weight, bias, dilation=2, return_state=True)
    assert torch.equal(from_zeros, torch.cat([torch.zeros_like(state), x], 2)[:, :, length:])
    final.zero_()  # its own memory
    assert torch.equal(state, before)


# ---- Layouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device, layout, dtype):
    tensors = inputs((3, 67, 71), dtype, device)
    lay_out = lambda t: LAYOUTS[layout](t) if t.dim() == 3 else strided(t, step={0: 2})  # noqa: E731
    call = partial(depthwise, activation="silu")
    expected = results(call, tensors)
    laid_out = [lay_out(t) for t in tensors]
    for mixed in (laid_out, *([*tensors[:i], t, *tensors[i + 1 :]] for i, t in enumerate(laid_out))):
        before = [t.clone() for t in mixed]
        assert_same_but_sums(results(call, mixed), expected)
        assert_same(mixed, before)
    actual = results(call, tensors, lambda y: LAYOUTS[layout](incoming(y)))
    assert_same(actual, expected)


@pytest.mark.parametrize("dim", range(3))
def test_expanded_inputs(device, dim):
    tensors = inputs((3, 5, 17), torch.float32, device)
    expanded = [t.narrow(dim, 0, 1).expand_as(t) if t.dim() > dim else t for t in tensors]
    call = partial(depthwise, activation="silu")
    expected = results(call, [t.contiguous() for t in expanded])
    assert_same_but_sums(results(call, expanded), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_expanded_gradients(device, layout):
    tensors = inputs((3, 5, 17), torch.float32, device)
    tensors[X] = LAYOUTS[layout](tensors[X])
    expected = results(depthwise, tensors, torch.ones_like)
    assert_same(results(depthwise, tensors, lambda y: y.new_ones(()).expand_as(y)), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_results(device, layout):
    """x's decides, and the fake kernel knows."""
    tensors = [LAYOUTS[layout](t) if t.dim() == 3 else t for t in inputs((3, 5, 19), torch.float32, device)]
    real = results(depthwise, tensors, torch.ones_like)
    dense = is_channels_last if tensors[X].stride(1) == 1 else torch.Tensor.is_contiguous
    assert all(dense(real[i]) for i in (0, 1 + X, 1 + STATE))
    with FakeTensorMode() as mode:
        fake = results(depthwise, [mode.from_tensor(t) for t in tensors], torch.ones_like)
    for r, f in zip(real, fake, strict=True):
        assert (r.shape, r.dtype, r.stride()) == (f.shape, f.dtype, f.stride())


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0), (0, 3, 0)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty(device, layout, shape):
    tensors = [LAYOUTS[layout](t) if t.dim() == 3 else t for t in inputs(shape, torch.float32, device)]
    y, *grads = results(partial(depthwise, activation="silu"), tensors)
    assert y.shape == shape
    for grad, tensor in zip(grads, tensors, strict=True):
        assert torch.equal(grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_same_bits_whatever_the_threads(device, layout, dtype):
    tensors = inputs((3, 65, 2500), dtype, device)
    tensors[X] = LAYOUTS[layout](tensors[X])
    call = partial(depthwise, activation="silu")
    with threads(1):
        alone = results(call, tensors)
        assert_same(results(call, tensors), alone)
    for count in (2, 3):
        with threads(count):
            assert_same(results(call, tensors), alone)


def test_samples_whole_or_in_parts(device):
    tensors = inputs((5, 7, 33), torch.float32, device)
    whole = depthwise(*tensors)
    parts = [depthwise(tensors[X][i : i + 2], *tensors[1:3], tensors[STATE][i : i + 2]) for i in (0, 2, 4)]
    assert_same([torch.cat(parts)], [whole])


# ---- Gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "silu", "gated"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gradcheck(device, groups, activation):
    tensors = inputs((2, 4, 6), torch.float64, device, taps=3, dilation=2, per_group=4 // groups)

    def call(x, weight, bias, state):
        return torch.cat(
            [
                t.flatten()
                for t in GF.causal_conv1d(
                    x, weight, bias, dilation=2, groups=groups, activation=activation, initial_state=state,
                    return_state=True,
                )
            ]
        )  # fmt: skip

    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in tensors])


@pytest.mark.parametrize("activation", [None, "silu"])
def test_second_derivative(device, activation):
    tensors = inputs((1, 2, 4), torch.float64, device, taps=2)
    call = partial(depthwise, activation=activation)
    assert torch.autograd.gradgradcheck(call, [t.requires_grad_() for t in tensors])
    assert torch.autograd.gradgradcheck(call, tensors[:2])
    frozen = [t.detach().requires_grad_(i != WEIGHT) for i, t in enumerate(tensors)]
    assert torch.autograd.gradgradcheck(call, frozen)


def test_gradients_one_at_a_time(device):
    tensors = inputs((2, 5, 33), torch.float32, device)
    call = partial(depthwise, activation="silu")
    _, *together = results(call, tensors)
    for i, expected in enumerate(together):
        alone = [t.detach().requires_grad_(i == j) for j, t in enumerate(tensors)]
        y = call(*alone)
        assert_same(torch.autograd.grad(y, alone[i], incoming(y)), [expected])


def test_without_gradients(device):
    tensors = [t.requires_grad_() for t in inputs((2, 5, 33), torch.float32, device)]
    recorded = depthwise(*tensors)
    with torch.no_grad():
        y = depthwise(*tensors)
    with torch.inference_mode():
        assert_same([depthwise(*(t.clone() for t in tensors)).clone()], [y])
    assert not y.requires_grad
    assert_same([y], [recorded.detach()])


# ---- What PyTorch does with operators ----------------------------------------------------------------


def test_torch_func(device):
    tensors = inputs((2, 3, 7), torch.float64, device)
    total = lambda call: lambda *t: call(*t, activation="silu").square().sum()  # noqa: E731
    gradients = torch.func.grad(total(depthwise), (0, 1, 2, 3))(*tensors)
    for gradient, truth in zip(gradients, torch.func.grad(total(plain), (0, 1, 2, 3))(*tensors), strict=True):
        torch.testing.assert_close(gradient, truth)
    each = [torch.stack([t, t.flip(-1)]) for t in tensors]
    torch.testing.assert_close(
        torch.vmap(depthwise)(*each), torch.stack([depthwise(*t) for t in zip(*each, strict=True)])
    )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_torch_opcheck(device, layout):
    tensors = [LAYOUTS[layout](t) if t.dim() == 3 else t for t in inputs((2, 3, 5), torch.float32, device)]
    grad = torch.randn_like(tensors[X])
    forward, backward = (
        torch.ops.gmfast.causal_conv1d.default,
        torch.ops.gmfast.causal_conv1d_backward.default,
    )
    for some in (tensors, [*tensors[:2], None, None]):
        wanted = (True, True, some[BIAS] is not None, some[STATE] is not None)
        torch.library.opcheck(forward, (*some, 1, True))
        torch.library.opcheck(backward, (grad, *some, 1, True, *wanted))
    leaves = [t.requires_grad_() for t in tensors]
    torch.library.opcheck(forward, (*leaves, 1, True), test_utils=OPCHECKS)
    packed = tuple(packing((2, 3, 5), 0, device).values())
    torch.library.opcheck(forward, (*leaves, 1, True, *packed), test_utils=OPCHECKS)
    arguments = (grad.requires_grad_(), *leaves, 1, True, True, True, True, True)
    torch.library.opcheck(backward, (*arguments, *packed), test_utils=with_gradients(backward))
    torch.library.opcheck(backward, arguments, test_utils=with_gradients(backward))


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_torch_compile(device, backend):
    torch._dynamo.reset()
    call = partial(depthwise, activation="silu")
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
    for shape in [(2, 5, 9), (3, 8, 17)]:
        tensors = inputs(shape, torch.float32, device)
        assert_same(results(compiled, tensors), results(call, tensors))


@pytest.mark.parametrize("groups", [1, 4])
def test_torch_compile_with_a_state(device, groups):
    torch._dynamo.reset()
    call = partial(GF.causal_conv1d, groups=groups, activation="gated", return_state=True)
    tensors = inputs((2, 4, 9), torch.float32, device, per_group=4 // groups)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    arguments = {"initial_state": tensors.pop()}
    assert_same(compiled(*tensors, **arguments), call(*tensors, **arguments))


def test_torch_export(device):
    class Module(torch.nn.Module):
        def forward(self, x, weight, bias):
            return depthwise(x, weight, bias, activation="silu")

    x, weight, bias, _ = inputs((2, 5, 9), torch.float32, device)
    sizes = ({0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("length", min=2)}, None, None)
    program = torch.export.export(Module(), (x, weight, bias), dynamic_shapes=sizes)
    assert any("gmfast" in str(node.target) for node in program.graph.nodes)
    x = inputs((3, 5, 17), torch.float32, device)[X]
    assert_same([program.module()(x, weight, bias)], [depthwise(x, weight, bias, activation="silu")])


@pytest.mark.parametrize("groups", [1, 4])
def test_torch_autocast(device, groups):
    """As F.conv1d: inputs and parameters are cast, their gradients come in float32."""
    tensors = inputs((2, 4, 9), torch.float32, device, per_group=4 // groups)
    call = partial(GF.causal_conv1d, groups=groups, activation="silu")
    expected = call(*(t.bfloat16() for t in tensors[:3]), initial_state=tensors[STATE].bfloat16())
    leaves = [t.requires_grad_() for t in tensors]
    with torch.autocast(device.type, torch.bfloat16):
        y = call(*leaves[:3], initial_state=leaves[STATE])
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.float().sum(), leaves))
    with torch.autocast(device.type, torch.bfloat16):
        assert call(*(t.double() for t in tensors[:3])).dtype == torch.float64


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("groups", [1, 4])
def test_float32_parameters_of_half_networks_are_not_rounded(device, groups, dtype):
    """Nor are their gradients; also of a layer that autocast has given a half-precision input."""
    x, weight, bias, state = inputs((2, 4, 300), torch.float32, device, per_group=4 // groups)
    tensors = [x.to(dtype), weight, bias, state.to(dtype)]
    call = lambda module, x, weight, bias, state: module.causal_conv1d(  # noqa: E731
        x, weight, bias, groups=groups, initial_state=state
    )
    y, *grads = results(partial(call, GF), tensors, signs)
    exact_y, *exact = results(partial(call, reference), [t.double() for t in tensors], signs)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), exact_y, rtol=torch.finfo(dtype).eps / 2, atol=1e-6)
    for grad, truth in zip(grads[1:3], exact[1:3], strict=True):
        torch.testing.assert_close(grad, truth.float(), rtol=2e-6, atol=2e-5)
    bfloat16 = torch.bfloat16 if dtype == torch.float16 else torch.float16
    others = [tensors[X], weight.to(bfloat16), bias.double(), tensors[STATE]]
    assert_same([call(GF, *others)], [call(GF, *(t if t.dtype == dtype else t.float() for t in others))])
    if groups == 4:
        with torch.autocast(device.type, dtype):
            assert_same([call(GF, *tensors)], [y])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_silu_of_half_networks_within_the_tolerance_of_causal_conv1d(device, dtype):
    """Outputs and gradients, float32 parameters, against float32 arithmetic throughout."""
    x, weight, bias, state = inputs((2, 64, 372), torch.float32, device)
    tensors = [4 * x.to(dtype), 2 * weight, bias, state.to(dtype)]
    rtol, atol = (3e-3, 5e-3) if dtype == torch.float16 else (1e-2, 5e-2)
    actual = results(partial(depthwise, activation="silu"), tensors)
    expected = results(partial(plain, activation="silu"), [t.float() for t in tensors])
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        parameter = i in (1 + WEIGHT, 1 + BIAS)
        tolerance = {"rtol": 1e-3, "atol": 1e-3} if parameter else {"rtol": rtol, "atol": atol}
        torch.testing.assert_close(a, e.to(a.dtype), **tolerance)


# ---- Packed sequences and padding --------------------------------------------------------------------

ROW = torch.tensor([[7] * 3 + [2] * 9 + [5] * 70 + [9] * 1 + [-1] * 7])  # pieces of a packed row


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", [None, "silu", "gated"])
def test_packed_sequences_are_each_alone(device, activation, layout, dtype):
    x, weight, bias, state = inputs((1, 38, 90), dtype, device, taps=3, dilation=2)
    x = LAYOUTS[layout](x)
    call = partial(depthwise, weight=weight, bias=bias, dilation=2, activation=activation)
    y = call(x, seq_idx=ROW.to(device), state=state)
    pieces = x.split([3, 9, 70, 1, 7], 2)
    alone = [call(pieces[0], state=state), *map(call, pieces[1:4])]
    assert_same([y], [torch.cat([*alone, torch.zeros_like(alone[0][:, :, :1]).expand(-1, -1, 7)], 2)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kinds", [["seq_idx"], ["lengths"], ["seq_idx", "lengths"]], ids=str)
def test_accuracy_of_packed_sequences(device, kinds, layout, dtype):
    shape = (4, 19, 130)
    tensors = inputs(shape, dtype, device)
    tensors[X] = LAYOUTS[layout](tensors[X])
    packed = packing(shape, 1, device)
    options = {"activation": "silu"} | {kind: packed[kind] for kind in kinds}
    assert_accurate(partial(depthwise, **options), partial(plain, **options), tensors, block=None)


@pytest.mark.parametrize("activation", [None, "silu", "gated"])
@pytest.mark.parametrize("groups, out_channels", [(1, 4), (2, 8), (6, 12)])
def test_dense_packed_sequences(device, groups, out_channels, activation):
    shape = (4, 6, 50)
    tensors = inputs(
        shape, torch.float64, device, taps=3, dilation=2, per_group=6 // groups, out_channels=out_channels
    )
    packed = packing(shape, 2, device)

    def call(module, options, x, weight, bias, state):
        options = {"dilation": 2, "groups": groups, "activation": activation, **options}
        return module.causal_conv1d(x, weight, bias, initial_state=state, **options)

    for options in (packed, {"seq_idx": packed["seq_idx"]}, {"lengths": packed["lengths"]}):
        actual = results(partial(call, GF, options), tensors)
        for a, e in zip(actual, results(partial(call, reference, options), tensors), strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_right_padded_batches_are_each_alone(device, value, groups):
    """Whatever the padding holds: outputs of 0, the state at each length, and gradients."""
    x, weight, bias, state = inputs((4, 6, 20), torch.float64, device, per_group=6 // groups)
    lengths = torch.tensor([20, 2, 7, 0], device=device)
    x[torch.arange(20, device=device) >= lengths[:, None, None].expand(-1, 6, 1)] = value
    options = {"groups": groups, "activation": "silu", "return_state": True}

    def together(x, weight, bias, state, **lengths):
        return torch.cat(GF.causal_conv1d(x, weight, bias, initial_state=state, **options, **lengths), 2)

    def alone(x, weight, bias, state):
        rows = []
        for i, n in enumerate(lengths.tolist()):
            part, before = x[i : i + 1, :, :n], state[i : i + 1]
            y, final = GF.causal_conv1d(part, weight, bias, initial_state=before, **options)
            rows.append(torch.cat([y, y.new_zeros(1, 6, 20 - n), final], 2))
        return torch.cat(rows)

    actual = results(partial(together, lengths=lengths), [x, weight, bias, state])
    expected = results(alone, [x, weight, bias, state])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 5])
def test_chunks_of_packed_sequences_are_one_pass(device, groups):
    """The state continues the sequence that a chunk ends in."""
    x, weight, bias, state = inputs(
        (2, 5, 90), torch.float64, device, taps=3, dilation=4, per_group=5 // groups
    )
    seq_idx = ROW.expand(2, -1).abs().to(device)
    call = partial(GF.causal_conv1d, dilation=4, groups=groups, return_state=True)
    whole, final = call(x, weight, bias, initial_state=state, seq_idx=seq_idx)
    parts, carried = [], state
    for begin, end in ((0, 3), (3, 5), (5, 60), (60, 84), (84, 90)):
        if begin and seq_idx[0, begin] != seq_idx[0, begin - 1]:
            carried = torch.zeros_like(carried)
        y, carried = call(
            x[:, :, begin:end], weight, bias, initial_state=carried, seq_idx=seq_idx[:, begin:end]
        )
        parts.append(y)
    torch.testing.assert_close((torch.cat(parts, 2), carried), (whole, final))


@pytest.mark.parametrize("activation", [None, "silu"])
def test_second_derivative_of_packed_sequences(device, activation):
    tensors = [t.requires_grad_() for t in inputs((2, 2, 5), torch.float64, device, taps=2)]
    options = {
        "seq_idx": torch.tensor([[0, 0, 1, 1, 1], [3, 3, 3, -1, 4]], device=device),
        "lengths": torch.tensor([4, 5], device=device),
    }
    assert torch.autograd.gradgradcheck(partial(depthwise, activation=activation, **options), tensors)


@pytest.mark.parametrize("groups", [1, 4])
def test_torch_compile_of_packed_sequences(device, groups):
    torch._dynamo.reset()
    call = partial(GF.causal_conv1d, groups=groups, activation="gated", return_state=True)
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(2, 4, 9), (3, 4, 17)]:
        x, weight, bias, state = inputs(shape, torch.float32, device, per_group=4 // groups)
        options = {"initial_state": state, **packing(shape, 3, device)}
        assert_same(compiled(x, weight, bias, **options), call(x, weight, bias, **options))


def test_packed_sequences_in_vmap_and_as_shapes(device):
    tensors = inputs((2, 3, 7), torch.float64, device)
    packed = packing((2, 3, 7), 1, device)

    def call(x, seq_idx, lengths):
        return depthwise(x, *tensors[1:3], seq_idx=seq_idx, lengths=lengths, return_state=True)

    each = [torch.stack([t, t.flip(0)]) for t in (tensors[X], *packed.values())]
    for actual, expected in zip(
        torch.vmap(call)(*each), map(torch.stack, zip(*map(call, *each), strict=True)), strict=True
    ):
        torch.testing.assert_close(actual, expected)
    with FakeTensorMode() as mode:
        fake = depthwise(
            *map(mode.from_tensor, tensors),
            **{name: mode.from_tensor(t) for name, t in packed.items()},
            return_state=True,
        )
    meta = depthwise(
        *(t.to("meta") for t in tensors), **{n: t.to("meta") for n, t in packed.items()}, return_state=True
    )
    assert [t.shape for t in fake] == [t.shape for t in meta] == [(2, 3, 7), (2, 3, 3)]


def test_names_of_causal_conv1d(device):
    """Weight (C, k), "swish", and a tensor of the caller's for the state."""
    x, weight, bias, state = inputs((2, 5, 9), torch.float32, device)
    leaf = weight[:, 0].clone().requires_grad_()
    out = torch.empty_like(state)
    y, final = depthwise(x, leaf, bias, state, activation="swish", return_state=True, final_states_out=out)
    assert final is out
    assert_same([y, out], depthwise(x, weight, bias, state, activation="silu", return_state=True))
    y.sum().backward()
    assert leaf.grad.shape == leaf.shape
    assert_same(
        [GF.causal_conv1d_update(x[:, :, 0], state.clone(), leaf, bias, groups=5, activation="swish")],
        [y[:, :, 0].detach()],
    )


# ---- Errors ------------------------------------------------------------------------------------------

ones = torch.ones
X123 = ones(1, 2, 3)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        (("x", ones(2, 1, 2)), {}, TypeError, r"x: expected a torch\.Tensor, got str"),
        ((ones(1, 2, 3, dtype=torch.int64), ones(2, 1, 2)), {}, TypeError, r"x: expected float32, .* int64"),
        ((ones(2, 3), ones(2, 1, 2)), {}, ValueError, r"x: expected shape \(B, C, T\), got \(2, 3\)"),
        ((X123, None), {}, TypeError, r"weight: expected a torch\.Tensor, got NoneType"),
        ((X123, ones(2, 1, 2)), {}, ValueError, r"weight: expected shape \(O, 2, k\), got \(2, 1, 2\)"),
        ((X123, ones(2, 2, 0)), {}, ValueError, r"weight: expected shape \(O, 2, k\), got \(2, 2, 0\)"),
        ((X123, ones(2, 2)), {}, ValueError, r"weight: expected shape \(O, 2, k\), got \(2, 2\)"),
        ((ones(1, 3, 3), ones(2, 1, 2)), {"groups": 2}, ValueError, r"groups: expected a divisor .* 3 .* 2"),
        ((X123, ones(3, 1, 2)), {"groups": 2}, ValueError, r"weight: expected a multiple of groups=2"),
        ((X123, ones(3, 2, 2)), {"activation": "gated"}, ValueError, r"weight: .* even .*, got 3"),
        ((X123, ones(4, 2, 2), ones(2)), {}, ValueError, r"bias: expected shape \(4,\), got \(2,\)"),
        ((X123, ones(2, 2, 2)), {"groups": 0}, ValueError, r"groups: expected at least 1, got 0"),
        ((X123, ones(2, 2, 2)), {"dilation": 0}, ValueError, r"dilation: expected at least 1, got 0"),
        ((X123, ones(2, 2, 2)), {"dilation": 1.0}, TypeError, r"dilation: expected an int, got float"),
        (
            (X123, ones(2, 2, 2)),
            {"activation": "relu"},
            ValueError,
            r"activation: expected one of None, 'silu', 'gated', got 'relu'",
        ),
        (
            (X123, ones(2, 2, 2)),
            {"initial_state": ones(1, 2, 2), "dilation": 3},
            ValueError,
            r"initial_state: expected shape \(1, 2, 3\), got \(1, 2, 2\)",
        ),
        (
            (X123, ones(2, 1, 2, device="meta")),
            {"groups": 2},
            ValueError,
            r"one device, got cpu and meta",
        ),
        ((X123, ones(2, 2, 2)), {"seq_idx": [0] * 3}, TypeError, r"seq_idx: expected a torch\.Tensor, got"),
        ((X123, ones(2, 2, 2)), {"seq_idx": ones(1, 3)}, TypeError, r"seq_idx: expected int32 or int64"),
        (
            (X123, ones(2, 2, 2)),
            {"seq_idx": ones(3).int()},
            ValueError,
            r"seq_idx: expected shape \(1, 3\), got \(3,\)",
        ),
        (
            (X123, ones(2, 2, 2)),
            {"lengths": ones(2).int()},
            ValueError,
            r"lengths: expected shape \(1,\), got \(2,\)",
        ),
        (
            (X123, ones(2, 2, 2)),
            {"lengths": 4 * ones(1).long()},
            ValueError,
            r"lengths: expected values in \[0, 3\], got values from 4 to 4",
        ),
        (
            (X123, ones(2, 2, 2)),
            {"final_states_out": ones(1, 2, 1)},
            ValueError,
            r"final_states_out: expected return_state=True",
        ),
        (
            (X123, ones(2, 2, 2)),
            {"final_states_out": ones(1, 2, 2), "return_state": True},
            ValueError,
            r"final_states_out: expected shape \(1, 2, 1\), got \(1, 2, 2\)",
        ),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        GF.causal_conv1d(*arguments, **options)


def test_second_derivative_under_torch_func(device):
    x, weight, *_ = inputs((2, 3, 5), torch.float64, device)

    def curvature(convolve):
        def energy(x):
            return convolve(x, weight, groups=3, activation="silu").square().sum()

        return torch.func.grad(lambda x: torch.func.grad(energy)(x).square().sum())(x)

    torch.testing.assert_close(curvature(GF.causal_conv1d), curvature(reference.causal_conv1d))
