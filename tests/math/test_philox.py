"""csrc/math/philox.h and random.h against published vectors and NumPy."""

import ctypes

import numpy as np
import pytest
from scipy import stats

SOURCE = "tests/native/random.cpp"
DTYPES = {"float": np.float32, "double": np.float64}
SEED, SAMPLE, DRAW = 0x0123456789ABCDEF, 7, 3


def philox(counter, key):
    """Ten rounds over arrays of counters, in 64-bit integers."""
    x = [np.asarray(word, np.uint64) for word in np.broadcast_arrays(*counter)]
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        top, bottom = np.uint64(32), np.uint64(0xFFFFFFFF)
        x = [(b >> top) ^ x[1] ^ np.uint64(low), b & bottom, (a >> top) ^ x[3] ^ np.uint64(high), a & bottom]
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(x, -1).astype(np.uint32)


def words_at(position, count):
    """The words of consecutive blocks, by NumPy."""
    positions = [position + i for i in range(count)]
    return philox(([p & 0xFFFFFFFF for p in positions], [p >> 32 for p in positions], SAMPLE, DRAW), SEED)


def fill(library, kind, type_name, first, count, vector=True, sample=SAMPLE, seed=SEED):
    out = np.empty(count, DTYPES[type_name])
    stream = ctypes.c_uint64(seed), ctypes.c_uint32(sample), ctypes.c_uint32(DRAW)
    where = ctypes.c_uint64(first), ctypes.c_int64(count), ctypes.c_void_p(out.ctypes.data)
    getattr(library, f"{kind}_{type_name}")(*stream, *where, ctypes.c_bool(vector))
    return out


def element_words(type_name, first, count):
    """The four words of each element's block and its slot in it, as random.h lays them out."""
    per_block = 4 if type_name == "float" else 2
    element = first + np.arange(count)
    block = element // (16 * per_block) * 16 + element % 16
    table = words_at(int(block.min()), int(np.ptp(block)) + 1)
    return table[block - block.min()].astype(np.uint64), element // 16 % per_block


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_published_vectors(library, counter, key, words):
    counter, key, words = ([int(word, 16) for word in text.split()] for text in (counter, key, words))
    key = key[0] | key[1] << 32
    out = (ctypes.c_uint32 * 4)()
    library.philox_block((ctypes.c_uint32 * 4)(*counter), ctypes.c_uint64(key), out)
    assert list(out) == words
    assert philox(counter, key).tolist() == words


@pytest.mark.parametrize("position", [0, 5, 2**32 - 9, 2**40 + 3])
@pytest.mark.parametrize("type_name", DTYPES)
def test_vectors_of_blocks_are_the_scalar_blocks(library, type_name, position):
    want = words_at(position, 64)
    for vector in (True, False):
        words = np.empty((64, 4), np.uint32)
        stream = ctypes.c_uint64(SEED), ctypes.c_uint32(SAMPLE), ctypes.c_uint32(DRAW)
        where = ctypes.c_uint64(position), ctypes.c_int64(64), ctypes.c_void_p(words.ctypes.data)
        getattr(library, f"words_{type_name}")(*stream, *where, ctypes.c_bool(vector))
        np.testing.assert_array_equal(words, want)


def test_uniform_numbers_stay_inside(library):
    for name, word, bits in (("float", ctypes.c_uint32, 32), ("double", ctypes.c_uint64, 64)):
        function = getattr(library, f"uniform_of_bits_{name}")
        function.restype = getattr(ctypes, f"c_{name}")
        half_step = 2.0**-24 if name == "float" else 2.0**-53
        assert function(word(0)) == half_step
        assert function(word(2**bits - 1)) == 1 - half_step
        assert function(word(2 ** (bits - 1))) == 0.5 + half_step


@pytest.mark.parametrize("vector", [True, False])
def test_uniform_numbers_are_exactly_the_words(library, vector):
    words, slot = element_words("float", 37, 1001)
    want = ((words[np.arange(1001), slot] >> np.uint64(9)) + 0.5) * 2.0**-23
    np.testing.assert_array_equal(fill(library, "uniform", "float", 37, 1001, vector), want)
    words, slot = element_words("double", 37, 1001)
    joined = words[np.arange(1001), 2 * slot] | words[np.arange(1001), 2 * slot + 1] << np.uint64(32)
    want = ((joined >> np.uint64(12)) + 0.5) * 2.0**-52
    np.testing.assert_array_equal(fill(library, "uniform", "double", 37, 1001, vector), want)


@pytest.mark.parametrize("vector", [True, False])
def test_normal_numbers_are_box_muller_of_the_words(library, vector):
    words, slot = element_words("float", 5, 100_000)
    rows, pair = np.arange(100_000), slot // 2 * 2
    # In float32 as the header has it: near 1 its steps are coarse, and the radius shows them.
    u = (words[rows, pair] >> np.uint64(1)).astype(np.float32) * np.float32(2.0**-31) + np.float32(2.0**-32)
    u = u.astype(np.float64)
    second = words[rows, pair + 1]
    angle = np.pi * second.astype(np.uint32).view(np.int32) * 2.0**-32
    radius = np.sqrt(-2 * np.log(u)) * np.where(second & np.uint64(1), -1, 1)
    want = radius * np.where(slot % 2, np.sin(angle), np.cos(angle))
    got = fill(library, "normal", "float", 5, 100_000, vector)
    np.testing.assert_allclose(got, want, rtol=2e-7, atol=1e-6)

    words, slot = element_words("double", 5, 10_000)
    u, turn = (
        (((words[:, k] | words[:, k + 1] << np.uint64(32)) >> np.uint64(12)) + 0.5) * 2.0**-52 for k in (0, 2)
    )
    want = np.sqrt(-2 * np.log(u)) * np.where(slot, np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn))
    np.testing.assert_allclose(fill(library, "normal", "double", 5, 10_000, vector), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("type_name", DTYPES)
def test_any_part_of_the_stream_is_the_same(library, kind, type_name):
    whole = fill(library, kind, type_name, 0, 500)
    tolerance = 8 * np.finfo(whole.dtype).eps
    for first, count in ((0, 0), (0, 1), (1, 16), (63, 2), (17, 100), (128, 64), (499, 1), (130, 370)):
        part = fill(library, kind, type_name, first, count)
        np.testing.assert_array_equal(part, whole[first : first + count])
        # One scalar after another gives the same, uniform numbers to the bit.
        scalars = fill(library, kind, type_name, first, count, vector=False)
        np.testing.assert_allclose(scalars, part, rtol=0, atol=0 if kind == "uniform" else tolerance)
    function = getattr(library, f"{kind}_at_{type_name}")
    function.restype = getattr(ctypes, f"c_{type_name}")
    stream = ctypes.c_uint64(SEED), ctypes.c_uint32(SAMPLE), ctypes.c_uint32(DRAW)
    singly = [function(*stream, ctypes.c_uint64(e)) for e in range(500)]
    np.testing.assert_allclose(singly, whole, rtol=0, atol=0 if kind == "uniform" else tolerance)


@pytest.mark.parametrize("type_name", DTYPES)
def test_distributions(library, type_name):
    count = 200_000
    uniform = fill(library, "uniform", type_name, 0, count).astype(np.float64)
    normal = fill(library, "normal", type_name, 0, count).astype(np.float64)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    for shift in (1, 16, 32, 64):  # within a vector, within a block, across blocks
        assert abs(np.corrcoef(normal[shift:], normal[:-shift])[0, 1]) < 4 / np.sqrt(count)
        assert abs(np.corrcoef(normal[shift:] ** 2, normal[:-shift] ** 2)[0, 1]) < 4 / np.sqrt(count)


def test_streams_differ_by_sample_and_by_seed(library):
    base = fill(library, "normal", "float", 0, 10_000)
    for other in ({"sample": SAMPLE + 1}, {"seed": SEED + 1}, {"seed": SEED ^ 1 << 40}):
        assert abs(np.corrcoef(base, fill(library, "normal", "float", 0, 10_000, **other))[0, 1]) < 0.05
