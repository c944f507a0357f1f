from .. import reference
from . import _seed


def dequantize_logit(x, *, num_levels=256, alpha=0.05, seed=None, inverse=False, noise=None, quantize=True):
    if noise is None and not inverse:
        seed = _seed.as_tensor(seed, x.device)
    return reference.dequantize_logit(
        x, num_levels=num_levels, alpha=alpha, seed=seed, inverse=inverse, noise=noise, quantize=quantize
    )
