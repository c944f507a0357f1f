"""What every flow of images promises, as tests to inherit, on images of a few pixels in float64.

A test file derives a class from `FlowContracts` and names the model and the arguments of a tiny one.
"""

import itertools
import math

import pytest
import torch
from models.image_contracts import images

from gmfast.models.base import evaluating


def jacobian_log_det(function, x):
    """log|det| of the Jacobian of each sample's result by that sample, (B,)."""
    jacobian = torch.autograd.functional.jacobian(lambda x: function(x).flatten(1).sum(0), x)
    jacobian = jacobian.flatten(2).transpose(0, 1)  # (B, result, D)
    return torch.linalg.slogdet(jacobian).logabsdet


class FlowContracts:
    #: The class.
    model: type
    #: The smallest images that it takes, and those of the other tests.
    smallest = (1, 2, 2)
    image_shape = (1, 4, 4)
    #: How far parameters are from where they begin.
    scale = 0.1

    def tiny(self):
        """The arguments of a tiny one."""
        raise NotImplementedError

    def build(self, image_shape=None, *, scale=None, **options):
        """A model in which nothing is the identity, in eval mode and float64."""
        torch.manual_seed(0)
        options = {"num_levels": 5} | self.tiny() | options
        model = self.model(image_shape or self.image_shape, **options).double()
        model.initialize(images(model, 32), self.label(model, 32))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_((scale or self.scale) * torch.randn_like(parameter))
        return model.eval()

    def label(self, model, n):
        return None if model.num_labels is None else torch.arange(n) % model.num_labels

    @pytest.mark.parametrize("channels", [1, 3])
    def test_log_det_is_the_jacobian_s_in_both_directions(self, channels):
        model = self.build((channels, *self.image_shape[1:]), num_labels=3)
        x, label = images(model, 2), self.label(model, 2)
        y, _ = model.dequantize(x, torch.tensor(1))
        y = y.detach()
        z, log_det = model.transform(y, label)
        back, inverse_log_det = model.transform.inverse(z, label)
        assert (back - y).abs().max() < 1e-7 and z.shape[1:] == model.noise_shape
        assert log_det.abs().min() > 0.01
        assert torch.allclose(log_det, jacobian_log_det(lambda y: model.transform(y, label)[0], y))
        expected = jacobian_log_det(lambda z: model.transform.inverse(z, label)[0], z.detach())
        assert torch.allclose(inverse_log_det, expected, rtol=1e-5)
        assert torch.allclose(inverse_log_det, -log_det, rtol=1e-6)

    def test_continuous_values_are_a_function_of_levels_and_noise(self):
        """And so is the log-determinant, of the noise."""
        model = self.build()
        x = images(model, 3)
        u = torch.rand(x.shape, dtype=torch.double) * 0.98 + 0.01
        y, log_det = model.continuous(x, u)
        position = ((x + 1) * 2 + u) / 5
        expected = position - 0.5
        if model.alpha > 0:
            expected = torch.logit(model.alpha + (1 - 2 * model.alpha) * position)
        assert torch.allclose(y, expected)
        assert torch.allclose(log_det, jacobian_log_det(lambda u: model.continuous(x, u)[0], u))
        assert torch.allclose(model.quantize(y), x)

    def test_loss_is_the_bound_in_bits_per_dimension(self):
        model = self.build(num_labels=3)
        x, label = images(model, 4), self.label(model, 4)
        with torch.no_grad():
            bound = model.log_prob(x, label, seed=3)
            torch.testing.assert_close(bound, model.log_prob(x, label, seed=3), rtol=0, atol=0)
            z, log_det = model(x, label, seed=3)
            torch.testing.assert_close(bound, model.base_log_prob(z) + log_det)
            assert not torch.isclose(bound, model.log_prob(x, label, seed=4)).any()
            torch.manual_seed(5)
            loss = model.loss(x, label)
            torch.manual_seed(5)
            bits = -model.log_prob(x, label).mean() / (x[0].numel() * math.log(2))
        torch.testing.assert_close(loss, bits)

    def test_probabilities_are_those_of_samples(self):
        """The mass that the bound's density has in each image's cell, by many draws of the noise, against how
        often samples fall there; those beyond the levels fall nowhere."""
        model = self.build(self.smallest, num_levels=2)
        size = torch.Size(self.smallest).numel()
        cells = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=size)), dtype=torch.double)
        draws, n = max(64, 2**14 // len(cells)), 2**14
        with torch.no_grad(), evaluating(model):
            x = cells.view(-1, *self.smallest)
            each = x.repeat_interleave(draws, 0)
            log_density = model.log_prob(each, seed=1).unflatten(0, (-1, draws))
            averaged = model.log_prob(x, seed=1, num_samples=draws)
            assert torch.allclose(averaged, log_density.logsumexp(1) - math.log(draws))
            mass = averaged.exp()
            error = log_density.exp().std(1) / math.sqrt(draws)
            z = model.noise(n, torch.tensor(2), torch.float64, torch.device("cpu"))
            y, _ = model.transform.inverse(z)
        position = y.flatten(1) + 0.5
        if model.alpha > 0:
            position = (torch.sigmoid(y.flatten(1)) - model.alpha) / (1 - 2 * model.alpha)
        level = (position * 2).floor()
        inside = ((level >= 0) & (level <= 1)).all(1)
        cell = (level[inside].long() * 2 ** torch.arange(size - 1, -1, -1)).sum(1)
        frequency = torch.bincount(cell, minlength=len(cells)) / n
        error = (error.square() + frequency * (1 - frequency) / n + 1 / n**2).sqrt()
        assert mass.sum() > 0.3 and (frequency > 0).sum() > len(cells) / 2
        assert ((mass - frequency).abs() < 5 * error).all(), ((mass - frequency) / error).tolist()
        total = (error.square().sum()).sqrt()
        assert abs(mass.sum() - inside.double().mean()) < 5 * total

    def test_noise_is_what_the_base_density_says(self):
        """Its mean log-density is minus its entropy, and that of the density (by quadrature)."""
        model = self.build()
        z = model.noise(4096, torch.tensor(0), torch.float64, torch.device("cpu"))
        grid = torch.linspace(-40, 40, 80001, dtype=torch.double)
        size = z[0].numel()
        points = torch.zeros(len(grid), size, dtype=torch.double)
        points[:, 0] = grid
        centre = model.base_log_prob(torch.zeros(1, *model.noise_shape, dtype=torch.double)) * (1 - 1 / size)
        log_density = model.base_log_prob(points.view(-1, *model.noise_shape)) - centre
        density = log_density.exp()
        assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-9)
        entropy = -torch.trapezoid(density * log_density, grid) * size
        mean = -model.base_log_prob(z)
        assert abs(mean.mean() - entropy) < 5 * mean.std() / 64
        second = torch.trapezoid(density * grid.square(), grid)
        assert z.square().mean().item() == pytest.approx(second.item(), rel=0.1)

    def test_samples_depend_on_the_seed_and_not_on_their_number(self):
        model = self.build(num_labels=3).train()
        x = model.sample(4, seed=7, label=1)
        levels = (x + 1) * 2
        assert torch.allclose(levels, levels.round(), atol=1e-9) and levels.round().unique().numel() > 2
        assert torch.equal(x, model.sample(4, seed=7, label=torch.tensor([1, 1, 1, 1])))
        assert torch.equal(x[:1], model.sample(1, seed=7, label=1))
        assert not torch.equal(x, model.sample(4, seed=8, label=1))
        assert not torch.equal(x[0], x[1])
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        assert torch.equal(*(model.sample(2, seed=g, label=1) for g in generators))
        assert model.sample(0, seed=7, label=1).shape == (0, *model.image_shape)
        assert all(module.training for module in model.modules())
        cold = [model.sample(2, seed=seed, label=1, temperature=0) for seed in (1, 2)]
        assert torch.equal(*cold)

    def test_samples_are_what_their_noise_says(self):
        """The noise of a sample's continuous values is the noise that it was drawn from."""
        model = self.build()
        z = model.noise(3, torch.tensor(9), torch.float64, torch.device("cpu"))
        y, _ = model.transform.inverse(z)
        assert (model.transform(y)[0] - z).abs().max() < 1e-7
        assert torch.equal(model.quantize(y), model.sample(3, seed=9))
        cooler = model.quantize(model.transform.inverse(z * 0.5)[0])
        assert torch.equal(cooler, model.sample(3, seed=9, temperature=0.5))

    def test_label_conditions_the_density(self):
        model = self.build(num_labels=3)
        x, label = images(model, 3), torch.tensor([0, 1, 2])
        first = x[:1].expand(3, -1, -1, -1)
        z, _ = model(first, label, seed=1)
        assert model.log_prob(first, label, seed=1).unique().numel() == 3 and z.unique(dim=0).shape[0] == 3
        assert not torch.isclose(
            model.log_prob(x, label, seed=1), model.log_prob(x, label.roll(1), seed=1)
        ).any()

    def test_initialization_survives_constant_pixels(self):
        torch.manual_seed(0)
        model = self.model(self.image_shape, **{"num_levels": 5} | self.tiny())
        x = torch.ones(8, *self.image_shape)
        model.initialize(x)
        assert model.training and model.loss(x).isfinite()

    def test_training_lowers_the_loss(self):
        torch.manual_seed(0)
        model = self.model(self.image_shape, **{"num_levels": 5} | self.tiny())
        x = images(model, 256).float()
        x[:, :, ::2] = x[:, :, 1::2]  # rows in pairs
        model.initialize(x)
        optimizer = torch.optim.Adam(model.parameters(), 0.005)
        losses = []
        for _ in range(60):
            loss = model.loss(x)
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.1
        unused = [name for name, p in model.named_parameters() if p.grad is None]
        assert not unused

    def test_gradients_match_finite_differences(self):
        model = self.build(num_labels=2)
        x, label = images(model, 2), torch.tensor([0, 1])
        parameters = list(model.parameters())
        loss = model.log_prob(x, label, seed=1).sum()
        grads = torch.autograd.grad(loss, parameters)
        direction = [torch.randn_like(p) for p in parameters]
        slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
        values = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=step)
                values.append(model.log_prob(x, label, seed=1).sum().item())
        assert slope.item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)

    def test_config_and_state_dict_give_the_same_model(self):
        model = self.build(num_labels=3)
        again = self.model(**model.config).double()
        again.load_state_dict(model.state_dict())
        x, label = images(model, 2), self.label(model, 2)
        again.train(), again.loss(x, label)  # loaded is initialised
        again.eval()
        assert torch.equal(again.log_prob(x, label, seed=1), model.log_prob(x, label, seed=1))
        assert torch.equal(again.sample(2, seed=1, label=0), model.sample(2, seed=1, label=0))

    def test_empty_batches(self):
        model = self.build()
        assert model.log_prob(torch.empty(0, *self.image_shape, dtype=torch.double)).shape == (0,)

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
        with pytest.raises(TypeError, match="label: expected a tensor"):
            conditional.log_prob(x, 1, num_samples=2)
        with pytest.raises(ValueError, match="label: expected integers from 0 to 2, got values from 3 to 3"):
            conditional.sample(2, label=3)
        with pytest.raises(ValueError, match="n: expected a number of images, got -1"):
            model.sample(-1)
        with pytest.raises(ValueError, match=r"temperature: expected a number in .*, got -1"):
            model.sample(1, temperature=-1)
        with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
            model.log_prob(x, num_samples=0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image_shape": (1, 0, 8)}, r"image_shape: expected positive \(C, H, W\), got \(1, 0, 8\)"),
            ({"image_shape": (8, 8)}, r"image_shape: expected positive \(C, H, W\), got \(8, 8\)"),
            ({"num_levels": 1}, "num_levels: expected at least 2, got 1"),
            ({"num_labels": 0}, "num_labels: expected at least 1, got 0"),
            ({"alpha": 0.5}, "alpha: expected a number from 0 to below 0.5, got 0.5"),
        ],
    )
    def test_wrong_constructor_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.model(**options)


class Reversible:
    """Tests to inherit beside the others, of models that can be trained without stored activations."""

    def test_reversible_training_has_the_same_gradients(self):
        model = self.build(num_labels=3).train()
        x, label = images(model, 4), torch.tensor([0, 1, 2, 0])
        grads = []
        for reversible in (False, True):
            again = self.model(**model.config | {"reversible": reversible}).double()
            again.load_state_dict(model.state_dict())
            torch.manual_seed(1)
            loss = again.loss(x, label)
            loss.backward()
            grads.append([loss.detach(), *(p.grad for p in again.parameters())])
            assert all(grad.abs().max() > 0 for grad in grads[-1])
        for stored, recomputed in zip(*grads, strict=True):
            torch.testing.assert_close(stored, recomputed, rtol=1e-9, atol=1e-11)

    def saved_bytes(self, reversible, **options):
        """Of what autograd keeps for a loss's gradient, but for parameters."""
        model = self.build(reversible=reversible, **options).train()
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        held = {p.untyped_storage().data_ptr() for p in model.parameters()}
        x = images(model, 16)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.loss(x)
        loss.backward()
        return sum(size for pointer, size in kept.items() if pointer not in held)
