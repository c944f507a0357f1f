"""Solvers of flows besides Euler's method: Heun's, ancestral Euler, few-step sampling, flow maps."""

import torch

from .plan import Plan, rows, run
from .rule import Rule, fits_kernel, is_index, refused, step_index
from .sigma import FlowMatchEuler, run_wide


def _as(tensor, dtype):
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


class FlowMatchHeun(Rule, scheduler="FlowMatchHeunDiscreteScheduler"):
    """Heun's method for flow matching, with churn."""

    known = frozenset(("num_train_timesteps", "shift"))

    def noise_plan(self, scheduler):
        """Make the plan of `scale_noise`, on the device of the sigmas."""
        sigmas = scheduler.sigmas
        return Plan(rows(len(sigmas), sigmas.device, x=1 - sigmas, m=sigmas))

    def scale_noise(self, state, scheduler, sample, timestep, noise):
        """(1 - sigma)·x + sigma·noise at the due step's level."""
        if not fits_kernel(noise, sample):
            return NotImplemented
        return run(state.plan(scheduler, "add_noise"), step_index(scheduler, timestep), sample, noise)

    def step_plan(self, state, scheduler, churn):
        """Make the plan for a churn, (s_churn, s_tmin, s_tmax, s_noise), or None.

        For each index there is a row of the first stage and one of the second. h1 is x before the first
        stage, after churn; h2 its slope. In the second stage the added noise cancels.
        """
        sigmas = scheduler.sigmas
        sigma, to = sigmas[:-1], sigmas[1:]
        raised, added, noisy = sigma, 0.0, [False] * len(sigma)
        if churn is not None:
            strength, least, most, scale = churn
            inside = (least <= sigma) & (sigma <= most)
            raised = torch.where(inside, sigma * (min(strength / len(sigma), 2**0.5 - 1) + 1), sigma)
            added = torch.where(inside, scale * (raised**2 - sigma**2) ** 0.5, 0.0)
            noisy = [least <= s <= most for s in state.numbers(scheduler, "sigmas")[:-1]]
        length = to - raised
        slope = (sigma / raised).double()
        first = rows(len(sigma), sigmas.device, x=1.0, m=length * slope, noise=added)
        half = length.double().roll(1) / 2
        second = rows(len(sigma), sigmas.device, h1=1.0, h2=half, m=half)
        table = torch.stack([first, second], 1).flatten(0, 1)
        if churn is None:
            table[::2] += rows(len(sigma), sigmas.device, kept_m=slope)
        else:  # x after churn
            table[::2] += rows(len(sigma), sigmas.device, kept_x=1.0, kept_noise=added)
        return Plan(table, lengths=length.unbind(), slopes=slope, noisy=noisy)

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
        """Step as `FlowMatchHeunDiscreteScheduler.step`."""
        m = model_output
        if is_index(timestep) or not fits_kernel(m, sample):
            return NotImplemented
        index = step_index(scheduler, timestep)
        plan = state.plan(scheduler, (s_churn, s_tmin, s_tmax, s_noise) if s_churn > 0 else None)
        second = scheduler.dt is not None
        if index >= len(plan.lengths) or (second and scheduler.dt is not plan.lengths[index - 1]):
            # Beyond the last step; or the first stage had other sigmas, or was the original's of this copy.
            return NotImplemented
        noise = state.draw(m, generator) if plan.noisy[index - second] else {}
        if second:
            history = scheduler.sample, scheduler.prev_derivative
            (result,) = run_wide(plan, 2 * index + 1, sample, m, history=history, x0=True)[:1]
            scheduler.prev_derivative = scheduler.dt = scheduler.sample = None
        else:
            result, kept = run_wide(plan, 2 * index, sample, m, kept=True, **noise)
            scheduler.sample, scheduler.prev_derivative = _as(sample, torch.float32), kept
            if s_churn > 0:
                scheduler.sample = kept
                scheduler.prev_derivative = (m.to(kept.dtype) * plan.slopes[index]).to(kept.dtype)
            scheduler.dt = plan.lengths[index]
        scheduler._step_index = index + 1
        return state.finish(return_dict, result)


class FlowMatchLCM(FlowMatchEuler, scheduler="FlowMatchLCMScheduler"):
    """Few-step sampling of distilled flows: the data prediction, then new noise."""

    known = FlowMatchEuler.known - {"stochastic_sampling"} | {"scale_factors", "upscale_mode"}

    def check(self, config):
        """Raise ValueError for steps that change the size of their samples."""
        if config["scale_factors"]:
            raise refused("scale_factors", config["scale_factors"], "its steps interpolate between sizes")

    def step_plan(self, state, scheduler, key):
        """Make the plan, on the device of the sigmas."""
        return super().step_plan(state, scheduler, True)

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `FlowMatchLCMScheduler.step`."""
        if is_index(timestep) or not fits_kernel(model_output, sample) or scheduler._scale_factors:
            return NotImplemented
        if scheduler._init_size is None or scheduler._step_index is None:
            scheduler._init_size = model_output.size()[2:]
        index = step_index(scheduler, timestep)
        wide = torch.promote_types(torch.float32, model_output.dtype)
        noise = state.draw(sample, generator, wide)
        result = run(state.plan(scheduler), index, sample.to(wide), model_output, **noise)
        scheduler._step_index = index + 1
        return state.finish(return_dict, _as(result, model_output.dtype))


class LTXEulerAncestral(Rule, scheduler="LTXEulerAncestralRFScheduler"):
    """Euler's method for flow matching to a level below, then noise."""

    reads = ("sigmas", "timesteps")
    known = frozenset(("num_train_timesteps", "eta", "s_noise"))

    def step_plan(self, state, scheduler, key):
        """Make the plan; `noisy` says which steps draw noise."""
        config, sigmas = scheduler.config, scheduler.sigmas
        eta, scale = float(config["eta"]), float(config["s_noise"])
        sigma, to = sigmas[:-1], sigmas[1:]
        end = to.abs() < 1e-8
        lower = to * (1.0 + (to / sigma - 1.0) * eta)
        ratio = torch.where(end, 0.0, lower / sigma)
        gain, noise, noisy = torch.ones_like(to), torch.zeros_like(to), [False] * len(to)
        if eta > 0 and scale > 0:
            alpha, alpha_lower = 1.0 - to, 1.0 - lower
            gain = torch.where(end, 1.0, alpha / (alpha_lower + 1e-12))
            rest = (to**2 - lower**2 * alpha**2 / (alpha_lower**2 + 1e-12)).clamp(min=0)
            noise = torch.where(end, 0.0, rest.sqrt() * scale)
            noisy = [abs(s) >= 1e-8 for s in state.numbers(scheduler, "sigmas")[1:]]
        columns = dict(x0_x=1.0, x0_m=-sigma.double(), x=gain * ratio, x0=gain * (1.0 - ratio), noise=noise)
        return Plan(rows(len(sigma), sigmas.device, **columns), noisy=noisy)

    def step(self, state, scheduler, model_output, timestep, sample, generator=None, return_dict=True):
        """Step as `LTXEulerAncestralRFScheduler.step`."""
        if is_index(timestep) or scheduler.sigmas is None or not fits_kernel(model_output, sample):
            return NotImplemented
        index, last = step_index(scheduler, timestep), len(scheduler.sigmas) - 1
        if index >= last:
            return NotImplemented
        plan = state.plan(scheduler)
        noise = state.draw(sample, generator, torch.float32) if plan.noisy[index] else {}
        result = run(plan, index, _as(sample, torch.float32), model_output, **noise)
        scheduler._step_index = index + 1
        return state.finish(return_dict, _as(result, sample.dtype))


class MiniMaxH3(Rule, scheduler="MiniMaxH3Scheduler"):
    """Euler's method for flows whose time is that of the data, 1 - sigma."""

    known = frozenset(("shift",))

    def step_plan(self, state, scheduler, key):
        """Make the plan, on the device of the sigmas."""
        sigmas = scheduler.sigmas
        rest = 1.0 - sigmas[1:] / sigmas[:-1]
        m = rest.double() * (1 - scheduler.timesteps).double()
        return Plan(rows(len(rest), sigmas.device, x=1.0, m=m))

    def step(self, state, scheduler, model_output, timestep, sample, return_dict=True):
        """Step as `MiniMaxH3Scheduler.step`."""
        if scheduler.sigmas is None or is_index(timestep) or not fits_kernel(model_output, sample):
            return NotImplemented
        t = state.value(scheduler, timestep)
        if t not in state.numbers(scheduler):
            return NotImplemented
        index = step_index(scheduler, timestep)
        if index >= len(scheduler.timesteps) or state.numbers(scheduler)[index] != t:
            return NotImplemented
        result = run(state.plan(scheduler), index, sample, model_output)
        scheduler._step_index = index + 1
        return state.finish(return_dict, _as(result, sample.dtype))


class FlowMapEuler(Rule, scheduler="FlowMapEulerDiscreteScheduler"):
    """Steps of a flow map from one of the schedule's times to the next."""

    known = frozenset(("num_train_timesteps", "shift"))

    def index_for_timestep(self, state, scheduler, timestep):
        """Find the index of a timestep to a thousandth, without synchronising."""
        value = state.value(scheduler, timestep) if _single(timestep) else None
        if value is None or value not in state.numbers(scheduler):
            return NotImplemented
        return state.numbers(scheduler).index(value)

    def step_plan(self, state, scheduler, key):
        """Make the plan, on the device of the sigmas."""
        sigmas = scheduler.sigmas
        return Plan(rows(len(sigmas) - 1, sigmas.device, x=1.0, m=sigmas[1:] - sigmas[:-1]))

    def step(self, state, scheduler, model_output, timestep, sample, r_timestep=None, return_dict=True):
        """Step as `FlowMapEulerDiscreteScheduler.step`."""
        if scheduler.sigmas is None or r_timestep is not None or not fits_kernel(model_output, sample):
            return NotImplemented
        index = scheduler.index_for_timestep(timestep) if _single(timestep) else None
        if index is None:
            return NotImplemented
        if scheduler._step_index is None:
            scheduler._step_index = index if scheduler._begin_index is None else scheduler._begin_index
        result = run(state.plan(scheduler), index, sample, model_output)
        scheduler._step_index += 1
        return state.finish(return_dict, _as(result, model_output.dtype))


def _single(timestep):
    return not isinstance(timestep, torch.Tensor) or timestep.numel() == 1
