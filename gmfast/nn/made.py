"""The masked network of MADE (Germain et al., 2015, arXiv:1502.03509).

Every unit has a degree: the number of leading values, in some order, that it may depend on. The value of rank
r (from 0) has degree r + 1, its parameters have degree r, and hidden units have degrees from 1 to D - 1, or
from 0 with a context, on which the first value's parameters then depend. The masks of all layers follow from
one rule: a unit is connected to those of a degree up to its own.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from ..ops.made_inverse import ACTIVATIONS


class MaskedLinear(nn.Linear):
    """Linear layer with a mask as a second input.

    Masked weights are never read, whatever they hold, and get a gradient of exactly zero.
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Apply the layer to `x (..., in_features)`; `mask` is boolean, (out_features, in_features)."""
        return F.linear(x, torch.where(mask, self.weight, 0.0), self.bias)


class MaskedMLP(nn.Module):
    """Masked autoencoder: maps D values to `num_params` functions of each value's predecessors.

    The order of the values is an argument of each call. Degrees ascend evenly through a hidden layer and are
    the same in every order, so one set of weights serves many orders.

    The context's weights start as those of a first layer that sees values and context side by side, and at
    zero in the later layers.

    Attributes:
        first_degree: lowest degree of a hidden unit: 1, or 0 with a context. Part of the state dict where
            there is a context; one without it counts as 1.

    Args:
        num_inputs: D.
        hidden: sizes of the hidden layers; may be empty.
        num_params: number of parameters of each value.
        num_context: number of features of a context that every unit is connected to; 0 for none.
        activation: of hidden units: "relu", "tanh", "elu" or "silu".
        direct: whether there is also a linear connection from the input to the output.
        residual: whether the hidden layers after the first are residual blocks of two layers each,
            `h + second(activation(first(activation(h))))`, as nflows has them.
        dropout: probability of dropout of hidden units, in training mode.

    Raises:
        ValueError: with `residual`, unless `hidden` is an odd number of equal sizes.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden: tuple[int, ...],
        num_params: int,
        num_context: int = 0,
        *,
        activation: str = "relu",
        direct: bool = True,
        residual: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        _check.one_of("activation", activation, tuple(ACTIVATIONS))
        _check.at_least(1, num_inputs=num_inputs, num_params=num_params)
        _check.at_least(0, num_context=num_context)
        _check.number("dropout", dropout, 0, 1)
        if residual and (len(hidden) % 2 == 0 or len(set(hidden)) > 1):
            raise ValueError(f"hidden: expected an odd number of equal sizes (residual=True), got {hidden}")
        self.num_inputs, self.num_params, self.activation = num_inputs, num_params, activation
        self.residual, self.dropout = residual, dropout
        sizes = [num_inputs, *hidden, num_inputs * num_params]
        self.layers = nn.ModuleList(MaskedLinear(below, size) for below, size in pairwise(sizes))
        self.direct = MaskedLinear(num_inputs, num_inputs * num_params, bias=False) if direct else None
        self.context = None
        if num_context:
            self.context = nn.ModuleList(nn.Linear(num_context, size, bias=False) for size in sizes[1:])
            self._start(num_context)
        self.first_degree = 0 if num_context else 1

    @torch.no_grad()
    def _start(self, num_context: int) -> None:
        first, size = self.layers[0], self.num_inputs + num_context
        for parameter in (first.weight, first.bias):
            parameter *= (self.num_inputs / size) ** 0.5
        self.context[0].weight *= (num_context / size) ** 0.5
        for layer in self.context[1:]:
            nn.init.zeros_(layer.weight)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.context is not None:
            destination[prefix + "first_degree"] = torch.tensor(self.first_degree)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if self.context is not None:
            self.first_degree = int(state_dict.pop(prefix + "first_degree", 1))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor, order: Tensor, context: Tensor | None = None) -> Tensor:
        """Compute the parameters of each value, (B, D, num_params).

        Args:
            x: (B, D).
            order: (D,), a permutation: the index of the value of each rank.
            context: (B, num_context), or None.
        """
        return self.outputs_and_sums(x, self.masks(order), context, self.draw_kept(x))[0]

    def draw_kept(self, x: Tensor) -> list[Tensor] | None:
        """Draw which hidden units dropout keeps, for `outputs_and_sums`; None without dropout.

        Each is (B, units), scaled so that the expectation of a unit stays the same.
        """
        if not self.training or not self.dropout:
            return None
        sizes = [layer.out_features for layer in self.layers[:-1]]
        return [F.dropout(x.new_ones(x.shape[0], size), self.dropout) for size in sizes]

    @torch.no_grad()
    def start_at(self, params: Tensor) -> None:
        """Set the last layer so that each value has the parameters `params`, (num_params,), for any input."""
        last = [self.layers[-1], self.direct, None if self.context is None else self.context[-1]]
        for layer in last:
            if layer is not None:
                layer.weight.zero_()
        self.layers[-1].bias.copy_(params.repeat(self.num_inputs))

    def masks(self, order: Tensor) -> list[Tensor]:
        """Return the masks of the layers, from the first to the last, and of the direct connection."""
        rank = order.argsort()
        degrees = [rank + 1]
        for layer in self.layers[:-1]:
            degrees.append(self.degrees(layer, order.device))
        degrees.append(rank.repeat_interleave(self.num_params))
        pairs = [*pairwise(degrees), (degrees[0], degrees[-1])]
        return [above[:, None] >= below for below, above in pairs]

    def outputs_and_sums(
        self,
        x: Tensor,
        masks: list[Tensor],
        context: Tensor | None = None,
        kept: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return what `forward` returns, and the pre-activations of the hidden layers."""
        h, sums = x, []
        for i, layer in enumerate(self.layers):
            # In a residual network the output sees the last block's sum itself.
            active = i > 0 and not (self.residual and i == len(self.layers) - 1)
            h = layer(self._activated(h, i - 1, kept) if active else h, masks[i])
            if self.context is not None:
                h = h + self.context[i](context)
            if self.residual and i % 2 == 0 and 0 < i < len(self.layers) - 1:
                h = h + sums[i - 2]
            sums.append(h)
        if self.direct is not None:
            h = h + self.direct(x, masks[-1])
        return h.unflatten(1, (self.num_inputs, self.num_params)), sums[:-1]

    def _activated(self, sums: Tensor, layer: int, kept: list[Tensor] | None) -> Tensor:
        h = ACTIVATIONS[self.activation](sums)
        # In a residual block the units between its two layers may drop out.
        return h if kept is None or (self.residual and layer % 2 == 0) else h * kept[layer]

    def degrees(self, layer: MaskedLinear, device: torch.device) -> Tensor:
        """Return the degree of each unit of a hidden layer."""
        units = torch.arange(layer.out_features, device=device)
        return self.first_degree + units * (self.num_inputs - self.first_degree) // layer.out_features

    def units_up_to(self, degree: int, layer: MaskedLinear) -> int:
        """Return the number of units of a hidden layer with at most that degree, which come first.

        `csrc/math/made_inverse.h` has the same formula.
        """
        degrees = self.num_inputs - self.first_degree
        return -(-(degree + 1 - self.first_degree) * layer.out_features // max(degrees, 1))
