"""Reference models, one family per file.

A model takes `image_shape`, `num_levels` and `num_labels` from the data, and has `config` (its constructor's
arguments), `loss(x, label)`, `sample(n, seed=...)` and, where the paper initialises from data,
`initialize(x, label)`.
"""

from .pixelcnnpp import PixelCNNPP

#: What `gmfast train` calls each model.
MODELS = {
    "pixelcnnpp": PixelCNNPP,
}

#: Arguments that suit a data set better than the published ones, which are for large images.
DEFAULTS = {
    ("pixelcnnpp", "digits"): {"nr_resnet": 1, "nr_filters": 32, "nr_logistic_mix": 5, "dropout": 0.3},
}

__all__ = ["DEFAULTS", "MODELS", "PixelCNNPP"]
