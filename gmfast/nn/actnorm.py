"""Activation normalisation: a scale and a shift for each channel, initialised by the first batch."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import _check
from .. import functional as GF
from .transform import Transform

#: Largest scale that initialisation sets; a channel of smaller deviation than its inverse keeps variance < 1.
MAX_SCALE = 1e6


class ActNorm(Transform):
    """Activation normalisation `y = (x + shift)·exp(log_scale)` by channel (Glow, arXiv:1807.03039).

    The first batch in training mode initialises the parameters, so that each channel of `y` has mean 0 and
    variance 1 over batch and positions. It may also be the first batch of `inverse`, if gradients are enabled
    (a flow trained in that direction): then `x` has mean 0 and variance 1. Before that, and in eval mode, the
    parameters are used as they are: the identity at first.

    A channel that is constant in the first batch keeps scale 1, and no scale starts above 1e6. If
    `torch.distributed` is initialised, all processes must run their first batch together: the statistics are
    over all their samples. `initialized` is part of the state dict, so a loaded state is never overwritten;
    set it (`actnorm.initialized.fill_(True)`) after writing the parameters by hand.

    Only a module that is not initialised reads `initialized` from its device. `torch.compile` compiles again
    after the first batch, which takes another path: initialise before, with one batch or `initialize`.

    Computed by `gmfast.functional.actnorm`.

    Args:
        channels: C of `x (B, C, *S)`.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(self, channels: int, *, device=None, dtype=None):
        super().__init__()
        _check.at_least(1, channels=channels)
        self.shift = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.log_scale = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.register_buffer("initialized", torch.zeros((), device=device, dtype=torch.bool))
        self._known_initialized = False  # on the host; False may be out of date, True never is

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Normalise `x`; the first batch in training mode initialises."""
        _check.channels("x", x, self.shift.shape[0])
        if self.needs_first_batch():
            self._first_batch(x, inverse=False)
        return GF.actnorm(x, self.shift, self.log_scale)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Undo the normalisation; the first batch in training mode with gradients initialises."""
        _check.channels("z", z, self.shift.shape[0])
        if self.needs_first_batch() and torch.is_grad_enabled():
            self._first_batch(z, inverse=True)
        return GF.actnorm(z, self.shift, self.log_scale, inverse=True)

    def needs_first_batch(self) -> bool:
        """True if the next batch initialises the parameters (see `gmfast.nn.reversible`)."""
        return self.training and not self._known_initialized

    def initialize(self, x: Tensor, *, inverse: bool = False) -> None:
        """Initialise the parameters from a batch, whether or not they were initialised before.

        Args:
            x: (B, C, *S); an empty batch changes nothing.
            inverse: whether `inverse(x)` is to have mean 0 and variance 1 in each channel, instead of
                `forward(x)`.

        Raises:
            ValueError: for a batch with NaN or infinity.
        """
        _check.channels("x", x, self.shift.shape[0])
        self._set(x, inverse)

    def _set(self, x: Tensor, inverse: bool, unless: Tensor | None = None) -> None:
        """Initialise from a batch, `unless` a boolean on the device is true."""
        with torch.no_grad():
            mean, std, count = self._statistics(x)
            # The float32 mean of a constant channel is rounded: a deviation below that is 0.
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
        if torch.compiler.is_compiling():  # cannot branch on a value on the device
            self._set(x, inverse, unless=self.initialized)
        elif self.initialized:
            self._known_initialized = True  # set by hand, or by another process
        else:
            self._set(x, inverse)

    def _statistics(self, x: Tensor):
        """Return each channel's mean and standard deviation over all processes, float64, and their count."""
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
        """Return the arguments for `repr`."""
        return f"{len(self.shift)}"
