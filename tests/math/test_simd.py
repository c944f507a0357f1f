"""csrc/math/simd.h: conversions bit by bit, and every operation of the vocabulary by lane."""

import ctypes
import mmap

import numpy as np
import pytest
import torch

SOURCE = "tests/native/simd.cpp"
DTYPES = {"float": np.float32, "double": np.float64}
TORCH = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


def copy(library, tensor, to, vector):
    result = torch.empty(tensor.shape, dtype=TORCH[to])
    function = getattr(library, f"copy_{str(tensor.dtype).removeprefix('torch.')}_{to}")
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (tensor, result)]
    function(*pointers, ctypes.c_int64(tensor.numel()), ctypes.c_bool(vector))
    return result


@pytest.mark.parametrize("vector", [True, False])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_16_bit_number_converts_there_and_back(library, name, vector):
    words = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    numbers = words.view(TORCH[name])
    for wide in ("float32", "float64"):
        widened = copy(library, numbers, wide, vector)
        torch.testing.assert_close(widened, numbers.to(TORCH[wide]), rtol=0, atol=0, equal_nan=True)
        back = copy(library, widened, name, vector)
        finite = ~numbers.isnan()
        assert torch.equal(back.view(torch.int16)[finite], words[finite])
        assert back[~finite].isnan().all()


@pytest.mark.parametrize("vector", [True, False])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_stores_round_to_nearest_even(library, name, vector):
    # Around every 16-bit number and every midpoint of two, and anywhere.
    words = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    numbers = words.view(TORCH[name]).float()
    centres = torch.cat([numbers, (numbers + numbers.roll(1)) / 2]).view(torch.int32)
    near = torch.cat([centres + step for step in (-1, 0, 1)])
    generator = torch.Generator().manual_seed(0)
    anywhere = torch.randint(-(2**31), 2**31, (300_001,), generator=generator).int()
    x = torch.cat([near, anywhere]).view(torch.float32)
    want, got = x.to(TORCH[name]), copy(library, x, name, vector)
    finite = ~x.isnan()
    assert torch.equal(got.view(torch.int16)[finite], want.view(torch.int16)[finite])
    assert got[~finite].isnan().all()
    assert torch.equal(copy(library, x[finite].double(), name, vector), want[finite])


@pytest.mark.parametrize("vector", [True, False])
def test_float_and_double_convert(library, vector):
    x = torch.randn(1003, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(copy(library, x, "float64", vector), x)
    assert torch.equal(copy(library, x, "float32", vector), x.float())
    assert torch.equal(copy(library, x.float(), "float64", vector), x.float().double())
    assert torch.equal(copy(library, x.float(), "float32", vector), x.float())


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_partial_loads_and_stores_touch_nothing_beyond(library, name):
    # The last elements before a page that may not be touched.
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0) == 0
    size = TORCH[name].itemsize
    for count in range(20):
        end = ctypes.c_void_p(start + page - count * size)
        buffer = (ctypes.c_float * 32)()
        getattr(library, f"copy_{name}_float32")(end, buffer, ctypes.c_int64(count), ctypes.c_bool(True))
        getattr(library, f"copy_float32_{name}")(buffer, end, ctypes.c_int64(count), ctypes.c_bool(True))
        assert not any(buffer)


def expected(x, y):
    """Row by row what evaluate() in the source writes."""
    one = np.ones_like(x)
    with np.errstate(invalid="ignore"):
        return [
            np.where(x < y, x, y),
            np.where(x > y, x, y),
            np.abs(x),
            np.copysign(x, y),
            x * y + 1,
            np.sqrt(np.abs(x)),
            np.rint(x),
            np.floor(x),
            np.trunc(x),
            np.where(x < y, x, y),
            np.where((x < y) | (x >= 0), one, 0),
            x,
            np.arange(x.size),
            one * x.sum(),
            one * x.max(),
            one * (x < y).any(),
            one * (x < y).all(),
        ]


@pytest.mark.parametrize("vector", [True, False])
@pytest.mark.parametrize("type_name", DTYPES)
def test_operations(library, type_name, vector):
    dtype = DTYPES[type_name]
    lanes = getattr(library, f"lanes_{type_name}")(ctypes.c_bool(vector))
    random = np.random.default_rng(0)
    for trial in range(200):
        # Halves and quarters, so that ties occur and sums are exact.
        x = (random.integers(-40, 40, lanes) / 4).astype(dtype)
        y = (random.integers(-40, 40, lanes) / 4).astype(dtype) + (0, 20, -20)[trial % 3]
        want = np.array(expected(x, y), dtype)
        got = np.empty_like(want)
        arrays = [ctypes.c_void_p(array.ctypes.data) for array in (x, y, got)]
        getattr(library, f"evaluate_{type_name}")(*arrays, ctypes.c_bool(vector))
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("vector", [True, False])
@pytest.mark.parametrize("type_name", DTYPES)
def test_minimum_and_maximum_return_the_second_where_one_is_nan(library, type_name, vector):
    dtype = DTYPES[type_name]
    lanes = getattr(library, f"lanes_{type_name}")(ctypes.c_bool(vector))
    nan, one = np.full(lanes, np.nan, dtype), np.ones(lanes, dtype)
    for x, y in ((nan, one), (one, nan)):
        rows = np.empty((17, lanes), dtype)
        arrays = [ctypes.c_void_p(array.ctypes.data) for array in (x, y, rows)]
        getattr(library, f"evaluate_{type_name}")(*arrays, ctypes.c_bool(vector))
        np.testing.assert_array_equal(rows[:2], [y, y])


@pytest.mark.parametrize("type_name", DTYPES)
def test_transpose(library, type_name):
    lanes = getattr(library, f"lanes_{type_name}")(ctypes.c_bool(True))
    x = np.arange(lanes * lanes, dtype=DTYPES[type_name]).reshape(lanes, lanes)
    y = np.empty_like(x)
    getattr(library, f"transpose_{type_name}")(*[ctypes.c_void_p(a.ctypes.data) for a in (x, y)])
    np.testing.assert_array_equal(y, x.T)
