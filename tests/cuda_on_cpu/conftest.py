"""Compiles the drivers before the first test, two at a time."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from cuda_on_cpu.emulator import SANITIZERS, compile_driver


@pytest.fixture(scope="session", autouse=True)
def _drivers():
    names = [
        "affine_coupling",
        "causal_conv1d",
        "decode",
        "discretized_logistic_mixture",
        "logistic_mixture_cdf",
        "masked_conv2d",
        "pairs",
        "rational_quadratic_spline",
        "sum",
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: compile_driver(*job), [(n, s) for n in names for s in SANITIZERS]))
