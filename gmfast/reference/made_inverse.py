"""Inverse of masked autoregressive transforms, one value after another, in plain PyTorch."""

import torch
import torch.nn.functional as F

from .affine_coupling import SCALE_MAPS

ACTIVATIONS = {"relu": F.relu, "tanh": torch.tanh, "elu": F.elu, "silu": F.silu}


def complete(units, steps, step, transposed=False):
    """Return the number of a hidden layer's units whose inputs are all known at a step."""
    span = max(steps - 1, 1)
    if transposed:
        return units - -(-(steps - 1 - step) * units // span)
    return -(-step * units // span)


def made_sweep(batch, steps, inputs, weights, direct, unit, step, transposed=False):
    """Run a masked autoencoder one step after another, each weight used once.

    Args:
        batch: B.
        steps: number of steps.
        inputs: number of input values that become known in a step.
        weights: as of `made_inverse`.
        direct: as of `made_inverse`.
        unit: function of (layer, index of the first, sums) that returns hidden units whose inputs are known.
        step: function of (step, outputs) that returns the values known after that step, (B, inputs).
        transposed: whether the units become complete in the order of the transposed network.

    Returns:
        The values, (B, steps * inputs).
    """
    like = weights[0]
    values = like.new_zeros(batch, steps * inputs)
    hidden = [like.new_zeros(batch, len(weight)) for weight in weights[:-1]]
    outputs = len(weights[-1]) // steps
    for s in range(steps):
        below, seen = values, s * inputs
        for layer, own in enumerate(hidden):
            units = own.shape[1]
            before = complete(units, steps, s - 1, transposed) if s else 0
            now = complete(units, steps, s, transposed)
            if now > before:
                sums = below[:, :seen] @ weights[layer][before:now, :seen].t()
                own[:, before:now] = unit(layer, before, sums)
            below, seen = own, now
        rows = slice(s * outputs, (s + 1) * outputs)
        results = below[:, :seen] @ weights[-1][rows, :seen].t()
        if direct is not None:
            results = results + values[:, : s * inputs] @ direct[rows, : s * inputs].t()
        values[:, s * inputs : (s + 1) * inputs] = step(s, results)
    return values


def made_invert(z, weights, direct, offsets, activation, invert):
    """Invert a masked autoregressive transform, as `gmfast.ops.made_inverse.made_invert`."""
    starts = [0]
    for weight in weights:
        starts.append(starts[-1] + len(weight))
    steps = z.shape[1]
    outputs = len(weights[-1]) // steps
    log_det = z.new_zeros(z.shape[0])

    def unit(layer, first, sums):
        begin = starts[layer] + first
        return ACTIVATIONS[activation](sums + offsets[:, begin : begin + sums.shape[1]])

    def step(s, results):
        nonlocal log_det
        begin = starts[-2] + s * outputs
        value, log_derivative = invert(s, z[:, s], results + offsets[:, begin : begin + outputs])
        log_det = log_det + log_derivative
        return value[:, None]

    return made_sweep(z.shape[0], steps, 1, weights, direct, unit, step), log_det


def made_inverse(z, weights, direct, offsets, *, activation="relu", scale_map="softclip", clamp=2.0):
    """Reference of `gmfast.ops.made_inverse.made_inverse`."""

    def invert(s, z, params):
        shift, scale = params.unbind(1)
        log_scale = SCALE_MAPS[scale_map](scale, clamp)
        return (z - shift) * torch.exp(-log_scale), -log_scale

    return made_invert(z, weights, direct, offsets, activation, invert)


def made_solve(grad, diagonal, partial, slopes, weights, direct):
    """Reference of `gmfast.ops.made_inverse.made_solve`."""
    starts = [0]
    for weight in weights:
        starts.append(starts[-1] + len(weight))
    v = torch.zeros_like(grad)

    def unit(layer, first, sums):
        begin = starts[layer] + first
        return sums * slopes[:, begin : begin + sums.shape[1]]

    def step(s, results):
        v[:, s] = (grad[:, s] - results[:, 0]) / diagonal[:, s]
        return v[:, s : s + 1] * partial[:, s]

    made_sweep(len(grad), grad.shape[1], partial.shape[2], weights, direct, unit, step, transposed=True)
    return v
