"""Distributions in the manner of `torch.distributions`."""

import math

import torch
from torch.distributions import Distribution, constraints

from . import functional as GF
from .ops.discretized_logistic_mixture import check_params
from .reference.discretized_logistic_mixture import split_params


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
