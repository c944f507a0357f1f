"""Solvers of two stages in sigma, whose second evaluation is in the middle of the step: DPM-Solver-2.

A table has, for each index, a row of the first stage and one of the second; the attribute `sample` of the
scheduler, x before the first stage, says which is due.
"""

import torch

from .plan import Plan, rows, run
from .rule import fits_kernel, on_host, step_index
from .sigma import Sigmas, slope_weights, x0_columns


class TwoStages(Sigmas):
    """Rule of these solvers."""

    def middle(self, scheduler):
        """Return the sigma of the second stage for each index of it."""
        raise NotImplementedError

    def scale_plan(self, scheduler):
        """Make the plan of `scale_model_input`: its `divisors` for both stages."""
        stages = scheduler.sigmas, self.middle(scheduler)
        return Plan(torch.empty(0), divisors=[((s**2 + 1) ** 0.5).tolist() for s in stages])

    def scale_model_input(self, state, scheduler, sample, timestep):
        """Divide the sample by the due stage's divisor."""
        index = step_index(scheduler, timestep)
        return sample / state.plan(scheduler, "scale").divisors[scheduler.sample is not None][index]

    def advance(self, state, scheduler, model_output, sample, index, plan, noise, return_dict):
        """Take the due stage with the row of `index`."""
        second = scheduler.sample is not None
        row, history = 2 * index + second, (scheduler.sample,) if second else ()
        result, x0 = run(plan, row, sample, model_output, x0=True, history=history, **noise)
        scheduler.sample = None if second else sample
        scheduler._step_index = index + 1
        return state.finish(return_dict, result, x0)


def _table(first, second):
    return torch.stack([first, second], 1).flatten(0, 1)


class KDPM2(TwoStages, scheduler="KDPM2DiscreteScheduler"):
    """DPM-Solver-2 (Karras et al., 2022, arXiv:2206.00364, algorithm 2)."""

    watched = ("sigmas", "sigmas_interpol", "timesteps")
    reads = ("sigmas_interpol", "timesteps")

    def middle(self, scheduler):
        """Return the sigma of the second stage for each index of it."""
        return on_host(scheduler, "sigmas_interpol")

    def step_plan(self, state, scheduler, key):
        """Make the plan."""
        prediction, sigmas = scheduler.config["prediction_type"], scheduler.sigmas[:-1]
        middle = on_host(scheduler, "sigmas_interpol")
        first = rows(
            len(sigmas),
            **x0_columns(prediction, sigmas),
            **slope_weights(prediction, middle[1:] - sigmas, sigmas),
        )
        second = _second(prediction, middle[:-1], sigmas - sigmas.roll(1))
        return Plan(_table(first, second))

    def step(self, state, scheduler, model_output, timestep, sample, return_dict=True):
        """Step as `KDPM2DiscreteScheduler.step`."""
        if not fits_kernel(model_output, sample):
            return NotImplemented
        index, plan = step_index(scheduler, timestep), state.plan(scheduler)
        return self.advance(state, scheduler, model_output, sample, index, plan, {}, return_dict)


def _second(prediction, middle, length, noise=0.0):
    """Return the rows of second stages: from x before the first stage, h1, by `length` with x's slope."""
    weights = slope_weights(prediction, length, middle)
    weights["x"] = weights["x"] - 1
    return rows(len(middle), **x0_columns(prediction, middle), **weights, h1=1.0, noise=noise)


class KDPM2Ancestral(TwoStages, scheduler="KDPM2AncestralDiscreteScheduler"):
    """DPM-Solver-2 to a level below, then noise."""

    watched = ("sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down", "timesteps")
    reads = ("sigmas_interpol", "sigmas_up", "sigmas_down", "timesteps")

    def middle(self, scheduler):
        """Return the sigma of the second stage for each index of it."""
        return on_host(scheduler, "sigmas_interpol").roll(1)

    def step_plan(self, state, scheduler, key):
        """Make the plan; its `lengths` are those of the first stages."""
        prediction, sigmas = scheduler.config["prediction_type"], scheduler.sigmas
        middle, up, down = (on_host(scheduler, f"sigmas_{s}") for s in ("interpol", "up", "down"))
        length = middle - sigmas
        first = rows(
            len(sigmas), **x0_columns(prediction, sigmas), **slope_weights(prediction, length, sigmas)
        )
        second = _second(prediction, middle.roll(1), down.roll(1) - sigmas.roll(1), up.roll(1))
        return Plan(_table(first, second), lengths=length.unbind())

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `KDPM2AncestralDiscreteScheduler.step`."""
        if not fits_kernel(model_output, sample):
            return NotImplemented
        index, plan, noise = step_index(scheduler, timestep), state.plan(scheduler), {}
        if scheduler.sample is None:
            scheduler.dt = plan.lengths[index]
        else:
            noise = state.draw(model_output, generator)
        return self.advance(state, scheduler, model_output, sample, index, plan, noise, return_dict)


class DPMSolverSDE(TwoStages, scheduler="DPMSolverSDEScheduler"):
    """DPM-Solver++ of two stages with the increments of one Brownian path, by torchsde, as its noise."""

    known = Sigmas.known | {"noise_sampler_seed"}
    path = True

    def middle(self, scheduler):
        """Return the sigma of the second stage for each index of it."""
        return (scheduler.sigmas.roll(1) * scheduler.sigmas) ** 0.5

    def step_plan(self, state, scheduler, s_noise):
        """Make the plan for a scale of the noise; its `ends` are the sigmas of each row's noise, or None."""
        prediction, sigmas = scheduler.config["prediction_type"], scheduler.sigmas.unbind()
        stages = []
        for i in range(len(sigmas) - 1):
            stages += _stage(prediction, sigmas[i], sigmas[i + 1], False, s_noise), None
            if i > 0:
                stages[-1] = _stage(prediction, sigmas[i - 1], sigmas[i], True, s_noise)
        table = torch.cat([rows(1, **(stage[0] if stage else {})) for stage in stages])
        return Plan(table, ends=[stage and stage[1] for stage in stages])

    def step(self, state, scheduler, model_output, timestep, sample, return_dict=True, s_noise=1.0):
        """Step as `DPMSolverSDEScheduler.step`."""
        if not fits_kernel(model_output, sample):
            return NotImplemented
        index, plan = step_index(scheduler, timestep), state.plan(scheduler, s_noise)
        second = scheduler.sample is not None
        if 2 * index + second >= len(plan.ends):
            return NotImplemented
        ends = plan.ends[2 * index + second]
        if second and ends is None:
            return NotImplemented
        if scheduler.noise_sampler is None:
            sigmas = scheduler.sigmas
            scheduler.noise_sampler = state.target.module.BrownianTreeNoiseSampler(
                sample, sigmas[sigmas > 0].min().item(), sigmas.max().item(), scheduler.noise_sampler_seed
            )
        noise = {} if ends is None else {"noise": scheduler.noise_sampler(*ends)}
        results = self.advance(state, scheduler, model_output, sample, index, plan, noise, return_dict)
        if ends is None:
            scheduler.sample = None
        scheduler.mid_point_sigma = None if scheduler.sample is None else ends[1]
        return results


def _stage(prediction, sigma, sigma_next, second, s_noise):
    """Return the columns of a stage of a step, and the sigmas between which its noise is, if it has any.

    On numbers, as diffusers computes them: the noise is a path's at exactly these levels.
    """
    t, t_next = sigma.log().neg(), sigma_next.log().neg()
    middle = t + (t_next - t) * 0.5
    columns = x0_columns(prediction, middle.neg().exp() if second else sigma)
    if sigma_next == 0:
        return {**columns, **slope_weights(prediction, sigma_next - sigma, sigma)}, None
    start, end = t.neg().exp(), (t_next if second else middle).neg().exp()
    up = min(end, (end**2 * (start**2 - end**2) / start**2) ** 0.5)
    lower = ((end**2 - up**2) ** 0.5).log().neg()
    columns.update(
        {"h1" if second else "x": lower.neg().exp() / start},
        x0=-(t - lower).expm1(),
        noise=up.double() * s_noise,
    )
    return columns, (start, end)
