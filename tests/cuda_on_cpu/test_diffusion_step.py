"""The CUDA kernels of diffusion_step, run as C++."""

import math

import pytest
import torch
from cuda_on_cpu.emulator import DTYPES, SANITIZERS, image, run

from gmfast import reference
from gmfast._seed import first_sample
from gmfast._table import COLUMNS

pytestmark = pytest.mark.cuda_on_cpu

f32, f64, bf16 = torch.float32, torch.float64, torch.bfloat16
STEPS = 3

# batch, rows, inner: one element, odd sizes, whole packs, several blocks of a sample
SHAPES = [(1, 1, 1), (2, 1, 72), (3, 5, 7), (1, 1, 8200), (2, 3, 150)]
OPTIONS = [
    {},
    {"clip": 0.5, "x0": True},
    {"unconditional": True, "guidance": 3.0, "history": 4, "kept": True},
    {"seed": 5, "variance": True, "x0": True},
    {"seed": "own", "step": "own", "kept": True, "history": 2},
    {"noise": True, "step": "device"},
    {"unconditional": True, "guidance": 2.0, "guidance_rescale": 0.7, "seed": "device"},
    {"threshold": 0.9, "threshold_max": 3.0, "x0": True},
    {"threshold": 1.0, "threshold_max": math.inf},
    {"threshold": 0.31, "threshold_max": 9.0, "unconditional": True, "guidance_rescale": 1.0},
    {"seed": 5, "channels": True},
]


def apart(tensor):
    """The same values in rows with NaN between them."""
    batch, rows, inner = tensor.shape
    wide = torch.full((batch, rows + 1, inner + 3), torch.nan, dtype=tensor.dtype)
    return wide[:, 1:, 1:-2].copy_(tensor)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_diffusion_step(sanitizer):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=f64)

    items, results = [], []
    for number, options in enumerate(OPTIONS):
        for j, shape in enumerate(SHAPES):
            dtype = (f32, f64, bf16)[(number + j) % 3]
            place = apart if (number + j) % 4 == 3 else torch.clone
            given = dict(options)
            channels_inner = given.pop("channels", False)
            batch, _, inner = shape
            compute = f64 if dtype == f64 else f32
            table = normal(STEPS, len(COLUMNS)) / 2
            if number == 2:
                table[:, COLUMNS.index("h1")] = table[:, COLUMNS.index("x0")] = 0
            tensors = {
                name: normal(*shape).to(dtype) if given.pop(name, False) else None
                for name in ("unconditional", "variance", "noise")
            }
            history = [normal(*shape).to(dtype) for _ in range(given.pop("history", 0))]
            x, m = normal(*shape).to(dtype), normal(*shape).to(dtype)
            step, seed = given.pop("step", 1), given.pop("seed", None)
            steps = {"own": torch.arange(batch) % 4, "device": torch.tensor(2)}.get(step)
            seeds = {"own": torch.arange(batch) + 2**40, "device": torch.tensor(-7)}.get(seed)
            wanted = {"x0": given.pop("x0", False), "kept": given.pop("kept", False)}

            def logical(t, channels_inner=channels_inner):
                return t.transpose(1, 2) if channels_inner else t

            with first_sample(j):
                plain = reference.diffusion_step(
                    *(logical(t).to(compute) for t in (x, m)),
                    table,
                    step=step if steps is None else steps,
                    seed=None if seed is None else torch.tensor(seed) if seeds is None else seeds,
                    history=[h.to(compute) for h in history],
                    **{name: None if t is None else t.to(compute) for name, t in tensors.items()},
                    **wanted,
                    **given,
                )
            plain = list(plain) if isinstance(plain, tuple) else [plain]
            filled = [place(torch.full(shape, torch.nan, dtype=dtype)) for _ in plain]
            outputs = iter(filled)
            result = next(outputs)
            x0, kept = (next(outputs) if wanted[name] else None for name in ("x0", "kept"))
            item = [*shape, DTYPES.index(compute), STEPS, table, step if steps is None else 0, steps]
            item += [int(step == "own"), int(seed is not None and tensors["noise"] is None)]
            item += [seed if isinstance(seed, int) else 0, seeds, int(seed == "own"), j]
            item += [inner if channels_inner else 1, float(given.get("guidance", 1))]
            item += [float(given.get("guidance_rescale", 0)), float(given.get("clip", math.inf))]
            item += [float(given.get("threshold", -1)), float(given.get("threshold_max", math.inf))]
            operands = [x, m, *tensors.values(), *history, *[None] * (4 - len(history))]
            for tensor in operands:
                item += image(None if tensor is None else place(tensor))
            items.append([*item, *image(result), *image(x0), *image(kept)])
            results.append(((number, shape, dtype), filled, [logical(p) for p in plain]))
    run("diffusion_step", sanitizer, items)
    for what, filled, plain in results:
        for f, p in zip(filled, plain, strict=True):
            bound = 100 * torch.finfo(f.dtype).eps * (1 + p.abs().max())
            assert ((f.double() - p.double()).abs() <= bound).all(), what
