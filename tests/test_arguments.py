"""Arguments of a wrong type: the constructors of modules and models name them in one sentence."""

import inspect

import pytest
import torch
from torch import nn

import gmfast.nn as gnn
from gmfast import _check
from gmfast.models import MODELS

MODULES = [getattr(gnn, name) for name in gnn.__all__ if isinstance(getattr(gnn, name), type)]
GIVEN = {
    "base": (3,),
    "channels": 4,
    "conditioner": nn.Linear(2, 4),
    "hidden": (4,),
    "high": 1.0,
    "in_channels": 2,
    "in_features": 2,
    "kernel_size": 3,
    "low": 0.0,
    "net": nn.Linear(2, 6),
    "num_bins": 4,
    "num_components": 2,
    "num_features": 3,
    "num_inputs": 3,
    "num_params": 2,
    "order": (1, 0, 2),
    "out_channels": 2,
    "out_features": 2,
    "shape": (3,),
    "transform": gnn.ConcatELU(),
    "transforms": gnn.ActNorm(3),
}
SHAPES = {"images": (1, 4, 4), "sound": (1, 16), "vectors": (3,)}


def refused(cls, given):
    """Check that each annotated argument of `cls` in turn is refused by its name if it is of no use."""
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        annotated = parameter.annotation is not parameter.empty
        if (
            name == "self"
            or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            or not annotated
        ):
            continue
        with pytest.raises(
            (TypeError, ValueError), match=rf"^{name}: expected .*, got |^[a-z, ]*{name}: expected"
        ):
            cls(**{**given, name: object()})


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_modules(cls):
    parameters = inspect.signature(cls.__init__).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    refused(cls, {name: GIVEN[name] for name in required if name in GIVEN})


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    cls = MODELS[name]
    modality = min(cls.modalities)
    refused(cls, cls.data_arguments(SHAPES[modality], None if modality == "vectors" else 256))


def test_annotations_are_those_of_the_nearest_constructor():
    class Base:
        def __init__(
            self, size: int, sizes: tuple[int, ...] | None = None, rate: float = 1.0, flag: bool = False
        ):
            pass

    class Own(Base):
        def __init__(self, size, **rest):
            super().__init__(3, **rest)

    _check.arguments(Base, {"size": 3, "sizes": [1, 2], "rate": 2, "flag": None})
    _check.arguments(Own, {"size": "any"})
    for name, value, sentence in (
        ("size", 1.5, "size: expected an int, got float"),
        ("size", True, "size: expected an int, got bool"),
        ("size", torch.ones(2), "size: expected an int, got Tensor"),
        ("sizes", 3, "sizes: expected a sequence of ints or None, got int"),
        ("sizes", ("a",), r"sizes: expected a sequence of ints or None, got \('a',\)"),
        ("rate", "1", "rate: expected a number, got str"),
        ("flag", "no", "flag: expected True or False, got str"),
    ):
        with pytest.raises(TypeError, match=f"^{sentence}$"):
            _check.arguments(Own if name != "size" else Base, {name: value})
