"""Normalizing flow: the density of a base distribution under an invertible transform."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .. import _check, _seed
from .. import functional as GF
from .transform import Sequential, Transform


class Flow(nn.Module):
    """A normalizing flow: the density of data that `transforms` map to noise distributed as `base`.

    Args:
        base: for a standard normal, the shape of one sample's noise; or a `torch.distributions.Distribution`
            whose samples have that shape (`event_shape`, no `batch_shape`). It is also the shape of one
            sample of the data, unless a transform such as `Squeeze2d` changes it.
        transforms: from data to noise: a `Transform`, or several in order.

    A `context` is passed to every transform: a coupling calls its network as `net(a, context)`, the
    autoregressive transforms take `(B, num_context)`. A tensor has one row for each sample, or one row,
    `(1, ...)`, for all of them; anything else is passed as it is.

    Equivalent to::

        z, log_det = transforms(x)
        log_prob = base.log_prob(z) + log_det
    """

    def __init__(self, base: tuple[int, ...] | Distribution, transforms: Transform | Iterable[Transform]):
        super().__init__()
        if isinstance(base, Distribution):
            if base.batch_shape:
                raise ValueError(
                    f"base: expected no batch_shape (torch.distributions.Independent makes it part of the "
                    f"event), got {tuple(base.batch_shape)}"
                )
            self.base, self.shape = base, tuple(base.event_shape)
        else:
            if not isinstance(base, tuple | list):
                raise TypeError(f"base: expected a shape or a Distribution, got {type(base).__name__}")
            for size in base:
                _check.integer("base", size)
            self.base, self.shape = None, tuple(base)
        self.transform = transforms if isinstance(transforms, nn.Module) else Sequential(transforms)
        like = next(self.transform.parameters(), torch.empty(0))
        # For the device and the dtype of samples, even if there are no parameters.
        self.register_buffer("_like", like.detach().new_empty(0), persistent=False)

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
        if tuple(z.shape[1:]) != self.shape:
            expected = ", ".join(map(str, ("B", *self.shape)))
            raise ValueError(
                f"x: expected samples with noise of shape ({expected}), the base's, got {tuple(x.shape)} "
                f"with noise of shape {tuple(z.shape)}"
            )
        return self.base_log_prob(z) + log_det

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Compute the base's log-density of noise, (B,), in nats."""
        return GF.gaussian_log_prob(z) if self.base is None else self.base.log_prob(z)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        context=None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw `n` samples, (n, *S) for data of shape S.

        Args:
            n: number of samples; may be 0.
            seed: an int, an int64 tensor, or a `torch.Generator`; None draws one from torch's global
                generator. Sample i does not depend on `n`, except with a given base distribution, which
                draws as after `torch.manual_seed`.
            context: what the samples are conditioned on: n rows, or one for all.
            temperature: standard deviation of the standard normal base.

        Raises:
            ValueError: for a negative `n`, or a temperature other than 1 with a given base distribution.
        """
        _check.integer("n", n)
        if n < 0:
            raise ValueError(f"n: expected a number of samples, got {n}")
        _check.number("temperature", temperature, 0, 1e30)
        context = _rows(context, n)
        if self.base is None:
            z = GF.standard_normal(
                (n, *self.shape), seed=seed, dtype=self._like.dtype, device=self._like.device
            )
            z = z * temperature if temperature != 1 else z
        else:
            if temperature != 1:
                raise ValueError(f"temperature: expected 1 with a base of one's own, got {temperature}")
            devices = [self._like.device] if self._like.device.type != "cpu" else []
            with torch.random.fork_rng(devices, enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(int(_seed.as_tensor(seed, torch.device("cpu"))))
                first = _seed.first()  # torch's generators draw those before it too
                z = self.base.sample((first + n,))[first:]
        return self.inverse(z, context)[0]

    def extra_repr(self) -> str:
        """Return the base for `repr`."""
        return f"base={self.shape if self.base is None else self.base}"


def _rows(context, n: int):
    """Expand a context of one row to `n` samples."""
    if not isinstance(context, Tensor) or context.shape[:1] == (n,):
        return context
    if context.shape[:1] != (1,):
        rows = len(context) if context.dim() else "a scalar"
        raise ValueError(f"context: expected {n} rows, or one, got {rows}")
    return context.expand(n, *context.shape[1:])
