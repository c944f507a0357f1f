"""causal-conv1d's own tests on our operations.

GMFAST_CAUSAL_CONV1D_TESTS names the `tests` folder of a checkout of causal-conv1d. Its test file runs as it
is, but on the device at hand; what it compares with is plain PyTorch in float32.
"""

import os
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch

import gmfast.functional as GF
from gmfast import _library, reference

FOLDER = os.environ.get("GMFAST_CAUSAL_CONV1D_TESTS")
if not FOLDER:
    pytest.skip(
        "GMFAST_CAUSAL_CONV1D_TESTS: set it to the tests folder of a checkout of causal-conv1d",
        allow_module_level=True,
    )


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, **options):
    return _sequence(GF.causal_conv1d, x, weight, bias, seq_idx=seq_idx, **options)


def causal_conv1d_ref(x, weight, bias=None, initial_states=None, **options):
    state = None if initial_states is None else initial_states.float()
    result = _sequence(
        reference.causal_conv1d, x.float(), weight.unsqueeze(1), bias, initial_states=state, **options
    )
    return tuple(t.to(x.dtype) for t in result) if isinstance(result, tuple) else result.to(x.dtype)


def _sequence(function, x, weight, bias, initial_states=None, return_final_states=False, **options):
    return function(
        x,
        weight,
        bias,
        groups=x.shape[1],
        initial_state=initial_states,
        return_state=return_final_states,
        **options,
    )


def causal_conv1d_update(x, conv_state, weight, bias=None, conv_state_indices=None, **options):
    options |= {"groups": x.shape[1], "state_indices": conv_state_indices}
    return GF.causal_conv1d_update(x, conv_state, weight, bias, **options)


def causal_conv1d_update_ref(x, conv_state, weight, bias=None, **options):
    options |= {"groups": x.shape[1]}
    y = reference.causal_conv1d_update(x.float(), conv_state, weight.unsqueeze(1), bias, **options)
    return y.to(x.dtype)


def causal_conv1d_varlen_states(x, cu_seqlens, state_len):
    """The states at the ends of sequences packed as rows of x (T, C), by way of a right-padded batch."""
    lengths = cu_seqlens.diff()
    padded = torch.nn.utils.rnn.pad_sequence(x.split(lengths.tolist()), batch_first=True).transpose(1, 2)
    taps = x.new_zeros(x.shape[1], state_len + 1)
    return GF.causal_conv1d(padded, taps, groups=x.shape[1], lengths=lengths, return_state=True)[1]


def causal_conv1d_varlen_states_ref(x, cu_seqlens, state_len):
    states = x.new_zeros(len(cu_seqlens) - 1, x.shape[1], state_len)
    for state, rows in zip(states, x.split(cu_seqlens.diff().tolist()), strict=True):
        rows = rows[-state_len:]
        state[:, state_len - len(rows) :] = rows.T
    return states


def rearrange(x, pattern):
    """The one use of einops."""
    assert pattern == "b s d -> b d s"
    return x.transpose(1, 2)


def _module(name, *functions):
    module = ModuleType(name)
    for function in functions:
        setattr(module, function.__name__, function)
    return {module.__name__: module}


def _load():
    device = "cuda" if "cuda" in _library.devices and torch.cuda.is_available() else "cpu"
    path = Path(FOLDER, "test_causal_conv1d.py")
    source = path.read_text().replace('"cuda"', f'"{device}"').replace("range(10000)", "range(20)")
    interface = causal_conv1d_fn, causal_conv1d_ref, causal_conv1d_update, causal_conv1d_update_ref
    varlen = causal_conv1d_varlen_states, causal_conv1d_varlen_states_ref
    modules = {"causal_conv1d": ModuleType("causal_conv1d")}
    modules |= _module("causal_conv1d.causal_conv1d_interface", *interface)
    modules |= _module("causal_conv1d.causal_conv1d_varlen", *varlen)
    modules |= _module("einops", rearrange)
    namespace = {"__name__": __name__}
    with mock.patch.dict(sys.modules, modules):
        exec(compile(source, path, "exec"), namespace)
    return {name: value for name, value in namespace.items() if name.startswith("test_")}


globals().update(_load())
