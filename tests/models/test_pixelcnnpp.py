import itertools
import math

import pytest
import torch
from models.image_contracts import assert_cached_is_naive, assert_completes

import gmfast.functional as GF
from gmfast import reference
from gmfast.models import PixelCNNPP


def small(image_shape=(1, 8, 8), **options):
    """A model of a few thousand weights in float64, with generic (not zero-mean) features."""
    torch.manual_seed(0)
    options = {
        "nr_resnet": 1,
        "nr_filters": 4,
        "nr_logistic_mix": 2,
        "dropout": 0.0,
        "num_levels": 17,
    } | options
    model = PixelCNNPP(image_shape, **options).double()
    model.initialize(images(model, 8), *([torch.arange(8) % model.num_labels] if model.num_labels else []))
    return model


def images(model, n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(model.num_levels, (n, *model.image_shape), generator=generator)
    return levels.double() * (2 / (model.num_levels - 1)) - 1


def test_parameter_count_of_the_published_model():
    def layer(inputs, outputs, height=1, width=1):
        return inputs * outputs * height * width + 2 * outputs  # directions, gains and biases

    f, r, k = 160, 5, 10
    residual = (
        layer(2 * f, f, 2, 3) + layer(2 * f, 2 * f, 2, 3) + layer(2 * f, f, 2, 2) + layer(2 * f, 2 * f, 2, 2)
    )
    resample = layer(f, f, 2, 3) + layer(f, f, 2, 2)
    expected = (
        layer(4, f, 2, 3) + layer(4, f, 1, 3) + layer(4, f, 2, 1)
        + 3 * r * (residual + layer(2 * f, f))
        + (3 * r + 2) * (residual + layer(2 * f, f) + layer(4 * f, f))
        + 4 * resample
        + layer(f, 10 * k)
    )  # fmt: skip
    with torch.device("meta"):
        model = PixelCNNPP()
    assert sum(p.numel() for p in model.parameters()) == expected == 53_659_080


@pytest.mark.parametrize("channels", [1, 3])
def test_parameters_depend_on_every_earlier_pixel_and_on_no_other(channels):
    model = small((channels, 8, 8), nr_resnet=2)
    x = images(model, 1).requires_grad_()
    params = model(x).flatten(2)
    weights = torch.randn(params.shape[1], dtype=torch.double)
    for p in range(64):
        (grad,) = torch.autograd.grad((params[0, :, p] * weights).sum(), x, retain_graph=True)
        grad = grad.flatten(2)[0]
        assert (grad[:, p:] == 0).all(), f"pixel {p} sees pixels {grad[:, p:].abs().amax(0).nonzero() + p}"
        assert (grad[:, :p] != 0).all(), f"pixel {p} is blind to pixels {(grad[:, :p] == 0).any(0).nonzero()}"


def test_likelihood_of_a_pixel_depends_on_its_own_colours_and_earlier_pixels():
    model = small((3, 8, 8), nr_resnet=2)
    x = images(model, 1).requires_grad_()
    nll = GF.discretized_logistic_mixture_nll(x, model(x), num_classes=17).flatten()
    for p in (0, 9, 63):
        (grad,) = torch.autograd.grad(nll[p], x, retain_graph=True)
        grad = grad.flatten(2)[0]
        assert (grad[:, p + 1 :] == 0).all()
        assert (grad[:, : p + 1] != 0).all()


def test_colours_come_in_the_order_red_green_blue():
    """Marginals from a table of all colours: parameters of later colours leave earlier ones alone."""
    levels, mixtures = 5, 2
    model = small((3, 4, 4), num_levels=levels, nr_logistic_mix=mixtures)
    params = model(images(model, 1)).detach()[:, :, 2, 2].requires_grad_()
    values = torch.linspace(-1, 1, levels, dtype=torch.double)
    colours = torch.tensor(list(itertools.product(values, repeat=3)), dtype=torch.double)
    table = -GF.discretized_logistic_mixture_nll(
        colours.unsqueeze(-1), params.unsqueeze(-1).expand(len(colours), -1, 1), num_classes=levels
    )
    table = table.reshape(levels, levels, levels)
    red, red_green = table.logsumexp((1, 2)), table.logsumexp(2)
    assert table.exp().sum().item() == pytest.approx(1, abs=1e-9)

    def influence(log_prob):
        """Largest gradient with respect to the means and log-scales of each colour, and its coefficients."""
        (grad,) = torch.autograd.grad(log_prob, params, retain_graph=True)
        blocks = grad[0, mixtures:].abs().reshape(3, 3, mixtures)
        return blocks[:, :2].amax((1, 2)), blocks[:, 2].amax(1)

    own, coefficients = influence(red[1])
    assert own[0] > 1e-4 and own[1:].max() < 1e-9 and coefficients.max() < 1e-9
    own, coefficients = influence(red_green[1, 3] - red[1])  # log p(green | red)
    assert own[1] > 1e-4 and own[2] < 1e-9 and coefficients[0] > 1e-4 and coefficients[1:].max() < 1e-9
    own, coefficients = influence(table[1, 3, 0] - red_green[1, 3])  # log p(blue | red, green)
    assert own[2] > 1e-4 and coefficients[1:].min() > 1e-4


def test_probabilities_of_all_images_sum_to_one():
    model = small((1, 4, 4), num_levels=2)
    bits = (torch.arange(2**16)[:, None] >> torch.arange(16)) & 1
    x = (bits.double() * 2 - 1).reshape(-1, 1, 4, 4)
    with torch.no_grad():
        log_prob = torch.cat([model.log_prob(batch) for batch in x.split(8192)])
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert log_prob.std() > 0.1  # and they are not all alike


@pytest.mark.parametrize("channels", [1, 3])
def test_log_prob_is_the_sum_of_the_conditionals(channels):
    model = small((channels, 4, 8))
    x = images(model, 3)
    total = torch.zeros(3, dtype=torch.double)
    with torch.no_grad():
        for p in range(32):
            past = x.clone()
            past.flatten(2)[:, :, p:] = torch.rand(3, channels, 32 - p, dtype=torch.double) * 2 - 1
            params = model(past).flatten(2)[:, :, p : p + 1]
            pixel = x.flatten(2)[:, :, p : p + 1]
            total -= reference.discretized_logistic_mixture_nll(pixel, params, num_classes=17).sum(1)
        assert torch.allclose(model.log_prob(x), total, rtol=1e-10)
        bits = -total.sum() / (x.numel() * math.log(2))
        assert model.loss(x).item() == pytest.approx(bits.item(), rel=1e-10)


def test_initialization_standardizes_every_layer():
    model = PixelCNNPP((3, 8, 8), nr_resnet=1, nr_filters=6, nr_logistic_mix=2, dropout=0.0).double()
    x = images(model, 16)
    outputs = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.register_forward_hook(lambda _, __, y, name=name: outputs.__setitem__(name, y))
    model.initialize(x)
    model(x)
    assert len(outputs) == 3 + 3 * 5 + 5 * 6 + 2 * 4 + 1
    for name, y in outputs.items():
        std = 0.1 if "conv_out" in name else 1.0
        assert torch.allclose(y.mean((0, 2, 3)), y.new_zeros(()), atol=1e-6), name
        assert torch.allclose(y.std((0, 2, 3), correction=0), y.new_full((), std), rtol=1e-3), name


def test_initialization_happens_once_and_is_part_of_the_state():
    model = small()
    loaded = PixelCNNPP(**model.config).double()
    loaded.load_state_dict(model.state_dict())
    x = images(model, 4)
    expected = model(x)
    for m in (model, loaded):
        m.initialize(images(model, 4, seed=2))
        assert torch.equal(m(x), expected)
    fresh = PixelCNNPP(**model.config).double()
    fresh.initialize(images(model, 4, seed=2))
    assert not torch.allclose(fresh(x), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_follow_the_conditionals(channels):
    """Drawing from the conditionals of a finished sample, with the same noise, gives the sample."""
    model = small((channels, 4, 8)).float()
    x = model.sample(3, seed=5)
    levels = (x + 1) * 8
    assert torch.allclose(levels, levels.round(), atol=1e-5) and levels.unique().numel() > 5
    with torch.no_grad():
        again = GF.discretized_logistic_mixture_sample(model(x), channels=channels, num_classes=17, seed=5)
    assert torch.equal(x, again)


def test_samples_depend_on_the_seed_and_not_on_their_number():
    model = small().float()
    x = model.sample(4, seed=7)
    assert torch.equal(x, model.sample(4, seed=7))
    assert torch.equal(x[:1], model.sample(1, seed=7))
    assert not torch.equal(x, model.sample(4, seed=8))
    assert not torch.equal(x[0], x[1])
    assert torch.equal(
        model.sample(2, seed=torch.Generator().manual_seed(3)),
        model.sample(2, seed=torch.Generator().manual_seed(3)),
    )
    assert model.sample(0, seed=7).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_completion(channels):
    assert_completes(small((channels, 4, 4), num_labels=3).float(), label=2)
    assert_completes(small((channels, 4, 4)).float())


@pytest.mark.parametrize("channels", [1, 3])
def test_cached_samples_are_the_naive_ones(channels):
    assert_cached_is_naive(small((channels, 8, 12), num_labels=3), label=2)


@pytest.mark.parametrize("method", ["cached", "naive"])
@pytest.mark.parametrize("training", [True, False])
def test_sampling_is_without_dropout_and_restores_the_mode(training, method):
    model = small(dropout=0.5).float().train(training)
    x = model.sample(2, seed=1, method=method)
    assert all(module.training == training for module in model.modules())
    assert torch.equal(x, model.eval().sample(2, seed=1, method=method))


@pytest.mark.parametrize("method", ["cached", "naive"])
def test_progress_is_reported_and_may_raise(method):
    model, calls = small().float().train(), []
    x = model.sample(2, seed=1, method=method, progress=lambda *call: calls.append(call))
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {64} and done[-1] == 64 and all(a < b for a, b in itertools.pairwise(done))

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.sample(2, seed=1, method=method, progress=interrupt)
    assert model.training and torch.equal(x, model.sample(2, seed=1, method=method))


def test_low_temperature_gives_the_mode():
    model = small().float()
    assert torch.equal(model.sample(2, seed=1, temperature=1e-6), model.sample(2, seed=2, temperature=1e-6))


def test_label_conditions_the_likelihood_and_the_samples():
    model = small(num_labels=3)
    x, label = images(model, 3), torch.tensor([0, 1, 2])
    assert not torch.isclose(model.log_prob(x, label), model.log_prob(x, label.roll(1))).any()
    log_prob = model.log_prob(x[:1].expand(3, -1, -1, -1), label)
    assert log_prob.unique().numel() == 3
    model.float()
    assert torch.equal(model.sample(2, seed=0, label=1), model.sample(2, seed=0, label=torch.tensor([1, 1])))
    # The gradient reaches the embedding of the labels present, and no other.
    model.loss(x[:1].float(), label[:1]).backward()
    grad = model.up[0][0].u.embedding.weight.grad
    assert grad[0].abs().sum() > 0 and (grad[1:] == 0).all()


def test_gradients_match_finite_differences():
    model = small((3, 4, 4), nr_filters=2)
    x = images(model, 2)
    weight = model.up[1][0].ul.conv_input[1].parametrizations.weight.original1
    model.loss(x).backward()
    index, step = (1, 2, 0, 1), 1e-6
    with torch.no_grad():
        losses = []
        for sign in (1, -1):
            weight[index] += sign * step
            losses.append(model.loss(x).item())
            weight[index] -= sign * step
    assert weight.grad[index].item() == pytest.approx(
        (losses[0] - losses[1]) / (2 * step), rel=1e-5, abs=1e-9
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_shape": (1, 8, 10)},
            r"image_shape: expected H and W to be positive multiples of 4, got \(1, 8, 10\)",
        ),
        ({"image_shape": (2, 8, 8)}, r"image_shape: expected \(C, H, W\) with C = 1 or 3, got \(2, 8, 8\)"),
        ({"nr_resnet": 0}, "nr_resnet: expected at least 1, got 0"),
        ({"num_levels": 1}, "num_levels: expected at least 2, got 1"),
        ({"num_labels": 0}, "num_labels: expected at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        PixelCNNPP(**options)


def test_wrong_inputs():
    model, conditional = small(), small(num_labels=3)
    x = images(model, 2)
    for wrong, message in [
        (x[:, :, :4], r"x: expected shape \(B, 1, 8, 8\), got \(2, 1, 4, 8\)"),
        (x.expand(2, 3, 8, 8), r"x: expected shape \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"),
        (x[0], r"x: expected shape \(B, 1, 8, 8\), got \(1, 8, 8\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(wrong)
    with pytest.raises(TypeError, match=r"x: expected floating point numbers in \[-1, 1\], got torch.uint8"):
        model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="label: expected None, because the model is not conditional"):
        model.loss(x, torch.tensor([0, 1]))
    for label, message in [
        (None, "label: expected 2 integers below 3, got None"),
        (torch.tensor([0]), r"label: expected 2 integers, got torch.int64 of shape \(1,\)"),
        (torch.tensor([0.0, 1.0]), "label: expected 2 integers, got torch.float32"),
        (torch.tensor([0, 3]), "label: expected integers from 0 to 2, got values from 0 to 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            conditional.loss(x, label)
    with pytest.raises(ValueError, match='method: expected "cached" or "naive", got \'fast\''):
        model.sample(1, method="fast")
    with pytest.raises(ValueError, match="weights: expected None with method=\"naive\", got 'bfloat16'"):
        model.sample(1, method="naive", weights="bfloat16")
    with pytest.raises(TypeError, match="progress: expected True, False or a function, got int"):
        model.sample(1, progress=1)
    for label, message in [
        (None, "label: expected 2 integers below 3, got None"),
        (3, "label: expected integers from 0 to 2, got values from 3 to 3"),
        (torch.tensor([0, 1, 2]), r"label: expected 2 integers, got torch.int64 of shape \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            conditional.sample(2, label=label)
    with pytest.raises(ValueError, match="n: expected a number of images, got -1"):
        model.sample(-1)
