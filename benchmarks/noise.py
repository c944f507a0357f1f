"""Nanoseconds a normal number on one core, at each SIMD level, beside `torch.randn`.

No public operation draws plain noise yet, so this compiles csrc/math/random.h by itself, from a source tree:

    python benchmarks/noise.py
"""

import ctypes
import sys
import time
from pathlib import Path
from statistics import median

import torch

NATIVE = Path(__file__).resolve().parent.parent / "tests" / "native"
sys.path.insert(0, str(NATIVE))

from harness import compile_library, simd_levels  # noqa: E402  (beside the tests that share it)

COUNT, ROUNDS = 1 << 16, 200


def main():
    torch.set_num_threads(1)
    out = torch.empty(COUNT)
    columns = {"torch.randn": lambda: torch.randn(COUNT, out=out)}
    for level, flags in simd_levels().items():
        library = compile_library(
            [NATIVE / "random.cpp"], flags=[*flags, "-O3", "-fno-math-errno"], name=f"noise_{level}"
        )
        columns[f"gmfast {level}"] = lambda normal=library.normal_float: normal(
            ctypes.c_uint64(1),
            ctypes.c_uint32(0),
            ctypes.c_uint32(0),
            ctypes.c_uint64(0),
            ctypes.c_int64(COUNT),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_bool(True),
        )
    times = {name: [] for name in columns}
    for _ in range(ROUNDS):  # in turns, so that the machine's state meets all alike
        for name, draw in columns.items():
            start = time.perf_counter()
            draw()
            times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        print(f"{name:12}  {1e9 * median(seconds) / COUNT:5.2f} ns a number")


if __name__ == "__main__":
    main()
