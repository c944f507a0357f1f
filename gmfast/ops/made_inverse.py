"""A masked autoencoder one value after another.

`gmfast.nn.MaskedAffineAutoregressive` inverts itself with it. Not differentiable; the module is. Everything
is in the order of the steps: values, rows and columns of the matrices, hidden units by ascending degree.
`weights` are L + 1 matrices (to, from), `direct` the input's way past the hidden layers, or None.
"""

import torch
import torch.nn.functional as F

from .. import reference
from .._library import has_kernel, operator
from .affine_coupling import _MAPS

#: Activations of hidden units by name, in the order of the kernels' enumeration.
ACTIVATIONS = {"relu": F.relu, "tanh": torch.tanh, "elu": F.elu, "silu": F.silu}

#: Hidden layers that the kernels take.
MAX_LAYERS = 16


def made_inverse(z, weights, direct, offsets, *, activation="relu", scale_map="softclip", clamp=2.0):
    """Compute x = (z - shift)·exp(-log_scale) one value after another, and its log-determinant.

    A masked autoencoder (Germain et al., 2015, arXiv:1502.03509) computes shift and raw scale of each value
    from the values before it. Costs one pass of the network, not D. Sample i's bits do not depend on the
    other samples.

    Args:
        z: (B, D), float32 or float64, as are the other tensors.
        weights: H1×D, H2×H1, …, 2D×HL.
        direct: 2D×D, or None.
        offsets: (B, H1 + … + HL + 2D), or (1, …) for all samples the same: what is added to each sum.
        activation: "relu", "tanh", "elu" or "silu".
        scale_map: as in `gmfast.functional.affine_coupling`.
        clamp: likewise.
    """
    if not _has_kernel(z, weights):
        return reference.made_inverse(
            z, weights, direct, offsets, activation=activation, scale_map=scale_map, clamp=clamp
        )
    kinds = list(ACTIVATIONS).index(activation), _MAPS.index(scale_map)
    return _inverse(z, weights, direct, offsets, *kinds, float(clamp))


def made_invert(z, weights, direct, offsets, activation, invert):
    """Invert another elementwise transform than `made_inverse`, in plain PyTorch on every device.

    Args:
        z: as in `made_inverse`.
        weights: likewise; the last is (P·D)×HL.
        direct: likewise.
        offsets: likewise.
        activation: likewise.
        invert: function of (step, z of that step (B,), its parameters (B, P)) that returns the value and its
            log-derivative, both (B,).

    Returns:
        x (B, D) and the log-determinant (B,).
    """
    return reference.made_invert(z, weights, direct, offsets, activation, invert)


def made_solve(grad, diagonal, partial, slopes, weights, direct):
    """Solve Jᵀv = grad, J the Jacobian of a masked autoregressive transform, at the cost of one pass.

    It is the gradient through the transform's inverse. The network is transposed and everything in reverse:
    the last value is the first step, the last hidden layer the first, units by descending degree.

    Args:
        grad: (B, D).
        diagonal: diagonal of J, (B, D).
        partial: (B, D, P), the derivative of each result by its parameters.
        slopes: (B, HL + … + H1), the activation's derivatives.
        weights: HL×(D·P), …, D×H1.
        direct: D×(D·P), or None.
    """
    if not _has_kernel(grad, weights):
        return reference.made_solve(grad, diagonal, partial, slopes, weights, direct)
    return _solve(grad, diagonal, partial, slopes, weights, direct)


def _has_kernel(tensor, weights):
    return has_kernel(tensor) and tensor.device.type == "cpu" and len(weights) <= MAX_LAYERS + 1


_inverse = operator(
    "made_inverse",
    fake=lambda z, weights, direct, offsets, activation, scale_map, clamp: (
        z.new_empty(z.shape),
        z.new_empty(z.shape[:1]),
    ),
)
_solve = operator(
    "made_solve",
    fake=lambda grad, diagonal, partial, slopes, weights, direct: grad.new_empty(grad.shape),
)
