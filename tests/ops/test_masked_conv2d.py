import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
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
    threads,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import gmfast.functional as GF
from gmfast import reference
from gmfast.ops import masked_conv2d as ops

# (in, out, (h, w), height, width, options): one, odd sizes, more than a vector, a panel and a block of
# channels, more than a tile and a patch of pixels, every kind of mask.
CASES = {
    "one": (1, 1, (1, 1), 1, 1, {"mask_type": "B"}),
    "nothing_seen": (2, 3, (1, 1), 3, 2, {"mask_type": "A"}),
    "row": (5, 7, (1, 5), 3, 19, {"mask_type": "A"}),
    "column": (3, 4, (5, 1), 9, 2, {"mask_type": "B"}),
    "rgb": (3, 6, (3, 5), 6, 7, {"mask_type": "A", "channel_groups": 3}),
    "rgb_deep": (51, 48, (3, 3), 5, 6, {"mask_type": "B", "channel_groups": 3}),
    "rgb_pointwise": (48, 51, (1, 1), 4, 5, {"mask_type": "A", "channel_groups": 3}),
    "dilated": (4, 6, (3, 5), 9, 17, {"mask_type": "B", "dilation": (2, 3)}),
    "kernel_beyond_image": (2, 3, (9, 11), 3, 4, {"mask_type": "A"}),
    "first_layer": (3, 40, (7, 7), 12, 33, {"mask_type": "A"}),
    "deep": (37, 70, (3, 3), 9, 31, {"mask_type": "B"}),
    "tall": (17, 9, (5, 5), 70, 3, {"mask_type": "B"}),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def _kernel(monkeypatch):
    """The kernel itself, also where torch's convolution would be taken for its speed."""
    monkeypatch.setattr(ops, "_torch_is_faster", lambda weight: False)


def inputs(case, dtype=torch.float32, device="cpu", batch=2):
    """x, weight and bias."""
    in_channels, out_channels, kernel, height, width, _ = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, in_channels, height, width, generator=generator)
    weight = torch.randn(out_channels, in_channels, *kernel, generator=generator) / math.sqrt(
        in_channels * math.prod(kernel)
    )
    bias = torch.randn(out_channels, generator=generator)
    return [t.to(device, dtype) for t in (x, weight, bias)]


def call(case):
    return lambda *tensors: GF.masked_conv2d(*tensors, **case[-1])


def plain(case):
    return lambda *tensors: reference.masked_conv2d(*tensors, **case[-1])


def mask_of(case):
    """By the definition, entry by entry."""
    in_channels, out_channels, (h, w), _, _, options = case
    groups = options.get("channel_groups", 1)
    mask = torch.zeros(out_channels, in_channels, h, w, dtype=torch.bool)
    for o in range(out_channels):
        for i in range(in_channels):
            for r in range(h):
                for c in range(w):
                    before = (r, c) < (h // 2, w // 2)
                    colours = i // (in_channels // groups), o // (out_channels // groups)
                    sees = colours[0] < colours[1] + (options["mask_type"] == "B")
                    mask[o, i, r, c] = before or ((r, c) == (h // 2, w // 2) and sees)
    return mask


@every_case
def test_reference_is_the_masked_convolution(case):
    x, weight, bias = inputs(case, torch.float64)
    dilation = case[-1].get("dilation", 1)
    expected = F.conv2d(x, weight * mask_of(case), bias, padding="same", dilation=dilation)
    torch.testing.assert_close(plain(case)(x, weight, bias), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", sorted(CASES.keys() - {"nothing_seen"}))  # whose gradients are zero
def test_accuracy(device, case, dtype):
    case = CASES[case]
    assert_accurate(call(case), plain(case), inputs(case, dtype, device))


@every_case
def test_masked_entries(device, case):
    """Never read, whatever they hold, and their gradient is exactly zero."""
    x, weight, bias = inputs(case, device=device)
    mask = mask_of(case).to(device)
    expected = results(call(case), [x, weight, bias])
    poisoned = torch.where(mask, weight, math.nan)
    actual = results(call(case), [x, poisoned, bias])
    assert_same(actual, expected)
    assert (actual[2][~mask] == 0).all()
    if mask.any():
        assert (actual[2][mask] != 0).any()
    else:
        assert torch.equal(actual[0], bias[:, None, None].expand_as(actual[0])) and not actual[1].any()


@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_pixels_seen(device, mask_type):
    """Exactly the earlier pixels within the kernel, and with type B the current one."""
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.randn(3, 2, 3, 5, dtype=torch.float64, device=device)
    y = GF.masked_conv2d(x, weight, mask_type=mask_type)
    for row in range(5):
        for column in range(6):
            (grad,) = torch.autograd.grad(y[0, :, row, column].sum(), x, retain_graph=True)
            seen = {tuple(pixel) for pixel in grad[0].abs().sum(0).nonzero().tolist()}
            around = {(r, c) for r in range(row - 1, row + 1) for c in range(column - 2, column + 3)}
            expected = {
                (r, c)
                for r, c in around
                if 0 <= r < 5 and 0 <= c < 6 and (r, c) < (row, column + (mask_type == "B"))
            }
            assert seen == expected


@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_colours_seen(device, mask_type):
    x = torch.randn(1, 6, 3, 3, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.randn(9, 6, 3, 3, dtype=torch.float64, device=device)
    y = GF.masked_conv2d(x, weight, mask_type=mask_type, channel_groups=3)
    for out in range(9):
        (grad,) = torch.autograd.grad(y[0, out, 1, 1], x, retain_graph=True)
        assert (grad[0, :, 0] != 0).all() and (grad[0, :, 1, 0] != 0).all()
        colours = grad[0, :, 1, 1].reshape(3, 2).ne(0)
        expected = torch.arange(3, device=device) < out // 3 + (mask_type == "B")
        assert torch.equal(colours.all(1), expected) and torch.equal(colours.any(1), expected)


LAYOUT_CASES = [CASES[name] for name in ("rgb", "dilated", "first_layer", "deep")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device, layout, dtype):
    """The same bits however x, weight and the incoming gradient lie."""
    lay_out = LAYOUTS[layout]
    for case in LAYOUT_CASES:
        x, weight, bias = inputs(case, dtype, device)
        expected = results(call(case), [x, weight, bias])
        for tensors in ([lay_out(x), weight, bias], [x, lay_out(weight), bias]):
            before = [t.clone() for t in tensors]
            assert_same(results(call(case), tensors, lambda y: lay_out(incoming(y))), expected)
            assert_same(tensors, before)
        spread = torch.stack([bias, bias], 1)[:, 0]
        assert_same(results(call(case), [x, weight, spread]), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_results(device, layout):
    x, weight, bias = inputs(CASES["dilated"], device=device)
    y, grad_x, grad_weight, _ = results(
        call(CASES["dilated"]), [LAYOUTS[layout](x), weight, bias], lambda y: LAYOUTS[layout](incoming(y))
    )
    dense = is_channels_last if layout.startswith("channels_last") else torch.Tensor.is_contiguous
    assert dense(y) and dense(grad_x) and grad_weight.is_contiguous()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_fake_kernels_agree(device, layout):
    tensors = inputs(CASES["dilated"], device=device)
    tensors[0] = LAYOUTS[layout](tensors[0])
    real = results(call(CASES["dilated"]), tensors, torch.ones_like)
    with FakeTensorMode() as mode:
        fake = results(call(CASES["dilated"]), [mode.from_tensor(t) for t in tensors], torch.ones_like)
    assert [(r.shape, r.dtype, r.stride()) for r in real] == [(f.shape, f.dtype, f.stride()) for f in fake]


def test_expanded_inputs_and_gradients(device):
    case = CASES["deep"]
    x, weight, bias = inputs(case, device=device)
    for dim in range(4):
        expanded = x.narrow(dim, 0, 1).expand_as(x)
        expected = results(call(case), [expanded.contiguous(), weight, bias], torch.ones_like)
        actual = results(call(case), [expanded, weight, bias], lambda y: y.new_ones(()).expand_as(y))
        assert_same(actual, expected)


@every_case
def test_batch_whole_or_in_parts(device, case):
    x, weight, bias = inputs(case, device=device, batch=5)
    whole = results(call(case), [x, weight, bias])
    for sample in range(5):
        y, grad_x, *_ = results(
            call(case),
            [x[sample : sample + 1], weight, bias],
            lambda y: incoming(whole[0])[sample, None],  # noqa: B023
        )
        assert_same([y, grad_x], [whole[0][sample, None], whole[1][sample, None]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_bits_whatever_the_threads(device, dtype):
    for case in (CASES["deep"], CASES["tall"], CASES["first_layer"]):
        tensors = inputs(case, dtype, device, batch=5)
        with threads(1):
            alone = results(call(case), tensors)
            assert_same(results(call(case), tensors), alone)
        for count in (2, 3):
            with threads(count):
                assert_same(results(call(case), tensors), alone)


@pytest.mark.parametrize(
    "shape", [(0, 3, 4, 4, 5), (2, 3, 4, 0, 5), (2, 3, 4, 4, 0), (2, 0, 4, 4, 5), (2, 3, 0, 4, 5)]
)
def test_empty(device, shape):
    batch, in_channels, out_channels, height, width = shape
    x = torch.randn(batch, in_channels, height, width, device=device)
    weight = torch.randn(out_channels, in_channels, 3, 3, device=device)
    bias = torch.randn(out_channels, device=device)
    y, grad_x, grad_weight, grad_bias = results(call(CASES["tall"]), [x, weight, bias], torch.ones_like)
    assert torch.equal(y, bias[:, None, None].expand(batch, out_channels, height, width))
    assert grad_x.shape == x.shape and not grad_x.any()
    assert not grad_weight.any() and torch.equal(grad_bias, torch.full_like(bias, batch * height * width))


@pytest.mark.parametrize("dilation", [100, 10_000, 2**40, 2**62, (2**32 - 1, (2**32 - 8) // 2)])
def test_dilations_far_beyond_the_image(device, dilation):
    x, weight, bias = inputs((3, 4, (5, 3), 6, 7, {}), torch.float64, device)
    y = GF.masked_conv2d(x, weight, bias, dilation=dilation)
    torch.testing.assert_close(y, F.conv2d(x, weight[:, :, 2:3, 1:2], bias))
    sound = GF.causal_conv1d(x.flatten(2), weight[:, :, 0], dilation=2**62)
    torch.testing.assert_close(sound, F.conv1d(x.flatten(2), weight[:, :, 0, 2:]))


@every_case
def test_without_bias_and_one_gradient_at_a_time(device, case):
    tensors = inputs(case, device=device)
    y, *together = results(call(case), tensors)
    for i, expected in enumerate(together):
        alone = [t.detach().requires_grad_(i == j) for j, t in enumerate(tensors)]
        out = call(case)(*alone)
        assert_same(torch.autograd.grad(out, alone[i], incoming(out)), [expected])
    x, weight, bias = tensors
    torch.testing.assert_close(call(case)(x, weight) + bias[:, None, None], y)
    assert_same(results(call(case), [x, weight], lambda _: incoming(y))[1:], together[:2])


@pytest.mark.parametrize("case", ["rgb", "dilated", "kernel_beyond_image"])
def test_gradcheck(device, case):
    in_channels, out_channels, kernel, *_, options = CASES[case]
    leaves = inputs((in_channels, out_channels, kernel, 3, 4, options), torch.float64, device, batch=1)
    leaves = [t.requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(call(CASES[case]), leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call(CASES[case]), leaves, fast_mode=True)


def test_second_derivatives_are_those_of_the_reference(device):
    case = CASES["rgb"]
    leaves = [t.requires_grad_() for t in inputs(case, torch.float64, device)]

    def second(function):
        y = function(*leaves)
        grads = torch.autograd.grad(y, leaves, incoming(y) * y, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    for actual, expected in zip(second(call(case)), second(plain(case)), strict=True):
        torch.testing.assert_close(actual, expected)


def test_torch_func(device):
    case = CASES["rgb"]
    tensors = inputs(case, torch.float64, device)

    def total(function):
        return lambda *t: function(*t).square().sum()

    actual = torch.func.grad(total(call(case)), (0, 1, 2))(*tensors)
    expected = torch.func.grad(total(plain(case)), (0, 1, 2))(*tensors)
    torch.testing.assert_close(actual, expected)
    several = [torch.stack([t, t.flip(0)]) for t in tensors]
    torch.testing.assert_close(
        torch.vmap(call(case))(*several), torch.stack([call(case)(*t) for t in zip(*several, strict=True)])
    )
    tensors = tuple(t.detach() for t in tensors)
    actual, expected = (torch.func.jvp(f(case), tensors, tensors) for f in (call, plain))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_torch_autocast(device, dtype):
    tensors = inputs(CASES["deep"], device=device)
    expected = results(call(CASES["deep"]), [t.to(dtype) for t in tensors])

    def under_autocast(*tensors):
        with torch.autocast(device.type, dtype):
            return call(CASES["deep"])(*tensors)

    y, *grads = results(under_autocast, tensors)
    assert_same([y], expected[:1])
    assert_same([g.to(dtype) for g in grads], expected[1:])
    assert all(g.dtype == torch.float32 for g in grads)


def test_mixed_dtypes(device):
    """x's dtype decides, as for pixels in float32 and parameters that were left in bfloat16."""
    x, weight, bias = inputs(CASES["deep"], device=device)
    expected = results(call(CASES["deep"]), [x, weight.bfloat16().float(), bias])
    y, grad_x, grad_weight, _ = results(call(CASES["deep"]), [x, weight.bfloat16(), bias.double()])
    torch.testing.assert_close(y, expected[0])
    assert_same([grad_x, grad_weight], [expected[1], expected[2].bfloat16()])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_float32_parameters_of_half_networks_are_not_rounded(device, dtype):
    x, weight, bias = inputs(CASES["deep"], device=device)
    tensors = [x.to(dtype), weight, bias]
    y, grad_x, *grads = results(call(CASES["deep"]), tensors)
    exact = results(plain(CASES["deep"]), [t.double() for t in tensors])
    assert y.dtype == grad_x.dtype == dtype
    torch.testing.assert_close(y.double(), exact[0], rtol=torch.finfo(dtype).eps, atol=1e-5)
    for grad, truth in zip(grads, exact[2:], strict=True):
        torch.testing.assert_close(grad, truth.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_convolution_that_is_used_where_it_is_faster(device, dtype):
    """`plain` agrees with the kernel's definition whether or not this machine prefers it, with and without
    columns that the kernel leaves out."""
    for case in CASES.values():
        tensors = inputs(case, torch.float64, device)
        geometry = ops.check(*tensors, *_positional(case[-1]))[-1]
        exact = plain(case)(*tensors)
        y = ops.plain(*(t.to(dtype) for t in tensors), geometry)
        assert y.dtype == dtype and y.shape == exact.shape
        # Sums round in proportion to their terms' absolute values.
        largest = plain(case)(*(t.abs() for t in tensors)).max().item()
        tolerance = 4 * torch.finfo(dtype).eps * max(1.0, largest)
        torch.testing.assert_close(y.double(), exact, rtol=0, atol=tolerance)


def _positional(options):
    return options["mask_type"], options.get("channel_groups", 1), options.get("dilation", 1)


@bounded
@given(data=st.data())
def test_any_shape_and_layout(device, data):
    groups = data.draw(st.sampled_from([1, 3]), label="groups")
    in_channels, out_channels = (groups * data.draw(st.integers(1, n)) for n in (7, 13))
    kernel = tuple(data.draw(st.sampled_from([1, 3, 5])) for _ in range(2))
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 21))
    options = {
        "mask_type": data.draw(st.sampled_from("AB")),
        "channel_groups": groups,
        "dilation": tuple(data.draw(st.integers(1, 3)) for _ in range(2)),
    }
    case = (in_channels, out_channels, kernel, height, width, options)
    x, weight, bias = inputs(case, torch.float64, device)
    x = data.draw(layouts(4))(x)
    for actual, expected in zip(
        results(call(case), [x, weight, bias]), results(plain(case), [x, weight, bias]), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def operators(tensors):
    x, weight, bias = tensors
    *_, geometry = ops.check(x, weight, bias, "B", 1, 1)
    grad = torch.randn(x.shape[0], weight.shape[0], *x.shape[2:], device=x.device)
    library = torch.ops.gmfast
    yield library.masked_conv2d, (x, weight, bias, *geometry)
    yield library.masked_conv2d_grad_input, (grad, weight, *geometry)
    yield library.masked_conv2d_grad_weight, (grad, x, *weight.shape[2:], True, *geometry)


def test_torch_opcheck(device):
    x, weight, bias = inputs((3, 5, (3, 3), 4, 6, {}), device=device)
    for lay_out in (LAYOUTS["contiguous"], LAYOUTS["channels_last"]):
        for operator, arguments in operators([lay_out(x), weight, bias]):
            torch.library.opcheck(operator, arguments)
        for operator, arguments in operators(
            [t.detach().requires_grad_() for t in (lay_out(x), weight, bias)]
        ):
            torch.library.opcheck(operator, arguments, test_utils=OPCHECKS)


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_torch_compile(device, backend):
    torch._dynamo.reset()

    def step(x, weight, bias):
        return GF.masked_conv2d(x * 0.5, weight * 2, bias) * 2

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for lay_out in (LAYOUTS["contiguous"], LAYOUTS["channels_last"]):
        x, weight, bias = inputs((3, 5, (3, 3), 4, 6, {}), device=device)
        assert_same(results(compiled, [lay_out(x), weight, bias]), results(step, [lay_out(x), weight, bias]))


def test_torch_export(device):
    class Module(torch.nn.Module):
        def forward(self, x, weight):
            return GF.masked_conv2d(x, weight, mask_type="A")

    x, weight, _ = inputs((3, 5, (3, 3), 4, 6, {}), device=device)
    sizes = {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("height", min=1)}
    program = torch.export.export(Module(), (x, weight), dynamic_shapes=(sizes, None))
    assert any("gmfast" in str(node.target) for node in program.graph.nodes)
    for other in (x, torch.randn(3, 3, 7, 6, device=device)):
        assert_same([program.module()(other, weight)], [GF.masked_conv2d(other, weight, mask_type="A")])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, ValueError, r"x: expected \(B, I, H, W\), got \(2, 3, 4\)"),
        ({"x": torch.zeros(2, 3, 4, 5, dtype=torch.int64)}, TypeError, "x: expected float32, .* got int64"),
        ({"weight": torch.zeros(6, 4, 3, 3)}, ValueError, r"weight: .* for x of 3 channels, got \(6, 4"),
        ({"weight": torch.zeros(6, 3, 3, 4)}, ValueError, r"weight: expected odd kernel sizes, got \(3, 4\)"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias: expected shape \(6,\), got \(5,\)"),
        ({"mask_type": "C"}, ValueError, "mask_type: expected one of 'A', 'B', got 'C'"),
        ({"channel_groups": 2}, ValueError, "channel_groups: .* 3 input and 6 output .* got 2"),
        ({"channel_groups": 1.5}, TypeError, "channel_groups: expected an int, got float"),
        ({"dilation": 0}, ValueError, "dilation: expected a positive int or two, got 0"),
        ({"dilation": (1, 2, 3)}, ValueError, r"dilation: expected a positive int or two, got \(1, 2, 3\)"),
    ],
)  # fmt: skip
def test_errors(change, error, message):
    arguments = {"x": torch.zeros(2, 3, 4, 5), "weight": torch.zeros(6, 3, 3, 3), "bias": torch.zeros(6)}
    with pytest.raises(error, match=message):
        GF.masked_conv2d(**(arguments | change))
