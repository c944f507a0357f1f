"""Installing a rule's methods on a scheduler, and removing them.

A scheduler keeps its class and its attributes; the object gets bound methods of its own, and a `State`.
"""

import functools
import importlib
import inspect
import logging
import types

import torch

from . import (  # noqa: F401  (they register their rules)
    ancestral,
    cogvideox,
    distilled,
    exponential,
    flow,
    midpoint,
    pndm,
    sasolver,
    sigma,
)
from .rule import METHODS, RULES, WITHOUT_RULE, refused
from .state import State


class Target:
    """Replacement methods of a class of schedulers, and the originals.

    Args:
        rule: the rule of `cls`.
        cls: diffusers' class.
        scheduler_class: the class of the schedulers, `cls` or a subclass.
    """

    def __init__(self, rule, cls, scheduler_class):
        module = self.module = importlib.import_module(cls.__module__)
        self.rule = rule
        self.name = cls.__name__
        self.options = inspect.signature(cls.__init__).parameters
        self.generates = hasattr(module, "randn_tensor")  # whether this version's step uses its generator
        own = getattr(module, cls.__name__ + "Output", None)
        outputs = [value for name, value in vars(module).items() if name.endswith("SchedulerOutput")]
        self.output = own or outputs[0]
        self.logger = getattr(module, "logger", None) or logging.getLogger(cls.__module__)
        self.original, self.methods = {}, {}
        for name in METHODS:
            original = getattr(scheduler_class, name, None)
            method = getattr(rule, name, None)
            if original is not None and method is not None:
                self.original[name] = original
                self.methods[name] = _replacement(method, original)

    def check_config(self, config):
        """Raise ValueError for an option that the rule does not implement, or does not know."""
        for name, parameter in self.options.items():
            known = name == "self" or name in self.rule.known or parameter.kind is parameter.VAR_KEYWORD
            if not known and config.get(name, parameter.default) != parameter.default:
                raise refused(name, config[name], f"gmfast does not know this option of {self.name}")
        self.rule.check(config)


def _replacement(rule_method, original):
    """Make the method that runs a rule's, or where that returns NotImplemented the scheduler's original.

    Under torch.compile it is the original, of which Inductor makes one kernel: plans are looked up by the
    addresses and versions of tensors, which a graph does not have.
    """

    @functools.wraps(original)
    def method(scheduler, *args, **kwargs):
        if torch.compiler.is_compiling():
            if scheduler._gmfast.noise.keyed:
                raise RuntimeError(
                    "noise: expected 'generator' under torch.compile (diffusers' step), got 'keyed'"
                )
            return original(scheduler, *args, **kwargs)
        result = rule_method(scheduler._gmfast, scheduler, *args, **kwargs)
        return original(scheduler, *args, **kwargs) if result is NotImplemented else result

    return method


@functools.cache
def find(scheduler_class):
    """Return the `Target` of a class of schedulers.

    Raises:
        ValueError: for a class without a rule, or a subclass that overrides methods.
    """
    from diffusers import schedulers

    for cls in scheduler_class.__mro__:
        rule = RULES.get(cls.__name__)
        if rule is not None and getattr(schedulers, cls.__name__, None) is cls:
            break
    else:
        why = WITHOUT_RULE.get(scheduler_class.__name__)
        raise ValueError(
            f"scheduler: expected one of {', '.join(RULES)}, got {scheduler_class.__name__}"
            + (f": {why}" if why else "")
        )
    if cls is not scheduler_class:
        changed = [
            name
            for between in scheduler_class.__mro__[: scheduler_class.__mro__.index(cls)]
            for name, value in vars(between).items()
            if callable(value)
            and hasattr(cls, name)
            and not name.startswith("__")
            and name != "set_timesteps"
        ]
        if changed:
            raise ValueError(
                f"scheduler: expected the methods of {cls.__name__}, got {scheduler_class.__name__}, which "
                f"has its own {', '.join(changed)}"
            )
    return Target(rule, cls, scheduler_class)


def is_accelerated(scheduler):
    """True if the scheduler has a rule's methods."""
    state = getattr(scheduler, "_gmfast", None)
    step = vars(scheduler).get("step")
    return state is not None and getattr(step, "__func__", None) is state.target.methods["step"]


def install(scheduler, noise):
    """Give a scheduler its rule's methods.

    Args:
        scheduler: a scheduler that is not accelerated.
        noise: `GeneratorNoise` or `KeyedNoise`.

    Raises:
        ValueError: naming the class, option or method that is not implemented.
    """
    target = find(type(scheduler))
    target.check_config(scheduler.config)
    if noise.keyed and target.rule.path:
        raise ValueError(
            f"noise: expected 'generator' for {target.name}, whose two stages draw from one Brownian path, "
            "got 'keyed'"
        )
    for name in target.methods:
        own = vars(scheduler).get(name)
        if own is not None and getattr(own, "__func__", None) is not target.original[name]:
            raise ValueError(f"scheduler: expected its class's {name}, got one that was put in its place")
    scheduler._gmfast = State(target, noise)
    for name, method in target.methods.items():
        setattr(scheduler, name, types.MethodType(method, scheduler))


def remove(scheduler):
    """Give an accelerated scheduler its class's own methods again."""
    for name in scheduler._gmfast.target.methods:
        vars(scheduler).pop(name, None)
    vars(scheduler).pop("_gmfast")
