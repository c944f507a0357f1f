"""Decode programs as users see them: start a batch, feed values or draw them, save and restore the state."""

from collections.abc import Callable

import torch
from torch import Tensor

from . import request
from .builder import Builder, Draw
from .executors import executor
from .packing import Format, State, pack


class Program:
    """Autoregressive model that computes one position after another from cached activations.

    `gmfast.decode.compile` makes one. The weights are those at the time of compiling, packed for the machine.
    `start` begins a batch, `step` takes it one position further:

        program = gmfast.decode.compile(wavenet)
        params = program.start(batch=1).step()          # of the first sample's distribution
        while True:
            params = program.step(draw(params))         # feed a sample, get the next distribution

    A program belongs to one thread at a time; it computes with torch's number of threads.
    """

    def __init__(self, builder: Builder, like: Tensor, weights: str | None = None):
        """Plan and pack a program for the dtype and device of `like`; `weights` is that of `compile`."""
        self._form = Format.of(like, weights)
        self._plan = builder.plan()
        kernels = self._form.kernels
        self._packed = None if kernels is None else pack(self._plan, self._form)
        for layer in self._plan.layers:
            layer.copy_weights(packed=kernels is not None)
        self._state = self._executor = None

    def __repr__(self) -> str:
        weights = f"{self.weight_bytes / 2**20:.2f} MiB of {str(self.weight_dtype)[6:]} weights"
        weights = f"{weights} on {self.device}"
        if self.batch is None:
            return f"Program({weights}, not started)"
        end = "" if self.length is None else f" of {self.length}"
        return f"Program({weights}, batch {self.batch}, at position {self.position}{end})"

    @property
    def device(self) -> torch.device:
        """Device of the program."""
        return self._form.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of values and arithmetic: float32, or float64 for a model in float64."""
        return self._form.dtype

    @property
    def weight_dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self._form.weight_dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        taps = (tap for layer in self._plan.layers for tap in layer.taps)
        return sum(tap.matrix.numel() for tap in taps) * self.weight_dtype.itemsize

    @property
    def length(self) -> int | None:
        """Number of positions, or None without end."""
        return self._plan.length

    @property
    def batch(self) -> int | None:
        """Number of samples, or None before `start`."""
        return None if self._state is None else self._state.batch

    @property
    def position(self) -> int:
        """Position that comes next, or whose value is waited for."""
        return self._cursor[0]

    def start(self, batch: int = 1, label: Tensor | None = None) -> "Program":
        """Forget what was seen and begin new samples.

        Args:
            batch: Number of samples.
            label: Their classes, (batch,) int64, for a conditional model.

        Returns:
            The program.

        Raises:
            ValueError: The labels do not fit the model or the batch.
        """
        request.check_batch(batch)
        label = request.check_label(self._plan, self._form, batch, label)
        self._state = State.zeros(self._plan, self._form, batch, label)
        self._executor = executor(self._plan, self._form, self._state, self._packed)
        if self._plan.output is not None:  # layers of whole rows come before the input
            self._executor.step(None, None, self._plan.end)
        return self

    def step(self, x: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        """Feed the value that is waited for and return the prediction for the next one.

        A model that predicts takes None first. One that does not (a `Sequential` that sees its own position)
        takes the input at a position and returns its output there.

        Args:
            x: Value, (batch, channels). Channels that are predicted independently are fed one by one,
                (batch, 1).
            local: Local features of the position that is computed, (batch, features).

        Returns:
            Parameters of the next value's distribution, (batch, parameters).

        Raises:
            ValueError: A shape does not fit, or the last position is passed.
        """
        fed = request.check_fed(self._plan, self._form, self.batch, self._cursor, x)
        features = request.check_features(self._plan, self._form, self.batch, local)
        self._executor.step(fed, features, self._plan.end)
        output = self._plan.output
        if output is not None:
            return self._state.rings[output.index][0, 0, :, : output.channels].clone()
        draw = self._waiting
        channels = slice(draw.params_channel, draw.params_channel + draw.num_params)
        return self._state.rings[draw.params.index][0, 0, :, channels].clone()

    def sample(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        *,
        seed: int | Tensor | torch.Generator | None = None,
        temperature: float = 1.0,
        samples: Tensor | None = None,
        local: Tensor | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draw all positions of `x` from the program's position on, in place.

        Ctrl-C, or an exception from `progress`, stops between positions and leaves x drawn up to there;
        another call goes on.

        Args:
            x: Result, (batch, channels, positions), of the program's dtype and contiguous.
            keep: Mask of the elements of x that are given and stay; any shape that expands to x's.
            seed: Seed of the noise; by default drawn from torch's generator.
            temperature: Divides the logits and multiplies the scales; 0 takes the mode.
            samples: Index of each sample in the noise, (batch,) int64, all different and below 2**32; by
                default consecutive ones, from 0 or that of `gmfast._seed.first_sample`.
            local: Local features of all positions, (batch, features, positions).
            progress: Called now and then with the number of positions done since.

        Returns:
            x.

        Raises:
            ValueError: A shape or value does not fit, or the program has no distribution to draw from.
        """
        self._check_started()
        asked = request.sample_request(
            self._plan,
            self._form,
            self.batch,
            x,
            keep,
            seed=seed,
            temperature=temperature,
            samples=samples,
            local=local,
            progress=progress,
        )
        if self.batch:
            self._executor.sample(asked)
        return x

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the program has seen, as tensors for `load_state_dict` of the same model, anywhere."""
        state = {"cursor": torch.tensor(self._cursor)}
        state |= {f"values.{i}": ring.clone() for i, ring in enumerate(self._state.rings)}
        if self._state.label is not None:
            state["label"] = self._state.label.clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> "Program":
        """Continue from a `state_dict`.

        Returns:
            The program.

        Raises:
            ValueError: The state is one of another model.
        """
        batch, cursor = request.check_state(self._plan, state)
        self.start(batch, state.get("label"))
        for i, ring in enumerate(self._state.rings):
            ring.copy_(state[f"values.{i}"])
        self._executor.cursor = cursor
        return self

    def _check_started(self) -> None:
        if self._state is None:
            raise ValueError("start: expected a call of start before this one")

    @property
    def _cursor(self) -> tuple[int, int]:
        self._check_started()
        return self._executor.cursor

    @property
    def _waiting(self) -> Draw | None:
        """Draw that waits for a value; None between positions."""
        return self._plan.draw_at(*self._cursor)
