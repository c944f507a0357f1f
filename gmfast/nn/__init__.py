"""Modules around the operations of `gmfast.functional`."""

from .. import _check
from .activation import ConcatELU, GatedActivation
from .actnorm import ActNorm
from .autoregressive import MaskedAffineAutoregressive, MaskedSplineAutoregressive, naive_inverse
from .conv import CausalConv1d, MaskedConv2d
from .coupling import AffineCoupling, LogisticMixtureCoupling, SplineCoupling
from .flow import Flow
from .invertible_conv import InvertibleConv1x1
from .made import MaskedLinear, MaskedMLP
from .transform import Inverse, Permute, Sequential, Split, Squeeze2d, Transform

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "CausalConv1d",
    "ConcatELU",
    "Flow",
    "GatedActivation",
    "Inverse",
    "InvertibleConv1x1",
    "LogisticMixtureCoupling",
    "MaskedAffineAutoregressive",
    "MaskedConv2d",
    "MaskedLinear",
    "MaskedMLP",
    "MaskedSplineAutoregressive",
    "Permute",
    "Sequential",
    "SplineCoupling",
    "Split",
    "Squeeze2d",
    "Transform",
    "naive_inverse",
]

for _name in __all__:
    if isinstance(globals()[_name], type):
        _check.annotated(globals()[_name])
