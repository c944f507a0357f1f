"""Sums of rows and of samples on CUDA, run as C++."""

import math

import pytest
import torch
from cuda_on_cpu.emulator import SANITIZERS, run

pytestmark = pytest.mark.cuda_on_cpu


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sum_rows(sanitizer):
    shapes = [(1, 0), (3, 1), (2, 257), (1, 8192), (2, 8193), (1, 3 * 8192 + 5)]
    generator = torch.Generator().manual_seed(0)
    cases = []
    for dtype in (torch.float32, torch.float64):
        for rows, columns in shapes:
            values = torch.rand(rows, columns, dtype=dtype, generator=generator)
            exact = torch.tensor([0.25 * math.fsum(row.tolist()) for row in values], dtype=torch.float64)
            cases.append((values, torch.full((rows,), -1, dtype=dtype), exact))  # sum.cpp's scale
    run("sum", sanitizer, [[0, *v.shape, v.dtype == torch.float32, v, t] for v, t, _ in cases])
    # Sums in double: float32 rounds once more; a double passes through less than 64 additions.
    for _, totals, expected in cases:
        ulps = 1 if totals.dtype == torch.float32 else 32
        assert ((totals - expected).abs() <= ulps * torch.finfo(totals.dtype).eps * expected).all()


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_block_sum_twice(sanitizer):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(64, dtype=torch.float64, generator=generator)
    totals = torch.zeros(2, dtype=torch.float64)
    run("sum", sanitizer, [[0, 0, 64, False, values, totals]])
    torch.testing.assert_close(totals, torch.stack([values.sum(), values.square().sum()]))


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sample_sum(sanitizer):
    # A sample to a thread, to some lanes, to a warp, to a block, to several blocks.
    shapes = [(3, 0), (259, 1), (70, 5), (9, 63), (3, 64), (2, 65), (3, 512), (2, 513), (3, 1025)]
    generator = torch.Generator().manual_seed(0)
    cases = []
    for batch, length in shapes:
        values = torch.rand(batch, length, dtype=torch.float64, generator=generator)
        cases.append((values, torch.zeros_like(values), torch.zeros(batch, dtype=torch.float64)))
    alone = [(v[1:2].clone(), torch.zeros_like(v[:1]), torch.zeros(1, dtype=v.dtype)) for v, *_ in cases]
    run("sum", sanitizer, [[1, *v.shape, 2, v, c, t] for v, c, t in cases + alone])
    for (values, counts, totals), (_, _, total) in zip(cases, alone, strict=True):
        torch.testing.assert_close(totals, values.sum(1))
        assert (counts == 1).all()
        assert torch.equal(totals[1:2], total)
