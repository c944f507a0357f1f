"""The masked network of MADE: Germain, Gregor, Murray and Larochelle, 2015, https://arxiv.org/abs/1502.03509.

Every unit has a degree: how many leading values, in some order, it may know. The value of rank r (0 comes
first) has degree r + 1, what is said about it has degree r, and hidden units have degrees from 1 to D - 1.
One rule makes the masks of all layers: a unit sees those of a degree up to its own.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check

#: The nonlinearity of hidden units, by name.
ACTIVATIONS = {"relu": F.relu, "tanh": torch.tanh, "elu": F.elu, "silu": F.silu}


class MaskedLinear(nn.Linear):
    """`nn.Linear` that takes a mask with its input: booleans (out_features, in_features). Where it is false
    the weight is never read, and its gradient is exactly zero."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return F.linear(x, torch.where(mask, self.weight, 0.0), self.bias)


class MaskedMLP(nn.Module):
    """A multilayer perceptron from D values to `num_params` numbers about each, which depend on exactly the
    values before it in an order that each call names.

    Unless told otherwise hidden units are rectified, and the input reaches the output directly too. Degrees
    ascend evenly through a hidden layer and are the same in every order, so one set of weights serves many of
    them.

    Args:
        num_inputs: D.
        hidden: sizes of the hidden layers; may be empty.
        num_params: numbers about each value.
        num_context: features of a context that every unit sees; 0 for none.
        activation: of hidden units: "relu", "tanh", "elu" or "silu".
        direct: whether the input reaches the output directly too.
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
    ):
        super().__init__()
        _check.one_of("activation", activation, tuple(ACTIVATIONS))
        self.num_inputs, self.num_params, self.activation = num_inputs, num_params, activation
        sizes = [num_inputs, *hidden, num_inputs * num_params]
        self.layers = nn.ModuleList(MaskedLinear(below, size) for below, size in pairwise(sizes))
        self.direct = MaskedLinear(num_inputs, num_inputs * num_params, bias=False) if direct else None
        self.context = None
        if num_context:
            self.context = nn.ModuleList(nn.Linear(num_context, size, bias=False) for size in sizes[1:])

    def forward(self, x: Tensor, order: Tensor, context: Tensor | None = None) -> Tensor:
        """`x (B, D)`; `order (D,)`, a permutation: the index of the value of each rank; `context (B, F)`.
        Returns (B, D, num_params)."""
        return self.outputs_and_sums(x, self.masks(order), context)[0]

    def masks(self, order: Tensor) -> list[Tensor]:
        """The masks of the layers, from the first to the last, and of the direct way."""
        rank = order.argsort()
        degrees = [rank + 1]
        for layer in self.layers[:-1]:
            degrees.append(self.degrees(layer, order.device))
        degrees.append(rank.repeat_interleave(self.num_params))
        pairs = [*pairwise(degrees), (degrees[0], degrees[-1])]
        return [above[:, None] >= below for below, above in pairs]

    def outputs_and_sums(
        self, x: Tensor, masks: list[Tensor], context: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """What `forward` returns, and what the hidden layers' units are before their nonlinearity."""
        h, sums, activation = x, [], ACTIVATIONS[self.activation]
        for i, layer in enumerate(self.layers):
            h = layer(h if i == 0 else activation(h), masks[i])
            if self.context is not None:
                h = h + self.context[i](context)
            sums.append(h)
        if self.direct is not None:
            h = h + self.direct(x, masks[-1])
        return h.unflatten(1, (self.num_inputs, self.num_params)), sums[:-1]

    def degrees(self, layer: MaskedLinear, device) -> Tensor:
        """The degree of each unit of a hidden layer."""
        units = torch.arange(layer.out_features, device=device)
        return 1 + units * (self.num_inputs - 1) // layer.out_features

    def units_up_to(self, degree: int, layer: MaskedLinear) -> int:
        """How many units of a hidden layer have at most that degree: they come first.
        `csrc/math/made_inverse.h` states the same."""
        return -(-degree * layer.out_features // max(self.num_inputs - 1, 1))
