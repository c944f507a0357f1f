"""What every autoregressive image model promises, as tests to inherit, on images of a few pixels in float64.

A test file derives a class from `Contracts` and names the model, the arguments of a tiny one, and which
pixels each of its pixels sees.
"""

import itertools
import math

import pytest
import torch

from gmfast import decode

HEADS = [(1, "categorical"), (3, "categorical"), (1, "mixture"), (3, "mixture")]
heads = pytest.mark.parametrize(("channels", "head"), HEADS, ids=[f"{c}-{h}" for c, h in HEADS])


def images(model, n, seed=1):
    """Random images of the model's shape and levels, float64."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(model.num_levels, (n, *model.image_shape), generator=generator)
    return levels.double() * (2 / (model.num_levels - 1)) - 1


def earlier(height, width):
    """Booleans (pixel, other pixel): whether the other comes first in raster order."""
    return torch.ones(height * width, height * width).tril(-1).bool()


def assert_completes(model, label=None):
    """Kept values stay; the others are those that the conditionals of the finished image give with the same
    noise, whatever `given` holds there and however it lies in memory."""
    n, channels = 3, model.image_shape[0]
    drawn = model.sample(n, seed=5, label=label)
    keep = (torch.rand(n, 1, *model.image_shape[1:]) < 0.5).expand_as(drawn)
    assert torch.equal(model.sample(n, seed=5, label=label, given=drawn, mask=keep), drawn)
    given = torch.where(keep, torch.rand_like(drawn) * 2 - 1, torch.nan)
    given = given.to(memory_format=torch.channels_last)
    completed = model.sample(n, seed=5, label=label, given=given, mask=keep.to(torch.uint8))
    with torch.no_grad():
        labels = None if label is None else torch.full((n,), label)
        again = model.head.sample(model(completed, labels), channels, seed=torch.tensor(5))
    assert torch.equal(completed, torch.where(keep, given, again))
    assert not torch.equal(torch.where(keep, 0, completed), torch.where(keep, 0, drawn))


def assert_cached_is_naive(model, label=None):
    """In float64, where no draw of these lies within rounding of a boundary; with completion and without."""
    given = images(model, 3)
    keep = torch.rand(3, 1, *model.image_shape[1:]) < 0.3
    for options in ({}, {"temperature": 0.5}, {"given": given, "mask": keep}):
        cached, naive = (
            model.sample(3, seed=7, label=label, method=method, **options) for method in ("cached", "naive")
        )
        assert cached.unique().numel() > 2 and (cached - naive).abs().max() < 1e-9


class Contracts:
    #: The class.
    model: type

    def tiny(self):
        """The arguments of a tiny one besides its head."""
        raise NotImplementedError

    def visible(self, height, width):
        """Booleans (pixel, other pixel): what a pixel sees of the pixels before it."""
        return earlier(height, width)

    def build(self, image_shape, head="categorical", **options):
        torch.manual_seed(0)
        options = {"nr_out_filters": 24, "nr_logistic_mix": 2, "num_levels": 5} | self.tiny() | options
        model = self.model(image_shape, head=head, **options).double()
        x = images(model, 16)
        with torch.no_grad():  # what came before matters as it would after training
            model.conv_out.weight.mul_(1.5 / model(x, self.label(model, 16)).std(0).mean())
            model.conv_out.bias.sub_(model(x, self.label(model, 16)).mean((0, 2, 3)))
        return model

    def label(self, model, n):
        return None if model.num_labels is None else torch.arange(n) % model.num_labels

    @heads
    def test_parameters_depend_on_what_comes_before_and_on_nothing_else(self, channels, head, monkeypatch):
        """Each colour's parameters against each value: of earlier pixels all colours, of the own pixel the
        earlier ones in the order R, G, B; none where the head couples the colours itself."""
        monkeypatch.setattr(torch.nn.functional, "relu", torch.nn.functional.softplus)  # no unit is dead
        height, width = 4, 9
        model = self.build((channels, height, width), head)
        x = images(model, 3).requires_grad_()
        groups = channels if head == "categorical" else 1
        params = model(x, self.label(model, 3)).flatten(2).unflatten(1, (groups, -1))
        weights = torch.randn(params.shape[:3], dtype=torch.double)
        outputs = (params * weights.unsqueeze(-1)).sum((0, 2))
        seen = torch.zeros(height * width, groups, channels, height * width, dtype=torch.bool)
        for group, pixel in itertools.product(range(groups), range(height * width)):
            (grad,) = torch.autograd.grad(outputs[group, pixel], x, retain_graph=True)
            seen[pixel, group] = (grad != 0).any(0).flatten(1)
        own = torch.ones(groups, channels).tril(-1).bool() if groups > 1 else torch.zeros(1, channels).bool()
        current = torch.eye(height * width).bool()
        expected = self.visible(height, width)[:, None, None] | (current[:, None, None] & own[..., None])
        for pixel in range(height * width):
            assert torch.equal(seen[pixel], expected[pixel]), (
                f"pixel {pixel}: {(seen[pixel] != expected[pixel]).nonzero().tolist()} (group, colour, pixel)"
            )

    @heads
    def test_log_prob_is_the_sum_of_the_conditionals(self, channels, head):
        """Each value's conditional by itself, later values being random. The softmax is written out here; the
        mixture's likelihood has tests of its own."""
        model = self.build((channels, 3, 4), head)
        n, levels = 2, model.num_levels
        x, label = images(model, n), self.label(model, n)
        pixels, colours = torch.arange(12), torch.arange(channels)[:, None]
        total = torch.zeros(n, dtype=torch.double)
        with torch.no_grad():
            for p, c in itertools.product(range(12), range(channels if head == "categorical" else 1)):
                known = (pixels < p) | ((pixels == p) & (colours < c))
                future = torch.rand(n, channels, 12, dtype=torch.double) * 2 - 1
                past = torch.where(known, x.flatten(2), future).view_as(x)
                params = model(past, label).flatten(2)[:, :, p]
                value = x.flatten(2)[:, :, p]
                if head == "categorical":
                    level = ((value[:, c] + 1) * ((levels - 1) / 2)).round().long()
                    logits = params[:, c * levels : (c + 1) * levels]
                    total += logits.log_softmax(1)[torch.arange(n), level]
                else:
                    total -= model.head.nll(value.unsqueeze(2), params.unsqueeze(2)).sum(1)
            assert torch.allclose(model.log_prob(x, label), total, rtol=1e-10)
            bits = -total.sum() / (x.numel() * math.log(2))
            assert model.loss(x, label).item() == pytest.approx(bits.item(), rel=1e-10)

    @pytest.mark.parametrize("head", ["categorical", "mixture", "bernoulli"])
    @pytest.mark.parametrize("image_shape", [(1, 3, 3), (3, 1, 3), (3, 3, 1)])
    def test_probabilities_of_all_images_sum_to_one(self, image_shape, head):
        model = self.build(image_shape, head, num_levels=2)
        bits = (torch.arange(2**9)[:, None] >> torch.arange(9)) & 1
        x = (bits.double() * 2 - 1).reshape(-1, *image_shape)
        label = None if model.num_labels is None else torch.ones(len(x), dtype=torch.long)
        with torch.no_grad():
            log_prob = model.log_prob(x, label)
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-9)
        assert log_prob.std() > 0.1  # and they are not all alike

    @pytest.mark.parametrize(("channels", "head"), [(1, "categorical"), (3, "categorical"), (1, "mixture")])
    def test_samples_and_completions_have_the_model_s_frequencies(self, channels, head):
        """Against a table of all images of three values, of which the second is then given."""
        model = self.build((channels, 1, 3 // channels), head, num_levels=3)
        n, label = 8192, None if model.num_labels is None else 1
        values = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=3)), dtype=torch.double)
        with torch.no_grad():
            labels = None if label is None else torch.full((27,), label)
            table = model.log_prob(values.view(-1, *model.image_shape), labels).exp().view(3, 3, 3)
        model.float()

        def frequencies(x):
            levels = (x.flatten(1) + 1).round().long()
            return torch.bincount(levels @ torch.tensor([9, 3, 1]), minlength=27).view(3, 3, 3) / n

        def assert_close(x, expected):
            deviation = (expected * (1 - expected) / n).sqrt()
            assert ((frequencies(x) - expected).abs() <= 4.5 * deviation + 1e-9).all()

        assert_close(model.sample(n, seed=0, label=label), table)
        given = torch.tensor([-1.0, 1.0, 0.0]).view(model.image_shape)
        mask = torch.tensor([0, 1, 0]).view(model.image_shape)
        first, last = table.sum((1, 2)), table[:, 2] / table[:, 2].sum(1, keepdim=True)
        expected = torch.zeros_like(table)
        expected[:, 2] = first[:, None] * last
        assert (expected - table).abs().max() > 0.05
        assert_close(model.sample(n, seed=1, label=label, given=given, mask=mask), expected)

    @heads
    def test_samples_follow_the_conditionals(self, channels, head):
        """Drawing from the conditionals of a finished sample, with the same noise, gives the sample."""
        model = self.build((channels, 2, 3), head).float()
        label = None if model.num_labels is None else 1
        x = model.sample(3, seed=5, label=label)
        levels = (x + 1) * 2
        assert torch.allclose(levels, levels.round(), atol=1e-5) and levels.round().unique().numel() > 2
        with torch.no_grad():
            labels = None if label is None else torch.full((3,), label)
            again = model.head.sample(model(x, labels), channels, seed=torch.tensor(5))
        assert torch.equal(x, again)
        assert torch.equal(x[:1], model.sample(1, seed=5, label=label))
        assert not torch.equal(x, model.sample(3, seed=6, label=label))
        assert model.sample(0, seed=5, label=label).shape == (0, channels, 2, 3)
        cold = [model.sample(2, seed=seed, label=label, temperature=1e-6) for seed in (1, 2)]
        assert torch.equal(*cold)

    @heads
    def test_completion_keeps_what_is_given_and_draws_the_rest(self, channels, head):
        model = self.build((channels, 2, 3), head).float()
        assert_completes(model, None if model.num_labels is None else 1)

    def test_what_is_given_for_all_costs_no_pass(self):
        model = self.build((3, 4, 2))
        label = None if model.num_labels is None else 1
        passes = []
        model.register_forward_pre_hook(lambda *_: passes.append(model.training))
        given = torch.zeros(3, 4, 2)
        mask = torch.zeros(2, 3, 4, 2)
        mask[:, :, :2] = mask[:, 1] = mask[0, :, 2] = 1  # two rows; green; and of one image a third row
        x = model.sample(2, label=label, given=given, mask=mask, method="naive")
        assert passes == [False] * 8 and model.training  # two rows of two pixels, red and blue
        assert (x[mask != 0] == 0).all()

    @heads
    def test_one_pixel_at_a_time_is_the_full_pass(self, channels, head):
        """By a decode program, which is fed each colour only once its turn has come."""
        model = self.build((channels, 5, 3), head)
        x, label = images(model, 2), self.label(model, 2)
        groups = channels if head == "categorical" else 1
        with torch.no_grad():
            full = model(x, label).flatten(2).unflatten(1, (groups, -1))
        program, before = decode.compile(model).start(2, label), None
        for p, pixel in enumerate(x.flatten(2).unbind(2)):
            for group, colours in enumerate(pixel.chunk(groups, 1)):
                assert (program.step(before) - full[:, group, :, p]).abs().max() < 1e-12
                before = colours

    @heads
    def test_cached_samples_are_the_naive_ones(self, channels, head):
        model = self.build((channels, 4, 5), head)
        assert_cached_is_naive(model, None if model.num_labels is None else 1)

    def test_config_builds_the_same_model(self):
        model = self.build((1, 3, 4), "mixture", nr_logistic_mix=3)
        again = self.model(**model.config).double()
        again.load_state_dict(model.state_dict())
        x, label = images(model, 2), self.label(model, 2)
        assert torch.equal(again(x, label), model(x, label)) and again(x, label).shape[1] == 9

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"image_shape": (2, 8, 8)},
                r"image_shape: expected \(C, H, W\) with C = 1 or 3, got \(2, 8, 8\)",
            ),
            ({"image_shape": (1, 0, 8)}, r"image_shape: expected positive H and W, got \(1, 0, 8\)"),
            ({"head": "gaussian"}, "head: expected one of categorical, bernoulli, mixture, got 'gaussian'"),
            ({"head": "bernoulli"}, "num_levels: expected 2 for a Bernoulli head, got 256"),
            ({"nr_filters": 8}, "nr_filters: expected a positive multiple of 3, because .* groups, got 8"),
            ({"nr_out_filters": 0}, "nr_out_filters: expected a positive multiple of 3, .*, got 0"),
            ({"nr_logistic_mix": 0}, "nr_logistic_mix: expected at least 1, got 0"),
            ({"num_levels": 1}, "num_levels: expected at least 2, got 1"),
        ],
    )
    def test_wrong_constructor_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.model(**options)

    def test_wrong_completions(self):
        model, coupled = self.build((3, 3, 4)), self.build((3, 3, 4), "mixture")
        label = None if model.num_labels is None else 1
        x, mask = torch.zeros(2, 3, 3, 4), torch.ones(3, 4)
        for arguments, message in [
            ({"mask": mask}, "mask: expected None without given, got a mask"),
            ({"given": x + 2, "mask": mask}, r"given: expected values in \[-1, 1\] .*, got 2.0"),
            ({"given": x / 0, "mask": mask}, r"given: expected values in \[-1, 1\] .*, got nan"),
            ({"given": x}, "mask: expected which values of given are kept, got None"),
            ({"given": x[:, :2], "mask": mask}, r"given: expected .* \(2, 3, 3, 4\), got \(2, 2, 3, 4\)"),
            ({"given": x, "mask": mask[:2]}, r"mask: expected .* \(2, 3, 3, 4\), got \(2, 4\)"),
        ]:
            with pytest.raises(ValueError, match=message):
                model.sample(2, label=label, **arguments)
        with pytest.raises(TypeError, match="mask: expected a tensor, got list"):
            model.sample(2, label=label, given=x, mask=mask.tolist())
        with pytest.raises(TypeError, match=r"given: expected floating point numbers .*, got torch.uint8"):
            model.sample(2, label=label, given=x.byte(), mask=mask)
        red = torch.tensor([1, 0, 0])[:, None, None]
        model.sample(2, label=label, given=x, mask=red)
        with pytest.raises(ValueError, match="mask: expected the same for all colours of a pixel"):
            coupled.sample(2, label=label, given=x, mask=red)
