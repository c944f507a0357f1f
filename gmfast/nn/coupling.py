"""Coupling layers: some channels are transformed with parameters that a network computes from the others."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .. import _check
from .. import functional as GF
from .spline import SplineFunction, start_at_identity
from .transform import Transform


def check_affine_options(scale_map: str, clamp: float) -> None:
    """Raise what `affine_coupling` raises for these options, by calling it with an empty batch."""
    nothing = torch.empty(0, 1, device="cpu")
    GF.affine_coupling(nothing, nothing, nothing, scale_map=scale_map, clamp=clamp)


class Coupling(Transform):
    """Base class of coupling layers: splits the input, and checks what the conditioner returns.

    The last `transformed` channels change (half of them, rounded down, if None), and the conditioner sees
    those before. With `mask` (broadcastable to `(C, *S)`) all channels are transformed where it is 0, and the
    conditioner sees all channels, with zeros where it is 0.

    `conditioner(a)`, or `conditioner(a, context)` where there is a context, returns `num_params` parameters
    for each element to be transformed: `(B, num_params * C2, *S)`. A subclass defines their meaning.
    """

    num_params: int  #: number of parameters of each element

    def __init__(
        self,
        conditioner: nn.Module | Callable[..., Tensor],
        *,
        transformed: int | None = None,
        mask: Tensor | None = None,
    ):
        super().__init__()
        if mask is not None and transformed is not None:
            raise ValueError(f"transformed: expected None with a mask, got {transformed}")
        if mask is not None:
            _check.tensor("mask", mask)
        if transformed is not None:
            _check.at_least(1, transformed=transformed)
        self.conditioner, self.transformed = conditioner, transformed
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Transform `x`, with the parameters that the conditioner computes."""
        return self.transform(x, self.params(x, context), inverse=False)

    def inverse(self, z: Tensor, context=None) -> tuple[Tensor, Tensor]:
        """Transform `z` back; the conditioner sees the same as in `forward`."""
        return self.transform(z, self.params(z, context), inverse=True)

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Transform all of `x`, given the conditioner's output; returns it and the log-determinant."""
        raise NotImplementedError

    def split_sizes(self, x: Tensor) -> tuple[int, int]:
        """Return the numbers of channels that pass and that change.

        Raises:
            ValueError: for an `x` with too few dimensions or channels.
        """
        _check.tensor("x", x)
        _check.floating("x", x)
        if x.dim() < 2:
            raise ValueError(f"x: expected (B, C, *S), got {tuple(x.shape)}")
        channels = x.shape[1]
        if self.mask is not None:
            return 0, channels
        changed = channels // 2 if self.transformed is None else self.transformed
        if not 0 < changed <= channels:
            raise ValueError(
                f"x: expected at least {max(changed, 2)} channels to transform {changed or 1} of them, "
                f"got {channels}"
            )
        return channels - changed, changed

    def params(self, x: Tensor, context=None) -> Tensor:
        """Return the conditioner's output for `x`, the coupling's input or output."""
        return self.condition(x, self.seen(x), context)

    def seen(self, x: Tensor) -> Tensor:
        """Return the conditioner's input for `x`, the coupling's input or output."""
        return x[:, : self.split_sizes(x)[0]] if self.mask is None else x * self.mask

    def add_seen(self, x: Tensor, seen: Tensor) -> Tensor:
        """Add the gradient of `seen(x)` to the gradient of `x`."""
        if self.mask is not None:
            return torch.addcmul(x, seen, self.mask.to(x.dtype))
        kept = seen.shape[1]
        return torch.cat([x[:, :kept] + seen, x[:, kept:]], 1)

    def condition(self, x: Tensor, seen: Tensor, context=None) -> Tensor:
        """Return the conditioner's output for its input `seen`, part of `x`.

        Raises:
            ValueError: for an output of another shape than (B, num_params * C2, *S).
        """
        params = self.conditioner(seen) if context is None else self.conditioner(seen, context)
        expected = (x.shape[0], self.num_params * self.split_sizes(x)[1], *x.shape[2:])
        if tuple(params.shape) != expected:
            raise ValueError(
                f"conditioner: expected {self.num_params} numbers for each element, a result of shape "
                f"{expected}, got {tuple(params.shape)}"
            )
        return params

    def backpropagate(
        self,
        y: Tensor,
        grad_y: Tensor,
        grad_log_det: Tensor,
        context,
        inverse: bool,
        differentiate: Callable[..., tuple[Tensor | None, ...]],
    ) -> tuple[Tensor, Tensor]:
        """Recompute the input with one pass of the conditioner, which sees what the coupling does not change.

        See `gmfast.nn.reversible`. NotImplemented for a subclass with its own `params`.
        """
        if type(self).params is not Coupling.params:
            return NotImplemented
        seen = self.seen(y).detach().requires_grad_()
        with torch.enable_grad():
            params = self.condition(y, seen, context)
        with torch.no_grad():
            x = self.transform(y, params, inverse=not inverse)[0]
        leaf, x = params.detach().requires_grad_(), x.detach().requires_grad_()
        with torch.enable_grad():
            y, log_det = self.transform(x, leaf, inverse=inverse)
        grad_x, grad_params = differentiate((y, log_det), (grad_y, grad_log_det), [x, leaf])
        if params.requires_grad and grad_params is not None:
            (grad_seen,) = differentiate((params,), (grad_params,), [seen])
            if grad_seen is not None:
                grad_x = self.add_seen(grad_x, grad_seen)
        return x.detach(), grad_x

    def extra_repr(self) -> str:
        """Return the arguments for `repr`; a subclass puts its own before them."""
        if self.mask is not None:
            return f"mask={tuple(self.mask.shape)}"
        return "" if self.transformed is None else f"transformed={self.transformed}"


def _listed(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


class AffineCoupling(Coupling):
    """Affine coupling: `y = x·s + t` of the last channels, s and t computed from the first ones.

    From NICE (arXiv:1410.8516), RealNVP (arXiv:1605.08803) and Glow (arXiv:1807.03039); computed by
    `gmfast.functional.affine_coupling`. Of an odd number of channels the first part, which passes, is the
    larger: of 5 channels the conditioner sees 3, and 2 change.

    Args:
        conditioner: a network, called as `conditioner(a)` with the first C - C2 channels, or, where there is
            a context, as `conditioner(a, context)`. It returns `(B, 2*C2, *S)`: all shifts, then all raw
            scales; alternating if `interleaved`; the shifts alone, `(B, C2, *S)`, if `additive`.
        scale_map, shift_first, clamp, recompute: as in `gmfast.functional.affine_coupling`.
        additive: `y = x + t`.
        interleaved: channel 2i of the conditioner's output is shift i, channel 2i + 1 raw scale i.
        transformed: C2: of C channels the last C2 change, and the conditioner sees the C - C2 before them.
            None: C // 2, so of 5 channels the conditioner sees 3 and 2 change.
        mask: instead, broadcastable to `(C, *S)`: elements pass where it is not 0 and change where it is 0;
            the conditioner sees all C channels, as `x * mask`, and C2 is C.
    """

    def __init__(
        self,
        conditioner: nn.Module | Callable[..., Tensor],
        *,
        scale_map: str = "exp",
        shift_first: bool = False,
        clamp: float = 2.0,
        additive: bool = False,
        interleaved: bool = False,
        recompute: bool = False,
        transformed: int | None = None,
        mask: Tensor | None = None,
    ):
        super().__init__(conditioner, transformed=transformed, mask=mask)
        check_affine_options(scale_map, clamp)
        self.num_params = 1 if additive else 2
        self.scale_map, self.shift_first, self.clamp = scale_map, shift_first, clamp
        self.recompute = recompute
        self.packed = None if additive else "interleaved" if interleaved else "chunk"

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Transform all of `x`, given the conditioner's output."""
        return GF.affine_coupling(
            x,
            params,
            None,
            scale_map=self.scale_map,
            shift_first=self.shift_first,
            clamp=self.clamp,
            mask=self.mask,
            inverse=inverse,
            packed=self.packed,
            recompute=self.recompute,
        )

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        if self.packed is None:
            return _listed("additive=True", super().extra_repr())
        return _listed(
            f"scale_map={self.scale_map!r}",
            f"clamp={self.clamp}" if self.scale_map in ("tanh", "atan") else "",
            "shift_first=True" if self.shift_first else "",
            "interleaved=True" if self.packed == "interleaved" else "",
            super().extra_repr(),
        )


class ElementwiseCoupling(Coupling):
    """A coupling of an elementwise transform with several parameters.

    Channel `c * num_params + p` of the conditioner's output is parameter p of transformed channel c.
    """

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Transform all of `x`, given the conditioner's output."""
        kept, changed = self.split_sizes(x)
        params = params.unflatten(1, (changed, self.num_params)).movedim(2, -1)
        first, last = x.split([kept, changed], 1)
        if self.mask is None:
            last, log_det = self.transform_elements(last, params, inverse, "sum")
            return torch.cat([first, last], 1) if kept else last, log_det
        y, log_derivative = self.transform_elements(x, params, inverse, "none")
        keep = self.mask != 0
        log_det = torch.where(keep, 0.0, log_derivative).flatten(1).sum(1)
        return torch.where(keep, x, y), log_det

    def transform_elements(
        self, x: Tensor, params: Tensor, inverse: bool, reduction: str
    ) -> tuple[Tensor, Tensor]:
        """Transform `x (B, C2, *S)`, given `params (B, C2, *S, num_params)`.

        Returns:
            The result and the log-determinant (B,), or with `reduction="none"` each element's log-derivative.
        """
        raise NotImplementedError


class SplineCoupling(ElementwiseCoupling):
    """Spline coupling: rational-quadratic, with linear tails (Durkan et al., 2019, arXiv:1906.04032).

    Computed by `gmfast.functional.rational_quadratic_spline`; with other ends, on other intervals and of
    other kinds by `SplineFunction`.

    Args:
        conditioner: a network, called as `conditioner(a)` with the first C - C2 channels, or, where there is
            a context, as `conditioner(a, context)`. It returns `(B, num_params*C2, *S)`: for each element its
            raw widths, heights and derivatives. `num_params` is 3*num_bins - 1 with linear tails, 3*num_bins
            with circular ones, else 3*num_bins + 1.
        num_bins, bound, min_bin_width, min_bin_height, min_derivative: as in
            `gmfast.functional.rational_quadratic_spline`.
        transformed: C2: of C channels the last C2 change, and the conditioner sees the C - C2 before them.
            None: C // 2, so of 5 channels the conditioner sees 3 and 2 change.
        mask: instead, broadcastable to `(C, *S)`: elements pass where it is not 0 and change where it is 0;
            the conditioner sees all C channels, as `x * mask`, and C2 is C.
        kind, tails, left, right, bottom, top: as in `SplineFunction`; a sequence of tails has one for each
            channel that changes.
        identity_init: whether to set the conditioner's last layer so that the coupling starts as the
            identity.
    """

    def __init__(
        self,
        conditioner: nn.Module | Callable[..., Tensor],
        *,
        num_bins: int = 8,
        bound: float = 3.0,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
        transformed: int | None = None,
        mask: Tensor | None = None,
        kind: str = "rational_quadratic",
        tails: str | Sequence[str | None] | None = "linear",
        left: float | None = None,
        right: float | None = None,
        bottom: float | None = None,
        top: float | None = None,
        identity_init: bool = False,
    ):
        super().__init__(conditioner, transformed=transformed, mask=mask)
        self.options = {
            "bound": bound,
            "min_bin_width": min_bin_width,
            "min_bin_height": min_bin_height,
            "min_derivative": min_derivative,
        }
        box = {"left": left, "right": right, "bottom": bottom, "top": top}
        self.spline = SplineFunction(num_bins, kind=kind, tails=tails, **self.options, **box)
        self.num_bins, self.num_params = num_bins, self.spline.num_params
        if identity_init:
            start_at_identity(conditioner, self.spline.identity())

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return _listed(f"num_bins={self.num_bins}, bound={self.options['bound']}", super().extra_repr())

    def transform_elements(
        self, x: Tensor, params: Tensor, inverse: bool, reduction: str
    ) -> tuple[Tensor, Tensor]:
        """Apply the spline."""
        return self.spline(x, params, inverse, reduction)


class LogisticMixtureCoupling(Coupling):
    """Flow++'s coupling: logit of a logistic mixture's CDF, then affine (Ho et al., 2019, arXiv:1902.00275).

    Computed by `gmfast.functional.logistic_mixture_cdf`, then `y = x·exp(a) + b`.

    Args:
        conditioner: a network, called as `conditioner(a)` with the first C - C2 channels, or, where there is
            a context, as `conditioner(a, context)`. It returns `(B, (2 + 3*num_components)*C2, *S)`: for each
            element b, a, and its K logits, means and log_scales.
        num_components: K.
        scale_map, clamp: of a, as in `gmfast.functional.affine_coupling`.
        transformed: C2: of C channels the last C2 change, and the conditioner sees the C - C2 before them.
            None: C // 2, so of 5 channels the conditioner sees 3 and 2 change.
        mask: instead, broadcastable to `(C, *S)`: elements pass where it is not 0 and change where it is 0;
            the conditioner sees all C channels, as `x * mask`, and C2 is C.
    """

    def __init__(
        self,
        conditioner: nn.Module | Callable[..., Tensor],
        *,
        num_components: int = 32,
        scale_map: str = "tanh",
        clamp: float = 2.0,
        transformed: int | None = None,
        mask: Tensor | None = None,
    ):
        super().__init__(conditioner, transformed=transformed, mask=mask)
        _check.at_least(1, num_components=num_components)
        check_affine_options(scale_map, clamp)
        self.num_components, self.num_params = num_components, 2 + 3 * num_components
        self.scale_map, self.clamp = scale_map, clamp

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return _listed(
            f"num_components={self.num_components}, scale_map={self.scale_map!r}", super().extra_repr()
        )

    def transform(self, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Transform all of `x`, given the conditioner's output."""
        kept, changed = self.split_sizes(x)
        # One split, whose backward concatenates the gradients of all parts at once.
        elements = params.unflatten(1, (changed, self.num_params))
        shift, scale, *mixture = elements.split([1, 1] + [self.num_components] * 3, 2)
        shift, scale = shift.squeeze(2), scale.squeeze(2)
        mixture = [m.movedim(2, -1) for m in mixture]
        mask = None if self.mask is None else self.mask != 0

        def cdf(x, inverse):
            if mask is None:
                first, last = x.split([kept, changed], 1)
                last, log_det = GF.logistic_mixture_cdf(last, *mixture, inverse=inverse)
                return torch.cat([first, last], 1), log_det
            y, log_derivative = GF.logistic_mixture_cdf(x, *mixture, inverse=inverse, reduction="none")
            return torch.where(mask, x, y), torch.where(mask, 0.0, log_derivative).flatten(1).sum(1)

        def affine(x, inverse):
            return GF.affine_coupling(
                x, shift, scale, scale_map=self.scale_map, clamp=self.clamp, mask=self.mask, inverse=inverse
            )

        first, second = (affine, cdf) if inverse else (cdf, affine)
        x, log_det = first(x, inverse)
        x, more = second(x, inverse)
        return x, log_det + more
