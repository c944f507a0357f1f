import math

import pytest
import torch
from ops.contracts import LAYOUTS, Contracts, assert_same, results, threads
from ops.test_discretized_gaussian_nll import improved_diffusion

import gmfast.functional as GF
from gmfast import reference
from gmfast._table import COLUMNS

STEPS = 50
f32, f64 = torch.float32, torch.float64


def schedule(steps=STEPS):
    betas = torch.linspace(1e-3, 0.3, steps, dtype=f64)
    after = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=f64), after[:-1]])
    return betas, after, before


def ddpm_table(device="cpu"):
    """Of the DDPM sampler with a learned range, over all time steps."""
    betas, after, before = schedule()
    small = betas * (1 - before) / (1 - after)
    small[0] = small[1]  # clipped, as published
    table = torch.full((STEPS, len(COLUMNS)), math.nan, dtype=f64)
    columns = {
        "x0_x": after.rsqrt(),
        "x0_m": -(1 / after - 1).sqrt(),
        "x": (1 - betas).sqrt() * (1 - before) / (1 - after),
        "x0": before.sqrt() * betas / (1 - after),
        "log_var_min": small.log(),
        "log_var_max": betas.log(),
    }
    for name, values in columns.items():
        table[:, COLUMNS.index(name)] = values
    return table.to(device)


def inputs_of(shape, dtype, device, seed=0):
    """(B, C, *S) -> model_output, x0, x_t, noise and time steps, the first of which is 0."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *sizes: torch.randn(sizes, generator=generator)  # noqa: E731
    t = torch.randint(STEPS, shape[:1], generator=generator)
    t[:1] = 0
    after = schedule()[1][t].float().reshape(-1, *[1] * (len(shape) - 1))
    x0 = torch.randint(256, shape, generator=generator) / 127.5 - 1
    x0[draw(*shape) > 1.5] = 1
    noise = draw(*shape)
    x_t = after.sqrt() * x0 + (1 - after).sqrt() * noise
    output = torch.cat([noise + 0.1 * draw(*shape), draw(*shape) / 2], 1)
    return [*(v.to(device, dtype) for v in (output, x0, x_t, noise)), t.to(device)]


class TestContracts(Contracts):
    """Of the model's output; what else there is follows from its shape. Results are sums, not means, so that
    pixels are alike."""

    summed = (0, 1)
    headroom = 1e-3
    step = 7

    def constants(self, output):
        """x0, x_t, noise, numbers that every dtype has, the same for every sample; and the time steps."""
        shape = output.shape[0], output.shape[1] // 2, *output.shape[2:]
        pixels = math.prod(shape[2:])
        index = torch.arange(pixels, device=output.device) + 3 * torch.arange(
            shape[1], device=output.device
        ).reshape(-1, 1)
        index = index.reshape(1, *shape[1:]).expand(shape)
        x0, x_t, noise = ((index * k % n - n // 2) / (n // 2) for k, n in ((3, 5), (5, 17), (7, 33)))
        timestep = torch.full((shape[0],), self.step, device=output.device)
        return [*(v.to(output.dtype) for v in (x0, x_t, noise)), timestep]

    def both(self, module, output):
        *images, timestep = self.constants(output)
        losses = module.diffusion_hybrid_loss(output, *images, ddpm_table(output.device), timestep)
        return tuple(loss * math.prod(images[0].shape[1:]) for loss in losses)

    def call(self, output):
        return self.both(GF, output)

    def plain(self, output):
        return self.both(reference, output)

    def inputs(self, shape, dtype, device):
        batch, *spatial = shape
        generator = torch.Generator().manual_seed(0)
        return [(torch.randn(batch, 6, *spatial, generator=generator) / 2).to(device, dtype)]

    def operators(self, output):
        *images, timestep = self.constants(output)
        tensors = output, *(t.detach() for t in images), ddpm_table(output.device), timestep
        grad = torch.ones(output.shape[0]).requires_grad_()
        return [
            (torch.ops.gmfast.diffusion_hybrid_loss.default, (*tensors, 256, True)),
            (torch.ops.gmfast.diffusion_hybrid_loss_backward.default, (grad, grad, *tensors, 256, True)),
        ]

    # The mean is stopped, so differences of the whole do not show its gradient.

    def parts(self, output):
        epsilon, v = output.detach().chunk(2, 1)
        return [
            (lambda own: self.call(torch.cat([own, v], 1))[0], epsilon),
            (lambda own: self.call(torch.cat([epsilon, own], 1))[1], v),
        ]

    def test_gradcheck(self, device):
        for function, own in self.parts(*self.inputs((1, 2, 3), f64, device)):
            assert torch.autograd.gradcheck(function, own.clone().requires_grad_())

    def test_second_derivative(self, device):
        for function, own in self.parts(*self.inputs((1, 3), f64, device)):
            assert torch.autograd.gradgradcheck(function, own.clone().requires_grad_())


class TestDecoder(TestContracts):
    step = 0
    test_torch_opcheck = test_torch_compile = test_torch_export = None  # no graph depends on the step


def improved_ddpm_losses(output, x0, x_t, noise, timestep):
    """`training_losses` with learned range as published, https://github.com/openai/improved-diffusion
    (gaussian_diffusion.py), before its weights, in float64."""
    betas, after, before = schedule()
    posterior_variance = betas * (1 - before) / (1 - after)
    clipped = torch.log(torch.cat([posterior_variance[1:2], posterior_variance[1:]]))
    at = lambda values: values[timestep].reshape(-1, *[1] * (x0.dim() - 1))  # noqa: E731
    epsilon, v = output.chunk(2, 1)

    def posterior_mean(x_start):
        first = at(betas * before.sqrt() / (1 - after))
        return first * x_start + at((1 - before) * (1 - betas).sqrt() / (1 - after)) * x_t

    frozen = epsilon.detach()
    predicted = at((1 / after).sqrt()) * x_t - at((1 / after - 1).sqrt()) * frozen
    mean2, frac = posterior_mean(predicted), (v + 1) / 2
    logvar2 = frac * at(betas.log()) + (1 - frac) * at(clipped)
    mean1, logvar1 = posterior_mean(x0), at(clipped)
    kl = 0.5 * (-1.0 + logvar2 - logvar1 + torch.exp(logvar1 - logvar2))
    kl = kl + 0.5 * ((mean1 - mean2) ** 2) * torch.exp(-logvar2)
    nll = improved_diffusion(x0, mean2, 0.5 * logvar2)
    mean_flat = lambda t: t.mean(dim=list(range(1, t.dim())))  # noqa: E731
    bound = torch.where(timestep == 0, mean_flat(nll), mean_flat(kl)) / math.log(2.0)
    return mean_flat((noise - epsilon) ** 2), bound


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_published(device, layout):
    output, *images, timestep = inputs_of((40, 3, 5, 6), f64, device)
    tensors = [LAYOUTS[layout](t) for t in (output, *images)]

    def call(output):
        return GF.diffusion_hybrid_loss(
            output, *tensors[1:], ddpm_table(device), timestep, formulation="improved_ddpm"
        )

    ours = results(call, tensors[:1])
    cpu = [t.cpu() for t in (*images, timestep)]
    expected = results(lambda output: improved_ddpm_losses(output, *cpu), [output.cpu()])
    assert (timestep == 0).any() and (timestep > 0).any()
    for a, e in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [f32, torch.bfloat16, torch.float16], ids=str)
def test_accurate(device, dtype):
    output, *rest = inputs_of((64, 3, 16, 17), dtype, device)
    *images, timestep = rest

    def call(output):
        return GF.diffusion_hybrid_loss(output, *images, ddpm_table(device), timestep)

    def exact(output):
        doubles = [t.double() for t in images]
        return reference.diffusion_hybrid_loss(output, *doubles, ddpm_table(device), timestep)

    for a, e in zip(results(call, [output]), results(exact, [output.double()]), strict=True):
        info = torch.finfo(a.dtype)
        rounding = info.eps * (e.abs() + info.smallest_normal)
        assert ((a.double() - e).abs() <= rounding + 3e-6 * e.abs().max()).all()


def test_constants_have_no_gradient(device):
    """As the docstring says; with and without the kernel."""
    output, *images, timestep = inputs_of((3, 2, 4), f64, device)
    leaves = [t.requires_grad_() for t in (output, *images)]
    for function in (GF.diffusion_hybrid_loss, reference.diffusion_hybrid_loss):
        simple, bound = function(*leaves, ddpm_table(device), timestep)
        for loss, zero in ((simple, 1), (bound, 0)):
            gradients = torch.autograd.grad(loss.sum(), leaves, retain_graph=True, allow_unused=True)
            assert gradients[1:] == (None,) * 3
            halves = gradients[0].chunk(2, 1)
            assert not halves[zero].any() and halves[1 - zero].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_other_inputs(device, layout):
    output, *images, timestep = inputs_of((3, 4, 5, 19), f32, device)
    table = ddpm_table(device)

    def call(output, *images, table=table, timestep=timestep):
        return results(lambda o: GF.diffusion_hybrid_loss(o, *images, table, timestep), [output])

    expected = call(output, *images)
    wide = torch.full((2 * STEPS, 40), math.nan, dtype=f64, device=device)
    wide[::2, 1::2] = table
    steps = timestep.repeat_interleave(2)[::2]
    for i in range(3):
        mixed = [LAYOUTS[layout](t) if i == j else t for j, t in enumerate(images)]
        assert_same(call(output, *mixed, table=wide[::2, 1::2], timestep=steps), expected, (0, 1))
    everything = [LAYOUTS[layout](t) for t in (output, *images)]
    assert_same(call(*everything), expected, (0, 1))
    expanded = [t[:, :1].expand_as(t) for t in images]
    assert_same(call(output, *expanded), call(output, *(t.contiguous() for t in expanded)), (0, 1))


@pytest.mark.parametrize("shape", [(1, 3, 200, 200), (5, 2), (300, 70), (2, 1, 9000)])
def test_same_bits_for_any_threads(device, shape):
    output, *images, timestep = inputs_of(shape, f32, device)

    def call(output):
        return GF.diffusion_hybrid_loss(output, *images, ddpm_table(device), timestep)

    with threads(1):
        alone = results(call, [output])
    for count in (2, 3):
        with threads(count):
            assert_same(results(call, [output]), alone)
    # and in a batch of any size
    one = GF.diffusion_hybrid_loss(output[:1], *(t[:1] for t in images), ddpm_table(device), timestep[:1])
    assert_same(one, [t[:1] for t in alone[:2]])


def test_a_time_step_that_is_not_there(device):
    output, *images, _ = inputs_of((3, 2, 4), f32, device)
    timestep = torch.tensor([STEPS, -1, 3], device=device)
    leaf = output.requires_grad_()
    _, bound = GF.diffusion_hybrid_loss(leaf, *images, ddpm_table(device), timestep)
    assert bound.isnan().tolist() == [True, True, False]
    (gradient,) = torch.autograd.grad(bound.sum(), leaf)
    assert gradient[:2, 2:].isnan().all() and gradient[2].isfinite().all()


def test_mixed_dtypes(device):
    """Images in float32 and a network's output in half precision."""
    output, *images, timestep = inputs_of((3, 2, 4), f32, device)
    half = output.bfloat16()
    ours = results(lambda o: GF.diffusion_hybrid_loss(o, *images, ddpm_table(device), timestep), [half])
    expected = results(
        lambda o: GF.diffusion_hybrid_loss(o, *images, ddpm_table(device), timestep), [half.float()]
    )
    assert [t.dtype for t in ours] == [f32, f32, torch.bfloat16]
    assert_same(ours, [e.to(t.dtype) for e, t in zip(expected, ours, strict=True)])


def bad(**changes):
    output, x0, x_t, noise, timestep = inputs_of((2, 3, 4), f32, "cpu")
    given = {"model_output": output, "x0": x0, "x_t": x_t, "noise": noise}
    return given | {"table": ddpm_table(), "timestep": timestep} | changes


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"model_output": torch.ones(2, 3, 4)}, ValueError, r"model_output: expected shape \(B, 2C, \*S\)"),
        ({"x0": torch.ones(2, 3, 5)}, ValueError, r"x0: expected shape \(2, 3, 4\), got \(2, 3, 5\)"),
        ({"noise": "noise"}, TypeError, r"noise: expected a torch\.Tensor, got str"),
        ({"table": torch.ones(5, 20)}, TypeError, "table: expected float64, got float32"),
        (
            {"table": torch.ones(5, 3, dtype=f64)},
            ValueError,
            r"table: expected shape \(T, 20\), got \(5, 3\)",
        ),
        ({"timestep": torch.ones(2)}, TypeError, "timestep: expected int64, got float32"),
        ({"timestep": torch.tensor(1)}, ValueError, r"timestep: expected shape \(2,\), got \(\)"),
        ({"num_classes": 0}, ValueError, "num_classes: expected 2 to .*, got 0"),
        ({"formulation": "tanh"}, ValueError, "formulation: expected one of 'exact'"),
    ],
)
def test_bad_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        GF.diffusion_hybrid_loss(**bad(**changes))
