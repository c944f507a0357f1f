"""Contract of a sampler: rows of coefficients, the plan that they make up, and the base class."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ... import _check
from ..._table import COLUMNS
from .._naming import PublicRepr
from ..schedules import Level, Schedule
from .weights import PREDICTIONS, x0_weights


@dataclass
class Row:
    """One call of the denoiser, at level `now`, and the update of x to level `to`.

    Attributes:
        now: Level at which the denoiser is called.
        to: Level of the resulting x.
        weights: Coefficients by the names of `gmfast.diffusion.COLUMNS`; those missing are 0.
        keep: Tensors that become the next row's history, h1 first: "x" (before the update), "x0", "kept"
            (the row's second sum), or "h1" ... "h4" of this row.
        whole: Whether a step of the sampler ends with this row.
    """

    now: Level
    to: Level
    weights: dict[str, float]
    keep: tuple[str, ...] = ()
    whole: bool = True


@dataclass
class Plan:
    """Rows of a sampler for one schedule, and the coefficient table that they make up.

    Tables and times are cached, one for each device.

    Attributes:
        rows: One `Row` for each call of the denoiser.
        prediction: What the denoiser returns, one of `gmfast.diffusion.PREDICTIONS`.
        start: Noise level at which sampling begins.
        learned_range: Whether the denoiser returns a variance in a second half of its channels.
        discrete: Whether times are integers.
    """

    rows: list[Row] = field(repr=False)
    prediction: str
    start: Level
    learned_range: bool = False
    discrete: bool = False
    _cached: dict = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def steps(self) -> int:
        """Number of the sampler's steps; some have several rows."""
        return sum(row.whole for row in self.rows)

    @property
    def rising(self) -> bool:
        """True if the rows lead from data to noise."""
        return self.rows[0].now.u < self.rows[-1].to.u

    @property
    def single(self) -> bool:
        """True if every row is independent of the rows before it."""
        return not any(row.keep for row in self.rows)

    @property
    def kept(self) -> bool:
        """True if rows have a second sum."""
        return any("kept" in row.keep for row in self.rows)

    def table(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the coefficient table for `gmfast.functional.diffusion_step`.

        Shape `(rows + 1, 20)`, float64, from noise to data. The last row leaves x as it is, for samples that
        have arrived before others.
        """
        device = torch.device(device)
        return self.cached(device, lambda: self._make_table().to(device))

    def _make_table(self) -> Tensor:
        table = torch.zeros(len(self.rows) + 1, len(COLUMNS), dtype=torch.float64)
        index = {name: i for i, name in enumerate(COLUMNS)}
        cells, values = [], []
        for i, row in enumerate(self.rows):
            p, q = x0_weights(self.prediction, row.now)
            for name, value in {"x0_x": p, "x0_m": q, **row.weights}.items():
                cells.append((i, index[name]))
                values.append(value)
        where = torch.tensor(cells, dtype=torch.int64).reshape(-1, 2).T
        table[where[0], where[1]] = torch.tensor(values, dtype=torch.float64)
        table[-1, index["x"]] = 1
        return table

    def times(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the time that the denoiser is given at each row, shape `(rows,)`.

        It is int64 for a discrete schedule, else `dtype`.
        """
        key = torch.device(device), torch.int64 if self.discrete else dtype
        return self.cached(
            key, lambda: torch.tensor([row.now.t for row in self.rows], dtype=key[1]).to(device)
        )

    def cached(self, key: object, make: Callable[[], Any]) -> Any:
        """Cache what `make` returns for later calls, also those outside inference mode."""
        if key not in self._cached:
            with torch.inference_mode(False), torch.device("cpu"):
                self._cached[key] = make()
        return self._cached[key]


class Sampler(PublicRepr):
    """Base class of samplers; a user's own overrides `rows`.

    Plans are cached by the sampler's hash, so a user's own sampler must be immutable if it is hashable (by
    default it is not).

    Attributes:
        schedule: Default schedule, by name.
        learned_range: Whether the denoiser returns a variance in a second half of its channels.
        invertible: Whether the rows also lead from data to noise, through rising noise levels.
        cfg_pp: Whether the rows can step by the unconditional x0 alone, as CFG++ needs: each is a whole step
            that takes x, x0 and the x0 of steps before.
    """

    schedule: str = "linear"
    learned_range: bool = False
    invertible: bool = False
    cfg_pp: bool = False
    __hash__ = None

    def times(self, schedule: Schedule, steps: int) -> list[float]:
        """Return the `steps + 1` times of a run from noise to data; sampling ends at the last."""
        return schedule.times(steps)

    def rows(self, schedule: Schedule, levels: Sequence[Level]) -> Iterator[Row]:
        """Yield the rows that lead through the levels, from noise to data."""
        raise NotImplementedError

    def plan(self, schedule: Schedule, times: Sequence[float], prediction: str | None = None) -> Plan:
        """Make the plan of a run.

        Args:
            schedule: Schedule of the noise levels.
            times: Times from noise to where sampling ends, or of an `invertible` sampler from data to noise.
            prediction: One of `gmfast.diffusion.PREDICTIONS`; by default the schedule's.

        Raises:
            ValueError: For an unknown prediction or times outside the schedule's span.
        """
        prediction = schedule.prediction if prediction is None else prediction
        _check.one_of("prediction", prediction, PREDICTIONS)
        low, high = schedule.span
        if not (max(times[0], times[-1]) <= high and low <= min(times[0], times[-1])):
            raise ValueError(f"times: expected at least {low:g} and at most {high:g}, got {list(times)}")
        levels = [schedule.level(t) for t in times]
        rising = times[0] < times[-1]
        rows = []
        if rising and (levels[0].sigma == 0 or levels[0].t < 0):
            _, to, *_ = levels
            # To the first noisy level, alpha'·x + sigma'·ε, with sigma'·ε = x - alpha'·x0 as found there.
            rows = [Row(to, to, dict(x=1 + to.alpha, x0=-to.alpha))]
            levels = levels[1:]
        return Plan(
            [*rows, *self.rows(schedule, levels)],
            prediction,
            self.begin(schedule, levels),
            self.learned_range,
            schedule.discrete,
        )

    def begin(self, schedule: Schedule, levels: Sequence[Level]) -> Level:
        """Return the noise level at which sampling begins."""
        return levels[0]


@dataclass(frozen=True, repr=False)
class EtaSampler(Sampler):
    """Base class of samplers whose steps may add noise.

    Args:
        eta: Standard deviation of a step's noise over the posterior's.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        _check.finite("eta", self.eta, 0)

    @property
    def invertible(self) -> bool:
        """True without noise."""
        return self.eta == 0
