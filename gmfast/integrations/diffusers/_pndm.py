"""PNDM: Runge-Kutta steps and then linear multistep ones on the network's outputs themselves."""

import torch

from . import _framework
from ._framework import Plan, Rule, check_prediction, plain, rows, run

#: weights of the output and of those before, by how many there are
_MULTISTEP = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
#: what the four stages of a Runge-Kutta step add to their sum
_STAGES = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


@_framework.register("PNDMScheduler")
class PNDM(Rule):
    watched = ("alphas_cumprod", "final_alpha_cumprod", "timesteps")
    known = frozenset(
        {
            *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
            *("skip_prk_steps", "set_alpha_to_one", "prediction_type", "timestep_spacing", "steps_offset"),
        }
    )

    def check(self, config):
        check_prediction(config, ("epsilon", "v_prediction"))

    add_noise = _framework.add_noise_of_times

    def plan(self, scheduler, key):
        """Rows of the Runge-Kutta stages, and then for each time step of the multistep of 1, 2, 3 and 4
        outputs, and of the second visit, which makes the first step again from the mean of two outputs."""
        if key == "add_noise":
            return _framework.plan_of_times_noise(scheduler)
        config, product = scheduler.config, scheduler.alphas_cumprod.cpu()
        ratio = config["num_train_timesteps"] // scheduler.num_inference_steps
        times = torch.tensor(scheduler._gmfast.numbers(scheduler))
        stages = 0 if config["skip_prk_steps"] else len(scheduler.prk_timesteps)
        tables = []
        if stages:
            begins = torch.as_tensor(scheduler.prk_timesteps)[torch.arange(stages) // 4 * 4]
            half = torch.where(torch.arange(stages) % 2 == 1, 0, ratio // 2)
            x, m = self._transfer(scheduler, product, begins, times[:stages] - half)
            table = rows(stages)
            for k, share in enumerate(_STAGES):  # h1: the sum of the stages' outputs; h2: x of the first
                of_m, of_h1 = (share, 1.0) if k == 3 else (1.0, 0.0)
                columns = {"x" if k == 0 else "h2": x, "m": of_m * m, "h1": of_h1 * m}
                columns.update(kept_m=share, kept_h1=float(k > 0))
                table[k::4] = rows(stages, **columns)[k::4]
            tables.append(table)
        x, m = self._transfer(scheduler, product, times, times - ratio)
        forms = [
            rows(len(times), x=x, **{f"h{i}" if i else "m": w * m for i, w in enumerate(weights)})
            for weights in _MULTISTEP
        ]
        x, m = self._transfer(scheduler, product, times + ratio, times)
        forms.append(rows(len(times), h2=x, m=m / 2, h1=m / 2))
        tables.append(torch.stack(forms, 1).flatten(0, 1))
        return Plan(torch.cat(tables), stages=stages)

    @staticmethod
    def _transfer(scheduler, product, times, to):
        """The weights of x and of the network's output in a step."""
        a = product[times.clamp(0, len(product) - 1)]
        a_to = torch.where(
            to >= 0, product[to.clamp(0, len(product) - 1)], scheduler.final_alpha_cumprod.cpu()
        )
        b, b_to = 1 - a, 1 - a_to
        x = ((a_to / a) ** 0.5).double()
        m = -(a_to - a).double() / (a * b_to**0.5 + (a * b * a_to) ** 0.5).double()
        if scheduler.config["prediction_type"] == "v_prediction":
            return x + m * (b**0.5).double(), m * (a**0.5).double()
        return x, m

    def step(self, model_output, timestep, sample, return_dict=True):
        state = self._gmfast
        at = None
        if self.num_inference_steps is not None and plain(model_output, sample):
            at = _position(self, state, timestep)
        result = None
        if at is not None:
            plan = state.plan(self, self.num_inference_steps)
            stages = _stage if self.counter < plan.stages else _multistep
            result = stages(self, model_output, at, sample, plan)
        if result is None:
            return NotImplemented
        self.counter += 1
        return state.finish(return_dict, result)


def _position(scheduler, state, timestep):
    if isinstance(timestep, torch.Tensor):
        position = state.position(scheduler, timestep)
        if position is not None:
            return position
    value = state.value(scheduler, timestep)
    numbers = state.numbers(scheduler)
    return numbers.index(value) if value in numbers else None


def _stage(self, model_output, at, sample, plan):
    k = self.counter % 4
    begun = isinstance(self.cur_model_output, torch.Tensor) and self.cur_sample is not None
    if at != self.counter or (begun if k == 0 else not begun):
        return None
    history = () if k == 0 else (self.cur_model_output, self.cur_sample)
    result = run(plan, self.counter, sample, model_output, history=history, kept=k < 3)
    if k < 3:
        result, self.cur_model_output = result
    else:
        self.cur_model_output = 0
    if k == 0:
        self.ets.append(model_output)
        self.cur_sample = sample
    return result


def _multistep(self, model_output, at, sample, plan):
    if not self._internal_dict["skip_prk_steps"] and len(self.ets) < 3:
        return None
    row = plan.stages + 5 * at
    if self.counter == 1:
        if len(self.ets) != 1 or self.cur_sample is None:
            return None
        result = run(plan, row + 4, sample, model_output, history=(self.ets[-1], self.cur_sample))
        self.cur_sample = None
        return result
    before = self.ets[-3:]
    if not before and self.counter != 0:
        return None
    result = run(plan, row + len(before), sample, model_output, history=before[::-1])
    self.ets = [*before, model_output]
    if not before:
        self.cur_sample = sample
    return result
