"""Reference models, one family per file.

A model takes `image_shape` (of sound, `length`), `num_levels` and, if it can be conditional, `num_labels`
from the data, and has `config` (its constructor's arguments), `loss(x, label)`, `sample(n, seed=...)` and,
where the paper initialises from data, `initialize(x, label)`.
"""

from .gated_pixelcnn import GatedPixelCNN
from .made import MADE
from .pixelcnn import PixelCNN
from .pixelcnnpp import PixelCNNPP
from .wavenet import WaveNet

#: What `gmfast train` calls each model.
MODELS = {
    "gated_pixelcnn": GatedPixelCNN,
    "made": MADE,
    "pixelcnn": PixelCNN,
    "pixelcnnpp": PixelCNNPP,
    "wavenet": WaveNet,
}

#: What a model is trained on unless told otherwise, where that is not the digits.
DATA = {
    "wavenet": "speech",
}

_PHOTOS = {"size": 16, "batch_size": 32}

#: Settings of `gmfast train` that suit a model and a data set (None: any), to train in minutes on two CPU
#: cores. Where there is none, the published model and the defaults of `gmfast.train.Settings` apply.
DEFAULTS = {
    ("gated_pixelcnn", "digits"): {
        "lr": 0.002,
        "options": {"nr_layers": 5, "nr_filters": 32, "kernel_size": 3, "nr_out_filters": 64},
    },
    ("gated_pixelcnn", "photos"): {
        **_PHOTOS,
        "lr": 0.002,
        "options": {"nr_layers": 5, "nr_filters": 48, "kernel_size": 3, "nr_out_filters": 96},
    },
    ("made", "digits"): {"lr": 0.003, "options": {"num_orders": 16, "nr_logistic_mix": 5}},
    ("made", "binary-digits"): {"lr": 0.003, "options": {"num_orders": 16, "head": "bernoulli"}},
    # Its layers grow with the square of the number of values: small photos.
    ("made", "photos"): {"size": 8, "lr": 0.003, "options": {"nr_logistic_mix": 5}},
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
    ("wavenet", None): {
        "batch_size": 4,
        "lr": 0.002,
        "options": {"num_cycles": 2, "layers_per_cycle": 8, "residual_channels": 32, "skip_channels": 64},
    },
}
for _model in ("gated_pixelcnn", "pixelcnn", "pixelcnnpp"):
    DEFAULTS[_model, "binary-digits"] = DEFAULTS[_model, "digits"]

__all__ = ["DATA", "DEFAULTS", "MADE", "MODELS", "GatedPixelCNN", "PixelCNN", "PixelCNNPP", "WaveNet"]
