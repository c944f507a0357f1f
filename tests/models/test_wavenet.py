import copy
import itertools
import math
import os
import signal
import threading

import pytest
import torch

from gmfast import decode
from gmfast.models import WaveNet


def small(**options):
    """A model of some hundred weights in float64."""
    torch.manual_seed(0)
    options = {
        "length": 24,
        "num_cycles": 2,
        "layers_per_cycle": 2,
        "residual_channels": 4,
        "skip_channels": 6,
        "nr_logistic_mix": 2,
        "num_levels": 9,
    } | options
    return WaveNet(**options).double()


def sounds(model, n, length=24, seed=1):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(model.num_levels, (n, 1, length), generator=generator)
    return levels.double() * (2 / (model.num_levels - 1)) - 1


def conditions(n, length=24):
    return torch.arange(n) % 3, torch.randn(n, 5, length, dtype=torch.double)


CONDITIONED = {"num_labels": 3, "local_channels": 5}


def test_parameter_count_of_the_published_form():
    r, s, layers = 64, 256, 30
    conv, skip, residual = 2 * r * 2 * r + 2 * r, r * s + s, r * r + r
    expected = (2 * r + r) + layers * (conv + skip) + (layers - 1) * residual + (s * s + s) + (s * 256 + 256)
    with torch.device("meta"):
        model = WaveNet()
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model.receptive_field == 3 * 1023 + 2


@pytest.mark.parametrize(
    ("options", "field"), [({}, 1 + 1 + 6), ({"kernel_size": 3}, 1 + 2 + 12), ({"num_cycles": 1}, 1 + 1 + 3)]
)
def test_parameters_depend_on_the_receptive_field_and_on_nothing_else(options, field):
    model = small(**options)
    assert model.receptive_field == field
    x = sounds(model, 1).requires_grad_()
    params = model(x)
    weights = torch.randn(params.shape[1], dtype=torch.double)
    for t in range(24):
        (grad,) = torch.autograd.grad((params[0, :, t] * weights).sum(), x, retain_graph=True)
        matters = grad[0, 0] != 0
        expected = torch.zeros(24, dtype=torch.bool)
        expected[max(0, t - field) : t] = True
        assert torch.equal(matters, expected), f"{t} sees {matters.nonzero().flatten().tolist()}"


def test_conditions_matter_everywhere_and_local_ones_not_before_their_time():
    model = small(**CONDITIONED)
    label, local = conditions(2)
    local.requires_grad_()
    params = model(sounds(model, 2), label, local)
    for t in (0, 1, 9, 23):
        (grad,) = torch.autograd.grad(params[0, :, t].square().sum(), local, retain_graph=True)
        first = max(0, t - (2 + 1 + 2))  # features enter after the first layer's taps, and pass the others'
        assert (grad[0, :, first : t + 1] != 0).all()
        assert (grad[0, :, :first] == 0).all() and (grad[0, :, t + 1 :] == 0).all() and (grad[1] == 0).all()
    embeddings = [layer.label.weight for layer in model.layers]
    for grad in torch.autograd.grad(params[1, :, 0].square().sum(), embeddings):
        assert (grad[1] != 0).any() and (grad[[0, 2]] == 0).all()


@pytest.mark.parametrize("head", ["categorical", "mixture"])
def test_probabilities_of_all_sounds_sum_to_one(head):
    model = small(head=head, num_levels=4)
    x = torch.tensor(list(itertools.product(torch.linspace(-1, 1, 4).double(), repeat=6))).unsqueeze(1)
    log_prob = model.log_prob(x.double())
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert log_prob.std() > 0.1


@pytest.mark.parametrize("options", [{}, {"head": "mixture"}, CONDITIONED])
def test_log_prob_is_the_sum_of_the_conditionals(options):
    """Each conditional from a pass in which the future is noise, and for a softmax written out."""
    model = small(**options)
    x = sounds(model, 3)
    given = conditions(3) if options is CONDITIONED else ()
    total = torch.zeros(3, dtype=torch.double)
    with torch.no_grad():
        for t in range(24):
            past = x.clone()
            past[:, :, t:] = torch.rand(3, 1, 24 - t).double() * 2 - 1
            params = model(past, *given)[:, :, t]
            if options.get("head") == "mixture":
                total -= model.head.nll(x[:, :, t], params)
            else:
                level = ((x[:, 0, t] + 1) * 4).round().long()
                total += params.log_softmax(1)[torch.arange(3), level]
        assert torch.allclose(model.log_prob(x, *given), total, rtol=1e-10)
        bits = -total.sum() / (x.numel() * math.log(2))
        assert model.loss(x, *given).item() == pytest.approx(bits.item(), rel=1e-10)


@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "head": "mixture"}, CONDITIONED])
def test_sample_by_sample_is_the_full_pass(options):
    """By a decode program."""
    model = small(**options)
    x = sounds(model, 3)
    label, local = conditions(3) if options is CONDITIONED else (None, None)
    program = decode.compile(model).start(3, label)
    steps = [
        program.step(x[:, :, t - 1] if t else None, None if local is None else local[:, :, t])
        for t in range(24)
    ]
    assert torch.allclose(torch.stack(steps, 2), model(x, label, local), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "head": "mixture"}, CONDITIONED])
@pytest.mark.parametrize("completing", [False, True])
def test_cached_samples_are_the_naive_ones(options, completing):
    model = small(**options)
    label, local = conditions(3) if options is CONDITIONED else (None, None)
    request = {"given": sounds(model, 3), "mask": torch.rand(3, 1, 24) < 0.4} if completing else {}
    cached, naive = (
        model.sample(3, seed=7, label=label, local=local, method=method, **request)
        for method in ("cached", "naive")
    )
    assert cached.unique().numel() > 4 and (cached - naive).abs().max() < 1e-9


def test_weights_in_bfloat16_are_those_of_a_rounded_model():
    model = small().float()
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.bfloat16().float()
    x = model.sample(8, seed=5, length=1000, weights="bfloat16")
    assert torch.equal(x, rounded.sample(8, seed=5, length=1000))
    assert not torch.equal(x, model.sample(8, seed=5, length=1000))


def test_ctrl_c_ends_sampling_and_leaves_the_model_as_it_was():
    model = small().float().train()
    began = threading.Event()

    def interrupt():
        began.wait()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        model.sample(1, seed=1, length=10**7, progress=lambda *_: began.set())
    thread.join()
    assert model.training and model.sample(1, seed=1).shape == (1, 1, 24)


@pytest.mark.parametrize("options", [{}, {"head": "mixture"}, CONDITIONED])
def test_samples_follow_the_conditionals(options):
    """Drawing from the conditionals of a finished sound, with the same noise, gives the sound: so the window
    that sampling passes over loses nothing, and each position has its own noise."""
    model = small(**options)
    label, local = conditions(3) if options is CONDITIONED else (None, None)
    x = model.sample(3, seed=5, label=label, local=local)
    levels = (x + 1) * 4
    assert x.shape == (3, 1, 24) and torch.allclose(levels, levels.round()) and levels.unique().numel() > 4
    with torch.no_grad():
        again = model.head.sample(model(x, label, local), 1, seed=torch.tensor(5))
    assert torch.allclose(x, again)


def test_frequencies_of_samples_are_the_probabilities():
    model = small(num_levels=2)
    x = model.sample(4000, seed=0, length=3)
    drawn = torch.bincount(((x[:, 0] > 0).long() * torch.tensor([4, 2, 1])).sum(1), minlength=8) / len(x)
    every = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3))).double().unsqueeze(1)
    probability = model.log_prob(every).exp()
    assert torch.allclose(drawn.double(), probability, atol=4 * math.sqrt(0.25 / len(x)))
    assert probability.std() > 0.02


def test_samples_depend_on_the_seed_and_not_on_their_number_or_length():
    model = small().float()
    x = model.sample(4, seed=7)
    assert torch.equal(x[:1], model.sample(1, seed=7))
    assert torch.equal(x[:, :, :10], model.sample(4, seed=7, length=10))
    assert not torch.equal(x, model.sample(4, seed=8)) and not torch.equal(x[0], x[1])
    assert model.sample(0, seed=7).shape == (0, 1, 24)
    model.train()
    assert torch.equal(x, model.sample(4, seed=7)) and model.training
    cold = [model.sample(2, seed=seed, temperature=1e-6) for seed in (1, 2)]
    assert torch.equal(*cold)


def test_completion_keeps_what_is_given_and_draws_the_rest(monkeypatch):
    model = small()
    given = sounds(model, 3)
    mask = torch.zeros(3, 1, 24)
    mask[:, :, :10] = mask[:, :, 14:16] = mask[0, :, 20:] = 1
    passes = []
    forward = model.output.forward
    monkeypatch.setattr(model.output, "forward", lambda x: passes.append(1) or forward(x))
    x = model.sample(3, seed=5, given=given, mask=mask, method="naive")
    assert len(passes) == 24 - 12  # all sounds are given 12 samples
    assert torch.equal(x[mask > 0], given[mask > 0])
    again = model.head.sample(model(x), 1, seed=torch.tensor(5))
    assert torch.allclose(x[mask == 0], again[mask == 0]) and not torch.allclose(x[mask > 0], again[mask > 0])


def test_fine_levels_take_narrow_logistics():
    """A mixture over 16 bits can put nearly all its mass on one level."""
    model = small(head="mixture", num_levels=65536)
    params = torch.tensor([[0.0, 0.0, 0.25, 0.25, -12.0, -12.0]]).double().unsqueeze(2)
    nearest = torch.tensor([[[round(1.25 * 65535 / 2) * 2 / 65535 - 1]]]).double()
    assert model.head.nll(nearest, params).item() < 1.2
    draws = model.head.sample(params.expand(-1, -1, 1000), 1, seed=torch.tensor(0))
    assert draws.std() < 3e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cycles": 0}, "num_cycles: expected at least 1, got 0"),
        ({"kernel_size": 1}, "kernel_size: expected at least 2, got 1"),
        ({"num_levels": 1}, "num_levels: expected at least 2, got 1"),
        ({"head": "gaussian"}, "head: expected one of categorical, mixture, got 'gaussian'"),
        ({"num_levels": 65536}, r'num_levels: expected at most 4096 for head="categorical" .*, got 65536'),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        WaveNet(**options)


def test_wrong_inputs():
    model, conditioned = small(), small(**CONDITIONED)
    x, (label, local) = sounds(model, 2), conditions(2)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, 1, T\) with T > 0, got \(2, 24\)"):
        model(x[:, 0])
    with pytest.raises(ValueError, match=r"x: expected shape \(B, 1, T\) with T > 0, got \(2, 1, 0\)"):
        model(x[:, :, :0])
    with pytest.raises(TypeError, match=r"x: expected floating point numbers in \[-1, 1\], got torch.int64"):
        model(x.long())
    with pytest.raises(ValueError, match="label: expected None, because the model is not conditional"):
        model.loss(x, label)
    with pytest.raises(ValueError, match="local: expected None, because the model has no local_channels"):
        model.loss(x, local=local)
    with pytest.raises(ValueError, match="label: expected 2 integers below 3, got None"):
        conditioned.loss(x, local=local)
    with pytest.raises(ValueError, match=r"local: expected shape \(2, 5, 24\), got None"):
        conditioned.loss(x, label)
    x = conditioned.float().sample(2, seed=0, label=0, local=local.double(), length=24)
    assert torch.equal(x, conditioned.sample(2, seed=0, label=0, local=local.float(), length=24))
    with pytest.raises(ValueError, match=r"local: expected shape \(2, 5, 20\), got \(2, 5, 24\)"):
        conditioned.sample(2, label=0, local=local, length=20)
    with pytest.raises(ValueError, match='method: expected "cached" or "naive", got \'x\''):
        model.sample(1, method="x")
    with pytest.raises(ValueError, match="length: expected a positive number of samples, got 0"):
        model.sample(1, length=0)
    with pytest.raises(ValueError, match="n: expected a number of sounds, got -1"):
        model.sample(-1)
