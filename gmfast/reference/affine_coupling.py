"""The affine coupling in plain PyTorch."""

import math

import torch
import torch.nn.functional as F

#: log s of the raw number a, by the name of the scale map.
SCALE_MAPS = {
    "exp": lambda a, clamp: a,
    "sigmoid": lambda a, clamp: F.logsigmoid(a + 2),
    "tanh": lambda a, clamp: clamp * torch.tanh(a / clamp),
    "atan": lambda a, clamp: clamp * 0.636 * torch.atan(a),
    "softclip": lambda a, clamp: a / (1 + (a / math.log(1e-3)).abs()),
}


def affine_coupling(
    x,
    shift,
    scale,
    *,
    scale_map="exp",
    shift_first=False,
    clamp=2.0,
    mask=None,
    inverse=False,
    packed=None,
    recompute=False,  # says what a kernel saves; here autograd does
):
    """Reference of `gmfast.functional.affine_coupling`."""
    if packed == "chunk":
        shift, scale = shift.chunk(2, 1)
    elif packed == "interleaved":
        shift, scale = shift[:, ::2], shift[:, 1::2]
    channels = x.shape[1] - shift.shape[1]
    kept, tail = x[:, :channels], x[:, channels:]
    log_s = torch.zeros_like(shift) if scale is None else SCALE_MAPS[scale_map](scale, clamp)
    if mask is not None:
        log_s = torch.where(mask != 0, 0.0, log_s)
        shift = torch.where(mask != 0, 0.0, shift)
    if inverse:
        tail = tail * torch.exp(-log_s) - shift if shift_first else (tail - shift) * torch.exp(-log_s)
        log_s = -log_s
    else:
        tail = (tail + shift) * torch.exp(log_s) if shift_first else tail * torch.exp(log_s) + shift
    return torch.cat([kept, tail], 1), log_s.flatten(1).sum(1)
