"""Base distributions of flows, as modules: they move, train, are saved and copied with the flow."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributions as torch_distributions
from torch.distributions import Distribution

from .. import _check, _seed
from .. import functional as GF


class BaseDistribution(nn.Module):
    """The distribution of a flow's noise; a subclass defines `log_prob` and `rsample`.

    `context` is the flow's: a base that has no use for it ignores it.

    Args:
        shape: of one sample; None if it is not known in advance.
    """

    has_rsample = True  #: whether samples are differentiable in the parameters
    has_temperature = False  #: whether `rsample` takes a temperature

    def __init__(self, shape: Iterable[int] | None):
        super().__init__()
        if shape is not None:
            shape = tuple(shape)
            for size in shape:
                _check.integer("shape", size)
        self.shape = shape

    def log_prob(self, z: Tensor, context=None) -> Tensor:
        """Compute the log-density of each sample of `z (B, *shape)`, (B,), in nats."""
        raise NotImplementedError(f"{type(self).__name__} has no log_prob")

    def rsample(self, n: int, context=None, *, seed: int | Tensor | torch.Generator | None = None) -> Tensor:
        """Draw `n` samples, (n, *shape); a context has n rows.

        They are differentiable in the parameters where `has_rsample`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rsample")

    @torch.no_grad()
    def sample(self, n: int, context=None, *, seed: int | Tensor | torch.Generator | None = None) -> Tensor:
        """Draw `n` samples, (n, *shape), without gradients."""
        return self.rsample(n, context, seed=seed)

    def extra_repr(self) -> str:
        """Return the shape for `repr`."""
        return str(self.shape)


class StandardNormal(BaseDistribution):
    """Standard normal noise, the base of `Flow(shape, …)`.

    Args:
        shape: of one sample.
        device, dtype: of samples.
    """

    has_temperature = True

    def __init__(self, shape: Iterable[int], *, device=None, dtype=None):
        super().__init__(shape)
        # For the device and the dtype of samples.
        self.register_buffer("_like", torch.empty(0, device=device, dtype=dtype), persistent=False)

    def moments(self, context=None) -> tuple[Tensor | None, Tensor | None]:
        """Return the mean and the logarithm of the standard deviation; None is 0."""
        return None, None

    def log_prob(self, z: Tensor, context=None) -> Tensor:
        """Compute the log-density of each sample, (B,), in nats."""
        return GF.gaussian_log_prob(z, *self.moments(context))

    def rsample(
        self,
        n: int,
        context=None,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw `n` samples; sample i does not depend on `n`. The temperature multiplies the deviation."""
        mean, log_std = self.moments(context)
        like = self._like if mean is None else mean
        z = GF.standard_normal((n, *self.shape), seed=seed, dtype=like.dtype, device=like.device)
        z = z * temperature if temperature != 1 else z
        return z if mean is None else torch.addcmul(mean, z, log_std.exp())


class DiagonalNormal(StandardNormal):
    """Normal noise with a trainable mean and standard deviation of each value, at first 0 and 1.

    Args:
        shape: of one sample.
        device, dtype: of the parameters.
    """

    def __init__(self, shape: Iterable[int], *, device=None, dtype=None):
        super().__init__(shape, device=device, dtype=dtype)
        self.mean = nn.Parameter(torch.zeros(self.shape, device=device, dtype=dtype))
        self.log_std = nn.Parameter(torch.zeros(self.shape, device=device, dtype=dtype))

    def moments(self, context=None) -> tuple[Tensor, Tensor]:
        """Return the mean and the logarithm of the standard deviation, of the shape of a sample."""
        return self.mean, self.log_std


class ConditionalDiagonalNormal(StandardNormal):
    """Normal noise whose mean and standard deviation are functions of the context.

    Args:
        shape: of one sample, with D values.
        net: maps the context (B, …) to (B, 2·D), or a shape that flattens to it: all means, then the
            logarithms of all standard deviations.
    """

    def __init__(self, shape: Iterable[int], net: nn.Module | Callable[[Any], Tensor]):
        super().__init__(shape)
        self.net = net

    def moments(self, context=None) -> tuple[Tensor, Tensor]:
        """Return the mean and the logarithm of the standard deviation, (B, *shape)."""
        mean, log_std = _outputs(self.net, context, [math.prod(self.shape)] * 2)
        return mean.reshape(-1, *self.shape), log_std.reshape(-1, *self.shape)


class GaussianMixture(BaseDistribution):
    """A mixture of normal distributions with diagonal covariances, trainable or a function of the context.

    Args:
        shape: of one sample, with D values.
        num_components: K.
        net: maps the context (B, …) to (B, K·(1 + 2·D)): logits of the weights, all means and the logarithms
            of all standard deviations. None: these are parameters, with equal weights, deviations of 1, and
            means drawn from a standard normal by torch's global generator.
        device, dtype: of the parameters.
    """

    has_rsample = False

    def __init__(
        self,
        shape: Iterable[int],
        num_components: int,
        net: nn.Module | Callable[[Any], Tensor] | None = None,
        *,
        device=None,
        dtype=None,
    ):
        super().__init__(shape)
        _check.at_least(1, num_components=num_components)
        self.num_components, self.net = num_components, net
        if net is None:
            size = (num_components, *self.shape)
            self.logits = nn.Parameter(torch.zeros(num_components, device=device, dtype=dtype))
            self.mean = nn.Parameter(torch.randn(size, device=device, dtype=dtype))
            self.log_std = nn.Parameter(torch.zeros(size, device=device, dtype=dtype))

    def _components(self, context) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, K), means and log-deviations (B, K, *shape); B is 1 without a network."""
        if self.net is None:
            return self.logits[None], self.mean[None], self.log_std[None]
        count = self.num_components
        size = count * math.prod(self.shape)
        logits, mean, log_std = _outputs(self.net, context, [count, size, size])
        return logits, mean.reshape(-1, count, *self.shape), log_std.reshape(-1, count, *self.shape)

    def log_prob(self, z: Tensor, context=None) -> Tensor:
        """Compute the log-density of each sample, (B,), in nats."""
        logits, mean, log_std = self._components(context)
        dtype = torch.promote_types(torch.promote_types(z.dtype, mean.dtype), torch.float32)
        z, logits, mean, log_std = (t.to(dtype) for t in (z, logits, mean, log_std))
        each = -0.5 * ((z[:, None] - mean) * torch.exp(-log_std)).square() - log_std
        each = each.flatten(2).sum(2) - 0.5 * math.log(2 * math.pi) * math.prod(self.shape)
        return torch.logsumexp(each + logits.log_softmax(1), 1)

    @torch.no_grad()
    def rsample(self, n: int, context=None, *, seed: int | Tensor | torch.Generator | None = None) -> Tensor:
        """Draw `n` samples, without gradients; sample i does not depend on `n`."""
        logits, mean, log_std = self._components(context)
        options = {"dtype": mean.dtype, "device": mean.device}
        seed = _seed.of_samples(seed, n, mean.device)
        u = _uniform((n, 1), _seed.stream(seed, 1), mean)
        chosen = (u > logits.to(u.dtype).softmax(1).cumsum(1)[:, :-1]).sum(1)
        row = torch.arange(n, device=mean.device) if len(mean) == n else 0
        z = GF.standard_normal((n, *self.shape), seed=seed, **options)
        return torch.addcmul(mean[row, chosen], z, log_std[row, chosen].exp())

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"{self.shape}, num_components={self.num_components}"


class BoxUniform(BaseDistribution):
    """Uniform noise in a box, closed at both ends; log-density -∞ outside.

    Args:
        low, high: ends of the interval of each value, of the shape of a sample, or broadcastable to it.
        shape: of one sample; None: that of `low` and `high`.

    Raises:
        ValueError: for `low` that is not below `high`.
    """

    def __init__(self, low: Tensor | float, high: Tensor | float, shape: Iterable[int] | None = None):
        low, high = torch.broadcast_tensors(
            *(
                torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.get_default_dtype())
                for t in (low, high)
            )
        )
        if shape is not None:
            low, high = low.expand(tuple(shape)), high.expand(tuple(shape))
        super().__init__(low.shape)
        if not low.is_meta and not (low < high).all():
            raise ValueError("low: expected numbers below high, got others")
        self.register_buffer("low", low.detach().clone())
        self.register_buffer("high", high.detach().clone())

    def log_prob(self, z: Tensor, context=None) -> Tensor:
        """Compute the log-density of each sample, (B,), in nats."""
        dtype = torch.promote_types(torch.promote_types(z.dtype, self.low.dtype), torch.float32)
        low, high = self.low.to(dtype), self.high.to(dtype)
        inside = ((z >= self.low) & (z <= self.high)).flatten(1).all(1)
        # Zero times z: a gradient of zero, as a constant density has.
        density = -(high - low).log().sum() + (z.to(dtype) * 0).flatten(1).sum(1)
        return torch.where(inside, density, -math.inf)

    def rsample(self, n: int, context=None, *, seed: int | Tensor | torch.Generator | None = None) -> Tensor:
        """Draw `n` samples; sample i does not depend on `n`."""
        u = _uniform((n, *self.shape), seed, self.low)
        low, high = self.low.to(u.dtype), self.high.to(u.dtype)
        return torch.lerp(low, high, u).to(self.low.dtype)


class ConditionalBase(BaseDistribution):
    """A base given by a module that maps the context to a `torch.distributions.Distribution`.

    Args:
        module: called as `module(context)`, or `module()` without one; returns a distribution of samples
            (`event_shape`) with `batch_shape` (B,), (1,), or none for all the same.
    """

    def __init__(self, module: nn.Module | Callable[..., Distribution]):
        super().__init__(None)
        self.module = module

    def distribution(self, context=None) -> Distribution:
        """Return the distribution of the noise, given the context.

        Raises:
            TypeError: where the module returns anything else.
        """
        made = self.module() if context is None else self.module(context)
        if not isinstance(made, Distribution):
            raise TypeError(
                f"base: expected a shape, a Distribution, a BaseDistribution, or a module that returns a "
                f"Distribution, got one that returns {type(made).__name__}"
            )
        if len(made.batch_shape) > 1:
            raise ValueError(
                f"base: expected a distribution of batch_shape (B,) or () (torch.distributions.Independent "
                f"makes the rest part of the event), got {tuple(made.batch_shape)}"
            )
        return made

    def log_prob(self, z: Tensor, context=None) -> Tensor:
        """Compute the log-density of each sample, (B,), in nats."""
        distribution = self.distribution(context)
        _check_event(z, tuple(distribution.event_shape))
        return distribution.log_prob(z)

    def rsample(self, n: int, context=None, *, seed: int | Tensor | torch.Generator | None = None) -> Tensor:
        """Draw `n` samples by torch's generators; a seed counts as by `torch.manual_seed`."""
        distribution = self.distribution(context)
        batch = tuple(distribution.batch_shape)
        if batch not in ((), (1,), (n,)):
            raise ValueError(f"context: expected {n} rows, or one, got {batch[0]}")
        draw = _drawing(distribution)
        # Device of the generators that draw: that of a sample of none.
        device = distribution.sample((0,)).device
        if batch == (n,) and n != 1:
            return _seeded(lambda count: draw(), seed, device, 0)
        return _seeded(lambda count: draw((count,)), seed, device, n).reshape(n, *distribution.event_shape)


@dataclass
class _Object:
    """An object that holds tensors: its class and its attributes, with slots in place of the tensors."""

    kind: type
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Call:
    """A distribution that its constructor makes of these arguments, slots in place of the tensors."""

    kind: type
    arguments: dict[str, Any]
    validate: bool


@dataclass
class _Slot:
    """A tensor or module of the base, or a function of a parameter, expanded to a shape."""

    name: str
    function: str | None = None
    shape: tuple[int, ...] | None = None


#: Functions by which users make a parameter positive, or probabilities.
_FUNCTIONS = {
    "": lambda t: t,
    "exp": torch.exp,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "softmax": lambda t: t.softmax(-1) if t.dim() else t,
    "log_softmax": lambda t: t.log_softmax(-1) if t.dim() else t,
    "normalized": lambda t: t / t.sum(-1, keepdim=True) if t.dim() else t,
    "square": torch.square,
    "abs": torch.abs,
}
#: Attributes that only remember the last call, and what they are before it.
_MEMORIES = {"_cached_x_y": (None, None), "_last": None}


class DistributionBase(BaseDistribution):
    """A `torch.distributions.Distribution` as a module.

    The tensors that it was made of become parameters, if they require gradients, or buffers, named as its
    attributes: `Independent(Normal(loc, scale), 1)` has `loc` and `scale`. A scale that was computed as
    `log_scale.exp()` (or by softplus, sigmoid, softmax, square or abs) is computed anew at each call from the
    parameter `log_scale`, named `raw_scale`. A tensor that was computed from parameters in another way stays
    part of its graph and is a buffer, constant in a copy: `ConditionalBase` takes a module that computes it.

    Args:
        distribution: of one sample (`event_shape`), without a `batch_shape`.
    """

    def __init__(self, distribution: Distribution):
        if not isinstance(distribution, Distribution):
            raise TypeError(f"distribution: expected a Distribution, got {_check.kind(distribution)}")
        if distribution.batch_shape:
            raise ValueError(
                f"base: expected no batch_shape (torch.distributions.Independent makes it part of the "
                f"event), got {tuple(distribution.batch_shape)}"
            )
        super().__init__(distribution.event_shape)
        self.has_rsample = distribution.has_rsample
        self._slots = {}  # of tensors and modules, by their id
        self._template = self._taken_apart(distribution, "base")
        del self._slots
        tensors = (t for t in [*self.parameters(), *self.buffers()] if t.is_floating_point())
        like = next(tensors, torch.empty(0))
        # For the device and the dtype of samples.
        self.register_buffer("_like", like.detach().new_empty(0), persistent=False)

    @property
    def distribution(self) -> Distribution:
        """The distribution with the parameters as they are now, in float32 where they are halves."""
        return self._assembled(self._template)

    def log_prob(self, z: Tensor, context=None) -> Tensor:
        """Compute the log-density of each sample, (B,), in nats."""
        return self.distribution.log_prob(z.to(torch.promote_types(z.dtype, torch.float32)))

    def rsample(self, n: int, context=None, *, seed: int | Tensor | torch.Generator | None = None) -> Tensor:
        """Draw `n` samples by torch's generators; a seed counts as by `torch.manual_seed`."""
        draw = _drawing(self.distribution)
        z = _seeded(lambda count: draw((count,)), seed, self._like.device, n)
        return z.to(self._like.dtype) if z.is_floating_point() else z

    def _taken_apart(self, value, name):
        """Return `value` with slots in place of its tensors and modules, which are registered."""
        if isinstance(value, Tensor | nn.Module):
            if id(value) not in self._slots:
                self._slots[id(value)] = value, self._registered(value, name)  # kept, so that ids stay unique
            return self._slots[id(value)][1]
        if isinstance(value, Distribution) and not all(map(_is_known, _tensors(value))):
            call = self._call(value)
            if call is not None:
                return call
        if isinstance(value, Distribution | torch_distributions.Transform):
            attributes = {}
            for key, held in vars(value).items():
                if key == "_inv" and not isinstance(value, torch_distributions.transforms._InverseTransform):
                    held = None  # remembers the inverse, which refers back
                attributes[key] = _MEMORIES[key] if key in _MEMORIES else self._taken_apart(held, key)
            return _Object(type(value), attributes)
        if type(value) in (list, tuple):
            return type(value)(self._taken_apart(held, f"{name}_{i}") for i, held in enumerate(value))
        return value

    def _call(self, value: Distribution) -> _Call | None:
        """Return the constructor's call that makes `value`, whose tensors were computed, where it does."""
        kind, held = type(value), vars(value)
        names = [n for n in inspect.signature(kind).parameters if n in held and _is_known(held[n])]
        arguments = {name: held[name] for name in names if name in kind.arg_constraints}
        try:
            made = kind(**arguments, validate_args=False)
        except (TypeError, ValueError):
            return None
        for one, other in zip(_tensors(made), _tensors(value), strict=False):
            if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-4):
                return None
        slots = {name: self._taken_apart(tensor, name) for name, tensor in arguments.items()}
        return _Call(kind, slots, value._validate_args)

    def _registered(self, value, name) -> _Slot:
        name = name.strip("_")
        if isinstance(value, nn.Module):
            name = self._free(name)
            self.add_module(name, value)
            return _Slot(name)
        if value.requires_grad and not value.is_leaf:
            leaf, function = _origin(value)
            if leaf is not None:
                raw = self._taken_apart(leaf, f"raw_{name}" if function else name)
                return _Slot(raw.name, function, tuple(value.shape))
        name = self._free(name)
        if value.requires_grad and value.is_leaf:
            if not isinstance(value, nn.Parameter):
                value._is_param = True  # the caller's own tensor, so that its gradient arrives there
            self.register_parameter(name, value)
        else:
            self.register_buffer(name, value if value.requires_grad else value.clone())
        return _Slot(name)

    def _free(self, name: str) -> str:
        taken = name
        count = 1
        while hasattr(self, taken):
            taken, count = f"{name}_{count}", count + 1
        return taken

    def _assembled(self, value):
        if isinstance(value, _Slot):
            held = getattr(self, value.name)
            if isinstance(held, nn.Module):
                return held
            if held.is_floating_point():
                held = held.to(torch.promote_types(held.dtype, torch.float32))
            if value.function is None:
                return held
            return _FUNCTIONS[value.function](held).expand(value.shape)
        if isinstance(value, _Call):
            arguments = {name: self._assembled(held) for name, held in value.arguments.items()}
            made = value.kind(**arguments, validate_args=False)
            made._validate_args = value.validate
            return made
        if isinstance(value, _Object):
            made = object.__new__(value.kind)
            for key, held in value.attributes.items():
                made.__dict__[key] = self._assembled(held)
            return made
        if type(value) in (list, tuple):
            return type(value)([self._assembled(held) for held in value])
        return value

    def __getstate__(self):
        # A copy is not part of the graph that a buffer may be part of.
        buffers = {k: b if b is None else b.detach() for k, b in self._buffers.items()}
        return {**self.__dict__, "_buffers": buffers}

    def extra_repr(self) -> str:
        """Return the names of the tensors for `repr`."""
        tensors = [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]
        return ", ".join(f"{name}: {tuple(t.shape)}" for name, t in tensors if name != "_like")


def as_base(base, transform: nn.Module) -> BaseDistribution:
    """Return what `Flow` takes as base, as a module."""
    if isinstance(base, BaseDistribution):
        return base
    if isinstance(base, Distribution):
        return DistributionBase(base)
    if isinstance(base, nn.Module):
        return ConditionalBase(base)
    if not isinstance(base, tuple | list):
        raise TypeError(f"base: expected a shape or a Distribution, got {type(base).__name__}")
    for size in base:
        _check.integer("base", size)
    like = next(transform.parameters(), torch.empty(0))
    return StandardNormal(base, device=like.device, dtype=like.dtype)


def _outputs(net, context, sizes: list[int]) -> list[Tensor]:
    """Return the parts of a network's output, (B, size) each, at least float32 where they are halves."""
    if context is None:
        raise ValueError("context: expected one, as the base is a function of it, got None")
    outputs = net(context)
    flat = outputs.flatten(1) if outputs.dim() > 1 else outputs
    if flat.dim() != 2 or flat.shape[1] != sum(sizes):
        raise ValueError(f"net: expected a result of shape (B, {sum(sizes)}), got {tuple(outputs.shape)}")
    return list(flat.split(sizes, 1))


def _uniform(shape: tuple[int, ...], seed, like: Tensor) -> Tensor:
    """Uniform noise in [0, 1], at least float32, from the noise that normal samples are made of."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.special.ndtr(GF.standard_normal(shape, seed=seed, dtype=dtype, device=like.device))


def _check_event(z: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(z.shape[1:]) != shape:
        raise ValueError(f"z: expected (B, {', '.join(map(str, shape))}), got {tuple(z.shape)}")


def _drawing(distribution: Distribution) -> Callable[..., Tensor]:
    """Return the distribution's method that draws, differentiable where it has one and it is wanted."""
    wanted = distribution.has_rsample and torch.is_grad_enabled()
    return distribution.rsample if wanted else distribution.sample


def _seeded(draw: Callable[[int], Tensor], seed, device: torch.device, n: int) -> Tensor:
    """Return `n` of the samples that `draw(count)` gives after `torch.manual_seed`."""
    devices = [device] if device.type not in ("cpu", "meta") else []
    with torch.random.fork_rng(devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(int(_seed.as_tensor(seed, torch.device("cpu"))))
        first = _seed.first() if n else 0  # torch's generators draw those before it too
        return draw(first + n)[first:]


def _tensors(value) -> Iterator[Tensor]:
    """Yield the tensors that a distribution holds."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Distribution):
        for held in vars(value).values():
            yield from _tensors(held)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _tensors(held)


def _is_known(value) -> bool:
    """True unless `value` is a tensor that was computed from parameters, other than by `_FUNCTIONS`."""
    if not isinstance(value, Tensor) or not value.requires_grad or value.is_leaf:
        return True
    return _origin(value)[0] is not None


def _origin(tensor: Tensor) -> tuple[Tensor | None, str]:
    """Return the one leaf that a tensor was computed from and the function's name, or None."""
    leaves, visited, nodes = {}, set(), [tensor.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves[id(variable)] = variable
        nodes += [following for following, _ in node.next_functions]
    if len(leaves) != 1 or tensor.is_meta:
        return None, ""
    (leaf,) = leaves.values()
    for name, function in _FUNCTIONS.items():
        try:
            value = function(leaf.detach()).expand(tensor.shape)
        except RuntimeError:
            continue
        if torch.allclose(value, tensor.detach(), rtol=1e-6, atol=0):
            return leaf, name
    return None, ""
