"""Distributions in the manner of `torch.distributions`."""

import math

import torch
from torch.distributions import Distribution, Transform, constraints

from . import functional as GF
from ._mixture_params import split_params
from .ops.discretized_logistic_mixture import check_params


class DiscretizedLogisticMixture(Distribution):
    """Images whose pixels are mixtures of discretized logistics (Salimans et al., 2017, arXiv:1701.05517).

    Batch shape `(B,)`, event shape `(C, *S)`: an event is an image, its pixels independent given
    `params`, its colours not. The batch dimension of a value is the one before the event's.

    Args:
        params: `(B, 3K, *S)` for one channel or `(B, 10K, *S)` for three, laid out as
            `gmfast.functional.discretized_logistic_mixture_nll` documents; finite.
        channels: 1 or 3.
        num_classes: number of values a pixel can take, equally spaced in [-1, 1].
        log_scale_min: log-scales below are raised to it.
    """

    has_rsample = False

    def __init__(self, params, *, channels=3, num_classes=256, log_scale_min=-7.0, validate_args=None):
        check_params(params, channels, num_classes, log_scale_min)
        validate = Distribution._validate_args if validate_args is None else validate_args
        if validate and not params.isfinite().all():
            raise ValueError("params: expected finite numbers, got NaN or infinity")
        self.params = params
        self.channels = channels
        self.num_classes = num_classes
        self.log_scale_min = log_scale_min
        super().__init__(params.shape[:1], (channels, *params.shape[2:]), validate_args=validate_args)

    @property
    def arg_constraints(self):
        return {"params": constraints.independent(constraints.real, self.params.dim() - 1)}

    @property
    def support(self):
        return constraints.independent(constraints.interval(-1.0, 1.0), len(self.event_shape))

    @property
    def mean(self):
        """`(B, C, *S)`: the mean before clamping and rounding to classes."""
        logits, means, _, coeffs = split_params(self.params, self.channels)
        if coeffs is not None:
            # A colour's mean is linear in the colours before it, so their means may stand in for them.
            weight = torch.tanh(coeffs)
            red = means[:, 0]
            green = means[:, 1] + weight[:, 0] * red
            blue = means[:, 2] + weight[:, 1] * red + weight[:, 2] * green
            means = torch.stack([red, green, blue], 1)
        return (logits.softmax(1).unsqueeze(1) * means).sum(2)

    def log_prob(self, value):
        """Nats, `(*sample_shape, B)`, of `value (*sample_shape, B, C, *S)` in [-1, 1]. Differentiable."""
        events = len(self.event_shape)
        if value.shape[-events:] != self.event_shape:
            expected = ", ".join(map(str, (*self.batch_shape, *self.event_shape)))
            raise ValueError(f"value: expected shape (*, {expected}), got {tuple(value.shape)}")
        if self._validate_args and value.numel():
            low, high = value.aminmax()
            if not (low >= -1 and high <= 1):
                raise ValueError(f"value: expected numbers in [-1, 1], got {low:g} to {high:g}")
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        sample_shape = shape[: len(shape) - self.params.dim()]
        params = self.params.expand(*sample_shape, *self.params.shape)
        count = math.prod(shape[:-events])
        loss = GF.discretized_logistic_mixture_nll(
            value.expand(shape).reshape(count, *self.event_shape),
            params.reshape(count, *self.params.shape[1:]),
            num_classes=self.num_classes,
            log_scale_min=self.log_scale_min,
            reduction="batch",
        )
        return -loss.reshape(*sample_shape, *self.batch_shape)

    def sample(self, sample_shape=(), *, seed=None):
        """`(*sample_shape, B, C, *S)`: classes' values in [-1, 1]. `seed` as everywhere in gmfast."""
        params = self.params.detach().expand(*sample_shape, *self.params.shape)
        image = GF.discretized_logistic_mixture_sample(
            params.reshape(math.prod(params.shape[: -len(self.event_shape)]), *self.params.shape[1:]),
            channels=self.channels,
            num_classes=self.num_classes,
            log_scale_min=self.log_scale_min,
            seed=seed,
        )
        return image.reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    def expand(self, batch_shape, _instance=None):
        if len(batch_shape) != 1:
            raise ValueError(f"batch_shape: expected (B,), got {tuple(batch_shape)}")
        (batch,) = batch_shape
        return DiscretizedLogisticMixture(
            self.params.expand(batch, *self.params.shape[1:]),
            channels=self.channels,
            num_classes=self.num_classes,
            log_scale_min=self.log_scale_min,
            validate_args=self._validate_args,
        )


class FlowTransform(Transform):
    """A transform of `gmfast.nn` as a `torch.distributions.Transform`, for flows written against those
    (torch, Pyro, zuko).

    It has the transform's own direction: calling it is `transform.forward`, from data to noise, and `.inv`
    is `transform.inverse`. `torch.distributions.TransformedDistribution` wants the way from noise to data::

        view = FlowTransform(transform, event_dim=1)
        density = TransformedDistribution(Independent(Normal(zeros, ones), 1), [view.inv])
        density.log_prob(x)  # base.log_prob(z) + log_det of z, log_det = transform(x)
        density.rsample((10,))

    and `zuko.distributions.NormalizingFlow(view, base)` the way to noise. Values are `(*batch, *event)` with
    any number of batch dimensions, or none.

    Args:
        transform: a `gmfast.nn.Transform` that keeps the shape of its input. Its parameters are not
            registered anywhere by this view.
        event_dim: how many dimensions a sample has: 1 for `(B, C)`, 3 for images.
        context: passed on; a tensor `(*batch, F…)` is expanded to the batch dimensions of values, which
            must end in its own.
        context_event_dim: how many dimensions at the end of `context` are no batch dimensions.
        cache_size: 1 keeps the last pair of values, so that what was just drawn is not transformed back for
            its density. The very same tensor then has the value it had, even where parameters have changed
            since, or the value was computed without gradients: for use between two steps of training, in one
            mode. The log-determinant of the last pair is kept in any case.
    """

    bijective = True

    def __init__(self, transform, event_dim, context=None, *, context_event_dim=1, cache_size=0):
        if event_dim < 1:
            raise ValueError(f"event_dim: expected 1 or more, got {event_dim}")
        super().__init__(cache_size=cache_size)
        self.transform, self._event_dim = transform, event_dim
        self.context, self.context_event_dim = context, context_event_dim
        self._last = None  # x, y and the log-determinant from x to y

    @property
    def domain(self):
        return constraints.independent(constraints.real, self._event_dim)

    codomain = domain

    def with_cache(self, cache_size=1):
        if cache_size == self._cache_size:
            return self
        return FlowTransform(
            self.transform,
            self._event_dim,
            self.context,
            context_event_dim=self.context_event_dim,
            cache_size=cache_size,
        )

    def _call(self, x):
        y, log_det = self._run(self.transform, x)
        self._last = x, y, log_det
        return y

    def _inverse(self, y):
        x, log_det = self._run(self.transform.inverse, y)
        self._last = x, y, -log_det
        return x

    def log_abs_det_jacobian(self, x, y):
        """`(*batch,)`, of the way from `x` to `y`; computed from `x` unless it is the last pair's."""
        if self._last is not None and self._last[0] is x and self._last[1] is y:
            return self._last[2]
        return self._run(self.transform, x)[1]

    def call_and_ladj(self, x):
        """The value and the log-determinant there, in one pass (zuko's name)."""
        y = self(x)
        return y, self.log_abs_det_jacobian(x, y)

    def _run(self, function, x):
        if x.dim() < self._event_dim:
            raise ValueError(f"x: expected {self._event_dim} or more dimensions, got {tuple(x.shape)}")
        batch, event = x.shape[: x.dim() - self._event_dim], x.shape[x.dim() - self._event_dim :]
        context = self.context
        if isinstance(context, torch.Tensor):
            own = context.shape[context.dim() - self.context_event_dim :]
            context = context.expand(*batch, *own).reshape(math.prod(batch), *own)
        y, log_det = function(x.reshape(math.prod(batch), *event), context)
        if y.shape[1:] != event:
            raise ValueError(
                f"transform: expected a result of the shape of its input, {tuple(event)}, got "
                f"{tuple(y.shape[1:])}"
            )
        return y.reshape(x.shape), log_det.reshape(batch)
