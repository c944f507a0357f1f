"""Improved DDPM's loss: the simple term and the bound's, with a learned range of variances.

186 passes over memory in plain PyTorch, five of the inputs in one kernel.
"""

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Target, both_directions

STEPS = 1000


def table(device):
    """Of the DDPM sampler over 1000 steps of the linear schedule."""
    betas = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
    after = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), after[:-1]])
    small = betas * (1 - before) / (1 - after)
    small[0] = small[1]
    result = torch.zeros(STEPS, 20, dtype=torch.float64)
    result[:, 0], result[:, 1] = after.rsqrt(), -(1 / after - 1).sqrt()
    result[:, 2] = (1 - betas).sqrt() * (1 - before) / (1 - after)
    result[:, 4] = before.sqrt() * betas / (1 - after)
    result[:, 18], result[:, 19] = small.log(), betas.log()
    return result.to(device)


def inputs(case, device):
    """A network's output, pixels, what is noised of them, the noise, and time steps, of which one is 0."""
    batch, channels, *spatial = case.shape
    x0 = torch.randint(256, case.shape, device=device) / 127.5 - 1
    noise = torch.randn(case.shape, device=device)
    x_t = 0.8 * x0 + 0.6 * noise
    output = torch.randn(batch, 2 * channels, *spatial, device=device) / 2
    timestep = torch.randint(1, STEPS, (batch,), device=device)
    timestep[0] = 0
    return *(t.to(case.dtype) for t in (output, x0, x_t, noise)), table(device), timestep


def hybrid(**case):
    return both_directions(
        operation="diffusion_hybrid_loss",
        inputs=inputs,
        gmfast=GF.diffusion_hybrid_loss,
        baselines={"textbook": reference.diffusion_hybrid_loss},
        wrt=(0,),
        forward={"cpu": Target(compile=1)},
        backward={"cpu": Target(compile=1)},
        **case,
    )


CASES = [
    *hybrid(shape=(16, 3, 32, 32)),
    *hybrid(shape=(64, 3, 32, 32)),
    *hybrid(shape=(64, 3, 256, 256), devices=("cuda",)),
]
