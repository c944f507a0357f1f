"""Distributions and transforms for `torch.distributions`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints

from . import functional as GF
from ._mixture_params import split_params
from .ops.discretized_logistic_mixture import check_params


class DiscretizedLogisticMixture(Distribution):
    """Mixture of discretized logistics over images (Salimans et al., 2017, arXiv:1701.05517).

    Batch shape `(B,)`, event shape `(C, *S)`: given `params`, the pixels of an image are independent, its
    colours are not. The batch dimension of a value is the last one before the event's.

    Args:
        params: `(B, 3K, *S)` for one channel or `(B, 10K, *S)` for three, in the layout of
            `gmfast.functional.discretized_logistic_mixture_nll`; finite.
        channels: C, 1 or 3.
        num_classes: number of levels of a pixel, evenly spaced in [-1, 1].
        log_scale_min: lower bound of the log-scales.
        validate_args: whether parameters and values are checked; None: torch's global default.

    Raises:
        ValueError: for shapes and values. TypeError: for dtypes.
    """

    has_rsample = False

    def __init__(
        self,
        params: Tensor,
        *,
        channels: int = 3,
        num_classes: int = 256,
        log_scale_min: float = -7.0,
        validate_args: bool | None = None,
    ):
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
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """Constraints of the parameters."""
        return {"params": constraints.independent(constraints.real, self.params.dim() - 1)}

    @property
    def support(self) -> constraints.Constraint:
        """Images in [-1, 1]."""
        return constraints.independent(constraints.interval(-1.0, 1.0), len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """The mean before clamping and rounding to levels, `(B, C, *S)`."""
        logits, means, _, coeffs = split_params(self.params, self.channels)
        if coeffs is not None:
            # A colour's conditional mean is linear in the previous colours: their means replace them.
            weight = torch.tanh(coeffs)
            red = means[:, 0]
            green = means[:, 1] + weight[:, 0] * red
            blue = means[:, 2] + weight[:, 1] * red + weight[:, 2] * green
            means = torch.stack([red, green, blue], 1)
        return (logits.softmax(1).unsqueeze(1) * means).sum(2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log-probability in nats, `(*sample_shape, B)`; differentiable.

        Args:
            value: `(*sample_shape, B, C, *S)`, in [-1, 1].
        """
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

    def sample(
        self, sample_shape: Sequence[int] = (), *, seed: int | Tensor | torch.Generator | None = None
    ) -> Tensor:
        """Draw images, `(*sample_shape, B, C, *S)`, of levels in [-1, 1].

        Args:
            sample_shape: shape of the samples.
            seed: an int, an int64 tensor or a generator; None draws one from torch's global generator.
        """
        params = self.params.detach().expand(*sample_shape, *self.params.shape)
        image = GF.discretized_logistic_mixture_sample(
            params.reshape(math.prod(params.shape[: -len(self.event_shape)]), *self.params.shape[1:]),
            channels=self.channels,
            num_classes=self.num_classes,
            log_scale_min=self.log_scale_min,
            seed=seed,
        )
        return image.reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    def expand(self, batch_shape: Sequence[int], _instance=None) -> "DiscretizedLogisticMixture":
        """Return the distribution with its parameters expanded to `batch_shape`, (B,)."""
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
    """Adapter from `gmfast.nn.Transform` to `torch.distributions.Transform` (torch, Pyro, zuko).

    Calling it is `transform.forward`, from data to noise, and `.inv` is `transform.inverse`.
    `torch.distributions.TransformedDistribution` takes the direction from noise to data::

        view = FlowTransform(transform, event_dim=1)
        density = TransformedDistribution(Independent(Normal(zeros, ones), 1), [view.inv])
        density.log_prob(x)  # base.log_prob(z) + log_det of z, log_det = transform(x)
        density.rsample((10,))

    and `zuko.distributions.NormalizingFlow(view, base)` that to noise. Values are `(*batch, *event)` with any
    number of batch dimensions, or none.

    Args:
        transform: a `gmfast.nn.Transform` that preserves the shape of its input. The adapter does not
            register its parameters.
        event_dim: number of dimensions of a sample: 1 for `(B, C)`, 3 for images.
        context: passed to the transform; a tensor `(*batch, F…)` is expanded to the batch dimensions of
            values, which must end in its own.
        context_event_dim: number of trailing dimensions of `context` that are not batch dimensions.
        cache_size: 1 caches the last pair of values, so that a sample just drawn is not inverted for its
            density. The same tensor then gets the cached value even if parameters have changed since, or the
            value was computed without gradients: use it between two training steps, in one mode. The
            log-determinant of the last pair is always cached.

    Raises:
        ValueError: for an `event_dim` below 1.
    """

    bijective = True

    def __init__(
        self,
        transform: nn.Module,
        event_dim: int,
        context=None,
        *,
        context_event_dim: int = 1,
        cache_size: int = 0,
    ):
        if event_dim < 1:
            raise ValueError(f"event_dim: expected 1 or more, got {event_dim}")
        super().__init__(cache_size=cache_size)
        self.transform, self._event_dim = transform, event_dim
        self.context, self.context_event_dim = context, context_event_dim
        self._last = None  # the last x, y and log-determinant from x to y

    @property
    def domain(self) -> constraints.Constraint:
        """Real samples of `event_dim` dimensions; the codomain is the same."""
        return constraints.independent(constraints.real, self._event_dim)

    codomain = domain

    def with_cache(self, cache_size: int = 1) -> "FlowTransform":
        """Return the same transform with another cache size."""
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

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant from `x` to `y`, `(*batch,)`, computed from `x` unless it is cached."""
        if self._last is not None and self._last[0] is x and self._last[1] is y:
            return self._last[2]
        return self._run(self.transform, x)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value and the log-determinant, in one pass (zuko's name)."""
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
