"""The log-density of a diagonal normal distribution, summed over each sample.

Two plain PyTorch forms compete for the baseline: the formula, and torch.distributions.
"""

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions, normal


def inputs(case, device):
    """z; and with parameters, mean and log_std as the halves of a network's output."""
    if not case.options.get("parameters"):
        return (normal(case, device),)
    batch, channels, *spatial = case.shape
    return normal(case, device), *normal(case, device, (batch, 2 * channels, *spatial)).chunk(2, 1)


def distributions(z, mean=None, log_std=None):
    zero = z.new_zeros(())
    mean, log_std = zero if mean is None else mean, zero if log_std is None else log_std
    normal = torch.distributions.Normal(mean, log_std.exp(), validate_args=False)
    return normal.log_prob(z).flatten(1).sum(1)


def log_prob(parameters=False, **case):
    return both_directions(
        operation="gaussian_log_prob",
        inputs=inputs,
        gmfast=GF.gaussian_log_prob,
        baselines={"textbook": reference.gaussian_log_prob, "distributions": distributions},
        options={"parameters": True} if parameters else {},
        wrt=(0, 1, 2) if parameters else (0,),
        **case,
    )


# Memory bound: the target is the share of the bandwidth of a copy.
CASES = [
    *log_prob(shape=(16, 48, 32, 32), forward={"cpu": Target(share=0.7)}),
    *log_prob(shape=(16, 48, 32, 32), parameters=True, forward={"cpu": Target(share=0.7)}),
    *log_prob(shape=(16, 48, 32, 32), parameters=True, layout="channels_last"),
    *log_prob(shape=(16, 48, 32, 32), parameters=True, dtype=torch.bfloat16),
    *log_prob(shape=(4096, 64)),
    *log_prob(
        shape=(64, 96, 64, 64),
        parameters=True,
        devices=("cuda",),
        forward={"cuda": Target(share=0.8)},
        backward={"cuda": Target(share=0.8)},
    ),
]
