"""Reference models: a package a family, a file a paper, all on the contract of `gmfast.models.base.Model`.

Importing this package imports no family: a model's module is loaded when its class is first asked for.
"""

from typing import TYPE_CHECKING, Any

from .registry import MODELS

if TYPE_CHECKING:
    from .autoregressive.gated_pixelcnn import GatedPixelCNN
    from .autoregressive.made import MADE
    from .autoregressive.pixelcnn import PixelCNN
    from .autoregressive.pixelcnnpp import PixelCNNPP
    from .autoregressive.wavenet import WaveNet
    from .base import Batch, Model, Objective, Player
    from .diffusion.consistency import ConsistencyModel
    from .diffusion.ddpm import DDPM
    from .diffusion.edm import EDM
    from .diffusion.flow_matching import FlowMatching
    from .diffusion.ncsn import NCSN
    from .energy import EnergyModel
    from .flows.flowpp import FlowPP
    from .flows.glow import Glow
    from .flows.iaf import IAF
    from .flows.maf import MAF
    from .flows.nice import NICE
    from .flows.realnvp import RealNVP
    from .flows.spline_flow import SplineFlow

__all__ = [
    "DDPM",
    "EDM",
    "IAF",
    "MADE",
    "MAF",
    "MODELS",
    "NCSN",
    "NICE",
    "Batch",
    "ConsistencyModel",
    "EnergyModel",
    "FlowMatching",
    "FlowPP",
    "GatedPixelCNN",
    "Glow",
    "Model",
    "Objective",
    "PixelCNN",
    "PixelCNNPP",
    "Player",
    "RealNVP",
    "SplineFlow",
    "WaveNet",
]


def __getattr__(name: str) -> Any:
    if name in ("Batch", "Model", "Objective", "Player"):
        from . import base

        return getattr(base, name)
    classes = MODELS.class_names()
    if name in classes:
        return MODELS[classes[name]]
    if name == "DATA":  # the models whose default data are not the digits
        return {model: MODELS[model].data for model in MODELS if MODELS[model].data != "digits"}
    if name == "DEFAULTS":
        return {(model, data): s for model in MODELS for data, s in MODELS[model].settings.items()}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
