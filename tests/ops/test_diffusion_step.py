import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.contracts import DTYPES, HALVES, LAYOUTS, bounded, layouts, threads

import gmfast.functional as GF
from gmfast import _philox, reference
from gmfast._table import COLUMNS

STEPS = 4
f32, f64 = torch.float32, torch.float64


def column(name):
    return COLUMNS.index(name)


def table(generator, device="cpu", **columns):
    """Numbers of no particular sampler; `columns` are set to one."""
    values = torch.randn(STEPS, len(COLUMNS), dtype=f64, generator=generator) / 2
    for name, value in columns.items():
        values[:, column(name)] = value
    return values.to(device)


def normal(generator, shape, dtype=f32, device="cpu"):
    return torch.randn(shape, dtype=f64, generator=generator).to(device, dtype)


def as_list(result):
    return list(result) if isinstance(result, tuple) else [result]


def in_double(value):
    if isinstance(value, (list, tuple)):
        return [in_double(v) for v in value]
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def noise_of(x, options):
    """The noise that a call draws, by another operation: in the dtype computed in."""
    batch = x.shape[0]
    step, seed = (
        torch.as_tensor(options[name], device=x.device).expand(batch).tolist() for name in ("step", "seed")
    )
    own = isinstance(options["seed"], torch.Tensor) and options["seed"].dim() > 0
    compute = f64 if x.dtype == f64 else f32
    drawn = []
    for i in range(batch):
        shape = ((1 if own else i + 1), *x.shape[1:])
        drawn.append(
            _philox.array_normal(
                torch.tensor(seed[i], device=x.device),
                shape,
                compute,
                x.device,
                draw=min(step[i], STEPS - 1) + 1,
            )[-1]
        )
    return torch.stack(drawn)


def assert_step(x, m, coefficients, **options):
    """Against the formula in float64, the noise given; returns the results."""
    actual = as_list(GF.diffusion_step(x, m, coefficients, **options))
    plain = dict(options)
    if plain.get("seed") is not None and plain.get("noise") is None and x.shape[0]:
        plain["noise"] = noise_of(x, {"step": 0, **plain})
    plain.pop("seed", None)
    plain.pop("out", None)
    history = plain.pop("history", ())
    expected = as_list(
        reference.diffusion_step(
            x.double(),
            m.double(),
            coefficients,
            history=in_double(history),
            **{name: in_double(value) for name, value in plain.items()},
        )
    )
    assert len(actual) == len(expected)
    eps = torch.finfo(x.dtype).eps
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == x.dtype and a.shape == x.shape
        if e.numel():
            bound = (eps if x.dtype in HALVES else 40 * eps) * (1 + e.abs().max())
            assert (a.double() - e).abs().max() <= bound
    return actual


SHAPES = [(1, 1), (3, 2, 5), (2, 3, 8, 8), (2, 4, 37, 41), (5,), (2, 1500)]
PARTS = {
    "guidance": lambda g, like: {"unconditional": like(), "guidance": 2.5},
    "rescale": lambda g, like: {"unconditional": like(), "guidance": 2.5, "guidance_rescale": 0.7},
    "clip": lambda g, like: {"clip": 0.4},
    "threshold": lambda g, like: {"threshold": 0.8, "threshold_max": 2.0},
    "variance": lambda g, like: {"variance": like()},
    "history": lambda g, like: {"history": [like() for _ in range(4)]},
    "one before": lambda g, like: {"history": [like()]},
    "given": lambda g, like: {"noise": like()},
    "seed": lambda g, like: {"seed": 11},
    "steps": lambda g, like: {"step": torch.randint(STEPS, like().shape[:1], generator=g)},
    "x0": lambda g, like: {"x0": True},
    "kept": lambda g, like: {"kept": True},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pair", list(itertools.combinations(PARTS, 2)), ids="-".join)
def test_options_in_pairs(device, dtype, pair):
    generator = torch.Generator().manual_seed(len("".join(pair)))
    shape = SHAPES[sum(map(ord, "".join(pair))) % len(SHAPES)]
    coefficients = table(generator, device)
    x, m = (normal(generator, shape, dtype, device) for _ in range(2))
    options = {"step": 2}
    for part in pair:
        options |= PARTS[part](generator, lambda: normal(generator, shape, dtype, device))
    options["step"] = (
        options["step"].to(device) if isinstance(options["step"], torch.Tensor) else options["step"]
    )
    assert_step(x, m, coefficients, **options)


@bounded
@given(data=st.data())
def test_any_options(device, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    shape = data.draw(st.sampled_from(SHAPES))
    dtype = data.draw(st.sampled_from([f32, f64]))
    options = {}
    for part in data.draw(st.sets(st.sampled_from(list(PARTS)))):
        options |= PARTS[part](generator, lambda: normal(generator, shape, dtype))
    absent = data.draw(st.sets(st.sampled_from(COLUMNS)))  # 0: not read
    assert_step(
        normal(generator, shape, dtype, device),
        normal(generator, shape, dtype, device),
        table(generator, device, **dict.fromkeys(absent, 0)),
        **{
            name: v.to(device)
            if isinstance(v, torch.Tensor)
            else [h.to(device) for h in v]
            if name == "history"
            else v
            for name, v in options.items()
        },
    )


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,), (0, 2, 3, 3)])
@pytest.mark.parametrize(
    "options", [{}, {"seed": 1}, {"threshold": 0.5, "x0": True}, {"kept": True}], ids=str
)
def test_empty(device, shape, options):
    x = torch.ones(shape, device=device)
    for result in as_list(GF.diffusion_step(x, x, table(torch.Generator(), device), **options)):
        assert result.shape == shape


# ---- Noise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_noise_alone(device, dtype, layout):
    """A table of nothing but noise; draw 0 is standard_normal's, and a step's draws are others."""
    coefficients = torch.zeros(STEPS, len(COLUMNS), dtype=f64, device=device)
    coefficients[:, column("noise")] = 1
    x = torch.zeros(3, 35, 17, 19, dtype=dtype, device=device).to(memory_format=layout)
    compute = f64 if dtype == f64 else f32
    initial = GF.standard_normal(x.shape, seed=7, dtype=dtype, device=device)
    seen = [initial]
    for step in range(STEPS):
        drawn = GF.diffusion_step(x, x, coefficients, step=step, seed=7)
        exact = _philox.array_normal(
            torch.tensor(7, device=device), x.shape, compute, torch.device(device), draw=step + 1
        )
        torch.testing.assert_close(drawn, exact.to(dtype), atol=4e-6, rtol=torch.finfo(dtype).eps)
        assert all((drawn - other).abs().max() > 1 for other in seen)
        assert torch.equal(drawn, GF.diffusion_step(x.contiguous(), x, coefficients, step=step, seed=7))
        seen.append(drawn)


def test_samples_are_single_calls(device):
    """A row and a seed for each sample: what each gets alone, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    x, m, v = (normal(generator, (4, 3, 9, 7), f32, device) for _ in range(3))
    coefficients = table(generator, device)
    steps = torch.tensor([3, 0, 3, 9], device=device)  # the last beyond the table: its last
    seeds = torch.tensor([5, 5, -1, 2**50], device=device)
    options = {"variance": v, "threshold": 0.9, "x0": True, "kept": True}
    together = GF.diffusion_step(x, m, coefficients, step=steps, seed=seeds, **options)
    for i in range(4):
        options["variance"] = v[i : i + 1]
        alone = GF.diffusion_step(
            x[i : i + 1],
            m[i : i + 1],
            coefficients,
            step=min(int(steps[i]), 3),
            seed=int(seeds[i]),
            **options,
        )
        assert all(torch.equal(t[i], a[0]) for t, a in zip(together, alone, strict=True))
    # Of one seed, sample i is the same in any batch.
    whole = GF.diffusion_step(x, m, coefficients, step=1, seed=3)
    assert torch.equal(whole[:2], GF.diffusion_step(x[:2], m[:2], coefficients, step=1, seed=3))
    device_step, device_seed = torch.tensor(1, device=device), torch.tensor(3, device=device)
    assert torch.equal(whole, GF.diffusion_step(x, m, coefficients, step=device_step, seed=device_seed))
    below = GF.diffusion_step(x, m, coefficients, step=-device_step)
    assert torch.equal(below, GF.diffusion_step(x, m, coefficients, step=0))


def test_seeds_of_every_kind(device):
    x = torch.zeros(2, 40, device=device)
    coefficients = torch.ones(STEPS, len(COLUMNS), dtype=f64, device=device)
    big = 2**63 + 5
    assert torch.equal(
        GF.diffusion_step(x, x, coefficients, seed=big),
        GF.diffusion_step(x, x, coefficients, seed=big - 2**64),
    )
    first, again = (
        GF.diffusion_step(x, x, coefficients, seed=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(first, again) and first.std() > 0.5
    assert GF.diffusion_step(x, x, coefficients).abs().max() == 0
    with pytest.raises(ValueError, match="seed: expected an int from"):
        GF.diffusion_step(x, x, coefficients, seed=2**64)


@pytest.mark.parametrize(
    "options", [{"seed": 3}, {"threshold": 0.99, "unconditional": 1}, {"history": 2}], ids=str
)
def test_same_bits_with_any_threads(device, options):
    generator = torch.Generator().manual_seed(0)
    x, m = (normal(generator, (3, 4, 70, 65), f32, device) for _ in range(2))
    options = dict(options)
    if "unconditional" in options:
        options |= {"unconditional": m.flip(0), "guidance": 3.0, "guidance_rescale": 0.5}
    if "history" in options:
        options["history"] = [x.flip(1), m.flip(1)]
    coefficients = table(generator, device)
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(GF.diffusion_step(x, m, coefficients, **options))
    assert torch.equal(*results)


# ---- Samples as a whole --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 100, 5001])
@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.995, 1.0])
@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
def test_threshold_is_torch_quantile(device, n, quantile, dtype):
    """x0 = x: its limit is the largest that comes out, times which the others are what they were."""
    generator = torch.Generator().manual_seed(n)
    coefficients = torch.zeros(1, len(COLUMNS), dtype=f64, device=device)
    coefficients[:, column("x0_x")] = coefficients[:, column("x0")] = 1
    for x in (
        normal(generator, (3, n), dtype, device) * 5,
        normal(generator, (3, n), dtype, device).round() * 3,  # with equal numbers
        torch.full((3, n), 2.5, dtype=dtype, device=device),
        normal(generator, (3, n), dtype, device).exp().pow(8),  # over many binades
    ):
        limit = torch.quantile(x.double().abs(), quantile, dim=1, keepdim=True).clamp(min=1)
        result = GF.diffusion_step(x, x, coefficients, threshold=quantile)
        torch.testing.assert_close(
            result.double(), x.double().clamp(-limit, limit) / limit, rtol=4e-7, atol=0
        )
        limit = limit.clamp(max=3.0)
        result = GF.diffusion_step(x, x, coefficients, threshold=quantile, threshold_max=3.0)
        torch.testing.assert_close(
            result.double(), x.double().clamp(-limit, limit) / limit, rtol=4e-7, atol=0
        )


def test_rescaled_guidance_has_the_deviation_of_the_output(device):
    generator = torch.Generator().manual_seed(0)
    x, m, u = (normal(generator, (3, 4, 9, 9), f64, device) + 1e3 for _ in range(3))
    coefficients = torch.zeros(1, len(COLUMNS), dtype=f64, device=device)
    coefficients[:, column("m")] = 1
    options = {"unconditional": u, "guidance": 6.0}
    guided = GF.diffusion_step(x, m, coefficients, **options)
    rescaled = GF.diffusion_step(x, m, coefficients, guidance_rescale=1.0, **options)
    torch.testing.assert_close(rescaled.flatten(1).std(1), m.flatten(1).std(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(guided, u + 6 * (m - u))
    # Constant outputs have no deviation to be rescaled to.
    constant = torch.full_like(m, 2.0)
    options["unconditional"] = constant
    assert torch.equal(
        GF.diffusion_step(x, constant, coefficients, guidance_rescale=1.0, **options), constant
    )


# ---- Memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", [None, 5])
def test_layouts(device, layout, seed):
    generator = torch.Generator().manual_seed(0)
    x, m, h, z = (normal(generator, (3, 6, 5, 8), f32, device) for _ in range(4))
    coefficients = table(generator, device)
    options = {"seed": seed, "clip": 0.5, "x0": True}
    base = GF.diffusion_step(x, m, coefficients, history=[h], variance=z, **options)
    place = LAYOUTS[layout]
    for placed in ((place(x), m, h, z), (x, place(m), h, place(z)), tuple(map(place, (x, m, h, z)))):
        results = GF.diffusion_step(
            *placed[:2], coefficients, history=[placed[2]], variance=placed[3], **options
        )
        assert all(torch.equal(r, b) for r, b in zip(results, base, strict=True))
    out = place(torch.zeros_like(x))
    results = GF.diffusion_step(x, m, coefficients, history=[h], variance=z, out=out, **options)
    assert results[0] is out and torch.equal(out, base[0]) and torch.equal(results[1], base[1])


@bounded
@given(data=st.data())
def test_any_strides(device, data):
    generator = torch.Generator().manual_seed(0)
    x, m, h = (normal(generator, (2, 3, 4, 5), f32, device) for _ in range(3))
    coefficients = table(generator, device)
    base = GF.diffusion_step(x, m, coefficients, history=[h], seed=1)
    x, m, h, out = (data.draw(layouts(4))(t) for t in (x, m, h, torch.zeros_like(x)))
    assert torch.equal(GF.diffusion_step(x, m, coefficients, history=[h], seed=1, out=out), base)


def test_expanded_inputs(device):
    generator = torch.Generator().manual_seed(0)
    x, m = normal(generator, (3, 4, 6), f32, device), normal(generator, (4, 1), f32, device).expand(3, 4, 6)
    coefficients = table(generator, device)
    assert torch.equal(
        GF.diffusion_step(x, m, coefficients, noise=m),
        GF.diffusion_step(x, m.clone(), coefficients, noise=m.clone()),
    )


@pytest.mark.parametrize("dtype", [f32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"threshold": 0.9}, {"kept": True, "x0": True}], ids=str)
def test_in_place(device, dtype, options):
    generator = torch.Generator().manual_seed(0)
    coefficients = table(generator, device)

    def inputs():
        generator.manual_seed(1)
        return [normal(generator, (2, 4, 33, 21), dtype, device) for _ in range(4)]

    x, m, h1, h2 = inputs()
    base = as_list(GF.diffusion_step(x, m, coefficients, history=[h1, h2], seed=4, **options))
    for number in range(4):
        tensors = inputs()
        out = tensors[number]
        x, m, h1, h2 = tensors
        results = as_list(GF.diffusion_step(x, m, coefficients, history=[h1, h2], seed=4, out=out, **options))
        assert results[0] is out
        assert all(torch.equal(r, b) for r, b in zip(results, base, strict=True))
    # Overlapping otherwise: as if it did not.
    wide = torch.zeros(2, 4, 34, 21, dtype=dtype, device=device)
    x, m, h1, h2 = inputs()
    wide[:, :, :-1] = x
    GF.diffusion_step(
        wide[:, :, :-1], m, coefficients, history=[h1, h2], seed=4, out=wide[:, :, 1:], **options
    )
    assert torch.equal(wide[:, :, 1:], base[0])


def test_writing_to_out_is_seen_by_autograd(device):
    x = torch.ones(2, 3, device=device)
    weight = torch.ones(2, 3, device=device, requires_grad=True)
    product = weight * x
    with torch.no_grad():
        GF.diffusion_step(x, x, table(torch.Generator(), device), out=x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_what_a_row_multiplies_by_0_is_not_read(device):
    generator = torch.Generator().manual_seed(0)
    x, m = (normal(generator, (2, 9), f32, device) for _ in range(2))
    nothing = torch.full_like(x, math.nan)
    coefficients = table(generator, device, h1=0, h2=0, noise=0, kept_h1=0, kept_h2=0, kept_noise=0)
    plain = GF.diffusion_step(x, m, coefficients, kept=True)
    given = GF.diffusion_step(x, m, coefficients, history=[nothing, nothing], noise=nothing, kept=True)
    assert all(torch.equal(p, g) for p, g in zip(plain, given, strict=True))


# ---- Dtypes and PyTorch --------------------------------------------------------------------------------


@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m_dtype", DTYPES, ids=str)
def test_mixed_dtypes(device, x_dtype, m_dtype):
    generator = torch.Generator().manual_seed(0)
    x, h = (normal(generator, (2, 3, 70), x_dtype, device) for _ in range(2))
    m = normal(generator, (2, 3, 70), m_dtype, device)
    z = normal(generator, (2, 3, 70), f32, device)
    assert_step(x, m, table(generator, device), history=[h], noise=z, clip=1.0, x0=True)


def test_gradients(device):
    """Plain PyTorch's: to any order, by every tensor."""
    generator = torch.Generator().manual_seed(0)
    x, m, u, v, h, z = (normal(generator, (2, 5), f64, device).requires_grad_() for _ in range(6))
    coefficients = table(generator, device)

    def step(x, m, u, v, h, z):
        return GF.diffusion_step(
            x,
            m,
            coefficients,
            unconditional=u,
            guidance=2.0,
            guidance_rescale=0.3,
            variance=v,
            history=[h],
            noise=z,
            threshold=0.7,
            threshold_max=2.0,
            x0=True,
            kept=True,
        )

    torch.autograd.gradcheck(step, (x, m, u, v, h, z))
    torch.autograd.gradgradcheck(lambda x, v: step(x, m, u, v, h, z)[0], (x, v))
    with torch.no_grad():
        values = step(x, m, u, v, h, z)
    for recorded, value in zip(step(x, m, u, v, h, z), values, strict=True):
        torch.testing.assert_close(recorded, value)


def test_gradients_of_halves(device):
    """Computed in float32, as without a gradient; the noise the same."""
    x = torch.randn(2, 3, 4, device=device, dtype=torch.bfloat16, requires_grad=True)
    coefficients = table(torch.Generator().manual_seed(0), device)
    recorded = GF.diffusion_step(x, x, coefficients, seed=3)
    (grad,) = torch.autograd.grad(recorded.sum(), x)
    assert recorded.dtype == grad.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(recorded, GF.diffusion_step(x, x, coefficients, seed=3))


def test_what_pytorch_does_with_operators(device):
    generator = torch.Generator().manual_seed(0)
    x, m, h = (normal(generator, (2, 3, 4, 4), f32, device) for _ in range(3))
    coefficients = table(generator, device)
    arguments = (x, m, coefficients, [h], 64 + 128, 1, 0.5)  # x0 and the kept sum as well
    torch.library.opcheck(torch.ops.gmfast.diffusion_step.default, arguments)
    torch.library.opcheck(torch.ops.gmfast.diffusion_step_to.default, (torch.zeros_like(x), *arguments))


def test_compile(device):
    generator = torch.Generator().manual_seed(0)
    coefficients = table(generator, device)

    def sampler(x, m, h, step, seed):
        x, x0 = GF.diffusion_step(
            2 * x, m, coefficients, step=step, history=[h], seed=seed, clip=1.0, x0=True
        )
        out = torch.empty_like(x)
        GF.diffusion_step(x, m, coefficients, step=1, history=(x0,), threshold=0.9, seed=3, out=out)
        return x, x0, out + 1

    torch._dynamo.reset()
    compiled = torch.compile(sampler, fullgraph=True, dynamic=True)
    # No size is that of another dimension, which would be compiled as one number.
    for shape in ((2, 3, 4, 7), (5, 3, 8, 6)):
        x, m, h = (normal(generator, shape, f32, device) for _ in range(3))
        step, seed = torch.tensor(2, device=device), torch.tensor(9, device=device)
        for place in (lambda t: t, lambda t: t.to(memory_format=torch.channels_last)):
            actual, expected = (f(place(x), m, h, step, seed) for f in (compiled, sampler))
            for a, e in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, e)
                assert a.stride() == e.stride()
    # With a gradient, of plain PyTorch.
    x = normal(generator, (2, 3), f32, device).requires_grad_()
    compiled = torch.compile(
        lambda x: GF.diffusion_step(x, x, coefficients, clip=0.5), fullgraph=True, backend="aot_eager"
    )
    by_compiled, by_eager = (
        torch.autograd.grad(f(x).sum(), x)[0]
        for f in (compiled, lambda x: GF.diffusion_step(x, x, coefficients, clip=0.5))
    )
    torch.testing.assert_close(by_compiled, by_eager)


def test_export_and_inference_mode(device):
    generator = torch.Generator().manual_seed(0)
    x = normal(generator, (2, 3, 4), f32, device)
    coefficients = table(generator, device)

    class Step(torch.nn.Module):
        def forward(self, x, step):
            return GF.diffusion_step(x, x, coefficients, step=step, seed=3)

    step = torch.tensor(1, device=device)
    exported = torch.export.export(Step(), (x, step)).module()
    assert torch.equal(exported(x, step), Step()(x, step))
    with torch.inference_mode():
        y = x.clone()
        assert GF.diffusion_step(y, y, coefficients, step=step, seed=3, out=y) is y
        assert torch.equal(y, Step()(x, step))
    by_transform = torch.func.grad(lambda x: Step()(x, step).sum())(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(by_transform, torch.autograd.grad(Step()(leaf, step).sum(), leaf)[0])


X = torch.ones(2, 3)
TABLE = torch.ones(STEPS, len(COLUMNS), dtype=f64)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": 1}, TypeError, r"x: expected a torch.Tensor, got int"),
        ({"x": X.long()}, TypeError, "x: expected float32, float64, bfloat16 or float16, got int64"),
        ({"x": X[0, 0]}, ValueError, r"x: expected shape \(B, \*S\), got a scalar"),
        ({"model_output": X[:1]}, ValueError, r"model_output: expected shape \(2, 3\), got \(1, 3\)"),
        ({"model_output": None}, TypeError, "model_output: expected a torch.Tensor"),
        ({"table": TABLE.float()}, TypeError, "table: expected float64, got float32"),
        ({"table": TABLE[:, 1:]}, ValueError, r"table: expected shape \(steps, 20\), got \(4, 19\)"),
        ({"table": TABLE.to("meta")}, ValueError, "table: expected a tensor on cpu, got one on meta"),
        ({"step": 4}, ValueError, "step: expected 0 to 3, got 4"),
        ({"step": -1}, ValueError, "step: expected 0 to 3, got -1"),
        ({"step": 1.0}, TypeError, "step: expected an int, got float"),
        ({"step": torch.zeros(3, dtype=torch.int64)}, ValueError, r"step: expected shape \(\) or \(2,\)"),
        ({"step": torch.zeros(2)}, TypeError, "step: expected an int or an int64 tensor, got float32"),
        ({"unconditional": X.T}, ValueError, r"unconditional: expected shape \(2, 3\), got \(3, 2\)"),
        ({"history": [X, X[:, :1]]}, ValueError, r"history\[1\]: expected shape \(2, 3\), got \(2, 1\)"),
        ({"history": [X] * 5}, ValueError, "history: expected at most 4 tensors, got 5"),
        ({"noise": X.int()}, TypeError, "noise: expected float32, .* got int32"),
        ({"variance": X.to("meta")}, ValueError, "variance: expected a tensor on cpu, got one on meta"),
        ({"seed": "1"}, TypeError, "seed: expected an int"),
        ({"seed": torch.ones(2)}, TypeError, "seed: expected an int64 tensor, got float32"),
        (
            {"seed": torch.ones(3, dtype=torch.int64)},
            ValueError,
            r"seed: expected shape \(\) or \(2,\), got \(3,\)",
        ),
        ({"clip": -1.0}, ValueError, r"clip: expected a number in \[0, inf\], got -1.0"),
        ({"guidance": 2.0}, ValueError, "unconditional: expected a tensor, as guidance is given, got None"),
        ({"guidance": "2"}, TypeError, "guidance: expected a number, got str"),
        (
            {"guidance": torch.ones(2), "unconditional": X},
            TypeError,
            "guidance: expected a number, got Tensor",
        ),
        (
            {"guidance_rescale": torch.ones(2), "unconditional": X},
            TypeError,
            "guidance_rescale: expected a number",
        ),
        (
            {"guidance": 2.0, "seed": 2**63},
            ValueError,
            "unconditional: expected a tensor, as guidance is given",
        ),
        ({"history": None}, TypeError, "history: expected a tuple or a list of tensors, got NoneType"),
        ({"history": X}, TypeError, "history: expected a tuple or a list of tensors, got Tensor"),
        (
            {"guidance_rescale": 2.0, "unconditional": X},
            ValueError,
            r"guidance_rescale: expected .* \[0, 1\]",
        ),
        ({"threshold": 1.5}, ValueError, r"threshold: expected a number in \[0, 1\], got 1.5"),
        ({"threshold": -1.0}, ValueError, r"threshold: expected a number in \[0, 1\], got -1.0"),
        ({"threshold": 0.5, "threshold_max": 0.0}, ValueError, "threshold_max: expected a positive number"),
        ({"out": X.double()}, TypeError, "out: expected float32, the dtype of x, got float64"),
        ({"out": X[:1]}, ValueError, r"out: expected shape \(2, 3\), got \(1, 3\)"),
        ({"out": torch.ones(1, 3).expand(2, 3)}, ValueError, "out: expected memory of its own"),
    ],
    ids=str,
)
def test_bad_arguments(change, error, message):
    out = torch.zeros(2, 3)
    arguments = {"x": X, "model_output": X, "table": TABLE, "out": out} | change
    with pytest.raises(error, match=message):
        GF.diffusion_step(**arguments)
    assert not out.any(), "written before the error"
