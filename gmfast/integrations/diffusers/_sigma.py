"""The solvers in sigma: Euler, its ancestral form, Heun, linear multistep, EDM, flow, consistency."""

import math
import warnings

import torch

from . import _framework
from ._framework import (
    Plan,
    Rule,
    check_prediction,
    is_whole,
    limits,
    plain,
    refused,
    rows,
    run,
    run_wide,
    step_index,
)

_BETAS = frozenset(
    ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "timestep_spacing")
)
_SIGMAS = _BETAS | {
    *("prediction_type", "steps_offset"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
}


def x0_columns(prediction, sigma, scaled=None):
    """x0's columns; `scaled`: the sigma that v is scaled by, where it is another."""
    if prediction == "epsilon":
        return dict(x0_x=1.0, x0_m=-sigma.double())
    if prediction == "v_prediction":
        sigma = sigma if scaled is None else scaled
        return dict(x0_x=1 / (sigma**2 + 1).double(), x0_m=(-sigma / (sigma**2 + 1) ** 0.5).double())
    return dict(x0_x=0.0, x0_m=1.0)


def slope_weights(prediction, length, sigma):
    """x + length·(x - x0)/sigma; where that is length·m, said so."""
    if prediction == "epsilon":
        return dict(x=1.0, m=length.double())
    share = length.double() / sigma.double()
    return dict(x=1 + share, x0=-share)


def noised_plan(scheduler):
    sigmas = scheduler.sigmas
    return Plan(rows(len(sigmas), sigmas.device, x=1.0, m=sigmas))


def scale_model_input(self, sample, timestep):
    state = self._gmfast
    index = step_index(self, timestep)
    self.is_scale_input_called = True
    return sample / state.plan(self, "scale").divisors[index]


def _divisors(scheduler, of=1.0):
    return Plan(torch.empty(0), divisors=((scheduler.sigmas**2 + of) ** 0.5).tolist())


class _Sigmas(Rule):
    known = _SIGMAS
    predictions = ("epsilon", "v_prediction")

    add_noise = _framework.add_noise_of_sigmas
    scale_model_input = scale_model_input

    def check(self, config):
        check_prediction(config, self.predictions)

    def plan(self, scheduler, key):
        if key == "add_noise":
            return noised_plan(scheduler)
        if key == "scale":
            return _divisors(scheduler)
        return self.steps(scheduler, key)


def _churned(scheduler, key):
    """Sigmas before and after noise is added, what is added, and where."""
    sigma = scheduler.sigmas[:-1]
    if key is None:
        return sigma, sigma, torch.zeros_like(sigma), None
    churn, least, most, noise = key
    gamma = min(churn / len(sigma), 2**0.5 - 1)
    inside = (least <= sigma) & (sigma <= most)
    raised = torch.where(inside, sigma * (gamma + 1), sigma)
    added = noise * (raised**2 - sigma**2) ** 0.5
    return sigma, raised, torch.where(inside, added, 0.0), inside.tolist()


def _euler_plan(scheduler, key, prediction, columns):
    """`columns`: x0's, of (sigma, raised)."""
    sigma, raised, added, noisy = _churned(scheduler, key)
    columns = columns(sigma, raised)
    columns.update(slope_weights(prediction, scheduler.sigmas[1:] - raised, raised))
    if noisy is not None:  # x0 has noise in it: it is the second sum
        of_x0 = columns.pop("x0", 0.0)
        columns["x"] = columns["x"] + of_x0 * columns["x0_x"]
        columns["m"] = columns.get("m", 0.0) + of_x0 * columns["x0_m"]
        columns.update(kept_x=columns.pop("x0_x"), kept_m=columns.pop("x0_m"))
        added = added.double()
        columns.update(noise=columns["x"] * added, kept_noise=columns["kept_x"] * added)
    given = prediction in ("sample", "original_sample")
    return Plan(rows(len(sigma), **columns), noisy=noisy, given=given)


def _euler_step(self, model_output, timestep, sample, churn, generator, return_dict):
    state = self._gmfast
    if not self.is_scale_input_called:
        state.target.logger.warning(_framework._UNSCALED)
    index = step_index(self, timestep)
    if churn[0] > 0:
        plan = state.plan(self, churn)
        options = {"kept": True}
        if plan.noisy[index]:
            options.update(state.draw(model_output, generator))
    else:
        plan = state.plan(self)
        options = {"x0": True}
    result, x0 = run_wide(plan, index, sample, model_output, **options)
    if plan.given:
        x0 = model_output
    self._step_index = index + 1
    return state.finish(return_dict, result, x0)


@_framework.register("EulerDiscreteScheduler")
class Euler(_Sigmas):
    known = _SIGMAS | {
        *("interpolation_type", "sigma_min", "sigma_max", "timestep_type"),
        *("rescale_betas_zero_snr", "final_sigmas_type"),
    }
    predictions = ("epsilon", "v_prediction", "sample", "original_sample")

    def steps(self, scheduler, key):
        prediction = scheduler.config["prediction_type"]

        def columns(sigma, raised):
            return x0_columns(prediction, raised, scaled=sigma)

        return _euler_plan(scheduler, key, prediction, columns)

    def step(
        self,
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
        churn = s_churn, s_tmin, s_tmax, s_noise
        if is_whole(timestep) or not plain(model_output, sample):
            return NotImplemented
        return _euler_step(self, model_output, timestep, sample, churn, generator, return_dict)


@_framework.register("EDMEulerScheduler")
class EDMEuler(_Sigmas):
    known = frozenset(
        {
            *("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "num_train_timesteps"),
            *("prediction_type", "rho", "final_sigmas_type"),
        }
    )

    def plan(self, scheduler, key):
        if key == "scale":
            return _divisors(scheduler, scheduler.config["sigma_data"] ** 2)
        return super().plan(scheduler, key)

    def steps(self, scheduler, key):
        data, prediction = scheduler.config["sigma_data"], scheduler.config["prediction_type"]

        def columns(sigma, raised):
            skip = data**2 / (raised**2 + data**2)
            out = raised * data / (raised**2 + data**2) ** 0.5
            return dict(x0_x=skip.double(), x0_m=(-out if prediction == "v_prediction" else out).double())

        return _euler_plan(scheduler, key, None, columns)

    def step(
        self,
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
        churn = s_churn, s_tmin, s_tmax, s_noise
        if is_whole(timestep) or pred_original_sample is not None or not plain(model_output, sample):
            return NotImplemented
        return _euler_step(self, model_output, timestep, sample, churn, generator, return_dict)


@_framework.register("EulerAncestralDiscreteScheduler")
class EulerAncestral(_Sigmas):
    known = _BETAS | {"prediction_type", "steps_offset", "rescale_betas_zero_snr"}

    def steps(self, scheduler, key):
        prediction, sigmas = scheduler.config["prediction_type"], scheduler.sigmas
        sigma, to = sigmas[:-1], sigmas[1:]
        up = (to**2 * (sigma**2 - to**2) / sigma**2) ** 0.5
        down = (to**2 - up**2) ** 0.5
        columns = {**x0_columns(prediction, sigma), **slope_weights(prediction, down - sigma, sigma)}
        return Plan(rows(len(sigma), **columns, noise=up))

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        state = self._gmfast
        if is_whole(timestep) or not plain(model_output, sample):
            return NotImplemented
        if not self.is_scale_input_called:
            state.target.logger.warning(_framework._UNSCALED)
        index = step_index(self, timestep)
        noise = state.draw(model_output, generator)
        results = run_wide(state.plan(self), index, sample, model_output, x0=True, **noise)
        self._step_index = index + 1
        return state.finish(return_dict, *results)


@_framework.register("FlowMatchEulerDiscreteScheduler")
class FlowMatchEuler(Rule):
    known = frozenset(
        {
            *("num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift"),
            *("base_image_seq_len", "max_image_seq_len", "invert_sigmas", "shift_terminal"),
            *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
            *("time_shift_type", "stochastic_sampling"),
        }
    )

    def plan(self, scheduler, key):
        """On the device of the sigmas, which here is not always the host."""
        sigmas = scheduler.sigmas
        if key == "scale_noise":
            return Plan(rows(len(sigmas), sigmas.device, x=1 - sigmas, m=sigmas))
        sigma, to = sigmas[:-1], sigmas[1:]
        if not key:
            return Plan(rows(len(sigma), sigmas.device, x=1.0, m=to - sigma))
        x0 = dict(x0_x=1.0, x0_m=-sigma.double())
        return Plan(rows(len(sigma), sigmas.device, **x0, x0=1 - to, noise=to))

    def scale_noise(self, sample, timestep, noise=None):
        state = self._gmfast
        at = None
        if plain(noise, sample):
            at = _framework.indices(self, timestep.to(sample.device), sample.shape[0])
        if at is None:
            return NotImplemented
        return run(state.plan(self, "scale_noise"), at, sample, noise)

    def step(
        self,
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
        state = self._gmfast
        if is_whole(timestep) or per_token_timesteps is not None or not plain(model_output, sample):
            return NotImplemented
        index = step_index(self, timestep)
        stochastic = self._internal_dict["stochastic_sampling"]
        plan = state.plan(self, stochastic)
        if stochastic:
            if not (state.target.generates or state.keyed):
                generator = None  # earlier versions of diffusers did not use it
            noise = state.draw(sample, generator, torch.float32)
            result = run(plan, index, sample, model_output, **noise)
        else:
            result = run(plan, index, sample, model_output)
        if result.dtype != model_output.dtype:
            result = result.to(model_output.dtype)
        self._step_index = index + 1
        return state.finish(return_dict, result)


@_framework.register("HeunDiscreteScheduler")
class Heun(_Sigmas):
    known = _SIGMAS | {"clip_sample", "clip_sample_range"}
    predictions = ("epsilon", "v_prediction", "sample")

    def steps(self, scheduler, key):
        """For each sigma a row of the first stage and one of the second."""
        prediction, sigmas = scheduler.config["prediction_type"], scheduler.sigmas
        sigma, to = sigmas[:-1], sigmas[1:]
        length, x0_limits = to - sigma, limits(scheduler.config)
        half = length.double().roll(1) / 2  # of the step of which the second stage is
        x0 = x0_columns(prediction, sigma)
        # h1: x before the first stage; h2: (x - x0)/sigma there, which is kept. It may be m, but not as the
        # network's own tensor, in which the network may write its next output.
        if prediction == "epsilon" and not x0_limits:
            first = rows(len(sigma), **x0, x=1.0, m=length, kept_m=1.0)
            second = rows(len(sigma), **x0, h1=1.0, h2=half, m=half)
        else:
            inverse = 1 / sigma.double()
            share = length.double() * inverse
            first = rows(len(sigma), **x0, x=1 + share, x0=-share, kept_x=inverse, kept_x0=-inverse)
            second = rows(len(sigma), **x0, h1=1.0, h2=half, x=half * inverse, x0=-half * inverse)
        table = torch.stack([first, second], 1).flatten(0, 1)
        return Plan(table, x0_limits, lengths=length.unbind())

    def scale_model_input(self, sample, timestep):
        return sample / self._gmfast.plan(self, "scale").divisors[step_index(self, timestep)]

    def step(self, model_output, timestep, sample, return_dict=True):
        state = self._gmfast
        if not plain(model_output, sample):
            return NotImplemented
        index = step_index(self, timestep)
        plan = state.plan(self)
        if index >= len(plan.lengths) or (self.dt is not None and self.dt is not plan.lengths[index - 1]):
            # beyond the last; or the first stage was of other numbers, or of what this is a copy of
            return NotImplemented
        if self.dt is None:
            result, x0, slope = run(plan, 2 * index, sample, model_output, x0=True, kept=True)
            self.prev_derivative, self.dt, self.sample = slope, plan.lengths[index], sample
        else:
            history = self.sample, self.prev_derivative
            result, x0 = run(plan, 2 * index + 1, sample, model_output, x0=True, history=history)
            self.prev_derivative = self.dt = self.sample = None
        self._step_index = index + 1
        return state.finish(return_dict, result, x0)


@_framework.register("LMSDiscreteScheduler")
class LMS(_Sigmas):
    predictions = ("epsilon", "v_prediction", "sample")

    def steps(self, scheduler, order):
        """h1 ...: (x - x0)/sigma of the steps before."""
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
        if prediction == "epsilon":  # m, but not as the network's own tensor: see Heun
            columns.update(x=1.0, m=weights[0], kept_m=1.0)
        else:
            share = weights[0] * inverse
            columns.update(x=1 + share, x0=-share, kept_x=inverse, kept_x0=-inverse)
        return Plan(rows(len(sigma), **columns))

    def step(self, model_output, timestep, sample, order=4, return_dict=True):
        state = self._gmfast
        if not plain(model_output, sample) or not 1 <= order <= 5 or len(self.derivatives) > order:
            return NotImplemented
        if not self.is_scale_input_called:
            warnings.warn(_framework._UNSCALED, stacklevel=2)
        index = step_index(self, timestep)
        plan = state.plan(self, order)
        history = self.derivatives[:-order:-1] if order > 1 else []
        result, x0, slope = run(plan, index, sample, model_output, x0=True, kept=True, history=history)
        self.derivatives.append(slope)
        if len(self.derivatives) > order:
            self.derivatives.pop(0)
        self._step_index = index + 1
        return state.finish(return_dict, result, x0)


def _adams(sigmas, i, order):
    """The integrals from sigma_i to the next of the Lagrange polynomials at sigma_i, sigma_(i-1), ..."""
    weights = []
    for current in range(order):
        polynomial, at = [1.0], sigmas[i - current]  # in tau - sigma_i
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


@_framework.register("CMStochasticIterativeScheduler")
class Consistency(_Sigmas):
    known = frozenset(
        ("num_train_timesteps", "sigma_min", "sigma_max", "sigma_data", "s_noise", "rho", "clip_denoised")
    )

    def check(self, config):
        if config["sigma_min"] > config["sigma_max"]:
            raise refused("sigma_min", config["sigma_min"], "it is beyond sigma_max")

    def plan(self, scheduler, key):
        if key == "scale":
            return _divisors(scheduler, scheduler.config["sigma_data"] ** 2)
        return super().plan(scheduler, key)

    def steps(self, scheduler, key):
        config, sigmas = scheduler.config, scheduler.sigmas
        sigma, to = sigmas[:-1], sigmas[1:]
        if len(sigmas) == len(scheduler.timesteps):  # as it was made, before `set_timesteps`
            sigma, to = sigmas, torch.cat([to, sigmas[-1:]])
        least, data = config["sigma_min"], config["sigma_data"]
        skip = data**2 / ((sigma - least) ** 2 + data**2)
        out = (sigma - least) * data / (sigma**2 + data**2) ** 0.5
        noise = config["s_noise"] * (to.clamp(min=least, max=config["sigma_max"]) ** 2 - least**2) ** 0.5
        table = rows(len(sigma), x0_x=skip, x0_m=out, x0=1.0, noise=noise)
        return Plan(table, {"clip": 1.0} if config["clip_denoised"] else {})

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        state = self._gmfast
        if is_whole(timestep) or not plain(model_output, sample):
            return NotImplemented
        if not self.is_scale_input_called:
            state.target.logger.warning(_framework._UNSCALED)
        index = step_index(self, timestep)
        plan = state.plan(self)
        noise = state.draw(model_output, generator) if len(self.timesteps) > 1 else {}
        result = run(plan, index, sample, model_output, **noise)
        self._step_index = index + 1
        return state.finish(return_dict, result)
