"""k-diffusion's names beside the original where it is installed, and beside exact solutions."""

import inspect
import math
import sys

import pytest
import torch
from diffusion import test_peer_schedulers
from diffusion.gaussians import Mixture
from torch.utils._python_dispatch import TorchDispatchMode

import gmfast.functional as GF
from gmfast import diffusion
from gmfast.integrations import k_diffusion as ours

k_diffusion = test_peer_schedulers.k_diffusion
TWO = Mixture([-1.0, 0.5], 0.4)
CHURN = dict(s_churn=5.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.1)

#: (function, options): all of theirs.
CASES = [
    ("sample_euler", {}),
    ("sample_euler", CHURN),
    ("sample_euler", dict(s_churn=1e9)),
    ("sample_euler", dict(s_churn=3.0, s_noise=0.0)),
    ("sample_euler_ancestral", {}),
    ("sample_euler_ancestral", dict(eta=0.5, s_noise=0.9)),
    ("sample_euler_ancestral", dict(eta=0.0)),
    ("sample_heun", {}),
    ("sample_heun", CHURN),
    ("sample_lms", {}),
    ("sample_lms", dict(order=1)),
    ("sample_lms", dict(order=3)),
    ("sample_lms", dict(order=5)),
    ("sample_dpmpp_2m", {}),
    ("sample_dpmpp_2m_sde", {}),
    ("sample_dpmpp_2m_sde", dict(eta=0.6, solver_type="heun", s_noise=0.9)),
    ("sample_dpmpp_2m_sde", dict(eta=0.0)),
    ("sample_dpmpp_3m_sde", {}),
    ("sample_dpmpp_3m_sde", dict(eta=0.4, s_noise=0.9)),
    ("sample_dpmpp_3m_sde", dict(eta=0.0)),
    ("sample_dpm_2", {}),
    ("sample_dpm_2", CHURN),
    ("sample_dpm_2_ancestral", {}),
    ("sample_dpm_2_ancestral", dict(eta=0.5, s_noise=0.9)),
    ("sample_dpmpp_2s_ancestral", {}),
    ("sample_dpmpp_2s_ancestral", dict(eta=0.5, s_noise=0.9)),
    ("sample_dpmpp_sde", {}),
    ("sample_dpmpp_sde", dict(eta=0.6, s_noise=0.9, r=0.3)),
    ("sample_dpmpp_sde", dict(eta=0.0)),
    ("sample_dpm_fast", dict(n=12)),
    ("sample_dpm_fast", dict(n=13, eta=0.7, s_noise=0.9)),
    ("sample_dpm_fast", dict(n=2)),
    ("sample_dpm_adaptive", {}),
    ("sample_dpm_adaptive", dict(order=2, eta=0.7, rtol=0.2, pcoeff=0.1, dcoeff=0.05)),
]
cases = pytest.mark.parametrize("name, options", CASES, ids=[f"{n[7:]} {o}" for n, o in CASES])


def denoise(x, sigma):
    """Exact to the rounding of x, whatever its dtype."""
    shape = [-1] + [1] * (x.dim() - 1)
    sigma = sigma.double().reshape(shape)
    return TWO.mean_of_data(x.double(), torch.ones_like(sigma), sigma).to(x.dtype)


@pytest.fixture
def default_dtype():
    """Put back the default dtype that a test sets."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def start(dtype=torch.float32, shape=(3, 2, 5)):
    return (80 * torch.randn(shape, dtype=torch.float64)).to(dtype)


def sigmas(n=12, dtype=torch.float32):
    return torch.tensor(diffusion.Karras(0.03, 80.0).times(n), dtype=dtype)


def call(module, name, model, x, path, *more, **options):
    """Call a sampler, those of a path in λ with the ends of `path`."""
    if name in ("sample_dpm_fast", "sample_dpm_adaptive"):
        last = path[path > 0][-1].item()
        more = (options.pop("n"), *more) if "n" in options else more
        return getattr(module, name)(model, x, last, path[0].item(), *more, **options)
    return getattr(module, name)(model, x, path, *more, **options)


def largest(x):
    return x.abs().max().item()


@pytest.mark.peers
@cases
@pytest.mark.parametrize("noise", ["given", "global"])
def test_results_callbacks_and_generator_are_theirs(k_diffusion, name, options, noise, default_dtype):
    if name in ("sample_dpm_fast", "sample_dpm_adaptive"):  # theirs round λ to the default dtype
        torch.set_default_dtype(torch.float64)
    if noise == "given" and "noise_sampler" in inspect.signature(getattr(ours, name)).parameters:
        kept = iter(torch.randn(99, 3, 2, 5))
        options = dict(options, noise_sampler=lambda sigma, to: next(kept) * (sigma > to))
    x, results = start(torch.get_default_dtype()), []
    for module in (k_diffusion, ours):
        seen, told = [], []

        def model(x, sigma, scale, told=told):
            told.append(sigma)
            return denoise(x, sigma) * scale

        torch.manual_seed(1)
        if noise == "given":
            kept = iter(torch.randn(99, 3, 2, 5))
        given = x.clone()
        result = call(
            module,
            name,
            model,
            given,
            sigmas(),
            {"scale": 0.97},
            callback=seen.append,
            disable=True,
            **options,
        )
        assert torch.equal(given, x)
        results.append((result, seen, told, torch.get_rng_state()))
    (theirs, their_seen, their_told, their_state), (result, seen, told, state) = results
    torch.testing.assert_close(result, theirs, rtol=1e-5, atol=1e-5 * largest(theirs))
    assert torch.equal(state, their_state)
    assert [list(s) for s in seen] == [list(s) for s in their_seen]
    for mine, their in zip(seen, their_seen, strict=True):
        for key in ("x", "denoised"):
            torch.testing.assert_close(mine[key], their[key], rtol=1e-5, atol=1e-5 * largest(their[key]))
        exact = 1e-9 if name == "sample_dpm_adaptive" else 0  # whose step sizes are by errors
        for key in mine.keys() - {"x", "denoised"}:
            assert float(mine[key]) == pytest.approx(float(their[key]), rel=exact, abs=exact), key
    for mine, their in zip(told, their_told, strict=True):
        torch.testing.assert_close(mine, their, rtol=exact, atol=0)


@pytest.mark.peers
@cases
@pytest.mark.parametrize("of_sigmas", [torch.float32, None], ids=["float32 sigmas", "sigmas of x's dtype"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_err_no_more_than_theirs(k_diffusion, name, options, dtype, of_sigmas, monkeypatch):
    """And end up in the same dtype: where theirs take slopes, that of the sigmas if it is wider. Both tell
    the model sigmas of the dtype of x, which is no error of a step."""
    if name == "sample_dpm_adaptive":
        pytest.skip("its steps are by errors of either's rounding")
    if name == "sample_lms" and of_sigmas is None and dtype == torch.bfloat16:
        pytest.skip("theirs needs sigmas that NumPy knows")
    x = start(dtype, (64, 16))
    noises = torch.randn(99, 64, 16).to(dtype)
    path = sigmas().to(of_sigmas or dtype)

    def model(x, sigma):
        return denoise(x, sigma.to(dtype))

    def run(module, dtype, path=path):
        drawn = iter(noises.to(dtype))
        if "noise_sampler" in inspect.signature(getattr(ours, name)).parameters:
            extra = dict(noise_sampler=lambda *_: next(drawn))
        else:
            extra = {}
            for place, function in ((torch, "randn_like"), (ours, "torch_normal_like")):
                monkeypatch.setattr(place, function, lambda x: next(drawn).to(x.dtype))
        result = call(module, name, model, x.to(dtype), path, disable=True, **options, **extra)
        monkeypatch.undo()
        return result

    exact = run(k_diffusion, torch.float64, path.double())
    mine, theirs = run(ours, dtype), run(k_diffusion, dtype)
    assert mine.dtype == theirs.dtype
    mine, theirs = ((result - exact).square().mean().sqrt() for result in (mine, theirs))
    assert mine <= 1.05 * theirs


@pytest.mark.peers
@pytest.mark.parametrize("name, options", [("sample_heun", CHURN), ("sample_euler_ancestral", {})])
def test_noise_of_halves_is_theirs(k_diffusion, name, options):
    """Drawn in the dtype that x has at that step."""
    results = []
    for module in (ours, k_diffusion):
        torch.manual_seed(1)
        x = getattr(module, name)(denoise, start(torch.float16), sigmas(), disable=True, **options)
        results.append((x, torch.get_rng_state()))
    (mine, state), (theirs, their_state) = results
    assert torch.equal(state, their_state)
    torch.testing.assert_close(mine, theirs, rtol=0.01, atol=0.01)


@pytest.mark.peers
@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
@pytest.mark.parametrize("edited", ["x", "denoised"])
def test_edits_of_a_callback_have_the_effect_of_theirs(k_diffusion, name, edited, default_dtype):
    torch.set_default_dtype(torch.float64)
    extra = dict(n=8) if name == "sample_dpm_fast" else {}
    if "ancestral" in name or "sde" in name:
        extra["noise_sampler"] = lambda sigma, to: torch.full((3, 2, 5), 0.3)
    x, results = start(torch.float64), []
    for module in (k_diffusion, ours):
        path = sigmas(6, torch.float64)
        result = call(
            module,
            name,
            denoise,
            x.clone(),
            path,
            callback=lambda info: info[edited].mul_(0.9).add_(0.1),
            disable=True,
            **extra,
        )
        results.append(result)
    tolerance = 1e-5 if name == "sample_lms" else 1e-9  # theirs integrates to 1e-4 of a coefficient
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sampler, expected", [("euler", 5.5), ("lms", 5.5), ("heun", 2.5), ("dpm_2", 2.5)])
def test_a_slope_is_taken_before_the_callback(sampler, expected):
    """By hand: x becomes 10 and the slope stays that of 8, which is 1.5.

    Heun: x = 5.5 at sigma 1, where the slope is 3.5, so 10 - 3·(1.5 + 3.5)/2; DPM-Solver-2: x = 7 at sigma 2,
    where it is 2.5, so 10 - 3·2.5.
    """
    path, x = torch.tensor([4.0, 1.0]), torch.tensor([[8.0]])
    function = getattr(ours, f"sample_{sampler}")
    edit = lambda info: info["x"].fill_(10.0)  # noqa: E731
    result = function(lambda x, s: 0 * x + 2, x.clone(), path, callback=edit, disable=True)
    assert result.item() == pytest.approx(expected)


@pytest.mark.peers
def test_log_likelihood_is_theirs_and_that_of_gaussian_data(k_diffusion):
    x = 0.3 + 0.6 * torch.randn(5, 4, dtype=torch.float64)
    results = []
    for module in (k_diffusion, ours):
        torch.manual_seed(3)
        results.append(module.log_likelihood(exact_denoiser, x, 0.01, 80.0))
    (theirs, their_info), (mine, info) = results
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert info == their_info
    data = torch.distributions.Normal(0.3, math.sqrt(0.36 + 1e-4))
    torch.testing.assert_close(mine, data.log_prob(x).sum(1), rtol=0, atol=0.02)


@pytest.mark.peers
def test_a_brownian_tree_of_theirs_is_a_noise_sampler(k_diffusion):
    x, results = start(), []
    for module, tree in ((k_diffusion, k_diffusion), (ours, k_diffusion), (ours, ours)):
        noise = tree.BrownianTreeNoiseSampler(x, 0.03, 80.0, seed=3)
        results.append(module.sample_dpmpp_sde(denoise, x, sigmas(), noise_sampler=noise, disable=True))
    for mine in results[1:]:
        torch.testing.assert_close(mine, results[0], rtol=1e-5, atol=1e-5 * largest(results[0]))


@pytest.mark.peers
def test_signatures_are_theirs(k_diffusion):
    names = {name for name, _ in CASES} | {f"get_sigmas_{n}" for n in SCHEDULES} | {"log_likelihood"}
    assert names >= {name for name in vars(k_diffusion) if name.startswith(("sample_", "get_sigmas_"))}
    for name in names:
        theirs = inspect.signature(getattr(k_diffusion, name)).parameters
        mine = list(inspect.signature(getattr(ours, name)).parameters.values())
        assert [(p.name, p.default) for p in mine[: len(theirs)]] == [
            (p.name, p.default) for p in theirs.values()
        ]
        assert all(p.kind is p.KEYWORD_ONLY for p in mine[len(theirs) :])


SCHEDULES = {
    "karras": [(0.03, 14.6), (0.1, 10.0, 5.0)],
    "exponential": [(0.03, 14.6)],
    "polyexponential": [(0.03, 14.6), (0.03, 14.6, 1.7)],
    "vp": [(), (15.0, 0.2, 1e-4)],
}


@pytest.mark.peers
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_theirs(k_diffusion, name):
    for arguments in SCHEDULES[name]:
        for n in (1, 2, 17):
            mine, theirs = (
                getattr(module, f"get_sigmas_{name}")(n, *arguments) for module in (ours, k_diffusion)
            )
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name, arguments", [(n, a) for n, cases in SCHEDULES.items() for a in cases])
def test_schedules_are_what_they_say(name, arguments):
    """What is said to be equally spaced is."""
    values = getattr(ours, f"get_sigmas_{name}")(9, *arguments).double()
    assert values[-1] == 0 and values.shape == (10,)
    even = {
        "karras": lambda s: s ** (1 / (arguments[2] if len(arguments) > 2 else 7.0)),
        "exponential": lambda s: s.log(),
        "polyexponential": lambda s: (
            ((s / s[-1]).log() / (s[0] / s[-1]).log()).clamp(min=0)
            ** (1 / (arguments[2] if len(arguments) > 2 else 1.0))
        ),
        "vp": lambda s: _vp_time((1 + s**2).log(), *(arguments[:2] or (19.9, 0.1))),
    }[name](values[:-1])
    assert even.diff().max() < 0
    torch.testing.assert_close(even.diff(), even.diff().mean().expand(8), rtol=2e-5, atol=2e-6)
    if name != "vp":
        torch.testing.assert_close(values[[0, -2]].tolist(), [arguments[1], arguments[0]], rtol=1e-6, atol=0)


def _vp_time(log, d, low):
    """t of ln(1 + sigma²) = d·t²/2 + low·t."""
    return (-low + (low**2 + 2 * d * log).sqrt()) / d


ONE = Mixture([0.3], 0.6)


def exact_denoiser(x, sigma):
    sigma = sigma.reshape(-1, 1).to(x.dtype)
    return ONE.mean_of_data(x, torch.ones_like(sigma), sigma)


@pytest.mark.parametrize(
    "name, options, error",
    [
        ("sample_euler", {}, 0.02),
        ("sample_euler_ancestral", dict(eta=0.0), 0.02),
        ("sample_heun", {}, 1e-3),
        ("sample_lms", {}, 2e-4),
        ("sample_dpmpp_2m", {}, 1e-3),
        ("sample_dpmpp_2m_sde", dict(eta=0.0), 1e-3),
        ("sample_dpmpp_3m_sde", dict(eta=0.0), 1e-3),
        ("sample_dpm_2", {}, 1e-3),
        ("sample_dpm_2_ancestral", dict(eta=0.0), 1e-3),
        ("sample_dpmpp_2s_ancestral", dict(eta=0.0), 1e-3),
        ("sample_dpmpp_sde", dict(eta=0.0, seed=0), 1e-3),
        ("sample_dpm_fast", dict(n=101), 1e-3),
        ("sample_dpm_adaptive", dict(rtol=1e-3, atol=1e-4), 5e-3),
    ],
)
def test_the_flow_of_gaussian_data_is_known(name, options, error):
    path = torch.logspace(math.log10(20.0), -2, 101, dtype=torch.float64)
    x = 20 * torch.randn(7, 2, dtype=torch.float64)
    result = call(ours, name, exact_denoiser, x, path, disable=True, **options)
    stretch = math.sqrt((0.6**2 + 0.01**2) / (0.6**2 + 20.0**2))
    torch.testing.assert_close(result, 0.3 + (x - 0.3) * stretch, rtol=error, atol=error)


@pytest.mark.parametrize(
    "name, options",
    [
        ("sample_euler", dict(s_churn=30.0, s_tmin=0.05, s_tmax=20.0)),
        ("sample_euler_ancestral", {}),
        ("sample_heun", dict(s_churn=30.0)),
        ("sample_dpmpp_2m_sde", {}),
        ("sample_dpmpp_2m_sde", dict(solver_type="heun", eta=0.7)),
        ("sample_dpmpp_3m_sde", {}),
        ("sample_dpm_2", dict(s_churn=30.0)),
        ("sample_dpm_2_ancestral", {}),
        ("sample_dpmpp_2s_ancestral", {}),
        ("sample_dpmpp_sde", {}),
        ("sample_dpm_fast", dict(n=100, eta=1.0)),
    ],
)
def test_samples_of_seeds_have_the_law_of_the_data(name, options):
    def draw(batch, seed):
        x = 80 * GF.standard_normal((batch, 2), seed=seed)
        return call(ours, name, exact_denoiser, x, sigmas(200), disable=True, seed=seed, **options)

    state = torch.get_rng_state()
    x = draw(3000, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert x.mean().item() == pytest.approx(0.3, abs=4.5 * 0.6 / 77 + 0.003)
    assert x.std().item() == pytest.approx(0.6, rel=4.5 / 109 + 0.015)
    assert torch.equal(draw(4, 5), x[:4])
    each = torch.cat([draw(1, seed) for seed in (5, 6)])
    both = 80 * torch.cat([GF.standard_normal((1, 2), seed=seed) for seed in (5, 6)])
    both = call(ours, name, exact_denoiser, both, sigmas(200), disable=True, seed=[5, 6], **options)
    assert torch.equal(both, each)


def test_the_first_churn_is_not_the_noise_of_the_start():
    """Of the same seed."""
    seen = []
    ours.sample_euler(
        lambda x, sigma: x,
        torch.zeros(1, 1000),
        torch.tensor([1.0, 0.0]),
        s_churn=1.0,
        seed=3,
        disable=True,
        callback=seen.append,
    )
    added = seen[0]["x"]
    assert added.square().mean().item() == pytest.approx(1.0, rel=0.2)  # sigma_hat² - 1 of gamma = √2 - 1
    together = torch.corrcoef(torch.cat([added, GF.standard_normal((1, 1000), seed=3)]))[0, 1]
    assert abs(together.item()) < 0.15


class Reads(TorchDispatchMode):
    """How often the host waits for a number."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in str(function)
        return function(*args, **(kwargs or {}))


@cases
def test_no_step_waits_for_a_number(name, options):
    if name == "sample_dpm_adaptive":
        pytest.skip("its step sizes are by numbers")
    fixed = torch.randn(3, 2, 5)
    if "sde" in name or "ancestral" in name:
        options = dict(options, noise_sampler=lambda sigma, to: fixed)
    counts = []
    for n in (6, 18):
        options = dict(options, n=n) if "n" in options else options
        with Reads() as reads:
            call(ours, name, lambda x, sigma: fixed, start(), sigmas(n), disable=True, **options)
        counts.append(reads.count)
    assert counts[0] == counts[1]


def test_dtypes_of_model_and_noise():
    """Those of x, or wider: as of the sums that the original writes."""
    x = start(torch.float16)
    wide = ours.sample_dpmpp_2m(lambda x, s: denoise(x.float(), s), x, sigmas(), disable=True)
    assert wide.dtype == torch.float32
    narrow = ours.sample_dpmpp_2m(lambda x, s: denoise(x, s).half(), start(), sigmas(), disable=True)
    assert narrow.dtype == torch.float32
    noise = torch.randn(1, 2, 5)  # one for all samples
    result = ours.sample_euler_ancestral(
        denoise, start(), sigmas(), disable=True, noise_sampler=lambda *_: noise
    )
    assert result.shape == (3, 2, 5)


def test_rising_and_short_sigmas():
    """Backwards the flow leads from data to noise; no step leaves x as it is."""
    path = torch.logspace(-2, math.log10(20.0), 101, dtype=torch.float64)
    x = 0.3 + 0.6 * torch.randn(7, 2, dtype=torch.float64)
    there = ours.sample_dpmpp_2m(exact_denoiser, x, path, disable=True)
    back = ours.sample_dpmpp_2m(exact_denoiser, there, path.flip(0), disable=True)
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)
    assert 15 < there.std() < 60
    for name in ("sample_euler", "sample_heun", "sample_lms", "sample_dpmpp_2m"):
        assert torch.equal(getattr(ours, name)(denoise, x, torch.tensor([2.0]), disable=True), x)
    one = ours.sample_dpmpp_3m_sde(exact_denoiser, x, torch.tensor([2.0, 0.0]), disable=True)
    torch.testing.assert_close(one, exact_denoiser(x, torch.tensor([2.0])))
    assert ours.sample_heun(denoise, x[:0], sigmas(), disable=True).shape == (0, 2)


def test_adaptive_steps_of_a_seed():
    """Noise of a seed is the same again, differs by the attempt, and gives the law of the data."""
    x = 80 * GF.standard_normal((3000, 2), seed=5)
    options = dict(eta=1.0, rtol=0.02, seed=5, disable=True, return_info=True)
    one, info = ours.sample_dpm_adaptive(exact_denoiser, x, 0.03, 80.0, **options)
    assert torch.equal(one, ours.sample_dpm_adaptive(exact_denoiser, x, 0.03, 80.0, **options)[0])
    assert info["steps"] == info["n_accept"] + info["n_reject"] and info["nfe"] == 3 * info["steps"]
    assert one.std().item() == pytest.approx(math.hypot(0.6, 0.03), rel=4.5 / 109 + 0.015)
    for names in (dict(eta=1.0), dict(noise_sampler=lambda sigma, to: x, seed=0)):
        with pytest.raises(ValueError, match=r"eta: expected 0|seed: expected None"):
            ours.sample_dpm_adaptive(exact_denoiser, x, 80.0, 0.03, disable=True, **names)
    back = ours.sample_dpm_adaptive(exact_denoiser, one.double(), 80.0, 0.03, disable=True, rtol=1e-3)
    assert 60 < back.std() < 100


@pytest.mark.peers
def test_brownian_tree_is_theirs(k_diffusion):
    x = start()
    for options in (dict(seed=4), dict(seed=[4, 5, 6]), dict(seed=4, transform=lambda s: -s.log()), {}):
        torch.manual_seed(2)
        theirs = k_diffusion.BrownianTreeNoiseSampler(x, 0.03, 80.0, **options)
        torch.manual_seed(2)
        mine = ours.BrownianTreeNoiseSampler(x, 0.03, 80.0, **options)
        for sigma, to in ((80.0, 3.0), (3.0, 0.1), (0.1, 0.5)):
            assert torch.equal(mine(sigma, to), theirs(sigma, to))


def test_without_torchsde(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsde", None)
    with pytest.raises(RuntimeError, match="torchsde: expected it to be installed"):
        ours.sample_dpmpp_2m_sde(denoise, start(), sigmas(), disable=True)
    x = start()
    expected = ours.sample_dpmpp_2m(denoise, x, sigmas(), disable=True)
    for result in (
        ours.sample_dpmpp_2m_sde(denoise, x, sigmas(), disable=True, eta=0.0),
        ours.sample_dpmpp_2m_sde(denoise, x, sigmas(), disable=True, s_noise=0.0, eta=0.0, seed=1),
    ):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda x, s: ours.sample_euler(denoise, x, [1.0, 0.0]),
            TypeError,
            "sigmas: expected a torch",
        ),
        (lambda x, s: ours.sample_euler(denoise, x, s.flip(0)), ValueError, "sigmas: expected positive"),
        (lambda x, s: ours.sample_euler(denoise, x, s[None]), ValueError, "sigmas: expected shape"),
        (lambda x, s: ours.sample_euler(denoise, x.long(), s), TypeError, "x: expected float32"),
        (
            lambda x, s: ours.sample_lms(denoise, x, s, order=6),
            ValueError,
            "order: expected one of 1, 2, .* got 6",
        ),
        (
            lambda x, s: ours.sample_lms(denoise, x, s[[0, 0, 1]]),
            ValueError,
            "sigmas: expected each",
        ),
        (
            lambda x, s: ours.sample_dpmpp_2m_sde(denoise, x, s, solver_type="euler"),
            ValueError,
            "solver_type: expected one of 'heun', 'midpoint', got 'euler'",
        ),
        (
            lambda x, s: ours.sample_dpmpp_3m_sde(denoise, x, s[:-1].flip(0), seed=0),
            ValueError,
            "sigmas: expected falling",
        ),
        (
            lambda x, s: ours.sample_euler_ancestral(denoise, x, s, noise_sampler=print, seed=0),
            ValueError,
            "seed: expected None",
        ),
        (lambda x, s: ours.sample_heun(lambda x, s: x[:1], x, s), ValueError, "model_output: expected shape"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(start(), sigmas())


def test_what_is_not_there_is_named():
    with pytest.raises(AttributeError, match="sample_dpm_3 is not among those that gmfast has"):
        ours.sample_dpm_3  # noqa: B018


def test_a_bar_is_shown_unless_disabled(capsys):
    pytest.importorskip("tqdm")
    for disable in (True, False):
        ours.sample_euler(denoise, start(), sigmas(5), disable=disable)
        assert ("5/5" in capsys.readouterr().err) is not disable
