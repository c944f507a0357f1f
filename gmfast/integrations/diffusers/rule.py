"""Base classes of the rules for schedulers' steps, and their registry."""

import torch

from ... import _library
from . import state as _state
from .plan import Plan, rows, run

#: The rule of each class of schedulers, by the class's name. Defining a subclass of `Rule` adds to it.
RULES = {}

#: Methods of a scheduler that a rule may replace, each by its method of the same name.
METHODS = (
    *("step", "batch_step_no_noise", "add_noise", "scale_noise"),
    *("set_timesteps", "index_for_timestep", "scale_model_input"),
)

_TOKENS = "its samples are discrete tokens"
#: Why each other class of schedulers of diffusers has no rule.
WITHOUT_RULE = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "HeliosDMDScheduler": "the coefficients of a step are computed from tensors that the step is given",
    "KarrasVeScheduler": "the coefficients of a step are computed from numbers that the step is given",
    "PiflowScheduler": "a step integrates a policy over a grid of model outputs",
    "RePaintScheduler": "its steps are not linear: they multiply by a mask",
    "RFD4ProteinaScheduler": "its steps are not linear: they multiply by a mask",
    "ScoreSdeVeScheduler": "its corrector is not linear: the step size is computed from norms",
    "ScoreSdeVpScheduler": "it has no step(), and its step_pred() is given scores and times of no schedule",
}

#: Options of a scheduler's constructor that several rules know.
BETAS = frozenset(("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"))
THRESHOLDING = frozenset(("thresholding", "dynamic_thresholding_ratio", "sample_max_value"))
SIGMA_SPACINGS = frozenset(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"))
EDM_SIGMAS = frozenset(
    {
        *("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "num_train_timesteps"),
        *("prediction_type", "rho", "final_sigmas_type"),
    }
)


class Rule:
    """Rule for the steps of one class of schedulers.

    A method with a name in `METHODS` takes the place of the scheduler's. It is called with the scheduler's
    `State`, the scheduler and the method's own arguments; where it returns NotImplemented, the scheduler's
    method runs instead, with the same arguments. A rule has no state: there is one object for all schedulers.

    `class DDIM(Rule, scheduler="DDIMScheduler")` registers the rule for that class of diffusers.
    """

    watched = ("sigmas", "timesteps")  #: the scheduler's tensors that its coefficients are computed from
    reads = ("timesteps",)  #: those of them that are read after `set_timesteps`, if they are on a device
    known = frozenset()  #: names of the constructor's options that the rule implements or refuses
    path = False  #: whether the noise of several steps is one path, so that it cannot be keyed by the step

    def __init_subclass__(cls, scheduler=None, **kwargs):
        super().__init_subclass__(**kwargs)
        if scheduler is not None:
            RULES[scheduler] = cls()

    def check(self, config):
        """Raise `refused(option, value, why)` for a configuration that is not implemented."""

    def plan(self, state, scheduler, key):
        """Make the plan for `key`: "add_noise", "noise", "scale" (of the model's input), or `step`'s own."""
        if key == "noise":  # alone, for `noise_tensor`
            return Plan(rows(len(scheduler.timesteps), noise=1.0))
        if key == "add_noise":
            return self.noise_plan(scheduler)
        if key == "scale":
            return self.scale_plan(scheduler)
        return self.step_plan(state, scheduler, key)

    def step_plan(self, state, scheduler, key):
        """Make the plan of `step`."""
        raise NotImplementedError

    def noise_plan(self, scheduler):
        """Make the plan of `add_noise` or `scale_noise`: factors of the data (x) and the noise (m)."""
        raise NotImplementedError

    def scale_plan(self, scheduler):
        """Make the plan of `scale_model_input`, with `divisors`."""
        raise NotImplementedError

    def set_timesteps(self, state, scheduler, *args, **kwargs):
        """Run the scheduler's method, then read the timesteps here, where diffusers synchronises as well."""
        result = state.original["set_timesteps"](scheduler, *args, **kwargs)
        for name in self.reads:
            if not _state.on_host(getattr(scheduler, name)):
                state.numbers(scheduler, name)
        return result

    def index_for_timestep(self, state, scheduler, timestep, schedule_timesteps=None):
        """Find the index of a first timestep, of the scheduler's own `timesteps` without synchronising."""
        index = None
        if schedule_timesteps is None or schedule_timesteps is scheduler.timesteps:
            index = state.index(scheduler, timestep)
        return NotImplemented if index is None else index


class TimestepRule(Rule):
    """A rule for schedulers with a table of ᾱ, `alphas_cumprod`, by training timesteps."""

    watched = ("alphas_cumprod", "timesteps")

    def add_noise(self, state, scheduler, original_samples, noise, timesteps):
        """√ᾱ·x + √(1 - ᾱ)·noise at each sample's training timestep."""
        at = None
        if fits_kernel(noise, original_samples):
            at = sample_rows(timesteps, scheduler.alphas_cumprod, original_samples.shape[0])
        if at is None:
            return NotImplemented
        plan = state.plan(scheduler, "add_noise")
        return run(plan, at.to(original_samples.device), original_samples, noise)

    def noise_plan(self, scheduler):
        """Make the plan of `add_noise`: a row for each training timestep."""
        product = scheduler.alphas_cumprod
        return Plan(rows(len(product), product.device, x=product**0.5, m=(1 - product) ** 0.5))


class SigmaRule(Rule):
    """A rule for schedulers whose levels of noise are `sigmas`, one for each step and a last one."""

    def add_noise(self, state, scheduler, original_samples, noise, timesteps):
        """alpha·x + sigma·noise at the level of each sample's timestep."""
        at = None
        if fits_kernel(noise, original_samples):
            at = sigma_indices(scheduler, timesteps.to(original_samples.device), original_samples.shape[0])
        if at is None:
            return NotImplemented
        return run(state.plan(scheduler, "add_noise"), at, original_samples, noise)


def refused(option, value, why):
    """Make the ValueError for an option of a scheduler that is not implemented."""
    return ValueError(f"scheduler: expected another {option} than {value!r}: {why}")


def check_prediction(config, known):
    """Raise ValueError for a `prediction_type` that is not one of `known`."""
    prediction = config["prediction_type"]
    if prediction not in known:
        raise refused("prediction_type", prediction, f"expected one of {', '.join(known)}")


def fits_kernel(model_output, sample):
    """True if the kernel takes the pair; if not, the scheduler's own method computes it, or raises."""
    return (
        isinstance(model_output, torch.Tensor)
        and isinstance(sample, torch.Tensor)
        and model_output.shape == sample.shape
        and sample.dim() > 0
        and sample.device.type in _library.devices
        and model_output.device == sample.device
    )


def noise_tensor(state, scheduler, row, like, generator):
    """Return the noise of a step of index `row` as a tensor, also where it is keyed."""
    drawn = state.draw(like, generator)
    return (
        drawn["noise"] if "noise" in drawn else run(state.plan(scheduler, "noise"), row, like, like, **drawn)
    )


def sample_rows(timesteps, table, size):
    """Return the rows of samples' training timesteps, (B,), for their device; None if `table` lacks them."""
    if (
        not isinstance(timesteps, torch.Tensor)
        or timesteps.dtype not in (torch.int64, torch.int32)
        or timesteps.dim() != 1
        or timesteps.shape[0] not in (1, size)
        or (_state.on_host(timesteps) and not _inside(timesteps, table))
    ):
        return None
    return timesteps.to(torch.int64)


def is_index(timestep):
    """True for an integer: an index instead of a timestep, which diffusers refuses."""
    if isinstance(timestep, torch.Tensor):
        return timestep.dtype in (torch.int32, torch.int64)
    return isinstance(timestep, int)


def step_index(scheduler, timestep):
    """Return the scheduler's counter of steps, initialised by the first timestep as diffusers does."""
    index = scheduler._step_index
    if index is None:
        index = getattr(scheduler, "_begin_index", None)  # inverse DPM-Solver has none
        if index is None:
            index = scheduler.index_for_timestep(timestep)
        scheduler._step_index = index
    return index


def on_host(scheduler, name):
    """Return a tensor of the scheduler on the host; a device's, one of `reads`, is not read again."""
    tensor = getattr(scheduler, name)
    if _state.on_host(tensor):
        return tensor
    return torch.tensor(scheduler._gmfast.numbers(scheduler, name), dtype=tensor.dtype)


def timesteps_on(state, scheduler, device):
    """Return the scheduler's timesteps, int64, on the device where its tables are computed."""
    if device.type == "cpu":
        return torch.tensor(state.numbers(scheduler), dtype=torch.int64)
    return scheduler.timesteps.to(device)


def sigma_indices(scheduler, timesteps, size):
    """Return the index of the sigma of each sample's timestep, without synchronising with the device.

    Args:
        scheduler: the scheduler.
        timesteps: (B,) or (1,), on the samples' device.
        size: B.

    Returns:
        An int (within a run that has begun, the due step's), a tensor (B,), or None where a timestep is not
        one of the scheduler's.
    """
    if getattr(scheduler, "_begin_index", None) is not None:
        return scheduler._begin_index if scheduler._step_index is None else scheduler._step_index
    schedule = scheduler.timesteps
    if timesteps.dim() != 1 or timesteps.shape[0] not in (1, size) or timesteps.dtype != schedule.dtype:
        return None
    same = schedule.to(timesteps.device) == timesteps[:, None]
    found = same.any(1)
    if _state.on_host(same) and not found.all():
        return None
    # On a device nothing can be raised: an unknown timestep gets the last sigma, as DPM-Solver has it.
    same[:, -1] |= ~found
    count = same.cumsum(1)
    # The second occurrence where there are two, which are neighbours in a descending schedule.
    return (count >= count[:, -1:].clamp(1, 2)).to(torch.int8).argmax(1)


def _inside(timesteps, table):
    least, most = timesteps.aminmax() if timesteps.numel() else (0, 0)
    return least >= 0 and most < len(table)
