"""The divergence of two normal distributions: of two of a network's outputs, and of one from a prior.

Memory bound: the target is torch.compile's time.
"""

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions, normal


def inputs(case, device):
    """Four tensors; or two, the halves of a network's output, and the standard normal."""
    if not case.options.get("prior"):
        return tuple(normal(case, device) for _ in range(4))
    batch, channels, *spatial = case.shape
    return normal(case, device, (batch, 2 * channels, *spatial)).chunk(2, 1)


def from_prior(function):
    return lambda mean, logvar: function(mean, logvar, 0.0, 0.0)


def textbook_prior(mean, logvar):
    return -0.5 * (1 + logvar - mean.square() - logvar.exp())


def kl(prior=False, **case):
    textbook = {"textbook": textbook_prior} if prior else {"textbook": reference.gaussian_kl}
    return both_directions(
        operation="gaussian_kl",
        inputs=inputs,
        gmfast=from_prior(GF.gaussian_kl) if prior else GF.gaussian_kl,
        baselines=textbook,
        options={"prior": True} if prior else {},
        wrt=(0, 1) if prior else (0, 1, 2, 3),
        forward={"cpu": Target(compile=1)},
        backward={"cpu": Target(compile=1)},
        **case,
    )


CASES = [
    *kl(shape=(16, 3, 32, 32)),
    *kl(shape=(64, 3, 32, 32)),
    *kl(shape=(64, 3, 32, 32), prior=True),
    *kl(shape=(64, 64, 64, 64), devices=("cuda",)),
]
