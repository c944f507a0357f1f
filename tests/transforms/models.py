"""Every model of `gmfast.models`, its likelihood or network and its loss."""

import torch
from torch import nn
from transforms.harness import Subject

from gmfast.models import MODELS

IMAGE = (1, 4, 4)
UNET = {"channels": 4, "multipliers": (1, 2), "num_blocks": 1, "attention": (2,), "dropout": 0.0}
SIGMAS = {"sigma_min": 0.01, "sigma_max": 10.0}

#: By name in the registry, the arguments of a small model.
OPTIONS = {
    "consistency": {**UNET, **SIGMAS, "first_levels": 4, "last_levels": 8, "total_steps": 1000},
    "ddpm": {**UNET, "num_timesteps": 20, "objective": "hybrid"},
    "edm": {**UNET, **SIGMAS},
    "energy": {"channels": 4, "num_scales": 2, "langevin_steps": 2, "buffer_size": 8},
    "flow_matching": UNET,
    "flowpp": {
        "num_couplings": (1, 1, 1),
        "num_filters": 4,
        "num_blocks": 1,
        "num_components": 2,
        "num_heads": 2,
        "dropout": 0.0,
        "dequantizer_couplings": 1,
        "dequantizer_filters": 4,
        "dequantizer_blocks": 1,
    },
    "gated_pixelcnn": {"nr_layers": 2, "nr_filters": 4, "kernel_size": 3, "nr_out_filters": 4},
    "glow": {"num_scales": 1, "num_steps": 2, "width": 4},
    "iaf": {"image_shape": (3,), "hidden": (4,), "num_transforms": 2, "num_levels": None},
    "made": {"hidden": (4,), "num_orders": 2, "nr_logistic_mix": 2},
    "maf": {"image_shape": (3,), "hidden": (4,), "num_transforms": 2, "num_levels": None},
    "ncsn": {**UNET, **SIGMAS},
    "nice": {"num_couplings": 2, "hidden": 4, "num_hidden": 1},
    "pixelcnn": {"nr_resnet": 1, "nr_filters": 4, "nr_out_filters": 4},
    "pixelcnnpp": {"nr_resnet": 1, "nr_filters": 4, "nr_logistic_mix": 2, "dropout": 0.0},
    "realnvp": {"num_scales": 2, "num_blocks": 1, "num_filters": 4},
    "spline_flow": {"image_shape": (3,), "num_transforms": 2, "num_bins": 4, "width": 4, "num_levels": None},
    "wavenet": {
        "length": 8,
        "num_cycles": 1,
        "layers_per_cycle": 2,
        "residual_channels": 4,
        "skip_channels": 4,
    },
}
# The energy model's training writes its replay buffer: its loss is that of eval mode.
#: Models whose rows are their network and their loss, as their likelihood is a sum over steps, or none.
DENOISERS = ("ddpm", "edm", "flow_matching", "ncsn", "consistency")


class Call(nn.Module):
    """A method of a model as a module's forward, with the same random numbers each time."""

    def __init__(self, model, method, **options):
        super().__init__()
        self.model, self.method, self.options = model, method, options

    def forward(self, x):
        if not torch.compiler.is_compiling():
            torch.manual_seed(0)
        return getattr(self.model, self.method)(x, **self.options)


class Denoise(nn.Module):
    """A model's network at noise levels of each sample as a module's forward."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, level):
        return self.model(x, level)


def build(name, training=False):
    """Make a small model whose parameters are all nonzero."""
    options = {"num_levels": 4, **OPTIONS[name]}
    if name != "wavenet":
        options = {"image_shape": IMAGE, **options}
    model = MODELS[name](**options).train(training)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for module in model.modules():
            if hasattr(module, "initialized"):
                module.initialized.fill_(True)
    return model


def subjects(name):
    model = MODELS[name]
    vectors = "num_levels" in OPTIONS[name]

    def inputs(batch, other):
        if vectors:
            x = torch.randn(batch, 3, dtype=torch.double)
        else:
            shape = (1, 8) if name == "wavenet" else IMAGE
            x = torch.randint(4, (batch, *shape)).double() * 2 / 3 - 1
        return (x,)

    def seeded(batch, other):
        given = inputs(batch, other)
        torch.manual_seed(0)
        return given

    def noisy(batch, other):
        return *inputs(batch, other), torch.arange(1, batch + 1).double()

    title = model.__name__
    if name in DENOISERS:
        yield Subject(
            f"{title}.forward",
            lambda: Denoise(build(name)),
            noisy,
            wanted=(0, 1),
            additive=False,
            backend="eager",
        )
    elif name == "energy":
        yield Subject(
            f"{title}.energy", lambda: Call(build(name), "energy"), inputs, additive=False, backend="eager"
        )
    else:
        seed = {"seed": 3} if model.family == "flow" else {}
        yield Subject(
            f"{title}.log_prob",
            lambda: Call(build(name), "log_prob", **seed),
            inputs,
            additive=False,
            backend="eager",
        )
    yield Subject(
        f"{title}.loss",
        lambda: Call(build(name, training=name != "energy"), "loss"),
        seeded,
        additive=False,
        backend="eager",
    )


SUBJECTS = [subject for name in MODELS for subject in subjects(name)]
