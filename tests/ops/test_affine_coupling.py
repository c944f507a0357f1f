import itertools

import pytest
import torch
from ops.contracts import FlowContracts, incoming, results

import gmfast.functional as GF
from gmfast import reference
from gmfast.reference.affine_coupling import SCALE_MAPS

MAPS = ("exp", "sigmoid", "tanh", "atan", "softclip")
BOUNDED = ("tanh", "atan", "softclip")


def inputs(shape, dtype, device, kept=2, transformed=3):
    """x, shift, raw scale: float32 numbers as `dtype`."""
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    batch, *spatial = shape
    tensors = [
        torch.randn(batch, channels, *spatial, generator=generator)
        for channels in (kept + transformed, transformed, transformed)
    ]
    return [t.to(device, dtype) for t in tensors]


def operators(options, tensors):
    """Both operators with arguments, for opcheck."""
    x, shift, scale = tensors
    code = [1 + MAPS.index(options.get("scale_map", "exp")), 0, options.get("shift_first", False)]
    code += [2.0, options["inverse"], False]
    y, log_det = GF.affine_coupling(*(t.detach() for t in tensors), **options)
    grads = incoming(y), incoming(log_det)
    ops = torch.ops.gmfast
    yield ops.affine_coupling.default, (x, shift, scale, None, *code)
    want = (True, True, True)
    yield ops.affine_coupling_backward.default, (*grads, x, shift, scale, None, *code, *want)


class Coupling(FlowContracts):
    conditioned = (1, 2)
    scale_map = "tanh"
    shift_first = False

    @property
    def options(self):
        return {"scale_map": self.scale_map, "shift_first": self.shift_first}

    def forward(self, *tensors, inverse=False):
        return GF.affine_coupling(*tensors, inverse=inverse, **self.options)

    def plain_forward(self, *tensors, inverse=False):
        return reference.affine_coupling(*tensors, inverse=inverse, **self.options)

    def inputs(self, shape, dtype, device):
        return inputs(shape, dtype, device)

    def operators(self, *tensors):
        return operators({"inverse": self.inverse, **self.options}, tensors)


class TestTanh(Coupling):
    pass


class TestInverseOfTanh(Coupling):
    inverse = True


class TestSigmoidShiftFirst(Coupling):
    scale_map = "sigmoid"
    shift_first = True


every_variant = pytest.mark.parametrize(
    ("scale_map", "shift_first", "inverse"),
    list(itertools.product((*MAPS, None), (False, True), (False, True))),
)


def call(module, x, shift, scale, scale_map, **options):
    if scale_map is None:
        return module.affine_coupling(x, shift, None, **options)
    return module.affine_coupling(x, shift, scale, scale_map=scale_map, **options)


def variant(device, scale_map, shift_first, inverse, recompute, masked):
    """The operation, the reference, and the channels that are not transformed."""
    options = {"shift_first": shift_first, "inverse": inverse, "scale_map": scale_map}
    options["mask"] = torch.tensor([[1.0, 0], [0, 1]], device=device)[None] if masked else None

    def ours(x, shift, scale=None):
        return call(GF, x, shift, scale, recompute=recompute, **options)

    def plain(x, shift, scale=None):
        return call(reference, x, shift, scale, **options)

    return ours, plain, 0 if masked else 2


@every_variant
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_every_variant(device, scale_map, shift_first, inverse, recompute, masked):
    """Values and gradients against plain PyTorch, in float64."""
    ours, plain, kept = variant(device, scale_map, shift_first, inverse, recompute, masked)
    for shape in ((2, 2, 2), (0, 2, 2)):
        tensors = inputs(shape, torch.float64, device, kept)[: 2 if scale_map is None else 3]
        y, log_det = ours(*tensors)
        exact, exact_log_det = plain(*tensors)
        torch.testing.assert_close(y, exact, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(log_det, exact_log_det, rtol=1e-13, atol=1e-13)
        leaves = [t.requires_grad_() for t in tensors]
        by_ours, by_plain = (
            torch.autograd.grad(ys, leaves, list(map(incoming, ys)))
            for ys in ([y for y in f(*leaves) if y.requires_grad] for f in (ours, plain))
        )
        for actual, expected in zip(by_ours, by_plain, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@every_variant
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_of_every_variant(device, scale_map, shift_first, inverse, recompute, masked):
    """Gradients and second derivatives against finite differences."""
    ours, _, kept = variant(device, scale_map, shift_first, inverse, recompute, masked)
    leaves = [t[:, :3].detach().requires_grad_() for t in inputs((1, 2, 2), torch.float64, device, kept)]
    leaves = leaves[: 2 if scale_map is None else 3]
    x = leaves[0].detach().requires_grad_()
    if not masked:
        leaves = [x, *(t[:, :2].detach().requires_grad_() for t in leaves[1:])]
    for outputs in (ours, lambda *t: ours(*t)[0]) + ((lambda *t: ours(*t)[1],) if scale_map else ()):
        assert torch.autograd.gradcheck(outputs, leaves)
    assert torch.autograd.gradgradcheck(ours, leaves)


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_round_trip_at_parameters_up_to_10(device, scale_map, shift_first, inverse, dtype):
    """Within a few ulp of the largest of x, t and y, times s where the inverse multiplies by it again."""
    x, shift, scale = inputs((8, 9, 9), dtype, device)
    shift, scale = 10 * shift, 10 * scale / scale.abs().max()
    options = {"shift_first": shift_first, "scale_map": scale_map}
    y, log_det = call(GF, x, shift, scale, inverse=inverse, **options)
    back, log_det_back = call(GF, y, shift, scale, inverse=not inverse, **options)
    log_s = 0 * scale if scale_map is None else reference_log_s(scale, scale_map)
    log_s = -log_s if inverse else log_s
    s = log_s.exp()
    size = x.abs()[:, 2:] + shift.abs() + shift.abs() / s + y.abs()[:, 2:] / s
    bound = 8 * torch.finfo(dtype).eps * (1 + log_s.abs()) * size
    assert torch.equal(back[:, :2], x[:, :2])
    assert ((back - x)[:, 2:].abs() <= bound).all()
    assert torch.equal(log_det, -log_det_back)


def reference_log_s(scale, scale_map):
    return SCALE_MAPS[scale_map](scale, 2.0)


@pytest.mark.parametrize("scale_map", MAPS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_edges_of_the_domain(device, scale_map, inverse, dtype):
    """Finite results and gradients for every raw scale of the documented domain."""
    single = dtype == torch.float32
    largest = torch.finfo(dtype).max
    exponent = 87.0 if single else 708.0
    low, high = (-largest, largest)
    if scale_map == "exp":
        low, high = -exponent, exponent
    elif scale_map == "sigmoid" and inverse:
        low = -exponent - 2 if single else -exponent - 1
    scale = torch.tensor([low, -20.0, -2.0, 0.0, 20.0, high], dtype=dtype, device=device)[None]
    x = torch.full_like(scale, 0.5)
    leaves = [t.requires_grad_() for t in (x, 0 * x, scale)]
    y, log_det = GF.affine_coupling(*leaves, scale_map=scale_map, inverse=inverse)
    grads = torch.autograd.grad(y.sum() + log_det.sum(), leaves)
    assert all(t.isfinite().all() for t in (y, *grads))
    if scale_map in BOUNDED:
        assert log_det.isfinite().all()


@pytest.mark.parametrize("packed", ["chunk", "interleaved"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "table"])
def test_packed_is_the_views(device, packed, layout):
    shape = (5, 40) if layout == "table" else (3, 7, 9, 11)
    x = torch.randn(5, 33, device=device) if layout == "table" else torch.randn(3, 5, 9, 11, device=device)
    params = torch.randn(shape[0], 6 if layout != "table" else 40, *shape[2:], device=device)
    if layout == "channels_last":
        x, params = (t.to(memory_format=torch.channels_last) for t in (x, params))
    x, params = x.requires_grad_(), params.requires_grad_()

    def views(x, params):
        both = params.chunk(2, 1) if packed == "chunk" else (params[:, ::2], params[:, 1::2])
        return GF.affine_coupling(x, *both, scale_map="tanh")

    def whole(x, params):
        return GF.affine_coupling(x, params, None, scale_map="tanh", packed=packed)

    expected = results(views, [x, params])
    for got, truth in zip(results(whole, [x, params]), expected, strict=True):
        assert torch.equal(got, truth)


@pytest.mark.parametrize("packed", ["chunk", "interleaved"])
@pytest.mark.parametrize("batch", [1, 513])  # 512 of one element are computed at once
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_packed_pairs_of_one_number_each(device, packed, batch, dtype):
    generator = torch.Generator().manual_seed(batch)
    x, params = (
        torch.randn(batch, 2, generator=generator).to(device, dtype).requires_grad_() for _ in range(2)
    )
    expected = results(lambda x, p: GF.affine_coupling(x, p[:, :1], p[:, 1:]), [x, params])
    got = results(lambda x, p: GF.affine_coupling(x, p, None, packed=packed), [x, params])
    for ours, truth in zip(got, expected, strict=True):
        assert torch.equal(ours, truth)


def test_recompute_halves_what_a_stack_saves(device):
    """A stack with a layer between that saves its input: half the bytes, the same gradients to rounding."""
    x = torch.randn(4, 6, 8, 8, device=device, requires_grad=True)
    params = [torch.randn(4, 6, 8, 8, device=device, requires_grad=True) for _ in range(4)]
    gain = torch.full((1, 6, 1, 1), 0.9, device=device, requires_grad=True)
    own = {t.untyped_storage().data_ptr() for t in (*params, gain)}
    options = {"packed": "chunk", "scale_map": "tanh"}
    outcome = {}
    for recompute in (False, True):
        saved = {}

        def pack(t, saved=saved):
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        y, total = x, 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            for p in params:
                y, log_det = GF.affine_coupling(y, p, None, recompute=recompute, **options)
                total = total + log_det
                y = y * gain
        size = sum(n for key, n in saved.items() if key not in own)
        outcome[recompute] = size, torch.autograd.grad(y.square().sum() - total.sum(), [x, *params])
    assert outcome[False][0] == 2 * outcome[True][0] == 8 * x.nbytes
    for ours, truth in zip(outcome[True][1], outcome[False][1], strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)


def test_additive_saves_nothing(device):
    x, shift, _ = (t.requires_grad_() for t in inputs((2, 5), torch.float32, device))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _, log_det = GF.affine_coupling(x, shift, None)
    assert not saved and not log_det.any()


def test_masks(device):
    """Any shape that broadcasts, any dtype; where it is set the very bits of x, whatever the parameters."""
    x, shift, scale = inputs((2, 4, 6), torch.float32, device, kept=0)
    checkerboard = torch.arange(24, device=device).view(4, 6).add(torch.arange(4, device=device)[:, None]) % 2
    whole = checkerboard.expand(3, 4, 6).bool()
    expected = GF.affine_coupling(x, shift, scale, mask=whole)
    tiny = whole.double() * 1e-300  # 0 in float32
    for mask in (checkerboard, checkerboard[None], whole[None], whole.double(), whole.bfloat16(), tiny):
        for y, truth in zip(GF.affine_coupling(x, shift, scale, mask=mask), expected, strict=True):
            assert torch.equal(y, truth)
    poisoned = torch.where(whole, torch.nan, scale)
    for y, truth in zip(GF.affine_coupling(x, shift, poisoned, mask=whole), expected, strict=True):
        assert torch.equal(y, truth)
    assert torch.equal(expected[0][:, whole], x[:, whole])


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float64")])
def test_mixed_dtypes(device, dtypes):
    of_x, of_params = (getattr(torch, name) for name in dtypes)
    x, shift, scale = (t.requires_grad_() for t in inputs((2, 9), torch.bfloat16, device))
    x = x.detach().to(of_x).requires_grad_()
    shift, scale = (t.detach().to(of_params).requires_grad_() for t in (shift, scale))
    y, log_det = GF.affine_coupling(x, shift, scale)
    exact, exact_log_det = reference.affine_coupling(x.double(), shift.double(), scale.double())
    assert y.dtype == of_x and log_det.dtype == torch.promote_types(of_params, torch.float32)
    torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(of_x).eps, atol=1e-6)
    torch.testing.assert_close(log_det.double(), exact_log_det, rtol=1e-6, atol=1e-6)
    grads = torch.autograd.grad(y.sum() + log_det.sum(), [x, shift, scale])
    assert [g.dtype for g in grads] == [of_x, of_params, of_params]


def test_errors(device):
    x, shift, scale = inputs((2, 4), torch.float32, device)

    def refused(error, message, *tensors, **options):
        with pytest.raises(error, match=message):
            GF.affine_coupling(*tensors, **options)

    refused(TypeError, "x: expected float32", x.int(), shift, scale)
    refused(ValueError, r"x: expected shape \(B, C, \*S\)", x[0, 0], shift, scale)
    refused(ValueError, "shift: expected the batch and spatial sizes of x", x, shift[:1], scale)
    refused(ValueError, "shift: expected at most the 2 channels of x, got 3", x[:, :2], shift, scale)
    refused(ValueError, r"scale: expected shape \(2, 3, 4\), got \(2, 2, 4\)", x, shift, scale[:, :2])
    refused(ValueError, "scale_map: expected one of 'exp'", x, shift, scale, scale_map="softplus")
    refused(ValueError, r"clamp: expected a number in \[0.001, 80\], got 0", x, shift, scale, clamp=0)
    refused(ValueError, "mask: expected None unless shift has all 5 channels", x, shift, scale, mask=x[0])
    mask = torch.ones(2, 4, device=device)
    refused(ValueError, "mask: expected a shape that broadcasts", shift, shift, scale, mask=mask)
    refused(ValueError, "packed: expected one of None", x, shift, None, packed="halves")
    refused(ValueError, "shift: expected 2\\*C2 channels", x, shift, None, packed="chunk")
    refused(ValueError, "scale: expected None", x, shift, scale, packed="chunk")
