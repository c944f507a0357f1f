import math

import pytest
import torch
from ops.contracts import DTYPES, HALVES, LAYOUTS, Contracts, assert_accurate, assert_same, results, threads

import gmfast.functional as GF
from gmfast import _philox, reference

ALPHA, SIGMA = 0.8, 0.6


def clean_and_noise(shape, dtype, device):
    generator = torch.Generator().manual_seed(0)
    batch, *spatial = shape
    return [torch.randn(batch, 6, *spatial, generator=generator).to(device, dtype) for _ in range(2)]


class TestVelocity(Contracts):
    target = "v"
    conditioned = (0, 1)
    headroom = 0.5

    def call(self, x, noise):
        return GF.q_sample(x, ALPHA, SIGMA, noise=noise, target=self.target)

    def plain(self, x, noise):
        return reference.q_sample(x, ALPHA, SIGMA, noise=noise, target=self.target)

    def inputs(self, shape, dtype, device):
        return clean_and_noise(shape, dtype, device)

    def operators(self, x, noise):
        code = {None: 0, "v": 2, "flow": 3}[self.target]
        seed = torch.tensor(3, device=x.device)
        alphas = torch.rand(x.shape[0], device=x.device)
        grads = [torch.randn_like(x) for _ in range(2)]
        forward = torch.ops.gmfast.q_sample.default
        return [
            (forward, (x, noise, None, None, None, ALPHA, SIGMA, code)),
            (forward, (x, None, alphas, None, seed, 0.0, SIGMA, code)),
            (
                torch.ops.gmfast.q_sample_backward.default,
                (*grads, x, noise, alphas, None, None, 0.0, SIGMA, code, 0, True, True),
            ),
        ]


class TestFlow(TestVelocity):
    target = "flow"


class TestNoised(TestVelocity):
    target = None


# Tensors of coefficients -------------------------------------------------------------------------------


def test_coefficients_that_broadcast(device):
    """As schedules often return them: with a dimension of 1 for each of the data's."""
    x, noise = clean_and_noise((3, 4, 5), torch.float32, device)
    alpha = torch.linspace(0.1, 0.9, 3, device=device).requires_grad_()
    sigma = (1 - alpha.detach().square()).sqrt()
    wide = alpha.detach().view(3, 1, 1, 1).requires_grad_()
    one, other = (
        GF.q_sample(x, a, s, noise=noise, target="v")
        for a, s in ((alpha, sigma), (wide, sigma.view(3, 1, 1, 1)))
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    (expected,) = torch.autograd.grad(one[0].square().sum(), alpha)
    (by_wide,) = torch.autograd.grad(other[0].square().sum(), wide)
    assert by_wide.shape == wide.shape and torch.equal(by_wide.flatten(), expected)


@pytest.mark.parametrize("target", ["v", "flow"])
@pytest.mark.parametrize("coefficients", [torch.float32, torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy_of_coefficients(device, dtype, coefficients, target):
    x, noise = clean_and_noise((5, 9, 33), dtype, device)
    alpha = torch.linspace(0.1, 0.9, 5, device=device, dtype=coefficients)
    # Strided, as one column of a table.
    sigma = torch.stack([(1 - alpha.double().square()).sqrt().to(coefficients), alpha], 1)[:, 0]

    def call(function, x, noise):
        return function(x, alpha.to(x.dtype), sigma.to(x.dtype), noise=noise, target=target)

    computed = torch.float64 if dtype == torch.float64 else torch.float32
    for y, exact in zip(
        GF.q_sample(x, alpha, sigma, noise=noise, target=target),
        reference.q_sample(x.double(), alpha, sigma, noise=noise.double(), target=target),
        strict=True,
    ):
        bound = 4 * torch.finfo(computed).eps + torch.finfo(dtype).eps
        assert ((y.double() - exact).abs() <= bound * (exact.abs() + 1)).all()
    if coefficients == dtype:
        assert_accurate(lambda *t: call(GF.q_sample, *t), lambda *t: call(reference.q_sample, *t), [x, noise])


def test_numbers_scalars_and_vectors_agree(device):
    x, noise = clean_and_noise((4, 5, 3), torch.float32, device)
    expected = GF.q_sample(x, 0.75, 0.5, noise=noise, target="v")
    scalar = torch.tensor(0.75, device=device)
    vector = torch.full((4,), 0.5, device=device, dtype=torch.float16)
    assert_same(GF.q_sample(x, scalar, vector, noise=noise, target="v"), expected)
    assert_same(GF.q_sample(x, 0.75, vector, noise=noise, target="v"), expected)
    each = [GF.q_sample(x[i : i + 1], 0.75, vector[i : i + 1], noise=noise[i : i + 1]) for i in range(4)]
    assert torch.equal(torch.cat(each), expected[0])


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("target", [None, "epsilon", "x0", "v", "flow"])
def test_derivatives_by_all(device, target, drawn):
    """Learned schedules (variational diffusion) need those by the coefficients."""
    x, noise = (t.requires_grad_() for t in clean_and_noise((3, 4), torch.float64, device))
    alpha, sigma = (torch.rand(3, device=device, dtype=torch.float64).requires_grad_() for _ in range(2))
    leaves = [x, alpha, sigma] + ([] if drawn else [noise])
    seed = torch.tensor(5, device=device)

    def call(x, alpha, sigma, noise=None, function=GF.q_sample):
        return function(x, alpha, sigma, noise=noise, seed=seed, target=target)

    ours = results(call, leaves) if target not in ("epsilon", "x0") else None
    if ours:
        plain = results(lambda *t: call(*t, function=reference.q_sample), leaves)
        for a, e in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)

    def noised(*leaves):
        y = call(*leaves)
        return y if target is None else tuple(t for t in y if t.requires_grad)

    assert torch.autograd.gradcheck(noised, leaves)
    assert torch.autograd.gradgradcheck(noised, leaves)
    scalars = [x, alpha[0].detach().requires_grad_(), sigma[0].detach().requires_grad_()]
    assert torch.autograd.gradcheck(noised, scalars)


def test_torch_func_by_coefficients(device):
    x, noise = clean_and_noise((3, 4), torch.float64, device)
    alpha = torch.rand(3, device=device, dtype=torch.float64)

    def loss(function, alpha):
        return sum(y.square().sum() for y in function(x, alpha, 0.5, noise=noise, target="v"))

    gradient = torch.func.grad(lambda a: loss(GF.q_sample, a))(alpha)
    expected = torch.func.grad(lambda a: loss(reference.q_sample, a))(alpha)
    torch.testing.assert_close(gradient, expected)
    several = torch.stack([alpha, alpha / 2])
    together = torch.vmap(lambda a: GF.q_sample(x, a, 0.5, noise=noise))(several)
    torch.testing.assert_close(together[1], GF.q_sample(x, several[1], 0.5, noise=noise))


# Drawn noise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, "epsilon", "x0", "v", "flow"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 3, 8, 9), (2, 1, 70, 70), (5, 7), (4,), (0, 3), (2, 0)])
def test_drawn_noise_is_the_reference(device, dtype, shape, target):
    x = torch.randn(shape).to(device, dtype)
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    alpha = torch.rand(shape[0]).to(device)
    ours = GF.q_sample(x, alpha, 0.5, seed=5, target=target)
    flat = x if x.dim() > 1 else x[:, None]
    plain = reference.q_sample(
        flat.to(computed), alpha, 0.5, seed=torch.tensor(5, device=device), target=target
    )
    for y, e in zip(*[t if isinstance(t, tuple) else (t,) for t in (ours, plain)], strict=True):
        tolerance = max(torch.finfo(dtype).eps, 4e-6 if computed == torch.float32 else 1e-13)
        assert y.dtype == dtype
        torch.testing.assert_close(y, e.view(shape).to(dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_drawn_noise_is_standard_normal(device, dtype):
    """x_t and the target are of the very numbers that standard_normal gives."""
    x = torch.zeros(3, 5, 31, device=device, dtype=dtype)
    noised, target = GF.q_sample(x, 0.5, 1.0, seed=5, target="epsilon")
    expected = GF.standard_normal(x.shape, seed=5, dtype=dtype, device=device)
    assert torch.equal(noised, expected) and torch.equal(target, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 9, 19), (3, 70, 9, 11)], ids=str)
def test_drawn_noise_does_not_depend_on_layout_batch_or_threads(device, layout, dtype, shape):
    x = torch.randn(shape).to(device, dtype)
    alpha = torch.rand(3, device=device)
    expected = GF.q_sample(x, alpha, 0.5, seed=5, target="v")
    laid_out = LAYOUTS[layout](x)
    for count in (1, 2, 3):
        with threads(count):
            assert_same(GF.q_sample(laid_out, alpha, 0.5, seed=5, target="v"), expected)
            part = GF.q_sample(laid_out[:2], alpha[:2], 0.5, seed=5, target="v")
            assert_same(part, [e[:2] for e in expected])
    for tensor in GF.q_sample(laid_out, alpha, 0.5, seed=5, target="flow"):
        inner = layout.startswith("channels_last")
        assert tensor.is_contiguous(memory_format=torch.channels_last if inner else torch.contiguous_format)


def test_a_seed_for_each_sample(device):
    x = torch.randn(4, 3, 50, device=device)
    seeds = torch.tensor([7, -1, 2**62, 7], device=device)
    y = GF.q_sample(x, 0.5, 0.5, seed=seeds)
    for i in range(4):
        assert torch.equal(y[i], GF.q_sample(x[i : i + 1], 0.5, 0.5, seed=seeds[i])[0])
    same = GF.q_sample(torch.zeros_like(x), 0.0, 1.0, seed=seeds[:1].expand(4))
    assert torch.equal(same[0], same[3]) and same[0].std() > 0.5
    plain = reference.q_sample(x, 0.5, 0.5, seed=seeds)
    torch.testing.assert_close(y, plain, rtol=1e-5, atol=1e-5)


def test_seeds_advance(device):
    x = torch.zeros(2, 9, device=device)
    torch.manual_seed(0)
    first, second = (GF.q_sample(x, 1.0, 1.0) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(GF.q_sample(x, 1.0, 1.0), first)
    assert not torch.equal(GF.q_sample(x, 1.0, 1.0, seed=1), GF.q_sample(x, 1.0, 1.0, seed=2))


def test_targets_that_are_inputs(device):
    """No pass is spent on them."""
    x, noise = clean_and_noise((2, 5), torch.float32, device)
    assert GF.q_sample(x, 0.5, 0.5, seed=1, target="x0")[1] is x
    target = GF.q_sample(x, 0.5, 0.5, noise=noise, target="epsilon")[1]
    assert target.data_ptr() == noise.data_ptr()
    assert GF.q_sample(x.bfloat16(), 0.5, 0.5, noise=noise, target="epsilon")[1].dtype == torch.bfloat16


def test_mixed_dtypes(device):
    x, noise = clean_and_noise((2, 5), torch.float32, device)
    double = GF.q_sample(x, 0.5, 0.3, noise=noise.double(), target="v")
    expected = GF.q_sample(x.double(), 0.5, 0.3, noise=noise.double(), target="v")
    assert_same(double, [e.float() for e in expected])
    half = GF.q_sample(x, 0.5, 0.3, noise=noise.bfloat16(), target="v")
    assert_same(half, GF.q_sample(x, 0.5, 0.3, noise=noise.bfloat16().float(), target="v"))


@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_torch_compile_with_drawn_noise(device, backend):
    torch._dynamo.reset()

    def step(x, alpha, seed):
        noised, target = GF.q_sample(x * 2, alpha, 0.5, seed=seed, target="v")
        return ((noised - target) ** 2).mean()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for shape in ((2, 5, 9), (3, 8, 17)):
        tensors = [torch.randn(shape, device=device), torch.rand(shape[0], device=device)]
        tensors = [t.requires_grad_() for t in tensors]
        seed = torch.tensor(3, device=device)
        ours = torch.autograd.grad(compiled(*tensors, seed), tensors)
        for a, e in zip(ours, torch.autograd.grad(step(*tensors, seed), tensors), strict=True):
            torch.testing.assert_close(a, e)


def test_without_a_kernel():
    """A device that has none; numbers cannot be compared there, shapes can."""
    x = torch.randn(2, 3, 5, device="meta")
    noised, target = GF.q_sample(x, 0.5, 0.5, noise=torch.empty_like(x), target="flow")
    assert noised.shape == target.shape == x.shape and target.device.type == "meta"


def test_noise_of_words():
    """(B,) seeds in the plain generator are one call for each."""
    seeds = torch.tensor([3, -9])
    drawn = _philox.array_normal(seeds, (2, 70), torch.float32, "cpu", draw=4)
    for i in range(2):
        alone = _philox.array_normal(seeds[i], (1, 70), torch.float32, "cpu", draw=4)
        assert torch.equal(drawn[i], alone[0])


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        (("x", 1.0, 1.0), {}, TypeError, "x: expected a torch.Tensor, got str"),
        ((torch.ones(2, dtype=torch.int64), 1.0, 1.0), {}, TypeError, "x: expected float32, .* got int64"),
        ((torch.ones(()), 1.0, 1.0), {}, ValueError, r"x: expected shape \(B, \*S\), got a scalar"),
        ((torch.ones(2, 2), "1", 1.0), {}, TypeError, "alpha: expected a number, got str"),
        ((torch.ones(2, 2), 1.0, math.nan), {}, ValueError, "sigma: expected a number in"),
        (
            (torch.ones(2, 2), torch.ones(3), 1.0),
            {},
            ValueError,
            r"alpha: expected shape \(2,\) or \(2, 1\), got \(3,\)",
        ),
        ((torch.ones(2, 2), 1.0, torch.ones(1, 2)), {}, ValueError, r"sigma: expected shape \(2,\) or"),
        ((torch.ones(2, 2), 1.0, torch.ones(2).int()), {}, TypeError, "sigma: expected float32"),
        (
            (torch.ones(2, 2), 1.0, 1.0),
            {"noise": torch.ones(2)},
            ValueError,
            r"noise: expected shape \(2, 2\)",
        ),
        ((torch.ones(2, 2), 1.0, 1.0), {"noise": 1.0}, TypeError, "noise: expected a torch.Tensor"),
        ((torch.ones(2, 2), 1.0, 1.0), {"target": "score"}, ValueError, "target: expected one of None, 'eps"),
        ((torch.ones(2, 2), 1.0, 1.0), {"seed": 1.5}, TypeError, "seed: expected an int"),
        ((torch.ones(2, 2), 1.0, 1.0), {"seed": torch.ones(2)}, TypeError, "seed: expected an int64 tensor"),
        (
            (torch.ones(2, 2), 1.0, 1.0),
            {"seed": torch.ones(3).long()},
            ValueError,
            r"seed: expected shape \(\)",
        ),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        GF.q_sample(*arguments, **options)
