"""Runs CUDA kernels that were compiled as C++ with a sanitizer, on the cases of a test.

A case is a sequence of numbers, tensors and None, which a driver (driver.h) takes in the same order. It
runs in a process of its own; what the kernels wrote is then in the tensors, as if they had run here.
"""

import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import torch
from native.harness import build

SANITIZERS = {"address": "address,undefined", "thread": "thread"}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # as DType numbers them

_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def compile_driver(name, sanitizer):
    """Compiles tests/cuda_on_cpu/NAME.cpp to a program.

    Not optimized: that would take several times as long as everything else, and save less at run time.
    """
    flags = ["-std=c++20", "-O0", "-g1", "-pthread", f"-I{Path(__file__).parent}"]
    flags += ["-Wno-psabi", "-Wno-unknown-pragmas", "-fno-strict-aliasing"]
    flags += [f"-fsanitize={SANITIZERS[sanitizer]}", "-fno-sanitize-recover=undefined"]
    return build([f"tests/cuda_on_cpu/{name}.cpp"], flags=flags, name=f"cuda_on_cpu-{name}-{sanitizer}")


def execute(program, *arguments):
    """The finished process, its errors as text."""
    command = [str(program), *map(str, arguments)]
    environment = {**os.environ, **_OPTIONS}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "unexpected memory mapping" in result.stderr and shutil.which("setarch"):
        # ThreadSanitizer of some compilers needs less address space randomization than the system has.
        command = ["setarch", "-R", *command]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
    return result


def run(name, sanitizer, cases):
    """Runs the driver's kernels on `cases`; a sanitizer's report fails the test."""
    run_program(compile_driver(name, sanitizer), cases)


def run_program(program, cases):
    """As `run`, with any program that driver.h makes."""
    memories = []
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "cases"), Path(folder, "results")
        with inputs.open("wb") as file:
            for case in cases:
                for item in case:
                    if isinstance(item, torch.Tensor):
                        memories.append(_bytes_of(item))
                    file.write(_encode(item))
        result = execute(program, inputs, outputs)
        if result.returncode:
            raise AssertionError(f"{program.name}:\n{result.stderr[-6000:]}")
        data = bytearray(outputs.read_bytes())
    position = 0
    for memory in memories:
        if memory.numel():
            memory.copy_(torch.frombuffer(data, dtype=torch.uint8, count=memory.numel(), offset=position))
        position += memory.numel()


def image(tensor):
    """The items that make a (batch, channels, pixels) tensor an Image, a (batch, channels, rows, columns) one
    a Grid."""
    if tensor is None:
        return [None]
    return [tensor, DTYPES.index(tensor.dtype), _byte_offset(tensor), *tensor.stride()]


def operand(tensor, halves):
    """The items that make an (outer, halves * rows, inner) tensor a PairOperand."""
    if tensor is None:
        return [None]
    outer, row, inner = tensor.stride()
    assert inner == 1 or tensor.shape[2] == 1
    half = (halves - 1) * (tensor.shape[1] // halves) * row
    return [tensor, DTYPES.index(tensor.dtype), _byte_offset(tensor), outer, row, half]


def _byte_offset(tensor):
    return tensor.storage_offset() * tensor.element_size()


def _bytes_of(tensor):
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def _encode(item):
    if item is None:
        return struct.pack("<q", -1)
    if isinstance(item, torch.Tensor):
        data = _bytes_of(item).numpy().tobytes()
        return struct.pack("<q", len(data)) + data
    return struct.pack("<d" if isinstance(item, float) else "<q", item)
