"""How the tests run decode programs: on both executors, and position after position."""

import copy

import torch

from gmfast import _library
from gmfast.reference.decode import ReferenceExecutor

#: The C++ library's, where it is built, and that in plain PyTorch.
EXECUTORS = (["compiled"] if _library._C else []) + ["reference"]


def on(program, executor):
    """The program, continued from its position by an executor."""
    if executor == "reference":
        cursor = program._executor.cursor
        program._executor = ReferenceExecutor(program._plan, program._form, program._state)
        program._executor.cursor = cursor
    return program


def started(program, executor, batch, label=None):
    """A copy of the program at the start of a batch."""
    return on(copy.copy(program).start(batch, label), executor)


def outputs(program, x):
    """Outputs (batch, channels, positions) of a program that reads each position's own input, for `x`."""
    return torch.stack([program.step(value) for value in x.unbind(2)], 2)


def predictions(program, x, draws=1, local=None):
    """Predictions (batch, parameters, positions) for `x` (batch, channels, positions), which is fed value by
    value, each position in so many `draws`."""
    said, fed = [], None
    for position in range(x.shape[2]):
        features = () if local is None else (local[:, :, position],)
        parts = []
        for value in x[:, :, position].chunk(draws, 1):
            parts.append(program.step(fed, *features))
            fed = value
        said.append(torch.cat(parts, 1))
    return torch.stack(said, 2)


def recorded(arguments):
    """The arguments of `_C.DecodeProgram` as items of a case that `read_program` of tests/native/decode.h
    takes."""
    items = [arguments[name].value for name in ("dtype", "weight_dtype")]
    items += [arguments["columns"], arguments["features"].value, arguments["features"].channel]
    items += [arguments["num_features"], arguments["log_scale_min"]]
    for name in ("values", "taps", "layers", "draws", "steps"):
        structs = arguments[name]
        array = type(structs[0]).array(structs) if structs else b""
        items += [
            len(structs),
            torch.frombuffer(bytearray(array), dtype=torch.uint8) if array else torch.empty(0),
        ]
    return items
