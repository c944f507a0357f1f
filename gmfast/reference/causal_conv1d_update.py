"""The causal convolution one sample at a time, in plain PyTorch."""

import torch

from .causal_conv1d import causal_conv1d


@torch.no_grad()
def causal_conv1d_update(
    x,
    state,
    weight,
    bias=None,
    *,
    dilation=1,
    groups=1,
    activation=None,
    state_indices=None,
    cache_seqlens=None,
):
    """Reference of `gmfast.functional.causal_conv1d_update`."""
    steps = x.unsqueeze(2) if x.dim() == 2 else x
    rows = torch.arange(len(x), device=x.device) if state_indices is None else state_indices
    live = rows >= 0
    # The rows that are continued, oldest input first.
    past = state[rows.clamp(min=0).long()]
    entries, span = state.shape[2], (weight.shape[2] - 1) * dilation
    order = torch.arange(entries, device=x.device).expand(len(x), -1)
    if cache_seqlens is not None and entries:
        order = (order + cache_seqlens.long()[:, None]) % entries
    order = order[:, None].expand(-1, state.shape[1], -1)
    past = past.gather(2, order)
    y = causal_conv1d(
        steps,
        weight,
        bias,
        dilation=dilation,
        groups=groups,
        activation=activation,
        initial_state=past[:, :, entries - span :].to(x.dtype),
    )
    new = torch.cat([past, steps.to(state.dtype)], 2)
    if cache_seqlens is None:
        new = new[:, :, new.shape[2] - entries :]
    else:
        length, recent = steps.shape[2], min(steps.shape[2], entries)
        replaced = torch.arange(length - recent, length, device=x.device) % max(entries, 1)
        past[:, :, replaced] = new[:, :, new.shape[2] - recent :]
        new = torch.zeros_like(past).scatter_(2, order, past)
    state[rows[live].long()] = new[live]
    y = torch.where(live[:, None, None], y, 0.0)
    return y.squeeze(2) if x.dim() == 2 else y
