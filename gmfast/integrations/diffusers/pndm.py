"""PNDM and IPNDM: Runge-Kutta steps, and linear multistep ones, on the model's outputs (arXiv:2202.09778)."""

import torch

from .plan import Plan, rows, run
from .rule import BETAS, Rule, TimestepRule, check_prediction, fits_kernel, step_index

#: Adams-Bashforth weights of the newest output and of those before it, by their number.
_MULTISTEP = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
#: Weights of the four stages of a Runge-Kutta step in their sum.
_STAGES = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class PNDM(TimestepRule, scheduler="PNDMScheduler"):
    """Pseudo numerical methods for diffusion models (Liu et al., 2022, arXiv:2202.09778)."""

    watched = ("alphas_cumprod", "final_alpha_cumprod", "timesteps")
    known = BETAS | {
        *("skip_prk_steps", "set_alpha_to_one", "prediction_type", "timestep_spacing", "steps_offset"),
    }

    def check(self, config):
        """Raise ValueError for another prediction type."""
        check_prediction(config, ("epsilon", "v_prediction"))

    def step_plan(self, state, scheduler, key):
        """Make the plan for a number of steps; its `stages` is the number of rows of Runge-Kutta stages.

        Behind those come five rows for each timestep: the multistep of 1, 2, 3 and 4 outputs, and the second
        visit, which repeats the first step with the mean of two outputs.
        """
        config, product = scheduler.config, scheduler.alphas_cumprod.cpu()
        ratio = config["num_train_timesteps"] // scheduler.num_inference_steps
        times = torch.tensor(state.numbers(scheduler))
        stages = 0 if config["skip_prk_steps"] else len(scheduler.prk_timesteps)
        tables = []
        if stages:
            begins = torch.as_tensor(scheduler.prk_timesteps)[torch.arange(stages) // 4 * 4]
            half = torch.where(torch.arange(stages) % 2 == 1, 0, ratio // 2)
            x, m = _transfer(scheduler, product, begins, times[:stages] - half)
            table = rows(stages)
            for k, share in enumerate(_STAGES):  # h1: sum of the stages' outputs; h2: x at the first stage
                of_m, of_h1 = (share, 1.0) if k == 3 else (1.0, 0.0)
                columns = {"x" if k == 0 else "h2": x, "m": of_m * m, "h1": of_h1 * m}
                columns.update(kept_m=share, kept_h1=float(k > 0))
                table[k::4] = rows(stages, **columns)[k::4]
            tables.append(table)
        x, m = _transfer(scheduler, product, times, times - ratio)
        forms = [
            rows(len(times), x=x, **{f"h{i}" if i else "m": w * m for i, w in enumerate(weights)})
            for weights in _MULTISTEP
        ]
        x, m = _transfer(scheduler, product, times + ratio, times)
        forms.append(rows(len(times), h2=x, m=m / 2, h1=m / 2))
        tables.append(torch.stack(forms, 1).flatten(0, 1))
        return Plan(torch.cat(tables), stages=stages)

    def step(self, state, scheduler, model_output, timestep, sample, return_dict=True):
        """Step as `PNDMScheduler.step`."""
        at = None
        if scheduler.num_inference_steps is not None and fits_kernel(model_output, sample):
            at = _position(state, scheduler, timestep)
        result = None
        if at is not None:
            plan = state.plan(scheduler, scheduler.num_inference_steps)
            stages = _stage if scheduler.counter < plan.stages else _multistep
            result = stages(scheduler, model_output, at, sample, plan)
        if result is None:
            return NotImplemented
        scheduler.counter += 1
        return state.finish(return_dict, result)


def _transfer(scheduler, product, times, to):
    """Return the weights of x and of the model's output in steps from timesteps `times` to `to`."""
    a = product[times.clamp(0, len(product) - 1)]
    a_to = torch.where(to >= 0, product[to.clamp(0, len(product) - 1)], scheduler.final_alpha_cumprod.cpu())
    b, b_to = 1 - a, 1 - a_to
    x = ((a_to / a) ** 0.5).double()
    m = -(a_to - a).double() / (a * b_to**0.5 + (a * b * a_to) ** 0.5).double()
    if scheduler.config["prediction_type"] == "v_prediction":
        return x + m * (b**0.5).double(), m * (a**0.5).double()
    return x, m


def _position(state, scheduler, timestep):
    """Return the index of a timestep in `timesteps`, or None."""
    if isinstance(timestep, torch.Tensor):
        position = state.position(scheduler, timestep)
        if position is not None:
            return position
    value = state.value(scheduler, timestep)
    numbers = state.numbers(scheduler)
    return numbers.index(value) if value in numbers else None


def _stage(scheduler, model_output, at, sample, plan):
    """Compute a stage of a Runge-Kutta step; None if it is not the due one."""
    k = scheduler.counter % 4
    begun = isinstance(scheduler.cur_model_output, torch.Tensor) and scheduler.cur_sample is not None
    if at != scheduler.counter or (begun if k == 0 else not begun):
        return None
    history = () if k == 0 else (scheduler.cur_model_output, scheduler.cur_sample)
    result = run(plan, scheduler.counter, sample, model_output, history=history, kept=k < 3)
    if k < 3:
        result, scheduler.cur_model_output = result
    else:
        scheduler.cur_model_output = 0
    if k == 0:
        scheduler.ets.append(model_output)
        scheduler.cur_sample = sample
    return result


def _multistep(scheduler, model_output, at, sample, plan):
    """Compute a linear multistep step; None if the outputs that it needs are not there."""
    if not scheduler._internal_dict["skip_prk_steps"] and len(scheduler.ets) < 3:
        return None
    row = plan.stages + 5 * at
    if scheduler.counter == 1:
        if len(scheduler.ets) != 1 or scheduler.cur_sample is None:
            return None
        history = (scheduler.ets[-1], scheduler.cur_sample)
        result = run(plan, row + 4, sample, model_output, history=history)
        scheduler.cur_sample = None
        return result
    before = scheduler.ets[-3:]
    if not before and scheduler.counter != 0:
        return None
    result = run(plan, row + len(before), sample, model_output, history=before[::-1])
    scheduler.ets = [*before, model_output]
    if not before:
        scheduler.cur_sample = sample
    return result


class IPNDM(Rule, scheduler="IPNDMScheduler"):
    """Linear multistep steps on the angle between data and noise (v-diffusion; Zhang and Chen, 2023)."""

    watched = ("alphas", "betas", "timesteps")
    known = frozenset(("num_train_timesteps", "trained_betas"))

    def step_plan(self, state, scheduler, key):
        """Make the plan: for each timestep a row of the multistep of 1, 2, 3 and 4 kept outputs."""
        a, s = scheduler.alphas.cpu(), scheduler.betas.cpu()
        # Of the prediction of data, (x - sigma·e)/alpha, and of the kept e = sigma·x + alpha·m.
        data = (a[1:] / a[:-1].clamp(min=1e-8)).double()
        a, s, end = a[:-1].double(), s[:-1].double(), s[1:].double()
        of_e = end - data * s
        forms = []
        for newest, *before in _MULTISTEP:
            columns = {f"h{i}": of_e * w for i, w in enumerate(before, 1)}
            columns.update(x=data + of_e * newest * s, m=of_e * newest * a, kept_x=s, kept_m=a)
            forms.append(rows(len(a), **columns))
        return Plan(torch.stack(forms, 1).flatten(0, 1))

    def step(self, state, scheduler, model_output, timestep, sample, return_dict=True):
        """Step as `IPNDMScheduler.step`."""
        if scheduler.num_inference_steps is None or not fits_kernel(model_output, sample):
            return NotImplemented
        index = step_index(scheduler, timestep)
        if index >= len(scheduler.timesteps):
            return NotImplemented
        before = scheduler.ets[-3:]
        row = len(_MULTISTEP) * index + len(before)
        plan = state.plan(scheduler)
        result, kept = run(plan, row, sample, model_output, kept=True, history=before[::-1])
        scheduler.ets.append(kept)
        scheduler._step_index = index + 1
        return state.finish(return_dict, result)
