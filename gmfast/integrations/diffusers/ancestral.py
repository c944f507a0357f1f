"""DDPM, DDIM and their relatives: rows are by training timestep, whatever the order of the visits."""

import torch

from . import state as _state
from .plan import COLUMN, Plan, rows, run, x0_limits
from .rule import (
    BETAS,
    THRESHOLDING,
    Rule,
    TimestepRule,
    check_prediction,
    fits_kernel,
    noise_tensor,
    refused,
    sample_rows,
    timesteps_on,
)

PREDICTIONS = ("epsilon", "sample", "v_prediction")
OPTIONS = (
    BETAS
    | THRESHOLDING
    | {"timestep_spacing", "steps_offset", "rescale_betas_zero_snr"}
    | {"clip_sample", "clip_sample_range", "prediction_type"}
)


def x0_columns(prediction, a, b):
    """Return the columns of x0 for ᾱ `a` and 1 - ᾱ `b`.

    At ᾱ = 0 diffusers divides by 0; here the factor is a large number, and the limits of x0 give the same.
    """
    root_a, root_b = (a**0.5).double(), (b**0.5).double()
    if prediction == "sample":
        return dict(x0_x=0.0, x0_m=1.0)
    if prediction == "v_prediction":
        return dict(x0_x=root_a, x0_m=-root_b)
    inverse = torch.where(root_a == 0, 2.0**100, 1 / root_a)
    return dict(x0_x=inverse, x0_m=-root_b * inverse)


def epsilon_weights(prediction, a, b, clipped=False):
    """Return the weights of x, m and x0 in the predicted noise; `clipped`: recomputed from the limited x0."""
    root_a, root_b = (a**0.5).double(), (b**0.5).double()
    if clipped:
        return 1 / root_b, 0.0, -root_a / root_b
    if prediction == "epsilon":
        return 0.0, 1.0, 0.0
    if prediction == "sample":
        return 1 / root_b, -root_a / root_b, 0.0
    return root_b, root_a, 0.0


def _implicit_plan(scheduler, a, a_to, eta=None, clipped=False):
    """Make DDIM's plan for steps from ᾱ `a` to `a_to`; `eta` None: the inverse, without noise."""
    prediction = scheduler.config["prediction_type"]
    b, b_to = 1 - a, 1 - a_to
    deviation = a.new_zeros(())
    if eta is not None:  # the inverse's variance would be negative
        deviation = eta * (b_to / b * (1 - a / a_to)) ** 0.5
    of_epsilon = ((1 - a_to - deviation**2) ** 0.5).double()
    x, m, x0 = (of_epsilon * w for w in epsilon_weights(prediction, a, b, clipped))
    table = rows(
        len(a),
        a.device,
        **x0_columns(prediction, a, b),
        x=x,
        m=m,
        x0=x0 + (a_to**0.5).double(),
        noise=deviation if eta else 0.0,
    )
    return Plan(table, x0_limits(scheduler.config))


class DDIM(TimestepRule, scheduler="DDIMScheduler"):
    """DDIM (Song et al., 2021, arXiv:2010.02502)."""

    watched = ("alphas_cumprod", "final_alpha_cumprod")
    known = OPTIONS | {"set_alpha_to_one"}

    def check(self, config):
        """Raise ValueError for another prediction type."""
        check_prediction(config, PREDICTIONS)

    def step_plan(self, state, scheduler, key):
        """Make the plan for (number of steps, eta, use_clipped_model_output)."""
        steps, eta, clipped = key
        a = scheduler.alphas_cumprod
        to = torch.arange(len(a), device=a.device) - scheduler.config["num_train_timesteps"] // steps
        a_to = torch.where(to >= 0, a[to.clamp(min=0)], scheduler.final_alpha_cumprod.to(a.device))
        return _implicit_plan(scheduler, a, a_to, eta, clipped)

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
        """Step as `DDIMScheduler.step`."""
        row = None
        if scheduler.num_inference_steps is not None and fits_kernel(model_output, sample):
            row = state.row(scheduler, timestep, sample.device)
        given = eta > 0 and variance_noise is not None
        if given and (
            generator is not None
            or not fits_kernel(variance_noise, sample)
            or variance_noise.dtype not in (sample.dtype, model_output.dtype)
        ):
            row = None
        if row is None:
            return NotImplemented
        plan = state.plan(scheduler, (scheduler.num_inference_steps, eta, use_clipped_model_output))
        noise = {}
        if eta > 0:
            noise = {"noise": variance_noise} if given else state.draw(model_output, generator)
        results = run(plan, row, sample, model_output, x0=True, **noise)
        return state.finish(return_dict, *results)


class DDIMParallel(DDIM, scheduler="DDIMParallelScheduler"):
    """DDIM that also steps samples at timesteps of their own (ParaDiGMS, arXiv:2305.16317)."""

    def step_plan(self, state, scheduler, key):
        """Make the plan of `step`, or of `batch_step_no_noise`: (number of steps, clipped)."""
        if len(key) == 3:
            return super().step_plan(state, scheduler, key)
        steps, clipped = key
        a = scheduler.alphas_cumprod
        to = torch.arange(len(a), device=a.device) - scheduler.config["num_train_timesteps"] // steps
        return _implicit_plan(scheduler, a, torch.where(to >= 0, a[to.clamp(min=0)], 1.0), clipped=clipped)

    def batch_step_no_noise(
        self, state, scheduler, model_output, timesteps, sample, eta=0.0, use_clipped_model_output=False
    ):
        """Step as `DDIMParallelScheduler.batch_step_no_noise`."""
        at = None
        if scheduler.num_inference_steps is not None and eta == 0 and fits_kernel(model_output, sample):
            at = sample_rows(timesteps, scheduler.alphas_cumprod, len(sample))
        if at is None:
            return NotImplemented
        plan = state.plan(scheduler, (scheduler.num_inference_steps, use_clipped_model_output))
        return _step_batch(plan, at, sample, model_output)


def _step_batch(plan, at, sample, model_output):
    """Step each sample with its own row; in float32 at least, the dtype of diffusers' coefficients there."""
    wide = torch.promote_types(torch.float32, torch.promote_types(sample.dtype, model_output.dtype))
    return run(plan, at.to(sample.device), sample.to(wide), model_output)


class DDIMInverse(TimestepRule, scheduler="DDIMInverseScheduler"):
    """DDIM from data to noise."""

    watched = ("alphas_cumprod", "initial_alpha_cumprod")
    known = OPTIONS - THRESHOLDING | {"set_alpha_to_one"}

    def check(self, config):
        """Raise ValueError for another prediction type."""
        check_prediction(config, PREDICTIONS)

    def step_plan(self, state, scheduler, steps):
        """Make the plan for a number of steps."""
        a = scheduler.alphas_cumprod
        times, train = torch.arange(len(a), device=a.device), scheduler.config["num_train_timesteps"]
        at = (times - train // steps).clamp(max=train - 1)
        a_at = torch.where(at >= 0, a[at.clamp(min=0)], scheduler.initial_alpha_cumprod.to(a.device))
        return _implicit_plan(scheduler, a_at, a)

    def step(self, state, scheduler, model_output, timestep, sample, return_dict=True):
        """Step as `DDIMInverseScheduler.step`."""
        row = None
        if scheduler.num_inference_steps is not None and fits_kernel(model_output, sample):
            row = state.row(scheduler, timestep, sample.device)
        if row is None:
            return NotImplemented
        plan = state.plan(scheduler, scheduler.num_inference_steps)
        results = run(plan, row, sample, model_output, x0=True)
        return state.finish(return_dict, *results)


def _posterior(prediction, a, a_to, rest, fresh):
    """Return the columns of the mean of q(x' | x, x0), and its variance.

    Args:
        prediction: the prediction type.
        a: ᾱ of x.
        a_to: ᾱ of x'.
        rest: α of the step, `a` / `a_to`.
        fresh: β of the step, 1 - α.
    """
    b, b_to = 1 - a, 1 - a_to
    columns = x0_columns(prediction, a, b)
    columns.update(x0=a_to**0.5 * fresh / b, x=rest**0.5 * b_to / b)
    return columns, b_to / b * fresh


class DDPM(TimestepRule, scheduler="DDPMScheduler"):
    """DDPM (Ho et al., 2020, arXiv:2006.11239), also with learned variances."""

    known = OPTIONS | {"variance_type"}

    def check(self, config):
        """Raise ValueError for another prediction type, or a variance that diffusers cannot compute."""
        check_prediction(config, PREDICTIONS)
        if config["variance_type"] == "fixed_large_log":
            raise refused(
                "variance_type", "fixed_large_log", "diffusers takes the root of ln β, which is not a number"
            )

    def step_plan(self, state, scheduler, key):
        """Make the plan for (whether all training timesteps are visited, variance type).

        Rows of timesteps that are not visited are NaN.
        """
        every, variance_type = key
        config, product = scheduler.config, scheduler.alphas_cumprod
        if every:
            times = torch.arange(len(product), device=product.device)
            before = times - 1
        else:
            times = timesteps_on(state, scheduler, product.device)
            before = torch.cat([times[1:], times.new_tensor([-1])])
        a = product[times]
        a_to = torch.where(before >= 0, product[before.clamp(min=0)], 1.0)
        fresh = 1 - a / a_to
        columns, small = _posterior(config["prediction_type"], a, a_to, a / a_to, fresh)
        small = small.clamp(min=1e-20)
        noisy = (times > 0).double()
        if variance_type == "learned_range":
            columns.update(noise=noisy, log_var_min=small.log(), log_var_max=fresh.log())
        elif variance_type == "learned":  # √v is exp(½ ln v)
            columns.update(noise=noisy, log_var_min=-1.0, log_var_max=1.0)
        else:
            deviation = (fresh if variance_type == "fixed_large" else small) ** 0.5
            if variance_type == "fixed_small_log":
                deviation = (0.5 * small.log()).exp()
            columns["noise"] = noisy * deviation
        table = torch.full((len(product), len(COLUMN)), torch.nan, dtype=torch.float64, device=a.device)
        table[times] = rows(len(times), a.device, **columns)
        visited = None if every else set(state.numbers(scheduler))
        return Plan(table, x0_limits(config), visited=visited)

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `DDPMScheduler.step`."""
        kind = scheduler.variance_type
        variance = row = None
        m = model_output
        if kind in ("learned", "learned_range") and fits_kernel(m[:, : sample.shape[1]], sample):
            channels = sample.shape[1]
            if m.shape[1] == 2 * channels:
                m, variance = m[:, :channels], m[:, channels:]
        if (
            fits_kernel(m, sample)
            and kind != "fixed_large_log"
            and (variance is not None or "learned" not in kind)
        ):
            row = state.row(scheduler, timestep, sample.device)
        if row is not None:
            every = not (scheduler.custom_timesteps or scheduler.num_inference_steps)
            plan = state.plan(scheduler, (every, kind))
            if plan.visited is not None and isinstance(row, int) and row not in plan.visited:
                row = None
        if row is None:
            return NotImplemented
        options = {}
        if not isinstance(row, int) or row > 0:
            options = state.draw(m, generator)
            if variance is not None:
                options["variance"] = variance.log() if kind == "learned" else variance
        results = run(plan, row, sample, m, x0=True, **options)
        return state.finish(return_dict, *results)


class DDPMParallel(DDPM, scheduler="DDPMParallelScheduler"):
    """DDPM that also steps samples at timesteps of their own (ParaDiGMS, arXiv:2305.16317)."""

    def step_plan(self, state, scheduler, key):
        """Make the plan of `step`, or of `batch_step_no_noise`: the difference of the timesteps."""
        if isinstance(key, tuple):
            return super().step_plan(state, scheduler, key)
        config, a = scheduler.config, scheduler.alphas_cumprod
        to = torch.arange(len(a), device=a.device) - key
        a_to = torch.where(to >= 0, a[to.clamp(min=0)], 1.0)
        columns, _ = _posterior(config["prediction_type"], a, a_to, a / a_to, 1 - a / a_to)
        return Plan(rows(len(a), a.device, **columns), x0_limits(config))

    def batch_step_no_noise(self, state, scheduler, model_output, timesteps, sample):
        """Step as `DDPMParallelScheduler.batch_step_no_noise`."""
        m, at = model_output, None
        if "learned" in scheduler.variance_type and m.shape[1] == 2 * sample.shape[1]:
            m = m[:, : sample.shape[1]]
        if fits_kernel(m, sample):
            at = sample_rows(timesteps, scheduler.alphas_cumprod, len(sample))
        if at is None:
            return NotImplemented
        train = scheduler.config["num_train_timesteps"]
        plan = state.plan(scheduler, train // (scheduler.num_inference_steps or train))
        return _step_batch(plan, at, sample, m)


class UnCLIP(TimestepRule, scheduler="UnCLIPScheduler"):
    """unCLIP's DDPM (Ramesh et al., 2022, arXiv:2204.06125), whose steps are told where they go to."""

    watched = ("alphas_cumprod", "alphas", "betas", "timesteps")
    known = frozenset(
        {
            *("num_train_timesteps", "variance_type", "clip_sample", "clip_sample_range"),
            *("prediction_type", "beta_schedule"),
        }
    )

    def check(self, config):
        """Raise ValueError for another prediction or variance type."""
        check_prediction(config, PREDICTIONS[:2])
        if config["variance_type"] not in ("fixed_small_log", "learned_range"):
            raise refused("variance_type", config["variance_type"], "expected fixed_small_log, learned_range")

    def step_plan(self, state, scheduler, variance_type):
        """Make the plan: a row for each training timestep, to the one before; then one for each step."""
        config, product = scheduler.config, scheduler.alphas_cumprod
        every = torch.arange(len(product), device=product.device)
        visited = timesteps_on(state, scheduler, product.device)
        times = torch.cat([every, visited])
        before = torch.cat([every - 1, visited[1:], visited.new_tensor([-1])])
        a, a_to = product[times], torch.where(before >= 0, product[before.clamp(min=0)], 1.0)
        next_one = before == times - 1
        fresh = torch.where(next_one, scheduler.betas[times], 1 - a / a_to)
        rest = torch.where(next_one, scheduler.alphas[times], 1 - fresh)
        columns, small = _posterior(config["prediction_type"], a, a_to, rest, fresh)
        noisy = (times > 0).double()
        if variance_type == "learned_range":
            small = torch.where(times > 0, small, 1.0)
            columns.update(noise=noisy, log_var_min=small.log(), log_var_max=fresh.log())
        else:
            columns["noise"] = noisy * (0.5 * small.clamp(min=1e-20).log()).exp()
        return Plan(rows(len(times), product.device, **columns), x0_limits(config))

    def step(
        self,
        state,
        scheduler,
        model_output,
        timestep,
        sample,
        prev_timestep=None,
        generator=None,
        return_dict=True,
    ):
        """Step as `UnCLIPScheduler.step`."""
        m, variance, row = model_output, None, None
        kind = scheduler.variance_type
        if kind == "learned_range" and m.shape[1] == 2 * sample.shape[1]:
            m, variance = m.chunk(2, 1)
        if fits_kernel(m, sample) and (variance is not None) == (kind == "learned_range"):
            row = self._row(state, scheduler, timestep, prev_timestep)
        if row is None:
            return NotImplemented
        options = {}
        if state.value(scheduler, timestep) > 0:
            options = state.draw(m, generator)
            if variance is not None:
                options["variance"] = variance
        results = run(state.plan(scheduler, kind), row, sample, m, x0=True, **options)
        return state.finish(return_dict, *results)

    def _row(self, state, scheduler, timestep, prev_timestep):
        """Return the row of a step; None for one that is neither to the next of `timesteps` nor by one."""
        t, train = state.value(scheduler, timestep), len(scheduler.alphas_cumprod)
        if t is None or isinstance(t, float) or not 0 <= t < train:
            return None
        if prev_timestep is None:
            return int(t)
        numbers, before = state.numbers(scheduler), state.value(scheduler, prev_timestep)
        if before is not None and t in numbers:
            index = numbers.index(t)
            if [before] == numbers[index + 1 : index + 2]:
                return train + index
        return None


class Wuerstchen(Rule, scheduler="DDPMWuerstchenScheduler"):
    """DDPM with a cosine ᾱ of continuous time (Pernias et al., 2023, arXiv:2306.00637).

    ᾱ is that of the timestep as it is given, which pipelines round to the model's dtype.
    """

    watched = ("timesteps", "s")
    known = frozenset(("scaler", "s"))

    def step_plan(self, state, scheduler, key):
        """Make the plan for (dtype of the timesteps, scaler)."""
        times = torch.tensor(state.numbers(scheduler))
        return Plan(_cosine_rows(scheduler, times[:-1].to(key[0]), times[1:]))

    def add_noise(self, state, scheduler, original_samples, noise, timesteps):
        """√ᾱ·x + √(1 - ᾱ)·noise at each sample's time."""
        x, size = original_samples, original_samples.shape[0]
        if not fits_kernel(noise, x) or timesteps.shape != (size,) or timesteps.device != x.device:
            return NotImplemented
        a = scheduler._alpha_cumprod(timesteps, x.device)
        plan = Plan(rows(size, x.device, x=a.sqrt(), m=(1 - a).sqrt()))
        result = run(plan, torch.arange(size, device=x.device), x, noise)
        return result if result.dtype == x.dtype else result.to(x.dtype)

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `DDPMWuerstchenScheduler.step`."""
        schedule = scheduler.timesteps
        if (
            not fits_kernel(model_output, sample)
            or not isinstance(timestep, torch.Tensor)
            or timestep.shape != sample.shape[:1]
            or timestep.device != schedule.device
            or len(timestep) == 0
        ):
            return NotImplemented
        last, plan = len(schedule) - 1, None
        at = state.position(scheduler, timestep[:1]) if timestep.stride(0) == 0 else None
        if at is None:
            at = (schedule - timestep[0]).abs().argmin()
            if _state.on_host(at):
                at = at.item()
                if not (timestep == schedule[at].to(timestep.dtype)).all():
                    plan = _given(scheduler, timestep, at)
            else:
                plan = _given(scheduler, timestep, at)
        if isinstance(at, int) and at >= last:
            return NotImplemented
        m = model_output
        noise = noise_tensor(state, scheduler, at, m, generator) if plan else None
        if plan is None:
            plan = state.plan(scheduler, (timestep.dtype, scheduler.scaler))
            result = run(plan, at, sample, m, **state.draw(m, generator))
        else:
            result = run(plan, torch.arange(len(m), device=m.device), sample, m, noise=noise)
        return state.finish(return_dict, result if result.dtype == m.dtype else result.to(m.dtype))


def _given(scheduler, times, at):
    """Make the plan of a step from the given times to that behind index `at`, with a row for each sample."""
    at = torch.as_tensor(at, device=times.device).reshape(1)
    before = scheduler.timesteps.index_select(0, (at + 1).clamp(max=len(scheduler.timesteps) - 1))
    return Plan(_cosine_rows(scheduler, times, before.expand(len(times))))


def _cosine_rows(scheduler, times, before):
    """Return the rows of DDPM's steps in continuous time from `times` to `before`."""
    a, a_to = (scheduler._alpha_cumprod(t, times.device) for t in (times, before))
    rest = a / a_to
    x = (1.0 / rest).sqrt()
    deviation = ((1 - rest) * (1.0 - a_to) / (1.0 - a)).sqrt()
    m = -x * (1 - rest) / (1 - a).sqrt()
    return rows(len(times), times.device, x=x, m=m, noise=torch.where(before == 0, 0.0, deviation))
