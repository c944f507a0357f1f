"""The methods of `GaussianDiffusion` beside the papers' formulas in float64, diffusers' schedulers, and what
is known of Gaussian data."""

import copy
import inspect
import math
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn

import gmfast.functional as GF
from gmfast import reference
from gmfast.integrations import guided_diffusion as gd
from gmfast.integrations.guided_diffusion import LossType, ModelMeanType, ModelVarType

T = 12
BETAS = torch.linspace(0.01, 0.3, T, dtype=torch.float64)
BAR = torch.cumprod(1 - BETAS, 0)
BEFORE = torch.cat([torch.ones(1, dtype=torch.float64), BAR[:-1]])
AFTER = torch.cat([BAR[1:], torch.zeros(1, dtype=torch.float64)])
SMALL = BETAS * (1 - BEFORE) / (1 - BAR)
CLIPPED = torch.cat([SMALL[1:2], SMALL[1:]])

LEARNED = (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)
means = pytest.mark.parametrize("mean_type", ModelMeanType, ids=lambda m: m.name)
variances = pytest.mark.parametrize("var_type", ModelVarType, ids=lambda m: m.name)


class Net(nn.Module):
    """Anything that depends on x and t, and knows what it was told."""

    def __init__(self, var_type=ModelVarType.FIXED_SMALL):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Conv2d(3, 6 if var_type in LEARNED else 3, 1)
        self.told = []

    def forward(self, x, t, scale=1.0):
        self.told.append(t)
        place = torch.cos(t.to(x.dtype) / 3).reshape(-1, 1, 1, 1)
        return torch.tanh(self.layer(x) + place) * scale


def make(mean_type=ModelMeanType.EPSILON, var_type=ModelVarType.FIXED_SMALL, loss=LossType.MSE, **options):
    return gd.GaussianDiffusion(
        betas=BETAS.numpy(), model_mean_type=mean_type, model_var_type=var_type, loss_type=loss, **options
    )


def at(values, t):
    return values[t].reshape(-1, 1, 1, 1)


def expected_step(net, x, t, mean_type, var_type, clip, denoised_fn=None, **options):
    """x0, mean and log-variance, by Ho et al., eqs. 6 and 7, and Nichol and Dhariwal, eq. 15."""
    x = x.double()
    output = copy.deepcopy(net).double()(x, t, **options)
    output, v = output.chunk(2, 1) if var_type in LEARNED else (output, None)
    of_x0 = at(BEFORE.sqrt() * BETAS / (1 - BAR), t)
    of_x = at((1 - BETAS).sqrt() * (1 - BEFORE) / (1 - BAR), t)
    if mean_type == ModelMeanType.EPSILON:
        x0 = (x - at((1 - BAR).sqrt(), t) * output) / at(BAR.sqrt(), t)
    elif mean_type == ModelMeanType.START_X:
        x0 = output
    else:
        x0 = (output - of_x * x) / of_x0
    x0 = denoised_fn(x0) if denoised_fn is not None else x0
    x0 = x0.clamp(-1, 1) if clip else x0
    mean = output if mean_type == ModelMeanType.PREVIOUS_X else of_x0 * x0 + of_x * x
    low, high = at(CLIPPED.log(), t), at(BETAS.log(), t)
    log_variance = {
        ModelVarType.LEARNED: v,
        ModelVarType.LEARNED_RANGE: None if v is None else (v + 1) / 2 * high + (1 - v) / 2 * low,
        ModelVarType.FIXED_SMALL: low,
        ModelVarType.FIXED_LARGE: torch.where(at(torch.arange(T), t) == 0, low, high),
    }[var_type]
    return x0, mean, log_variance.expand(x.shape)


def expected_ddim(x, x0, t, eta=0.0):
    """Song et al., 2021, eq. 12: the mean, and the noise's standard deviation."""
    now, before = at(BAR, t), at(BEFORE, t)
    epsilon = (x.double() - now.sqrt() * x0) / (1 - now).sqrt()
    std = eta * ((1 - before) / (1 - now)).sqrt() * (1 - now / before).sqrt()
    return before.sqrt() * x0 + (1 - before - std**2).sqrt() * epsilon, std * (at(torch.arange(T), t) > 0)


def batch(dtype=torch.float32):
    t = torch.tensor([0, 1, 5, T - 1])
    return torch.randn(4, 3, 4, 5).to(dtype), t


def close(result, expected, tolerance=1e-5):
    expected = expected.detach()
    scale = max(expected.abs().max().item(), 1e-3)
    torch.testing.assert_close(result.detach().double(), expected, rtol=tolerance, atol=tolerance * scale)


def softened(x0):
    return 0.9 * torch.tanh(x0)


@means
@variances
@pytest.mark.parametrize("clip, denoised_fn", [(True, None), (False, None), (True, softened)])
def test_p_mean_variance(mean_type, var_type, clip, denoised_fn):
    x, t = batch()
    net, process = Net(var_type), make(mean_type, var_type)
    with torch.no_grad():
        out = process.p_mean_variance(net, x, t, clip, denoised_fn, dict(scale=0.9))
        x0, mean, log_variance = expected_step(net, x, t, mean_type, var_type, clip, denoised_fn, scale=0.9)
    assert list(out) == ["mean", "variance", "log_variance", "pred_xstart"]
    close(out["pred_xstart"], x0, 2e-5)
    close(out["mean"], mean)
    close(out["log_variance"], log_variance)
    variance = log_variance.exp()
    if var_type == ModelVarType.FIXED_SMALL:
        variance = at(SMALL, t).expand(x.shape)  # whose logarithm alone is clipped
    close(out["variance"], variance)
    assert all(value.shape == x.shape and value.dtype == torch.float32 for value in out.values())
    graded = process.p_mean_variance(net, x, t, clip, denoised_fn, dict(scale=0.9))
    for name, value in out.items():
        torch.testing.assert_close(graded[name].detach(), value, rtol=1e-5, atol=1e-5)


@means
@variances
@pytest.mark.parametrize("denoised_fn", [None, softened])
def test_p_sample_and_ddim_sample(mean_type, var_type, denoised_fn):
    x, t = batch()
    net, process = Net(var_type), make(mean_type, var_type)
    with torch.no_grad():
        x0, mean, log_variance = expected_step(net, x, t, mean_type, var_type, True, denoised_fn)
        torch.manual_seed(5)
        noise = torch.randn(x.shape).double()
        state = torch.get_rng_state()
        torch.manual_seed(5)
        out = process.p_sample(net, x, t, denoised_fn=denoised_fn)
        assert torch.equal(torch.get_rng_state(), state)
        noisy = at(torch.arange(T), t) > 0
        close(out["sample"], mean + noisy * (0.5 * log_variance).exp() * noise)
        close(out["pred_xstart"], x0, 2e-5)
        for eta in (0.0, 0.6):
            torch.manual_seed(5)
            out = process.ddim_sample(net, x, t, denoised_fn=denoised_fn, eta=eta)
            assert torch.equal(torch.get_rng_state(), state)
            by_x0, std = expected_ddim(x, x0, t, eta)
            close(out["sample"], by_x0 + std * noise, 2e-5)
            close(out["pred_xstart"], x0, 2e-5)
        out = process.ddim_reverse_sample(net, x, t, denoised_fn=denoised_fn)
        epsilon = (x.double() - at(BAR.sqrt(), t) * x0) / at((1 - BAR).sqrt(), t)
        close(out["sample"], at(AFTER.sqrt(), t) * x0 + at((1 - AFTER).sqrt(), t) * epsilon, 2e-5)


def attracted(x, t, scale=1.0):
    return scale * torch.sin(x) * (1 + t.reshape(-1, 1, 1, 1)).to(x.dtype)


@means
@variances
def test_conditioned_by_a_gradient(mean_type, var_type):
    x, t = batch()
    net, process = Net(var_type), make(mean_type, var_type)
    options = dict(cond_fn=attracted, model_kwargs=dict(scale=0.3))
    gradient = attracted(x.double(), t, 0.3)
    with torch.no_grad():
        x0, mean, log_variance = expected_step(net, x, t, mean_type, var_type, True, scale=0.3)
        variance = at(SMALL, t) if var_type == ModelVarType.FIXED_SMALL else log_variance.exp()
        noisy = at(torch.arange(T), t) > 0
        torch.manual_seed(5)
        out = process.p_sample(net, x, t, **options)
        torch.manual_seed(5)
        noise = torch.randn(x.shape).double()
        close(out["sample"], mean + variance * gradient + noisy * (0.5 * log_variance).exp() * noise)
        # Dhariwal and Nichol, 2021, algorithm 2
        epsilon = (x.double() - at(BAR.sqrt(), t) * x0) / at((1 - BAR).sqrt(), t)
        epsilon = epsilon - at((1 - BAR).sqrt(), t) * gradient
        moved = (x.double() - at((1 - BAR).sqrt(), t) * epsilon) / at(BAR.sqrt(), t)
        torch.manual_seed(5)
        out = process.ddim_sample(net, x, t, eta=0.4, **options)
        by_x0, std = expected_ddim(x, moved, t, 0.4)
        close(out["pred_xstart"], moved, 2e-5)
        close(out["sample"], by_x0 + std * noise, 5e-5)
        given = process.p_mean_variance(net, x, t, model_kwargs=dict(scale=0.3))
        out = process.condition_score(attracted, given, x, t, model_kwargs=dict(scale=0.3))
        of_x0 = at(BEFORE.sqrt() * BETAS / (1 - BAR), t)
        of_x = at((1 - BETAS).sqrt() * (1 - BEFORE) / (1 - BAR), t)
        close(out["mean"], of_x0 * moved + of_x * x, 2e-5)
        assert out["variance"] is given["variance"] and set(out) == set(given)


def test_q():
    x, t = batch()
    process = make()
    noise = torch.randn_like(x)
    mean, variance, log_variance = process.q_mean_variance(x, t)
    close(mean, at(BAR.sqrt(), t) * x)
    close(variance, at(1 - BAR, t).expand(x.shape))
    close(log_variance, at((1 - BAR).log(), t).expand(x.shape))
    expected = at(BAR.sqrt(), t) * x + at((1 - BAR).sqrt(), t) * noise
    close(process.q_sample(x, t, noise=noise), expected)
    torch.manual_seed(2)
    drawn = process.q_sample(x, t)
    torch.manual_seed(2)
    assert torch.equal(drawn, process.q_sample(x, t, noise=torch.randn_like(x)))
    x_t = expected.float()
    mean, variance, log_variance = process.q_posterior_mean_variance(x, x_t, t)
    of_x0 = at(BEFORE.sqrt() * BETAS / (1 - BAR), t)
    of_x = at((1 - BETAS).sqrt() * (1 - BEFORE) / (1 - BAR), t)
    close(mean, of_x0 * x + of_x * x_t)
    close(variance, at(SMALL, t).expand(x.shape))
    close(log_variance, at(CLIPPED.log(), t).expand(x.shape))
    close(process._predict_xstart_from_eps(x_t, t, noise), x.double(), 2e-5)
    close(process._predict_eps_from_xstart(x_t, t, x), noise.double(), 2e-5)
    close(process._predict_xstart_from_xprev(x_t, t, mean), x.double(), 2e-5)


def expected_terms(net, x, noise, t, mean_type, var_type, clip, freeze=False, scale=1.0):
    """The term of the bound in bits per dimension, x0, and the mean squared error; with gradients, of the
    parameters of `net`, which is in float64."""
    x_t = at(BAR.sqrt(), t) * x + at((1 - BAR).sqrt(), t) * noise
    output = net(x_t, t, scale)

    class Given(nn.Module):
        def forward(self, x, t):
            if not freeze:
                return output
            prediction, v = output.chunk(2, 1)
            return torch.cat([prediction.detach(), v], 1)

    x0, mean, log_variance = expected_step(Given(), x_t, t, mean_type, var_type, clip)
    true_mean = at(BEFORE.sqrt() * BETAS / (1 - BAR), t) * x
    true_mean = true_mean + at((1 - BETAS).sqrt() * (1 - BEFORE) / (1 - BAR), t) * x_t
    true = at(CLIPPED.log(), t)
    kl = 0.5 * (
        -1
        + log_variance
        - true
        + (true - log_variance).exp()
        + (true_mean - mean) ** 2 * (-log_variance).exp()
    )
    nll = reference.discretized_gaussian_nll(x, mean, 0.5 * log_variance, formulation="improved_ddpm")
    bound = torch.where(at(torch.arange(T), t) == 0, nll, kl).flatten(1).mean(1) / math.log(2)
    prediction = output.chunk(2, 1)[0] if var_type in LEARNED else output
    target = {
        ModelMeanType.EPSILON: noise,
        ModelMeanType.START_X: x,
        ModelMeanType.PREVIOUS_X: true_mean,
    }[mean_type]
    return bound, x0, (prediction - target).square().flatten(1).mean(1), x_t


@means
@variances
@pytest.mark.parametrize("loss_type", LossType, ids=lambda m: m.name)
def test_training_losses(mean_type, var_type, loss_type):
    x = (torch.randint(0, 256, (4, 3, 4, 5)) / 127.5 - 1).float()
    _, t = batch()
    noise = torch.randn_like(x)
    net, process = Net(var_type), make(mean_type, var_type, loss_type)
    exact = copy.deepcopy(net).double()
    terms = process.training_losses(net, x, t, dict(scale=0.9), noise=noise)
    learned = var_type in LEARNED
    freeze = learned and not loss_type.is_vb()
    bound, _, mse, _ = expected_terms(
        exact, x.double(), noise.double(), t, mean_type, var_type, False, freeze, scale=0.9
    )
    if loss_type.is_vb():
        expected = {"loss": bound * (T if loss_type == LossType.RESCALED_KL else 1)}
    elif learned:
        vb = bound * (T / 1000 if loss_type == LossType.RESCALED_MSE else 1)
        expected = {"vb": vb, "mse": mse, "loss": mse + vb}
    else:
        expected = {"mse": mse, "loss": mse}
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        close(terms[name], value, 2e-4)
    terms["loss"].mean().backward()
    expected["loss"].mean().backward()
    close(net.layer.weight.grad, exact.layer.weight.grad, 5e-4)


@means
@variances
def test_bound(mean_type, var_type):
    x = (torch.randint(0, 256, (2, 3, 4, 5)) / 127.5 - 1).float()
    net, process = Net(var_type), make(mean_type, var_type)
    exact = copy.deepcopy(net).double()
    torch.manual_seed(4)
    out = process.calc_bpd_loop(net, x, model_kwargs=dict(scale=0.9))
    state = torch.get_rng_state()
    torch.manual_seed(4)
    vb, xstart_mse, mse = [], [], []
    with torch.no_grad():
        for i in reversed(range(T)):
            t, noise = torch.full((2,), i), torch.randn_like(x).double()
            bound, x0, _, x_t = expected_terms(
                exact, x.double(), noise, t, mean_type, var_type, True, scale=0.9
            )
            epsilon = (x_t - at(BAR.sqrt(), t) * x0) / at((1 - BAR).sqrt(), t)
            vb.append(bound)
            xstart_mse.append((x0 - x).square().flatten(1).mean(1))
            mse.append((epsilon - noise).square().flatten(1).mean(1))
    assert torch.equal(torch.get_rng_state(), state)
    close(out["vb"], torch.stack(vb, 1), 2e-4)
    close(out["xstart_mse"], torch.stack(xstart_mse, 1), 2e-4)
    close(out["mse"], torch.stack(mse, 1), 2e-4)
    last = BAR[-1]  # KL of N(√ᾱ x, 1 - ᾱ) and N(0, 1)
    prior = 0.5 * (last * x.double().square() - last - (1 - last).log()).flatten(1).mean(1) / math.log(2)
    close(out["prior_bpd"], prior)
    close(out["total_bpd"], torch.stack(vb, 1).sum(1) + prior, 2e-4)
    assert set(out) == {"total_bpd", "prior_bpd", "vb", "xstart_mse", "mse"}


@pytest.mark.parametrize("ddim", [False, True])
@pytest.mark.parametrize("var_type", [ModelVarType.FIXED_LARGE, ModelVarType.LEARNED_RANGE])
def test_loops_are_their_steps(ddim, var_type):
    net, process = Net(var_type), make(var_type=var_type)
    name, options = ("ddim_sample", dict(eta=0.3)) if ddim else ("p_sample", {})
    shape = (2, 3, 4, 5)
    torch.manual_seed(6)
    x = torch.randn(shape)
    passed = []
    with torch.no_grad():
        for i in reversed(range(T)):
            out = getattr(process, name)(net, x, torch.full((2,), i), clip_denoised=False, **options)
            x = out["sample"]
            passed.append(out)
    torch.manual_seed(6)
    loop = getattr(process, f"{name}_loop_progressive")
    progressive = list(loop(net, shape, clip_denoised=False, **options))
    assert len(progressive) == T
    for mine, expected in zip(progressive, passed, strict=True):
        assert all(torch.equal(mine[key], expected[key]) for key in ("sample", "pred_xstart"))
    torch.manual_seed(6)
    loop = getattr(process, f"{name}_loop")
    assert torch.equal(loop(net, shape, clip_denoised=False, **options), x)
    torch.manual_seed(6)
    start = torch.randn(shape)
    assert torch.equal(loop(net, shape, start, False, **options), x)
    assert torch.is_grad_enabled()


def test_samples_of_seeds():
    """Those of a smaller batch, and nothing of torch's generator."""
    net, process = Net(ModelVarType.LEARNED_RANGE), make(var_type=ModelVarType.LEARNED_RANGE)
    state = torch.get_rng_state()
    for name in ("p_sample_loop", "ddim_sample_loop"):
        options = dict(eta=0.5) if "ddim" in name else {}
        many = getattr(process, name)(net, (3, 3, 4, 5), seed=7, **options)
        few = getattr(process, name)(net, (1, 3, 4, 5), seed=7, cond_fn=None, **options)
        torch.testing.assert_close(few, many[:1], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(many, getattr(process, name)(net, (3, 3, 4, 5), seed=8, **options))
        each = getattr(process, name)(net, (2, 3, 4, 5), seed=[8, 7], **options)
        torch.testing.assert_close(each[1:], few, rtol=1e-5, atol=1e-5)
    guided = process.p_sample_loop(net, (3, 3, 4, 5), seed=7, cond_fn=lambda x, t: torch.zeros_like(x))
    torch.testing.assert_close(guided, process.p_sample_loop(net, (3, 3, 4, 5), seed=7), rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "var_type", [ModelVarType.FIXED_SMALL, ModelVarType.FIXED_LARGE, ModelVarType.LEARNED_RANGE]
)
def test_samples_have_the_law_of_gaussian_data(var_type):
    mean, std = 0.3, 0.5
    process = gd.GaussianDiffusion(
        betas=gd.get_named_beta_schedule("linear", 200),
        model_mean_type=ModelMeanType.EPSILON,
        model_var_type=var_type,
        loss_type=LossType.MSE,
    )
    bar = torch.from_numpy(process.alphas_cumprod).float()

    def model(x, t):
        a = at(bar, t)
        epsilon = (x - a.sqrt() * mean) * (1 - a).sqrt() / (a * std**2 + 1 - a)
        return torch.cat([epsilon, torch.zeros_like(x)], 1) if var_type in LEARNED else epsilon

    x = process.p_sample_loop(model, (800, 1, 2, 2), clip_denoised=False, device="cpu", seed=1)
    assert x.mean().item() == pytest.approx(mean, abs=4.5 * std / 56)
    assert x.std().item() == pytest.approx(std, rel=4.5 / 80 + 0.03)


def test_spaced():
    betas = gd.get_named_beta_schedule("cosine", 50)
    kept = gd.space_timesteps(50, [4, 3])
    options = dict(
        model_mean_type=ModelMeanType.EPSILON,
        model_var_type=ModelVarType.LEARNED_RANGE,
        loss_type=LossType.RESCALED_MSE,
    )
    whole = gd.GaussianDiffusion(betas=betas, **options)
    for rescale in (False, True):
        spaced = gd.SpacedDiffusion(kept, betas=betas, rescale_timesteps=rescale, **options)
        steps = sorted(kept)
        assert spaced.timestep_map == steps and spaced.original_num_steps == 50 and spaced.num_timesteps == 7
        assert spaced.alphas_cumprod == pytest.approx(whole.alphas_cumprod[steps])
        net = Net(ModelVarType.LEARNED_RANGE)
        told = [s * 1000 / 50 if rescale else s for s in steps]
        spaced.p_sample_loop(net, (2, 3, 4, 5), cond_fn=lambda x, t, net=net: net(x, t)[:, :3])
        each = [told[i] for i in reversed(range(7)) for _ in "mc"]  # the model and the gradient
        assert [t[0].item() for t in net.told] == pytest.approx(each)
        net.told.clear()
        spaced.ddim_sample_loop(net, (2, 3, 4, 5))
        assert [t[1].item() for t in net.told] == pytest.approx(told[::-1])
        net.told.clear()
        x, t = torch.rand(2, 3, 4, 5), torch.tensor([6, 0])
        spaced.training_losses(net, x, t)
        spaced.calc_bpd_loop(net, x)
        assert net.told[0].tolist() == pytest.approx([told[6], told[0]])
        assert [t[0].item() for t in net.told[1:]] == pytest.approx(told[::-1])
    net = Net(ModelVarType.LEARNED_RANGE)
    gd.GaussianDiffusion(betas=betas, rescale_timesteps=True, **options).p_mean_variance(
        net, torch.rand(1, 3, 4, 5), torch.tensor([7])
    )
    assert net.told[0].item() == pytest.approx(140.0)


@pytest.mark.parametrize(
    "total, sections, expected",
    [
        (10, [3], {0, 4, 9}),  # the middle one at 4.5
        (300, "10,15,20", None),
        (100, "ddim10", set(range(0, 100, 10))),
        (100, "ddim34", set(range(0, 100, 3))),
        (7, [1, 2], {0, 4, 6}),
        (7, [0, 2], {4, 6}),
    ],
)
def test_spacing_of_time_steps(total, sections, expected):
    steps = gd.space_timesteps(total, sections)
    if expected is None:
        for first, count in ((0, 10), (100, 15), (200, 20)):
            inside = sorted(s for s in steps if first <= s < first + 100)
            assert len(inside) == count and (inside[0], inside[-1]) == (first, first + 99)
            gaps = [b - a for a, b in pairwise(inside)]
            assert max(gaps) - min(gaps) <= 1
    else:
        assert steps == expected


def test_named_schedules():
    linear = torch.from_numpy(gd.get_named_beta_schedule("linear", 500))
    torch.testing.assert_close(linear, torch.linspace(2e-4, 0.04, 500, dtype=torch.float64))
    cosine = torch.from_numpy(gd.get_named_beta_schedule("cosine", 100))
    f = torch.cos((torch.arange(101, dtype=torch.float64) / 100 + 0.008) / 1.008 * math.pi / 2).square()
    torch.testing.assert_close(cosine, (1 - f[1:] / f[:-1]).clamp(max=0.999), rtol=1e-9, atol=1e-12)


@pytest.mark.peers
def test_steps_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    x, _ = batch()
    for var_type, name in (
        (ModelVarType.FIXED_SMALL, "fixed_small"),
        (ModelVarType.FIXED_LARGE, "fixed_large"),
        (ModelVarType.LEARNED_RANGE, "learned_range"),
    ):
        net, process = Net(var_type), make(var_type=var_type)
        theirs = diffusers.DDPMScheduler(T, trained_betas=BETAS.tolist(), variance_type=name)
        theirs.set_timesteps(T)
        for i in range(T):
            t = torch.full((4,), i)
            with torch.no_grad():
                torch.manual_seed(i)
                mine = process.p_sample(net, x, t)
                torch.manual_seed(i)
                expected = theirs.step(net(x, t), i, x)
            close(mine["pred_xstart"], expected.pred_original_sample.double(), 2e-5)
            close(mine["sample"], expected.prev_sample.double(), 2e-5)
    net, process = Net(), make()
    theirs = diffusers.DDIMScheduler(T, trained_betas=BETAS.tolist(), timestep_spacing="leading")
    theirs.set_timesteps(T)
    for i in range(T):
        t = torch.full((4,), i)
        with torch.no_grad():
            torch.manual_seed(i)
            mine = process.ddim_sample(net, x, t, eta=0.5)["sample"]
            torch.manual_seed(i)
            expected = theirs.step(net(x, t), i, x, eta=0.5, use_clipped_model_output=True).prev_sample
        close(mine, expected.double(), 2e-5)


def test_a_subclass_keeps_its_say():
    """Of `p_mean_variance`, which the steps then call."""

    class Shifted(gd.GaussianDiffusion):
        def p_mean_variance(self, *args, **kwargs):
            out = super().p_mean_variance(*args, **kwargs)
            return {**out, "mean": out["mean"] + 1, "pred_xstart": out["pred_xstart"] * 0.5}

    options = dict(
        betas=BETAS.numpy(),
        model_mean_type=ModelMeanType.EPSILON,
        model_var_type=ModelVarType.LEARNED,
        loss_type=LossType.MSE,
    )
    process, plain = Shifted(**options), gd.GaussianDiffusion(**options)
    x, t = batch()
    net = Net(ModelVarType.LEARNED)
    with torch.no_grad():
        results = []
        for p in (process, plain):
            torch.manual_seed(1)
            results.append(p.p_sample(net, x, t)["sample"])
        torch.testing.assert_close(results[0], results[1] + 1)
        x0 = 0.5 * plain.p_mean_variance(net, x, t)["pred_xstart"].double()
        out = process.ddim_sample(net, x, t)
        close(out["sample"], expected_ddim(x, x0, t)[0], 2e-5)
        close(process.ddim_reverse_sample(net, x, t)["pred_xstart"], x0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    """Sums are float32 at least, as with their constants."""
    x, t = batch(dtype)
    net, process = Net().to(dtype), make()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    with torch.no_grad():
        out = process.p_mean_variance(net, x, t)
        given = copy.deepcopy(net)
        output = given(x, t)
        x0 = (x.double() - at((1 - BAR).sqrt(), t) * output.double()) / at(BAR.sqrt(), t)
        assert out["mean"].dtype == out["pred_xstart"].dtype == wide
        close(out["pred_xstart"], x0.clamp(-1, 1), 2e-5)
        assert process.p_sample(net, x, t)["sample"].dtype == wide
        assert process.q_sample(x, t).dtype == wide
    process.training_losses(net.to(wide), x, t)["loss"].sum().backward()
    assert net.layer.weight.grad.abs().max() > 0


def test_copies_and_enumerations_of_others():
    import enum

    class Other(enum.Enum):
        EPSILON = "e"

    process = make(Other.EPSILON)
    assert process.model_mean_type is ModelMeanType.EPSILON
    x, t = batch()
    net = Net()
    with torch.no_grad():
        out = process.p_mean_variance(net, x, t)
        for copied in (copy.deepcopy(process), pickle.loads(pickle.dumps(process))):
            assert torch.equal(copied.p_mean_variance(net, x, t)["mean"], out["mean"])
    assert not LossType.MSE.is_vb() and LossType.RESCALED_KL.is_vb()


def test_training_after_sampling_in_inference_mode():
    """And steps without a graph, of which nothing has a gradient."""
    net, process = Net(ModelVarType.LEARNED_RANGE), make(var_type=ModelVarType.LEARNED_RANGE)
    x, t = batch()
    with torch.inference_mode():
        process.p_sample_loop(net, x.shape)
        process.training_losses(net, x, t)
    process.training_losses(net, x, t)["loss"].sum().backward()
    assert net.layer.weight.grad.abs().max() > 0
    assert not process.p_sample_loop(net, x.shape).requires_grad


def test_exact_decoder():
    x = (torch.randint(0, 256, (4, 3, 4, 5)) / 127.5 - 1).float()
    t = torch.zeros(4, dtype=torch.int64)
    net = Net()
    with torch.no_grad():
        for formulation in ("improved_ddpm", "exact"):
            process = make(formulation=formulation)
            out = process._vb_terms_bpd(net, x, x, t)
            mean = process.p_mean_variance(net, x, t)["mean"]
            nll = GF.discretized_gaussian_nll(x, mean, 0.5 * math.log(CLIPPED[0]), formulation=formulation)
            torch.testing.assert_close(out["output"], nll.flatten(1).mean(1) / math.log(2))


def test_one_time_step():
    process = gd.GaussianDiffusion(
        betas=[0.5],
        model_mean_type=ModelMeanType.START_X,
        model_var_type=ModelVarType.FIXED_LARGE,
        loss_type=LossType.KL,
    )
    x = process.p_sample_loop(lambda x, t: 0.5 * torch.ones_like(x), (2, 3, 4, 5), device="cpu")
    torch.testing.assert_close(x, torch.full((2, 3, 4, 5), 0.5))


def test_signatures():
    """Those of the original, from its documentation."""
    p_sample = ["model", "x", "t", "clip_denoised", "denoised_fn", "cond_fn", "model_kwargs"]
    loop = ["model", "shape", "noise", "clip_denoised", "denoised_fn", "cond_fn", "model_kwargs", "device"]
    loop.append("progress")
    expected = {
        "q_sample": ["x_start", "t", "noise"],
        "p_mean_variance": ["model", "x", "t", "clip_denoised", "denoised_fn", "model_kwargs"],
        "p_sample": p_sample,
        "ddim_sample": [*p_sample, "eta"],
        "ddim_reverse_sample": [n for n in p_sample if n != "cond_fn"] + ["eta"],
        "p_sample_loop": loop,
        "p_sample_loop_progressive": loop,
        "ddim_sample_loop": [*loop, "eta"],
        "ddim_sample_loop_progressive": [*loop, "eta"],
        "training_losses": ["model", "x_start", "t", "model_kwargs", "noise"],
        "calc_bpd_loop": ["model", "x_start", "clip_denoised", "model_kwargs"],
        "condition_mean": ["cond_fn", "p_mean_var", "x", "t", "model_kwargs"],
        "condition_score": ["cond_fn", "p_mean_var", "x", "t", "model_kwargs"],
    }
    for name, names in expected.items():
        parameters = inspect.signature(getattr(gd.GaussianDiffusion, name)).parameters
        given = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY and p.name != "self"]
        assert [p.name for p in given] == names


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: make("EPSILON"), ValueError, "model_mean_type: expected a member of ModelMeanType"),
        (lambda: make(var_type=ModelMeanType.EPSILON), ValueError, "model_var_type: expected a member"),
        (lambda: make(formulation="tanh"), ValueError, "formulation: expected one of"),
        (lambda: gd.GaussianDiffusion(**bad_betas([0.0, 0.1])), ValueError, "betas: expected"),
        (lambda: gd.GaussianDiffusion(**bad_betas([[0.1]])), ValueError, "betas: expected"),
        (lambda: gd.get_named_beta_schedule("sqrt", 10), NotImplementedError, "schedule_name: expected"),
        (lambda: gd.space_timesteps(10, [6, 4]), ValueError, "section_counts: expected at most 5"),
        (lambda: gd.space_timesteps(10, "ddim7"), ValueError, "section_counts: expected a count"),
        (
            lambda: make(var_type=ModelVarType.LEARNED).p_sample(Net(), *batch()),
            ValueError,
            r"model: expected an output of shape \(4, 6, 4, 5\), got \(4, 3, 4, 5\)",
        ),
        (
            lambda: make().p_sample(Net(), batch()[0], torch.tensor([1])),
            ValueError,
            r"t: expected shape \(4,\)",
        ),
        (
            lambda: make().p_sample(Net(), batch()[0], torch.tensor([0, 1, 2, T])),
            ValueError,
            r"t: expected values in \[0, 11\], got values from 0 to 12",
        ),
        (lambda: make().ddim_reverse_sample(Net(), *batch(), eta=0.1), ValueError, "eta: expected 0"),
        (lambda: make().p_sample_loop(Net(), 3), TypeError, "shape: expected a tuple"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def bad_betas(betas):
    return dict(
        betas=betas,
        model_mean_type=ModelMeanType.EPSILON,
        model_var_type=ModelVarType.FIXED_SMALL,
        loss_type=LossType.MSE,
    )
