"""What every diffusion, score and energy model of images promises, as tests to inherit, on images of a few
pixels in float64.

A test file derives a class from `DiffusionContracts` and names the model and the arguments of a tiny one.
"""

import copy
import dataclasses
import math
import pickle
from contextlib import contextmanager
from types import MappingProxyType

import pytest
import torch
from models.image_contracts import images
from torch import nn

from gmfast.models.base import Batch, Likelihood

UNET = {"channels": 4, "multipliers": (1, 2), "num_blocks": 1, "attention": (2,), "dropout": 0.0}


@contextmanager
def seen_by(module):
    """The arguments and the result of each call of a module."""
    calls = []
    handle = module.register_forward_hook(lambda _, arguments, result: calls.append((arguments, result)))
    try:
        yield calls
    finally:
        handle.remove()


def gaussian_log_prob(x, mean, variance):
    """Of independent values of one normal distribution, (B,)."""
    squares = (x - mean).square() / variance + math.log(2 * math.pi * variance)
    return -0.5 * squares.flatten(1).sum(1)


def evaluated(model, x, label):
    """Held-out figures, whose noise torch's seed 5 gives."""
    torch.manual_seed(5)
    return model.evaluate(Batch(x, label))


class DiffusionContracts:
    #: The class.
    model: type
    image_shape = (1, 4, 4)
    #: Whether there is an unconditional network beside the conditional one.
    guided = True
    #: Whether pickle takes it: torch's parametrizations refuse.
    pickles = True
    #: What of the loss is left after a little training, at most.
    learns = 0.85
    #: What makes `log_prob` quick.
    few = MappingProxyType({"steps": 2})

    def tiny(self):
        """The arguments of a tiny one."""
        return UNET

    def build(self, image_shape=None, **options):
        """A model that depends on all of its parameters, in eval mode and float64."""
        torch.manual_seed(0)
        options = {"num_levels": 5} | self.tiny() | options
        model = self.model(image_shape or self.image_shape, **options).double()
        model.prepare(Batch(images(model, 8)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    def test_samples_depend_on_the_seed_and_not_on_their_number(self):
        model = self.build(num_labels=3).train()
        x = model.sample(4, seed=7, label=1)
        levels = (x + 1) * 2
        assert torch.allclose(levels, levels.round(), atol=1e-9) and x.unique().numel() > 2
        assert x.abs().max() <= 1 and x.dtype == torch.double
        assert torch.equal(x, model.sample(4, seed=7, label=torch.tensor([1, 1, 1, 1])))
        assert torch.equal(x[:1], model.sample(1, seed=7, label=1))
        assert not torch.equal(x, model.sample(4, seed=8, label=1))
        assert not torch.equal(x[0], x[1])
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        assert torch.equal(*(model.sample(2, seed=g, label=1) for g in generators))
        assert model.sample(0, seed=7, label=1).shape == (0, *model.image_shape)
        assert all(module.training for module in model.modules())

    def test_labels_and_guidance(self):
        """No guidance is a guidance of 1; 0 is the network without a class, whichever class there is."""
        model = self.build(num_labels=2)
        first, second = (model.sample(3, seed=1, label=label) for label in (0, 1))
        assert not torch.equal(first, second)
        if not self.guided:
            return
        assert torch.equal(first, model.sample(3, seed=1, label=0, guidance=1))
        strong = model.sample(3, seed=1, label=0, guidance=4.0)
        assert not torch.equal(first, strong)
        none = [model.sample(3, seed=1, label=label, guidance=0.0) for label in (0, 1)]
        assert torch.equal(*none)
        with pytest.raises(ValueError, match="guidance: expected None, because the model was not trained"):
            self.build().sample(1, guidance=2.0)
        with pytest.raises(ValueError, match=r"guidance: expected a number in .*, got -1"):
            model.sample(1, label=0, guidance=-1)

    def test_labels_are_dropped_in_training_only(self):
        if not self.guided:
            return
        model = self.build(num_labels=3, label_dropout=0.25)
        label = torch.arange(3).repeat(1000)
        assert torch.equal(model.training_label(label), label)
        dropped = model.train().training_label(label)
        assert set(dropped.unique().tolist()) == {0, 1, 2, 3}
        kept = dropped != 3
        assert torch.equal(dropped[kept], label[kept])
        assert abs((~kept).double().mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 3000)

    def test_progress_reaches_the_end(self):
        seen = []
        self.build().sample(1, seed=0, progress=lambda done, total: seen.append((done, total)))
        done, total = seen[-1]
        assert done == total > 0

    def test_training_lowers_the_loss(self):
        torch.manual_seed(0)
        model = self.model(self.image_shape, **{"num_levels": 5, "num_labels": 2} | self.tiny())
        x = images(model, 128).float()
        x[:, :, ::2] = x[:, :, 1::2]  # rows in pairs
        label = torch.arange(128) % 2
        x[label == 1] = x[label == 1].abs()
        model.prepare(Batch(x, label))
        optimizer = torch.optim.Adam(model.parameters(), 0.005)

        def measured():
            torch.manual_seed(9)
            return torch.stack([model.loss(x, label).detach() for _ in range(4)]).mean()

        before = measured()
        for _ in range(40):
            loss = model.loss(x, label)
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
            optimizer.step()
        assert measured() < self.learns * before, (before, measured())
        assert not [name for name, p in model.named_parameters() if p.grad is None]

    def test_config_and_state_dict_give_the_same_model(self):
        model = self.build(num_labels=3)
        again = self.model(**model.config).double()
        copies = [again, copy.deepcopy(model)]
        if self.pickles:
            copies.append(pickle.loads(pickle.dumps(model)))
        assert all(m.config == model.config for m in copies) and model.config.keys() == model.options().keys()
        again.load_state_dict(model.state_dict())
        again.eval()
        x, label = images(model, 2), torch.tensor([0, 2])
        results = []
        for m in (model, again):
            torch.manual_seed(1)
            results.append((m.loss(x, label), m.sample(2, seed=1, label=0)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_held_out_figures_are_those_of_log_prob_or_the_loss(self):
        model = self.build(num_labels=3)
        x, label = images(model, 3), torch.tensor([0, 2, 1])
        if not isinstance(model, Likelihood):
            assert "bits_per_dim" not in model.metrics
            ((name, values),) = evaluated(model, x, label).items()
            torch.manual_seed(5)
            assert model.metrics.keys() == {name} and values.shape == (3,) and values.unique().numel() == 3
            assert values.mean().item() == pytest.approx(model.loss(x, label).item())
            return
        assert model.metrics == {"bits_per_dim": "bits per dimension"}
        bits = evaluated(model, x, label)["bits_per_dim"]
        torch.manual_seed(5)
        expected = -model.log_prob(x, label) / (x[0].numel() * math.log(2))
        assert bits.shape == (3,) and not bits.requires_grad
        assert bits.mean().item() == pytest.approx(expected.mean().item(), rel=0.3)
        first, again, other = (model.log_prob(x, label, seed=seed, **self.few) for seed in (3, 3, 4))
        assert torch.equal(first, again) and not torch.isclose(first, other).any()
        assert not torch.isclose(first, model.log_prob(x, label.roll(1), seed=3, **self.few)).all()
        assert model.log_prob(x[:0], label[:0]).shape == (0,)

    def test_wrong_inputs(self):
        model, conditional = self.build(), self.build(num_labels=3)
        x = images(model, 2)
        with pytest.raises(ValueError, match=r"x: expected shape \(B, 1, \d+, \d+\), got"):
            model.loss(x[0])
        with pytest.raises(
            TypeError, match=r"x: expected floating point numbers in \[-1, 1\], got torch.uint8"
        ):
            model.loss(x.to(torch.uint8))
        with pytest.raises(ValueError, match=r"x: expected values in \[-1, 1\], got values from -1\.5 to"):
            model.loss(x * 0 - 1.5)
        with pytest.raises(ValueError, match="label: expected None, because the model is not conditional"):
            model.loss(x, torch.tensor([0, 1]))
        with pytest.raises(ValueError, match="label: expected 2 integers below 3, got None"):
            conditional.loss(x)
        with pytest.raises(ValueError, match="label: expected integers from 0 to 2, got values from 3 to 3"):
            conditional.sample(2, label=3)
        with pytest.raises(ValueError, match="n: expected a number of images, got -1"):
            model.sample(-1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image_shape": (1, 0, 8)}, r"image_shape: expected positive \(C, H, W\), got \(1, 0, 8\)"),
            ({"image_shape": (8, 8)}, r"image_shape: expected positive \(C, H, W\), got \(8, 8\)"),
            ({"num_levels": 1}, "num_levels: expected at least 2, got 1"),
            ({"num_labels": 0}, "num_labels: expected at least 1, got 0"),
        ],
    )
    def test_wrong_constructor_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.model(**options)


class WithUNet:
    """Tests to inherit beside the others, of models that have one."""

    def test_continuous_values_fill_their_levels(self):
        model = self.build(num_levels=3)
        model.dequantize = True
        x = images(model, 512)
        y = model.continuous(x, 1)
        inside = (y - x) * 2  # half a level to either side
        assert torch.equal(model.quantize(y), x.clamp(-1, 1)) and inside.abs().max() <= 1
        counts = torch.histc(inside, 8, -1, 1) / inside.numel()
        assert (counts - 1 / 8).abs().max() < 5 * math.sqrt(1 / 8 / inside.numel())
        assert model.log_level_volume == pytest.approx(x[0].numel() * math.log(1.0))
        model.dequantize = False
        assert torch.equal(model.continuous(x), x)

    def test_arguments_of_the_network(self):
        """Those that are not given are the published ones; lists, as of JSON, are tuples."""
        published = dataclasses.asdict(self.model.network)
        assert published.items() <= self.model.options().items()
        model = self.model((1, 4, 4), **self.tiny() | {"multipliers": [1, 2], "attention": []})
        expected = published | UNET | {"multipliers": (1, 2), "attention": ()}
        assert expected.items() <= model.config.items()
        assert {"seed", "label", "guidance", "progress"} < set(self.model.sample_options())
        with pytest.raises(TypeError, match="unexpected keyword argument 'channel'"):
            self.model(channel=4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"image_shape": (1, 6, 8), "multipliers": (1, 2, 2)},
                r"image_shape: expected H and W to be multiples of 4, which are halved 2 times",
            ),
            ({"channels": 6}, "channels: expected a positive multiple of 4, got 6"),
            ({"multipliers": ()}, "multipliers: expected at least one positive integer"),
            ({"num_blocks": 0}, "num_blocks: expected at least 1, got 0"),
            ({"dropout": 1.0}, "dropout: expected a number from 0 to below 1, got 1.0"),
            ({"label_dropout": 1.0}, "label_dropout: expected a number from 0 to below 1, got 1.0"),
        ],
    )
    def test_wrong_arguments_of_the_network(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.model(**options)


def unet_of(model):
    """The network of a model."""
    from gmfast.models.networks.unet import UNet

    return next(module for module in model.modules() if isinstance(module, UNet))


class Exact(nn.Module):
    """In place of a network: a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.dtype = nn.Parameter(torch.zeros((), dtype=torch.double))  # what a model takes its dtype from

    def forward(self, *arguments):
        return self.function(*arguments)
