"""Activation normalization: a scale and a shift for each channel, set by the first batch."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import _check
from .. import functional as GF
from .transform import Transform

#: The largest scale that initialisation sets: channels that vary less than its inverse stay below variance 1.
MAX_SCALE = 1e6


class ActNorm(Transform):
    """`y = (x + shift)·exp(log_scale)`, a shift and a log-scale for each channel (Glow, arXiv:1807.03039), by
    `gmfast.functional.actnorm`.

    The first batch in training mode sets them, so that after it each channel of `y` has mean 0 and variance 1
    over the batch and all positions. The first batch may also come through `inverse` where gradients are
    enabled (a flow trained in that direction): then `x` has mean 0 and variance 1. Before that, in eval mode,
    and in sampling, the transform is what its parameters say: the identity at first.

    A channel that is constant in the first batch keeps scale 1, and no scale starts above 1e6. Where
    `torch.distributed` is initialised, all processes must see their first batch together: the statistics are
    those of all their samples. `initialized` is part of the state dict, so a trained state that is loaded is
    never overwritten; set it (`actnorm.initialized.fill_(True)`) after writing the parameters by hand.

    Only a module that has not been initialised reads `initialized` from its device. The first batch changes
    the path that runs, so `torch.compile` compiles once more after it: initialise before, with one batch or
    `initialize`.

    Args:
        channels: C of `x (B, C, *S)`.
    """

    def __init__(self, channels: int, *, device=None, dtype=None):
        super().__init__()
        _check.at_least(1, channels=channels)
        self.shift = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.log_scale = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("initialized", torch.zeros((), device=device, dtype=torch.bool))
        self._known_initialized = False  # the host's copy; false may be out of date, true never is

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        _check.channels("x", x, len(self.shift))
        if self.training and not self._known_initialized:
            self._first_batch(x, inverse=False)
        return GF.actnorm(x, self.shift, self.log_scale)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        _check.channels("z", z, len(self.shift))
        if self.training and not self._known_initialized and torch.is_grad_enabled():
            self._first_batch(z, inverse=True)
        return GF.actnorm(z, self.shift, self.log_scale, inverse=True)

    def initialize(self, x: Tensor, *, inverse: bool = False) -> None:
        """Sets the parameters by the batch `x`, whatever they were: `forward(x)`, or `inverse(x)` if
        `inverse`, then has mean 0 and variance 1 in each channel. An empty batch changes nothing."""
        _check.channels("x", x, len(self.shift))
        self._set(x, inverse)

    def _set(self, x: Tensor, inverse: bool, unless: Tensor | None = None) -> None:
        """`unless`: a boolean on the device; where it is true the parameters stay."""
        with torch.no_grad():
            mean, std, count = self._statistics(x)
            # A float32 mean of equal numbers is right to rounding: a smaller deviation is none.
            noise = torch.finfo(x.dtype).eps * mean.abs()
            log_std = torch.where(std > noise, std.clamp(min=1 / MAX_SCALE).log(), 0.0)
            shift, log_scale = (mean * torch.exp(-log_std), log_std) if inverse else (-mean, -log_std)
            if not torch.compiler.is_compiling():
                if not count:
                    return
                if not (shift.isfinite().all() and log_scale.isfinite().all()):
                    raise ValueError("x: expected finite numbers in the batch that initialises, got others")
            if unless is not None:
                shift = torch.where(unless, self.shift, shift)
                log_scale = torch.where(unless, self.log_scale, log_scale)
            self.shift.copy_(shift)
            self.log_scale.copy_(log_scale)
            self.initialized.fill_(True)
        self._known_initialized = True

    def _first_batch(self, x: Tensor, inverse: bool) -> None:
        if torch.compiler.is_compiling():  # which cannot branch by a number on the device
            self._set(x, inverse, unless=self.initialized)
        elif self.initialized:
            self._known_initialized = True  # written by hand, or by another process
        else:
            self._set(x, inverse)

    def _statistics(self, x: Tensor):
        """Mean and standard deviation of each channel over all processes, in float64, and how many numbers
        they are of."""
        x = x.detach().to(torch.float64).transpose(0, 1).flatten(1)
        count = torch.full((1,), x.shape[1], dtype=torch.float64, device=x.device)
        total = self._over_processes(torch.cat([x.sum(1), count]))
        mean, count = total[:-1] / total[-1], total[-1]
        variance = self._over_processes((x - mean[:, None]).square().sum(1)) / count
        return mean, variance.sqrt(), count

    @staticmethod
    def _over_processes(total: Tensor) -> Tensor:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        return total

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._known_initialized = not self.initialized.is_meta and bool(self.initialized)

    def extra_repr(self) -> str:
        return f"{len(self.shift)}"
