"""Layout of a discretized logistic mixture's parameters, for the distribution and the operation's oracle."""

from torch import Tensor


def split_params(params: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Split the parameters of a mixture with K components (PixelCNN++'s layout).

    Args:
        params: (B, 3K, *S) for one channel, (B, 10K, *S) for three.
        channels: C, 1 or 3.

    Returns:
        Views: logits (B, K, *S); means, log-scales and colour coefficients, each (B, C, K, *S), coefficients
        None for one channel.
    """
    if channels == 1:
        logits, means, log_scales = params.chunk(3, 1)
        return logits, means.unsqueeze(1), log_scales.unsqueeze(1), None
    mixtures = params.shape[1] // 10
    colours = params[:, mixtures:].unflatten(1, (3, 3, mixtures))
    return params[:, :mixtures], colours[:, :, 0], colours[:, :, 1], colours[:, :, 2]
