"""Philox 4x32-10 (Salmon et al., 2011) in plain PyTorch integers: the noise of every sampling operation.

The counter is (position low, position high, sample, draw) and the key is the 64-bit seed, so sample *i*
has the same noise whatever the batch size, the device or the number of threads.
"""

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


def words(seed, batch, spatial, draw, device, first=0):
    """Four words (B, *S) for each sample and position, counted from `first`. `seed`: a 0-dim int64 tensor."""
    numel = 1
    for size in spatial:
        numel *= size
    position = torch.arange(first, first + numel, device=device).reshape(1, *spatial)
    sample = torch.arange(batch, device=device).reshape(batch, *[1] * len(spatial))
    shape = torch.broadcast_shapes(position.shape, sample.shape)
    zero = torch.zeros(shape, dtype=torch.int64, device=device)
    counter = (zero + (position & _WORD), zero + (position >> 32), zero + (sample & _WORD), zero + draw)
    return philox(counter, (seed & _WORD, (seed >> 32) & _WORD))


def uniform(seed, batch, spatial, count, dtype, device, first=0):
    """`count` numbers a position in the open interval (0, 1): (B, count, *S).

    float32 takes the top 23 bits of a word; float64 adds the word of the same place in the next draw.
    """
    columns = []
    for drawn in range(0, count, 4):
        blocks = [words(seed, batch, spatial, drawn // 2 + block, device, first) for block in (0, 1)]
        for high, low in list(zip(*blocks, strict=True))[: count - drawn]:
            if dtype == torch.float64:
                columns.append((((high << 20) | (low >> 12)).to(dtype) + 0.5) * 2.0**-52)
            else:
                columns.append(((high >> 9).to(dtype) + 0.5) * 2.0**-23)
    return torch.stack(columns, 1)
