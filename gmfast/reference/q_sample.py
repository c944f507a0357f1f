"""Noised data and training targets in plain PyTorch."""

from .. import _philox, _seed

TARGETS = ("epsilon", "x0", "v", "flow")


def q_sample(x, alpha, sigma, *, noise=None, seed=None, target=None):
    """Reference of `gmfast.functional.q_sample`.

    `alpha`, `sigma`: (B,) or numbers, `seed`: an int64 tensor, () or (B,).
    """
    if noise is None:
        noise = _philox.array_normal(seed, tuple(x.shape), x.dtype, x.device, first=_seed.first())
    alpha, sigma = (
        v if isinstance(v, (int, float)) else v.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        for v in (alpha, sigma)
    )
    noised = alpha * x + sigma * noise
    if target is None:
        return noised
    targets = {"epsilon": noise, "x0": x, "v": alpha * noise - sigma * x, "flow": noise - x}
    return noised, targets[target]
