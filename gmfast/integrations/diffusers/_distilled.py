"""LCM and TCD: each step's row is of its time step, the next one, and whether it is the last."""

import torch

from . import _framework
from ._ancestral import _OPTIONS, _PREDICTIONS, epsilon_weights, x0_columns
from ._framework import Plan, Rule, check_prediction, limits, plain, rows, run, step_index

_KNOWN = _OPTIONS | {"original_inference_steps", "set_alpha_to_one", "timestep_scaling"}


class _Distilled(Rule):
    watched = ("alphas_cumprod", "timesteps")
    known = _KNOWN

    def check(self, config):
        check_prediction(config, _PREDICTIONS)

    add_noise = _framework.add_noise_of_times

    def plan(self, scheduler, key):
        if key == "add_noise":
            return _framework.plan_of_times_noise(scheduler)
        return self.steps(scheduler, key)


def _due(self, model_output, timestep, sample):
    """The index of the step that is due, if its time step is the one that is given."""
    if self.num_inference_steps is None or not plain(model_output, sample):
        return None
    index = step_index(self, timestep)
    if index >= len(self.timesteps):
        return None
    state = self._gmfast
    value = state.value(self, timestep)
    return index if value is None or value == state.numbers(self)[index] else None


@_framework.register("LCMScheduler")
class LCM(_Distilled):
    def steps(self, scheduler, key):
        """Rows of steps that are not the last, and then of those that are."""
        config, product = scheduler.config, scheduler.alphas_cumprod
        times = _framework.times(scheduler, product.device)
        a, a_to = product[times], product[torch.cat([times[1:], times[-1:]])]
        data = scheduler.sigma_data = 0.5
        tau = times * config["timestep_scaling"]
        skip = (data**2 / (tau**2 + data**2)).double()
        out = (tau / (tau**2 + data**2) ** 0.5).double()
        x0 = x0_columns(config["prediction_type"], a, 1 - a)
        root = a_to.sqrt().double()
        between = rows(
            len(times),
            product.device,
            **x0,
            **dict(x=root * skip, x0=root * out, noise=(1 - a_to).sqrt(), kept_x=skip, kept_x0=out),
        )
        last = rows(len(times), product.device, **x0, x=skip, x0=out)
        return Plan(torch.cat([between, last]), limits(config))

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        state = self._gmfast
        index = _due(self, model_output, timestep, sample)
        if index is None:
            return NotImplemented
        plan = state.plan(self)
        if index != self.num_inference_steps - 1:
            wide = torch.promote_types(model_output.dtype, sample.dtype)
            noise = state.draw(model_output, generator, wide)
            result, denoised = run(plan, index, sample, model_output, kept=True, **noise)
        else:
            result = denoised = run(plan, index + len(self.timesteps), sample, model_output)
        self._step_index = index + 1
        return state.finish(return_dict, result, denoised)


@_framework.register("TCDScheduler")
class TCD(_Distilled):
    def steps(self, scheduler, eta):
        """Rows of steps that end with noise, and then of those that do not."""
        prediction, product = scheduler.config["prediction_type"], scheduler.alphas_cumprod
        times = _framework.times(scheduler, product.device)
        to = torch.cat([times[1:], times.new_zeros(1)])
        a, a_to, a_s = product[times], product[to], product[((1 - eta) * to).floor().long()]
        of_epsilon = (1 - a_s).sqrt().double()
        x, m, x0 = (of_epsilon * w for w in epsilon_weights(prediction, a, 1 - a))
        x0 = x0 + a_s.sqrt().double()
        columns = x0_columns(prediction, a, 1 - a)
        rise = (a_to / a_s).sqrt().double()
        between = rows(
            len(times),
            product.device,
            **columns,
            **dict(x=rise * x, m=rise * m, x0=rise * x0, noise=(1 - a_to / a_s).sqrt()),
            **dict(kept_x=x, kept_m=m, kept_x0=x0),
        )
        last = rows(len(times), product.device, **columns, x=x, m=m, x0=x0)
        return Plan(torch.cat([between, last]))

    def step(self, model_output, timestep, sample, eta=0.3, generator=None, return_dict=True):
        state = self._gmfast
        index = _due(self, model_output, timestep, sample) if 0 <= eta <= 1 else None
        if index is None:
            return NotImplemented
        plan = state.plan(self, eta)
        if eta > 0 and index != self.num_inference_steps - 1:
            wide = torch.promote_types(model_output.dtype, sample.dtype)
            noise = state.draw(model_output, generator, wide)
            result, noised = run(plan, index, sample, model_output, kept=True, **noise)
        else:
            result = noised = run(plan, index + len(self.timesteps), sample, model_output)
        self._step_index = index + 1
        return state.finish(return_dict, result, noised)
