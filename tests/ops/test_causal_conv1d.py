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
    arguments = (grad.requires_grad_(), *leaves, 1, True, True, True, True, True)
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


def test_parameters_of_another_dtype(device):
    x, weight, bias, state = inputs((2, 4, 9), torch.float32, device)
    y = depthwise(x.bfloat16(), weight, bias, state)
    assert_same([y], [depthwise(*(t.bfloat16() for t in (x, weight, bias, state)))])


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
