"""Sampling of diffusion, score, consistency and flow models: schedules, samplers, and the loop.

Each step is one call of `gmfast.functional.diffusion_step` with a row of the sampler's table. Samplers and
schedules are exported without the suffix that their classes have inside the package.
"""

from .._table import COLUMNS
from .loop import capture, invert, sample
from .plan import plan
from .precond import EDMPrecond
from .samplers import PREDICTIONS, SAMPLERS, Plan, Row, Sampler
from .samplers import ConsistencySampler as Consistency
from .samplers import DDIMSampler as DDIM
from .samplers import DDPMSampler as DDPM
from .samplers import DEISSampler as DEIS
from .samplers import DPM2AncestralSampler as DPM2Ancestral
from .samplers import DPM2Sampler as DPM2
from .samplers import DPMAdaptiveSampler as DPMAdaptive
from .samplers import DPMFastSampler as DPMFast
from .samplers import DPMPP2MSampler as DPMPP2M
from .samplers import DPMPP2MSDESampler as DPMPP2MSDE
from .samplers import DPMPP2SAncestralSampler as DPMPP2SAncestral
from .samplers import DPMPP3MSampler as DPMPP3M
from .samplers import DPMPP3MSDESampler as DPMPP3MSDE
from .samplers import DPMPPSDESampler as DPMPPSDE
from .samplers import EDMSampler as EDM
from .samplers import EulerAncestralSampler as EulerAncestral
from .samplers import EulerSampler as Euler
from .samplers import FlowEulerSampler as FlowEuler
from .samplers import HeunSampler as Heun
from .samplers import LangevinSampler as Langevin
from .samplers import LCMSampler as LCM
from .samplers import LMSSampler as LMS
from .samplers import RESMultistepSampler as RESMultistep
from .samplers import TCDSampler as TCD
from .samplers import UniPCSampler as UniPC
from .schedules import SCHEDULES, Level, Schedule, cosine, laplace, linear, scaled_linear, sigmoid
from .schedules import FlowMatchingSchedule as FlowMatching
from .schedules import KarrasSchedule as Karras
from .schedules import VarianceExplodingSchedule as VarianceExploding
from .schedules import VariancePreservingSchedule as VariancePreserving
from .spacing import SPACINGS
from .training import add_noise, training_table

__all__ = [
    "COLUMNS",
    "DDIM",
    "DDPM",
    "DEIS",
    "DPM2",
    "DPMPP2M",
    "DPMPP2MSDE",
    "DPMPP3M",
    "DPMPP3MSDE",
    "DPMPPSDE",
    "EDM",
    "LCM",
    "LMS",
    "PREDICTIONS",
    "SAMPLERS",
    "SCHEDULES",
    "SPACINGS",
    "TCD",
    "Consistency",
    "DPM2Ancestral",
    "DPMAdaptive",
    "DPMFast",
    "DPMPP2SAncestral",
    "EDMPrecond",
    "Euler",
    "EulerAncestral",
    "FlowEuler",
    "FlowMatching",
    "Heun",
    "Karras",
    "Langevin",
    "Level",
    "Plan",
    "RESMultistep",
    "Row",
    "Sampler",
    "Schedule",
    "UniPC",
    "VarianceExploding",
    "VariancePreserving",
    "add_noise",
    "capture",
    "cosine",
    "invert",
    "laplace",
    "linear",
    "plan",
    "sample",
    "scaled_linear",
    "sigmoid",
    "training_table",
]
