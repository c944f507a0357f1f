"""The contract of every model: what training, the commands and the decode programs rely on.

A family of models is a package beside this file, a paper a file in it. A model derives from `Model` and from
the mix-ins of what it can do, such as `Likelihood` or `Cached`; nothing asks it with `hasattr`. `registry.py`
names it for the command.
"""

import inspect
import math
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .. import _check, _seed
from ..decode.builder import Builder

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Batch(NamedTuple):
    """Training or held-out samples.

    Attributes:
        x: `(B, *S)`: images and sound in [-1, 1], vectors in their own units.
        label: Class indices, int64 `(B,)`, or None.
    """

    x: Tensor
    label: Tensor | None = None


def adam(parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam with the betas of PixelCNN++ (Salimans et al., 2017, arXiv:1701.05517): (0.95, 0.9995)."""
    return torch.optim.Adam(parameters, lr, (0.95, 0.9995), fused=True)


@dataclass(frozen=True, eq=False)
class Player:
    """Parameters that are updated together, by one optimiser.

    Attributes:
        parameters: The parameters, which no other player of the model has; frozen ones are left out.
        optimizer: Makes the optimiser from the parameters and a learning rate.
        lr: Factor of the run's learning rate.
        ratio: Training steps per update; the update comes at the steps at which the player is `due`.
        ema: Whether evaluation and sampling use the parameters' running average; else their last values.
    """

    parameters: Iterable[nn.Parameter]
    optimizer: Callable[[Sequence[nn.Parameter], float], torch.optim.Optimizer] = adam
    lr: float = 1.0
    ratio: int = 1
    ema: bool = True

    def __post_init__(self):
        _check.at_least(1, ratio=self.ratio)
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        if not trained:
            raise ValueError("parameters: expected at least one that requires a gradient, got none")
        object.__setattr__(self, "parameters", trained)

    def due(self, step: int) -> bool:
        """True if the player is updated at training step `step`, counted from 0."""
        return step % self.ratio == self.ratio - 1


class Request(NamedTuple):
    """Checked arguments that every `sample` has.

    Attributes:
        n: Number of samples.
        seed: int64 tensor `()` on the model's device.
        label: Class indices, int64 `(n,)` on the model's device, or None.
    """

    n: int
    seed: Tensor
    label: Tensor | None


class Model(nn.Module, ABC):
    """A generative model.

    A subclass sets the class attributes, calls `Model.__init__`, and defines `loss` (or `training_step`) and
    `sample`. The constructor's arguments are recorded in `config`.

    Attributes:
        modalities: Kinds of data that the class can model: "images", "sound", "vectors", ...
        family: Noun phrase for messages, such as "flow".
        data: Data set that the command trains on unless told otherwise.
        settings: By data set, settings of `gmfast train` with which it takes minutes on two CPU cores:
            `batch_size`, `lr`, `size` and the constructor's `options`. The key None stands for any data set.
        requires: By name, models that the model can be built on (`build_on`), such as a teacher.
        metrics: By name, the units of what `evaluate` returns; the first is the one that training reports.
        prepare_size: Number of training samples that `prepare` should see; 0: the first batch.
        evaluate_size: Largest number of samples in a call of `evaluate`.
        shardable: Whether FSDP2 may divide the parameters: not where `loss` takes gradients itself, after
            which the parameters are divided again.
        image_shape: Shape of one sample, `(C, H, W)` or `(D,)`; absent where a sample may have any length.
        num_levels: Number of values of a sample's elements; None for real numbers.
        num_labels: Number of classes to condition on; None for an unconditional model.
    """

    modalities: ClassVar[frozenset[str]]
    family: ClassVar[str]
    data: ClassVar[str] = "digits"
    settings: ClassVar[Mapping[str | None, Mapping[str, Any]]] = {}
    requires: ClassVar[Mapping[str, str]] = {}
    metrics: ClassVar[Mapping[str, str]] = {"loss": "loss"}
    prepare_size: ClassVar[int] = 0
    evaluate_size: ClassVar[int] = 128
    shardable: ClassVar[bool] = True

    image_shape: tuple[int, ...]
    num_levels: int | None
    num_labels: int | None
    _config: dict[str, Any]

    def __new__(cls, *args, **kwargs) -> "Model":
        """Record the constructor's arguments, before any `__init__` runs."""
        model = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(model, *args, **kwargs)
        except TypeError:  # unpickling, which restores the config; or a call that `__init__` refuses itself
            return model
        bound.apply_defaults()
        config = {}
        for name, value in list(bound.arguments.items())[1:]:  # without self
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                config |= zip(cls._inherited_names(), value, strict=False)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                config |= {**cls._network_options(), **value}
            else:
                config[name] = value
        _check.arguments(cls, config)
        model.config = config
        return model

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for mixin in (Likelihood, Cached, Guided, Reconstructs, Compresses):
            if issubclass(cls, mixin) and cls.__mro__.index(mixin) > cls.__mro__.index(Model):
                raise TypeError(f"{cls.__name__}: expected {mixin.__name__} before Model among its bases")

    def __init__(self, num_levels: int | None, num_labels: int | None = None):
        super().__init__()
        if num_levels is not None:
            _check.at_least(2, num_levels=num_levels)
        if num_labels is not None:
            _check.at_least(1, num_labels=num_labels)
        self.num_levels, self.num_labels = num_levels, num_labels

    # ---- What the model is

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the constructor, by name: `type(model)(**model.config)` builds the same model."""
        return dict(self._config)

    @config.setter
    def config(self, config: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_config", {name: _frozen(value) for name, value in config.items()})

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Names and defaults of the constructor's arguments, those for the network included."""
        options = {}
        # Of `__init__`, as before Python 3.11.4 the signature of the class is that of `__new__`.
        for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                options |= cls._network_options()
            elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
                options[parameter.name] = parameter.default
        return options

    @classmethod
    def _network_options(cls) -> dict[str, Any]:
        """Names and defaults of the arguments that the constructor takes as `**network`; by default none."""
        return {}

    @classmethod
    def _inherited_names(cls) -> list[str]:
        """Names of the arguments of the constructor that a constructor with `*args` passes them on to."""
        inits = [base.__init__ for base in cls.__mro__ if "__init__" in vars(base)]
        return list(inspect.signature(inits[1]).parameters)[1:]

    @classmethod
    def data_arguments(cls, shape: tuple[int, ...], num_levels: int | None) -> dict[str, Any]:
        """The constructor's arguments that the data decide: samples of `shape` with `num_levels` values."""
        return {"image_shape": shape, "num_levels": num_levels}

    @classmethod
    def settings_for(cls, data: str, *, encoding: str | None = None) -> dict[str, Any]:
        """Settings that suit a data set, by `settings`; `encoding` is that of sound."""
        return dict(cls.settings.get(data) or cls.settings.get(None, {}))

    @property
    def modality(self) -> str:
        """Kind of data that this instance models: one of `modalities`."""
        (modality,) = self.modalities
        return modality

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.parameters()).dtype

    # ---- Training

    def players(self) -> Mapping[str, Player]:
        """By name, what is updated by an optimiser of its own; by default one player has all parameters."""
        return {"model": Player(self.parameters())}

    def training_step(self, batch: Batch, step: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
        """Yield, for each update of training step `step`, the player's name and its losses.

        The entry "loss" is minimised; others are recorded. What follows a `yield` runs after that player's
        update. By default, `loss` of the batch for the only player.
        """
        yield "model", {"loss": self.loss(*batch)}

    def loss(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Training objective of a batch, a scalar."""
        raise NotImplementedError(f"{type(self).__name__} has no single loss: see training_step")

    def prepare(self, batch: Batch) -> None:
        """Initialise what depends on data, before the first training step; by default nothing does."""

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Set the constants `(D,)` that real-valued data are standardised with; models of vectors have it."""
        raise ValueError(f"standardize: expected a model of vectors, got {type(self).__name__}")

    def build_on(self, **models: "Model") -> None:
        """Set the models that this one is built on, by their names in `requires`.

        Raises:
            ValueError: For a name that is not in `requires`, or a model that does not fit.
        """
        for name in models:
            raise ValueError(f"{name}: expected a model that is built on one, got {type(self).__name__}")

    # ---- Use

    @abstractmethod
    def sample(self, n: int, *, seed: int | Tensor | torch.Generator | None = None) -> Tensor:
        """Draw `n` samples, `(n, *S)`, in the units of the training data."""

    @classmethod
    def sample_options(cls) -> Sequence[str]:
        """Names of the keyword arguments of `sample`."""
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(cls.sample).parameters
        return [name for name, p in parameters.items() if p.kind in kinds and name not in ("self", "n")]

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Held-out figures of each sample, `(B,)` each, by the names in `metrics`, which gives their units.

        By default the batch's `loss`, the same for each sample.
        """
        return {"loss": self.loss(*batch).expand(batch.x.shape[0])}

    # ---- Checks

    def request(
        self, n: int, *, seed, label: Tensor | int | None = None, temperature: float = 1.0
    ) -> Request:
        """Check the arguments that every `sample` has.

        Args:
            n: Number of samples, 0 or more.
            seed: An int, an int64 tensor, a `torch.Generator`, or None to draw one from torch's.
            label: One class or `(n,)` of them for a conditional model.
            temperature: Factor of the noise, from 0.

        Raises:
            ValueError: For values, naming the argument. TypeError: For types.
        """
        _check.integer("n", n)
        if n < 0:
            items = "sounds" if self.modality == "sound" else self.modality
            raise ValueError(f"n: expected a number of {items}, got {n}")
        _check.number("temperature", temperature, 0, 1e30)
        if label is not None:
            label = torch.as_tensor(label)
            label = label.expand(n) if label.dim() == 0 else label
        label = check_label(label, n, self.num_labels)
        device = self.device
        return Request(n, _seed.as_tensor(seed, device), label if label is None else label.to(device))

    def check_input(self, x: Tensor, label: Tensor | None = None) -> Tensor | None:
        """Check a batch of samples `x (B, *image_shape)` and return its labels as int64.

        Raises:
            ValueError: For the shape of `x`, or labels that do not fit. TypeError: For integers.
        """
        _check.no_proxy("x", x)
        if x.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"x: expected shape (B, {expected}), got {tuple(x.shape)}")
        if not x.is_floating_point():
            within = "" if self.num_levels is None else " in [-1, 1]"
            raise TypeError(f"x: expected floating point numbers{within}, got {x.dtype}")
        return check_label(label, x.shape[0], self.num_labels)


class Objective(nn.Module):
    """A model's `loss` as the forward pass of a module, for wrappers that replace `forward` alone.

    `DistributedDataParallel(Objective(model))(x)` averages gradients over processes; a call of
    `wrapper.module.loss` does not. The parameters are the model's own.

    Args:
        model: The model, as the attribute `model`.
    """

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, label: Tensor | None = None, **options: Any) -> Tensor:
        """Training objective of a batch, a scalar: `model.loss` with its arguments."""
        return self.model.loss(x, label, **options)


class Likelihood(metaclass=ABCMeta):
    """Mix-in of models with a likelihood, or a lower bound of it."""

    metrics: ClassVar[Mapping[str, str]] = {"bits_per_dim": "bits per dimension"}

    @abstractmethod
    def log_prob(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Log-probability of each sample, or a lower bound of it, `(B,)`, in nats."""

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """`bits_per_dim`: minus `log_prob` in bits per dimension, `(B,)`."""
        return {"bits_per_dim": bits_per_dim(self.log_prob(*batch), batch.x)}


class Cached(metaclass=ABCMeta):
    """Mix-in of models that draw each value given those before it, by a decode program."""

    @abstractmethod
    def decoder(self) -> Builder:
        """The model as a decode program (`gmfast.decode`)."""


class Guided(metaclass=ABCMeta):
    """Mix-in of models with classifier-free guidance (Ho and Salimans, 2022, arXiv:2207.12598).

    Attributes:
        label_dropout: Share of training samples whose class the network does not see.
    """

    label_dropout: float

    @property
    def guided(self) -> bool:
        """True if the model was trained both with classes and without."""
        return bool(self.num_labels and self.label_dropout)


class Reconstructs(metaclass=ABCMeta):
    """Mix-in of models with an encoder and a decoder."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Latent of each sample `x (B, *S)`."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Samples from latents."""


class Compresses(metaclass=ABCMeta):
    """Mix-in of models whose likelihood codes samples without loss."""

    @abstractmethod
    def coder(self) -> object:
        """The model as an entropy coder."""


def bits_per_dim(log_prob: Tensor, x: Tensor) -> Tensor:
    """Bits per dimension, `(B,)`, of samples `x (B, *S)` with log-probabilities `log_prob (B,)`, in nats."""
    return -log_prob / (math.prod(x.shape[1:]) * math.log(2))


def quantize(x: Tensor, num_levels: int) -> Tensor:
    """Round values to the nearest of `num_levels` equally spaced ones from -1 to 1."""
    scale = (num_levels - 1) / 2
    return ((x + 1) * scale).round().clamp(0, num_levels - 1) / scale - 1


def check_image_shape(
    image_shape: Sequence[int], *, channels: Sequence[int] | None = None, multiple: int = 1
) -> tuple[int, int, int]:
    """`image_shape` as a tuple (C, H, W) of positive numbers.

    Args:
        image_shape: The shape of one image.
        channels: Numbers of channels that are allowed; None: any.
        multiple: Power of two that height and width must be multiples of.

    Raises:
        ValueError: For anything else.
    """
    image_shape = tuple(image_shape)
    if channels is not None and (len(image_shape) != 3 or image_shape[0] not in channels):
        allowed = " or ".join(map(str, channels))
        raise ValueError(f"image_shape: expected (C, H, W) with C = {allowed}, got {image_shape}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        positive = "(C, H, W)" if channels is None else "H and W"
        raise ValueError(f"image_shape: expected positive {positive}, got {image_shape}")
    if any(size % multiple for size in image_shape[1:]):
        raise ValueError(
            f"image_shape: expected H and W to be multiples of {multiple}, which are halved "
            f"{multiple.bit_length() - 1} times, got {image_shape}"
        )
    return image_shape


def check_label(label: Tensor | None, count: int, num_labels: int | None) -> Tensor | None:
    """`label` as int64, or None where `num_labels` is None.

    Values are checked on the CPU only: elsewhere the host would have to wait for the device.

    Raises:
        ValueError: Unless `label` is `count` integers below `num_labels`. TypeError: For what is no tensor.
    """
    if num_labels is None:
        if label is not None:
            raise ValueError("label: expected None, because the model is not conditional, got labels")
        return None
    if label is None:
        raise ValueError(f"label: expected {count} integers below {num_labels}, got None")
    if not isinstance(label, Tensor):
        raise TypeError(f"label: expected a tensor of {count} integers, got {type(label).__name__}")
    if label.shape != (count,) or label.dtype not in INTEGERS:
        raise ValueError(f"label: expected {count} integers, got {label.dtype} of shape {tuple(label.shape)}")
    label = label.long()
    if _check.readable(label) and label.numel():
        low, high = label.aminmax()
        if low < 0 or high >= num_labels:
            raise ValueError(
                f"label: expected integers from 0 to {num_labels - 1}, "
                f"got values from {int(low)} to {int(high)}"
            )
    return label


def check_method(method: str, weights: str | None = None) -> None:
    """Check how an autoregressive model or flow is sampled, and that `weights` are those of a decode program.

    Raises:
        ValueError: For another method, and for `weights` with "naive".
    """
    if method not in ("cached", "naive"):
        raise ValueError(f'method: expected "cached" or "naive", got {method!r}')
    if method == "naive" and weights is not None:
        raise ValueError(f'weights: expected None with method="naive", got {weights!r}')


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and each of its modules back in its former mode afterwards."""
    were_training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in were_training:
            module.training = training


def _frozen(value: Any) -> Any:
    """Lists as tuples, as constructors take them."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple | torch.Size) else value
