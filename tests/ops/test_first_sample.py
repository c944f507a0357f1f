"""Noise counted from another sample than a batch's first: `gmfast._seed.first_sample`."""

import sys
import threading

import pytest
import torch
from ops.contracts import DTYPES, outputs

import gmfast.functional as GF
from gmfast import _library, _seed
from gmfast._seed import first_sample
from gmfast._table import COLUMNS


def levels(x):
    return ((x.double() * 32 + 128).round().clamp(0, 255)).to(x.dtype)


def mixture(params, channels, seed):
    return GF.discretized_logistic_mixture_sample(params, channels=channels, quantize=False, seed=seed)


def table(x):
    return torch.linspace(-1, 1, 5 * len(COLUMNS), dtype=torch.float64, device=x.device).view(5, -1)


def step(x, seed, **options):
    return GF.diffusion_step(x, x.cos(), table(x), step=3, seed=seed, **options)


def step_in_place(x, seed):
    x = x.clone()
    return step(x, seed, clip=0.5, out=x)


def steps_of_samples(x, seed):
    steps = (x.flatten(1)[:, 0] * 10).long().abs() % 5
    return GF.diffusion_step(x, x.cos(), table(x), step=steps, seed=seed, kept=True)


def standard_normal(x, seed):
    return GF.standard_normal(x.shape, seed=seed, dtype=x.dtype, device=x.device)


#: Functions of a batch `(B, 30, H, W)` and a seed.
CALLS = {
    "standard_normal": standard_normal,
    "q_sample": lambda x, seed: GF.q_sample(x, 0.8, 0.6, seed=seed, target="v"),
    "langevin_step": lambda x, seed: GF.langevin_step(x, x.cos(), step_size=0.1, seed=seed, draw=3),
    "diffusion_step": step,
    "diffusion_step, guided": lambda x, seed: step(x, seed, unconditional=x.sin(), guidance=2.0, x0=True),
    "diffusion_step, threshold": lambda x, seed: step(x, seed, threshold=0.9),
    "diffusion_step, in place": step_in_place,
    "diffusion_step, steps": steps_of_samples,
    "dequantize_logit": lambda x, seed: GF.dequantize_logit(levels(x), seed=seed),
    "dequantize_logit, uint8": lambda x, seed: GF.dequantize_logit(levels(x).byte(), seed=seed),
    "mixture, 1 channel": lambda x, seed: mixture(x, 1, seed),
    "mixture, 3 channels": lambda x, seed: mixture(x, 3, seed),
}
#: Those that take a seed for each sample.
OWN = [name for name in CALLS if not name.startswith(("dequantize", "mixture"))]

calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def batch(device, dtype=torch.float32, samples=5):
    x = torch.randn(samples, 30, 5, 7, generator=torch.Generator().manual_seed(0))
    return x.to(device, dtype)


def assert_continues(call, x, seed, first=2):
    """Within `first_sample`, the last samples get what they get in the whole batch, to the bit."""
    whole = outputs(lambda x: call(x, seed), [x])
    with first_sample(first):
        part = outputs(lambda x: call(x, seed), [x[first:]])
    for ours, expected in zip(part, whole, strict=True):
        assert torch.equal(ours, expected[first:])
    begin = outputs(lambda x: call(x, seed), [x[first:]])
    assert not torch.equal(begin[0], part[0])  # the first samples have noise of their own


@calls
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_part_of_a_batch(device, call, dtype):
    for seed in (7, torch.tensor(-5, device=device)):
        assert_continues(call, batch(device, dtype), seed)


@calls
def test_a_part_of_a_batch_with_channels_innermost(device, call):
    assert_continues(call, batch(device).to(memory_format=torch.channels_last), 7)


@calls
def test_a_part_of_a_batch_without_the_library(monkeypatch, call):
    monkeypatch.setattr(_library, "devices", frozenset())
    monkeypatch.setattr(sys.modules["gmfast.ops.standard_normal"], "devices", frozenset())
    assert_continues(call, batch("cpu"), torch.tensor(7))


@calls
def test_the_last_sample_there_is(device, call):
    x, last = batch(device, samples=1), 2**32 - 1
    with first_sample(last - 1):
        pair = outputs(lambda x: call(x, 7), [x.expand(2, -1, -1, -1)])
    with first_sample(last):
        alone = outputs(lambda x: call(x, 7), [x])
    for ours, expected in zip(alone, pair, strict=True):
        assert torch.equal(ours, expected[1:])


@pytest.mark.parametrize("name", OWN)
def test_seeds_of_samples_are_untouched(device, name):
    x, seeds = batch(device), torch.tensor([7, -5, 7, 0, 2**62], device=device)
    expected = outputs(lambda x: CALLS[name](x, seeds), [x])
    with first_sample(2):
        for ours, untouched in zip(outputs(lambda x: CALLS[name](x, seeds), [x]), expected, strict=True):
            assert torch.equal(ours, untouched)


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_take_the_noise_of_the_call(device, order):
    """Wherever they are computed."""

    def gradients(x, first):
        leaf = x.clone().requires_grad_()
        sigma = torch.full((len(x),), 0.5, device=device, requires_grad=True)
        with first_sample(first):
            y, log_det = GF.dequantize_logit(leaf, seed=7)
            noised = GF.q_sample(leaf, 0.5, sigma, seed=7)
            moved = GF.langevin_step(leaf, leaf.sin(), step_size=0.1, seed=7)
            stepped = step(leaf, 7)
        total = y.square().sum() + log_det.square().sum() + noised.square().sum()
        total = total + moved.square().sum() + stepped.square().sum()
        results = torch.autograd.grad(total, [leaf, sigma], create_graph=order == 2)
        if order == 2:
            results = torch.autograd.grad(sum(r.square().sum() for r in results), [leaf, sigma])
        return results

    x = levels(batch(device))
    for ours, expected in zip(gradients(x[2:], 2), gradients(x, 0), strict=True):
        torch.testing.assert_close(ours, expected[2:], rtol=1e-6, atol=1e-6)


@calls
def test_torch_compile(device, call):
    torch._dynamo.reset()
    compiled, x = torch.compile(call, fullgraph=True, backend="aot_eager"), batch(device)
    for first in (0, 2, 100):
        with first_sample(first):
            for ours, expected in zip(
                outputs(lambda x: compiled(x, 7), [x]), outputs(lambda x: call(x, 7), [x]), strict=True
            ):
                torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_torch_compile_of_the_context_itself(device):
    def part(x):
        with first_sample(2):
            y = GF.q_sample(x, 0.8, 0.6, seed=7)
        return y, GF.q_sample(x, 0.8, 0.6, seed=7)

    torch._dynamo.reset()
    compiled, x = torch.compile(part, fullgraph=True, backend="aot_eager"), batch(device)
    for ours, expected in zip(compiled(x), part(x), strict=True):
        assert torch.equal(ours, expected)
    assert _seed.first() == 0


def test_torch_export(device):
    class Noised(torch.nn.Module):
        def forward(self, x):
            return GF.q_sample(x, 0.8, 0.6, seed=7)

    x = batch(device)
    with first_sample(2):
        exported, expected = torch.export.export(Noised(), (x,)).module(), Noised()(x)
    assert torch.equal(exported(x), expected)


def test_opcheck(device):
    x, seed = batch(device, samples=2), torch.tensor(7, device=device)
    ops, drawn = torch.ops.gmfast, (x, None, None, None, seed)
    for op, arguments in (
        (ops.standard_normal, (seed, [2, 9], torch.float32, 3)),
        (ops.q_sample, (*drawn, 0.8, 0.6, 2, 3)),
        (ops.langevin_step, (x, x, None, seed, None, 0.1, False, 1.0, 1.0, 2, True, 3)),
        (ops.diffusion_step, (x, x, table(x), [], 32, 1, None, 7, 1.0, 0.0, None, None, 3)),
        (ops.dequantize_logit, (x, None, seed, 256, 0.05, False, True, 3)),
        (ops.discretized_logistic_mixture_sample, (x, seed, 3, 256, -7.0, 1.0, True, 3)),
    ):
        torch.library.opcheck(op.default, arguments)


def test_the_innermost_context_counts():
    assert _seed.first() == 0
    with first_sample(3):
        with first_sample(5):
            assert _seed.first() == 5
        with first_sample(0):
            assert _seed.first() == 0
        assert _seed.first() == 3
        with pytest.raises(KeyError), first_sample(4):
            raise KeyError
        assert _seed.first() == 3
        seen = []
        other = threading.Thread(target=lambda: seen.append(_seed.first()))
        other.start()
        other.join()
        assert seen == [0]
    assert _seed.first() == 0


@pytest.mark.parametrize(
    ("first", "error", "message"),
    [
        (-1, ValueError, r"first: expected an int from 0 to 2\*\*32 - 1, got -1"),
        (2**32, ValueError, r"first: expected an int from 0 to 2\*\*32 - 1, got 4294967296"),
        (1.5, TypeError, "first: expected an int"),
    ],
)
def test_bad_arguments(first, error, message):
    with pytest.raises(error, match=message), first_sample(first):
        pass
    with pytest.raises(RuntimeError, match=r"first: expected 0 to 2\*\*32 - 1"):
        torch.ops.gmfast.standard_normal(torch.tensor(1), [2, 9], torch.float32, -1)
