"""Philox 4x32-10 (Salmon et al., 2011) in plain PyTorch integers: the noise of every sampling operation.

The counter is (position low, position high, sample, draw) and the key is the 64-bit seed, so sample *i*
has the same noise whatever the batch size, the device or the number of threads. `first` is the index of the
batch's first sample; samples with seeds of their own have the noise of sample 0.
"""

import math

import torch

_WORD = 0xFFFFFFFF


def _multiply(a, constant):
    """High and low 32-bit words of a product, from 16-bit halves: int64 has no unsigned high word."""
    low = (a & 0xFFFF) * constant
    high = (a >> 16) * constant + (low >> 16)
    return (high >> 16) & _WORD, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(counter, key):
    """Ten rounds. `counter`: four and `key`: two int64 tensors holding 32-bit words; returns four words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def words(seed, batch, spatial, draw, device, position=0, first=0):
    """Four words (B, *S) for each sample and position, counted from `first` and `position`.

    `seed`: an int64 tensor, 0-dim, or (B,): each sample is then sample 0 of its own seed. `draw`: an int, or
    an int64 tensor, 0-dim or (B,).
    """
    numel = 1
    for size in spatial:
        numel *= size
    position = torch.arange(position, position + numel, device=device).reshape(1, *spatial)
    sample = torch.arange(first, first + batch, device=device).reshape(batch, *[1] * len(spatial))
    if seed.dim():
        sample, seed = torch.zeros_like(sample), seed.reshape(sample.shape)
    if isinstance(draw, torch.Tensor) and draw.dim():
        draw = draw.reshape(sample.shape)
    shape = torch.broadcast_shapes(position.shape, sample.shape)
    zero = torch.zeros(shape, dtype=torch.int64, device=device)
    counter = (zero + (position & _WORD), zero + (position >> 32), zero + (sample & _WORD), zero + draw)
    return philox(counter, (seed & _WORD, (seed >> 32) & _WORD))


def uniform(seed, batch, spatial, count, dtype, device, position=0, first=0):
    """`count` numbers a position in the open interval (0, 1): (B, count, *S).

    float32 takes the top 23 bits of a word; float64 adds the word of the same place in the next draw.
    """
    columns = []
    for drawn in range(0, count, 4):
        blocks = [
            words(seed, batch, spatial, drawn // 2 + block, device, position, first) for block in (0, 1)
        ]
        for high, low in list(zip(*blocks, strict=True))[: count - drawn]:
            if dtype == torch.float64:
                columns.append((((high << 20) | (low >> 12)).to(dtype) + 0.5) * 2.0**-52)
            else:
                columns.append(((high >> 9).to(dtype) + 0.5) * 2.0**-23)
    return torch.stack(columns, 1)


def array_words(seed, batch, numel, per_block, device, draw=0, first=0):
    """Words of the first `numel` elements of each sample, `per_block` elements to a block.

    Sixteen consecutive elements lie in sixteen blocks, and the next sixteen take the blocks' next words, for
    the reason in csrc/math/random.h.

    Returns:
        int64 `(B, tiles, per_block, 4 / per_block, 16)`.
    """
    tiles = -(-numel // (16 * per_block))
    drawn = torch.stack(words(seed, batch, (tiles * 16,), draw, device, first=first), 1)
    return drawn.view(batch, per_block, 4 // per_block, tiles, 16).permute(0, 3, 1, 2, 4)


def array_uniform(seed, shape, dtype, device, first=0):
    """One number for each element, in the open interval (0, 1), of `shape` (B, *S)."""
    batch, *spatial = shape
    numel = math.prod(spatial)
    if dtype == torch.float64:
        low, high = array_words(seed, batch, numel, 2, device, first=first).unbind(3)
        numbers = (((high << 20) | (low >> 12)).to(dtype) + 0.5) * 2.0**-52
    else:
        drawn = array_words(seed, batch, numel, 4, device, first=first)
        numbers = ((drawn >> 9).to(torch.float32) + 0.5) * 2.0**-23
    return numbers.flatten(1)[:, :numel].reshape(shape)


def array_normal(seed, shape, dtype, device, draw=0, first=0):
    """One standard normal number for each element, after Box and Muller, computed in float64."""
    batch, *spatial = shape
    numel = math.prod(spatial)
    if dtype == torch.float64:
        low, high = array_words(seed, batch, numel, 2, device, draw, first).unbind(3)
        radius_word, angle_word = (((high << 20) | (low >> 12)).to(dtype) + 0.5).mul(2.0**-52).unbind(2)
        angle = 2 * math.pi * angle_word
    else:
        # Of four words, the first two make two numbers, and the last two.
        drawn = array_words(seed, batch, numel, 4, device, draw, first)
        radius_bits, angle_bits = drawn.flatten(2, 3).unflatten(2, (2, 2)).unbind(3)
        # Rounded as the kernels round it: near 1 its steps are coarse.
        radius_word = ((radius_bits >> 1).float() * 2.0**-31 + 2.0**-32).double()
        # The right half of the circle, in signed 32 bits; the last bit turns it around.
        angle = math.pi * (2.0**-32 * ((angle_bits ^ 2**31) - 2**31) + (angle_bits & 1))
    radius = torch.sqrt(-2 * torch.log(radius_word))
    numbers = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -2)
    return numbers.flatten(1)[:, :numel].reshape(shape).to(dtype)
