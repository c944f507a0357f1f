"""Nanoseconds a normal number on one core, beside `torch.randn`. GMFAST_CPU_ISA lowers the SIMD level.

python benchmarks/noise.py
"""

import time
from statistics import median

import torch

import gmfast.functional as GF
from gmfast import _library
from gmfast.ops.torch_normal import torch_normal

COUNT, ROUNDS = 1 << 16, 200


def main():
    torch.set_num_threads(1)
    seed = torch.tensor(1)
    level = _library._C.cpu_level() if _library._C else "plain PyTorch"
    columns = {
        "torch.randn": lambda: torch.randn(1, COUNT),
        f"the same, {level}": lambda: torch_normal((1, COUNT)),
        f"gmfast {level}": lambda: GF.standard_normal((1, COUNT), seed=seed),
    }
    times = {name: [] for name in columns}
    for _ in range(ROUNDS):  # in turns, so that the machine's state meets all alike
        for name, draw in columns.items():
            start = time.perf_counter()
            draw()
            times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        print(f"{name:14}  {1e9 * median(seconds) / COUNT:5.2f} ns a number")


if __name__ == "__main__":
    main()
