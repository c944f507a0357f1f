"""The multistep and singlestep solvers in λ = ln(alpha/sigma): DPM-Solver(++), its SDE forms, DEIS, UniPC.

Rows are for each step and order, because which order a step has depends on where a run began. `model_outputs`
holds what diffusers keeps in it: x0 for the ++ solvers, the noise for the others.
"""

import torch

from . import _framework
from ._framework import Plan, Rule, check_prediction, limits, plain, refused, rows, run, step_index

_BETAS = frozenset(("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"))
_SOLVER = _BETAS | {
    *("solver_order", "prediction_type", "solver_type", "lower_order_final"),
    *("thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas", "flow_shift"),
    *("use_dynamic_shifting", "time_shift_type"),
}
_PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")


class Levels:
    """alpha, sigma and λ of a scheduler's sigmas, as it computes them."""

    def __init__(self, scheduler):
        self.sigmas = scheduler.sigmas
        self.alpha, self.sigma = scheduler._sigma_to_alpha_sigma_t(self.sigmas)
        if self.alpha.dim() == 0:  # EDM's
            self.alpha = self.alpha.expand_as(self.sigma)
        self.log_snr = torch.log(self.alpha) - torch.log(self.sigma)

    def now(self, name, back=0):
        """Of the levels that the steps begin at, or `back` before those, as a negative index has it."""
        return getattr(self, name).roll(back)[:-1]

    def to(self, name):
        return getattr(self, name)[1:]


def x0_columns(prediction, levels):
    a, s = levels.now("alpha").double(), levels.now("sigma").double()
    if prediction == "epsilon":
        return dict(x0_x=1 / a, x0_m=-s / a)
    if prediction == "v_prediction":
        return dict(x0_x=a, x0_m=-s)
    if prediction == "flow_prediction":
        return dict(x0_x=1.0, x0_m=-levels.now("sigmas").double())
    return dict(x0_x=0.0, x0_m=1.0)


def epsilon_columns(prediction, levels):
    """As x0's: of the noise, which then takes the place of x0."""
    a, s = levels.now("alpha").double(), levels.now("sigma").double()
    if prediction == "sample":
        return dict(x0_x=1 / s, x0_m=-a / s)
    if prediction == "v_prediction":
        return dict(x0_x=s, x0_m=a)
    if prediction == "flow_prediction":
        flow = levels.now("sigmas").double()
        return dict(x0_x=(1 - a) / s, x0_m=a * flow / s)
    return dict(x0_x=0.0, x0_m=1.0)


class Converted:
    """What a step keeps of the network's output: x0, or the noise, after x0's limits."""

    def __init__(self, config, levels, noise):
        prediction = config["prediction_type"]
        self.limits = limits(config, clip=False)
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
                a, s = levels.now("alpha").double(), levels.now("sigma").double()
                self.weights = dict(x=1 / s, x0=-a / s)
                self.kept = {f"kept_{name}": w for name, w in self.weights.items()}

    def row(self, x, weight, **others):
        """A table's columns: x·x + weight·(what is kept) + others."""
        columns = {**self.columns, **self.kept, "x": x, **others}
        for name, w in self.weights.items():
            columns[name] = columns.get(name, 0.0) + w * weight
        return columns

    def split(self, results, model_output):
        """The result, and what is kept of `run`'s results."""
        if self.given:
            return results, model_output
        return results


# ---- DPM-Solver --------------------------------------------------------------------------------------------


def _terms(kind, solver, levels, h, before):
    """The weights of x, of D0, D1 (by `solver`, and as the third order has it) and D2, and of the noise.
    `before`: how many steps ago the step began."""
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
    """A table with a row for each step and order, 1 to `most`."""
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


class _Multistep(Rule):
    scaled = False
    wide = True  #: whether x and the noise are float32 at least, and the result in what is kept's dtype
    noises = ()

    def steps(self, scheduler):
        config, levels = scheduler.config, Levels(scheduler)
        kind = config["algorithm_type"]
        converted = self.convert(scheduler, levels)
        order = config["solver_order"]
        table = _multistep_rows(kind, config["solver_type"], levels, converted, order)
        return self.finish(scheduler, table, converted, order)

    def convert(self, scheduler, levels):
        return Converted(scheduler.config, levels, "++" not in scheduler.config["algorithm_type"])

    def finish(self, scheduler, table, converted, order):
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
            noisy="sde" in config["algorithm_type"],
            learned=config.get("variance_type") in ("learned", "learned_range")
            and config["prediction_type"] == "epsilon",
        )

    def plan(self, scheduler, key):
        if key == "add_noise":
            levels = Levels(scheduler)
            return Plan(rows(len(levels.sigmas), x=levels.alpha, m=levels.sigma))
        if key == "scale":
            return _divisors_edm(scheduler)
        return self.steps(scheduler)

    add_noise = _framework.add_noise_of_sigmas


def _divisors_edm(scheduler):
    data = scheduler.config["sigma_data"]
    return Plan(torch.empty(0), divisors=((scheduler.sigmas**2 + data**2) ** 0.5).tolist())


def multistep(self, model_output, sample, timestep, plan, draw, return_dict, wide):
    """A step of any of these; NotImplemented where the scheduler's own must do it."""
    state = self._gmfast
    index = step_index(self, timestep)
    outputs = self.model_outputs
    order = min(plan.orders[index], self.lower_order_nums + 1) if index < len(plan.orders) else 0
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
    if self.lower_order_nums < plan.order:
        self.lower_order_nums += 1
    self._step_index = index + 1
    return state.finish(return_dict, result)


def _check_solver(config, algorithms, most=3):
    if config["algorithm_type"] not in algorithms:
        raise refused("algorithm_type", config["algorithm_type"], f"expected one of {', '.join(algorithms)}")
    if not 1 <= config["solver_order"] <= most:
        raise refused("solver_order", config["solver_order"], f"expected 1 to {most}")


@_framework.register("DPMSolverMultistepScheduler")
class DPMSolverMultistep(_Multistep):
    known = _SOLVER | {
        *("algorithm_type", "euler_at_final", "use_lu_lambdas", "final_sigmas_type", "lambda_min_clipped"),
        *("variance_type", "timestep_spacing", "steps_offset", "rescale_betas_zero_snr"),
    }

    def check(self, config):
        kind = config["algorithm_type"]
        _check_solver(config, ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"))
        if kind == "sde-dpmsolver" and config["solver_order"] == 3:
            raise refused("solver_order", 3, "diffusers has no third order of sde-dpmsolver")
        check_prediction(config, _PREDICTIONS if "++" in kind else _PREDICTIONS[:3])

    def step(self, model_output, timestep, sample, generator=None, variance_noise=None, return_dict=True):
        m = model_output
        if self.num_inference_steps is None or not isinstance(m, torch.Tensor):
            return NotImplemented
        state = self._gmfast
        plan = state.plan(self)
        if plan.learned:
            m = m[:, :3]
        given = plan.noisy and variance_noise is not None
        if not plain(m, sample) or (given and variance_noise.shape != m.shape):
            return NotImplemented

        def draw():
            if given:
                return {"noise": variance_noise.to(device=m.device, dtype=torch.float32)}
            return state.draw(m, generator, torch.float32)

        return multistep(self, m, sample, timestep, plan, draw, return_dict, True)


class _Preconditioned(Converted):
    def __init__(self, scheduler, levels):
        config, sigma = scheduler.config, levels.now("sigmas")
        data = config["sigma_data"]
        out = sigma * data / (sigma**2 + data**2) ** 0.5
        self.columns = dict(
            x0_x=(data**2 / (sigma**2 + data**2)).double(),
            x0_m=(-out if config["prediction_type"] == "v_prediction" else out).double(),
        )
        self.limits, self.kept, self.given = limits(config, clip=False), {}, False
        self.weights = dict(x0=1.0)


@_framework.register("EDMDPMSolverMultistepScheduler")
class EDMDPMSolverMultistep(_Multistep):
    known = frozenset(
        {
            *("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "num_train_timesteps"),
            *("prediction_type", "rho", "solver_order", "thresholding", "dynamic_thresholding_ratio"),
            *("sample_max_value", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final"),
            "final_sigmas_type",
        }
    )

    def check(self, config):
        kind = config["algorithm_type"]
        _check_solver(config, ("dpmsolver++", "sde-dpmsolver++"))
        if kind == "sde-dpmsolver++" and config["solver_order"] == 3:
            raise refused("solver_order", 3, "diffusers has no third order of sde-dpmsolver++ here")
        check_prediction(config, ("epsilon", "v_prediction"))

    def convert(self, scheduler, levels):
        return _Preconditioned(scheduler, levels)

    def scale_model_input(self, sample, timestep):
        index = step_index(self, timestep)
        self.is_scale_input_called = True
        return sample / self._gmfast.plan(self, "scale").divisors[index]

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        if self.num_inference_steps is None or not plain(model_output, sample):
            return NotImplemented
        state = self._gmfast

        def draw():
            dtype = torch.promote_types(model_output.dtype, sample.dtype)
            return state.draw(model_output, generator, dtype)

        return multistep(self, model_output, sample, timestep, state.plan(self), draw, return_dict, False)


# ---- DEIS --------------------------------------------------------------------------------------------------


def _log(tensor):
    """NumPy's, whose last bit is another than PyTorch's: in the integrals few digits are left."""
    import numpy

    return torch.from_numpy(numpy.log(tensor.numpy()))


def _log_integral(t, b, c):
    return t * (-_log(c) + _log(t) - 1) / (_log(b) - _log(c))


def _log_integral_3(t, b, c, d):
    t_log, c_log, d_log = _log(t), _log(c), _log(d)
    numerator = t * (c_log * (d_log - t_log + 1) - d_log * t_log + d_log + t_log**2 - 2 * t_log + 2)
    return numerator / ((_log(b) - c_log) * (_log(b) - d_log))


@_framework.register("DEISMultistepScheduler")
class DEIS(_Multistep):
    known = _SOLVER | {"algorithm_type", "timestep_spacing", "steps_offset"}

    def check(self, config):
        _check_solver(config, ("deis",))
        check_prediction(config, _PREDICTIONS)

    def steps(self, scheduler):
        config, levels = scheduler.config, Levels(scheduler)
        converted, order = Converted(config, levels, True), config["solver_order"]
        converted.given = False  # diffusers keeps no tensor of the network's, which may write into it again
        if config["prediction_type"] == "v_prediction":  # by way of x0: alpha² + sigma² is not quite 1
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
        return self.finish(scheduler, torch.stack(tables, 1).flatten(0, 1), converted, order)

    def step(self, model_output, timestep, sample, return_dict=True):
        if self.num_inference_steps is None or not plain(model_output, sample):
            return NotImplemented
        plan = self._gmfast.plan(self)
        return multistep(self, model_output, sample, timestep, plan, None, return_dict, False)


# ---- Singlestep --------------------------------------------------------------------------------------------


@_framework.register("DPMSolverSinglestepScheduler")
class DPMSolverSinglestep(_Multistep):
    known = _SOLVER | {"algorithm_type", "final_sigmas_type", "lambda_min_clipped", "variance_type"}

    def check(self, config):
        kind = config["algorithm_type"]
        _check_solver(config, ("dpmsolver", "dpmsolver++", "sde-dpmsolver++"))
        check_prediction(config, _PREDICTIONS if "++" in kind else _PREDICTIONS[:3])
        if kind == "dpmsolver" and config["thresholding"]:
            raise refused("thresholding", True, "diffusers cannot do it with algorithm_type dpmsolver")

    def steps(self, scheduler):
        """h1 is x where the step began, h2 and h3 are what was kept since."""
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
            # of D1_1 = (m0 - m2)/r0 and of D1_0 = (m1 - m2)/r1
            p, q = heun, 0.0
            if solver == "heun":
                between = (r0 - r1).double()
                p = (2 * c2 - r1.double() * heun) / between
                q = (r0.double() * heun - 2 * c2) / between
            p, q = p * (1.0 / r0).double(), q * (1.0 / r1).double()
            weights = dict(h1=x, h2=q, h3=c0 - p - q, noise=noise)
            tables.append(rows(len(end), **converted.row(0.0, p, **weights)))
        return self.finish(scheduler, torch.stack(tables, 1).flatten(0, 1), converted, order)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        state = self._gmfast
        m, plan = model_output, None
        if self.num_inference_steps is not None and isinstance(m, torch.Tensor):
            plan = state.plan(self)
            if plan.learned:
                m = m[:, :3]
        index = step_index(self, timestep) if plan is not None and plain(m, sample) else len(self.order_list)
        if index >= len(self.order_list):
            return NotImplemented
        outputs, order = self.model_outputs, self.order_list[index]
        while order > 1 and outputs[1 - order] is None:
            order -= 1
        if order == 1:
            self.sample = sample
            history = ()
        else:
            history = (self.sample, *outputs[:-order:-1])
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
        self._step_index = index + 1
        return state.finish(return_dict, result)


# ---- UniPC -------------------------------------------------------------------------------------------------


def _unipc_weights(levels, kind, noise, shift, order, correct):
    """Of the step that began at level i - `shift`: the weights of x and of what was kept at i - `shift`, one
    before, ..., `order` of them, and, to correct, of what is kept at its end."""

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


@_framework.register("UniPCMultistepScheduler")
class UniPC(Rule):
    known = _SOLVER | {
        *("predict_x0", "disable_corrector", "solver_p", "timestep_spacing", "steps_offset"),
        *("final_sigmas_type", "rescale_betas_zero_snr", "sigma_min", "sigma_max", "shift_terminal"),
    }

    def check(self, config):
        if config["solver_p"] is not None:
            raise refused("solver_p", config["solver_p"], "the predictor must be UniP")
        if not 1 <= config["solver_order"] <= 3:
            raise refused("solver_order", config["solver_order"], "expected 1 to 3")
        check_prediction(config, _PREDICTIONS if config["predict_x0"] else _PREDICTIONS[:3])
        if config.get("final_sigmas_type", "zero") == "zero":
            for name, value in ("predict_x0", False), ("solver_type", "bh1"):
                if config[name] == value:
                    raise refused(name, value, "diffusers' last step is NaN at final_sigmas_type zero")

    add_noise = _framework.add_noise_of_sigmas

    def plan(self, scheduler, key):
        """Rows for each step, order of the corrector (0: none) and order of the predictor. h1 is the last
        corrected x, h2, h3 and h4 are what was kept of the steps before."""
        levels, config = Levels(scheduler), scheduler.config
        if key == "add_noise":
            return Plan(rows(len(levels.sigmas), x=levels.alpha, m=levels.sigma))
        noise, kind, most = not key, config["solver_type"], config["solver_order"]
        prediction = config["prediction_type"]
        if noise:
            columns, x0_limits = epsilon_columns(prediction, levels), {}
        else:
            columns, x0_limits = x0_columns(prediction, levels), limits(config, clip=False)
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
        given = prediction == ("epsilon" if noise else "sample") and not x0_limits
        return Plan(torch.stack(tables, 1).flatten(0, 1), x0_limits, order=most, given=given)

    def step(self, model_output, timestep, sample, return_dict=True):
        state = self._gmfast
        if self.num_inference_steps is None or self.solver_p is not None or not plain(model_output, sample):
            return NotImplemented
        index = step_index(self, timestep)
        plan = state.plan(self, bool(self.predict_x0))
        most, outputs = plan.order, self.model_outputs
        correct = index > 0 and index - 1 not in self.disable_corrector and self.last_sample is not None
        corrector = self.this_order if correct else 0
        order = min(most, self.lower_order_nums + 1)
        if self._internal_dict["lower_order_final"]:
            order = min(order, len(self.timesteps) - index)
        history = (sample, *outputs[: -max(corrector, order - 1) - 1 : -1])
        if correct:
            history = (self.last_sample, *history[1:])
        if order < 1 or history[-1] is None:
            return NotImplemented
        row = (index * (most + 1) + corrector) * most + order - 1
        results = run(plan, row, sample, model_output, history=history, x0=not plan.given, kept=correct)
        if plan.given and not correct:
            results = (results,)
        result = results[0] if results[0].dtype == sample.dtype else results[0].to(sample.dtype)
        del outputs[0], self.timestep_list[0]
        outputs.append(model_output if plan.given else results[1])
        self.timestep_list.append(timestep)
        self.this_order = order
        self.last_sample = results[-1] if correct else sample
        if self.lower_order_nums < most:
            self.lower_order_nums += 1
        self._step_index = index + 1
        return state.finish(return_dict, result)
