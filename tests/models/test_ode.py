import math

import pytest
import torch

from gmfast.models.diffusion.ode import ode_log_prob


def linear(size=5):
    """A velocity A·x + b, its flow from time 0 to 1 and its determinant's logarithm."""
    torch.manual_seed(0)
    a = torch.randn(size, size, dtype=torch.double) / 2
    b = torch.randn(size, dtype=torch.double)
    whole = torch.zeros(size + 1, size + 1, dtype=torch.double)
    whole[:size, :size], whole[:size, size] = a, b
    flow = torch.linalg.matrix_exp(whole)
    return a, b, flow[:size, :size], flow[:size, size]


def normal(z):
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)


def run(steps, divergence, seed=0, count=4):
    a, b, matrix, shift = linear()
    x = torch.randn(count, 1, 1, 5, dtype=torch.double)

    def velocity(x, t):
        assert t.shape == (len(x),)
        return x @ a.mT + b

    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    found, z = ode_log_prob(velocity, x, times, normal, divergence=divergence, seed=seed)
    expected = x @ matrix.mT + shift
    return found, normal(expected) + a.trace(), z, expected


def test_density_is_that_of_the_flow():
    found, expected, z, end = run(64, "exact")
    assert torch.allclose(z, end, rtol=1e-7) and torch.allclose(found, expected, rtol=1e-7)
    assert not found.requires_grad


def test_order_of_convergence():
    errors = []
    for steps in (4, 8, 16):
        torch.manual_seed(1)
        found, expected, *_ = run(steps, "exact")
        errors.append((found - expected).abs().max().item())
    assert 3.7 < math.log2(errors[0] / errors[1]) < 4.4 and 3.7 < math.log2(errors[1] / errors[2]) < 4.4


def test_error_is_what_twice_the_steps_change():
    results = []
    for steps in (6, 12):
        torch.manual_seed(1)
        results.append(run(steps, "exact")[:2])
    (few, expected), (more, _) = results
    assert torch.allclose(few - more, few - expected, rtol=0.15)


def test_hutchinson_is_right_on_average():
    """Over seeds; the signs of each sample are its own."""
    torch.manual_seed(1)
    x, draws = torch.randn(1, 5, dtype=torch.double), 1024
    a, *_ = linear()
    times = torch.linspace(0, 1, 3, dtype=torch.float64)
    found, _ = ode_log_prob(
        lambda x, t: x @ a.mT, x.expand(draws, 5), times, lambda z: z.new_zeros(len(z)), seed=3
    )
    assert found.std() > 0.1
    assert abs(found.mean() - a.trace()) < 5 * found.std() / math.sqrt(draws)
    again, _ = ode_log_prob(lambda x, t: x @ a.mT, x, times, lambda z: z.new_zeros(len(z)), seed=3)
    assert torch.equal(again, found[:1])


def test_velocity_that_varies_with_time():
    """dx/dt = t²·sin(x): ∫ div is ln of tan(x(1)/2)/tan(x(0)/2) and the slope of the flow."""
    x = torch.linspace(0.5, 2.5, 5, dtype=torch.double)[:, None].requires_grad_()
    end = 2 * torch.atan(torch.tan(x / 2) * math.exp(1 / 3))
    (slope,) = torch.autograd.grad(end.sum(), x)
    times = torch.linspace(0, 1, 33, dtype=torch.float64)
    for divergence in ("exact", "hutchinson"):  # of one number, the same
        found, z = ode_log_prob(
            lambda x, t: t[:, None] ** 2 * x.sin(), x, times, normal, divergence=divergence
        )
        assert torch.allclose(z, end, rtol=1e-7)
        assert torch.allclose(found, normal(end) + slope.log()[:, 0], rtol=1e-6)


def test_unknown_divergence():
    with pytest.raises(ValueError, match="divergence: expected one of 'hutchinson', 'exact', got 'skilling'"):
        ode_log_prob(lambda x, t: x, torch.ones(1, 1), torch.linspace(0, 1, 2), normal, divergence="skilling")
