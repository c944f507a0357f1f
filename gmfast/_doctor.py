"""Report of the kernels in use on this machine, and why."""

import os

import torch

from . import _library
from ._version import __version__
from .ops.masked_conv2d import has_amx

OPERATIONS = (
    "discretized_logistic_mixture_nll",
    "discretized_logistic_mixture_sample",
    "gated_activation",
    "concat_elu",
    "affine_coupling",
    "masked_conv2d",
    "causal_conv1d",
    "causal_conv1d_update",
    "actnorm",
    "dequantize_logit",
    "gaussian_log_prob",
    "standard_normal",
    "logistic_mixture_cdf",
    "rational_quadratic_spline",
    "diffusion_step",
    "q_sample",
    "langevin_step",
    "gaussian_kl",
    "discretized_gaussian_nll",
    "diffusion_hybrid_loss",
)


def doctor():
    """Describe the versions, the build, and what each device runs for operations and decode programs."""
    info = _library._C.build_info() if _library._C else {}
    lines = [f"gmfast {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads"]
    if "cpu" not in _library.devices:
        lines.append(f"compiled library: none ({_library.load_error})")
    else:
        lines.append(
            f"compiled library: {info['compiler']}, built against torch {info['torch']}; "
            f"CPU kernels {info['cpu_levels']}, in use {_library._C.cpu_level()}; "
            + (f"CUDA {info['cuda']} for {info['cuda_architectures']}" if info["cuda"] else "no CUDA kernels")
        )
    isa = os.environ.get("GMFAST_CPU_ISA")
    if isa not in (None, "v2", "v3", "v4"):
        lines.append(f"GMFAST_CPU_ISA={isa} is none of v2, v3 and v4, and is ignored")
    if torch.cuda.is_available():
        lines.append(f"GPU: {torch.cuda.get_device_name()}")

    rows = [("operation", "cpu", "cuda", "elsewhere")]
    names = (*OPERATIONS, "decode programs")
    rows += [(name, _implementation("cpu"), _implementation("cuda"), "plain PyTorch") for name in names]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines.append("")
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    if "cpu" in _library.devices:
        where = (["bfloat16 on this CPU (AMX)"] if has_amx else []) + ["GPUs beyond 4 input channels"]
        lines.append(
            "torch's convolution, on the live rows, is masked_conv2d and dense causal_conv1d for "
            + ", ".join(where)
        )
    return "\n".join(lines)


def _implementation(device):
    if "cpu" not in _library.devices:
        return "plain PyTorch (no compiled library)"
    if device == "cpu":
        return f"C++ kernel, {_library._C.cpu_level()}"
    if "cuda" not in _library.devices:
        return "plain PyTorch (built without nvcc)"
    return "CUDA kernel" if torch.cuda.is_available() else "CUDA kernel (no GPU here)"
