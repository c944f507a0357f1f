"""MADE: Germain, Gregor, Murray and Larochelle, 2015, https://arxiv.org/abs/1502.03509."""

import math
from collections.abc import Iterator
from random import Random
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _check, _philox, _seed
from ..._progress import Progress, reporting
from ...decode.builder import Builder, Tap, Value
from ...nn import MaskedMLP
from ..base import Cached, Likelihood, Model, check_method, evaluating
from .heads import make_head
from .sampling import place_given, sample_cached

_DIGITS = {"lr": 0.003, "options": {"num_orders": 16, "nr_logistic_mix": 5}}


class MADE(Cached, Likelihood, Model):
    """Masked autoencoder for distribution estimation (Germain et al., 2015, arXiv:1502.03509).

    An exact likelihood in one pass of a multilayer perceptron whose masks let each value depend on those
    before it in some order. One set of weights serves several orders, and the model is the mixture of their
    distributions.

    Values are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`.

    Args:
        image_shape: Shape of one sample, of any rank; its D values are numbered in raster order.
        hidden: Sizes of the hidden layers; none for a linear model.
        num_orders: Number of orders; the first is the raster order, the others are random.
        head: Distribution of a value: "bernoulli" (the paper's; 2 levels), "categorical" or "mixture" (of
            discretized logistics).
        nr_logistic_mix: Components of the mixture.
        order_seed: Seed of the random orders, which are part of the state dict.
        num_levels: Number of levels of a value.
        num_labels: Number of classes to condition on, which every unit sees; None for an unconditional model.

    Raises:
        ValueError: For values out of range, naming the argument.
    """

    modalities = frozenset({"images"})
    family = "autoregressive model"
    settings: ClassVar = {
        "digits": _DIGITS,
        "binary-digits": {"lr": 0.003, "options": {"num_orders": 16, "head": "bernoulli"}},
        # Its layers grow with the square of the number of values: small photos.
        "photos": {"size": 8, "lr": 0.003, "options": {"nr_logistic_mix": 5}},
    }

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
        super().__init__(num_levels, num_labels)
        image_shape, hidden = tuple(image_shape), tuple(hidden)
        for name, sizes, low in (("image_shape", image_shape, 1), ("hidden", hidden, 0)):
            if len(sizes) < low or not all(isinstance(size, int) and size > 0 for size in sizes):
                raise ValueError(f"{name}: expected positive integers, got {sizes}")
        _check.at_least(1, num_orders=num_orders)
        self.image_shape = image_shape
        self.num_values, self.num_orders = math.prod(image_shape), num_orders
        self.head = make_head(head, num_levels, nr_logistic_mix)
        self.net = MaskedMLP(self.num_values, hidden, self.head.num_params(1), num_labels or 0)
        raster, random = range(self.num_values), Random(order_seed)
        orders = [raster] + [random.sample(raster, self.num_values) for _ in range(num_orders - 1)]
        # (num_orders, D): by order and rank, the index of the value.
        self.register_buffer("orders", torch.tensor([list(order) for order in orders]))

    def forward(self, x: Tensor, label: Tensor | None = None, order: int | Tensor = 0) -> Tensor:
        """Parameters of every value's distribution given the values before it in an order.

        Args:
            x: Samples `(B, *image_shape)` in [-1, 1].
            label: Class indices `(B,)` for a conditional model.
            order: Index of the order; an int64 tensor `()` is not checked.

        Returns:
            `(B, P, *image_shape)`, the P parameters of the head for one channel.
        """
        label = self.check_input(x, label)
        if isinstance(order, Tensor):
            ranks = self.orders.index_select(0, order.reshape(1))[0]
        else:
            self._check_order(order)
            ranks = self.orders[order]
        context = None
        if label is not None:
            context = F.one_hot(label, self.num_labels).to(self.net.direct.weight.dtype)
        params = self.net(x.flatten(1), ranks, context)
        return params.transpose(1, 2).unflatten(2, self.image_shape)

    def log_prob(self, x: Tensor, label: Tensor | None = None, order: int | None = None) -> Tensor:
        """Log-probability of each sample, `(B,)`, in nats: in one order, or of the mixture of all."""
        if order is not None:
            return -self.head.nll(x.unsqueeze(1), self(x, label, order)).flatten(1).sum(1)
        log_probs = [self.log_prob(x, label, order) for order in range(self.num_orders)]
        return torch.logsumexp(torch.stack(log_probs), 0) - math.log(self.num_orders)

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of the batch in bits per dimension, a scalar.

        In training mode of one order, drawn from torch's global generator; else of the mixture of all, as in
        `log_prob`.
        """
        if self.training:
            order = torch.randint(self.num_orders, (), device=x.device)
            return self.head.bits_per_dim(x.unsqueeze(1), self(x, label, order))
        return -self.log_prob(x, label).mean() / (self.num_values * math.log(2))

    def decoder(self, order: int = 0) -> Builder:
        """The model as a decode program for one of its orders: one position with a draw for each value."""
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
        """Draw `n` samples, `(n, *image_shape)` in [-1, 1], value by value.

        Arguments are those of `PixelCNN.sample`, and `order`. method="cached" does the arithmetic of one
        pass, by a decode program for each order.

        Args:
            n: Number of samples, 0 or more.
            order: Index of the order for all samples; None: one is drawn for each of them, so that samples
                follow `log_prob`. A drawn value is conditioned on the given ones before it in the order, so
                that a model of several orders needs one in which they come first.
            seed: As in `PixelCNN.sample`.
            method: "cached" or "naive".
            label: One class or `(n,)` of them, for a conditional model.
            temperature: Factor of the noise.
            given: Values that are kept where `mask` is not zero.
            mask: Nonzero where a value is given.
            progress: As in `PixelCNN.sample`.
            weights: Dtype that weights are rounded to.

        Raises:
            ValueError: For values, naming the argument. TypeError: For types.
        """
        check_method(method, weights)
        if order is not None:
            self._check_order(order)
        elif given is not None and self.num_orders > 1:
            raise ValueError(
                f"order: expected an integer from 0 to {self.num_orders - 1} with given, because it decides "
                "which values are conditioned on the given ones, got None"
            )
        request = self.request(n, seed=seed, label=label, temperature=temperature)
        seed, label, device = request.seed, request.label, self.orders.device
        x, keep = place_given(given, mask, self.net.direct.weight.new_zeros(n, *self.image_shape))
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
                            samples=own + _seed.first(),
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
                        # For the head, all values are positions of one channel.
                        draw = self.head.sample(params, 1, **noise).squeeze(1)
                        flat[samples, index] = torch.where(
                            kept_here, flat[samples, index], draw[samples, index].to(flat.dtype)
                        )
                    advance(1)
        return x

    def _draw_orders(self, n: int, seed: Tensor) -> Tensor:
        """Order of each of `n` samples, `(n,)`, keyed by seed and sample, from noise that no value uses."""
        word, *_ = _philox.words(seed, n, (), 2**32 - 1, seed.device, first=_seed.first())
        return (word.flatten() * self.num_orders) >> 32

    def _check_order(self, order: int) -> None:
        _check.integer("order", order)
        if not 0 <= order < self.num_orders:
            raise ValueError(f"order: expected an integer from 0 to {self.num_orders - 1}, got {order}")


def _append_steps(builder: Builder, net: MaskedMLP, x: Value, params: Value, order: Tensor) -> Iterator[None]:
    """Append the layers for one value of the order after another, yielding after each.

    `x` holds the values drawn so far in their order, and `params` gets the value's parameters. Hidden units
    are computed in blocks: a block begins when its first unit is due, with the inputs known by then, and adds
    later inputs until its last unit is complete.
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
    seen = [[None] * -(-layer.out_features // block) for layer in hidden]  # inputs added, by block

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
