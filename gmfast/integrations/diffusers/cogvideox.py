"""CogVideoX's DDIM and DPM-Solver++ (Yang et al., 2024, arXiv:2408.06072)."""

import torch

from .ancestral import PREDICTIONS, x0_columns
from .plan import Plan, rows, run
from .rule import BETAS, TimestepRule, check_prediction, fits_kernel, timesteps_on


class _CogVideoX(TimestepRule):
    """Rule of both; neither limits x0, whatever `clip_sample` says."""

    watched = ("alphas_cumprod", "final_alpha_cumprod", "timesteps")
    known = BETAS | {
        *("clip_sample", "clip_sample_range", "sample_max_value", "prediction_type", "set_alpha_to_one"),
        *("timestep_spacing", "steps_offset", "rescale_betas_zero_snr", "snr_shift_scale"),
    }

    def check(self, config):
        """Raise ValueError for another prediction type."""
        check_prediction(config, PREDICTIONS)

    def levels(self, scheduler, times, steps):
        """Return ᾱ at timesteps and where their steps lead, in a run of `steps` steps."""
        a = scheduler.alphas_cumprod
        to = times - scheduler.config["num_train_timesteps"] // steps
        final = scheduler.final_alpha_cumprod.to(a)
        return a[times], torch.where(to >= 0, a[to.clamp(min=0)], final)


class CogVideoXDDIM(_CogVideoX, scheduler="CogVideoXDDIMScheduler"):
    """DDIM without noise."""

    def step_plan(self, state, scheduler, steps):
        """Make the plan for a number of steps."""
        times = torch.arange(len(scheduler.alphas_cumprod), device=scheduler.alphas_cumprod.device)
        a, a_to = self.levels(scheduler, times, steps)
        x = ((1 - a_to) / (1 - a)) ** 0.5
        x0 = a_to**0.5 - a**0.5 * x
        columns = x0_columns(scheduler.config["prediction_type"], a, 1 - a)
        return Plan(rows(len(a), a.device, **columns, x=x, x0=x0))

    def step(
        self,
        state,
        scheduler,
        model_output,
        timestep,
        sample,
        eta=0.0,
        use_clipped_model_output=False,
        generator=None,
        variance_noise=None,
        return_dict=True,
    ):
        """Step as `CogVideoXDDIMScheduler.step`."""
        row = None
        if scheduler.num_inference_steps is not None and fits_kernel(model_output, sample):
            row = state.row(scheduler, timestep, sample.device)
        if row is None:
            return NotImplemented
        plan = state.plan(scheduler, scheduler.num_inference_steps)
        return state.finish(return_dict, *run(plan, row, sample, model_output, x0=True))


class CogVideoXDPM(_CogVideoX, scheduler="CogVideoXDPMScheduler"):
    """DPM-Solver++ with noise; the caller keeps the data prediction of the step before."""

    def step_plan(self, state, scheduler, steps):
        """Make the plan: for each of `timesteps` a row of the first order, and one of the second."""
        times = timesteps_on(state, scheduler, scheduler.alphas_cumprod.device)
        a, a_to = self.levels(scheduler, times, steps)
        log_snr, log_snr_to = (((p / (1 - p)) ** 0.5).log() for p in (a, a_to))
        h = log_snr_to - log_snr
        x = ((1 - a_to) / (1 - a)) ** 0.5 * (-h).exp()
        x0 = -(-2 * h).expm1() * a_to**0.5
        noise = (1 - a_to) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
        share = 1 / (2 * ((log_snr - log_snr.roll(1)) / h))
        columns = x0_columns(scheduler.config["prediction_type"], a, 1 - a)
        columns.update(x=x, noise=noise)
        first = rows(len(a), a.device, **columns, x0=x0)
        second = rows(len(a), a.device, **columns, x0=x0 * (1 + share), h1=-x0 * share)
        return Plan(torch.stack([first, second], 1).flatten(0, 1))

    def step(
        self,
        state,
        scheduler,
        model_output,
        old_pred_original_sample,
        timestep,
        timestep_back,
        sample,
        eta=0.0,
        use_clipped_model_output=False,
        generator=None,
        variance_noise=None,
        return_dict=False,
    ):
        """Step as `CogVideoXDPMScheduler.step`."""
        steps, old, numbers = (
            scheduler.num_inference_steps,
            old_pred_original_sample,
            state.numbers(scheduler),
        )
        t = None
        if steps is not None and fits_kernel(model_output, sample):
            t = state.value(scheduler, timestep)
        if t not in numbers:
            return NotImplemented
        index, second = numbers.index(t), old is not None
        second = second and t >= scheduler.config["num_train_timesteps"] // steps
        if second and not (
            index > 0
            and state.value(scheduler, timestep_back) == numbers[index - 1]
            and fits_kernel(old, sample)
        ):
            return NotImplemented
        noise = state.draw(sample, generator)
        if second and not state.noise.keyed:  # diffusers draws for a step of the first order, and again
            noise = state.draw(sample, generator)
        results = run(
            state.plan(scheduler, steps),
            2 * index + second,
            sample,
            model_output,
            x0=True,
            history=(old,) if second else (),
            **noise,
        )
        return state.finish(return_dict and second, *results)
