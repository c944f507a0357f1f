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

SMALL_WAVENET = {"num_cycles": 2, "layers_per_cycle": 8, "residual_channels": 32, "skip_channels": 64}

#: Arguments that suit a data set better than the published ones, which are for larger data.
DEFAULTS = {
    ("gated_pixelcnn", "digits"): {"nr_layers": 5, "nr_filters": 32, "kernel_size": 3, "nr_out_filters": 64},
    ("gated_pixelcnn", "photos"): {"nr_layers": 5, "nr_filters": 48, "kernel_size": 3, "nr_out_filters": 96},
    ("made", "digits"): {"num_orders": 16, "nr_logistic_mix": 5},
    ("made", "binary-digits"): {"num_orders": 16, "head": "bernoulli"},
    ("pixelcnn", "digits"): {"nr_resnet": 4, "nr_filters": 24, "nr_out_filters": 64},
    ("pixelcnn", "photos"): {"nr_resnet": 4, "nr_filters": 36, "nr_out_filters": 96},
    ("pixelcnnpp", "digits"): {"nr_resnet": 1, "nr_filters": 32, "nr_logistic_mix": 5, "dropout": 0.3},
    ("wavenet", "speech"): SMALL_WAVENET,
    ("wavenet", "flute"): SMALL_WAVENET,
}

__all__ = ["DATA", "DEFAULTS", "MADE", "MODELS", "GatedPixelCNN", "PixelCNN", "PixelCNNPP", "WaveNet"]
