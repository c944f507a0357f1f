"""Solvers in sigma: Euler, ancestral Euler, Heun, linear multistep, flow matching, consistency models."""

import math
import warnings

import torch

from .plan import Plan, divisors_plan, rows, run, x0_limits
from .rule import (
    BETAS,
    EDM_SIGMAS,
    SIGMA_SPACINGS,
    Rule,
    SigmaRule,
    check_prediction,
    fits_kernel,
    is_index,
    refused,
    sigma_indices,
    step_index,
)

_BETAS = BETAS | {"timestep_spacing", "prediction_type", "steps_offset"}
_SIGMAS = _BETAS | SIGMA_SPACINGS

#: diffusers' warning at a step whose `scale_model_input` was not called.
_UNSCALED = (
    "The `scale_model_input` function should be called before `step` to ensure correct denoising. "
    "See `StableDiffusionPipeline` for a usage example."
)


def run_wide(plan, row, sample, model_output, **options):
    """`run` for several results in float32 at least, as diffusers upcasts the sample.

    The first result is in the model's dtype.
    """
    wide = torch.promote_types(torch.float32, model_output.dtype)
    if sample.dtype != wide:
        sample = sample.to(wide)
    result, *others = run(plan, row, sample, model_output, **options)
    if result.dtype != model_output.dtype:
        result = result.to(model_output.dtype)
    return result, *others


def x0_columns(prediction, sigma, scaled=None):
    """Return the columns of x0; `scaled`: the sigma that scales v, if it differs."""
    if prediction == "epsilon":
        return dict(x0_x=1.0, x0_m=-sigma.double())
    if prediction == "v_prediction":
        sigma = sigma if scaled is None else scaled
        return dict(x0_x=1 / (sigma**2 + 1).double(), x0_m=(-sigma / (sigma**2 + 1) ** 0.5).double())
    return dict(x0_x=0.0, x0_m=1.0)


def slope_weights(prediction, length, sigma):
    """Return the weights of x + length·(x - x0)/sigma, which is x + length·m for predicted noise."""
    if prediction == "epsilon":
        return dict(x=1.0, m=length.double())
    share = length.double() / sigma.double()
    return dict(x=1 + share, x0=-share)


class Sigmas(SigmaRule):
    """Rule of solvers of the probability flow in sigma, whose model input is divided by √(sigma² + data²)."""

    known = _SIGMAS
    predictions = ("epsilon", "v_prediction")

    def check(self, config):
        """Raise ValueError for another prediction type."""
        check_prediction(config, self.predictions)

    def noise_plan(self, scheduler):
        """Make the plan of `add_noise`: x + sigma·noise."""
        sigmas = scheduler.sigmas
        return Plan(rows(len(sigmas), sigmas.device, x=1.0, m=sigmas))

    def scale_plan(self, scheduler):
        """Make the plan of `scale_model_input` for data of unit variance."""
        return divisors_plan(scheduler.sigmas)

    def scale_model_input(self, state, scheduler, sample, timestep):
        """Divide the sample by the due step's divisor."""
        index = step_index(scheduler, timestep)
        scheduler.is_scale_input_called = True
        return sample / state.plan(scheduler, "scale").divisors[index]


# ---- Euler with churn


class Churned(Sigmas):
    """Rule of Euler's method with churn (Karras et al., 2022, arXiv:2206.00364, algorithm 2)."""

    def euler_plan(self, scheduler, key, prediction, x0_columns_of):
        """Make the plan of a step.

        Args:
            scheduler: the scheduler.
            key: None, or (s_churn, s_tmin, s_tmax, s_noise).
            prediction: the prediction type; None for weights of x and x0 alone.
            x0_columns_of: function of the sigmas before and after churn to the columns of x0.
        """
        sigma, raised, added, noisy = _churned(scheduler, key)
        columns = x0_columns_of(sigma, raised)
        columns.update(slope_weights(prediction, scheduler.sigmas[1:] - raised, raised))
        if noisy is not None:  # x0 is computed from the noised x, so it is the second sum
            of_x0 = columns.pop("x0", 0.0)
            columns["x"] = columns["x"] + of_x0 * columns["x0_x"]
            columns["m"] = columns.get("m", 0.0) + of_x0 * columns["x0_m"]
            columns.update(kept_x=columns.pop("x0_x"), kept_m=columns.pop("x0_m"))
            added = added.double()
            columns.update(noise=columns["x"] * added, kept_noise=columns["kept_x"] * added)
        given = prediction in ("sample", "original_sample")
        return Plan(rows(len(sigma), **columns), noisy=noisy, given=given)

    def euler_step(self, state, scheduler, model_output, timestep, sample, churn, generator, return_dict):
        """Step with churn (s_churn, s_tmin, s_tmax, s_noise)."""
        if not scheduler.is_scale_input_called:
            state.target.logger.warning(_UNSCALED)
        index = step_index(scheduler, timestep)
        if churn[0] > 0:
            plan = state.plan(scheduler, churn)
            options = {"kept": True}
            if plan.noisy[index]:
                options.update(state.draw(model_output, generator))
        else:
            plan = state.plan(scheduler)
            options = {"x0": True}
        result, x0 = run_wide(plan, index, sample, model_output, **options)
        if plan.given:
            x0 = model_output
        scheduler._step_index = index + 1
        return state.finish(return_dict, result, x0)


def _churned(scheduler, key):
    """Return sigmas before and after churn, standard deviations of its noise, and which steps have any."""
    sigma = scheduler.sigmas[:-1]
    if key is None:
        return sigma, sigma, torch.zeros_like(sigma), None
    churn, least, most, noise = key
    gamma = min(churn / len(sigma), 2**0.5 - 1)
    inside = (least <= sigma) & (sigma <= most)
    raised = torch.where(inside, sigma * (gamma + 1), sigma)
    added = noise * (raised**2 - sigma**2) ** 0.5
    return sigma, raised, torch.where(inside, added, 0.0), inside.tolist()


class Euler(Churned, scheduler="EulerDiscreteScheduler"):
    """Euler's method."""

    known = _SIGMAS | {
        *("interpolation_type", "sigma_min", "sigma_max", "timestep_type"),
        *("rescale_betas_zero_snr", "final_sigmas_type"),
    }
    predictions = ("epsilon", "v_prediction", "sample", "original_sample")

    def step_plan(self, state, scheduler, key):
        """Make the plan for a churn, or None."""
        prediction = scheduler.config["prediction_type"]

        def columns(sigma, raised):
            return x0_columns(prediction, raised, scaled=sigma)

        return self.euler_plan(scheduler, key, prediction, columns)

    def step(
        self,
        state,
        scheduler,
        model_output,
        timestep,
        sample,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=float("inf"),
        s_noise=1.0,
        generator=None,
        return_dict=True,
    ):
        """Step as `EulerDiscreteScheduler.step`."""
        churn = s_churn, s_tmin, s_tmax, s_noise
        if is_index(timestep) or not fits_kernel(model_output, sample):
            return NotImplemented
        return self.euler_step(
            state, scheduler, model_output, timestep, sample, churn, generator, return_dict
        )


class EDMEuler(Churned, scheduler="EDMEulerScheduler"):
    """Euler's method with EDM's preconditioning (Karras et al., 2022, arXiv:2206.00364)."""

    known = EDM_SIGMAS

    def scale_plan(self, scheduler):
        """Make the plan of `scale_model_input` for data of the configured deviation."""
        return divisors_plan(scheduler.sigmas, scheduler.config["sigma_data"] ** 2)

    def step_plan(self, state, scheduler, key):
        """Make the plan for a churn, or None."""
        data, prediction = scheduler.config["sigma_data"], scheduler.config["prediction_type"]

        def columns(sigma, raised):
            skip = data**2 / (raised**2 + data**2)
            out = raised * data / (raised**2 + data**2) ** 0.5
            return dict(x0_x=skip.double(), x0_m=(-out if prediction == "v_prediction" else out).double())

        return self.euler_plan(scheduler, key, None, columns)

    def step(
        self,
        state,
        scheduler,
        model_output,
        timestep,
        sample,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=float("inf"),
        s_noise=1.0,
        generator=None,
        return_dict=True,
        pred_original_sample=None,
    ):
        """Step as `EDMEulerScheduler.step`."""
        churn = s_churn, s_tmin, s_tmax, s_noise
        if is_index(timestep) or pred_original_sample is not None or not fits_kernel(model_output, sample):
            return NotImplemented
        return self.euler_step(
            state, scheduler, model_output, timestep, sample, churn, generator, return_dict
        )


# ---- Other forms of Euler's method


class EulerAncestral(Sigmas, scheduler="EulerAncestralDiscreteScheduler"):
    """Euler's method to a level below, then noise."""

    known = _BETAS | {"rescale_betas_zero_snr"}

    def step_plan(self, state, scheduler, key):
        """Make the plan."""
        prediction, sigmas = scheduler.config["prediction_type"], scheduler.sigmas
        sigma, to = sigmas[:-1], sigmas[1:]
        up = (to**2 * (sigma**2 - to**2) / sigma**2) ** 0.5
        down = (to**2 - up**2) ** 0.5
        columns = {**x0_columns(prediction, sigma), **slope_weights(prediction, down - sigma, sigma)}
        return Plan(rows(len(sigma), **columns, noise=up))

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `EulerAncestralDiscreteScheduler.step`."""
        if is_index(timestep) or not fits_kernel(model_output, sample):
            return NotImplemented
        if not scheduler.is_scale_input_called:
            state.target.logger.warning(_UNSCALED)
        index = step_index(scheduler, timestep)
        noise = state.draw(model_output, generator)
        results = run_wide(state.plan(scheduler), index, sample, model_output, x0=True, **noise)
        scheduler._step_index = index + 1
        return state.finish(return_dict, *results)


class FlowMatchEuler(Rule, scheduler="FlowMatchEulerDiscreteScheduler"):
    """Euler's method for flow matching (Esser et al., 2024, arXiv:2403.03206)."""

    known = SIGMA_SPACINGS | {
        *("num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift"),
        *("base_image_seq_len", "max_image_seq_len", "invert_sigmas", "shift_terminal"),
        *("time_shift_type", "stochastic_sampling"),
    }

    def noise_plan(self, scheduler):
        """Make the plan of `scale_noise`, on the device of the sigmas, which may be a GPU here."""
        sigmas = scheduler.sigmas
        return Plan(rows(len(sigmas), sigmas.device, x=1 - sigmas, m=sigmas))

    def step_plan(self, state, scheduler, stochastic):
        """Make the plan of deterministic or of stochastic steps, on the device of the sigmas."""
        sigmas = scheduler.sigmas
        sigma, to = sigmas[:-1], sigmas[1:]
        if not stochastic:
            return Plan(rows(len(sigma), sigmas.device, x=1.0, m=to - sigma))
        x0 = dict(x0_x=1.0, x0_m=-sigma.double())
        return Plan(rows(len(sigma), sigmas.device, **x0, x0=1 - to, noise=to))

    def scale_noise(self, state, scheduler, sample, timestep, noise=None):
        """(1 - sigma)·x + sigma·noise at the level of each sample's timestep."""
        at = None
        if fits_kernel(noise, sample):
            at = sigma_indices(scheduler, timestep.to(sample.device), sample.shape[0])
        if at is None:
            return NotImplemented
        return run(state.plan(scheduler, "add_noise"), at, sample, noise)

    def step(
        self,
        state,
        scheduler,
        model_output,
        timestep,
        sample,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=float("inf"),
        s_noise=1.0,
        generator=None,
        per_token_timesteps=None,
        return_dict=True,
    ):
        """Step as `FlowMatchEulerDiscreteScheduler.step`."""
        if is_index(timestep) or per_token_timesteps is not None or not fits_kernel(model_output, sample):
            return NotImplemented
        index = step_index(scheduler, timestep)
        stochastic = scheduler._internal_dict["stochastic_sampling"]
        plan = state.plan(scheduler, stochastic)
        if stochastic:
            if not (state.target.generates or state.noise.keyed):
                generator = None  # earlier versions of diffusers did not use it
            noise = state.draw(sample, generator, torch.float32)
            result = run(plan, index, sample, model_output, **noise)
        else:
            result = run(plan, index, sample, model_output)
        if result.dtype != model_output.dtype:
            result = result.to(model_output.dtype)
        scheduler._step_index = index + 1
        return state.finish(return_dict, result)


# ---- Several evaluations, several steps


class Heun(Sigmas, scheduler="HeunDiscreteScheduler"):
    """Heun's method (Karras et al., 2022, arXiv:2206.00364, algorithm 1)."""

    known = _SIGMAS | {"clip_sample", "clip_sample_range"}
    predictions = ("epsilon", "v_prediction", "sample")

    def step_plan(self, state, scheduler, key):
        """Make the plan: for each sigma a row of the first stage and one of the second."""
        prediction, sigmas = scheduler.config["prediction_type"], scheduler.sigmas
        sigma, to = sigmas[:-1], sigmas[1:]
        length, limits = to - sigma, x0_limits(scheduler.config)
        half = length.double().roll(1) / 2  # of the step whose second stage it is
        x0 = x0_columns(prediction, sigma)
        # h1: x before the first stage; h2: (x - x0)/sigma there, the kept tensor. Of predicted noise that is
        # m, but a copy: the model may write its next output into the same tensor.
        if prediction == "epsilon" and not limits:
            first = rows(len(sigma), **x0, x=1.0, m=length, kept_m=1.0)
            second = rows(len(sigma), **x0, h1=1.0, h2=half, m=half)
        else:
            inverse = 1 / sigma.double()
            share = length.double() * inverse
            first = rows(len(sigma), **x0, x=1 + share, x0=-share, kept_x=inverse, kept_x0=-inverse)
            second = rows(len(sigma), **x0, h1=1.0, h2=half, x=half * inverse, x0=-half * inverse)
        table = torch.stack([first, second], 1).flatten(0, 1)
        return Plan(table, limits, lengths=length.unbind())

    def scale_model_input(self, state, scheduler, sample, timestep):
        """Divide the sample by the due step's divisor; this scheduler does not record the call."""
        return sample / state.plan(scheduler, "scale").divisors[step_index(scheduler, timestep)]

    def step(self, state, scheduler, model_output, timestep, sample, return_dict=True):
        """Step as `HeunDiscreteScheduler.step`."""
        if not fits_kernel(model_output, sample):
            return NotImplemented
        index = step_index(scheduler, timestep)
        plan = state.plan(scheduler)
        if index >= len(plan.lengths) or (
            scheduler.dt is not None and scheduler.dt is not plan.lengths[index - 1]
        ):
            # Beyond the last step; or the first stage had other sigmas, or was the original's of this copy.
            return NotImplemented
        if scheduler.dt is None:
            result, x0, slope = run(plan, 2 * index, sample, model_output, x0=True, kept=True)
            scheduler.prev_derivative, scheduler.dt, scheduler.sample = slope, plan.lengths[index], sample
        else:
            history = scheduler.sample, scheduler.prev_derivative
            result, x0 = run(plan, 2 * index + 1, sample, model_output, x0=True, history=history)
            scheduler.prev_derivative = scheduler.dt = scheduler.sample = None
        scheduler._step_index = index + 1
        return state.finish(return_dict, result, x0)


class LMS(Sigmas, scheduler="LMSDiscreteScheduler"):
    """The linear multistep (Adams-Bashforth) method in sigma."""

    predictions = ("epsilon", "v_prediction", "sample")

    def step_plan(self, state, scheduler, order):
        """Make the plan for an order; h1, h2, ... are the slopes (x - x0)/sigma of the steps before."""
        sigmas = scheduler.sigmas
        sigma, inverse = sigmas[:-1], 1 / sigmas[:-1].double()
        weights = torch.tensor(
            [
                _adams(sigmas.tolist(), i, min(i + 1, order)) + [0.0] * (order - i - 1)
                for i in range(len(sigma))
            ],
            dtype=torch.float64,
        ).T
        prediction = scheduler.config["prediction_type"]
        columns = x0_columns(prediction, sigma)
        columns.update({f"h{k}": weights[k] for k in range(1, order)})
        if prediction == "epsilon":  # the slope is m, kept as a copy: see Heun
            columns.update(x=1.0, m=weights[0], kept_m=1.0)
        else:
            share = weights[0] * inverse
            columns.update(x=1 + share, x0=-share, kept_x=inverse, kept_x0=-inverse)
        return Plan(rows(len(sigma), **columns))

    def step(self, state, scheduler, model_output, timestep, sample, order=4, return_dict=True):
        """Step as `LMSDiscreteScheduler.step`."""
        slopes = scheduler.derivatives
        if not fits_kernel(model_output, sample) or not 1 <= order <= 5 or len(slopes) > order:
            return NotImplemented
        if not scheduler.is_scale_input_called:
            warnings.warn(_UNSCALED, stacklevel=2)
        index = step_index(scheduler, timestep)
        plan = state.plan(scheduler, order)
        history = slopes[:-order:-1] if order > 1 else []
        result, x0, slope = run(plan, index, sample, model_output, x0=True, kept=True, history=history)
        slopes.append(slope)
        if len(slopes) > order:
            slopes.pop(0)
        scheduler._step_index = index + 1
        return state.finish(return_dict, result, x0)


def _adams(sigmas, i, order):
    """Integrate the Lagrange polynomials at sigma_i, sigma_(i-1), ... from sigma_i to sigma_(i+1)."""
    weights = []
    for current in range(order):
        polynomial, at = [1.0], sigmas[i - current]  # coefficients in tau - sigma_i
        for k in range(order):
            if k != current:
                root, scale = sigmas[i - k] - sigmas[i], at - sigmas[i - k]
                polynomial = [
                    (a - root * b) / scale
                    for a, b in zip([0.0, *polynomial], [*polynomial, 0.0], strict=True)
                ]
        length = sigmas[i + 1] - sigmas[i]
        weights.append(math.fsum(c * length ** (n + 1) / (n + 1) for n, c in enumerate(polynomial)))
    return weights


# ---- Consistency models


class Consistency(Sigmas, scheduler="CMStochasticIterativeScheduler"):
    """Multistep sampling of consistency models (Song et al., 2023, arXiv:2303.01469)."""

    known = frozenset(
        ("num_train_timesteps", "sigma_min", "sigma_max", "sigma_data", "s_noise", "rho", "clip_denoised")
    )

    def check(self, config):
        """Raise ValueError for a range of sigmas that is empty."""
        if config["sigma_min"] > config["sigma_max"]:
            raise refused("sigma_min", config["sigma_min"], "it is beyond sigma_max")

    def scale_plan(self, scheduler):
        """Make the plan of `scale_model_input` for data of the configured deviation."""
        return divisors_plan(scheduler.sigmas, scheduler.config["sigma_data"] ** 2)

    def step_plan(self, state, scheduler, key):
        """Make the plan."""
        config, sigmas = scheduler.config, scheduler.sigmas
        sigma, to = sigmas[:-1], sigmas[1:]
        if len(sigmas) == len(scheduler.timesteps):  # as constructed, before `set_timesteps`
            sigma, to = sigmas, torch.cat([to, sigmas[-1:]])
        least, data = config["sigma_min"], config["sigma_data"]
        skip = data**2 / ((sigma - least) ** 2 + data**2)
        out = (sigma - least) * data / (sigma**2 + data**2) ** 0.5
        noise = config["s_noise"] * (to.clamp(min=least, max=config["sigma_max"]) ** 2 - least**2) ** 0.5
        table = rows(len(sigma), x0_x=skip, x0_m=out, x0=1.0, noise=noise)
        return Plan(table, {"clip": 1.0} if config["clip_denoised"] else {})

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `CMStochasticIterativeScheduler.step`."""
        if is_index(timestep) or not fits_kernel(model_output, sample):
            return NotImplemented
        if not scheduler.is_scale_input_called:
            state.target.logger.warning(_UNSCALED)
        index = step_index(scheduler, timestep)
        plan = state.plan(scheduler)
        noise = state.draw(model_output, generator) if len(scheduler.timesteps) > 1 else {}
        result = run(plan, index, sample, model_output, **noise)
        scheduler._step_index = index + 1
        return state.finish(return_dict, result)
