"""Compiles the drivers before the first test, two at a time."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from cuda_on_cpu.emulator import SANITIZERS, compile_driver


@pytest.fixture(scope="session", autouse=True)
def _drivers():
    names = [
        "actnorm",
        "affine_coupling",
        "causal_conv1d",
        "decode",
        "dequantize_logit",
        "diffusion_hybrid_loss",
        "diffusion_step",
        "discretized_gaussian_nll",
        "discretized_logistic_mixture",
        "gaussian_kl",
        "gaussian_log_prob",
        "langevin_step",
        "logistic_mixture_cdf",
        "masked_conv2d",
        "pairs",
        "q_sample",
        "rational_quadratic_spline",
        "standard_normal",
        "sum",
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: compile_driver(*job), [(n, s) for n in names for s in SANITIZERS]))
