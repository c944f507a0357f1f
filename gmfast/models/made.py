"""MADE: Germain, Gregor, Murray and Larochelle, 2015, https://arxiv.org/abs/1502.03509."""

import math
from collections.abc import Iterator
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check, _philox, _seed
from ..decode.builder import Builder, Tap, Value
from ..nn import MaskedMLP
from .autoregressive import (
    Progress,
    check_label,
    check_request,
    evaluating,
    kept,
    labels_of,
    reporting,
    sample_cached,
)
from .heads import make_head


class MADE(nn.Module):
    """The masked autoencoder for distribution estimation: an exact likelihood in one pass of a multilayer
    perceptron, whose masks leave each value the ones before it in some order. One set of weights serves
    several orders, and the model is the average of what they say: a mixture of as many models.

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
        _check.at_least(1, num_orders=num_orders)
        if num_labels is not None:
            _check.at_least(1, num_labels=num_labels)
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
        self.head = make_head(head, num_levels, nr_logistic_mix)
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
        params = self.net(x.flatten(1), self.orders[order], self._context(label, len(x)))
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

    def decoder(self, order: int = 0) -> Builder:
        """The model as a decode program for one of its orders: one position, with a draw for each value."""
        self._check_order(order)
        builder = Builder(1, 1)
        x, params = builder.value(self.num_values), builder.value(self.head.num_params(1))
        steps = _append_steps(builder, self.net, x, params, self.orders[order])
        for (rank, index), _ in zip(enumerate(self.orders[order].tolist()), steps, strict=True):
            builder.draw(self.head, params, x[rank], position=index)
        return builder

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        order: int | None = None,
        seed: int | Tensor | torch.Generator | None = None,
        method: str = "cached",
        label: Tensor | int | None = None,
        temperature: float = 1.0,
        given: Tensor | None = None,
        mask: Tensor | None = None,
        progress: Progress = False,
        weights: str | None = None,
    ) -> Tensor:
        """Draws `n` samples, (n, *image_shape) in [-1, 1], value by value. Arguments are those of
        `ImageModel.sample`, and `order`: one for all samples, or by default one drawn for each of them, so
        that samples follow what `log_prob` gives.

        method="cached" does the arithmetic of one pass, for each order by a program of its own. A drawn value
        is conditioned on the given ones before it in the order: name one in which they come first (a model of
        several orders asks for it).
        """
        check_request(n, method, temperature, weights, "samples")
        if order is not None:
            self._check_order(order)
        elif given is not None and self.num_orders > 1:
            raise ValueError(
                f"order: expected an integer from 0 to {self.num_orders - 1} with given, because it decides "
                "which values are conditioned on the given ones, got None"
            )
        device = self.orders.device
        seed = _seed.as_tensor(seed, device)
        label = labels_of(label, n, self.num_labels, device)
        x, keep = kept(given, mask, self.net.direct.weight.new_zeros(n, *self.image_shape))
        flat, keep, samples = x.flatten(1), keep.flatten(1), torch.arange(n, device=device)  # flat is a view
        chosen = self._draw_orders(n, seed) if order is None else torch.full_like(samples, order)
        members = [(order, samples[chosen == order]) for order in chosen.unique().tolist()]
        noise = {"seed": seed, "temperature": temperature}
        with evaluating(self):
            if method == "cached":
                with reporting(progress, n, "sample") as advance:
                    for order, own in members:
                        flat[own] = sample_cached(
                            self,
                            flat[own].unsqueeze(1),
                            keep[own].unsqueeze(1),
                            label=label if label is None else label[own],
                            weights=weights,
                            samples=own,
                            order=order,
                            **noise,
                        ).squeeze(1)
                        advance(len(own))
                return x
            with reporting(progress, self.num_values, "value") as advance:
                for index in self.orders[chosen].unbind(1):
                    kept_here = keep[samples, index]
                    if not kept_here.all():
                        params = flat.new_empty(n, self.head.num_params(1), self.num_values)
                        for order, own in members:
                            own_params = self(x[own], label if label is None else label[own], order)
                            params[own] = own_params.flatten(2).to(params.dtype)
                        # To the head all values are positions of one channel.
                        draw = self.head.sample(params, 1, **noise).squeeze(1)
                        flat[samples, index] = torch.where(
                            kept_here, flat[samples, index], draw[samples, index].to(flat.dtype)
                        )
                    advance(1)
        return x

    def _draw_orders(self, n: int, seed: Tensor) -> Tensor:
        """The order of each of `n` samples, (n,): a function of the seed and the sample's index, in noise
        that no value uses."""
        word = _philox.words(seed, n, (), 2**32 - 1, seed.device)[0].flatten()
        return (word * self.num_orders) >> 32

    def _context(self, label: Tensor | None, count: int) -> Tensor | None:
        label = check_label(label, count, self.num_labels)
        if label is None:
            return None
        return F.one_hot(label, self.num_labels).to(self.net.direct.weight.dtype)

    def _check_order(self, order: int) -> None:
        _check.integer("order", order)
        if not 0 <= order < self.num_orders:
            raise ValueError(f"order: expected an integer from 0 to {self.num_orders - 1}, got {order}")


def _append_steps(builder: Builder, net: MaskedMLP, x: Value, params: Value, order: Tensor) -> Iterator[None]:
    """Appends to a decode program, for one value of the order after another, what computes the numbers
    about it: `x` holds the values so far in their order, and `params` gets the numbers.

    Hidden units are computed in blocks. A block begins when its first unit is due, with all that is known
    by then, and adds what becomes known until its last unit is complete.
    """
    block = 32
    embeddings = [None] * len(net.layers)
    if net.context is not None:
        embeddings = [layer.weight.t() for layer in net.context]
    hidden = net.layers[:-1]
    degrees = [torch.arange(1, net.num_inputs + 1, device=order.device)]
    weights = [net.layers[0].weight[:, order]] + [layer.weight for layer in net.layers[1:]]
    for layer in hidden:
        degrees.append(net.degrees(layer, order.device))
    for i, own in enumerate(degrees[1:]):
        weights[i] = torch.where(own[:, None] >= degrees[i], weights[i], 0.0)
    direct = net.direct.weight[:, order]
    sums = [builder.value(layer.out_features) for layer in hidden]
    units = [builder.value(layer.out_features) for layer in hidden]
    seen = [[None] * -(-layer.out_features // block) for layer in hidden]  # inputs, by each block

    for rank, index in enumerate(order.tolist()):
        below, known = x, rank
        for i, layer in enumerate(hidden):
            due = net.units_up_to(rank, layer)
            for j in range(-(-due // block)):
                mine = slice(j * block, (j + 1) * block)
                first = seen[i][j] is None
                begin = seen[i][j] or 0
                complete = begin and int(degrees[i + 1][mine][-1]) < rank
                if complete or (known == begin and not first):
                    continue
                weight = weights[i][mine, begin:known]
                builder.layer(
                    [Tap(below, weight, channel=begin)] if known > begin else [],
                    layer.bias[mine] if first else None,
                    outputs=len(weight),
                    embedding=embeddings[i][:, mine] if first and net.context is not None else None,
                    add=None if first else sums[i][mine.start],
                    out=sums[i][mine.start],
                    activated=units[i][mine.start],
                    activated_by="relu",
                )
                seen[i][j] = known
            below, known = units[i], due
        rows = slice(index * net.num_params, (index + 1) * net.num_params)
        taps = [Tap(below, net.layers[-1].weight[rows, :known])] if hidden and known else []
        if rank:
            weight = direct[rows, :rank]
            if not hidden:
                weight = weight + net.layers[-1].weight[rows][:, order[:rank]]
            taps.append(Tap(x, weight))
        embedding = None if net.context is None else embeddings[-1][:, rows]
        builder.layer(
            taps, net.layers[-1].bias[rows], outputs=net.num_params, embedding=embedding, out=params
        )
        yield
