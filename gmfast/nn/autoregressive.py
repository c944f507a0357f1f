"""Masked autoregressive transforms: the parameters of each value are functions of the values before it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from .. import functional as GF
from .._library import in_forward_mode, in_functorch, leave_graph
from ..ops._layout import without_autocast
from ..ops._second_order import without_second_derivative
from ..ops.made_inverse import ACTIVATIONS, made_inverse, made_invert, made_solve
from .coupling import check_affine_options
from .made import MaskedMLP
from .spline import SplineFunction
from .transform import Transform


class MaskedAutoregressive(Transform):
    """Base class of masked autoregressive transforms (Papamakarios et al., 2017, arXiv:1705.07057).

    `forward` is one pass of a `MaskedMLP`. `inverse` computes one value after another, and each hidden unit
    once, when the last value that it may see is known: the arithmetic of one pass, in D steps. It equals, to
    rounding, the usual D full passes (`gmfast.nn.naive_inverse` runs those). Gradients through the inverse
    are implicit: one more pass, and a triangular solve with as much arithmetic as one pass; a second
    derivative through it is an error. With `residual`, dropout in training mode or forward-mode derivatives
    it runs D full passes, and autograd goes through all; units drop out in the same way in each. Both
    directions run the network in the dtype of its weights, under autocast too, so that they are inverses of
    each other.

    Args:
        num_inputs: D. Samples are (B, D), or of any shape (B, *S) with D values.
        num_params: number of parameters of each value.
        hidden: sizes of the hidden layers; may be empty.
        order: index of the value of each rank; None: 0 to D - 1. `range(D - 1, -1, -1)` reverses the order.
        num_context: number of features of the context (B, num_context); 0 for none.
        activation: of hidden units: "relu", "tanh", "elu" or "silu".
        direct: whether there is also a linear connection from the values to the parameters.
        residual, dropout: of the network, as in `MaskedMLP`.
    """

    def __init__(
        self,
        num_inputs: int,
        num_params: int,
        hidden: tuple[int, ...] = (64, 64),
        *,
        order: Iterable[int] | Tensor | None = None,
        num_context: int = 0,
        activation: str = "relu",
        direct: bool = False,
        residual: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        hidden = tuple(hidden)
        for size in (num_inputs, *hidden):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(
                    f"num_inputs, hidden: expected positive integers, got {num_inputs}, {hidden}"
                )
        if num_context:
            _check.at_least(1, num_context=num_context)
        order = range(num_inputs) if order is None else order
        order = order.tolist() if isinstance(order, Tensor) else list(order)
        if sorted(order) != list(range(num_inputs)):
            raise ValueError(f"order: expected a permutation of 0 to {num_inputs - 1}, got {order}")
        order = torch.tensor(order, dtype=torch.int64)
        self.net = MaskedMLP(
            num_inputs,
            hidden,
            num_params,
            num_context,
            activation=activation,
            direct=direct,
            residual=residual,
            dropout=dropout,
        )
        self.register_buffer("order", order)
        for i, mask in enumerate(self.net.masks(order)):
            self.register_buffer(f"_mask{i}", mask, persistent=False)
        self.register_load_state_dict_post_hook(_update_masks)
        self.naive = False

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Transform `x` in one pass of the network."""
        flat = self._flat("x", x, context)
        params, _ = self._run(flat, context, self._draw_kept(flat))
        z, log_det = self.transform(flat, params, inverse=False)
        return z.view_as(x), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Transform `z` back, one value after another."""
        flat = self._flat("z", z, context)
        kept = self._draw_kept(flat)
        plain = self.net.residual or kept is not None
        if plain or in_functorch() or in_forward_mode():  # derivatives, of any order, go through the passes
            x, log_det = self._invert_naively(flat, context, kept)
            return x.view_as(z), log_det
        wanted = (flat, context, *self.net.parameters())
        differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in wanted)
        differentiable = differentiable and not torch.jit.is_tracing()  # a trace is of the numbers alone
        with torch.no_grad():
            x, log_det = (self._invert_naively if self.naive else self._invert)(flat, context)
        if differentiable:
            leave_graph("inverse: expected fullgraph=False with gradients, got True")
            # The residual is zero; `_Implicit` gives it the gradient of the implicit function.
            params, sums = self._run(x, context)
            residual = flat - self.transform(x, params, inverse=False)[0]
            constants = (x, params.detach(), *(s.detach() for s in sums))
            x = x + _Implicit.apply(residual, self, *constants)
            log_det = -self.transform(x, self._run(x, context)[0], inverse=False)[1]
        return x.view_as(z), log_det

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Transform `x (B, D)` elementwise, given its parameters (B, D, P)."""
        raise NotImplementedError

    def _draw_kept(self, x: Tensor) -> list[Tensor] | None:
        return self.net.draw_kept(x.detach().to(self.net.layers[0].weight.dtype))

    def _run(
        self, x: Tensor, context: Tensor | None, kept: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the parameters of each value, and the pre-activations of the hidden layers."""
        masks = [getattr(self, f"_mask{i}") for i in range(len(self.net.layers) + 1)]
        dtype = self.net.layers[0].weight.dtype
        context = context if context is None else context.to(dtype)
        with without_autocast(x):
            return self.net.outputs_and_sums(x.to(dtype), masks, context, kept)

    def _flat(self, name: str, x: Tensor, context: Tensor | None) -> Tensor:
        _check.tensor(name, x)
        _check.floating(name, x)
        if x.dim() < 2 or x.shape[1:].numel() != self.net.num_inputs:
            raise ValueError(f"{name}: expected (B, {self.net.num_inputs}), got {tuple(x.shape)}")
        size = None if self.net.context is None else (x.shape[0], self.net.context[0].in_features)
        got = None if context is None else tuple(context.shape)
        if got != size:
            raise ValueError(f"context: expected {size}, got {got}")
        return x.flatten(1)

    def _in_steps(self, dtype: torch.dtype) -> tuple[list[Tensor], Tensor | None]:
        """Return the network's matrices, with inputs and outputs in the order of the steps.

        Hidden units that see the context alone are due before the first value. Their network is that of one
        more value, so a step comes first (`_context_step`), whose weights are zero.
        """
        net, order, outputs = self.net, self.order, (self.net.num_inputs, self.net.num_params)
        weights = [layer.weight.to(dtype) for layer in net.layers]
        direct = None if net.direct is None else net.direct.weight.to(dtype)
        weights[-1] = weights[-1].unflatten(0, outputs).index_select(0, order).flatten(0, 1)
        weights[0] = weights[0].index_select(1, order)
        if direct is not None:
            direct = direct.unflatten(0, outputs).index_select(0, order).flatten(0, 1)
            direct = direct.index_select(1, order)
        if self._context_step:
            weights[0] = F.pad(weights[0], (1, 0))
            weights[-1] = F.pad(weights[-1], (0, 0, net.num_params, 0))
            direct = direct if direct is None else F.pad(direct, (1, 0, net.num_params, 0))
        return weights, direct

    def _offsets(self, context: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the biases of all units and outputs, (1, ...), or with a context (B, ...)."""
        net, offsets = self.net, []
        for i, layer in enumerate(net.layers):
            offset = layer.bias[None]
            if context is not None:
                offset = offset + net.context[i](context.to(layer.bias.dtype))
            offsets.append(offset.to(dtype))
        last = offsets[-1].unflatten(1, (net.num_inputs, net.num_params)).index_select(1, self.order)
        last = F.pad(last.flatten(1), (self._context_step * net.num_params, 0))
        return torch.cat([*offsets[:-1], last], 1)

    @property
    def _context_step(self) -> int:
        return int(self.net.first_degree == 0)

    def _invert(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
        weights, direct = self._in_steps(dtype)
        steps = F.pad(z.index_select(1, self.order).to(dtype), (self._context_step, 0))
        with without_autocast(z):
            x, log_det = self._steps(steps, weights, direct, self._offsets(context, dtype))
            if self._context_step:
                zero = steps.new_zeros(1)
                x = x[:, 1:]
                log_det = log_det - self.invert_step(0, zero, zero.new_zeros(1, self.net.num_params))[1]
        return x.index_select(1, self.order.argsort()).to(z.dtype), log_det

    def _steps(self, z, weights, direct, offsets) -> tuple[Tensor, Tensor]:
        """Return the inverse, in the order of the steps, and its log-determinant."""
        return made_invert(z, weights, direct, offsets, self.net.activation, self.invert_step)

    def invert_step(self, step: int, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Invert the transform of one value, (B,), given its parameters (B, P)."""
        x, log_derivative = self.transform(z[:, None], params[:, None], inverse=True)
        return x[:, 0], log_derivative

    def _invert_naively(
        self, z: Tensor, context: Tensor | None, kept: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        x, columns = torch.zeros_like(z), torch.arange(z.shape[1], device=z.device)
        for index in self.order:
            params = self._run(x, context, kept)[0]
            x = torch.where(columns == index, self.transform(z, params, inverse=True)[0], x)
        return x, self.transform(z, self._run(x, context, kept)[0], inverse=True)[1]


def _update_masks(transform: MaskedAutoregressive, _) -> None:
    for i, mask in enumerate(transform.net.masks(transform.order)):
        setattr(transform, f"_mask{i}", mask)  # the previous one may be on the meta device


class _Implicit(torch.autograd.Function):
    """Zeros with the implicit function's gradient by the residual z - f(x): J⁻ᵀ·grad."""

    @staticmethod
    def forward(ctx, residual, transform, x, params, *sums):
        ctx.transform = transform
        # Of the forward pass, as torch.func.functional_call gives parameters for the time of a call alone.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        ctx.last_first, ctx.matrices = transform.order.flip(0), transform._in_steps(dtype)
        zeros = torch.zeros_like(residual)
        ctx.save_for_backward(zeros, x, params, *sums)
        return zeros

    @staticmethod
    @without_second_derivative("inverse", "torch.func.grad")
    def backward(ctx, grad):
        transform, (_, x, params, *sums) = ctx.transform, ctx.saved_tensors
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        net = transform.net
        last_first = ctx.last_first
        with torch.enable_grad():
            x, params, *sums = (t.detach().to(dtype).requires_grad_() for t in (x, params, *sums))
            total = transform.transform(x, params, inverse=False)[0].sum()
            diagonal, partial = torch.autograd.grad(total, (x, params))
            units = [ACTIVATIONS[net.activation](s).sum() for s in sums]
            slopes = torch.autograd.grad(units, sums) if sums else ()
        backwards = [s.flip(1) for s in reversed(slopes)]
        weights, direct = ctx.matrices

        def turned(weight):  # the parameters of one value keep their order, as in `partial`
            return weight.t().flip(0)

        outputs, context_step = (-1, net.num_params), transform._context_step
        last = weights[-1].unflatten(0, outputs).flip(0).flatten(0, 1)
        weights = [turned(weight.flip(0)) for weight in weights[:-1]]
        weights = [turned(last), *reversed(weights)]
        if direct is not None:
            direct = turned(direct.unflatten(0, outputs).flip(0).flatten(0, 1))
        v = made_solve(
            F.pad(grad.index_select(1, last_first).to(dtype), (0, context_step)),
            F.pad(diagonal.index_select(1, last_first), (0, context_step), value=1.0),
            F.pad(partial.index_select(1, last_first), (0, 0, 0, context_step)),
            torch.cat(backwards, 1) if backwards else x.new_zeros(x.shape[0], 0),
            weights,
            direct,
        )
        v = v[:, : len(last_first)].index_select(1, last_first.argsort()).to(grad.dtype)
        return (v, *[None] * (len(ctx.needs_input_grad) - 1))


class MaskedAffineAutoregressive(MaskedAutoregressive):
    """Affine autoregressive transform `z_i = x_i·s_i + t_i` of MAF (arXiv:1705.07057).

    t_i and the raw scale of s_i are functions of the values before x_i. `Inverse` of it is IAF's transform
    (Kingma et al., 2016, arXiv:1606.04934). Its inverse has a kernel on CPUs and is plain PyTorch elsewhere.

    Args:
        num_inputs: D. Samples are (B, D), or of any shape (B, *S) with D values.
        hidden: sizes of the hidden layers; may be empty.
        order: index of the value of each rank; None: 0 to D - 1. `range(D - 1, -1, -1)` reverses the order.
        num_context: number of features of the context (B, num_context); 0 for none.
        activation: of hidden units: "relu", "tanh", "elu" or "silu".
        direct: whether there is also a linear connection from the values to the parameters.
        residual, dropout: of the network, as in `MaskedMLP`.
        scale_map, clamp: as in `gmfast.functional.affine_coupling`.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden: tuple[int, ...] = (64, 64),
        *,
        scale_map: str = "softclip",
        clamp: float = 2.0,
        order: Iterable[int] | Tensor | None = None,
        num_context: int = 0,
        activation: str = "relu",
        direct: bool = False,
        residual: bool = False,
        dropout: float = 0.0,
    ):
        check_affine_options(scale_map, clamp)
        super().__init__(
            num_inputs,
            2,
            hidden,
            order=order,
            num_context=num_context,
            activation=activation,
            direct=direct,
            residual=residual,
            dropout=dropout,
        )
        self.scale_map, self.clamp = scale_map, clamp

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"scale_map={self.scale_map!r}"

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply the affine transform."""
        shift, scale = params.unbind(2)
        return GF.affine_coupling(
            x, shift, scale, scale_map=self.scale_map, clamp=self.clamp, inverse=inverse
        )

    def _steps(self, z, weights, direct, offsets):
        return made_inverse(
            z,
            weights,
            direct,
            offsets,
            activation=self.net.activation,
            scale_map=self.scale_map,
            clamp=self.clamp,
        )


class MaskedSplineAutoregressive(MaskedAutoregressive):
    """Autoregressive spline: rational-quadratic, with linear tails (Durkan et al., 2019, arXiv:1906.04032).

    The bins of each value's spline are functions of the values before it. Slopes start near 1.

    Args:
        num_inputs: D. Samples are (B, D), or of any shape (B, *S) with D values.
        hidden: sizes of the hidden layers; may be empty.
        order: index of the value of each rank; None: 0 to D - 1. `range(D - 1, -1, -1)` reverses the order.
        num_context: number of features of the context (B, num_context); 0 for none.
        activation: of hidden units: "relu", "tanh", "elu" or "silu".
        direct: whether there is also a linear connection from the values to the parameters.
        residual, dropout: of the network, as in `MaskedMLP`.
        num_bins, bound, min_bin_width, min_bin_height, min_derivative: as in
            `gmfast.functional.rational_quadratic_spline`.
        kind, tails, left, right, bottom, top: as in `SplineFunction`; a sequence of tails has one for each
            value.
        identity_init: whether to start as the identity, whatever the context.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden: tuple[int, ...] = (64, 64),
        *,
        num_bins: int = 8,
        bound: float = 3.0,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
        order: Iterable[int] | Tensor | None = None,
        num_context: int = 0,
        activation: str = "relu",
        direct: bool = False,
        residual: bool = False,
        dropout: float = 0.0,
        kind: str = "rational_quadratic",
        tails: str | Sequence[str | None] | None = "linear",
        left: float | None = None,
        right: float | None = None,
        bottom: float | None = None,
        top: float | None = None,
        identity_init: bool = False,
    ):
        options = {
            "bound": bound,
            "min_bin_width": min_bin_width,
            "min_bin_height": min_bin_height,
            "min_derivative": min_derivative,
        }
        box = {"left": left, "right": right, "bottom": bottom, "top": top}
        spline = SplineFunction(num_bins, kind=kind, tails=tails, **options, **box)
        super().__init__(
            num_inputs,
            spline.num_params,
            hidden,
            order=order,
            num_context=num_context,
            activation=activation,
            direct=direct,
            residual=residual,
            dropout=dropout,
        )
        self.num_bins, self.options, self.spline = num_bins, options, spline
        if identity_init:
            self.net.start_at(spline.identity())
        else:
            spline.start_near_identity(self.net.layers[-1].bias)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"num_bins={self.num_bins}, bound={self.options['bound']}"

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply the spline."""
        return self.spline(x, params, inverse)

    def invert_step(self, step: int, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Invert the spline of the value of a step."""
        rank = max(step - self._context_step, 0)
        columns = self.order[rank : rank + 1]
        x, log_derivative = self.spline(z[:, None], params[:, None], inverse=True, columns=columns)
        return x[:, 0], log_derivative


@contextmanager
def naive_inverse(module: nn.Module) -> Iterator[None]:
    """Context manager in which masked autoregressive transforms in `module` are inverted by D full passes.

    That is the definition of the inverse, to which tests compare the incremental one.
    """
    transforms = [part for part in module.modules() if isinstance(part, MaskedAutoregressive)]
    were = [transform.naive for transform in transforms]
    for transform in transforms:
        transform.naive = True
    try:
        yield
    finally:
        for transform, naive in zip(transforms, were, strict=True):
            transform.naive = naive
