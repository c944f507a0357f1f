"""What every operation promises, as tests to inherit.

A test file derives a class from `Contracts` and says how the operation is called and on what. Accuracy is
measured once, on one tensor; every other layout, size, thread count or dtype must then give the same bits.
"""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, torch.float64, *HALVES]

# One, around the lanes of a vector (4 to 16) and a tile of 64 pixels, several tiles, and several threads.
SIZES = [1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 129, 1134]

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")

bounded = settings(max_examples=min(50, settings.default.max_examples))


def with_gradients(operator, checks=OPCHECKS):
    """What opcheck does of `checks` with inputs that require a gradient.

    A backward operator's gradient is plain PyTorch, of which a trace takes six times as long with symbolic
    sizes: it is traced with the sizes as they are.
    """
    if not operator._opname.endswith("_backward"):
        return checks
    return [check.replace("dynamic", "static") for check in checks]


# ---------------------------------------------------------------------------------------------------------
# Layouts
# ---------------------------------------------------------------------------------------------------------


def strided(tensor, order=None, step=None, margin=None):
    """An equal tensor inside a larger buffer of NaN.

    `order`: the dimensions from the outermost in memory to the innermost; `step[d]`: distance between
    neighbours along d; `margin[d]`: elements left free before and after.
    """
    order, step, margin = order or range(tensor.dim()), step or {}, margin or {}
    sizes = [n * step.get(d, 1) + 2 * margin.get(d, 0) for d, n in enumerate(tensor.shape)]
    buffer = tensor.new_full([sizes[d] for d in order], math.nan)
    view = buffer.permute([list(order).index(d) for d in range(tensor.dim())])
    for d, n in enumerate(tensor.shape):
        start = margin.get(d, 0)
        view = view.narrow(d, start, n * step.get(d, 1))[
            (slice(None),) * d + (slice(None, None, step.get(d, 1)),)
        ]
    return view.copy_(tensor)


def _channels_inner(tensor):
    return [d for d in range(tensor.dim()) if d != 1] + [1]


LAYOUTS = {
    "contiguous": strided,
    "channels_last": lambda t: strided(t, order=_channels_inner(t)),
    "slice": lambda t: strided(t, margin=dict.fromkeys(range(t.dim()), 1)),
    "channels_last_slice": lambda t: strided(
        t, order=_channels_inner(t), margin=dict.fromkeys(range(t.dim()), 1)
    ),
    "chunk": lambda t: strided(t, margin={1: t.shape[1]}),
    "every_other_sample": lambda t: strided(t, step={0: 2}),
    "every_other_channel": lambda t: strided(t, step={1: 2}),
    "every_other_pixel": lambda t: strided(t, step={t.dim() - 1: 2}),
    "every_other_row": lambda t: strided(t, step={2: 2}),
    "transposed": lambda t: strided(t, order=[*range(t.dim() - 2), t.dim() - 1, t.dim() - 2]),
    "reversed": lambda t: strided(t, order=range(t.dim())[::-1]),
    "batch_inner": lambda t: strided(t, order=[*range(1, t.dim()), 0]),
}


def is_channels_last(tensor):
    return tensor.dim() > 2 and tensor.movedim(1, -1).is_contiguous()


@st.composite
def layouts(draw, dim):
    """Functions that give a tensor of `dim` dimensions any order, steps and margins."""
    order = draw(st.permutations(range(dim)))
    step = dict(enumerate(draw(st.tuples(*[st.sampled_from([1, 1, 2, 3])] * dim))))
    margin = dict(enumerate(draw(st.tuples(*[st.sampled_from([0, 0, 1])] * dim))))
    return lambda tensor: strided(tensor, order, step, margin)


# ---------------------------------------------------------------------------------------------------------
# Results and their comparison
# ---------------------------------------------------------------------------------------------------------


def incoming(y):
    """A gradient of powers of two: exact in every dtype, and multiplying by it does not round."""
    exponents = torch.randint(-1, 2, y.shape, generator=torch.Generator().manual_seed(1))
    signs = torch.randint(0, 2, y.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return (signs * 2.0**exponents).to(y)


def signs(y):
    """A gradient by which multiplying never rounds, subnormal numbers included."""
    return incoming(y).sign()


def outputs(function, inputs):
    """What it returns, one tensor or several, as a list."""
    y = function(*inputs)
    return [y] if isinstance(y, torch.Tensor) else list(y)


def results(function, inputs, gradient=incoming):
    """The outputs and the gradient by every input, strides as they come."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    ys = outputs(function, leaves)
    grads = torch.autograd.grad(ys, leaves, [gradient(y) for y in ys])
    assert not any(g.requires_grad for g in grads), "a gradient that holds on to the graph"
    return [*(y.detach() for y in ys), *grads]


def assert_same(actual, expected, summed=()):
    """The same bits, but for the `summed` results, by number, whose terms may have been added in another
    order."""
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == e.dtype and a.shape == e.shape
        if i in summed:
            torch.testing.assert_close(a, e, rtol=4 * torch.finfo(a.dtype).eps, atol=1e-5)
        else:
            assert torch.equal(a, e), f"differ by up to {(a.double() - e.double()).abs().max()}"


def _over_block(statistic, tensor, block):
    """Over samples, pixels and each `block` of channels, which have errors of one size; None: over all."""
    if block is None or tensor.dim() < 3 or tensor.shape[1] % block:
        return statistic(tensor)
    blocks = tensor.unflatten(1, (-1, block))
    value = statistic(blocks, [d for d in range(blocks.dim()) if d != 1], keepdim=True)
    return value.expand_as(blocks).flatten(1, 2)


def assert_accurate(function, reference, inputs, block=1):
    """Errors against float64, compared with those of plain PyTorch in the dtype of `inputs`.

    Halves: the largest is at most twice as large. Otherwise the mean is at most three times as large, as the
    elementary functions err by 2 ulp, torch's by half to one; the largest, which a single badly conditioned
    element decides, 32 times. Beyond that each result may round once. For float64 plain PyTorch's error is
    that of float32 (which the inputs must be) scaled by the ratio of the two precisions, once more for the
    truth, which errs as well.
    """
    dtype = inputs[-1].dtype
    double = dtype == torch.float64
    full_precision = [(torch.mean, 4 if double else 3), (torch.amax, 32)]
    rules = [(torch.amax, 2)] if dtype in HALVES else full_precision
    exact = results(reference, [t.double() for t in inputs])
    plain = results(reference, [t.float() for t in inputs] if double else inputs)
    for a, e, p in zip(results(function, inputs), exact, plain, strict=True):
        assert e.abs().max() > 0, "nothing to compare"
        # Where plain PyTorch overflows, anything finite is better.
        plain_error = (p.double() - e).abs().nan_to_num(nan=torch.inf) * (2**-29 if double else 1)
        rounding = torch.finfo(a.dtype).eps * e.abs() + torch.finfo(a.dtype).smallest_normal
        error = ((a.double() - e).abs() - rounding).clamp(min=0)
        assert error.isfinite().all()
        for statistic, factor in rules:
            allowed = factor * _over_block(statistic, plain_error, block)
            excess = (_over_block(statistic, error, block) / allowed).nan_to_num(nan=0.0).max()
            assert excess <= 1, f"{statistic.__name__} error {excess:.3g} times what is allowed"


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------------------------
# The tests
# ---------------------------------------------------------------------------------------------------------


class Contracts:
    """Tests of an operation that treats pixels alike: (B, C, *S) in, (B, C', *S) or (B, *S) out.

    It may have further outputs (B,), summed over pixels, and inputs that all samples share.
    """

    #: Inputs, by number, that a network computes: half under autocast.
    conditioned = (0,)
    #: Whether a channels_last input gives a channels_last output (its gradient is channels_last always).
    keeps_layout = True
    #: The part of the largest number up to which nothing inside overflows.
    headroom = 1.0
    #: What opcheck may do with inputs that require a gradient.
    opcheck_with_gradients = OPCHECKS
    #: The number of channels that follow each other in one role.
    block = 1
    #: Results (outputs, then gradients), by number, that are sums over pixels: (B,) or smaller. Other results
    #: treat pixels alike.
    summed = ()
    #: Inputs, by number, that all samples have in common. Their gradients are `summed`.
    shared = ()

    def call(self, *inputs):
        """The operation."""
        raise NotImplementedError

    def plain(self, *inputs):
        """The reference."""
        raise NotImplementedError

    def inputs(self, shape, dtype, device):
        """Float32 numbers as `dtype`; `shape` is (batch, *spatial)."""
        raise NotImplementedError

    def operators(self, *inputs):
        """Each operator behind the operation with arguments, for opcheck."""
        raise NotImplementedError

    def lay_out(self, layout, tensor):
        """An input in a layout, which vectors have none of."""
        return LAYOUTS[layout](tensor) if tensor.dim() > 1 else tensor

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_accuracy(self, device, dtype):
        assert_accurate(self.call, self.plain, self.inputs((4, 32, 33), dtype, device), self.block)

    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    def test_halves_compute_in_float32(self, device, dtype):
        inputs = self.inputs((2, 9, 15), dtype, device)
        halves = results(self.call, inputs, signs)
        singles = results(self.call, [t.float() for t in inputs], signs)
        assert [t.dtype for t in halves[-len(inputs) :]] == [dtype] * len(inputs)
        assert_same(halves, [s.to(h.dtype) for s, h in zip(singles, halves, strict=True)])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, device, layout, dtype):
        inputs = self.inputs((3, 5, 19), dtype, device)
        expected = results(self.call, inputs)
        laid_out = [self.lay_out(layout, t) for t in inputs]
        for mixed in (laid_out, *([*inputs[:i], t, *inputs[i + 1 :]] for i, t in enumerate(laid_out))):
            before = [t.clone() for t in mixed]
            assert_same(results(self.call, mixed), expected, self.summed)
            assert_same(mixed, before)

        def lay_out(y):
            return LAYOUTS[layout](incoming(y)) if y.dim() > 2 else incoming(y)

        assert_same(results(self.call, inputs, lay_out), expected, self.summed)
        assert_same(results(self.call, laid_out, lay_out), expected, self.summed)

    @pytest.mark.parametrize("dim", range(4))
    def test_expanded_inputs(self, device, dim):
        inputs = self.inputs((3, 5, 17), torch.float32, device)
        expanded = [t.narrow(dim, 0, 1).expand_as(t) if t.dim() > dim else t for t in inputs]
        expected = results(self.call, [t.contiguous() for t in expanded])
        assert_same(results(self.call, expanded), expected, self.summed)

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    def test_expanded_gradients(self, device, layout):
        inputs = [self.lay_out(layout, t) for t in self.inputs((3, 5, 17), torch.float32, device)]
        expected = results(self.call, inputs, torch.ones_like)
        assert_same(results(self.call, inputs, lambda y: y.new_ones(()).expand_as(y)), expected)
        leaves = [t.detach().requires_grad_() for t in inputs]
        total = sum(y.sum() for y in outputs(self.call, leaves))
        assert_same(torch.autograd.grad(total, leaves), expected[-len(leaves) :])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layout_of_results(self, device, layout):
        inputs = [self.lay_out(layout, t) for t in self.inputs((3, 5, 19), torch.float32, device)]
        tensors = results(self.call, inputs, lambda y: y.new_ones(()).expand_as(y))
        whole = [t for t in tensors if t.dim() > 2]
        ys, grads = whole[: -len(inputs)] or whole[:1], whole[-len(inputs) :]
        dense = is_channels_last if layout.startswith("channels_last") else torch.Tensor.is_contiguous
        assert all(map(dense, grads)), [g.stride() for g in grads]
        assert all(map(dense if self.keeps_layout else torch.Tensor.is_contiguous, ys))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_fake_kernel_agrees(self, device, layout):
        inputs = [self.lay_out(layout, t) for t in self.inputs((3, 5, 19), torch.float32, device)]
        real = results(self.call, inputs, torch.ones_like)
        with FakeTensorMode() as mode:
            fake = results(self.call, [mode.from_tensor(t) for t in inputs], torch.ones_like)
        for r, f in zip(real, fake, strict=True):
            assert (r.shape, r.dtype) == (f.shape, f.dtype)
            # Where there is one element, its distance to the next means nothing.
            assert all(n == 1 or a == b for n, a, b in zip(r.shape, r.stride(), f.stride(), strict=True))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
    def test_sizes_off_every_tile(self, device, dtype):
        whole = self.inputs((2, 1134), dtype, device)
        expected = results(self.call, whole, torch.ones_like)
        for size in SIZES:
            part = [t if i in self.shared else t[..., :size] for i, t in enumerate(whole)]
            dense = results(self.call, [t.contiguous() for t in part], torch.ones_like)
            assert_same(results(self.call, part, torch.ones_like), dense, self.summed)
            for i, (d, e) in enumerate(zip(dense, expected, strict=True)):
                if i not in self.summed:
                    assert_same([d], [e[..., :size]])

    @pytest.mark.parametrize("spatial", [(), (60,), (12, 5), (3, 4, 5)])
    def test_any_number_of_spatial_dimensions(self, device, spatial):
        flat = self.inputs((3, 60) if spatial else (3, 1), torch.float32, device)
        shaped = [t if i in self.shared else t.reshape(*t.shape[:2], *spatial) for i, t in enumerate(flat)]
        expected = [
            t if i in self.summed else t.reshape(*t.shape[:-1], *spatial)
            for i, t in enumerate(results(self.call, flat, torch.ones_like))
        ]
        assert_same(results(self.call, shaped, torch.ones_like), expected, self.summed)

    @pytest.mark.parametrize("shape", [(0,), (0, 4, 5), (2, 0), (2, 3, 0)])
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
    def test_empty(self, device, shape, layout):
        inputs = [self.lay_out(layout, t) for t in self.inputs(shape, torch.float32, device)]
        tensors = results(self.call, inputs)
        ys = outputs(self.plain, inputs)
        assert [t.shape for t in tensors] == [t.shape for t in (*ys, *inputs)]

    def test_batch_whole_or_in_parts(self, device):
        inputs = self.inputs((7, 5, 9), torch.float32, device)
        pieces = [[t] * 3 if i in self.shared else t.split(3) for i, t in enumerate(inputs)]
        parts = [results(self.call, p, torch.ones_like) for p in zip(*pieces, strict=True)]
        together = results(self.call, inputs, torch.ones_like)
        first_gradient = len(together) - len(inputs)
        of_shared = [first_gradient + i for i in self.shared]
        joined = [sum(p) if i in of_shared else torch.cat(p) for i, p in enumerate(zip(*parts, strict=True))]
        assert_same(joined, together, of_shared)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    def test_same_bits_whatever_the_threads(self, device, layout, dtype):
        inputs = [self.lay_out(layout, t) for t in self.inputs((3, 65, 129), dtype, device)]
        with threads(1):
            alone = results(self.call, inputs)
            assert_same(results(self.call, inputs), alone)
        for count in (2, 3):
            with threads(count):
                assert_same(results(self.call, inputs), alone)

    def test_backward_twice_through_a_retained_graph(self, device):
        leaves = [t.requires_grad_() for t in self.inputs((2, 9), torch.float32, device)]
        ys = outputs(self.call, leaves)
        gradients = [incoming(y) for y in ys]
        first = torch.autograd.grad(ys, leaves, gradients, retain_graph=True)
        kept = [g.clone() for g in first]
        assert_same(torch.autograd.grad(ys, leaves, gradients), kept)
        assert_same(first, kept)

    def test_gradients_one_at_a_time(self, device):
        inputs = self.inputs((2, 9), torch.float32, device)
        together = results(self.call, inputs)
        for i, expected in enumerate(together[-len(inputs) :]):
            alone = [t.detach().requires_grad_(i == j) for j, t in enumerate(inputs)]
            ys = [y for y in outputs(self.call, alone) if y.requires_grad]
            assert_same(torch.autograd.grad(ys, alone[i], [incoming(y) for y in ys]), [expected])

    def test_without_gradients(self, device):
        """Where no gradient is wanted, an operation may take another way to the same number."""
        leaves = [t.requires_grad_() for t in self.inputs((4, 32, 33), torch.float32, device)]
        with torch.no_grad():
            ys = outputs(self.call, leaves)
        with torch.inference_mode():
            assert_same([y.clone() for y in outputs(self.call, [t.clone() for t in leaves])], ys)
        exact, plain = outputs(self.plain, [t.double() for t in leaves]), outputs(self.plain, leaves)
        for y, e, p in zip(ys, exact, plain, strict=True):
            assert not y.requires_grad
            allowed = 4 * (p - e).abs().max() + torch.finfo(y.dtype).eps * e.abs()
            assert ((y - e).abs() <= allowed).all()

    def test_torch_func(self, device):
        """Reverse mode and vmap as in plain PyTorch; forward mode is an error, never a silent zero."""
        inputs = self.inputs((3, 7), torch.float64, device)

        def total(call):
            return lambda *t: sum(y.square().sum() for y in outputs(call, t))

        argnums = tuple(range(len(inputs)))
        gradients = torch.func.grad(total(self.call), argnums)(*inputs)
        expected = torch.func.grad(total(self.plain), argnums)(*inputs)
        for gradient, truth in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, truth, rtol=1e-7, atol=1e-9)

        each = [torch.stack([t, t.flip(-1)]) for t in inputs]
        one_by_one = [outputs(self.call, t) for t in zip(*each, strict=True)]
        together = outputs(torch.vmap(self.call), each)
        for several, ones in zip(together, zip(*one_by_one, strict=True), strict=True):
            torch.testing.assert_close(several, torch.stack(ones))
        leaves = [t.requires_grad_() for t in inputs]
        ys = outputs(self.call, leaves)
        ones = [torch.ones_like(y) for y in ys]
        cotangents = [torch.stack([one, 2 * one]) for one in ones]
        batched = torch.autograd.grad(ys, leaves, cotangents, retain_graph=True, is_grads_batched=True)
        for several, one in zip(batched, torch.autograd.grad(ys, leaves, ones), strict=True):
            torch.testing.assert_close(several, torch.stack([one, 2 * one]))

        detached = tuple(t.detach() for t in inputs)
        values, tangents = torch.func.jvp(self.plain, detached, detached)
        actual, actual_tangents = torch.func.jvp(self.call, detached, detached)
        torch.testing.assert_close((actual, actual_tangents), (values, tangents), rtol=1e-7, atol=1e-9)
        with torch.autograd.forward_ad.dual_level():
            duals = self.call(*(torch.autograd.forward_ad.make_dual(t, t) for t in detached))
            unpacked = [torch.autograd.forward_ad.unpack_dual(y).tangent for y in outputs(lambda: duals, ())]
        expected = tangents if isinstance(tangents, tuple) else (tangents,)
        torch.testing.assert_close(unpacked, list(expected), rtol=1e-7, atol=1e-9)

    def test_gradcheck(self, device):
        leaves = [t.requires_grad_() for t in self.inputs((1, 2, 3), torch.float64, device)]
        assert torch.autograd.gradcheck(self.call, leaves)

    def test_second_derivative(self, device):
        leaves = [t.requires_grad_() for t in self.inputs((1, 3), torch.float64, device)]
        assert torch.autograd.gradgradcheck(self.call, leaves)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_finite_at_the_extremes(self, device, dtype):
        """Never NaN, and infinite only where the true value is beyond the dtype."""
        computed = torch.float64 if dtype == torch.float64 else torch.float32
        largest = min(torch.finfo(dtype).max, self.headroom * torch.finfo(computed).max)
        for values in ([-1e4, 0.0, 1e4], [-largest, -1.0, 0.0, 1.0, largest]):
            values = torch.tensor(values, dtype=dtype, device=device)
            inputs = self.inputs((2, 500), dtype, device)
            for i in self.conditioned:
                generator = torch.Generator().manual_seed(i)
                index = torch.randint(len(values), inputs[i].shape, generator=generator)
                inputs[i] = values[index.to(device)]
            exact = results(self.plain, [t.double() for t in inputs])
            for tensor, truth in zip(results(self.call, inputs), exact, strict=True):
                assert not tensor.isnan().any()
                wrong = tensor.isinf() & (truth.abs() < torch.finfo(tensor.dtype).max)
                assert not wrong.any(), truth[wrong]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    def test_nan_is_not_hidden(self, device, dtype):
        """A network that has diverged must show in the loss: NaN wherever the reference has it."""
        inputs = self.inputs((1, 2), dtype, device)
        for i, tensor in enumerate(inputs):
            for channel in range(tensor.shape[0 if i in self.shared else 1]):
                poisoned = [t.clone() for t in inputs]
                poisoned[i][channel if i in self.shared else (0, channel, 1)] = math.nan
                expected = [y.isnan() for y in outputs(self.plain, poisoned)]
                assert any(e.any() for e in expected)
                for y, e in zip(outputs(self.call, poisoned), expected, strict=True):
                    assert torch.equal(y.isnan(), e), f"input {i}, channel {channel}: {y}"

    @bounded
    @given(data=st.data())
    def test_any_shape_layout_and_dtype(self, device, data):
        shape = data.draw(st.lists(st.integers(1, 18), max_size=3).map(tuple), label="spatial")
        shape = (data.draw(st.integers(1, 3), label="batch"), *shape)
        dtype = data.draw(st.sampled_from(DTYPES), label="dtype")
        inputs = self.inputs(shape, dtype, device)
        expected = results(self.call, inputs)
        laid_out = [data.draw(layouts(t.dim()))(t) for t in inputs]
        given = {t.dim(): data.draw(layouts(t.dim())) for t in expected[: -len(inputs)]}
        actual = results(self.call, laid_out, lambda y: given[y.dim()](incoming(y)))
        assert_same(actual, expected, self.summed)

    # What PyTorch does with operators: it costs seconds, and no SIMD level changes it.

    def test_torch_opcheck(self, device):
        inputs = self.inputs((2, 3, 5), torch.float32, device)
        # AOT dispatch takes nearly all of the time; of channels_last it is shown by the compiled graphs.
        for layout, checks in (("contiguous", OPCHECKS), ("channels_last", OPCHECKS[:3])):
            laid_out = [self.lay_out(layout, t) for t in inputs]
            for operator, arguments in self.operators(*laid_out):
                torch.library.opcheck(operator, arguments, test_utils=checks)
            checks = [check for check in checks if check in self.opcheck_with_gradients]
            for operator, arguments in self.operators(*(t.requires_grad_() for t in laid_out)):
                torch.library.opcheck(operator, arguments, test_utils=with_gradients(operator, checks))

    def test_torch_compile(self, device):
        """The graph of any sizes and of fixed ones, without a compiler; test_torch_inductor.py has one."""

        def step(*inputs):
            return [y * 2 for y in outputs(self.call, [t * 0.5 for t in inputs])]

        for layout, dynamic in (("contiguous", True), ("channels_last", False)):
            torch._dynamo.reset()
            compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
            inputs = [self.lay_out(layout, t) for t in self.inputs((2, 5, 9), torch.float32, device)]
            assert_same(results(compiled, inputs), results(step, inputs))

    def test_torch_export(self, device):
        class Module(torch.nn.Module):
            def forward(_, inputs):
                return self.call(*inputs)

        inputs = self.inputs((2, 5, 9), torch.float32, device)
        sizes = {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("height", min=1)}
        dynamic = [{} if i in self.shared else sizes for i in range(len(inputs))]
        program = torch.export.export(Module(), (inputs,), dynamic_shapes=(dynamic,))
        assert any("gmfast" in str(node.target) for node in program.graph.nodes)
        for shape in ((2, 5, 9), (3, 8, 9)):
            inputs = self.inputs(shape, torch.float32, device)
            assert_same(outputs(program.module(), [inputs]), outputs(self.call, inputs))

    def test_torch_autocast(self, device):
        inputs = self.inputs((2, 5, 9), torch.float32, device)
        halves = [t.bfloat16() if i in self.conditioned else t for i, t in enumerate(inputs)]
        expected = results(self.call, halves, signs)
        identity = torch.eye(9, device=device)

        def network(*inputs):
            with torch.autocast(device.type, torch.bfloat16):
                hidden = [t @ identity if i in self.conditioned else t for i, t in enumerate(inputs)]
                assert all(hidden[i].dtype == torch.bfloat16 for i in self.conditioned)
                return self.call(*hidden)

        actual = results(network, inputs, signs)
        first_gradient = len(actual) - len(inputs)
        assert_same(actual[:first_gradient], expected[:first_gradient])
        for grad, e in zip(actual[first_gradient:], expected[first_gradient:], strict=True):
            assert grad.dtype == torch.float32
            torch.testing.assert_close(
                grad, e.float(), rtol=0, atol=1e-30
            )  # matmul flushes subnormal numbers


#: Bounds of |inverse(forward(x)) - x|, relative to the largest x, and of the sum of both ways'
#: log-determinants for each element.
ROUND_TRIP = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


class FlowContracts(Contracts):
    """Tests of a transform (B, C, *S) -> (y, log_det): `x` and the parameters in, `log_det (B,)` summed.

    `forward` and `plain_forward` take `inverse=` as a keyword; a class derived from this one and setting
    `inverse = True` tests the other direction.
    """

    inverse = False
    summed = (1,)
    round_trip = ROUND_TRIP

    def forward(self, *inputs, inverse=False):
        """The operation."""
        raise NotImplementedError

    def plain_forward(self, *inputs, inverse=False):
        """The reference."""
        raise NotImplementedError

    def call(self, *inputs):
        return self.forward(*inputs, inverse=self.inverse)

    def plain(self, *inputs):
        return self.plain_forward(*inputs, inverse=self.inverse)

    def test_log_det_is_that_of_the_jacobian(self, device):
        x, *params = self.inputs((3, 2), torch.float64, device)
        _, log_det = self.call(x, *params)
        assert log_det.shape == (3,) and log_det.abs().min() > 0
        for i in range(3):
            own = [p if j + 1 in self.shared else p[i : i + 1] for j, p in enumerate(params)]
            jacobian = torch.autograd.functional.jacobian(
                lambda flat, own=own: self.call(flat.view(1, *x.shape[1:]), *own)[0].flatten(), x[i].flatten()
            )
            torch.testing.assert_close(log_det[i], jacobian.slogdet().logabsdet, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_round_trip(self, device, dtype):
        x, *params = self.inputs((4, 9, 7), dtype, device)
        y, log_det = self.forward(x, *params, inverse=self.inverse)
        back, log_det_back = self.forward(y, *params, inverse=not self.inverse)
        assert not torch.equal(x, y)
        bound = self.round_trip[dtype]
        assert ((back - x).abs() <= bound * x.abs().max()).all(), (back - x).abs().max()
        assert ((log_det + log_det_back).abs() <= bound * max(1, x[0].numel())).all()

    def test_log_det_dtype(self, device):
        for dtype in DTYPES:
            _, log_det = self.call(*self.inputs((2, 5), dtype, device))
            assert log_det.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
