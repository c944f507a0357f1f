"""csrc/math/elementary.h against the C library in long double, in units in the last place."""

import ctypes
import functools
import re

import numpy as np
import pytest
from harness import ROOT, compile_library, simd_levels

SOURCE = "tests/native/elementary.cpp"
TYPES = {"float": np.float32, "double": np.float64}


def table() -> dict[str, dict[str, float]]:
    """The bounds that the header's comment promises."""
    text = (ROOT / "csrc/math/elementary.h").read_text()
    rows = re.findall(r"^//   (\w+) .*? ([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    return {name: {"float": float(single), "double": float(double)} for name, single, double in rows}


BOUNDS = table()


def uniform(low, high):
    return lambda random, count: random.uniform(low, high, count)


def spread(low, high):
    """Positive numbers with evenly distributed logarithms."""
    return lambda random, count: np.exp(random.uniform(np.log(low), np.log(high), count))


def negative(sample):
    return lambda random, count: -sample(random, count)


def domains(type_name):
    low, high, tail = (-87.3, 88.7, 9.1) if type_name == "float" else (-708.3, 709.7, 26.0)
    tiny, huge = (1e-37, 3e38) if type_name == "float" else (1e-300, 1e308)
    small = spread(tiny, 1)
    nonpositive = [uniform(low + 0.4, 0), uniform(-1, 0), negative(small)]
    positive = [spread(tiny, huge), uniform(0.5, 2), uniform(0.95, 1.05)]
    return {
        "exp": [uniform(low, high), uniform(-1, 1)],
        "exp_nonpositive": nonpositive,
        "exp_expm1": [uniform(low + 0.4, high), uniform(-1, 1)],
        "exp_expm1_nonpositive": nonpositive,
        "expm1": [uniform(low, high), uniform(-3, 3), small, negative(small)],
        "expm1_nonpositive": nonpositive,
        "log": positive,
        "log_positive": positive,
        "log1p": [small, spread(1, huge), uniform(-0.999, 2), uniform(-0.1, 0.1), negative(small)],
        "log1p_unit": [uniform(0, 1), small],
        "log1mexp": [spread(tiny, 10), uniform(0.01, 3), uniform(0.01, -low - 0.5)],
        "sigmoid": [uniform(low, 100), uniform(-10, 10), uniform(-1, 1)],
        "log_sigmoid": [uniform(-1e4, -low - 0.5), uniform(-10, 10), uniform(-1, 1)],
        "softplus": [uniform(low + 0.5, 1e4), uniform(-10, 10), uniform(-1, 1)],
        "tanh": [uniform(-30, 30), uniform(-3, 3), uniform(-1, 1), small],
        "sinpi": [uniform(-2, 2), uniform(-1e5, 1e5), small],
        "cospi": [uniform(-2, 2), uniform(-1e5, 1e5)],
        "atan": [uniform(-10, 10), uniform(-1, 1), spread(tiny, huge), negative(small)],
        "erfc": [uniform(-6, tail), uniform(-1, 3)],
        "log_erfc": [uniform(0.5, 100), uniform(0.5, 10)],
    }


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def apply(library, name, x, vector=True):
    y = np.empty_like(x)
    type_name = "float" if x.dtype == np.float32 else "double"
    function = getattr(library, f"{name}_{type_name}")
    function(pointer(x), pointer(y), ctypes.c_int64(x.size), ctypes.c_bool(vector))
    return y


@functools.cache
def reference_library():
    level, flags = list(simd_levels().items())[-1]
    return compile_library([SOURCE], flags=flags, name=f"elementary-{level}")


def reference(name, x):
    """The exact result as a sum of two float64."""
    x = x.astype(np.float64)
    value, rest = np.empty_like(x), np.empty_like(x)
    function = getattr(reference_library(), f"{name}_reference")
    function(pointer(x), pointer(value), pointer(rest), ctypes.c_int64(x.size))
    return value, rest


@functools.cache
def cases(name, type_name):
    random = np.random.default_rng(0)
    samples = domains(type_name)[name]
    count = 200_000 if type_name == "float" else 40_000
    x = np.concatenate([sample(random, count) for sample in samples]).astype(TYPES[type_name])
    return x, *reference(name, x)


def ulps(y, value, rest):
    """|y - (value + rest)| in units in the last place of the exact result; infinite for a NaN."""
    info = np.finfo(y.dtype)
    exponent = np.frexp(np.maximum(np.abs(value), float(info.tiny)))[1]
    error = np.abs((y.astype(np.float64) - value) - rest) / np.ldexp(1.0, exponent - 1 - info.nmant)
    return np.where(np.isnan(y), np.inf, error)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("name", BOUNDS)
def test_error_is_within_the_documented_bound(library, name, type_name):
    x, value, rest = cases(name, type_name)
    for vector in (True, False):
        error = ulps(apply(library, name, x, vector), value, rest)
        worst = error.argmax()
        assert error[worst] <= BOUNDS[name][type_name], f"{name}({x[worst]!r}): {error[worst]} ulp"


def test_every_function_has_a_bound():
    assert set(BOUNDS) == set(domains("float"))


@pytest.mark.parametrize(
    ("name", "low", "high"), [("exp", -0.5, -0.25), ("log", 0.5, 1.0), ("tanh", 0.5, 1.0)]
)
def test_every_float_of_an_interval(library, name, low, high):
    first, last = sorted(np.array([low, high], np.float32).view(np.int32))
    x = np.arange(first, last, dtype=np.int32).view(np.float32)
    error = ulps(apply(library, name, x), *reference(name, x))
    assert error.max() <= BOUNDS[name]["float"]


inf, nan = np.inf, np.nan
EDGES = {
    "exp": [(-inf, 0), (-1e30, 0), (-800, 0), (800, inf), (1e30, inf), (inf, inf), (0, 1), (-0.0, 1)],
    "exp_nonpositive": [(-inf, 0), (-1e30, 0), (-800, 0), (0, 1)],
    "exp_expm1": [(-inf, 0), (-1e30, 0), (1e30, inf), (inf, inf), (0, 1)],
    "exp_expm1_nonpositive": [(-inf, 0), (-1e30, 0), (0, 1)],
    "expm1": [(-inf, -1), (-1e30, -1), (1e30, inf), (inf, inf), (0, 0)],
    "expm1_nonpositive": [(-inf, -1), (-1e30, -1), (0, 0)],
    "log": [(0, -inf), (-0.0, -inf), (-1e-30, nan), (-1, nan), (-inf, nan), (inf, inf), (1, 0)],
    "log1p": [(-1, -inf), (-1.5, nan), (-1e30, nan), (-inf, nan), (inf, inf), (0, 0)],
    "log1p_unit": [(0, 0)],
    "log1mexp": [(1e30, 0), (inf, 0)],
    "sigmoid": [(-inf, 0), (-1e30, 0), (1e30, 1), (inf, 1), (0, 0.5)],
    "log_sigmoid": [(-inf, -inf), (-(2.0**90), -(2.0**90)), (1e30, 0), (inf, 0)],
    "softplus": [(-inf, 0), (-1e30, 0), (2.0**90, 2.0**90), (inf, inf)],
    "tanh": [(-inf, -1), (-1e30, -1), (1e30, 1), (inf, 1), (0, 0), (-0.0, -0.0)],
    "sinpi": [(0, 0), (1, 0), (0.5, 1), (1.5, -1), (-0.5, -1), (65536, 0), (65536.5, 1)],
    "cospi": [(0, 1), (1, -1), (0.5, 0), (1.5, 0), (65536, 1), (65536.5, 0)],
    "atan": [(0, 0), (-0.0, -0.0), (-inf, -np.pi / 2), (1e30, np.pi / 2), (inf, np.pi / 2)],
    "erfc": [(-inf, 2), (-1e18, 2), (0, 1), (1e18, 0), (inf, 0), (30, 0)],
    "log_erfc": [(-inf, np.log(2)), (-1e18, np.log(2)), (inf, -inf)],
}


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("name", BOUNDS)
def test_edges(library, name, type_name):
    dtype = TYPES[type_name]
    # NaNs with signs and payloads that an integer operation could turn into numbers.
    if dtype is np.float32:
        words = [0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7FC00155]
        nans = np.array(words, np.uint32).view(np.float32)
    else:
        words = [2**63 - 1, 2**64 - 1, 0x7FF8 << 48, (0x7FF8 << 48) + 0x555]
        nans = np.array(words, np.uint64).view(np.float64)
    rows = np.array(EDGES.get(name, []), dtype).reshape(-1, 2)
    x, want = np.ascontiguousarray(rows.T)
    for vector in (True, False):
        np.testing.assert_allclose(apply(library, name, x, vector), want, rtol=2 * np.finfo(dtype).eps)
        assert np.isnan(apply(library, name, nans, vector)).all()


@pytest.mark.parametrize("type_name", TYPES)
def test_no_nan_and_no_infinity_from_finite_input(library, type_name):
    dtype = TYPES[type_name]
    info = np.finfo(dtype)
    magnitudes = np.concatenate(
        [[0, info.smallest_subnormal, info.tiny, info.eps, info.max], np.logspace(-37, 38, 2000)]
    ).astype(dtype)
    x = np.concatenate([magnitudes, -magnitudes])
    anything = ["exp_nonpositive", "exp_expm1_nonpositive", "expm1_nonpositive", "sigmoid", "log_sigmoid"]
    anything += ["softplus", "tanh", "atan", "erfc"]
    allowed = {"exp_nonpositive": x <= 0, "exp_expm1_nonpositive": x <= 0, "expm1_nonpositive": x <= 0}
    for vector in (True, False):
        for name in anything:
            assert np.isfinite(apply(library, name, x[allowed.get(name, x == x)], vector)).all(), name
        assert np.isfinite(apply(library, "log1mexp", magnitudes, vector)).all()
        assert np.isfinite(apply(library, "log", magnitudes[magnitudes > 0], vector)).all()
        assert np.isfinite(apply(library, "log_erfc", x[np.abs(x) < 1e18], vector)).all()


@pytest.mark.parametrize("type_name", TYPES)
def test_logarithms_of_subnormal_numbers(library, type_name):
    x = np.finfo(TYPES[type_name]).tiny * 2.0 ** -np.arange(1, 23).astype(TYPES[type_name])
    for vector in (True, False):
        assert ulps(apply(library, "log", x, vector), *reference("log", x)).max() <= BOUNDS["log"][type_name]


def test_log_erfc_far_in_the_tail(library):
    # -x^2 - log(x sqrt(pi)) with the first terms of the asymptotic series.
    x = np.logspace(2, 17, 100)
    want = -(x**2) - np.log(x * np.sqrt(np.pi)) + np.log1p(-1 / (2 * x**2) + 3 / (4 * x**4))
    np.testing.assert_allclose(apply(library, "log_erfc", x), want, rtol=1e-15)
    single = x.astype(np.float32)
    want = -(single.astype(np.float64) ** 2) - np.log(single * np.sqrt(np.pi))
    np.testing.assert_allclose(apply(library, "log_erfc", single), want, rtol=2e-7)


def test_log_erfc_near_zero_errs_absolutely(library):
    for dtype in TYPES.values():
        x = np.linspace(-6, 0.5, 10_000).astype(dtype)
        value, rest = reference("log_erfc", x)
        error = np.abs((apply(library, "log_erfc", x).astype(np.float64) - value) - rest)
        assert error.max() <= 2 * np.finfo(dtype).eps
