import copy

import pytest
import torch
from torch.autograd.functional import jacobian

import gmfast
from gmfast import reference
from gmfast.nn import (
    Flow,
    Inverse,
    MaskedAffineAutoregressive,
    MaskedMLP,
    MaskedSplineAutoregressive,
    Permute,
    Sequential,
    naive_inverse,
)
from gmfast.ops.made_inverse import made_inverse, made_solve

KINDS = {"affine": MaskedAffineAutoregressive, "spline": MaskedSplineAutoregressive}
NETS = {
    "wide": {"num_inputs": 5, "hidden": (13, 9)},
    "narrow": {"num_inputs": 7, "hidden": (3,)},
    "deep": {"num_inputs": 6, "hidden": (8, 17, 8), "direct": True, "order": [3, 0, 5, 1, 2, 4]},
    "linear": {"num_inputs": 4, "hidden": (), "direct": True, "order": range(3, -1, -1)},
    "one value": {"num_inputs": 1, "hidden": (4,)},
    "context": {"num_inputs": 5, "hidden": (16, 16), "num_context": 3, "order": [4, 2, 0, 1, 3]},
}


def build(kind, dtype=torch.float64, scale=2.0, **options):
    """A transform whose parameters vary, and so whose masks and orders matter."""
    torch.manual_seed(0)
    transform = KINDS[kind](**options).to(dtype)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.mul_(scale)
    return transform


def inputs(transform, batch, dtype=torch.float64):
    net = transform.net
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, net.num_inputs, generator=generator, dtype=torch.float64).to(dtype)
    if net.context is None:
        return x, None
    context = torch.randn(batch, net.context[0].in_features, generator=generator, dtype=torch.float64)
    return x, context.to(dtype)


@pytest.fixture(params=NETS)
def net(request):
    return NETS[request.param]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["relu", "elu"])
def test_incremental_inverse_is_the_sequential_one(kind, net, activation):
    """float64 to 1e-10, at sizes around a vector and a block of two."""
    transform = build(kind, activation=activation, **net)
    for batch in (1, 8, 9, 35):
        z, context = inputs(transform, batch)
        with torch.no_grad():
            x, log_det = transform.inverse(z, context)
            with naive_inverse(transform):
                expected, expected_log_det = transform.inverse(z, context)
            again, forward_log_det = transform(x, context)
        torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(log_det, expected_log_det, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(again, z, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(forward_log_det, -log_det, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_float32(kind):
    """Errs no more than four times as much as the sequential inverse does, in float64's terms."""
    options = {"num_inputs": 64, "hidden": (64, 64)}
    single, double = build(kind, torch.float32, 1.0, **options), build(kind, scale=1.0, **options)
    z, _ = inputs(double, 50)
    with torch.no_grad():
        exact = double.inverse(z)
        ours = single.inverse(z.float())
        with naive_inverse(single):
            naive = single.inverse(z.float())
    for e, o, n in zip(exact, ours, naive, strict=True):
        assert o.dtype == torch.float32
        assert (o - e).abs().max() <= 4 * (n - e).abs().max() + 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_log_det_is_the_jacobians(kind, net, direction):
    transform = build(kind, **net)
    x, context = inputs(transform, 3)
    function = getattr(transform, direction)
    for i in range(3):
        own = None if context is None else context[i : i + 1]
        matrix = jacobian(lambda x, own=own: function(x[None], own)[0][0], x[i])
        log_det = function(x[i : i + 1], own)[1]
        torch.testing.assert_close(log_det[0], matrix.slogdet().logabsdet, rtol=1e-8, atol=1e-8)
    ranks = matrix[transform.order][:, transform.order]
    assert torch.equal(ranks.triu(1), torch.zeros_like(ranks))  # each value sees those before it alone


def unrolled_inverse(transform, z, context):
    """D full passes that autograd sees through."""
    x = torch.zeros_like(z)
    for index in transform.order.tolist():
        params = transform.net(x, transform.order, context)
        value = transform.transform(z, params, inverse=True)[0][:, [index]]
        x = x.index_copy(1, torch.tensor([index]), value)
    return x, transform.transform(z, transform.net(x, transform.order, context), inverse=True)[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_gradients_equal_those_through_all_passes(kind, net, activation):
    transform = build(kind, activation=activation, **net)
    z, context = inputs(transform, 19)
    wanted = [z.requires_grad_(), *transform.parameters()]
    if context is not None:
        wanted.append(context.requires_grad_())
    weight = torch.randn(z.shape, dtype=torch.float64)
    found = []
    for x, log_det in (transform.inverse(z, context), unrolled_inverse(transform, z, context)):
        loss = (x * weight).sum() + (log_det * weight[:, 0]).sum()
        found.append(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)
    assert all(grad.abs().max() > 1e-3 for grad in found[1][:1])


def test_gradients_by_differences():
    transform = build("affine", num_inputs=3, hidden=(4,), activation="tanh", order=[2, 0, 1])
    z, _ = inputs(transform, 2)
    weight = transform.net.layers[0].weight
    assert torch.autograd.gradcheck(
        lambda z, w: torch.func.functional_call(Inverse(transform), {"transform.net.layers.0.weight": w}, z),
        (z.requires_grad_(), weight.detach().requires_grad_()),
    )


def test_a_second_derivative_through_the_inverse_is_an_error():
    transform = build("affine", num_inputs=3, hidden=(4,))
    z, _ = inputs(transform, 2)
    z.requires_grad_()
    (grad,) = torch.autograd.grad(transform.inverse(z)[0].sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="inverse: expected one derivative"):
        (grad.sum() + z.sum()).backward()


@pytest.mark.parametrize("scale_map", ["exp", "sigmoid", "tanh", "atan", "softclip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_against_plain_pytorch(scale_map, dtype):
    generator = torch.Generator().manual_seed(3)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) / 3

    steps, units, batch = 11, (23, 5), 41
    weights, direct = [random(23, 11), random(5, 23), random(22, 5)], random(22, 11)
    for rows in (1, batch):
        args = random(batch, steps), weights, direct, random(rows, sum(units) + 22)
        options = {"activation": "elu", "scale_map": scale_map, "clamp": 1.5}
        wide = [[t.double() for t in a] if isinstance(a, list) else a.double() for a in args]
        for ours, plain in zip(
            made_inverse(*args, **options), reference.made_inverse(*wide, **options), strict=True
        ):
            tolerance = 1e-11 if dtype == torch.float64 else 2e-4
            torch.testing.assert_close(ours.double(), plain, rtol=tolerance, atol=tolerance)

    grad, diagonal, partial = random(batch, steps), random(batch, steps).exp(), random(batch, steps, 3)
    args = grad, diagonal, partial, random(batch, 28), [random(5, 33), random(23, 5), random(11, 23)], None
    wide = [[t.double() for t in a] if isinstance(a, list) else a if a is None else a.double() for a in args]
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(
        made_solve(*args).double(), reference.made_solve(*wide), rtol=tolerance, atol=tolerance
    )


def test_results_do_not_depend_on_the_batch_or_on_threads():
    transform = build("affine", torch.float32, num_inputs=10, hidden=(33,))
    z, _ = inputs(transform, 70, torch.float32)
    with torch.no_grad():
        x, log_det = transform.inverse(z)
        for rows in (slice(0, 1), slice(3, 40), slice(60, 70)):
            part = transform.inverse(z[rows])
            assert torch.equal(part[0], x[rows]) and torch.equal(part[1], log_det[rows])
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            assert torch.equal(transform.inverse(z)[0], x)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_compute_in_float32(dtype):
    transform = build("affine", dtype, 1.0, num_inputs=6, hidden=(12,))
    z, _ = inputs(transform, 5, dtype)
    with torch.no_grad():
        x, log_det = transform.inverse(z)
        wide = copy.deepcopy(transform).float().inverse(z.float())
    assert x.dtype == dtype and log_det.dtype == torch.float32
    assert torch.equal(x, wide[0].to(dtype)) and torch.equal(log_det, wide[1])


@pytest.mark.parametrize("kind", KINDS)
def test_directions_undo_each_other_under_autocast(kind):
    transform = build(kind, torch.float32, num_inputs=16, hidden=(32, 32), num_context=3)
    z, context = inputs(transform, 9, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        x, log_det = transform.inverse(z, context)
        with torch.no_grad():
            plain = transform.inverse(z, context)
        again, back = transform(x, context)
    torch.testing.assert_close(again, z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back, -log_det, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((x, log_det), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_values_of_another_dtype_than_the_weights(dtype):
    transform = build("affine", torch.float32, num_inputs=6, hidden=(12,))
    x, _ = inputs(transform, 5, dtype)
    z, log_det = transform(x)
    expected = transform(x.float())
    assert z.dtype == dtype
    bound = max(torch.finfo(dtype).eps, 1e-6) * 4
    torch.testing.assert_close(z.float(), expected[0], rtol=bound, atol=bound)
    torch.testing.assert_close(log_det.float(), expected[1], rtol=1e-5, atol=1e-5)


def test_state_dict_brings_the_order():
    first = build("affine", num_inputs=5, hidden=(7,), order=[3, 1, 4, 0, 2])
    second = MaskedAffineAutoregressive(5, (7,)).double()
    second.load_state_dict(first.state_dict())
    x, _ = inputs(first, 6)
    for direction in ("forward", "inverse"):
        torch.testing.assert_close(getattr(second, direction)(x), getattr(first, direction)(x))


def test_shapes_empty_batches_and_strides():
    transform = build("affine", num_inputs=12, hidden=(12,))
    image = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    z, log_det = transform(image)
    assert z.shape == image.shape and log_det.shape == (4,)
    torch.testing.assert_close(transform.inverse(z)[0], image)
    wide = torch.randn(4, 24, dtype=torch.float64)
    torch.testing.assert_close(
        transform.inverse(wide[:, ::2])[0], transform.inverse(wide[:, ::2].contiguous())[0]
    )
    x, log_det = transform.inverse(torch.empty(0, 12, dtype=torch.float64))
    assert x.shape == (0, 12) and log_det.shape == (0,)


def test_kernel_is_in_use(monkeypatch):
    if "cpu" not in gmfast._library.devices:
        pytest.skip("no compiled library")
    monkeypatch.setattr(reference, "made_inverse", None)
    monkeypatch.setattr(reference, "made_solve", None)
    transform = build("affine", num_inputs=4, hidden=(5,))
    z, _ = inputs(transform, 3)
    transform.inverse(z.requires_grad_())[0].sum().backward()


def test_compiles():
    flow = Sequential(
        build("affine", torch.float32, num_inputs=6, hidden=(8,)),
        Permute.reverse(6),
        Inverse(build("affine", torch.float32, num_inputs=6, hidden=(8,))),
    )
    z = torch.randn(5, 6)
    with torch.no_grad():
        for function in (flow, flow.inverse):
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(z)
            torch.testing.assert_close(compiled, function(z))


def test_errors():
    with pytest.raises(ValueError, match="order: expected a permutation of 0 to 2"):
        MaskedAffineAutoregressive(3, order=[0, 1, 1])
    with pytest.raises(ValueError, match="activation: expected one of 'relu'"):
        MaskedAffineAutoregressive(3, activation="gelu")
    with pytest.raises(ValueError, match="scale_map: expected one of 'exp'"):
        MaskedAffineAutoregressive(3, scale_map="softplus")
    with pytest.raises(ValueError, match="hidden: expected positive integers"):
        MaskedAffineAutoregressive(3, (0,))
    with pytest.raises(ValueError, match="num_context: expected at least 1, got -1"):
        MaskedAffineAutoregressive(3, num_context=-1)
    with pytest.raises(ValueError, match=r"clamp: expected a number in .*, got 0"):
        MaskedAffineAutoregressive(3, scale_map="tanh", clamp=0)
    with pytest.raises(ValueError, match="num_bins: expected at least 1, got 0"):
        MaskedSplineAutoregressive(3, num_bins=0)
    with pytest.raises(ValueError, match=r"bound: expected a number in .*, got -1"):
        MaskedSplineAutoregressive(3, bound=-1)
    transform = MaskedAffineAutoregressive(3)
    with pytest.raises(TypeError, match="x: expected a tensor, got ndarray"):
        transform(torch.zeros(2, 3).numpy())
    with pytest.raises(ValueError, match=r"x: expected \(B, 3\), got \(2, 4\)"):
        transform(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"z: expected \(B, 3\), got \(3,\)"):
        transform.inverse(torch.zeros(3))
    with pytest.raises(ValueError, match="context: expected None"):
        transform(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"context: expected \(2, 2\), got None"):
        MaskedAffineAutoregressive(3, num_context=2).inverse(torch.zeros(2, 3))
    for shape in ((2, 5), (3, 2)):
        with pytest.raises(ValueError, match=r"context: expected \(2, 2\), got \("):
            MaskedAffineAutoregressive(3, num_context=2)(torch.zeros(2, 3), torch.zeros(shape))


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_starts_near_the_identity(kind):
    """Standard normal data under three fresh transforms: the entropy is 4.26, and it was up to 15.7."""
    for seed in range(3):
        torch.manual_seed(seed)
        flow = Flow((3,), [KINDS[kind](3, num_context=5, order=o) for o in ([0, 1, 2], [2, 1, 0], [0, 1, 2])])
        x, context = torch.randn(1000, 3), torch.randn(1000, 5)
        with torch.no_grad():
            assert -flow.log_prob(x, context).mean() < 4.7


@pytest.mark.parametrize("num_inputs", [1, 3])
def test_the_first_value_depends_on_the_context_beyond_a_linear_map(num_inputs):
    net = build("affine", num_inputs=num_inputs, hidden=(8, 8), num_context=2, activation="tanh").net
    x, context = torch.zeros(1, num_inputs).double(), torch.randn(1, 2).double()
    first = lambda c: net(x, torch.arange(num_inputs), c)[0, 0].sum()  # noqa: E731
    assert torch.autograd.functional.hessian(first, context).abs().max() > 1e-3


def test_state_dicts_from_before_hidden_units_of_the_context():
    options = NETS["context"]
    old, new = build("affine", **options), build("affine", **options)
    state = old.state_dict()
    del state["net.first_degree"]
    num_units = old._mask0.sum()
    new.load_state_dict(state)
    assert new.net.first_degree == 1 and new._mask0.sum() > num_units
    z, context = inputs(new, 9)
    with torch.no_grad():
        x, _ = new.inverse(z, context)
        torch.testing.assert_close(new(x, context)[0], z)
    again = MaskedAffineAutoregressive(**options).double()
    again.load_state_dict(new.state_dict())
    assert torch.equal(again(z, context)[0], new(z, context)[0])


@pytest.mark.peers
def test_against_zuko():
    """The same weights: zuko's hidden units, whose degrees go round, in the order of ours."""
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(0)
    theirs = zuko.flows.MAF(5, transforms=1, hidden_features=(8, 12)).double()
    ours = MaskedAffineAutoregressive(5, (8, 12)).double()
    linears = [layer for layer in theirs.transform.transforms[0].hyper if hasattr(layer, "mask")]
    orders, degree = [], torch.arange(1, 6)
    for layer in linears[:-1]:
        degree = (layer.mask * degree).max(1).values
        orders.append(degree.argsort(stable=True))
    with torch.no_grad():
        below = torch.arange(5)
        for mine, layer, above in zip(ours.net.layers, linears, [*orders, torch.arange(10)], strict=True):
            mine.weight.copy_(layer.weight[above][:, below])
            mine.bias.copy_(layer.bias[above])
            below = above
        x = torch.randn(7, 5, dtype=torch.float64)
        z, log_det = theirs().transform.call_and_ladj(x)
        torch.testing.assert_close(ours(x), (z, log_det))
        torch.testing.assert_close(ours.inverse(z)[0], theirs().transform.inv(z))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reversible", [False, True], ids=["stored", "reversible"])
def test_residual_blocks_and_dropout(kind, reversible):
    """Units drop out alike in both directions for the same random numbers; each is autoregressive."""
    options = {"num_inputs": 4, "hidden": (8, 8, 8), "num_context": 2, "order": [2, 0, 3, 1]}
    transform = build(kind, residual=True, dropout=0.5, direct=True, activation="elu", **options)
    x, context = inputs(transform, 3)
    stack = Sequential(transform, reversible=reversible)

    def run(call, at, context=context):
        torch.manual_seed(5)
        return call(at, context)

    z, log_det = run(stack, x)
    assert not torch.equal(z, run(stack.eval(), x)[0])
    stack.train()
    if reversible:
        leaves = [x.requires_grad_(), context.requires_grad_(), *stack.parameters()]
        results = []
        for stack.reversible in (True, False):
            for call, at in ((stack, x), (stack.inverse, z.detach())):
                y, log_det = run(call, at)
                grads = torch.autograd.grad(y.square().sum() + log_det.sum(), leaves, allow_unused=True)
                results.append([y, log_det, *(g for g in grads if g is not None)])
        for actual, expected in zip(results[:2], results[2:], strict=True):
            for a, e in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-8)
        return
    back, log_det_back = run(stack.inverse, z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)
    for i in range(3):
        own = context[i : i + 1]
        stack.eval()
        matrix = jacobian(lambda x, own=own: stack(x, own)[0][0], x[i : i + 1])[:, 0]
        ordered = matrix[transform.order][:, transform.order]
        assert torch.equal(ordered, ordered.tril())
        torch.testing.assert_close(matrix.slogdet().logabsdet, stack(x[i : i + 1], own)[1][0])
    z = z.detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: run(stack.inverse, z), (z,))


def test_residual_errors():
    with pytest.raises(ValueError, match=r"hidden: expected an odd number of equal sizes .*, got \(8, 8\)"):
        MaskedAffineAutoregressive(3, (8, 8), residual=True)
    with pytest.raises(ValueError, match=r"dropout: expected a number in \[0, 1\], got 2"):
        MaskedAffineAutoregressive(3, dropout=2)


@pytest.mark.peers
def test_residual_network_of_nflows():
    """The same weights: nflows' hidden units, whose degrees go round, in the order of ours."""
    made = pytest.importorskip("nflows.transforms.made")
    torch.manual_seed(0)
    theirs = made.MADE(4, 9, num_blocks=2, output_multiplier=2).double()
    ours = MaskedMLP(4, (9,) * 5, 2, direct=False, residual=True).double()
    layers = [theirs.initial_layer, *(layer for b in theirs.blocks for layer in b.linear_layers)]
    layers.append(theirs.final_layer)
    order = theirs.initial_layer.degrees.argsort(stable=True)
    with torch.no_grad():
        for i, (mine, layer) in enumerate(zip(ours.layers, layers, strict=True)):
            rows = order if i < 5 else torch.arange(8)
            columns = order if i else torch.arange(4)
            mine.weight.copy_(layer.weight[rows][:, columns])
            mine.bias.copy_(layer.bias[rows])
    x = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(x, torch.arange(4)).flatten(1), theirs(x))
