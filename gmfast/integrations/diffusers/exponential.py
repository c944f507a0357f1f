"""Exponential integrators in λ = ln(alpha/sigma): DPM-Solver, DPM-Solver++, their SDE forms, DEIS, UniPC.

A table has a row for each step and order, because the order of a step depends on where a run began.
Schedulers keep in `model_outputs` the data predictions x0 of the ++ solvers, the noise predictions of others.
"""

import torch

from .plan import Plan, divisors_plan, rows, run, x0_limits
from .rule import (
    BETAS,
    EDM_SIGMAS,
    SIGMA_SPACINGS,
    THRESHOLDING,
    SigmaRule,
    check_prediction,
    fits_kernel,
    is_index,
    on_host,
    refused,
    step_index,
)

_SOLVER = (
    BETAS
    | THRESHOLDING
    | SIGMA_SPACINGS
    | {
        *("solver_order", "prediction_type", "solver_type", "lower_order_final"),
        *("use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type"),
    }
)
_PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")


class Levels:
    """alpha, sigma and λ (`log_snr`) of a scheduler's sigmas, as the scheduler computes them."""

    def __init__(self, scheduler):
        self.sigmas = on_host(scheduler, "sigmas")
        self.alpha, self.sigma = scheduler._sigma_to_alpha_sigma_t(self.sigmas)
        if self.alpha.dim() == 0:  # EDM's
            self.alpha = self.alpha.expand_as(self.sigma)
        self.log_snr = torch.log(self.alpha) - torch.log(self.sigma)

    def now(self, name, back=0):
        """Return a quantity at the start of each step, or `back` steps before it (cyclically)."""
        return getattr(self, name).roll(back)[:-1]

    def to(self, name):
        """Return a quantity at the end of each step."""
        return getattr(self, name)[1:]


def x0_columns(prediction, levels):
    """Return the columns of x0."""
    a, s = levels.now("alpha").double(), levels.now("sigma").double()
    if prediction == "epsilon":
        return dict(x0_x=1 / a, x0_m=-s / a)
    if prediction == "v_prediction":
        return dict(x0_x=a, x0_m=-s)
    if prediction == "flow_prediction":
        return dict(x0_x=1.0, x0_m=-levels.now("sigmas").double())
    return dict(x0_x=0.0, x0_m=1.0)


def epsilon_columns(prediction, levels):
    """Return the columns of the predicted noise, which then stands in the place of x0.

    A flow's (DEIS only) is (x - alpha·x0)/sigma with the raw sigma, as diffusers has it: that is not the
    level's sigma unless the sigmas are a flow's too.
    """
    a, s = levels.now("alpha").double(), levels.now("sigma").double()
    if prediction == "sample":
        return dict(x0_x=1 / s, x0_m=-a / s)
    if prediction == "v_prediction":
        return dict(x0_x=s, x0_m=a)
    if prediction == "flow_prediction":
        flow = levels.now("sigmas").double()
        return dict(x0_x=(1 - a) / flow, x0_m=a)
    return dict(x0_x=0.0, x0_m=1.0)


class Converted:
    """The converted model output that a scheduler keeps: x0, or the noise, after the limits of x0.

    Args:
        config: the scheduler's.
        levels: its `Levels`.
        noise: whether it keeps the noise.
    """

    def __init__(self, config, levels, noise):
        prediction = config["prediction_type"]
        self.limits = x0_limits(config, clip=False)
        self.kept = {}
        if noise and not self.limits:
            self.columns = epsilon_columns(prediction, levels)
            self.given = prediction == "epsilon"
            self.weights = dict(x0=1.0)
        else:
            self.columns = x0_columns(prediction, levels)
            self.given = prediction == "sample" and not self.limits
            self.weights = dict(x0=1.0)
            if noise:
                a = levels.now("alpha").double()
                s = levels.now("sigmas" if prediction == "flow_prediction" else "sigma").double()
                self.weights = dict(x=1 / s, x0=-a / s)
                self.kept = {f"kept_{name}": w for name, w in self.weights.items()}

    def row(self, x, weight, **others):
        """Return the columns of x·sample + weight·(converted output) + others."""
        columns = {**self.columns, **self.kept, "x": x, **others}
        for name, w in self.weights.items():
            columns[name] = columns.get(name, 0.0) + w * weight
        return columns


# ---- DPM-Solver --------------------------------------------------------------------------------------------


def _terms(kind, solver, levels, h, before):
    """Return the weights of x, D0, D1 (of order 2 by `solver`, then of order 3), D2 and the noise.

    Args:
        kind: the algorithm type.
        solver: the solver type, "midpoint" or "heun".
        levels: the scheduler's `Levels`.
        h: the length of the steps in λ.
        before: how many levels before its last one a step began (singlestep solvers).
    """
    a, s = levels.to("alpha"), levels.to("sigma")
    a_from, s_from = levels.now("alpha", before), levels.now("sigma", before)
    if kind == "dpmsolver++":
        e = torch.exp(-h) - 1.0
        x, c0 = s / s_from, -(a * e)
        heun, c2 = a * (e / h + 1.0), -(a * ((e + h) / h**2 - 0.5))
        noise = torch.zeros_like(h)
    elif kind == "dpmsolver":
        e = torch.exp(h) - 1.0
        x, c0 = a / a_from, -(s * e)
        heun, c2 = -(s * (e / h - 1.0)), -(s * ((e - h) / h**2 - 0.5))
        noise = torch.zeros_like(h)
    elif kind == "sde-dpmsolver++":
        e = 1 - torch.exp(-2.0 * h)
        x, c0 = s / s_from * torch.exp(-h), a * e
        heun, c2 = a * (e / (-2.0 * h) + 1.0), a * ((e - 2.0 * h) / (2.0 * h) ** 2 - 0.5)
        noise = s * torch.sqrt(1.0 - torch.exp(-2 * h))
    else:
        e = torch.exp(h) - 1.0
        x, c0 = a / a_from, -2.0 * (s * e)
        heun, c2 = -2.0 * (s * (e / h - 1.0)), torch.zeros_like(h)
        noise = s * torch.sqrt(torch.exp(2 * h) - 1.0)
    c1 = 0.5 * c0 if solver == "midpoint" else heun
    return [t.double() for t in (x, c0, c1, heun, c2, noise)]


def _multistep_rows(kind, solver, levels, converted, most):
    """Make a table with a row for each step and order from 1 to `most`."""
    h = levels.to("log_snr") - levels.now("log_snr")
    h_0 = levels.now("log_snr") - levels.now("log_snr", 1)
    h_1 = levels.now("log_snr", 1) - levels.now("log_snr", 2)
    x, c0, c1, heun, c2, noise = _terms(kind, solver, levels, h, 0)
    r0, r1 = h_0 / h, h_1 / h
    s0, s1 = (1.0 / r0).double(), (1.0 / r1).double()
    tables = [rows(len(h), **converted.row(x, c0, noise=noise))]
    if most > 1:
        tables.append(rows(len(h), **converted.row(x, c0 + c1 * s0, h1=-c1 * s0, noise=noise)))
    if most > 2:
        # D1 = D1_0 + share·(D1_0 - D1_1), D2 = both·(D1_0 - D1_1)
        share, both = (r0 / (r0 + r1)).double(), (1.0 / (r0 + r1)).double()
        q = -(heun * share + c2 * both)
        p = (heun - q) * s0
        weights = dict(h1=q * s1 - p, h2=-q * s1)
        tables.append(rows(len(h), **converted.row(x, c0 + p, noise=noise, **weights)))
    return torch.stack(tables, 1).flatten(0, 1)


def _check_solver(config, algorithms, most=3):
    """Raise ValueError for another algorithm type, or another order than 1 to `most`."""
    if config["algorithm_type"] not in algorithms:
        raise refused("algorithm_type", config["algorithm_type"], f"expected one of {', '.join(algorithms)}")
    if not 1 <= config["solver_order"] <= most:
        raise refused("solver_order", config["solver_order"], f"expected 1 to {most}")


class ExponentialRule(SigmaRule):
    """Rule of solvers in λ, whose noise is added with `Levels`' alpha and sigma."""

    def noise_plan(self, scheduler):
        """Make the plan of `add_noise`: alpha·x + sigma·noise."""
        levels = Levels(scheduler)
        return Plan(rows(len(levels.sigmas), x=levels.alpha, m=levels.sigma))


class Multistep(ExponentialRule):
    """Rule of DPM-Solver's multistep solvers, and what the other DPM solvers share with them."""

    def algorithm(self, config):
        """Return the algorithm type."""
        return config["algorithm_type"]

    def convert(self, scheduler, levels):
        """Make the `Converted` that the scheduler keeps."""
        return Converted(scheduler.config, levels, "++" not in scheduler.config["algorithm_type"])

    def step_plan(self, state, scheduler, key):
        """Make the plan."""
        config, levels = scheduler.config, Levels(scheduler)
        converted, order = self.convert(scheduler, levels), config["solver_order"]
        kind, solver = self.algorithm(config), config["solver_type"]
        table = _multistep_rows(kind, solver, levels, converted, order)
        return self.solver_plan(scheduler, table, converted, order)

    def solver_plan(self, scheduler, table, converted, order):
        """Make the plan from a table with `order` rows a step."""
        config, number = scheduler.config, len(scheduler.timesteps)
        short = config["lower_order_final"] and number < 15
        first = short or config.get("euler_at_final") or config.get("final_sigmas_type") == "zero"
        return Plan(
            table,
            converted.limits,
            order=order,
            orders=[
                1 if first and i == number - 1 else min(order, 2) if short and i == number - 2 else order
                for i in range(number)
            ],
            given=converted.given,
            kept=bool(converted.kept),
            noisy="sde" in self.algorithm(config),
            learned=config.get("variance_type") in ("learned", "learned_range")
            and config["prediction_type"] == "epsilon",
        )

    def multistep(self, state, scheduler, model_output, sample, timestep, plan, draw, return_dict, wide):
        """Step with as many kept outputs as the due step's order asks for.

        Args:
            state: the scheduler's state.
            scheduler: the scheduler.
            model_output: the prediction.
            sample: x.
            timestep: the timestep.
            plan: the plan of this step.
            draw: function that returns the arguments of `run` for noise; called if the plan is `noisy`.
            return_dict: whether to return the scheduler's output class.
            wide: whether the result is in the dtype of the converted output, which is float32 at least if the
                noise is, rather than in the inputs' promoted one.
        """
        index = step_index(scheduler, timestep)
        outputs = scheduler.model_outputs
        order = min(plan.orders[index], scheduler.lower_order_nums + 1) if index < len(plan.orders) else 0
        history = outputs[:-order:-1] if order > 1 else ()
        if order == 0 or (history and history[-1] is None):
            return NotImplemented
        noise = draw() if plan.noisy else {}
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        row = plan.order * index + order - 1
        if plan.given:
            result = run(plan, row, sample, model_output, history=history, **noise)
            converted = model_output
        elif plan.kept:
            result, converted = run(plan, row, sample, model_output, history=history, kept=True, **noise)
        else:
            result, converted = run(plan, row, sample, model_output, history=history, x0=True, **noise)
        if wide:
            dtype = converted.dtype
        if result.dtype != dtype:
            result = result.to(dtype)
        del outputs[0]
        outputs.append(converted)
        if scheduler.lower_order_nums < plan.order:
            scheduler.lower_order_nums += 1
        scheduler._step_index = index + 1
        return state.finish(return_dict, result)


class DPMSolverMultistep(Multistep, scheduler="DPMSolverMultistepScheduler"):
    """DPM-Solver and DPM-Solver++ (Lu et al., 2022, arXiv:2206.00927, arXiv:2211.01095), and SDE forms."""

    known = _SOLVER | {
        *("algorithm_type", "euler_at_final", "use_lu_lambdas", "final_sigmas_type", "lambda_min_clipped"),
        *("variance_type", "timestep_spacing", "steps_offset", "rescale_betas_zero_snr"),
    }

    def check(self, config):
        """Raise ValueError for an algorithm, order or prediction type that diffusers does not implement."""
        kind = config["algorithm_type"]
        _check_solver(config, ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"))
        if kind == "sde-dpmsolver" and config["solver_order"] == 3:
            raise refused("solver_order", 3, "diffusers has no third order of sde-dpmsolver")
        check_prediction(config, _PREDICTIONS if "++" in kind else _PREDICTIONS[:3])

    def step(
        self,
        state,
        scheduler,
        model_output,
        timestep,
        sample,
        generator=None,
        variance_noise=None,
        return_dict=True,
    ):
        """Step as `DPMSolverMultistepScheduler.step`."""
        m = model_output
        if scheduler.num_inference_steps is None or not isinstance(m, torch.Tensor):
            return NotImplemented
        plan = state.plan(scheduler)
        if plan.learned:
            m = m[:, :3]
        given = plan.noisy and variance_noise is not None
        if not fits_kernel(m, sample) or (given and variance_noise.shape != m.shape):
            return NotImplemented

        def draw():
            if given:
                return {"noise": variance_noise.to(device=m.device, dtype=torch.float32)}
            return state.draw(m, generator, torch.float32)

        return self.multistep(state, scheduler, m, sample, timestep, plan, draw, return_dict, True)


class DPMSolverMultistepInverse(DPMSolverMultistep, scheduler="DPMSolverMultistepInverseScheduler"):
    """DPM-Solver(++) from data to noise."""

    known = DPMSolverMultistep.known - {
        *("use_lu_lambdas", "final_sigmas_type", "rescale_betas_zero_snr"),
        *("use_dynamic_shifting", "time_shift_type"),
    }

    def check(self, config):
        """Raise ValueError for an algorithm, order or prediction type that diffusers does not implement."""
        if "sde" in config["algorithm_type"]:
            why = "diffusers' noise is NaN, as that of a step to more noise has a negative variance"
            raise refused("algorithm_type", config["algorithm_type"], why)
        super().check(config)

    def step(
        self,
        state,
        scheduler,
        model_output,
        timestep,
        sample,
        generator=None,
        variance_noise=None,
        return_dict=True,
    ):
        """Step as `DPMSolverMultistepInverseScheduler.step`."""
        m = model_output
        if scheduler.num_inference_steps is None or not isinstance(m, torch.Tensor):
            return NotImplemented
        plan = state.plan(scheduler)
        if plan.learned:
            m = m[:, :3]
        if not fits_kernel(m, sample):
            return NotImplemented
        if scheduler._step_index is None:  # it has no `index_for_timestep`
            index = state.index(scheduler, timestep)
            if index is None:
                scheduler._init_step_index(timestep)
            else:
                scheduler._step_index = index
        return self.multistep(state, scheduler, m, sample, timestep, plan, None, return_dict, False)


class _Preconditioned(Converted):
    """EDM's denoised output (Karras et al., 2022, arXiv:2206.00364)."""

    def __init__(self, scheduler, levels):
        config, sigma = scheduler.config, levels.now("sigmas")
        data = config["sigma_data"]
        out = sigma * data / (sigma**2 + data**2) ** 0.5
        self.columns = dict(
            x0_x=(data**2 / (sigma**2 + data**2)).double(),
            x0_m=(-out if config["prediction_type"] == "v_prediction" else out).double(),
        )
        self.limits, self.kept, self.given = x0_limits(config, clip=False), {}, False
        self.weights = dict(x0=1.0)


class EDMDPMSolverMultistep(Multistep, scheduler="EDMDPMSolverMultistepScheduler"):
    """DPM-Solver++ with EDM's preconditioning."""

    known = (
        EDM_SIGMAS
        | THRESHOLDING
        | {"solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final"}
    )

    def check(self, config):
        """Raise ValueError for an algorithm, order or prediction type that diffusers does not implement."""
        kind = config["algorithm_type"]
        _check_solver(config, ("dpmsolver++", "sde-dpmsolver++"))
        if kind == "sde-dpmsolver++" and config["solver_order"] == 3:
            raise refused("solver_order", 3, "diffusers has no third order of sde-dpmsolver++ here")
        check_prediction(config, ("epsilon", "v_prediction"))

    def convert(self, scheduler, levels):
        """Make the `Converted` that the scheduler keeps."""
        return _Preconditioned(scheduler, levels)

    def scale_plan(self, scheduler):
        """Make the plan of `scale_model_input` for data of the configured deviation."""
        return divisors_plan(scheduler.sigmas, scheduler.config["sigma_data"] ** 2)

    def scale_model_input(self, state, scheduler, sample, timestep):
        """Divide the sample by the due step's divisor."""
        index = step_index(scheduler, timestep)
        scheduler.is_scale_input_called = True
        return sample / state.plan(scheduler, "scale").divisors[index]

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `EDMDPMSolverMultistepScheduler.step`."""
        if scheduler.num_inference_steps is None or not fits_kernel(model_output, sample):
            return NotImplemented

        def draw():
            dtype = torch.promote_types(model_output.dtype, sample.dtype)
            return state.draw(model_output, generator, dtype)

        plan = state.plan(scheduler)
        return self.multistep(
            state, scheduler, model_output, sample, timestep, plan, draw, return_dict, False
        )


class CosineDPMSolverMultistep(EDMDPMSolverMultistep, scheduler="CosineDPMSolverMultistepScheduler"):
    """The SDE form of DPM-Solver++ with EDM's preconditioning and increments of a Brownian path as its noise.

    Steps do not share their increments, so that keyed noise has the same distribution.
    """

    known = EDM_SIGMAS | {"solver_order", "solver_type", "lower_order_final", "euler_at_final"}

    def algorithm(self, config):
        """Return the algorithm type."""
        return "sde-dpmsolver++"

    def check(self, config):
        """Raise ValueError for an order or prediction type that diffusers does not implement."""
        if not 1 <= config["solver_order"] <= 2:
            raise refused("solver_order", config["solver_order"], "expected 1 or 2")
        if config["final_sigmas_type"] == "sigma_min":
            why = "its last step has no length, and so no increment of the path"
            raise refused("final_sigmas_type", "sigma_min", why)
        check_prediction(config, ("epsilon", "v_prediction"))

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `CosineDPMSolverMultistepScheduler.step`."""
        if scheduler.num_inference_steps is None or not fits_kernel(model_output, sample):
            return NotImplemented
        dtype = torch.promote_types(model_output.dtype, sample.dtype)

        def draw():
            if state.noise.keyed:
                return state.draw(model_output, generator, dtype)
            if scheduler.noise_sampler is None:
                seed = None
                if generator is not None:
                    several = isinstance(generator, list)
                    seed = [g.initial_seed() for g in generator] if several else generator.initial_seed()
                config = scheduler.config
                scheduler.noise_sampler = state.target.module.BrownianTreeNoiseSampler(
                    torch.empty_like(model_output, dtype=dtype),
                    sigma_min=config["sigma_min"],
                    sigma_max=config["sigma_max"],
                    seed=seed,
                )
            index = scheduler._step_index
            noise = scheduler.noise_sampler(scheduler.sigmas[index], scheduler.sigmas[index + 1])
            return {"noise": noise.to(model_output.device)}

        plan = state.plan(scheduler)
        return self.multistep(
            state, scheduler, model_output, sample, timestep, plan, draw, return_dict, False
        )


# ---- DEIS --------------------------------------------------------------------------------------------------


def _log(tensor):
    """NumPy's logarithm, which diffusers uses: its last bit matters where the integrals cancel."""
    import numpy

    return torch.from_numpy(numpy.log(tensor.numpy()))


def _log_integral(t, b, c):
    return t * (-_log(c) + _log(t) - 1) / (_log(b) - _log(c))


def _log_integral_3(t, b, c, d):
    t_log, c_log, d_log = _log(t), _log(c), _log(d)
    numerator = t * (c_log * (d_log - t_log + 1) - d_log * t_log + d_log + t_log**2 - 2 * t_log + 2)
    return numerator / ((_log(b) - c_log) * (_log(b) - d_log))


class DEIS(Multistep, scheduler="DEISMultistepScheduler"):
    """Diffusion exponential integrator sampler (Zhang and Chen, 2023, arXiv:2204.13902)."""

    known = _SOLVER | {"algorithm_type", "timestep_spacing", "steps_offset"}

    def check(self, config):
        """Raise ValueError for another algorithm, order or prediction type."""
        _check_solver(config, ("deis",))
        check_prediction(config, _PREDICTIONS)

    def step_plan(self, state, scheduler, key):
        """Make the plan."""
        config, levels = scheduler.config, Levels(scheduler)
        converted, order = Converted(config, levels, True), config["solver_order"]
        converted.given = False  # diffusers keeps a copy, as the model may write into its output again
        if config["prediction_type"] == "v_prediction":  # through x0, as alpha² + sigma² is rounded
            alpha, sigma = levels.now("alpha").double(), levels.now("sigma").double()
            if not converted.limits:
                converted.columns["x0_x"] = (1 - alpha**2) / sigma
        a, s = levels.to("alpha"), levels.to("sigma")
        h = levels.to("log_snr") - levels.now("log_snr")
        x = (a / levels.now("alpha")).double()
        tables = [rows(len(h), **converted.row(x, -(s * (torch.exp(h) - 1.0)).double()))]
        levels.rho = levels.sigma / levels.alpha
        t, r0, r1, r2 = levels.to("rho"), *(levels.now("rho", back) for back in range(3))
        if order > 1:
            w0 = a * (_log_integral(t, r0, r1) - _log_integral(r0, r0, r1))
            w1 = a * (_log_integral(t, r1, r0) - _log_integral(r0, r1, r0))
            tables.append(rows(len(h), **converted.row(x, w0.double(), h1=w1.double())))
        if order > 2:
            w0 = a * (_log_integral_3(t, r0, r1, r2) - _log_integral_3(r0, r0, r1, r2))
            w1 = a * (_log_integral_3(t, r1, r2, r0) - _log_integral_3(r0, r1, r2, r0))
            w2 = a * (_log_integral_3(t, r2, r0, r1) - _log_integral_3(r0, r2, r0, r1))
            tables.append(rows(len(h), **converted.row(x, w0.double(), h1=w1.double(), h2=w2.double())))
        return self.solver_plan(scheduler, torch.stack(tables, 1).flatten(0, 1), converted, order)

    def step(self, state, scheduler, model_output, timestep, sample, return_dict=True):
        """Step as `DEISMultistepScheduler.step`."""
        if scheduler.num_inference_steps is None or not fits_kernel(model_output, sample):
            return NotImplemented
        plan = state.plan(scheduler)
        return self.multistep(
            state, scheduler, model_output, sample, timestep, plan, None, return_dict, False
        )


# ---- Singlestep --------------------------------------------------------------------------------------------


class DPMSolverSinglestep(Multistep, scheduler="DPMSolverSinglestepScheduler"):
    """DPM-Solver(++)'s singlestep solvers (Lu et al., 2022, arXiv:2206.00927, arXiv:2211.01095)."""

    known = _SOLVER | {"algorithm_type", "final_sigmas_type", "lambda_min_clipped", "variance_type"}

    def check(self, config):
        """Raise ValueError for an algorithm, order or option that diffusers does not implement."""
        kind = config["algorithm_type"]
        _check_solver(config, ("dpmsolver", "dpmsolver++", "sde-dpmsolver++"))
        check_prediction(config, _PREDICTIONS if "++" in kind else _PREDICTIONS[:3])
        if kind == "dpmsolver" and config["thresholding"]:
            raise refused("thresholding", True, "diffusers cannot do it with algorithm_type dpmsolver")

    def step_plan(self, state, scheduler, key):
        """Make the plan; h1 is x where a step of several stages began, h2 and h3 outputs kept since."""
        config, levels = scheduler.config, Levels(scheduler)
        kind, solver, order = config["algorithm_type"], config["solver_type"], config["solver_order"]
        converted = self.convert(scheduler, levels)
        end = levels.to("log_snr")
        l0, l1, l2 = (levels.now("log_snr", back) for back in range(3))
        x, c0, *_, noise = _terms(kind, solver, levels, end - l0, 0)
        tables = [rows(len(end), **converted.row(x, c0, noise=noise))]
        if order > 1:
            h = end - l1
            x, c0, c1, *_, noise = _terms(kind, solver, levels, h, 1)
            of_new = c1 * (1.0 / ((l0 - l1) / h)).double()
            weights = dict(h1=x, h2=c0 - of_new, noise=noise)
            tables.append(rows(len(end), **converted.row(0.0, of_new, **weights)))
        if order > 2:
            h = end - l2
            x, c0, _, heun, c2, noise = _terms(kind, solver, levels, h, 2)
            r0, r1 = (l0 - l2) / h, (l1 - l2) / h
            # Weights of D1_1 = (m0 - m2)/r0 and of D1_0 = (m1 - m2)/r1.
            p, q = heun, 0.0
            if solver == "heun":
                between = (r0 - r1).double()
                p = (2 * c2 - r1.double() * heun) / between
                q = (r0.double() * heun - 2 * c2) / between
            p, q = p * (1.0 / r0).double(), q * (1.0 / r1).double()
            weights = dict(h1=x, h2=q, h3=c0 - p - q, noise=noise)
            tables.append(rows(len(end), **converted.row(0.0, p, **weights)))
        return self.solver_plan(scheduler, torch.stack(tables, 1).flatten(0, 1), converted, order)

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `DPMSolverSinglestepScheduler.step`."""
        m, plan = model_output, None
        if scheduler.num_inference_steps is not None and isinstance(m, torch.Tensor):
            plan = state.plan(scheduler)
            if plan.learned:
                m = m[:, :3]
        orders = scheduler.order_list
        index = (
            step_index(scheduler, timestep) if plan is not None and fits_kernel(m, sample) else len(orders)
        )
        if index >= len(orders):
            return NotImplemented
        outputs, order = scheduler.model_outputs, orders[index]
        while order > 1 and outputs[1 - order] is None:
            order -= 1
        if order == 1:
            scheduler.sample = sample
            history = ()
        else:
            history = (scheduler.sample, *outputs[:-order:-1])
        noise = {}
        if plan.noisy:
            noise = state.draw(m, generator, torch.promote_types(m.dtype, sample.dtype))
        row = plan.order * index + order - 1
        if plan.given:
            result, converted = run(plan, row, sample, m, history=history, **noise), m
        else:
            result, converted = run(plan, row, sample, m, history=history, x0=True, **noise)
        del outputs[0]
        outputs.append(converted)
        scheduler._step_index = index + 1
        return state.finish(return_dict, result)


# ---- UniPC -------------------------------------------------------------------------------------------------


def _unipc_weights(levels, kind, noise, shift, order, correct):
    """Return the weights of a predictor's or a corrector's step that began `shift` levels before level i.

    Args:
        levels: the scheduler's `Levels`.
        kind: the solver type, "bh1" or "bh2".
        noise: whether the kept outputs are the noise.
        shift: 0 for the step from level i, 1 for the step to it.
        order: 1 to 3.
        correct: whether the output at the step's end is part of it.

    Returns:
        A list: the weights of x and of the output kept at i - `shift`, of the `order` - 1 outputs before it,
        and, if `correct`, of the output at the step's end.
    """

    def now(name, back=0):
        return levels.now(name, back + shift)

    def end(name):
        return levels.now(name) if shift else levels.to(name)

    h = end("log_snr") - now("log_snr")
    ratios = [(now("log_snr", i) - now("log_snr")) / h for i in range(1, order)]
    rks = torch.stack([*ratios, torch.ones_like(h)], 1)
    hh = h if noise else -h
    first = torch.expm1(hh)
    phi, factorial, b, matrix = first / hh - 1, 1, [], []
    scale = hh if kind == "bh1" else first
    for i in range(1, order + 1):
        matrix.append(rks ** (i - 1))
        b.append(phi * factorial / scale)
        factorial *= i + 1
        phi = phi / hh - 1 / factorial
    matrix, b = torch.stack(matrix, 1), torch.stack(b, 1)
    if not correct:
        matrix, b = matrix[:, :-1, :-1], b[:, :-1]
    if order == (1 if correct else 2):
        rhos = torch.full_like(b, 0.5)
    elif b.shape[1]:
        rhos = torch.linalg.solve_ex(matrix, b)[0]
    else:
        rhos = b
    if noise:
        x, size = end("alpha") / now("alpha"), end("sigma")
    else:
        x, size = end("sigma") / now("sigma"), end("alpha")
    each = [-(size * scale).double() * rhos[:, k].double() for k in range(rhos.shape[1])]
    differences = [w / ratio.double() for w, ratio in zip(each, [*ratios, torch.ones_like(h)], strict=False)]
    return [x.double(), -(size * first).double() - sum(differences), *differences]


class UniPC(ExponentialRule, scheduler="UniPCMultistepScheduler"):
    """Unified predictor-corrector (Zhao et al., 2023, arXiv:2302.04867)."""

    known = _SOLVER | {
        *("predict_x0", "disable_corrector", "solver_p", "timestep_spacing", "steps_offset"),
        *("final_sigmas_type", "rescale_betas_zero_snr", "sigma_min", "sigma_max", "shift_terminal"),
    }

    def check(self, config):
        """Raise ValueError for another predictor, order or prediction type, or a last step that is NaN."""
        self.check_solver(config)
        if config.get("final_sigmas_type", "zero") == "zero":
            for name, value in ("predict_x0", False), ("solver_type", "bh1"):
                if config[name] == value:
                    raise refused(name, value, "diffusers' last step is NaN at final_sigmas_type zero")

    def check_solver(self, config):
        """Raise ValueError for another predictor, order or prediction type."""
        if config["solver_p"] is not None:
            raise refused("solver_p", config["solver_p"], "the predictor must be UniP")
        if not 1 <= config["solver_order"] <= 3:
            raise refused("solver_order", config["solver_order"], "expected 1 to 3")
        check_prediction(config, _PREDICTIONS if config["predict_x0"] else _PREDICTIONS[:3])

    def step_plan(self, state, scheduler, predict_x0):
        """Make the plan: rows for each step, order of the corrector (0 for none) and order of the predictor.

        h1 is the last corrected x; h2, h3 and h4 are the outputs kept of the steps before.
        """
        levels, config = Levels(scheduler), scheduler.config
        noise, kind, most = not predict_x0, config["solver_type"], config["solver_order"]
        prediction = config["prediction_type"]
        if noise:
            columns, limits = epsilon_columns(prediction, levels), {}
        else:
            columns, limits = x0_columns(prediction, levels), x0_limits(config, clip=False)
        predictors = [_unipc_weights(levels, kind, noise, 0, p, False) for p in range(1, most + 1)]
        tables = []
        for c in range(most + 1):
            fixed = dict(x=1.0)
            if c:
                last, *others = _unipc_weights(levels, kind, noise, 1, c, True)
                fixed = dict(h1=last, x0=others.pop())
                fixed.update({f"h{2 + i}": w for i, w in enumerate(others)})
            for of_x, of_x0, *others in predictors:
                weights = {name: of_x * w for name, w in fixed.items()}
                for name, w in {"x0": of_x0, **{f"h{2 + i}": w for i, w in enumerate(others)}}.items():
                    weights[name] = weights.get(name, 0.0) + w
                if c:
                    weights.update({f"kept_{name}": w for name, w in fixed.items()})
                tables.append(rows(len(levels.sigmas) - 1, **columns, **weights))
        given = prediction == ("epsilon" if noise else "sample") and not limits
        return Plan(torch.stack(tables, 1).flatten(0, 1), limits, order=most, given=given)

    def step(self, state, scheduler, model_output, timestep, sample, return_dict=True):
        """Step as `UniPCMultistepScheduler.step`."""
        if (
            scheduler.num_inference_steps is None
            or scheduler.solver_p is not None
            or not fits_kernel(model_output, sample)
        ):
            return NotImplemented
        index = step_index(scheduler, timestep)
        plan = state.plan(scheduler, bool(scheduler.predict_x0))
        most, outputs = plan.order, scheduler.model_outputs
        correct = (
            index > 0 and index - 1 not in scheduler.disable_corrector and scheduler.last_sample is not None
        )
        corrector = scheduler.this_order if correct else 0
        order = min(most, scheduler.lower_order_nums + 1)
        if scheduler._internal_dict["lower_order_final"]:
            order = min(order, len(scheduler.timesteps) - index)
        history = (sample, *outputs[: -max(corrector, order - 1) - 1 : -1])
        if correct:
            history = (scheduler.last_sample, *history[1:])
        if order < 1 or history[-1] is None:
            return NotImplemented
        row = (index * (most + 1) + corrector) * most + order - 1
        results = run(plan, row, sample, model_output, history=history, x0=not plan.given, kept=correct)
        if plan.given and not correct:
            results = (results,)
        result = results[0] if results[0].dtype == sample.dtype else results[0].to(sample.dtype)
        del outputs[0], scheduler.timestep_list[0]
        outputs.append(model_output if plan.given else results[1])
        scheduler.timestep_list.append(timestep)
        scheduler.this_order = order
        scheduler.last_sample = results[-1].to(sample.dtype) if correct else sample
        if scheduler.lower_order_nums < most:
            scheduler.lower_order_nums += 1
        scheduler._step_index = index + 1
        return state.finish(return_dict, result)


class Helios(UniPC, scheduler="HeliosScheduler"):
    """UniPC or Euler's method for flows in stages of growing resolution; a run is of one stage."""

    known = UniPC.known & {
        *("num_train_timesteps", "prediction_type", "solver_order", "predict_x0", "solver_type"),
        *("lower_order_final", "disable_corrector", "solver_p", "use_flow_sigmas"),
        *("use_dynamic_shifting", "time_shift_type"),
    } | {"shift", "stages", "stage_range", "gamma", "thresholding", "scheduler_type"}
    reads = ("sigmas", "timesteps")

    def check(self, config):
        """Raise ValueError for what diffusers does not implement."""
        if config["scheduler_type"] not in ("unipc", "euler"):
            raise refused("scheduler_type", config["scheduler_type"], "expected unipc or euler")
        if config["thresholding"]:
            raise refused("thresholding", True, "diffusers has no options of it here")
        self.check_solver(config)

    def step_plan(self, state, scheduler, key):
        """Make the plan of Euler's method for the key "euler", else UniPC's."""
        if key != "euler":
            return super().step_plan(state, scheduler, key)
        sigmas = Levels(scheduler).sigmas
        return Plan(rows(len(sigmas) - 1, x=1.0, m=sigmas[1:] - sigmas[:-1]))

    def step(
        self,
        state,
        scheduler,
        model_output,
        timestep=None,
        sample=None,
        generator=None,
        return_dict=True,
    ):
        """Step as `HeliosScheduler.step`."""
        if scheduler.num_inference_steps is None or not fits_kernel(model_output, sample):
            return NotImplemented
        euler = scheduler.config["scheduler_type"] == "euler"
        if euler and is_index(timestep):
            return NotImplemented
        if scheduler._step_index is None:
            scheduler._step_index = 0
        if not euler:
            result = super().step(state, scheduler, model_output, timestep, sample, False)
            if result is NotImplemented:
                return result
            results = (*result, None, scheduler.last_sample, scheduler.this_order)
            return state.finish(return_dict, *results)
        index = scheduler._step_index
        if index + 1 >= len(scheduler.sigmas):
            return NotImplemented
        sample = sample.to(torch.promote_types(torch.float32, model_output.dtype))
        result = run(state.plan(scheduler, "euler"), index, sample, model_output)
        scheduler._step_index = index + 1
        return state.finish(return_dict, result.to(model_output.dtype))
