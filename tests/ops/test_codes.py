"""Names and integer codes that Python repeats, against those of the compiled library."""

import pytest

from gmfast import _library, diffusion
from gmfast.ops import (
    affine_coupling,
    diffusion_step,
    discretized_logistic_mixture,
    made_inverse,
    q_sample,
)

pytestmark = pytest.mark.skipif(_library._C is None, reason="compares with the compiled library")


def codes(name):
    """The members of an enumeration of C++ as {name: code}."""
    return {member.name: int(member) for member in getattr(_library._C, name)}


def enumerated(names):
    return {name: code for code, name in enumerate(names)}


def test_columns_of_the_diffusion_table():
    assert _library._C.diffusion_columns == tuple(diffusion.COLUMNS)


def test_scale_maps():
    assert affine_coupling._MAPS[0] is None
    assert codes("ScaleMap") == enumerated(["none", *affine_coupling._MAPS[1:]])


def test_packings():
    assert affine_coupling._PACKINGS[0] is None
    assert codes("Packing") == enumerated(["separate", *affine_coupling._PACKINGS[1:]])


def test_activations_of_masked_autoencoders():
    assert codes("MadeActivation") == enumerated(made_inverse.ACTIVATIONS)


def test_targets_of_q_sample():
    names = {"none": "_NONE", "epsilon": "_EPSILON", "velocity": "_VELOCITY", "flow": "_FLOW"}
    assert codes("NoiseTarget") == {name: getattr(q_sample, own) for name, own in names.items()}


def test_reductions():
    assert codes("Reduction") == enumerated(discretized_logistic_mixture.REDUCTIONS)


def test_options_of_diffusion_step():
    names = ["unconditional", "variance", "noise", "steps", "seeds", "seed", "x0", "kept"]
    assert codes("DiffusionOption") == {name: getattr(diffusion_step, f"_{name.upper()}") for name in names}
