import numpy as np
import pytest
import torch
from ops.contracts import DTYPES, threads
from scipy import stats

import gmfast.functional as GF
from gmfast import reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1,), (5,), (3, 1), (2, 63), (2, 64), (2, 65), (3, 5, 77), (1, 3, 61, 97), (0, 4), (4, 0), (0,)]
)
def test_is_the_reference(device, dtype, shape):
    for seed in (0, 7, -5, 2**63 + 9):
        drawn = GF.standard_normal(shape, seed=seed, dtype=dtype, device=device)
        plain = reference.standard_normal(
            shape, seed=torch.tensor((seed + 2**63) % 2**64 - 2**63, device=device), dtype=dtype
        )
        assert drawn.shape == shape and drawn.dtype == dtype and drawn.is_contiguous()
        atol = {torch.float64: 1e-14, torch.float32: 2e-6}.get(dtype, 0)
        rtol = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-13
        torch.testing.assert_close(drawn, plain, rtol=rtol, atol=max(atol, 2e-6 * (atol == 0)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(3,), (3, 100, 100), (2, 1), ()])
def test_a_sample_is_the_same_in_any_batch_and_with_any_threads(device, dtype, sizes):
    whole = GF.standard_normal((9, *sizes), seed=1, dtype=dtype, device=device)
    for count in (1, 2, 5):
        with threads(count):
            part = GF.standard_normal((4, *sizes), seed=1, dtype=dtype, device=device)
            assert torch.equal(part, whole[:4])
    if dtype in (torch.float16, torch.bfloat16):
        single = GF.standard_normal((9, *sizes), seed=1, device=device)
        assert torch.equal(single.to(dtype), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_distribution(device, dtype):
    """The normal distribution's CDF, and its first moments within four standard errors."""
    drawn = GF.standard_normal((8, 50_000), seed=3, dtype=dtype, device=device).double().cpu().numpy()
    count = drawn.size
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    assert abs(drawn.mean()) < 4 / count**0.5
    assert abs(drawn.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((drawn**3).mean()) < 4 * (15 / count) ** 0.5
    assert abs((drawn**4).mean() - 3) < 4 * (96 / count) ** 0.5
    correlation = np.corrcoef(drawn)[np.triu_indices(8, 1)]
    assert np.abs(correlation).max() < 5 / 50_000**0.5


def test_seeds(device):
    base = GF.standard_normal((2, 9), seed=3, device=device)
    assert torch.equal(GF.standard_normal((2, 9), seed=torch.tensor(3, device=device)), base)
    assert not torch.equal(GF.standard_normal((2, 9), seed=4, device=device), base)
    torch.manual_seed(0)
    first = GF.standard_normal((2, 9), device=device)
    assert not torch.equal(GF.standard_normal((2, 9), device=device), first)
    torch.manual_seed(0)
    assert torch.equal(GF.standard_normal((2, 9), device=device), first)
    assert (
        GF.standard_normal(torch.Size([2, 9]), seed=torch.tensor(3, device=device)).device.type == device.type
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(), (3,), (2, 9000)])
def test_seeds_of_samples(device, dtype, sizes):
    seeds = torch.tensor([7, -5, 7, 2**62], device=device)
    drawn = GF.standard_normal((4, *sizes), seed=seeds, dtype=dtype)
    for sample, seed in zip(drawn, seeds, strict=True):
        assert torch.equal(
            sample, GF.standard_normal((1, *sizes), seed=int(seed), dtype=dtype, device=device)[0]
        )
    plain = reference.standard_normal((4, *sizes), seed=seeds, dtype=dtype)
    torch.testing.assert_close(drawn, plain, atol=4e-6, rtol=torch.finfo(dtype).eps)
    apart = torch.stack([seeds, -seeds], 1)[:, 0]
    assert torch.equal(GF.standard_normal((4, *sizes), seed=apart, dtype=dtype), drawn)
    assert GF.standard_normal((0, *sizes), seed=seeds[:0]).shape == (0, *sizes)


def test_what_pytorch_does_with_operators(device):
    seed = torch.tensor(3, device=device)
    torch.library.opcheck(torch.ops.gmfast.standard_normal.default, (seed, [2, 9], torch.float32))

    def step(x, seed):
        return x + GF.standard_normal(x.shape, seed=seed, dtype=x.dtype)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for shape in ((2, 9), (3, 5)):
        x = torch.ones(shape, device=device, dtype=torch.float64)
        assert torch.equal(compiled(x, seed), step(x, seed))


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        (((),), {}, ValueError, r"shape: expected \(B, \*S\), got \(\)"),
        (((2, -1),), {}, ValueError, r"shape: expected \(B, \*S\), got \(2, -1\)"),
        (((2, 1.5),), {}, TypeError, r"shape: expected a sequence of ints"),
        ((3,), {}, TypeError, r"shape: expected a sequence of ints"),
        (((2,),), {"dtype": torch.int32}, TypeError, r"dtype: expected float32, .* got torch\.int32"),
        (
            ((2,),),
            {"seed": torch.tensor([1, 2, 3])},
            ValueError,
            r"seed: expected shape \(\) or \(2,\), got \(3,\)",
        ),
        (((2,),), {"seed": "1"}, TypeError, "seed: expected an int"),
        (((2,),), {"seed": torch.tensor(1), "device": "meta"}, ValueError, "seed: expected a tensor on meta"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        GF.standard_normal(*arguments, **options)


def test_a_compiled_function_takes_other_seeds():
    compiled = torch.compile(lambda seed: GF.standard_normal((3,), seed=seed), fullgraph=True)
    for seed in (3, 4, -5, 2**40):  # from the second on, a number that the graph does not know
        torch.testing.assert_close(compiled(seed), GF.standard_normal((3,), seed=seed), rtol=0, atol=0)


@pytest.mark.parametrize(("number", "same"), [(np.int32(7), 7), (np.uint64(2**64 - 1), -1)])
def test_numpy_numbers_are_seeds(number, same):
    torch.testing.assert_close(GF.standard_normal((3,), seed=number), GF.standard_normal((3,), seed=same))
