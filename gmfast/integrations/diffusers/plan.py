"""Coefficient tables of accelerated schedulers, and the kernel's call with one of their rows.

Coefficients are computed in the precision of the scheduler's own tables (float32): results agree with
diffusers' only if they are rounded alike, as 1 - ᾱ/ᾱ' of neighbouring timesteps keeps four digits.
"""

import torch

from ..._table import COLUMNS
from ...functional import diffusion_step

#: Index of each of the table's columns by its name.
COLUMN = {name: i for i, name in enumerate(COLUMNS)}


class Plan:
    """A table of coefficients, on every device that asked for it, and what else the steps need.

    Args:
        table: float64, (rows, columns of `gmfast._table.COLUMNS`).
        limits: arguments of `diffusion_step` that limit x0 (`x0_limits`); None for no limits.
        more: attributes that a rule's steps read from the plan.
    """

    def __init__(self, table, limits=None, **more):
        self.limits = limits or {}
        self._tables = {table.device: table}
        self._table = table
        self._pinned = None
        self.__dict__.update(more)

    def table(self, device):
        """Return the table on `device`, where it is kept after the first call."""
        table = self._tables.get(device)
        if table is None:
            table = self._tables[device] = self._send(device)
        return table

    def _send(self, device):
        """Copy from pinned memory that stays allocated: asynchronous, and valid inside a CUDA graph."""
        if device.type != "cuda" or self._table.device.type != "cpu":
            return self._table.to(device)
        self._pinned = self._table.pin_memory()
        return self._pinned.to(device, non_blocking=True)


def rows(number, device="cpu", **columns):
    """Make a table of `number` rows from named columns, each `(number,)` or a scalar; the others are zero."""
    table = torch.zeros(number, len(COLUMNS), dtype=torch.float64, device=device)
    for name, column in columns.items():
        table[:, COLUMN[name]] = column
    return table


def divisors_plan(sigmas, data=1.0):
    """Make the plan of `scale_model_input`: its `divisors` are √(sigma² + data), one for each sigma."""
    return Plan(torch.empty(0), divisors=((sigmas**2 + data) ** 0.5).tolist())


def x0_limits(config, clip=True):
    """Return the arguments of `diffusion_step` for `thresholding` and, if `clip`, `clip_sample`."""
    if config.get("thresholding"):
        most = config["sample_max_value"]
        if most == 1:  # the threshold, at least 1 and at most 1, is a clip
            return {"clip": 1.0}
        return {"threshold": float(config["dynamic_thresholding_ratio"]), "threshold_max": float(most)}
    if clip and config.get("clip_sample"):
        return {"clip": float(config["clip_sample_range"])}
    return {}


def run(
    plan, row, sample, model_output, x0=False, kept=False, noise=None, seed=None, variance=None, history=()
):
    """Call `diffusion_step` with a row of the plan's table; results are in the inputs' promoted dtype."""
    if sample.dtype != model_output.dtype:
        sample = sample.to(torch.promote_types(sample.dtype, model_output.dtype))
    return diffusion_step(
        sample,
        model_output,
        plan.table(sample.device),
        step=row,
        x0=x0,
        kept=kept,
        noise=noise,
        seed=seed,
        variance=variance,
        history=history,
        **plan.limits,
    )
