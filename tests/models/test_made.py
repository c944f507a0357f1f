import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from gmfast import decode, reference
from gmfast.models import MADE
from gmfast.nn import MaskedLinear, MaskedMLP
from gmfast.training import Settings, Trainer, load_run

HEADS = ["bernoulli", "categorical", "mixture"]


def small(image_shape=(1, 3, 3), **options):
    """A model in float64 whose distributions are far from uniform."""
    torch.manual_seed(0)
    options = {"hidden": (24, 20), "num_orders": 3, "nr_logistic_mix": 2, "num_levels": 2} | options
    model = MADE(image_shape, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def images(model, n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(model.num_levels, (n, *model.image_shape), generator=generator)
    return levels.double() * (2 / (model.num_levels - 1)) - 1


def all_images(model):
    values = torch.linspace(-1, 1, model.num_levels, dtype=torch.double)
    return torch.cartesian_prod(*[values] * model.num_values).reshape(-1, *model.image_shape)


def nll_of(head, x, params, num_levels):
    """Nats (B,) of one value `x (B,)` under `params (B, P)`, without the model's heads."""
    if head == "bernoulli":
        return -torch.distributions.Bernoulli(logits=params[:, 0]).log_prob((x > 0).double())
    if head == "categorical":
        level = ((x + 1) * (num_levels - 1) / 2).round()
        return -torch.distributions.Categorical(logits=params).log_prob(level)
    return reference.discretized_logistic_mixture_nll(
        x[:, None, None], params[:, :, None], num_classes=num_levels
    ).squeeze(1)


def raise_biases(net):
    """So that no hidden unit is dead."""
    for layer in net.layers[:-1]:
        layer.weight.data /= 10
        layer.bias.data += 5


# The masked network.


def paper_masks(model, order):
    """Equations 12 and 13 of the paper and the direct connections' mask, from degrees m in plain integers."""
    D, P = model.num_inputs, model.num_params
    m = [0] * D
    for rank, index in enumerate(order.tolist(), start=1):
        m[index] = rank
    degrees = [m]
    for layer in model.layers[:-1]:
        size = layer.out_features
        degrees.append([1 + unit * (D - 1) // size for unit in range(size)])
    masks = [
        [[above >= below for below in degrees[i]] for above in degrees[i + 1]]
        for i in range(len(degrees) - 1)
    ]
    masks += [[[m[d] > below for below in degrees[-1]] for d in range(D) for _ in range(P)]]
    masks += [[[m[d] > below for below in m] for d in range(D) for _ in range(P)]]
    return [torch.tensor(mask) for mask in masks]


def test_masked_linear_is_linear_in_the_unmasked_weights():
    layer = MaskedLinear(5, 4).double()
    mask = torch.rand(4, 5) < 0.5
    x, weight = torch.randn(3, 5, dtype=torch.double), torch.randn(3, 4, dtype=torch.double)
    product = (layer.weight.detach() * mask).requires_grad_()
    expected = F.linear(x, product, layer.bias)
    (grad,) = torch.autograd.grad((expected * weight).sum(), product)
    with torch.no_grad():
        layer.weight[~mask] = math.nan
    y = layer(x, mask)
    assert torch.equal(y, expected)
    (y * weight).sum().backward()
    assert torch.equal(layer.weight.grad, torch.where(mask, grad, 0.0))


@pytest.mark.parametrize("hidden", [(), (40,), (40, 7, 33)])
def test_masks_are_those_of_the_paper(hidden):
    net = MaskedMLP(6, hidden, num_params=2).double()
    raise_biases(net)
    x = torch.randn(200, 6, dtype=torch.double)
    order = torch.tensor([4, 0, 2, 5, 1, 3])
    y = net(x, order)
    (y * torch.randn_like(y)).sum().backward()
    layers = [*net.layers, net.direct]
    for layer, mask in zip(layers, paper_masks(net, order), strict=True):
        assert (layer.weight.grad[~mask] == 0).all() and (layer.weight.grad[mask] != 0).all()
        layer.weight.data[~mask] = math.nan
    assert torch.equal(net(x, order), y)


# The model.


@pytest.mark.parametrize(
    ("hidden", "direct"), [((), True), ((64,), True), ((64,), False), ((64, 64), True), ((64, 64), False)]
)
def test_parameters_depend_on_every_earlier_value_and_on_no_other(hidden, direct):
    model = small((2, 2, 2), hidden=hidden, head="categorical")
    if not direct:
        model.net.direct.weight.data.zero_()
    x = images(model, 8).requires_grad_()
    for o, order in enumerate(model.orders):
        params = model(x, order=o)
        assert params.shape == (8, 2, 2, 2, 2)
        weighted = (params * torch.randn(params.shape, dtype=torch.double)).flatten(2).sum(1)
        for rank, index in enumerate(order):
            (grad,) = torch.autograd.grad(weighted[:, index].sum(), x, retain_graph=True)
            grad = grad.flatten(1)[:, order]
            assert (grad[:, rank:] == 0).all(), f"rank {rank} sees its own or later values"
            assert (grad[:, :rank] != 0).any(0).all(), f"rank {rank} is blind to earlier values"


def test_orders_are_permutations_and_the_first_is_the_raster_order():
    model = small((1, 4, 4), num_orders=5)
    assert torch.equal(model.orders[0], torch.arange(16))
    assert torch.equal(model.orders.sort(1).values, torch.arange(16).expand(5, 16))
    assert len(model.orders.unique(dim=0)) == 5
    assert torch.equal(model.orders, small((1, 4, 4), num_orders=5).orders)
    assert not torch.equal(model.orders, small((1, 4, 4), num_orders=5, order_seed=1).orders)


def test_the_state_dict_has_the_orders():
    model = small()
    other = MADE(**model.config | {"order_seed": 1}).double()
    other.load_state_dict(model.state_dict())
    x = images(model, 4)
    assert torch.equal(model.log_prob(x), other.log_prob(x))


@pytest.mark.parametrize(
    ("head", "shape", "levels"),
    [*((head, (1, 3, 3), 2) for head in HEADS), ("categorical", (4,), 3), ("mixture", (4,), 3)],
)
def test_probabilities_of_all_images_sum_to_one(head, shape, levels):
    model = small(shape, head=head, num_levels=levels)
    x = all_images(model)
    with torch.no_grad():
        log_probs = [model.log_prob(x, order=order) for order in (0, 1, 2, None)]
    for log_prob in log_probs:
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)
        assert log_prob.std() > 0.1  # and they are not all alike
    mean = torch.stack(log_probs[:3]).exp().mean(0)
    assert torch.allclose(log_probs[3].exp(), mean, rtol=1e-10)
    for one, other in itertools.combinations(log_probs, 2):
        assert not torch.isclose(one, other).any()


@pytest.mark.parametrize("head", HEADS)
def test_log_prob_is_the_sum_of_the_conditionals(head):
    levels = 2 if head == "bernoulli" else 17
    model = small((2, 2, 3), head=head, num_levels=levels)
    x = images(model, 3)
    with torch.no_grad():
        for o, order in enumerate(model.orders):
            total = torch.zeros(3, dtype=torch.double)
            for rank, index in enumerate(order):
                past, later = x.clone(), order[rank:]
                past.flatten(1)[:, later] = torch.rand(3, len(later), dtype=torch.double) * 2 - 1
                params = model(past, order=o).flatten(2)[:, :, index]
                total -= nll_of(head, x.flatten(1)[:, index], params, levels)
            assert torch.allclose(model.log_prob(x, order=o), total, rtol=1e-10)


def test_loss_takes_one_order_in_training_and_all_in_evaluation():
    model = small((1, 4, 4))
    x = images(model, 5)
    unit = -1 / (16 * math.log(2))
    of_order = [model.log_prob(x, order=o).mean().item() * unit for o in range(3)]
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        loss = model.loss(x).item()
        seen.add(min(range(3), key=lambda o: abs(of_order[o] - loss)))
        assert min(abs(loss - value) for value in of_order) < 1e-12
        torch.manual_seed(seed)
        assert model.loss(x).item() == loss
    assert seen == {0, 1, 2}
    expected = torch.stack([model.log_prob(x, order=o).exp() for o in range(3)]).mean(0).log().mean() * unit
    assert model.eval().loss(x).item() == pytest.approx(expected.item(), rel=1e-10)


def test_label_conditions_the_likelihood_and_the_samples():
    model = small(num_labels=3, head="bernoulli")
    x = images(model, 1).expand(3, -1, -1, -1)
    label = torch.tensor([0, 1, 2])
    for order in (0, 1, 2, None):
        assert model.log_prob(x, label, order).unique().numel() == 3
    assert model(x, label).flatten(2)[:, :, 0].unique(dim=0).shape[0] == 3  # before any value is known
    # Every unit sees the labels that are present, and no other.
    raise_biases(model.net)
    model.loss(images(model, 40), torch.arange(40) % 2).backward()
    for layer in model.net.context:
        assert (layer.weight.grad[:, :2] != 0).all() and (layer.weight.grad[:, 2] == 0).all()
    assert torch.equal(model.sample(2, seed=0, label=1), model.sample(2, seed=0, label=torch.tensor([1, 1])))
    assert not torch.equal(model.sample(20, seed=0, label=1), model.sample(20, seed=0, label=2))


@pytest.mark.parametrize("head", HEADS)
def test_samples_follow_the_conditionals(head):
    """Drawing from the conditionals of a finished sample, with the same noise, gives the sample."""
    levels = 2 if head == "bernoulli" else 5
    model = small((2, 3, 3), head=head, num_levels=levels).float()
    seed = torch.tensor(5)
    for order in range(3):
        x = model.sample(3, seed=5, order=order)
        assert x.shape == (3, 2, 3, 3) and x.unique().numel() == levels
        with torch.no_grad():
            params = model(x, order=order)
        assert torch.equal(x, model.head.sample(params, 1, seed=seed).squeeze(1))


def test_samples_depend_on_the_seed_and_not_on_their_number():
    model = small().float()
    x = model.sample(4, seed=7)
    assert torch.equal(x, model.sample(4, seed=7)) and torch.equal(x[:1], model.sample(1, seed=7))
    assert not torch.equal(x, model.sample(4, seed=8)) and not torch.equal(x[0], x[1])
    assert not torch.equal(x, model.sample(4, seed=7, order=1))
    assert model.sample(0, seed=7).shape == (0, 1, 3, 3)
    cold = [model.sample(2, seed=seed, order=0, temperature=1e-6) for seed in (1, 2)]
    assert torch.equal(*cold)


@pytest.mark.parametrize("training", [True, False])
def test_sampling_restores_the_mode(training):
    model = small().train(training)
    model.net.register_forward_pre_hook(lambda *_: seen.add(model.training))
    seen = set()
    model.sample(1, seed=1, method="naive")
    assert seen == {False}
    model.sample(1, seed=1)
    assert all(module.training == training for module in model.modules())


@pytest.mark.parametrize("order", [None, 2])
def test_samples_have_the_frequencies_of_what_log_prob_scores(order):
    """Of all orders by default: a table of all images, whose probabilities differ from those of one order."""
    model, count = small((3,), hidden=(8,), head="bernoulli", order_seed=5), 8000
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        everything = all_images(model)
        table = model.log_prob(everything, order=order).exp()
        others = [model.log_prob(everything, order=k).exp() for k in range(3) if k != order]
    assert all((table - other).abs().max() > 0.05 for other in others)
    x = model.sample(count, seed=0, order=order)
    frequencies = (x[:, None] == everything).all(2).double().mean(0)
    assert ((frequencies - table).abs() < 4.5 * (table * (1 - table) / count).sqrt()).all()


def test_each_sample_draws_its_order_from_the_seed_and_its_index():
    model = small().float()
    x = model.sample(12, seed=3)
    of_order = torch.stack([model.sample(12, seed=3, order=order) for order in range(3)])
    same = (x == of_order).flatten(2).all(2)
    assert same.any(0).all() and not same.all(1).any()
    assert same.any(1).sum() > 1
    assert torch.equal(x[:5], model.sample(5, seed=3))


@pytest.mark.parametrize("shape", [(1, 3, 3), (5,), (1,), (2, 1, 2)])
@pytest.mark.parametrize("hidden", [(), (7,), (11, 5), (3, 80)])
def test_value_by_value_is_the_full_pass(shape, hidden):
    """By a decode program."""
    model = small(shape, hidden=hidden, num_labels=3, head="mixture", num_levels=5)
    x, label = images(model, 4), torch.tensor([0, 2, 1, 2])
    for order, indices in enumerate(model.orders):
        full = model(x, label, order).detach().flatten(2)
        program, before = decode.compile(model, order=order).start(4, label), None
        for index in indices:
            assert (program.step(before) - full[:, :, index]).abs().max() < 1e-12
            before = x.flatten(1)[:, index, None]


def test_cached_sampling_reads_no_masked_weight_and_does_the_arithmetic_of_one_pass():
    model = small((16,), hidden=(160, 160), num_orders=1)
    drawn = model.sample(3, seed=2)
    layers, masks = [*model.net.layers, model.net.direct], paper_masks(model.net, model.orders[0])
    for layer, mask in zip(layers, masks, strict=True):
        layer.weight.data[~mask] = math.nan
    assert torch.equal(model.sample(3, seed=2), drawn)
    unmasked, full = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
    weights = decode.compile(model).weight_bytes // 8
    assert unmasked <= weights < 0.75 * full


@pytest.mark.parametrize("order", [None, 1])
@pytest.mark.parametrize("head", HEADS)
def test_cached_samples_are_the_naive_ones(head, order):
    levels = 2 if head == "bernoulli" else 5
    model = small((2, 3, 3), head=head, num_levels=levels, num_labels=3)
    label, mask = torch.arange(7) % 3, torch.rand(7, 2, 3, 3) < 0.3
    for completion in ({}, {"given": images(model, 7), "mask": mask}):
        if completion and order is None:
            continue
        cached, naive = (
            model.sample(7, seed=3, order=order, label=label, method=method, **completion)
            for method in ("cached", "naive")
        )
        assert cached.unique().numel() == levels and (cached - naive).abs().max() < 1e-9


@pytest.mark.parametrize(("method", "total"), [("cached", 7), ("naive", 9)])
def test_progress_is_reported(method, total):
    """In samples, of which each order has its own, or in values."""
    model, calls = small(), []
    model.sample(7, seed=3, method=method, progress=lambda *call: calls.append(call))
    assert len(calls) == (3 if method == "cached" else 9)
    assert calls[-1] == (total, total) and all(a < b for a, b in itertools.pairwise(calls))


def test_completions_follow_the_conditional_distribution():
    """Frequencies of completions against the joint distribution's table, in an order that has what is given
    first."""
    model, order, count = small((2, 2), head="bernoulli"), 1, 4000
    mask = torch.zeros(4).index_fill(0, model.orders[order, :2], 1).reshape(2, 2)
    given = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.double)
    x = model.sample(count, seed=0, order=order, given=given, mask=mask)
    with torch.no_grad():
        everything = all_images(model)
        possible = everything[((everything == given) | (mask == 0)).all((1, 2))]
        probability = model.log_prob(possible, order=order).softmax(0)
    assert len(possible) == 4 and probability.std() > 0.1
    for image, p in zip(possible, probability.tolist(), strict=True):
        frequency = (x == image).all((1, 2)).double().mean().item()
        assert abs(frequency - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_given_values_are_kept_cost_no_pass_and_others_are_not_read():
    model = small((2, 3, 3))
    mask = torch.rand(4, 2, 3, 3) < 0.3
    mask[:, 0] = True
    mask[0, 1], mask[1, 1] = True, False
    given = torch.where(mask, images(model, 4), math.nan)
    passes = []
    model.net.register_forward_pre_hook(lambda *_: passes.append(1))
    for order in range(3):
        passes.clear()
        x = model.sample(4, seed=3, order=order, given=given, mask=mask.int(), method="naive")
        assert len(passes) == 9
        draw = model.head.sample(model(x, order=order), 1, seed=torch.tensor(3)).squeeze(1)
        assert torch.equal(x, torch.where(mask, given, draw))
        strided = given.mT.contiguous().mT
        assert torch.equal(x, model.sample(4, seed=3, order=order, given=strided, mask=mask))
        one = model.sample(1, seed=3, order=order, given=given[:1], mask=mask[:1])
        assert torch.equal(x[:1], one)


@pytest.mark.parametrize("data", ["digits", "binary-digits"])
def test_training_learns_and_a_run_loads(data, tmp_path):
    options = {"hidden": [16, 16], "num_orders": 2}
    settings = Settings(model="made", data=data, options=options, lr=0.01, conditional=True)
    trainer = Trainer.start(settings, tmp_path)
    before = trainer.evaluate()
    assert trainer.fit(40, progress=False) and trainer.evaluate() < 0.8 * before
    model, _, _ = load_run(tmp_path)
    assert model.config["hidden"] == (16, 16) and torch.equal(model.orders, trainer.model.orders)
    assert Trainer.resume(tmp_path, options=options).evaluate() == trainer.evaluate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (1, 0, 2)}, r"image_shape: expected positive integers, got \(1, 0, 2\)"),
        ({"image_shape": ()}, r"image_shape: expected positive integers, got \(\)"),
        ({"hidden": (8, 0.5)}, r"hidden: expected positive integers, got \(8, 0.5\)"),
        ({"head": "gaussian"}, "head: expected one of categorical, bernoulli, mixture, got 'gaussian'"),
        ({"head": "bernoulli", "num_levels": 3}, "num_levels: expected 2 for a Bernoulli head, got 3"),
        ({"num_orders": 0}, "num_orders: expected at least 1, got 0"),
        ({"nr_logistic_mix": 0}, "nr_logistic_mix: expected at least 1, got 0"),
        ({"num_levels": 1}, "num_levels: expected at least 2, got 1"),
        ({"num_labels": 0}, "num_labels: expected at least 1, got 0"),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        MADE(**{"hidden": (4,), "image_shape": (1, 2, 2)} | options)


def test_wrong_inputs():
    model, conditional = small(), small(num_labels=3)
    x = images(model, 2)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, 1, 3, 3\), got \(2, 1, 2, 3\)"):
        model(x[:, :, :2])
    with pytest.raises(TypeError, match=r"x: expected floating point numbers in \[-1, 1\], got torch.int64"):
        model.loss(x.long())
    for order in (-1, 3):
        for call in (
            lambda order=order: model(x, order=order),
            lambda order=order: model.log_prob(x, order=order),
            lambda order=order: model.sample(1, order=order),
        ):
            with pytest.raises(ValueError, match=f"order: expected an integer from 0 to 2, got {order}"):
                call()
    with pytest.raises(TypeError, match="order: expected an int, got float"):
        model.sample(1, order=0.5)
    with pytest.raises(TypeError, match="n: expected an int, got float"):
        model.sample(1.5)
    with pytest.raises(ValueError, match="label: expected None, because the model is not conditional"):
        model.loss(x, torch.tensor([0, 1]))
    for label, message in [
        (None, "label: expected 2 integers below 3, got None"),
        (torch.tensor([0, 3]), "label: expected integers from 0 to 2, got values from 0 to 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            conditional.loss(x, label)
        with pytest.raises(ValueError, match=message):
            conditional.sample(2, label=label)
    with pytest.raises(ValueError, match=r"order: expected an integer from 0 to 2 with given, .* got None"):
        model.sample(2, given=x, mask=torch.ones(()))
    with pytest.raises(ValueError, match="n: expected a number of images, got -1"):
        model.sample(-1)
    with pytest.raises(ValueError, match='method: expected "cached" or "naive", got None'):
        model.sample(1, method=None)
    with pytest.raises(ValueError, match=r"given: expected a shape that expands to \(2, 1, 3, 3\)"):
        model.sample(2, order=0, given=torch.zeros(2, 5), mask=torch.ones(()))
    with pytest.raises(
        TypeError, match=r"given: expected floating point numbers in \[-1, 1\], got torch.int64"
    ):
        model.sample(1, order=0, given=torch.zeros(1, 1, 3, 3).long(), mask=torch.ones(()))
    with pytest.raises(ValueError, match="mask: expected None without given"):
        model.sample(2, mask=torch.ones(()))
