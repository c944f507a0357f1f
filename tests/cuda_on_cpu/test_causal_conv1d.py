"""The CUDA kernels of the depthwise causal convolution and of its updates, run as C++."""

import itertools

import pytest
import torch
from cuda_on_cpu.emulator import DTYPES, SANITIZERS, image, run

from gmfast import reference

pytestmark = pytest.mark.cuda_on_cpu

PASS, UPDATE = range(2)

# batch, channels, length: one number; several tiles along time or along channels; none.
SHAPES = [(1, 1, 1), (2, 3, 130), (1, 35, 67), (1, 2, 2100), (3, 70, 5), (2, 2, 0)]
# taps, dilation: in registers and not; further apart than a sequence is long.
TAPS = [(4, 1), (1, 1), (6, 3), (2, 40), (3, 9)]


def nan(*shape, dtype):
    return torch.full(shape, float("nan"), dtype=dtype)


def time_inner(t):
    """A slice of a larger buffer, its times adjacent."""
    return nan(t.shape[0], t.shape[1] + 1, t.shape[2] + 3, dtype=t.dtype)[:, 1:, 2 : 2 + t.shape[2]].copy_(t)


def channels_inner(t):
    wide = nan(t.shape[0], t.shape[2], t.shape[1] + 3, dtype=t.dtype)
    return wide.transpose(1, 2)[:, 1 : 1 + t.shape[1]].copy_(t)


def options(taps, dilation, silu, channels):
    return {"dilation": dilation, "groups": channels, "activation": "silu" if silu else None}


def computed_in(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def weights(tensor, dtype):
    """The items that make a parameter beside tensors of `dtype`."""
    return [None] if tensor is None else [tensor, tensor.dtype == computed_in(dtype)]


def indices(tensor):
    return [None] if tensor is None else [tensor, tensor.dtype == torch.int64]


def packing(shape, index_dtype, generator):
    """Sequences that change often, come back and have padding among them, and lengths."""
    batch, _, length = shape
    changes = torch.rand(batch, length, generator=generator) < 0.2
    seq_idx = (changes.cumsum(1) % 4 - 1 + torch.arange(batch)[:, None]).to(index_dtype)
    return seq_idx, torch.randint(length + 1, (batch,), generator=generator)


def pass_case(shape, taps, dilation, dtype, inner, full, packed, generator):
    """The items of a case, and pairs of (what is filled, what is to be in it).

    `full`: with a bias and a state, SiLU, and every gradient. `packed`: 1 for float32 parameters, 2 for
    sequences, 4 for lengths.
    """
    batch, channels, length = shape
    random = lambda *size: torch.randn(size, generator=generator).to(dtype)  # noqa: E731
    lay_out = channels_inner if inner else time_inner
    state_shape = (batch, channels, (taps - 1) * dilation)
    wide = computed_in(dtype) if packed & 1 else dtype
    x, weight, grad = lay_out(random(*shape)), random(channels, 1, taps).to(wide), lay_out(random(*shape))
    bias, state = (random(channels).to(wide), lay_out(random(*state_shape))) if full else (None, None)
    seq_idx, lengths = packing(shape, torch.int32 if inner else torch.int64, generator)
    seq_idx, lengths = seq_idx if packed & 2 else None, lengths if packed & 4 else None
    exact = [t if t is None else t.double().requires_grad_() for t in (x, weight, bias, state)]
    if length:
        y = reference.causal_conv1d(
            *exact[:3],
            **options(taps, dilation, full, channels),
            initial_state=exact[3],
            seq_idx=seq_idx,
            lengths=lengths,
        )
    else:
        y = sum(t.sum() for t in exact if t is not None) + exact[0]
    leaves = [t for t in exact if t is not None]
    truths = iter(torch.autograd.grad(y, leaves, grad.double()))
    truths = [None if t is None else next(truths) for t in exact]

    results = [lay_out(nan(*shape, dtype=dtype))]  # y, then the gradients in the driver's order
    results += [lay_out(torch.full_like(x, float("nan")))]
    results += [lay_out(nan(*state_shape, dtype=dtype)) if full else None]
    results += [
        nan(*weight.shape, dtype=wide) if full else None,
        nan(channels, dtype=wide) if full else None,
    ]
    items = [PASS, *shape, taps, dilation, full, inner, *image(x), *image(state)]
    items += [*weights(weight, dtype), *weights(bias, dtype), *indices(seq_idx), *indices(lengths)]
    items += [*image(results[0]), *image(grad), *image(results[1]), *image(results[2])]
    items += [*weights(results[3], dtype), *weights(results[4], dtype)]
    expected = [y.detach(), truths[0], truths[3], truths[1], truths[2]]
    return items, [(r, e) for r, e in zip(results, expected, strict=True) if r is not None]


def update_case(batch, channels, length, taps, dilation, dtype, index_dtype, longer, generator):
    random = lambda *size: torch.randn(size, generator=generator).to(dtype)  # noqa: E731
    span = (taps - 1) * dilation
    entries, seen = span + longer, None
    if longer:  # a circular state
        seen = torch.randint(3 * entries, (batch,), generator=generator).to(index_dtype or torch.int64)
    rows = batch + 2
    row_of = None
    if index_dtype is not None:
        row_of = torch.randperm(rows, generator=generator)[:batch].to(index_dtype)
        row_of[batch // 2] = -3
        row_of[batch - 1] = rows  # beyond
    x = time_inner(random(batch, channels, length))
    states = [time_inner(random(rows if row_of is not None else batch, channels, entries)) for _ in range(2)]
    wide = computed_in(dtype) if longer else dtype
    weight, bias = random(channels, 1, taps).to(wide), random(channels).to(wide)
    y = nan(batch, channels, length, dtype=dtype)
    window = nan(batch, length, channels, taps, dtype=dtype)

    index = torch.arange(batch) if row_of is None else torch.where(row_of < rows, row_of, -1)
    expected = []
    for state in states:
        exact = state.double()
        out = reference.causal_conv1d_update(
            x.double(),
            exact,
            weight.double(),
            bias.double(),
            **options(taps, dilation, True, channels),
            state_indices=index,
            cache_seqlens=seen,
        )
        expected += [out, exact]
    past = states[1][index.clamp(min=0).long()]
    if seen is not None:
        past = torch.stack([p.roll(-int(n), 1) for p, n in zip(past, seen, strict=True)])
    past = torch.cat([past[:, :, longer:], x], 2)
    under = [past[:, :, j * dilation : j * dilation + length] for j in range(taps)]
    under = torch.stack(under, -1).transpose(1, 2) * (index >= 0)[:, None, None, None]
    items = [UPDATE, batch, channels, length, taps, dilation, True, len(states[0])]
    items += [*indices(row_of), *indices(seen), entries, *image(x), *image(states[0]), *image(states[1])]
    items += [*weights(weight, dtype), *weights(bias, dtype), *image(y), window]
    results = [y, states[0], states[1], window]
    return items, list(zip(results, [*expected[:2], expected[3], under.double()], strict=True))


def check(cases):
    for items, pairs in cases:
        for i, (result, expected) in enumerate(pairs):
            scale = 1 + max(expected.abs().flatten().tolist(), default=0)
            error = scale * (1e-13 if result.dtype == torch.float64 else 1e-5)
            if result.dtype in (torch.bfloat16, torch.float16):
                error += scale * torch.finfo(result.dtype).eps
            wrong = ~((result.double() - expected).abs() <= error)
            assert not wrong.any(), (items[:8], i, result.dtype, result[wrong], expected[wrong])
            if result._base is not None:
                outside = result._base.numel() - result.numel()
                assert result._base.isnan().sum() == outside, "written beside the result"


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_pass(sanitizer):
    generator = torch.Generator().manual_seed(0)
    cases = []
    pairs = list(itertools.product(SHAPES, TAPS))[::2]  # each shape with the even or the odd TAPS
    for i, (shape, (taps, dilation)) in enumerate(pairs):
        dtype = DTYPES[i % 4]
        inner, full = (i // 4 + i) % 2 == 0, i % 3 != 0
        packed = (0, 7, 2, 4, 1)[i % 5]
        cases.append(pass_case(shape, taps, dilation, dtype, inner, full, packed, generator))
    run("causal_conv1d", sanitizer, [items for items, _ in cases])
    check(cases)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_update(sanitizer):
    generator = torch.Generator().manual_seed(0)
    cases = [
        update_case(
            *size,
            taps,
            dilation,
            DTYPES[i % 4],
            (None, torch.int32, torch.int64)[i % 3],
            (0, 1, 5)[i // 2 % 3],
            generator,
        )
        for i, (size, (taps, dilation)) in enumerate(
            itertools.product([(4, 3, 1), (5, 33, 3), (3, 2, 50)], [(4, 1), (1, 1), (2, 40), (3, 70)])
        )
    ]
    run("causal_conv1d", sanitizer, [items for items, _ in cases])
    check(cases)
