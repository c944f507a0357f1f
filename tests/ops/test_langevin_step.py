import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.contracts import DTYPES, LAYOUTS, assert_same, bounded, is_channels_last, layouts, threads
from torch._subclasses.fake_tensor import FakeTensorMode

import gmfast.functional as GF
from gmfast import reference

STEPS = [{"step_size": 0.03}, {"snr": 0.16, "alpha": 0.9}]


def inputs(shape, dtype=torch.float32, device="cpu"):
    """x, score and noise; the score's size differs from sample to sample."""
    generator = torch.Generator().manual_seed(0)
    x, score, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    scale = torch.arange(1, 1 + shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return [t.to(device, dtype) for t in (x, score * scale, noise)]


def textbook(x, score, noise, step_size=None, snr=None, alpha=1.0, temperature=1.0):
    """Song et al.'s corrector (LangevinCorrector of score_sde_pytorch), in float64."""
    x, score, noise = (t.double() for t in (x, score, noise))
    if snr is not None:
        grad_norm = torch.linalg.vector_norm(score.reshape(score.shape[0], -1), dim=-1).mean()
        noise_norm = torch.linalg.vector_norm(noise.reshape(noise.shape[0], -1), dim=-1).mean()
        step_size = (snr * noise_norm / grad_norm) ** 2 * 2 * alpha
    step_size = torch.as_tensor(step_size, dtype=torch.float64, device=x.device)
    step_size = step_size.reshape(-1, *[1] * (x.dim() - 1))
    mean = x + step_size * score
    return mean + torch.sqrt(2 * step_size * temperature) * noise, mean


def assert_near(actual, expected, dtype, factor=8):
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype and a.shape == e.shape
        bound = factor * torch.finfo(computed).eps + torch.finfo(dtype).eps
        error = (a.double() - e).abs()
        assert (error <= bound * (1 + e.abs())).all(), error.max()


SHAPES = [(4, 6, 32, 33), (3, 2, 70, 70), (5, 7), (4,), (1, 1), (2, 3, 1134), (70, 3)]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy(device, shape, dtype, step):
    x, score, noise = inputs(shape, dtype, device)
    for temperature in (1.0, 0.25):
        options = step | {"temperature": temperature}
        exact = textbook(x, score, noise, **options)
        ours = GF.langevin_step(x, score, noise=noise, return_mean=True, **options)
        assert (exact[0] - exact[1]).abs().max() > 0
        assert_near(ours, exact, dtype)
        assert torch.equal(GF.langevin_step(x, score, noise=noise, **options), ours[0])
    plain = reference.langevin_step(*(t.double() for t in (x, score)), noise=noise.double(), **options)
    torch.testing.assert_close(plain, exact[0])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_step_sizes_of_samples(device, dtype, kind):
    x, score, noise = inputs((4, 3, 65), dtype, device)
    steps = torch.stack([torch.linspace(0, 0.3, 4)] * 2, 1)[:, 0].to(device, kind)
    assert_near(
        GF.langevin_step(x, score, step_size=steps, noise=noise, return_mean=True),
        textbook(x, score, noise, step_size=steps),
        dtype,
    )
    scalar = GF.langevin_step(x, score, step_size=steps[2], noise=noise)
    assert torch.equal(scalar[2], GF.langevin_step(x, score, step_size=steps, noise=noise)[2])
    assert torch.equal(GF.langevin_step(x, score, step_size=steps, noise=noise)[0], x[0])


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_drawn_noise(device, shape, dtype, step):
    """That of the reference's stream; draw 0 is standard_normal's."""
    x, score, _ = inputs(shape, dtype, device)
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    noise = GF.standard_normal(shape, seed=5, dtype=computed, device=device)
    ours = GF.langevin_step(x, score, seed=5, return_mean=True, **step)
    assert_near(ours, textbook(x, score, noise, **step), dtype)
    plain = reference.langevin_step(
        x.double(), score.double(), seed=torch.tensor(5, device=device), draw=3, **step
    )
    if computed == torch.float64:
        assert_near([GF.langevin_step(x, score, seed=5, draw=3, **step)], [plain], dtype)
    assert not torch.equal(GF.langevin_step(x, score, seed=5, draw=3, **step), ours[0])


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(device, layout, dtype, step, drawn):
    tensors = inputs((3, 5, 9, 19), dtype, device)
    laid_out = [LAYOUTS[layout](t) for t in tensors]
    options = step | {"return_mean": True}

    def call(x, score, noise):
        noise = {"seed": 5} if drawn else {"noise": noise}
        return GF.langevin_step(x, score, **noise, **options)

    expected = call(*tensors)
    for mixed in (laid_out, *([*tensors[:i], t, *tensors[i + 1 :]] for i, t in enumerate(laid_out))):
        actual = call(*mixed)
        if "snr" in step:  # the norms' terms may be added in another order
            assert_near(actual, [e.double() for e in expected], dtype)
        else:
            assert_same(actual, expected)
    dense = is_channels_last if layout.startswith("channels_last") else torch.Tensor.is_contiguous
    assert all(map(dense, call(*laid_out)))
    with FakeTensorMode() as mode:
        fake = call(*(mode.from_tensor(t) for t in laid_out))
    assert [(t.shape, t.stride(), t.dtype) for t in fake] == [
        (t.shape, t.stride(), t.dtype) for t in call(*laid_out)
    ]


@bounded
@given(data=st.data())
def test_any_shape_layout_and_dtype(device, data):
    shape = data.draw(st.lists(st.integers(1, 18), max_size=3).map(tuple), label="shape")
    shape = (data.draw(st.integers(1, 3), label="batch"), *shape)
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in range(3)]
    step = data.draw(st.sampled_from(STEPS))
    tensors = [t.to(d) for t, d in zip(inputs(shape, device=device), dtypes, strict=True)]
    laid_out = [data.draw(layouts(t.dim()))(t) for t in tensors]
    ours = GF.langevin_step(*laid_out[:2], noise=laid_out[2], return_mean=True, **step)
    for a, e in zip(ours, textbook(*tensors, **step), strict=True):
        assert a.dtype == dtypes[0]
        bound = 8 * torch.finfo(torch.float32).eps + torch.finfo(dtypes[0]).eps
        assert ((a.double() - e).abs() <= bound * (1 + e.abs())).all()


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 65, 129), (300, 5), (1, 100_001)])
def test_same_bits_whatever_the_threads(device, shape, dtype, step, drawn):
    x, score, noise = inputs(shape, dtype, device)
    options = step | ({"seed": 5} if drawn else {"noise": noise})
    with threads(1):
        alone = GF.langevin_step(x, score, **options)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(GF.langevin_step(x, score, **options), alone)


def test_a_sample_is_the_same_in_any_batch(device):
    x, score, _ = inputs((7, 5, 33), device=device)
    whole = GF.langevin_step(x, score, step_size=0.1, seed=3, draw=2)
    assert torch.equal(GF.langevin_step(x[:3], score[:3], step_size=0.1, seed=3, draw=2), whole[:3])
    seeds = torch.tensor([3, -8, 2**62, 3, 1, 2, 5], device=device)
    for step in STEPS:
        own = GF.langevin_step(x, score, seed=seeds, draw=2, **step)
        plain = reference.langevin_step(x, score, seed=seeds, draw=2, **step)
        torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-5)
    own = GF.langevin_step(x, score, seed=seeds, step_size=0.1)
    for i in range(7):
        alone = GF.langevin_step(x[i : i + 1], score[i : i + 1], seed=seeds[i], step_size=0.1)
        assert torch.equal(own[i], alone[0])


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_norms_beyond_float32(device, scale):
    """Squares are taken and summed in float64."""
    x, score, noise = (t * scale for t in inputs((3, 200), device=device))
    exact = textbook(x, score, noise, snr=0.1)
    for a, e in zip(GF.langevin_step(x, score, noise=noise, snr=0.1, return_mean=True), exact, strict=True):
        assert ((a - e).abs() <= 4e-7 * e.abs().max()).all()


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("shape", [(0,), (0, 4, 5), (2, 0), (2, 3, 0)])
def test_empty(device, shape, step, drawn):
    x, score, noise = inputs(shape, device=device)
    options = step | ({"seed": 5} if drawn else {"noise": noise})
    moved, mean = GF.langevin_step(x, score, return_mean=True, **options)
    assert moved.shape == mean.shape == shape


@pytest.mark.parametrize("step", [*STEPS, {"step_size": "tensor"}], ids=str)
def test_derivatives(device, step):
    tensors = [t.requires_grad_() for t in inputs((2, 3), torch.float64, device)]
    if step == {"step_size": "tensor"}:
        tensors.append(torch.tensor([0.1, 0.2], dtype=torch.float64, device=device, requires_grad=True))

    def call(x, score, noise, step_size=None):
        options = step if step_size is None else {"step_size": step_size}
        return GF.langevin_step(x, score, noise=noise, return_mean=True, **options)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)
    assert torch.func.grad(lambda x: call(x, *tensors[1:])[0].sum())(tensors[0]).shape == (2, 3)
    tangent = torch.func.jvp(lambda x: call(x, *tensors[1:])[0], (tensors[0],), (tensors[0],))[1]
    assert torch.equal(tangent, tensors[0])
    with torch.no_grad():
        kernel = call(*tensors)
    for y, k in zip(call(*tensors), kernel, strict=True):
        assert y.requires_grad and not k.requires_grad
        torch.testing.assert_close(y, k)
    with torch.inference_mode():
        for y, k in zip(call(*(t.clone() for t in tensors)), kernel, strict=True):
            torch.testing.assert_close(y, k)


def test_vmap(device):
    x, score, noise = inputs((3, 2, 5), device=device)
    together = torch.vmap(lambda x, s, z: GF.langevin_step(x, s, snr=0.1, noise=z))(x, score, noise)
    for i in range(3):
        torch.testing.assert_close(together[i], GF.langevin_step(x[i], score[i], snr=0.1, noise=noise[i]))


def test_inputs_stay(device):
    tensors = inputs((3, 7), device=device)
    before = [t.clone() for t in tensors]
    GF.langevin_step(*tensors[:2], noise=tensors[2], snr=0.1)
    assert_same(tensors, before)


def test_samples_have_the_distribution(device):
    """From far off to N(1, 4): the score is (1 - x)/4, and 200 steps of 0.2 forget where they began."""
    x = torch.full((4000, 4), 5.0, device=device)
    for k in range(200):
        x = GF.langevin_step(x, (1 - x) / 4, step_size=0.2, seed=1, draw=k + 1)
    # The step's own variance: ε·2 / (1 - (1 - ε/4)²).
    variance = 0.4 / (1 - 0.95**2)
    assert abs(x.mean().item() - 1) < 4 * (variance / x.numel()) ** 0.5
    assert abs(x.var().item() / variance - 1) < 4 * (2 / x.numel()) ** 0.5


@pytest.mark.parametrize(("step", "backend"), [*zip(STEPS, ("inductor", "aot_eager"), strict=True)], ids=str)
def test_torch_opcheck_and_compile(device, step, backend):
    x, score, noise = inputs((2, 5, 9), device=device)
    seed, number = torch.tensor(3, device=device), step.get("snr", 0.1)
    adaptive = "snr" in step
    for source in ((noise, None), (None, seed)):
        arguments = (x, score, *source, None, number, adaptive, 1.0, 1.0, 2, True)
        torch.library.opcheck(torch.ops.gmfast.langevin_step.default, arguments)
    torch._dynamo.reset()

    def move(x, score, seed):
        return GF.langevin_step(x * 0.5, score * 0.5, seed=seed, **step) * 2

    compiled = torch.compile(move, fullgraph=True, dynamic=True, backend=backend)
    for shape in ((2, 5, 9), (3, 8, 17)):
        x, score, _ = inputs(shape, device=device)
        assert torch.equal(compiled(x, score, seed), move(x, score, seed))
        (leaf,) = [x.clone().requires_grad_()]
        grads = [torch.autograd.grad(f(leaf, score, seed).sum(), leaf)[0] for f in (compiled, move)]
        torch.testing.assert_close(*grads)


def test_torch_export(device):
    class Module(torch.nn.Module):
        def forward(self, x, score, seed):
            return GF.langevin_step(x, score, snr=0.1, seed=seed)

    x, score, _ = inputs((2, 5, 9), device=device)
    seed = torch.tensor(3, device=device)
    program = torch.export.export(Module(), (x, score, seed))
    assert any("gmfast" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x, score, seed), Module()(x, score, seed))


ONES = torch.ones(2, 2)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        (("x", ONES), {"snr": 0.1}, TypeError, "x: expected a torch.Tensor, got str"),
        ((ONES, None), {"snr": 0.1}, TypeError, "score: expected a torch.Tensor, got NoneType"),
        ((ONES, torch.ones(2)), {"snr": 0.1}, ValueError, r"score: expected shape \(2, 2\), got \(2,\)"),
        ((torch.ones(()), torch.ones(())), {"snr": 0.1}, ValueError, r"x: expected shape \(B, \*S\)"),
        ((ONES, ONES), {}, ValueError, "step_size: expected either this or snr"),
        ((ONES, ONES), {"snr": 0.1, "step_size": 0.1}, ValueError, "step_size: expected either this or snr"),
        ((ONES, ONES), {"step_size": -0.1}, ValueError, "step_size: expected a finite number of at least 0"),
        ((ONES, ONES), {"step_size": math.inf}, ValueError, "step_size: expected a finite number"),
        (
            (ONES, ONES),
            {"step_size": torch.tensor(-0.1)},
            ValueError,
            "step_size: expected values in",
        ),
        ((ONES, ONES), {"snr": -0.1}, ValueError, "snr: expected a finite number"),
        ((ONES, ONES), {"snr": ONES}, TypeError, "snr: expected a number, got Tensor"),
        ((ONES, ONES), {"step_size": torch.ones(3)}, ValueError, r"step_size: expected shape \(\) or \(2,\)"),
        ((ONES, ONES), {"step_size": torch.ones(2).int()}, TypeError, "step_size: expected float32"),
        ((ONES, ONES), {"snr": 0.1, "alpha": -1.0}, ValueError, "alpha: expected a finite number"),
        (
            (ONES, ONES),
            {"snr": 0.1, "temperature": math.nan},
            ValueError,
            "temperature: expected a finite",
        ),
        ((ONES, ONES), {"snr": 0.1, "noise": torch.ones(2)}, ValueError, r"noise: expected shape \(2, 2\)"),
        ((ONES, ONES), {"snr": 0.1, "draw": -1}, ValueError, r"draw: expected 0 to 2\*\*32 - 1, got -1"),
        ((ONES, ONES), {"snr": 0.1, "draw": 1.0}, TypeError, "draw: expected an int, got float"),
        ((ONES, ONES), {"snr": 0.1, "seed": "1"}, TypeError, "seed: expected an int"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        GF.langevin_step(*arguments, **options)
