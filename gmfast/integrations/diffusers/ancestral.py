"""DDPM, DDIM and inverse DDIM: rows are by training timestep, whatever the order of the visits."""

import torch

from .plan import COLUMN, Plan, rows, run, x0_limits
from .rule import BETAS, THRESHOLDING, TimestepRule, check_prediction, fits_kernel, refused, timesteps_on

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
        b, b_to = 1 - a, 1 - a_to
        rest = a / a_to
        fresh = 1 - rest
        columns = x0_columns(config["prediction_type"], a, b)
        columns.update(x0=a_to**0.5 * fresh / b, x=rest**0.5 * b_to / b)
        small = (b_to / b * fresh).clamp(min=1e-20)
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
