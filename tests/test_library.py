"""Importing, what there is to import, and what `doctor` says about it."""

import inspect
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import gmfast
import gmfast.functional as GF
from gmfast import _library

SIGNATURES = {
    "discretized_logistic_mixture_nll": "(x, params, *, num_classes=256, log_scale_min=-7.0, "
    "formulation='exact', reduction='none')",
    "discretized_logistic_mixture_sample": "(params, *, channels=3, num_classes=256, log_scale_min=-7.0, "
    "temperature=1.0, quantize=True, seed=None)",
    "gated_activation": "(x, residual=None, *, dim=1)",
    "concat_elu": "(x, dim=1)",
    "affine_coupling": "(x, shift, scale, *, scale_map='exp', shift_first=False, clamp=2.0, mask=None, "
    "inverse=False, packed=None, recompute=False)",
    "masked_conv2d": "(x, weight, bias=None, *, mask_type='B', channel_groups=1, dilation=1)",
    "causal_conv1d": "(x, weight, bias=None, *, dilation=1, groups=1, activation=None, initial_state=None, "
    "return_state=False, seq_idx=None, lengths=None, final_states_out=None)",
    "causal_conv1d_update": "(x, state, weight, bias=None, *, dilation=1, groups=1, activation=None, "
    "state_indices=None, cache_seqlens=None)",
    "actnorm": "(x, shift, log_scale, *, inverse=False)",
    "dequantize_logit": "(x, *, num_levels=256, alpha=0.05, seed=None, inverse=False, noise=None, "
    "quantize=True)",
    "gaussian_log_prob": "(z, mean=None, log_std=None)",
    "standard_normal": "(shape, *, seed=None, dtype=torch.float32, device=None)",
    "logistic_mixture_cdf": "(x, logits, means, log_scales, *, inverse=False, reduction='sum')",
    "rational_quadratic_spline": "(x, widths, heights, derivatives, *, bound=3.0, tails='linear', "
    "min_bin_width=0.001, min_bin_height=0.001, min_derivative=0.001, inverse=False, reduction='sum', "
    "packed=False)",
    "diffusion_step": "(x, model_output, table, *, step=0, unconditional=None, guidance=1.0, "
    "guidance_rescale=0.0, variance=None, clip=None, threshold=None, threshold_max=None, history=(), "
    "noise=None, seed=None, x0=False, kept=False, out=None)",
    "q_sample": "(x, alpha, sigma, *, noise=None, seed=None, target=None)",
    "langevin_step": "(x, score, *, step_size=None, snr=None, alpha=1.0, temperature=1.0, noise=None, "
    "seed=None, draw=0, return_mean=False)",
    "gaussian_kl": "(mean1, logvar1, mean2, logvar2)",
    "discretized_gaussian_nll": "(x, mean, log_scale, *, num_classes=256, formulation='exact')",
    "diffusion_hybrid_loss": "(model_output, x0, x_t, noise, table, timestep, *, num_classes=256, "
    "formulation='exact')",
}

WITHOUT_LIBRARY = """
    import sys
    sys.modules["gmfast._C"] = None  # importing it now raises ImportError
"""


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_functions(name):
    signature = inspect.signature(getattr(GF, name))
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(parameters)) == SIGNATURES[name]
    documentation = getattr(GF, name).__doc__
    assert "Equivalent to" in documentation and "Raises:" in documentation
    reference = inspect.signature(getattr(gmfast.reference, name)).parameters
    assert list(reference) == list(inspect.signature(getattr(GF, name)).parameters)


def test_public_names():
    assert set(SIGNATURES) <= set(GF.__all__) and set(SIGNATURES) <= set(gmfast.reference.__all__)
    assert issubclass(gmfast.distributions.DiscretizedLogisticMixture, torch.distributions.Distribution)
    assert issubclass(gmfast.nn.GatedActivation, torch.nn.Module)
    assert issubclass(gmfast.nn.ConcatELU, torch.nn.Module)
    assert issubclass(gmfast.nn.MaskedConv2d, torch.nn.Conv2d)
    assert issubclass(gmfast.nn.CausalConv1d, torch.nn.Conv1d)
    assert callable(gmfast.decode.compile) and gmfast.decode.Program.__doc__
    assert gmfast.__version__.count(".") == 2


@pytest.mark.parametrize("dim", [1, -1])
def test_modules(device, dim):
    x = torch.randn(2, 4, 6, device=device)
    assert torch.equal(gmfast.nn.GatedActivation(dim)(x), GF.gated_activation(x, dim=dim))
    half = x.chunk(2, dim)[0]
    assert torch.equal(gmfast.nn.GatedActivation(dim)(x, half), GF.gated_activation(x, half, dim=dim))
    assert torch.equal(gmfast.nn.ConcatELU(dim)(x), GF.concat_elu(x, dim))


def test_importing_starts_no_cuda():
    assert run("import torch, gmfast; print(torch.cuda.is_initialized())") == "False\n"


def test_importing_without_a_gpu():
    shown = run("import gmfast; print(gmfast.doctor())", CUDA_VISIBLE_DEVICES="")
    assert "GPU:" not in shown and "discretized_logistic_mixture_nll" in shown


def test_doctor():
    text = gmfast.doctor()
    assert text.startswith(f"gmfast {gmfast.__version__}, torch {torch.__version__}, ")
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    for name in (*SIGNATURES, "decode"):
        assert (f"C++ kernel, {_library._C.cpu_level()}" if _library._C else "plain PyTorch") in rows[name]
        assert (
            "CUDA kernel" in rows[name] if "cuda" in _library.devices else "built without nvcc" in rows[name]
        )


def test_without_the_compiled_library():
    """Every operation runs in plain PyTorch, gradients included, and `doctor` says so and why."""
    shown = run(
        WITHOUT_LIBRARY
        + """
    import torch, gmfast, gmfast.functional as GF
    from gmfast import reference
    torch.manual_seed(0)
    x = torch.rand(2, 3, 4) * 2 - 1
    params = torch.randn(2, 20, 4, requires_grad=True)
    for reduction in ("none", "batch", "sum", "mean", "bits_per_dim"):
        loss = GF.discretized_logistic_mixture_nll(x, params, reduction=reduction)
        assert torch.equal(loss, reference.discretized_logistic_mixture_nll(x, params, reduction=reduction))
    loss.backward()
    assert params.grad.abs().sum() > 0
    # Computed in float32 as a kernel would.
    assert GF.discretized_logistic_mixture_nll(x.bfloat16(), params.bfloat16()).dtype == torch.float32
    drawn = GF.discretized_logistic_mixture_sample(params, seed=1)
    expected = reference.discretized_logistic_mixture_sample(params.detach(), seed=torch.tensor(1))
    assert torch.equal(drawn, expected)
    assert torch.equal(GF.gated_activation(x, dim=2), reference.gated_activation(x, dim=2))
    assert torch.equal(GF.concat_elu(x), reference.concat_elu(x))
    for bad in (lambda: GF.gated_activation(x), lambda: GF.concat_elu(x, 3)):
        try:
            bad()
        except ValueError:
            pass
        else:
            raise AssertionError("no error")
    print(gmfast.doctor())
    """
    )
    assert "compiled library: none (" in shown and "gmfast._C" in shown
    assert shown.count("plain PyTorch (no compiled library)") == 2 * (len(SIGNATURES) + 1)


@pytest.mark.skipif(_library._C is None, reason="compares with the compiled library")
def test_without_the_compiled_library_samples_are_the_same(tmp_path):
    code = """
    import torch, gmfast.functional as GF
    params = torch.randn(2, 20, 30, generator=torch.Generator().manual_seed(0)).double()
    torch.save(GF.discretized_logistic_mixture_sample(params, seed=-3), {!r})
    """
    run(code.format(str(tmp_path / "with.pt")))
    run(WITHOUT_LIBRARY + code.format(str(tmp_path / "without.pt")))
    with_library, without = (torch.load(tmp_path / name) for name in ("with.pt", "without.pt"))
    torch.testing.assert_close(with_library, without, rtol=0, atol=1e-15)


def test_a_device_without_a_kernel_runs_the_reference():
    """The meta device: shapes and dtypes come out of plain PyTorch."""
    x, params = torch.empty(2, 3, 4, device="meta"), torch.empty(2, 20, 4, device="meta")
    assert GF.discretized_logistic_mixture_nll(x, params, reduction="batch").shape == (2,)
    assert GF.discretized_logistic_mixture_sample(params, seed=1).shape == (2, 3, 4)
    assert GF.gated_activation(params).shape == (2, 10, 4)
    assert GF.concat_elu(params).device.type == "meta"
