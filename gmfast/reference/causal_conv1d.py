"""The causal convolution in plain PyTorch."""

import torch
import torch.nn.functional as F

from .gated_activation import gated_activation

ACTIVATIONS = {None: lambda y: y, "silu": F.silu, "gated": gated_activation}


def causal_conv1d(
    x,
    weight,
    bias=None,
    *,
    dilation=1,
    groups=1,
    activation=None,
    initial_state=None,
    return_state=False,
    seq_idx=None,
    lengths=None,
    final_states_out=None,
):
    """Reference of `gmfast.functional.causal_conv1d`."""
    if final_states_out is not None:
        options = {"initial_state": initial_state, "seq_idx": seq_idx, "lengths": lengths}
        options |= {"dilation": dilation, "groups": groups, "activation": activation}
        y, state = causal_conv1d(x, weight, bias, return_state=return_state, **options)
        return y, final_states_out.copy_(state)
    batch, channels, time = x.shape
    length = (weight.shape[2] - 1) * dilation
    if initial_state is None:
        initial_state = x.new_zeros(batch, channels, length)
    padded = torch.cat([initial_state, x], 2)
    if time == 0 or (seq_idx is None and lengths is None):
        y = ACTIVATIONS[activation](F.conv1d(padded, weight, bias, dilation=dilation, groups=groups))
        return (y, padded[:, :, padded.shape[2] - length :]) if return_state else y

    # The sequence of each input, before the first that of the first; padding is -1.
    at = torch.arange(-length, time, device=x.device)
    sequence = torch.zeros_like(x[:, 0], dtype=torch.int64) if seq_idx is None else seq_idx.long()
    sequence = sequence.clamp(min=-1)[:, at.clamp(min=0)]
    end = torch.full((batch,), time, device=x.device) if lengths is None else lengths.long()
    sequence = torch.where(at < end[:, None], sequence, -1)

    own = sequence[:, length:]
    y = 0.0
    for tap in range(weight.shape[2]):
        seen = slice(tap * dilation, tap * dilation + time)
        inputs = torch.where((sequence[:, seen] == own)[:, None], padded[:, :, seen], 0.0)
        y = y + F.conv1d(inputs, weight[:, :, tap : tap + 1], groups=groups)
    y = y if bias is None else y + bias[:, None]
    y = torch.where((own >= 0)[:, None], ACTIVATIONS[activation](y), 0.0)
    if not return_state:
        return y

    index = end[:, None] + torch.arange(length, device=x.device)  # into `padded`
    state = padded.gather(2, index[:, None].expand(-1, channels, -1))
    last = sequence.gather(1, end[:, None] + length - 1) if length else sequence[:, :1]
    same = (sequence.gather(1, index) == last) & (last >= 0)
    return y, torch.where(same[:, None], state, 0.0)
