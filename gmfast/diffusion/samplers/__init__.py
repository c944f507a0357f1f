"""Samplers of diffusion, score, consistency and flow models.

A sampler turns the noise levels that it visits into rows of coefficients, one for each call of the denoiser,
computed in float64; `gmfast.functional.diffusion_step` executes a row in one pass. Its `rows` follow the
notation of its paper: the next x is a combination of x, of x0 (the denoised x), of tensors kept from the rows
before, and of new noise. As alpha and sigma of each level come from the schedule, the same rows serve
variance-preserving, variance-exploding and flow-matching schedules.

`gmfast.diffusion` exports each class without its suffix: `DDIMSampler` as `DDIM`.
"""

from .._naming import described
from .adaptive import DPMAdaptiveSampler
from .ancestral import DDIMSampler, DDPMSampler, EulerAncestralSampler
from .base import Plan, Row, Sampler
from .distilled import ConsistencySampler, LCMSampler, TCDSampler
from .langevin import LangevinSampler
from .multistep import (
    DEISSampler,
    DPMPP2MSampler,
    DPMPP2MSDESampler,
    DPMPP3MSampler,
    DPMPP3MSDESampler,
    LMSSampler,
    RESMultistepSampler,
    UniPCSampler,
)
from .sigma import ChurnedSampler, DPM2Sampler, EDMSampler, EulerSampler, FlowEulerSampler, HeunSampler
from .singlestep import DPM2AncestralSampler, DPMFastSampler, DPMPP2SAncestralSampler, DPMPPSDESampler
from .weights import PREDICTIONS, x0_weights

__all__ = [
    "PREDICTIONS",
    "SAMPLERS",
    "ChurnedSampler",
    "ConsistencySampler",
    "DDIMSampler",
    "DDPMSampler",
    "DEISSampler",
    "DPM2AncestralSampler",
    "DPM2Sampler",
    "DPMAdaptiveSampler",
    "DPMFastSampler",
    "DPMPP2MSDESampler",
    "DPMPP2MSampler",
    "DPMPP2SAncestralSampler",
    "DPMPP3MSDESampler",
    "DPMPP3MSampler",
    "DPMPPSDESampler",
    "EDMSampler",
    "EulerAncestralSampler",
    "EulerSampler",
    "FlowEulerSampler",
    "HeunSampler",
    "LCMSampler",
    "LMSSampler",
    "LangevinSampler",
    "Plan",
    "RESMultistepSampler",
    "Row",
    "Sampler",
    "TCDSampler",
    "UniPCSampler",
    "sampler",
    "x0_weights",
]

#: Samplers by the names that `sampler=` takes.
SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPMSampler,
    "ddim": DDIMSampler,
    "dpmpp_2m": DPMPP2MSampler,
    "dpmpp_3m": DPMPP3MSampler,
    "dpmpp_2m_sde": DPMPP2MSDESampler,
    "dpmpp_3m_sde": DPMPP3MSDESampler,
    "dpmpp_2s_ancestral": DPMPP2SAncestralSampler,
    "dpmpp_sde": DPMPPSDESampler,
    "dpm_2": DPM2Sampler,
    "dpm_2_ancestral": DPM2AncestralSampler,
    "dpm_fast": DPMFastSampler,
    "dpm_adaptive": DPMAdaptiveSampler,
    "euler": EulerSampler,
    "euler_ancestral": EulerAncestralSampler,
    "heun": HeunSampler,
    "edm": EDMSampler,
    "lms": LMSSampler,
    "lcm": LCMSampler,
    "tcd": TCDSampler,
    "consistency": ConsistencySampler,
    "flow_euler": FlowEulerSampler,
    "unipc": UniPCSampler,
    "deis": DEISSampler,
    "res_multistep": RESMultistepSampler,
    "langevin": LangevinSampler,
}


def sampler(value: str | Sampler) -> Sampler:
    """Return a sampler as it is, or the one of that name with its defaults.

    Raises:
        ValueError: For an unknown name or an object that is no sampler.
    """
    if isinstance(value, Sampler):
        return value
    if isinstance(value, str) and value in SAMPLERS:
        return SAMPLERS[value]()
    raise ValueError(
        f"sampler: expected a Sampler object or one of {', '.join(SAMPLERS)}, got {described(value)}"
    )
