"""How the tests run decode programs: on both executors, and position after position."""

import copy

import torch

from gmfast import _library
from gmfast.reference.decode import Decoder as ReferenceDecoder

#: Of the C++ library, where it is built, and of plain PyTorch.
EXECUTORS = (["compiled"] if _library._C else []) + ["reference"]


def on(program, executor):
    """The program, which goes on where it is by an executor."""
    if executor == "reference":
        cursor = program._decoder.cursor
        program._decoder = ReferenceDecoder(program)
        program._decoder.cursor = cursor
    return program


def started(program, executor, batch, label=None):
    """A copy of the program at the start of a batch."""
    return on(copy.copy(program).start(batch, label), executor)


def outputs(program, x):
    """What a program that sees the position itself says about `x` (batch, channels, positions), like it."""
    return torch.stack([program.step(value) for value in x.unbind(2)], 2)


def predictions(program, x, draws=1, local=None):
    """What a program that predicts says about `x` (batch, channels, positions) before it knows it: (batch,
    parameters, positions), where a position's channels come in as many `draws`."""
    said, fed = [], None
    for position in range(x.shape[2]):
        features = () if local is None else (local[:, :, position],)
        parts = []
        for value in x[:, :, position].chunk(draws, 1):
            parts.append(program.step(fed, *features))
            fed = value
        said.append(torch.cat(parts, 1))
    return torch.stack(said, 2)
