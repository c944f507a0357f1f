"""SA-Solver: stochastic Adams methods in λ = ln(alpha/sigma), a predictor and a corrector."""

import torch

from .exponential import Levels, epsilon_columns, x0_columns
from .plan import Plan, rows, run, x0_limits
from .rule import (
    BETAS,
    SIGMA_SPACINGS,
    THRESHOLDING,
    TimestepRule,
    check_prediction,
    fits_kernel,
    noise_tensor,
    refused,
    step_index,
)


class SASolver(TimestepRule, scheduler="SASolverScheduler"):
    """SA-Solver (Xue et al., 2023, arXiv:2309.05019)."""

    watched = ("sigmas", "alphas_cumprod", "timesteps")
    known = (
        BETAS
        | THRESHOLDING
        | SIGMA_SPACINGS
        | {
            *("predictor_order", "corrector_order", "prediction_type", "tau_func", "algorithm_type"),
            *("lower_order_final", "use_flow_sigmas", "flow_shift", "lambda_min_clipped", "variance_type"),
            *("timestep_spacing", "steps_offset"),
        }
    )

    def check(self, config):
        """Raise ValueError for an order, prediction type or option that is not implemented."""
        for name in ("predictor_order", "corrector_order"):
            if not 1 <= config[name] <= 3:
                raise refused(name, config[name], "expected 1 to 3")
        known = ("epsilon", "sample", "v_prediction", "flow_prediction")
        noise = config["algorithm_type"] == "noise_prediction"
        check_prediction(config, known[:3] if noise else known)
        if noise and config["thresholding"]:
            raise refused("thresholding", True, "diffusers cannot do it with algorithm_type noise_prediction")

    def step_plan(self, state, scheduler, tau_func):
        """Make the plan: rows for each step, order of the corrector (0 for none) and order of the predictor.

        h1 and h2 are the last corrected x and the noise added to it; h3 and h4 are the outputs kept of the
        steps before. The order of a corrector of 0 takes x itself instead.
        """
        config, levels = scheduler.config, Levels(scheduler)
        noise, steps = not scheduler.predict_x0, len(scheduler.sigmas) - 1
        taus = [tau_func(t) for t in torch.tensor(state.numbers(scheduler), dtype=scheduler.timesteps.dtype)]
        if noise:
            columns, limits = epsilon_columns(config["prediction_type"], levels), {}
        else:
            columns, limits = x0_columns(config["prediction_type"], levels), x0_limits(config, clip=False)
        alpha, sigma = (list(getattr(levels, name).unbind()) for name in ("alpha", "sigma"))
        points = [(a, s, torch.log(a) - torch.log(s)) for a, s in zip(alpha, sigma, strict=True)]
        p, c = config["predictor_order"], config["corrector_order"]
        table = torch.zeros(steps, c + 1, p, rows(1).shape[1], dtype=torch.float64)
        base = rows(steps, **columns)
        for i in range(steps):
            predictors = [
                _weights(scheduler, points, i, i + 1, i, order, taus[i], False)
                for order in range(1, min(p, i + 1) + 1)
            ]
            correctors = [(1.0, None)]
            if i > 0:
                correctors += [
                    _weights(scheduler, points, i - 1, i, i, order, taus[i - 1], True)
                    for order in range(1, min(c, i + 1) + 1)
                ]
            for corrector, (last, *fixed) in enumerate(correctors):
                for order, (of_x, of_noise, *weights) in enumerate(predictors, 1):
                    table[i, corrector, order - 1] = base[i] + _row(
                        corrector, last, fixed, of_x, of_noise, weights
                    )
        given = config["prediction_type"] == ("epsilon" if noise else "sample") and not limits
        return Plan(
            table.flatten(0, 2),
            limits,
            given=given,
            orders=(c, p),
            learned=config["variance_type"] in ("learned", "learned_range")
            and config["prediction_type"] == "epsilon",
        )

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `SASolverScheduler.step`."""
        m = model_output
        if scheduler.num_inference_steps is None or not isinstance(m, torch.Tensor):
            return NotImplemented
        plan = state.plan(scheduler, scheduler.tau_func)
        like = m
        if plan.learned:
            m = m[:, :3]
        if like.shape != m.shape or not fits_kernel(m, sample):
            return NotImplemented
        index, steps = step_index(scheduler, timestep), len(scheduler.timesteps)
        value = state.value(scheduler, timestep)
        if index >= steps or (value is not None and value != state.numbers(scheduler)[index]):
            return NotImplemented
        (c, p), outputs = plan.orders, scheduler.model_outputs
        correct = index > 0 and scheduler.last_sample is not None
        corrector = scheduler.this_corrector_order if correct else 0
        predictor, next_corrector = p, c
        if scheduler.config["lower_order_final"]:
            predictor, next_corrector = min(p, steps - index), min(c, steps - index + 1)
        predictor = min(predictor, scheduler.lower_order_nums + 1)
        kept = outputs[: -max(corrector, predictor) : -1] if max(corrector, predictor) > 1 else []
        if any(h is None for h in kept) or len(kept) < max(corrector, predictor) - 1 or corrector > index + 1:
            return NotImplemented
        noise = noise_tensor(state, scheduler, index, m, generator)
        history = (scheduler.last_sample, scheduler.last_noise) if correct else (sample, sample)
        results = run(
            plan,
            (index * (c + 1) + corrector) * p + predictor - 1,
            sample,
            m,
            x0=not plan.given,
            kept=correct,
            noise=noise,
            history=(*history, *kept),
        )
        results = list(results) if isinstance(results, tuple) else [results]
        result = results[0] if results[0].dtype == sample.dtype else results[0].to(sample.dtype)
        last = len(outputs) - 1
        for i in range(last):
            outputs[i], scheduler.timestep_list[i] = outputs[i + 1], scheduler.timestep_list[i + 1]
        outputs[-1], scheduler.timestep_list[-1] = m if plan.given else results[1], timestep
        scheduler.this_predictor_order = predictor
        scheduler.this_corrector_order = min(next_corrector, scheduler.lower_order_nums + 2)
        scheduler.last_sample, scheduler.last_noise = (
            results[-1].to(sample.dtype) if correct else sample,
            noise,
        )
        if scheduler.lower_order_nums < max(p, c - 1):
            scheduler.lower_order_nums += 1
        scheduler._step_index = index + 1
        return state.finish(return_dict, result)


def _weights(scheduler, points, start, end, newest, order, tau, correct):
    """Return the weights of x, of the noise and of `order` outputs from the newest one back, for one step.

    The scheduler's own coefficients, number by number: in float32 they keep few digits, which have to be the
    same ones.

    Args:
        scheduler: the scheduler.
        points: alpha, sigma and λ of each of its sigmas.
        start: index of the level that the step starts from.
        end: index of the level that it goes to.
        newest: index of the level of the newest output.
        order: 1 to 3.
        tau: scale of the noise.
        correct: whether it is the corrector's.
    """
    (a_from, s_from, l_from), (a, s, l_to) = points[start], points[end]
    h = l_to - l_from
    lambdas = [points[newest - i][2] for i in range(order)]
    weights = scheduler.get_coefficients_fn(order, l_from, l_to, lambdas, tau)
    square = 1 + tau**2
    if not scheduler.predict_x0:
        weights = [-square * a * w for w in weights]
        return [a / a_from, tau * s * torch.sqrt(torch.exp(2 * h) - 1), *weights]
    if order == 2:
        rest = h * square - 1 + torch.exp(square * -h)
        if correct:
            change = h / 2 - rest / (square**2 * h)
        else:
            change = (h**2 / 2 - rest / square**2) / (l_from - lambdas[1])
        change = 1.0 * torch.exp(square * l_to) * change
        weights = [weights[0] + change, weights[1] - change]
    weights = [square * s * torch.exp(-(tau**2) * l_to) * w for w in weights]
    x = torch.exp(-(tau**2) * h) * (s / s_from)
    return [x, s * torch.sqrt(1 - torch.exp(-2 * tau**2 * h)), *weights]


def _row(corrector, last, fixed, x, noise, weights):
    """Return a row's columns of the result, and of the corrected x as what is kept."""
    names = ("x0", "h3", "h4")
    number = [float(w) for w in weights]
    columns = dict(zip(names, number, strict=False), noise=float(noise))
    if corrector:
        of_noise, *others = (float(w) for w in fixed)
        corrected = {"h1": float(last), "h2": of_noise, **dict(zip(names, others, strict=False))}
        for name, w in corrected.items():
            columns[name] = columns.get(name, 0.0) + float(x) * w
            columns[f"kept_{name}"] = w
    else:
        columns["x"] = float(x)
    return rows(1, **columns)[0]
