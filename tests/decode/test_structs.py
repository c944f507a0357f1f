"""The structs and enumerations by which Python describes decode programs to C++: what is refused."""

import itertools

import pytest
import torch

from gmfast import _library, decode, models
from gmfast.decode.packing import structs
from gmfast.models.autoregressive.heads import HEADS
from gmfast.reference.decode import ACTIVATIONS

pytestmark = pytest.mark.skipif(_library._C is None, reason="needs the compiled library")
C = _library._C


def fields_of(struct):
    names = [name for name, member in vars(type(struct)).items() if isinstance(member, property)]
    return {name: getattr(struct, name) for name in names}


def changed(struct, **fields):
    return type(struct)(**fields_of(struct) | fields)


def example():
    """The arguments of a program with all kinds of steps, and what they point to."""
    torch.manual_seed(0)
    model = models.WaveNet(9, 2, 2, 2, 3, 3, "mixture", 2, 32, num_labels=3, local_channels=2)
    program = decode.compile(model).start(2, torch.tensor([0, 2]))
    return structs(program._packed, program._state)


def all_structs():
    """One of each struct, with several types of fields."""
    if C is None:
        return []
    slot = C.DecodeSlot(value=1, channel=2)
    value = C.DecodeValue(data=64, scale=1, rows=2, row_stride=3, column_stride=4, sample_stride=5)
    tap = C.DecodeTap(value=0, row=-1, column=2, channel=3, channels=4, depthwise=True)
    strip = C.DecodeStrip(
        value=value, row=0, column=1, channel=2, channels=3, depthwise=False, weight=4, panel_size=5
    )
    layer = C.DecodeLayer(
        first_tap=1,
        taps=2,
        weight=3,
        bias=4,
        context=0,
        outputs=5,
        whole_row=True,
        first_row=6,
        row_step=7,
        row_phase=1,
        column_step=8,
        column_phase=2,
        add=slot,
        residual=slot,
        activation=C.DecodeActivation.gate,
        out=slot,
        activated=slot,
        activated_by=C.DecodeActivation.relu,
    )
    draw = C.DecodeDraw(
        params=slot,
        value=slot,
        channels=3,
        first_channel=1,
        ones=True,
        position=-1,
        head=C.DecodeHead.mixture,
        levels=9,
        mixtures=2,
    )
    step = C.DecodeStep(kind=C.DecodeStepKind.draw, begin=1, end=2)
    return [slot, value, tap, strip, layer, draw, step]


every = pytest.mark.parametrize("struct", all_structs(), ids=lambda struct: type(struct).__name__)


@every
def test_fields_are_those_given(struct):
    fields = fields_of(struct)
    assert fields_of(changed(struct)).keys() == fields.keys() and len(fields) > 1
    for name, value in fields.items():
        again = getattr(changed(struct), name)
        assert again == value or fields_of(again) == fields_of(value)
    size = len(type(struct).array([struct]))
    assert size > 0 and len(type(struct).array([struct] * 3)) == 3 * size


@every
def test_fields_go_by_their_names_alone(struct):
    """None may be missing, unknown or given by its position."""
    kind, fields = type(struct), fields_of(struct)
    for name in fields:
        others = {other: value for other, value in fields.items() if other != name}
        for wrong in (others, others | {f"{name}s": fields[name]}):
            with pytest.raises(TypeError, match=rf"^{kind.__name__}: expected the field {name}, got none$"):
                kind(**wrong)
    with pytest.raises(TypeError, match=rf"^{kind.__name__}: expected no field number$"):
        kind(**fields, number=1)
    for arguments in (fields.values(), list(fields.values())[:1]):
        with pytest.raises(TypeError, match="incompatible constructor arguments"):
            kind(*arguments)


@every
def test_fields_of_two_types_cannot_be_swapped(struct):
    swaps = 0
    for (a, x), (b, y) in itertools.combinations(fields_of(struct).items(), 2):
        if type(x) is not type(y):
            swaps += 1
            with pytest.raises(TypeError, match=rf"^{type(struct).__name__}\.({a}|{b}): expected "):
                changed(struct, **{a: y, b: x})
    assert swaps or type(struct) in (C.DecodeSlot, C.DecodeValue)


@every
def test_fields_have_exactly_their_type(struct):
    """Neither another enumeration nor its name or number, no number for a flag, no tuple for a struct."""
    enumerations = [C.DecodeActivation, C.DecodeHead, C.DecodeStepKind, C.DType]
    for name, value in fields_of(struct).items():
        wrong = [None, "1", 1.0, (1, 2), *(next(iter(e)) for e in enumerations if not isinstance(value, e))]
        wrong.append(True if type(value) is int else 1)
        for other in wrong:
            expected, came = type(value).__name__, type(other).__name__
            message = rf"^{type(struct).__name__}\.{name}: expected {expected}, got {came}$"
            with pytest.raises(TypeError, match=message):
                changed(struct, **{name: other})


def test_programs_take_their_arguments_by_name_and_type():
    arguments, _memory = example()
    C.DecodeProgram(**arguments)
    for name in arguments:
        with pytest.raises(TypeError, match="arguments"):
            C.DecodeProgram(**{other: value for other, value in arguments.items() if other != name})
    for swapped in (("values", "layers"), ("draws", "steps"), ("columns", "features"), ("dtype", "columns")):
        wrong = arguments | dict(zip(swapped, [arguments[name] for name in reversed(swapped)], strict=True))
        with pytest.raises(TypeError, match="arguments"):
            C.DecodeProgram(**wrong)
    for name, value in {
        "dtype": "float32",
        "weight_dtype": 0,
        "features": (-1, 0),
        "steps": [(0, 0, 1)],
    }.items():
        with pytest.raises(TypeError, match="arguments"):
            C.DecodeProgram(**arguments | {name: value})


@pytest.mark.parametrize(
    ("array", "fields", "message"),
    [
        ("values", {"data": 0}, r"data: expected an address, got 0"),
        ("values", {"rows": 0}, r"rows: expected at least 1, got 0"),
        ("values", {"scale": 0}, r"scale: expected at least 1, got 0"),
        ("taps", {"value": 999}, r"value: expected a number in \[0, \d+\], got 999"),
        ("taps", {"value": -1}, r"value: expected a number in \[0, \d+\], got -1"),
        ("taps", {"row": 1}, r"row: expected a number in \[-?\d+, 0\], got 1"),
        ("taps", {"row": -99}, r"row: expected a number in \[-?\d+, 0\], got -99"),
        ("taps", {"channel": -1}, r"channel: expected at least 0, got -1"),
        ("layers", {"first_tap": -1}, r"first_tap: expected a number in \[0, \d+\], got -1"),
        ("layers", {"taps": 999}, r"taps: expected a number in \[0, \d+\], got 999"),
        ("layers", {"weight": 0}, r"weight: expected an address, got 0"),
        ("layers", {"bias": 0}, r"bias: expected an address, got 0"),
        ("layers", {"outputs": -1}, r"outputs: expected at least 0, got -1"),
        ("layers", {"row_step": 0}, r"row_step: expected at least 1, got 0"),
        ("layers", {"column_phase": 1}, r"column_phase: expected a number in \[0, 0\], got 1"),
        ("layers", {"add": (999, 0)}, r"add\.value: expected a number in \[-1, \d+\], got 999"),
        ("layers", {"out": (0, -1)}, r"out\.channel: expected at least 0, got -1"),
        ("layers", {"activation": "concat_elu"}, r"activation: expected one with as many outputs"),
        ("layers", {"activated_by": "glu"}, r"activated_by: expected no gate"),
        ("draws", {"params": (-1, 0)}, r"params\.value: expected a number in \[0, \d+\], got -1"),
        ("draws", {"value": (-1, 0)}, r"value\.value: expected a number in \[0, \d+\], got -1"),
        ("draws", {"levels": 1}, r"levels: expected at least 2, got 1"),
        ("draws", {"mixtures": 0}, r"mixtures: expected at least 1, got 0"),
        ("steps", {"end": 999}, r"end: expected a number in \[0, \d+\], got 999"),
        ("steps", {"begin": -1}, r"begin: expected a number in \[0, \d+\], got -1"),
    ],
)
def test_programs_that_would_leave_their_memory_are_refused(array, fields, message):
    """By a sentence with the struct, its index and the field."""
    arguments, _memory = example()
    for name, value in fields.items():
        if isinstance(value, tuple):
            fields = fields | {name: C.DecodeSlot(value=value[0], channel=value[1])}
        if isinstance(value, str):
            fields = fields | {name: C.DecodeActivation[value]}
    structs = arguments[array]
    index = len(structs) // 2 if array in ("values", "layers", "taps") else len(structs) - 1
    if array == "steps":
        index = next(i for i, step in enumerate(structs) if step.kind == C.DecodeStepKind.layers)
    wrong = [changed(s, **fields) if i == index else s for i, s in enumerate(structs)]
    with pytest.raises(ValueError, match=rf"^{array}\[{index}\]\.{message}"):
        C.DecodeProgram(**arguments | {array: wrong})


def test_wrong_programs():
    arguments, _memory = example()
    for wrong, message in [
        ({"columns": 0}, "columns: expected at least 1, got 0"),
        ({"dtype": C.DType.bfloat16}, "dtype: expected float32 or float64"),
        ({"weight_dtype": C.DType.float64}, "weight_dtype: expected dtype, or bfloat16 for float32"),
        (
            {"features": C.DecodeSlot(value=-1, channel=0)},
            r"steps\[0\].kind: expected a slot in the program's",
        ),
        ({"layers": []}, r"steps\[1\].end: expected a number in \[0, 0\], got"),
        ({"draws": []}, r"steps\[\d+\].begin: expected a number in \[0, -1\], got 0"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            C.DecodeProgram(**arguments | wrong)


def test_executors_take_programs_of_their_device_and_cursors_within_them():
    arguments, _memory = example()
    executor = C.CpuExecutor(program=C.DecodeProgram(**arguments), threads=1)
    for cursor in ((-1, 0), (0, len(arguments["steps"])), (0, -1)):
        with pytest.raises(ValueError, match="cursor: expected a position from 0 and a step below"):
            executor.cursor = cursor
    executor.cursor = place = 3, len(arguments["steps"]) - 1
    assert executor.cursor == place
    strip = changed(all_structs()[3], value=arguments["values"][0])
    layers = [changed(layer, first_tap=0, taps=1) for layer in arguments["layers"]]
    program = C.DecodeProgram(**arguments | {"taps": [strip], "layers": layers})
    with pytest.raises(ValueError, match="program: expected taps for the CPU, got strips for a GPU"):
        C.CpuExecutor(program=program, threads=1)


def test_enumerations_have_one_home():
    """C++ exports them; Python has their names only."""
    assert set(C.DecodeActivation.__members__) == set(ACTIVATIONS)
    assert set(C.DecodeHead.__members__) == {"none", *HEADS}
