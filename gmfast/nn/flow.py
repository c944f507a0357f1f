"""Normalizing flow: the density of a base distribution under an invertible transform."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .. import _check
from .base_distribution import DistributionBase, as_base
from .transform import Sequential, Transform


class Flow(nn.Module):
    """A normalizing flow: the density of data that `transforms` map to noise distributed as `base`.

    Args:
        base: the distribution of the noise. For a standard normal, the shape of one sample; a
            `BaseDistribution`, such as `DiagonalNormal`, `GaussianMixture` or `BoxUniform`; a
            `torch.distributions.Distribution` whose samples have that shape (`event_shape`, no
            `batch_shape`); or a module that maps the context to a `torch.distributions.Distribution`. Its
            tensors are moved, saved and copied with the flow, and trained if they require gradients
            (`DistributionBase`). The shape is also that of one sample of the data, unless a transform such
            as `Squeeze2d` changes it.
        transforms: from data to noise: a `Transform`, or several in order.

    A `context` is passed to every transform, and to the base: a coupling calls its network as
    `net(a, context)`, the autoregressive transforms take `(B, num_context)`. A tensor has one row for each
    sample, or one row, `(1, ...)`, for all of them; anything else is passed as it is.

    Equivalent to::

        z, log_det = transforms(x)
        log_prob = base.log_prob(z) + log_det
    """

    def __init__(
        self,
        base: tuple[int, ...] | Distribution | nn.Module,
        transforms: Transform | Iterable[Transform],
    ):
        super().__init__()
        transform = transforms if isinstance(transforms, nn.Module) else Sequential(transforms)
        self.base = as_base(base, transform)
        self.shape = self.base.shape
        self.transform = transform

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Map data `x` to noise; returns `(z (B, *shape), log_det)`."""
        _check.tensor("x", x)
        return self.transform(x, _rows(context, x.shape[0] if x.dim() else 1))

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Map noise `z` to data; returns `(x, log_det)`."""
        _check.tensor("z", z)
        return self.transform.inverse(z, _rows(context, z.shape[0] if z.dim() else 1))

    def log_prob(self, x: Tensor, context=None) -> Tensor:
        """Compute the log-density of each sample, (B,), in nats.

        Raises:
            ValueError: for samples whose noise has not the shape of the base.
        """
        z, log_det = self(x, context)
        if self.shape is not None and tuple(z.shape[1:]) != self.shape:
            expected = ", ".join(map(str, ("B", *self.shape)))
            raise ValueError(
                f"x: expected samples with noise of shape ({expected}), the base's, got {tuple(x.shape)} "
                f"with noise of shape {tuple(z.shape)}"
            )
        return self.base_log_prob(z, context) + log_det

    def base_log_prob(self, z: Tensor, context=None) -> Tensor:
        """Compute the base's log-density of noise, (B,), in nats."""
        return self.base.log_prob(z, _rows(context, z.shape[0]))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        context=None,
        temperature: float = 1.0,
        per_context: bool = False,
    ) -> Tensor:
        """Draw `n` samples, (n, *S) for data of shape S.

        Args:
            n: number of samples; may be 0.
            seed: an int, an int64 tensor, or a `torch.Generator`; None draws one from torch's global
                generator. Sample i does not depend on `n`, except with a base that is a
                `torch.distributions.Distribution`, which draws as after `torch.manual_seed`.
            context: what the samples are conditioned on: n rows, or one for all.
            temperature: factor of the standard deviation of a normal base.
            per_context: draw `n` samples for each row of the context, (rows, n, *S).

        Raises:
            ValueError: for a negative `n`, or a temperature other than 1 with a base that is not normal.
        """
        return self._draw(n, seed, context, temperature, per_context)[0]

    def rsample(
        self,
        n: int,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        context=None,
        temperature: float = 1.0,
        per_context: bool = False,
    ) -> Tensor:
        """Draw samples as `sample` does, differentiable in the parameters and the context.

        Raises:
            NotImplementedError: for a base whose samples are not differentiable, such as a mixture.
        """
        self._check_rsample("rsample")
        return self._draw(n, seed, context, temperature, per_context)[0]

    def sample_and_log_prob(
        self,
        n: int,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        context=None,
        per_context: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Draw samples, and compute their log-densities in the same pass.

        Both are differentiable, as those of `rsample_and_log_prob`, unless the base's samples are not.

        Returns:
            Samples as `sample` returns them, and their log-densities (n,), or (rows, n), in nats.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.base.has_rsample):
            return self._draw(n, seed, context, 1.0, per_context, True)

    def rsample_and_log_prob(
        self,
        n: int,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        context=None,
        per_context: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Draw samples and their log-densities, for training by the reverse Kullback-Leibler divergence.

        Raises:
            NotImplementedError: for a base whose samples are not differentiable, such as a mixture.
        """
        self._check_rsample("rsample_and_log_prob")
        return self._draw(n, seed, context, 1.0, per_context, True)

    def _check_rsample(self, name: str) -> None:
        if not self.base.has_rsample:
            raise NotImplementedError(
                f"{name}: expected a base with differentiable samples, got {type(self.base).__name__}"
            )

    def _draw(self, n, seed, context, temperature, per_context, density=False):
        """Return samples, and with `density` their log-densities, else None."""
        _check.integer("n", n)
        if n < 0:
            raise ValueError(f"n: expected a number of samples, got {n}")
        _check.number("temperature", temperature, 0, 1e30)
        total = n
        if per_context:
            if not isinstance(context, Tensor) or context.dim() == 0:
                kind = type(context).__name__ if not isinstance(context, Tensor) else "a scalar"
                raise ValueError(f"context: expected a tensor with a row for each n samples, got {kind}")
            rows, total = len(context), len(context) * n
            context = context.repeat_interleave(n, 0)
        context = _rows(context, total)
        options = {"seed": seed}
        if self.base.has_temperature:
            options["temperature"] = temperature
        elif temperature != 1:
            raise ValueError(f"temperature: expected 1 with a base of one's own, got {temperature}")
        z = self.base.rsample(total, context, **options)
        x, log_det = self.transform.inverse(z, context)
        log_prob = self.base.log_prob(z, context) - log_det if density else None
        if per_context:
            x = x.unflatten(0, (rows, n))
            log_prob = log_prob.unflatten(0, (rows, n)) if density else None
        return x, log_prob

    def extra_repr(self) -> str:
        """Return the base for `repr`."""
        if isinstance(self.base, DistributionBase):
            return f"base={self.base.distribution}"
        return f"base={self.shape}"


def _rows(context, n: int):
    """Expand a context of one row to `n` samples."""
    if not isinstance(context, Tensor) or context.shape[:1] == (n,):
        return context
    if context.shape[:1] != (1,):
        rows = len(context) if context.dim() else "a scalar"
        raise ValueError(f"context: expected {n} rows, or one, got {rows}")
    return context.expand(n, *context.shape[1:])
