"""Samplers of distilled models: a row depends on its timestep, the next one, and whether it is the last."""

import torch

from .ancestral import OPTIONS, PREDICTIONS, epsilon_weights, x0_columns
from .plan import Plan, rows, run, x0_limits
from .rule import Rule, TimestepRule, check_prediction, fits_kernel, step_index, timesteps_on


class Distilled(TimestepRule):
    """Rule of few-step samplers of distilled models."""

    known = OPTIONS | {"original_inference_steps", "set_alpha_to_one", "timestep_scaling"}

    def check(self, config):
        """Raise ValueError for another prediction type."""
        check_prediction(config, PREDICTIONS)


def due_step(state, scheduler, model_output, timestep, sample):
    """Return the index of the due step; None if the given timestep is not that step's."""
    if scheduler.num_inference_steps is None or not fits_kernel(model_output, sample):
        return None
    index = step_index(scheduler, timestep)
    if index >= len(scheduler.timesteps):
        return None
    value = state.value(scheduler, timestep)
    return index if value is None or value == state.numbers(scheduler)[index] else None


class LCM(Distilled, scheduler="LCMScheduler"):
    """Latent consistency models (Luo et al., 2023, arXiv:2310.04378)."""

    def step_plan(self, state, scheduler, key):
        """Make the plan: rows of all steps as not the last, then of all as the last."""
        config, product = scheduler.config, scheduler.alphas_cumprod
        times = timesteps_on(state, scheduler, product.device)
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
        return Plan(torch.cat([between, last]), x0_limits(config))

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `LCMScheduler.step`."""
        index = due_step(state, scheduler, model_output, timestep, sample)
        if index is None:
            return NotImplemented
        plan = state.plan(scheduler)
        if index != scheduler.num_inference_steps - 1:
            wide = torch.promote_types(model_output.dtype, sample.dtype)
            noise = state.draw(model_output, generator, wide)
            result, denoised = run(plan, index, sample, model_output, kept=True, **noise)
        else:
            result = denoised = run(plan, index + len(scheduler.timesteps), sample, model_output)
        scheduler._step_index = index + 1
        return state.finish(return_dict, result, denoised)


class TCD(Distilled, scheduler="TCDScheduler"):
    """Trajectory consistency distillation (Zheng et al., 2024, arXiv:2402.19159)."""

    def step_plan(self, state, scheduler, eta):
        """Make the plan for an eta: rows of all steps with noise at their end, then of all without."""
        prediction, product = scheduler.config["prediction_type"], scheduler.alphas_cumprod
        times = timesteps_on(state, scheduler, product.device)
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

    def step(
        self, state, scheduler, model_output, timestep, sample, eta=0.3, generator=None, return_dict=True
    ):
        """Step as `TCDScheduler.step`."""
        index = due_step(state, scheduler, model_output, timestep, sample) if 0 <= eta <= 1 else None
        if index is None:
            return NotImplemented
        plan = state.plan(scheduler, eta)
        if eta > 0 and index != scheduler.num_inference_steps - 1:
            wide = torch.promote_types(model_output.dtype, sample.dtype)
            noise = state.draw(model_output, generator, wide)
            result, noised = run(plan, index, sample, model_output, kept=True, **noise)
        else:
            result = noised = run(plan, index + len(scheduler.timesteps), sample, model_output)
        scheduler._step_index = index + 1
        return state.finish(return_dict, result, noised)


class SCM(Rule, scheduler="SCMScheduler"):
    """Consistency models of TrigFlow (Lu and Song, 2024, arXiv:2410.11081)."""

    watched = ("timesteps",)
    known = frozenset(("num_train_timesteps", "prediction_type", "sigma_data"))

    def check(self, config):
        """Raise ValueError for another prediction type."""
        check_prediction(config, ("trigflow",))

    def step_plan(self, state, scheduler, key):
        """Make the plan."""
        times = torch.tensor(state.numbers(scheduler), dtype=torch.float32)
        now, to = times[:-1], times[1:]
        x0 = dict(x0_x=torch.cos(now), x0_m=-torch.sin(now))
        noise = torch.sin(to).double() * scheduler.config["sigma_data"]
        return Plan(rows(len(now), **x0, x0=torch.cos(to), noise=noise))

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `SCMScheduler.step`: the result is in float32 at least, as the noise is."""
        if scheduler.num_inference_steps is None or not fits_kernel(model_output, sample):
            return NotImplemented
        index = step_index(scheduler, timestep)
        if index + 1 >= len(scheduler.timesteps):
            return NotImplemented
        dtype = torch.promote_types(model_output.dtype, sample.dtype)
        wide = torch.promote_types(torch.float32, dtype)
        noise = state.draw(model_output, generator, torch.get_default_dtype())
        result, x0 = run(state.plan(scheduler), index, sample.to(wide), model_output, x0=True, **noise)
        scheduler._step_index = index + 1
        return state.finish(return_dict, result, x0.to(dtype))


class ConsistencyDecoder(Rule, scheduler="ConsistencyDecoderScheduler"):
    """The two steps of DALL-E 3's consistency decoder (Song et al., 2023, arXiv:2303.01469)."""

    watched = ("c_skip", "c_out", "c_in", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "timesteps")
    known = frozenset(("num_train_timesteps", "sigma_data"))

    def step_plan(self, state, scheduler, key):
        """Make the plan, on the device of the tables."""
        skip, out = scheduler.c_skip, scheduler.c_out
        times = timesteps_on(state, scheduler, skip.device)
        x0, noise = (
            torch.cat([table[times[1:]], table.new_tensor([last])])
            for table, last in (
                (scheduler.sqrt_alphas_cumprod, 1.0),
                (scheduler.sqrt_one_minus_alphas_cumprod, 0.0),
            )
        )
        columns = dict(x0_x=skip[times], x0_m=out[times], x0=x0, noise=noise)
        return Plan(rows(len(times), skip.device, **columns))

    def scale_plan(self, scheduler):
        """Make the plan of `scale_model_input`, with a factor of each step on the device of the tables."""
        table = scheduler.c_in
        times = timesteps_on(scheduler._gmfast, scheduler, table.device)
        return Plan(torch.empty(0), factors=table[times].unbind())

    def scale_model_input(self, state, scheduler, sample, timestep=None):
        """Multiply the sample by the timestep's factor."""
        index = self._index(state, scheduler, timestep)
        return NotImplemented if index is None else sample * state.plan(scheduler, "scale").factors[index]

    def _index(self, state, scheduler, timestep):
        """Return the index in `timesteps` of a timestep, or None."""
        t, numbers = state.value(scheduler, timestep), state.numbers(scheduler)
        return numbers.index(t) if t in numbers else None

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `ConsistencyDecoderScheduler.step`."""
        index, noise = None, {}
        if fits_kernel(model_output, sample):
            index = self._index(state, scheduler, timestep)
        if index is None:
            return NotImplemented
        if index < len(scheduler.timesteps) - 1:
            noise = state.draw(sample, generator, torch.promote_types(model_output.dtype, sample.dtype))
        result = run(state.plan(scheduler), index, sample, model_output, **noise)
        return state.finish(return_dict, result)
