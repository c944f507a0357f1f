"""MADE: Germain, Gregor, Murray and Larochelle, 2015, https://arxiv.org/abs/1502.03509."""

import math
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import MaskedMLP
from ..ops import _seed
from .autoregressive import (
    check_label,
    check_request,
    evaluating,
    kept,
    labels_of,
    sample_naive,
    with_bar,
)
from .heads import HEADS
from .image import check_at_least


class MADE(nn.Module):
    """The masked autoencoder for distribution estimation: an exact likelihood in one pass of a multilayer
    perceptron, whose masks leave each value the ones before it in some order. One set of weights serves
    several orders, and the model is the average of what they say.

    Values are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`.

    Args:
        image_shape: any shape of one sample; its D values are numbered in raster order.
        hidden: sizes of the hidden layers; none for a linear model.
        num_orders: how many orders; the first is the raster order, the others are random.
        head: distribution of a value: "bernoulli" (the paper's; 2 levels), "categorical" or "mixture" (of
            discretized logistics).
        nr_logistic_mix: components of the mixture.
        order_seed: decides the random orders. They are part of the state dict.
        num_levels: values a value can take.
        num_labels: number of classes to condition on, which every unit sees; None for an unconditional model.

    Raises ValueError, naming the argument, for whatever the above rules out.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...] = (1, 28, 28),
        hidden: tuple[int, ...] = (500, 500),
        num_orders: int = 1,
        head: str = "mixture",
        nr_logistic_mix: int = 10,
        order_seed: int = 0,
        num_levels: int = 256,
        num_labels: int | None = None,
    ):
        super().__init__()
        image_shape, hidden = tuple(image_shape), tuple(hidden)
        for name, sizes, low in (("image_shape", image_shape, 1), ("hidden", hidden, 0)):
            if len(sizes) < low or not all(isinstance(size, int) and size > 0 for size in sizes):
                raise ValueError(f"{name}: expected positive integers, got {sizes}")
        if head not in HEADS:
            raise ValueError(f"head: expected one of {', '.join(HEADS)}, got {head!r}")
        check_at_least(2, num_levels=num_levels)
        check_at_least(1, num_orders=num_orders, nr_logistic_mix=nr_logistic_mix)
        if num_labels is not None:
            check_at_least(1, num_labels=num_labels)
        self.config = {
            "image_shape": image_shape,
            "hidden": hidden,
            "num_orders": num_orders,
            "head": head,
            "nr_logistic_mix": nr_logistic_mix,
            "order_seed": order_seed,
            "num_levels": num_levels,
            "num_labels": num_labels,
        }
        self.image_shape, self.num_levels, self.num_labels = image_shape, num_levels, num_labels
        self.num_values, self.num_orders = math.prod(image_shape), num_orders
        self.head = HEADS[head](num_levels, *([nr_logistic_mix] if head == "mixture" else []))
        self.net = MaskedMLP(self.num_values, hidden, self.head.num_params(1), num_labels or 0)
        raster, random = range(self.num_values), Random(order_seed)
        orders = [raster] + [random.sample(raster, self.num_values) for _ in range(num_orders - 1)]
        # (num_orders, D): the index of the value of each rank.
        self.register_buffer("orders", torch.tensor([list(order) for order in orders]))

    def forward(self, x: Tensor, label: Tensor | None = None, order: int = 0) -> Tensor:
        """Parameters of every value's distribution given the values before it in an order.

        `x (B, *image_shape)` in [-1, 1], `label (B,)` integers for a conditional model. Returns
        `(B, P, *image_shape)`, the P parameters of the head for one channel.
        """
        self._check_order(order)
        if tuple(x.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"x: expected shape (B, {expected}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"x: expected floating point numbers in [-1, 1], got {x.dtype}")
        check_label(label, len(x), self.num_labels)
        context = None if label is None else F.one_hot(label, self.num_labels).to(x.dtype)
        params = self.net(x.flatten(1), self.orders[order], context)
        return params.transpose(1, 2).unflatten(2, self.image_shape)

    def log_prob(self, x: Tensor, label: Tensor | None = None, order: int | None = None) -> Tensor:
        """Log-probability of each sample, (B,), in nats: in one order, or by default the logarithm of the
        probability averaged over all orders."""
        if order is not None:
            return -self.head.nll(x.unsqueeze(1), self(x, label, order)).flatten(1).sum(1)
        log_probs = [self.log_prob(x, label, order) for order in range(self.num_orders)]
        return torch.logsumexp(torch.stack(log_probs), 0) - math.log(self.num_orders)

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of the batch, a scalar in bits per dimension: in training mode of one
        order, drawn from torch's global generator; else of the average over all orders, as in `log_prob`."""
        if self.training:
            order = int(torch.randint(self.num_orders, (), device="cpu"))
            return self.head.bits_per_dim(x.unsqueeze(1), self(x, label, order))
        return -self.log_prob(x, label).mean() / (self.num_values * math.log(2))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        order: int = 0,
        seed: int | Tensor | torch.Generator | None = None,
        method: str = "naive",
        label: Tensor | int | None = None,
        temperature: float = 1.0,
        given: Tensor | None = None,
        mask: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Draws `n` samples, (n, *image_shape) in [-1, 1], value by value in one of the orders with a full
        forward pass for each.

        `seed` as in `discretized_logistic_mixture_sample`: sample i is the same whatever `n` is. `label`: one
        class or (n,) of them, for a conditional model. `temperature` below 1 sharpens each value's
        distribution. Where `mask` is not zero the value of `given` is kept; both expand to the shape of the
        samples. A drawn value is conditioned on the given ones before it in the order: an order in which they
        come first completes best. The model is in eval mode meanwhile and in its former mode afterwards.
        """
        check_request(n, method, "samples")
        self._check_order(order)
        device = self.orders.device
        label = labels_of(label, n, self.num_labels, device)
        x, keep = kept(given, mask, self.net.direct.weight.new_zeros(n, *self.image_shape))
        indices = with_bar(self.orders[order].tolist(), progress, "value")
        with evaluating(self):
            # To the head all values are positions of one channel.
            sample_naive(
                lambda x: self(x.squeeze(1), label, order),
                self.head,
                x.unsqueeze(1),
                keep.unsqueeze(1),
                ((index, slice(0, 1)) for index in indices),
                seed=_seed.as_tensor(seed, device),
                temperature=temperature,
            )
        return x

    def _check_order(self, order: int) -> None:
        if not 0 <= order < self.num_orders:
            raise ValueError(f"order: expected an integer from 0 to {self.num_orders - 1}, got {order}")
