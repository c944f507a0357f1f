"""Reference models, one family per file.

A model takes `image_shape` (of sound, `length`), `num_levels` and, if it can be conditional, `num_labels`
from the data, and has `config` (its constructor's arguments), `loss(x, label)`, `sample(n, seed=...)` and,
where the paper initialises from data, `initialize(x, label)`.
"""

from .consistency import ConsistencyModel
from .ddpm import DDPM
from .edm import EDM
from .energy import EnergyModel
from .flow_matching import FlowMatching
from .flowpp import FlowPP
from .gated_pixelcnn import GatedPixelCNN
from .glow import Glow
from .iaf import IAF
from .made import MADE
from .maf import MAF
from .ncsn import NCSN
from .nice import NICE
from .pixelcnn import PixelCNN
from .pixelcnnpp import PixelCNNPP
from .realnvp import RealNVP
from .spline_flow import SplineFlow
from .wavenet import WaveNet

#: What `gmfast train` calls each model.
MODELS = {
    "consistency": ConsistencyModel,
    "ddpm": DDPM,
    "edm": EDM,
    "energy": EnergyModel,
    "flow_matching": FlowMatching,
    "flowpp": FlowPP,
    "gated_pixelcnn": GatedPixelCNN,
    "glow": Glow,
    "iaf": IAF,
    "made": MADE,
    "maf": MAF,
    "ncsn": NCSN,
    "nice": NICE,
    "pixelcnn": PixelCNN,
    "pixelcnnpp": PixelCNNPP,
    "realnvp": RealNVP,
    "spline_flow": SplineFlow,
    "wavenet": WaveNet,
}

#: What a model is trained on unless told otherwise, where that is not the digits.
DATA = {
    "iaf": "moons",
    "maf": "moons",
    "spline_flow": "moons",
    "wavenet": "speech",
}

_PHOTOS = {"size": 16, "batch_size": 32}

#: Settings of `gmfast train` that suit a model and a data set (None: any), to train in minutes on two CPU
#: cores. Where there is none, the published model and the defaults of `gmfast.train.Settings` apply.
DEFAULTS = {
    ("flowpp", "digits"): {
        "lr": 0.002,
        "options": {
            "num_couplings": (4, 2, 3),
            "num_filters": 32,
            "num_blocks": 1,
            "num_components": 4,
            "dropout": 0.1,
            "dequantizer_couplings": 2,
            "dequantizer_filters": 16,
            "dequantizer_blocks": 1,
        },
    },
    ("flowpp", "photos"): {
        **_PHOTOS,
        "lr": 0.002,
        "options": {
            "num_couplings": (4, 2, 3),
            "num_filters": 32,
            "num_blocks": 1,
            "num_components": 4,
            "dropout": 0.0,
            "dequantizer_couplings": 2,
            "dequantizer_filters": 16,
            "dequantizer_blocks": 1,
        },
    },
    ("gated_pixelcnn", "digits"): {
        "lr": 0.002,
        "options": {"nr_layers": 5, "nr_filters": 32, "kernel_size": 3, "nr_out_filters": 64},
    },
    ("gated_pixelcnn", "photos"): {
        **_PHOTOS,
        "lr": 0.002,
        "options": {"nr_layers": 5, "nr_filters": 48, "kernel_size": 3, "nr_out_filters": 96},
    },
    ("glow", "digits"): {
        "lr": 0.002,
        "options": {"num_scales": 2, "num_steps": 8, "width": 64, "alpha": 0.05},
    },
    ("glow", "photos"): {
        **_PHOTOS,
        "lr": 0.002,
        "options": {"num_scales": 2, "num_steps": 8, "width": 96},
    },
    ("made", "digits"): {"lr": 0.003, "options": {"num_orders": 16, "nr_logistic_mix": 5}},
    ("made", "binary-digits"): {"lr": 0.003, "options": {"num_orders": 16, "head": "bernoulli"}},
    # Its layers grow with the square of the number of values: small photos.
    ("made", "photos"): {"size": 8, "lr": 0.003, "options": {"nr_logistic_mix": 5}},
    ("nice", "digits"): {
        "lr": 0.001,
        "options": {"num_couplings": 8, "hidden": 256, "num_hidden": 2, "alpha": 0.05},
    },
    ("nice", "photos"): {
        "size": 8,
        "lr": 0.001,
        "options": {"num_couplings": 8, "hidden": 256, "num_hidden": 2, "alpha": 0.05},
    },
    ("pixelcnn", "digits"): {
        "lr": 0.002,
        "options": {"nr_resnet": 4, "nr_filters": 24, "nr_out_filters": 64},
    },
    ("pixelcnn", "photos"): {
        **_PHOTOS,
        "lr": 0.002,
        "options": {"nr_resnet": 4, "nr_filters": 36, "nr_out_filters": 96},
    },
    ("pixelcnnpp", "digits"): {
        "options": {"nr_resnet": 1, "nr_filters": 32, "nr_logistic_mix": 5, "dropout": 0.3},
    },
    ("pixelcnnpp", "photos"): {
        **_PHOTOS,
        "options": {"nr_resnet": 1, "nr_filters": 32, "dropout": 0.0},
    },
    ("realnvp", "digits"): {"lr": 0.002, "options": {"num_blocks": 2, "num_filters": 24}},
    ("realnvp", "photos"): {
        **_PHOTOS,
        "lr": 0.002,
        "options": {"num_blocks": 2, "num_filters": 32},
    },
    ("wavenet", None): {
        "batch_size": 4,
        "lr": 0.002,
        "options": {"num_cycles": 2, "layers_per_cycle": 8, "residual_channels": 32, "skip_channels": 64},
    },
}
#: Of the models with a U-Net; what the second entry adds is for photos.
_UNETS = {
    "consistency": {"first_levels": 10, "last_levels": 160, "total_steps": 2000, "log_sigma_std": 1.6},
    "ddpm": {},
    "edm": {},
    "flow_matching": {},
    "ncsn": {},
}
for _name, _options in _UNETS.items():
    _unet = {"channels": 32, "multipliers": (1, 2), "num_blocks": 1, "attention": (4,), "dropout": 0.0}
    _sigma = {"sigma_data": 0.75} if _name in ("consistency", "edm") else {}
    DEFAULTS[_name, "digits"] = {"lr": 0.001, "options": {**_unet, **_options, **_sigma}}
    _unet = {**_unet, "multipliers": (1, 2, 2), "attention": (4, 8)}
    DEFAULTS[_name, "photos"] = {**_PHOTOS, "lr": 0.001, "options": {**_unet, **_options}}
# Chosen by the bound on a fifth of the training images, of a model trained on the others.
DEFAULTS["ddpm", "digits"]["options"]["beta_start"] = 0.002
_ENERGY = {"channels": 32, "num_scales": 2, "langevin_steps": 20, "buffer_size": 1024}
DEFAULTS["energy", "digits"] = {"lr": 0.0003, "options": _ENERGY}
DEFAULTS["energy", "photos"] = {**_PHOTOS, "lr": 0.0003, "options": {**_ENERGY, "num_scales": 3}}
_TAKE_VECTORS = ("iaf", "maf", "spline_flow")
for _name in ("iaf", "maf"):
    DEFAULTS[_name, "digits"] = {"lr": 0.002, "options": {"hidden": (128, 128)}}
    # Their layers grow with the square of the number of values: small photos.
    DEFAULTS[_name, "photos"] = {"size": 8, "lr": 0.002, "options": {"hidden": (128, 128)}}
DEFAULTS["spline_flow", "digits"] = {"lr": 0.002, "options": {"num_transforms": 4, "width": 48}}
DEFAULTS["spline_flow", "photos"] = {**_PHOTOS, **DEFAULTS["spline_flow", "digits"]}
#: Small networks, for points of the plane.
_VECTORS = {"batch_size": 256, "lr": 0.003}
for _name in ("moons", "circles", "swiss-roll", "checkerboard", "gaussians", "spirals"):
    DEFAULTS["maf", _name] = {**_VECTORS, "options": {"num_transforms": 8}}
    DEFAULTS["iaf", _name] = {**_VECTORS, "options": {"num_transforms": 8}}
    DEFAULTS["spline_flow", _name] = _VECTORS
for _model in (
    *_UNETS,
    "energy",
    "flowpp",
    "gated_pixelcnn",
    "glow",
    "nice",
    "pixelcnn",
    "pixelcnnpp",
    "realnvp",
    *_TAKE_VECTORS,
):
    DEFAULTS[_model, "binary-digits"] = DEFAULTS[_model, "digits"]

__all__ = [
    "DATA",
    "DDPM",
    "DEFAULTS",
    "EDM",
    "IAF",
    "MADE",
    "MAF",
    "MODELS",
    "NCSN",
    "NICE",
    "ConsistencyModel",
    "EnergyModel",
    "FlowMatching",
    "FlowPP",
    "GatedPixelCNN",
    "Glow",
    "PixelCNN",
    "PixelCNNPP",
    "RealNVP",
    "SplineFlow",
    "WaveNet",
]
