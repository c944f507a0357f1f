"""Output heads of autoregressive models: distributions of a position's values, given a network's output.

Values are floats in [-1, 1], class `v` of `num_levels` at `2 * v / (num_levels - 1) - 1`. Noise is keyed by
(seed, sample, position); `sample(..., position=p)` takes params `(B, P, 1)` of position p alone.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _check, _philox, _seed
from ... import functional as GF


class Categorical:
    """Softmax over the levels of each channel; `params (B, C * num_levels, *S)`, channel by channel."""

    name = "categorical"
    #: Whether the channels of a position are drawn together: the parameters couple them.
    joint = False

    def __init__(self, num_levels: int):
        if num_levels > 4096:
            raise ValueError(
                f'num_levels: expected at most 4096 for head="categorical" ("mixture" takes more), '
                f"got {num_levels}"
            )
        self.num_levels = num_levels

    def num_params(self, channels: int) -> int:
        """Number of parameters for `channels` values at a position."""
        return channels * self.num_levels

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        """Negative log-likelihood at each position, `(B, *S)`, in nats; float32 for half-precision params.

        Values between two levels count as the nearest.

        Raises:
            ValueError: For values beyond [-1, 1], which are checked on the CPU only.
        """
        levels = ((x + 1) * ((self.num_levels - 1) / 2)).round().long()
        if _check.readable(levels) and levels.numel():
            low, high = levels.aminmax()
            if low < 0 or high >= self.num_levels:
                low, high = x.aminmax()
                raise ValueError(
                    f"x: expected values in [-1, 1], got values from {low.item():g} to {high.item():g}"
                )
        logits = _wide(params).unflatten(1, (x.shape[1], self.num_levels)).transpose(1, 2)
        return F.cross_entropy(logits, levels, reduction="none").sum(1)

    def bits_per_dim(self, x: Tensor, params: Tensor) -> Tensor:
        """Negative log-likelihood of the batch in bits per dimension, a scalar."""
        return self.nll(x, params).sum() / (x.numel() * math.log(2))

    def sample(
        self, params: Tensor, channels: int, *, seed: Tensor, temperature: float = 1.0, position: int = 0
    ) -> Tensor:
        """Draw at each position by the inverse CDF, `(B, C, *S)`; float64 for float64 params, else float32.

        `seed` is an int64 tensor on the params' device.
        """
        logits = _wide(params).unflatten(1, (channels, self.num_levels))
        shape = params.shape[0], params.shape[2:], channels
        uniform = _philox.uniform(
            seed, *shape, logits.dtype, params.device, position, _seed.first()
        ).unsqueeze(2)
        scaled = (logits - logits.amax(2, keepdim=True)) / max(temperature, 1e-30)
        cumulative = torch.exp(scaled).cumsum(2)
        below = (cumulative <= uniform * cumulative[:, :, -1:]).sum(2).clamp(max=self.num_levels - 1)
        return 2 * below.to(logits.dtype) / (self.num_levels - 1) - 1


class Bernoulli(Categorical):
    """One logit for each channel with two levels; `params (B, C, *S)`."""

    name = "bernoulli"

    def __init__(self, num_levels: int = 2):
        if num_levels != 2:
            raise ValueError(f"num_levels: expected 2 for a Bernoulli head, got {num_levels}")
        super().__init__(2)

    def num_params(self, channels: int) -> int:
        """Number of parameters for `channels` values at a position."""
        return channels

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        """Negative log-likelihood at each position, `(B, *S)`, in nats."""
        logits = _wide(params)
        return -F.logsigmoid(torch.where(x > 0, logits, -logits)).sum(1)

    def sample(
        self, params: Tensor, channels: int, *, seed: Tensor, temperature: float = 1.0, position: int = 0
    ) -> Tensor:
        """Draw at each position, `(B, C, *S)`."""
        logits = torch.stack([torch.zeros_like(params), params], 2).flatten(1, 2)
        return super().sample(logits, channels, seed=seed, temperature=temperature, position=position)


class LogisticMixture:
    """Mixture of K discretized logistics at each position, its 1 or 3 channels coupled as in PixelCNN++.

    `params` are laid out as `gmfast.functional.discretized_logistic_mixture_nll` takes them.
    """

    name, joint = "mixture", True

    def __init__(self, num_levels: int, num_components: int = 10):
        self.num_levels, self.num_components = num_levels, num_components
        # The published limit, -7 for 256 levels; finer levels allow for logistics as much narrower.
        self.log_scale_min = min(-7.0, -7.0 - math.log((num_levels - 1) / 255))

    def num_params(self, channels: int) -> int:
        """Number of parameters for `channels` values at a position."""
        if channels not in (1, 3):
            raise ValueError(f"channels: expected 1 or 3 for a logistic mixture, got {channels}")
        return (3 if channels == 1 else 10) * self.num_components

    def nll(self, x: Tensor, params: Tensor) -> Tensor:
        """Negative log-likelihood at each position, `(B, *S)`, in nats."""
        return GF.discretized_logistic_mixture_nll(
            x, params, num_classes=self.num_levels, log_scale_min=self.log_scale_min
        )

    def bits_per_dim(self, x: Tensor, params: Tensor) -> Tensor:
        """Negative log-likelihood of the batch in bits per dimension, a scalar; its gradient in one pass."""
        return GF.discretized_logistic_mixture_nll(
            x,
            params,
            num_classes=self.num_levels,
            log_scale_min=self.log_scale_min,
            reduction="bits_per_dim",
        )

    def sample(
        self, params: Tensor, channels: int, *, seed: Tensor, temperature: float = 1.0, position: int = 0
    ) -> Tensor:
        """Draw at each position, `(B, C, *S)`."""
        if position:  # the operation counts from 0: draw at all positions up to this one, and keep the last
            params = params.expand(-1, -1, position + 1)
        draws = GF.discretized_logistic_mixture_sample(
            params,
            channels=channels,
            num_classes=self.num_levels,
            log_scale_min=self.log_scale_min,
            temperature=temperature,
            seed=seed,
        )
        return draws[:, :, -1:] if position else draws


Head = Categorical | LogisticMixture


def make_head(name: str, num_levels: int, nr_logistic_mix: int, names: Sequence[str] = ()) -> Head:
    """Make the head called `name`, one of `names`; by default any.

    Raises:
        ValueError: For another name, or numbers of levels or components that it cannot have.
    """
    names = names or tuple(HEADS)
    if name not in names:
        raise ValueError(f"head: expected one of {', '.join(names)}, got {name!r}")
    _check.at_least(2, num_levels=num_levels)
    _check.at_least(1, nr_logistic_mix=nr_logistic_mix)
    return HEADS[name](num_levels, *([nr_logistic_mix] if name == "mixture" else []))


def _wide(params: Tensor) -> Tensor:
    """Params in float32 at least: half precision is too coarse for likelihoods and for draws."""
    return params if params.dtype == torch.float64 else params.float()


#: Heads by the names that models take for `head=`.
HEADS = {"categorical": Categorical, "bernoulli": Bernoulli, "mixture": LogisticMixture}
