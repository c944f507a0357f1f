"""Noise of a step: drawn from generators as diffusers draws it, or by the kernel from a seed."""

import functools

import torch

from ... import _seed
from ...ops.torch_normal import torch_normal


class GeneratorNoise:
    """The noise that diffusers draws from the generators that `step` is given."""

    keyed = False
    seed = None

    def draw(self, model_output, generator, dtype=None):
        """Return the arguments of `diffusion_step` for noise like `model_output`, in `dtype` if given."""
        shape, device, dtype = model_output.shape, model_output.device, dtype or model_output.dtype
        if device.type == "cpu" and dtype == torch.float32 and _on_cpu(generator):
            return {"noise": _draw_on_cpu(shape, generator)}
        if generator is None or (isinstance(generator, torch.Generator) and generator.device == device):
            return {"noise": torch.randn(shape, generator=generator, device=device, dtype=dtype)}
        return {"noise": _randn_tensor()(shape, generator=generator, device=device, dtype=dtype)}


class KeyedNoise:
    """Noise that the kernel draws, keyed by (seed, sample, position, step).

    Args:
        seed: an int, or a list of one for each sample. None: each step draws seeds from the generators that
            it is given.
    """

    keyed = True

    def __init__(self, seed):
        self.seed = seed
        self._tensors = {}  # of a list of seeds: the tensor on each device

    def draw(self, model_output, generator, dtype=None):
        """Return the arguments of `diffusion_step` for noise of the batch of `model_output`."""
        return {"seed": self._seeds(model_output.device, model_output.shape[0], generator)}

    def _seeds(self, device, batch, generator):
        seed = generator if self.seed is None else self.seed
        if isinstance(seed, (list, tuple)):
            if len(seed) == 1:
                seed = seed[0]
            elif len(seed) != batch:
                raise ValueError(f"seed: expected one for each of {batch} samples, got {len(seed)}")
            elif self.seed is None:
                return torch.stack([_seed.as_tensor(s, device) for s in seed])
        if self.seed is None:
            return _seed.as_tensor(seed, device)
        if isinstance(seed, int):
            return (seed + 2**63) % 2**64 - 2**63
        if device not in self._tensors:
            seeds = torch.stack([_seed.as_tensor(s, torch.device("cpu")) for s in seed])
            self._tensors[device] = seeds.to(device)
        return self._tensors[device]


def _on_cpu(generator):
    """True for None, a generator on the CPU, or a list of several such generators."""
    if isinstance(generator, list):
        return len(generator) > 1 and all(isinstance(g, torch.Generator) and _on_cpu(g) for g in generator)
    return generator is None or (isinstance(generator, torch.Generator) and generator.device.type == "cpu")


def _draw_on_cpu(shape, generator):
    """Draw the float32 numbers of diffusers' `randn_tensor`; of a list, a generator for each sample."""
    if not isinstance(generator, list):
        return torch_normal(shape, generator=generator)
    return torch.cat([torch_normal((1, *shape[1:]), generator=generator[i]) for i in range(shape[0])])


@functools.cache
def _randn_tensor():
    from diffusers.utils.torch_utils import randn_tensor

    return randn_tensor
