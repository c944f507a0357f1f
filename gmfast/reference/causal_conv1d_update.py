"""The causal convolution one sample at a time, in plain PyTorch."""

import torch

from .causal_conv1d import causal_conv1d


@torch.no_grad()
def causal_conv1d_update(
    x, state, weight, bias=None, *, dilation=1, groups=1, activation=None, state_indices=None
):
    """Reference of `gmfast.functional.causal_conv1d_update`."""
    steps = x.unsqueeze(2) if x.dim() == 2 else x
    rows = torch.arange(len(x), device=x.device) if state_indices is None else state_indices
    live = rows >= 0
    past = state[rows.clamp(min=0).long()]
    y, new = causal_conv1d(
        steps,
        weight,
        bias,
        dilation=dilation,
        groups=groups,
        activation=activation,
        initial_state=past.to(x.dtype),
        return_state=True,
    )
    state[rows[live].long()] = new[live].to(state.dtype)
    y = torch.where(live[:, None, None], y, 0.0)
    return y.squeeze(2) if x.dim() == 2 else y
