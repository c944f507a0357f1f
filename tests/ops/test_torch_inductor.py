"""The operations of the contracts in graphs that inductor compiles.

Nearly all of the time is the C++ compiler's, one run for what inductor fuses between two operators, so the
operations of a file are in one graph: what comes before them, what comes after them, and the same of their
gradients.
"""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from ops.contracts import Contracts, assert_same, outputs, results

FILES = [
    path.stem
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    if re.search(r"^class \w+\(\w*Contracts\)", path.read_text(), re.MULTILINE)
]

#: No size is that of another dimension, which the compiler would then take to be one number.
SHAPES = ((11, 13, 17), (7, 19, 23))


def contracts_of(name):
    """An instance of each of a file's test classes that inherit the contracts."""
    found = [value for key, value in vars(import_module(f"ops.{name}")).items() if key.startswith("Test")]
    return [cls() for cls in found if isinstance(cls, type) and issubclass(cls, Contracts)]


@pytest.mark.parametrize("layout", ["contiguous", pytest.param("channels_last", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_torch_compile_with_inductor(device, name, layout):
    """One graph for any batch and any image. Channels are fixed, as a network's are; the contracts' compiled
    graphs, which cost less, are of any number."""
    torch._dynamo.reset()
    cases = contracts_of(name)
    counts = [len(case.inputs(SHAPES[0], torch.float32, device)) for case in cases]

    def step(*inputs):
        # Work around the operations, for the compiler to fuse.
        halves = [t * 0.5 for t in inputs]
        ys, first = [], 0
        for case, count in zip(cases, counts, strict=True):
            ys += outputs(case.call, halves[first : first + count])
            first += count
        return [y * 2 for y in ys]

    compiled = torch.compile(step, fullgraph=True)
    shared = [i in case.shared for case, count in zip(cases, counts, strict=True) for i in range(count)]

    def of_any_size(*inputs):
        for tensor, is_shared in zip(inputs, shared, strict=True):
            if not is_shared:
                torch._dynamo.mark_dynamic(tensor, [0, *range(2, tensor.dim())])
        return compiled(*inputs)

    for shape in SHAPES:
        inputs = [
            case.lay_out(layout, t) for case in cases for t in case.inputs(shape, torch.float32, device)
        ]
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert_same(results(of_any_size, inputs), results(step, inputs))
