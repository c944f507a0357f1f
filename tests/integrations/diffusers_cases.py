"""Every option of diffusers' schedulers that `accelerate` decided on, with values to try, and how a run's
results are compared with diffusers' own. `python tests/integrations/diffusers_cases.py` writes the table of
docs/diffusers.md."""

import copy
import functools
import inspect
import itertools
import logging
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BETAS = torch.linspace(2e-4, 1.5e-2, 1000).tolist()


@dataclass(frozen=True)
class Case:
    """One configuration of a scheduler, and what its steps are told."""

    scheduler: str
    config: dict = field(default_factory=dict)
    call: dict = field(default_factory=dict)
    timesteps: dict = field(default_factory=dict)  #: further arguments of `set_timesteps`

    def __str__(self):
        said = {**self.config, **self.call, **self.timesteps}
        shown = {k: "..." if isinstance(v, list) and len(v) > 9 else v for k, v in said.items()}
        shown = {k: getattr(v, "__name__", v) for k, v in shown.items()}
        return " ".join([self.scheduler, *(f"{k}={v}" for k, v in shown.items())])


#: the options of a schedule of betas
TRAINED = {
    "num_train_timesteps": [400],
    "beta_start": [0.001],
    "beta_end": [0.012],
    "beta_schedule": ["scaled_linear", "squaredcos_cap_v2"],
    "trained_betas": [BETAS],
}
CLIP = {
    "clip_sample": [True, False],
    "clip_sample_range": [{"clip_sample": True, "clip_sample_range": 0.7}],
}
THRESHOLD = {
    "thresholding": [True],
    "dynamic_thresholding_ratio": [
        {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 3.0}
    ],
    "sample_max_value": [
        {"thresholding": True, "sample_max_value": 1.7},
        {"thresholding": True, "sample_max_value": 0.6},
    ],
}
PREDICTIONS = {"prediction_type": ["epsilon", "sample", "v_prediction"]}
SPACING = {
    "timestep_spacing": ["linspace", "leading", "trailing"],
    "steps_offset": [{"timestep_spacing": "leading", "steps_offset": 1}],
}
SIGMAS = {"use_karras_sigmas": [True], "use_exponential_sigmas": [True], "use_beta_sigmas": [True]}
FLOW = {
    "use_flow_sigmas": [{"use_flow_sigmas": True, "prediction_type": "flow_prediction"}],
    "flow_shift": [{"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}],
}
DYNAMIC = {
    "use_dynamic_shifting": [
        {"use_dynamic_shifting": True, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    ],
    "time_shift_type": ["exponential"],
}
SNR = {"rescale_betas_zero_snr": [{"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}]}
ZERO_SNR = {
    "rescale_betas_zero_snr": [
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **more}
        for more in (
            {"prediction_type": "v_prediction"},
            {"prediction_type": "sample"},
            {"prediction_type": "epsilon", "clip_sample": True},
        )
    ]
}
FINAL = {"final_sigmas_type": ["zero", "sigma_min"]}
EDM = {
    "sigma_min": [0.01],
    "sigma_max": [20.0],
    "sigma_data": [1.0],
    "sigma_schedule": ["karras", "exponential"],
    "num_train_timesteps": [100],
    "prediction_type": ["epsilon", "v_prediction"],
    "rho": [5.0],
    **FINAL,
}

COGVIDEOX = {
    **TRAINED,
    **CLIP,
    **PREDICTIONS,
    **SPACING,
    "sample_max_value": [1.7],
    "set_alpha_to_one": [False],
    "rescale_betas_zero_snr": [
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": p}
        for p in ("v_prediction", "sample")
    ],
    "snr_shift_scale": [1.5],
}


def TAU(t):
    """The scale of SA-Solver's noise at a timestep."""
    return 0.4 if t > 300 else 0.0


#: of each scheduler, each option's values (or whole configurations that have it), ...
OPTIONS = {
    "DDPMScheduler": {
        **TRAINED,
        **CLIP,
        **THRESHOLD,
        **PREDICTIONS,
        **SPACING,
        **ZERO_SNR,
        "beta_schedule": ["scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"],
        "variance_type": ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"],
    },
    "DDIMScheduler": {
        **TRAINED,
        **CLIP,
        **THRESHOLD,
        **PREDICTIONS,
        **SPACING,
        **ZERO_SNR,
        "set_alpha_to_one": [False],
    },
    "DDIMInverseScheduler": {
        **TRAINED,
        **CLIP,
        # of nothing but data diffusers' noise is 0/0
        "prediction_type": [
            "epsilon",
            "v_prediction",
            {"prediction_type": "sample", "set_alpha_to_one": False},
        ],
        "timestep_spacing": ["leading", "trailing"],
        "steps_offset": [1],
        "rescale_betas_zero_snr": [{"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}],
        "set_alpha_to_one": [False],
    },
    "DPMSolverMultistepScheduler": {
        **TRAINED,
        **THRESHOLD,
        **PREDICTIONS,
        **SPACING,
        **SIGMAS,
        **FLOW,
        **DYNAMIC,
        **SNR,
        **FINAL,
        "solver_order": [1, 2, 3],
        "algorithm_type": [
            "dpmsolver++",
            "sde-dpmsolver++",
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        ],
        "solver_type": ["midpoint", "heun"],
        "lower_order_final": [{"lower_order_final": False, "final_sigmas_type": "sigma_min"}],
        "euler_at_final": [{"euler_at_final": True, "final_sigmas_type": "sigma_min"}],
        "use_lu_lambdas": [True],
        "lambda_min_clipped": [-5.1],
        "variance_type": ["learned", "learned_range"],
    },
    "DPMSolverSinglestepScheduler": {
        **TRAINED,
        **THRESHOLD,
        **PREDICTIONS,
        **SIGMAS,
        **FLOW,
        **DYNAMIC,
        **FINAL,
        "solver_order": [1, 2, 3],
        "algorithm_type": [
            "dpmsolver++",
            "sde-dpmsolver++",
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        ],
        "solver_type": ["midpoint", "heun"],
        "lower_order_final": [True, {"lower_order_final": False, "final_sigmas_type": "sigma_min"}],
        "lambda_min_clipped": [-5.1],
        "variance_type": ["learned", "learned_range"],
    },
    "EDMDPMSolverMultistepScheduler": {
        **EDM,
        **THRESHOLD,
        "solver_order": [1, 2, 3],
        "algorithm_type": ["dpmsolver++", "sde-dpmsolver++"],
        "solver_type": ["midpoint", "heun"],
        "lower_order_final": [{"lower_order_final": False, "final_sigmas_type": "sigma_min"}],
        "euler_at_final": [{"euler_at_final": True, "final_sigmas_type": "sigma_min"}],
    },
    "DEISMultistepScheduler": {
        **TRAINED,
        **THRESHOLD,
        **PREDICTIONS,
        **SPACING,
        **SIGMAS,
        **FLOW,
        **DYNAMIC,
        "solver_order": [1, 2, 3],
        "algorithm_type": ["deis"],
        "solver_type": ["logrho"],
        "lower_order_final": [False],
    },
    "UniPCMultistepScheduler": {
        **TRAINED,
        **THRESHOLD,
        **PREDICTIONS,
        **SPACING,
        **SIGMAS,
        **FLOW,
        **SNR,
        **FINAL,
        "solver_order": [1, 2, 3],
        "predict_x0": [{"predict_x0": False, "final_sigmas_type": "sigma_min"}],
        "solver_type": ["bh2", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}],
        "lower_order_final": [{"lower_order_final": False, "final_sigmas_type": "sigma_min"}],
        "disable_corrector": [[0, 2]],
        "use_dynamic_shifting": [
            {"use_dynamic_shifting": True, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        ],
        "time_shift_type": ["exponential"],
        "sigma_min": [{"sigma_min": 0.1, "use_karras_sigmas": True}],
        "sigma_max": [{"sigma_max": 30.0, "use_karras_sigmas": True}],
        "shift_terminal": [
            {"shift_terminal": 0.1, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        ],
    },
    "EulerDiscreteScheduler": {
        **TRAINED,
        **SPACING,
        **SIGMAS,
        **SNR,
        **FINAL,
        "prediction_type": ["epsilon", "v_prediction", "sample", "original_sample"],
        "interpolation_type": ["linear", "log_linear"],
        "sigma_min": [{"sigma_min": 0.1, "use_karras_sigmas": True}],
        "sigma_max": [{"sigma_max": 30.0, "use_karras_sigmas": True}],
        "timestep_type": [{"timestep_type": "continuous", "prediction_type": "v_prediction"}],
    },
    "EulerAncestralDiscreteScheduler": {
        **TRAINED,
        **SPACING,
        **SNR,
        "prediction_type": ["epsilon", "v_prediction"],
    },
    "HeunDiscreteScheduler": {
        **TRAINED,
        **CLIP,
        **PREDICTIONS,
        **SPACING,
        **SIGMAS,
        "beta_schedule": ["scaled_linear", "squaredcos_cap_v2", "exp"],
    },
    "LMSDiscreteScheduler": {**TRAINED, **PREDICTIONS, **SPACING, **SIGMAS},
    "LCMScheduler": {
        **TRAINED,
        **CLIP,
        **THRESHOLD,
        **PREDICTIONS,
        "original_inference_steps": [40],
        "set_alpha_to_one": [False],
        "steps_offset": [1],
        "timestep_spacing": ["trailing"],
        "timestep_scaling": [4.0],
        "rescale_betas_zero_snr": [
            {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
            {"rescale_betas_zero_snr": True, "clip_sample": True},
        ],
    },
    "TCDScheduler": {
        **TRAINED,
        **CLIP,
        **THRESHOLD,
        **PREDICTIONS,
        "original_inference_steps": [40],
        "set_alpha_to_one": [False],
        "steps_offset": [1],
        "timestep_spacing": ["trailing"],
        "timestep_scaling": [4.0],
        "rescale_betas_zero_snr": [{"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}],
    },
    "PNDMScheduler": {
        **TRAINED,
        **SPACING,
        "prediction_type": ["epsilon", "v_prediction"],
        "skip_prk_steps": [True],
        "set_alpha_to_one": [True],
    },
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": [400],
        "shift": [3.0],
        "use_dynamic_shifting": [True],
        "base_shift": [0.7],
        "max_shift": [1.5],
        "base_image_seq_len": [128],
        "max_image_seq_len": [2048],
        "invert_sigmas": [True],
        "shift_terminal": [0.1],
        **SIGMAS,
        "time_shift_type": [{"time_shift_type": "linear", "use_dynamic_shifting": True}],
        "stochastic_sampling": [True],
    },
    "CMStochasticIterativeScheduler": {
        "num_train_timesteps": [20],
        "sigma_min": [0.01],
        "sigma_max": [20.0],
        "sigma_data": [1.0],
        "s_noise": [0.9],
        "rho": [5.0],
        "clip_denoised": [False],
    },
    "EDMEulerScheduler": EDM,
    "KDPM2DiscreteScheduler": {
        **TRAINED,
        **SPACING,
        **SIGMAS,
        "prediction_type": ["epsilon", "v_prediction"],
    },
    "KDPM2AncestralDiscreteScheduler": {
        **TRAINED,
        **SPACING,
        **SIGMAS,
        "prediction_type": ["epsilon", "v_prediction"],
    },
    "DPMSolverSDEScheduler": {
        **TRAINED,
        **SPACING,
        **SIGMAS,
        "prediction_type": ["epsilon", "v_prediction"],
        "noise_sampler_seed": [{"noise_sampler_seed": 5}],
    },
    "CogVideoXDDIMScheduler": COGVIDEOX,
    "CogVideoXDPMScheduler": COGVIDEOX,
    "UnCLIPScheduler": {
        **CLIP,
        "num_train_timesteps": [400],
        "variance_type": ["fixed_small_log", "learned_range"],
        "prediction_type": ["epsilon", "sample"],
        "beta_schedule": ["squaredcos_cap_v2"],
    },
    "DDPMWuerstchenScheduler": {"scaler": [1.5, 0.7], "s": [0.02]},
    "DPMSolverMultistepInverseScheduler": {
        **TRAINED,
        **THRESHOLD,
        **PREDICTIONS,
        **SPACING,
        **SIGMAS,
        **FLOW,
        "solver_order": [1, 2, 3],
        "algorithm_type": ["dpmsolver++", "dpmsolver"],
        "solver_type": ["midpoint", "heun"],
        "lower_order_final": [False],
        "euler_at_final": [True],
        "lambda_min_clipped": [-5.1],
        "variance_type": ["learned", "learned_range"],
    },
    "CosineDPMSolverMultistepScheduler": {
        **EDM,
        "final_sigmas_type": ["zero"],
        "solver_order": [1, 2],
        "solver_type": ["midpoint", "heun"],
        "lower_order_final": [False],
        "euler_at_final": [True],
    },
    "SASolverScheduler": {
        **TRAINED,
        **THRESHOLD,
        **PREDICTIONS,
        **SPACING,
        **SIGMAS,
        **FLOW,
        "predictor_order": [1, 2, 3],
        "corrector_order": [1, 2, 3],
        "tau_func": [TAU],
        "algorithm_type": ["data_prediction", "noise_prediction"],
        "lower_order_final": [False],
        "lambda_min_clipped": [-5.1],
        "variance_type": ["learned", "learned_range"],
    },
    "IPNDMScheduler": {"num_train_timesteps": [400], "trained_betas": [BETAS]},
    "SCMScheduler": {"num_train_timesteps": [400], "prediction_type": ["trigflow"], "sigma_data": [1.0]},
    "ConsistencyDecoderScheduler": {"num_train_timesteps": [1100], "sigma_data": [1.0]},
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": [400], "shift": [3.0]},
    "LTXEulerAncestralRFScheduler": {"num_train_timesteps": [400], "eta": [0.0, 0.6], "s_noise": [0.0, 0.9]},
    "MiniMaxH3Scheduler": {"shift": [3.0]},
    "FlowMapEulerDiscreteScheduler": {"num_train_timesteps": [400], "shift": [3.0]},
    "HeliosScheduler": {
        "num_train_timesteps": [400],
        "shift": [{"stages": 1, "shift": 3.0}],
        "stages": [1],
        "stage_range": [{"stage_range": [0, 0.2, 0.5, 1]}],
        "gamma": [0.5],
        "solver_order": [1, 2, 3],
        "predict_x0": [{"predict_x0": False, "prediction_type": "epsilon"}],
        "prediction_type": ["epsilon", "sample", "v_prediction", "flow_prediction"],
        "solver_type": ["bh1", "bh2"],
        "lower_order_final": [False],
        "disable_corrector": [[0, 2]],
        "use_flow_sigmas": [False],
        "scheduler_type": ["euler"],
        "use_dynamic_shifting": [True],
        "time_shift_type": [{"use_dynamic_shifting": True, "time_shift_type": "linear"}],
    },
}
OPTIONS["DDIMParallelScheduler"] = OPTIONS["DDIMScheduler"]
OPTIONS["DDPMParallelScheduler"] = OPTIONS["DDPMScheduler"]
_MATCHED = OPTIONS["FlowMatchEulerDiscreteScheduler"].copy()
del _MATCHED["stochastic_sampling"]
OPTIONS["FlowMatchLCMScheduler"] = {**_MATCHED, "upscale_mode": ["bilinear"]}


def products(**values):
    return [dict(zip(values, v, strict=True)) for v in itertools.product(*values.values())]


_THREE = ("epsilon", "sample", "v_prediction")
_MORE = {"thresholding": True, "sample_max_value": 1.6}
#: ... options that meet in one formula, ...
TOGETHER = {
    "DDIMScheduler": products(prediction_type=_THREE, clip_sample=(True, False)),
    "DDPMScheduler": [
        *products(
            prediction_type=_THREE, variance_type=("fixed_large", "learned_range"), clip_sample=(False,)
        )
    ],
    "DPMSolverMultistepScheduler": [
        *products(
            algorithm_type=("dpmsolver++", "sde-dpmsolver++"),
            solver_order=(1, 2, 3),
            solver_type=("midpoint", "heun"),
        ),
        *products(
            algorithm_type=("dpmsolver", "sde-dpmsolver"),
            final_sigmas_type=("sigma_min",),
            solver_order=(1, 2),
            solver_type=("midpoint", "heun"),
            prediction_type=_THREE,
        ),
        *({**_MORE, "solver_order": 3, "prediction_type": p} for p in _THREE),
        *(
            {**_MORE, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "prediction_type": p}
            for p in _THREE
        ),
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "solver_order": 3},
        {"algorithm_type": "dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"},
        {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
    ],
    "DPMSolverSinglestepScheduler": [
        *products(
            algorithm_type=("dpmsolver++", "sde-dpmsolver++"),
            solver_order=(2, 3),
            solver_type=("midpoint", "heun"),
            lower_order_final=(True,),
        ),
        *products(
            algorithm_type=("dpmsolver",),
            final_sigmas_type=("sigma_min",),
            solver_order=(2, 3),
            solver_type=("midpoint", "heun"),
            prediction_type=_THREE,
        ),
    ],
    "EDMDPMSolverMultistepScheduler": products(solver_order=(2, 3), solver_type=("midpoint", "heun")),
    "DEISMultistepScheduler": [
        {**more, "solver_order": order, "prediction_type": p}
        for order in (2, 3)
        for p in _THREE
        for more in ({}, _MORE)
    ],
    "UniPCMultistepScheduler": [
        *products(solver_order=(1, 2, 3), prediction_type=_THREE),
        *products(
            predict_x0=(False,),
            solver_order=(1, 2, 3),
            solver_type=("bh1", "bh2"),
            prediction_type=_THREE,
            final_sigmas_type=("sigma_min",),
        ),
        *({**_MORE, "solver_order": 3, "prediction_type": p} for p in _THREE),
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "solver_order": 3},
        {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
    ],
    "HeunDiscreteScheduler": products(prediction_type=_THREE, clip_sample=(True, False)),
    "LCMScheduler": products(prediction_type=_THREE, clip_sample=(True, False)),
    "PNDMScheduler": products(prediction_type=("epsilon", "v_prediction"), skip_prk_steps=(True, False)),
    "KDPM2DiscreteScheduler": products(
        prediction_type=("epsilon", "v_prediction"), use_karras_sigmas=(True,), timestep_spacing=("trailing",)
    ),
    "UnCLIPScheduler": products(
        prediction_type=("epsilon", "sample"), variance_type=("learned_range",), clip_sample=(False,)
    ),
    "DPMSolverMultistepInverseScheduler": [
        *products(
            algorithm_type=("dpmsolver++", "dpmsolver"),
            solver_order=(2, 3),
            solver_type=("midpoint", "heun"),
            prediction_type=_THREE,
        ),
    ],
    "SASolverScheduler": [
        *products(
            predictor_order=(1, 2, 3),
            corrector_order=(1, 2, 3),
            algorithm_type=("data_prediction", "noise_prediction"),
        ),
        *products(algorithm_type=("noise_prediction",), prediction_type=_THREE, predictor_order=(3,)),
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "predictor_order": 3},
    ],
    "HeliosScheduler": products(
        predict_x0=(False,), prediction_type=_THREE, solver_order=(1, 2, 3), solver_type=("bh1", "bh2")
    ),
}
_FLOW_CHURN = {"s_churn": 1.0, "s_tmin": 0.1, "s_tmax": 0.9, "s_noise": 1.1}
_CHURN = {"s_churn": 4.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.1}
#: ... the arguments of `step` ...
CALLS = {
    "DDIMScheduler": [
        ({"clip_sample": clip, "prediction_type": p}, {"eta": eta, "use_clipped_model_output": clipped})
        for clip in (True, False)
        for p in _THREE
        for eta, clipped in ((0.6, False), (1.0, True), (0.0, True))
    ],
    "EulerDiscreteScheduler": [({"prediction_type": p}, _CHURN) for p in _THREE],
    "EDMEulerScheduler": [({"prediction_type": p}, _CHURN) for p in ("epsilon", "v_prediction")],
    "LMSDiscreteScheduler": [({}, {"order": order}) for order in (1, 2, 3, 5)],
    "TCDScheduler": [({"prediction_type": p}, {"eta": eta}) for p in _THREE for eta in (0.0, 0.7, 1.0)],
    "DPMSolverSDEScheduler": [({}, {"s_noise": 0.8})],
    "FlowMatchHeunDiscreteScheduler": [({}, _FLOW_CHURN)],
}
CALLS["DDIMParallelScheduler"] = CALLS["DDIMScheduler"]
#: ... and of `set_timesteps`.
TIMESTEPS = {
    "DDPMScheduler": [{"timesteps": [900, 601, 300, 33, 0]}],
    "LCMScheduler": [{"timesteps": [999, 499, 259]}],
    "EulerDiscreteScheduler": [
        {"timesteps": [900, 601, 300, 33]},
        {"sigmas": [14.0, 5.0, 1.0, 0.2, 0.0]},
    ],
    "HeunDiscreteScheduler": [{"timesteps": [900, 601, 300, 33]}],
    "DPMSolverMultistepScheduler": [{"timesteps": [900, 601, 300, 33]}],
    "DPMSolverSinglestepScheduler": [{"timesteps": [900, 601, 300, 33]}],
    "FlowMatchEulerDiscreteScheduler": [{"sigmas": [1.0, 0.7, 0.3, 0.1]}],
    "CMStochasticIterativeScheduler": [{"timesteps": [30, 17, 5]}],
    "SCMScheduler": [{"num_inference_steps": 2, "max_timesteps": 1.57, "intermediate_timesteps": 1.3}],
    "DDPMWuerstchenScheduler": [{"timesteps": [1.0, 0.6, 0.3, 0.0]}],
    "FlowMatchLCMScheduler": [{"sigmas": [1.0, 0.7, 0.3, 0.1]}],
    "LTXEulerAncestralRFScheduler": [{"sigmas": [1.0, 0.7, 0.3, 0.1, 0.0]}],
    "MiniMaxH3Scheduler": [{"sigmas": [1.0, 0.7, 0.3, 0.0]}],
    "FlowMapEulerDiscreteScheduler": [{"sigmas": [1.0, 0.7, 0.3, 0.1]}],
}

#: What is refused, and by which option: diffusers cannot do it either, or it is not a linear step.
REFUSED = [
    ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "variance_type"),
    ("DDPMScheduler", {"prediction_type": "flow"}, "prediction_type"),
    ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, "prediction_type"),
    ("EDMEulerScheduler", {"prediction_type": "sample"}, "prediction_type"),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"},
        "solver_order",
    ),
    ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order"),
    (
        "DPMSolverMultistepScheduler",
        {
            "algorithm_type": "dpmsolver",
            "final_sigmas_type": "sigma_min",
            "prediction_type": "flow_prediction",
        },
        "prediction_type",
    ),
    (
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "thresholding": True},
        "thresholding",
    ),
    (
        "EDMDPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        "solver_order",
    ),
    ("UniPCMultistepScheduler", {"solver_order": 4}, "solver_order"),
    ("UniPCMultistepScheduler", {"solver_p": "a scheduler"}, "solver_p"),
    ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "solver_type"),
    ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0"),
    (
        "UniPCMultistepScheduler",
        {"predict_x0": False, "prediction_type": "flow_prediction", "final_sigmas_type": "sigma_min"},
        "prediction_type",
    ),
    ("LMSDiscreteScheduler", {"prediction_type": "flow"}, "prediction_type"),
    ("KDPM2DiscreteScheduler", {"prediction_type": "sample"}, "prediction_type"),
    ("KDPM2AncestralDiscreteScheduler", {"prediction_type": "sample"}, "prediction_type"),
    ("DPMSolverSDEScheduler", {"prediction_type": "sample"}, "prediction_type"),
    ("CogVideoXDDIMScheduler", {"prediction_type": "flow"}, "prediction_type"),
    ("CogVideoXDPMScheduler", {"prediction_type": "flow"}, "prediction_type"),
    ("UnCLIPScheduler", {"prediction_type": "v_prediction"}, "prediction_type"),
    ("UnCLIPScheduler", {"variance_type": "learned"}, "variance_type"),
    (
        "DPMSolverMultistepInverseScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        "algorithm_type",
    ),
    ("DPMSolverMultistepInverseScheduler", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type"),
    ("CosineDPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
    ("CosineDPMSolverMultistepScheduler", {"solver_order": 3}, "solver_order"),
    ("CosineDPMSolverMultistepScheduler", {"prediction_type": "sample"}, "prediction_type"),
    ("SASolverScheduler", {"predictor_order": 4}, "predictor_order"),
    ("SASolverScheduler", {"corrector_order": 4}, "corrector_order"),
    ("SASolverScheduler", {"algorithm_type": "noise_prediction", "thresholding": True}, "thresholding"),
    (
        "SASolverScheduler",
        {"algorithm_type": "noise_prediction", "prediction_type": "flow_prediction"},
        "prediction_type",
    ),
    ("SCMScheduler", {"prediction_type": "epsilon"}, "prediction_type"),
    ("FlowMatchLCMScheduler", {"scale_factors": [0.5]}, "scale_factors"),
    ("HeliosScheduler", {"scheduler_type": "dmd"}, "scheduler_type"),
    ("HeliosScheduler", {"thresholding": True}, "thresholding"),
    ("HeliosScheduler", {"solver_p": "a scheduler"}, "solver_p"),
]


def cases(scheduler):
    """Of a scheduler, each configuration once."""
    configs = [{}]
    for name, values in OPTIONS[scheduler].items():
        configs += [value if isinstance(value, dict) else {name: value} for value in values]
    configs += TOGETHER.get(scheduler, [])
    found = [Case(scheduler, config) for config in configs]
    found += [Case(scheduler, config, call) for config, call in CALLS.get(scheduler, [])]
    found += [Case(scheduler, {}, {}, more) for more in TIMESTEPS.get(scheduler, [])]
    return list({str(case): case for case in found}.values())


EVERY = [case for scheduler in OPTIONS for case in cases(scheduler)]


def class_of(name):
    """diffusers' class of this name."""
    from diffusers import schedulers

    return getattr(schedulers, name)


def missing(name):
    """Whether this version of diffusers, or torchsde, lacks the class or its needs."""
    from diffusers import schedulers

    return not hasattr(schedulers, name) or hasattr(class_of(name), "_backends")


_made = {}


def make(case):
    """A scheduler with its timesteps set; some take long to construct, and are copied from the last one."""
    key = case.scheduler, repr(case.config)
    if key not in _made:
        _made.clear()
        _made[key] = class_of(case.scheduler)(**case.config)
    scheduler = copy.deepcopy(_made[key])
    begin(scheduler, case)
    return scheduler


def begin(scheduler, case, steps=6):
    options = dict(case.timesteps) or {"num_inference_steps": steps}
    if case.config.get("use_dynamic_shifting"):
        options["mu"] = 0.8
    if case.scheduler == "HeliosScheduler" and case.config.get("stages") != 1:
        options["stage_index"] = 1
    if case.scheduler == "ConsistencyDecoderScheduler":
        options["num_inference_steps"] = 2
    if case.scheduler == "SCMScheduler" and not case.timesteps:
        options["intermediate_timesteps"] = None
    if case.scheduler in ("LCMScheduler", "TCDScheduler") and not case.timesteps:
        options["num_inference_steps"] = 4
    scheduler.set_timesteps(**options)


def visited(scheduler):
    """The timesteps of a run's steps; some schedulers have a last one where there is no step."""
    if type(scheduler).__name__ in ("SCMScheduler", "DDPMWuerstchenScheduler"):
        return scheduler.timesteps[:-1]
    if type(scheduler).__name__ == "LTXEulerAncestralRFScheduler":
        return scheduler.timesteps[: len(scheduler.sigmas) - 1]
    return scheduler.timesteps


def step(scheduler, m, t, x, index, old=None, **options):
    """Take a step with the arguments that this class's `step` has.

    Args:
        scheduler: the scheduler.
        m: the model's output.
        t: the timestep.
        x: the sample.
        index: the timestep's index in a whole run.
        old: the data prediction of the step before, if there was one, for CogVideoX's DPM-Solver.
        options: further arguments of `step`.
    """
    name, timesteps = type(scheduler).__name__, scheduler.timesteps
    if name == "DDPMWuerstchenScheduler":
        t = torch.as_tensor(t).reshape(1)[0].expand(len(x))
    if name == "UnCLIPScheduler":
        options["prev_timestep"] = timesteps[index + 1] if index + 1 < len(timesteps) else None
    if name == "CogVideoXDPMScheduler":
        before = (m, old, t, None if old is None else timesteps[index - 1], x)
        return scheduler.step(*before, **{"return_dict": True, **options})
    return scheduler.step(m, t, x, **options)


def run(case, dtype, accelerate, shape=(2, 3, 6, 5), seed=0):
    """Steps of diffusers, of ours at the same x, and of diffusers in float64 with the same noise.

    Returns three lists, of each step's results in float64.
    """
    theirs = make(case)
    ours, exact = copy.deepcopy(theirs), copy.deepcopy(theirs)
    accelerate(ours)
    module = sys.modules[type(theirs).__module__]
    draw = getattr(module, "randn_tensor", None)
    drawn = []
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    parameters = inspect.signature(theirs.step).parameters
    options = lambda g: {**case.call, **({"generator": g} if "generator" in parameters else {})}  # noqa: E731

    random = torch.Generator().manual_seed(seed + 1)
    normal = lambda shape: torch.randn(shape, generator=random, dtype=torch.float64)  # noqa: E731
    learned = "learned" in str(case.config.get("variance_type")) and case.scheduler != "SASolverScheduler"
    x, old, results = normal(shape).to(dtype), None, ([], [], [])
    for index, t in enumerate(visited(theirs)):
        m = normal((shape[0], shape[1] * (1 + learned), *shape[2:]))
        if learned:
            m[:, shape[1] :] = m[:, shape[1] :].tanh()
            if case.config["variance_type"] == "learned":
                m[:, shape[1] :] = m[:, shape[1] :].abs()
        m = m.to(dtype)
        for scheduler in (theirs, ours, exact):
            if hasattr(scheduler, "is_scale_input_called"):
                scheduler.scale_model_input(x, t)
        if draw is not None:
            module.randn_tensor = lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[-1]
        try:
            torch.manual_seed(seed)
            expected = step(theirs, m, t, x, index, old, **options(generators[0]))
            torch.manual_seed(seed)
            given = step(ours, m, t, x, index, old, **options(generators[1]))
            torch.manual_seed(seed)
            if hasattr(theirs, "noise_sampler"):
                exact.noise_sampler = lambda *levels: theirs.noise_sampler(*levels).double()
            if draw is not None:
                noise = iter(drawn)
                module.randn_tensor = lambda *a, noise=noise, **k: next(noise).double()
            truth = step(
                exact,
                m.double(),
                t,
                x.double(),
                index,
                None if old is None else old.double(),
                **options(None),
            )
        finally:
            if draw is not None:
                module.randn_tensor = draw
            drawn.clear()
        assert type(given) is type(expected)
        if isinstance(expected, tuple):
            given, expected, truth = (dict(enumerate(o)) for o in (given, expected, truth))
        assert list(given) == list(expected)
        for name in expected:
            if not isinstance(expected[name], torch.Tensor):
                assert given[name] == expected[name]
                continue
            assert given[name].dtype == expected[name].dtype, name
            assert given[name].shape == expected[name].shape
            for values, output in zip(results, (expected, given, truth), strict=True):
                values.append(output[name].double())
        x, *others = expected.values()
        old = others[0] if others else None
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    same = {name: v for name, v in vars(theirs).items() if isinstance(v, (int, float, str, type(None)))}
    for name, value in same.items():
        assert getattr(ours, name) == value, name
    return results


def relative(values, expected):
    """The largest error of finite results, of their step's largest."""
    worst = 0.0
    for value, right in zip(values, expected, strict=True):
        finite = right.isfinite()
        if finite.any():
            error = (value - right)[finite].abs().max() / right[finite].abs().max().clamp(1e-6)
            worst = max(worst, error.item()) if error == error else float("nan")
    return worst


def quiet(function):
    """With what diffusers says of its options kept back."""

    @functools.wraps(function)
    def called(*args, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            level = logging.root.manager.disable
            logging.disable(logging.WARNING)
            try:
                return function(*args, **kwargs)
            finally:
                logging.disable(level)

    return called


def labels():
    """The first two cells of each line of docs/diffusers.md's table."""
    for case in EVERY:
        yield case.scheduler[:-9], str(case).partition(" ")[2] or "as it is"
    for scheduler, config, _ in REFUSED:
        yield scheduler[:-9], " ".join(f"{k}={v}" for k, v in config.items())


def matrix(accelerate):
    """The lines of docs/diffusers.md's table."""
    yield "| scheduler | configuration | float32 | bfloat16: theirs, ours | float16: theirs, ours |"
    yield "|---|---|---|---|---|"
    verdicts = []
    for case in EVERY:
        cells = []
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            theirs, ours, exact = run(case, dtype, accelerate)
            if dtype == torch.float32:
                apart = relative(ours, theirs)
                cells.append(f"equal, {apart:.0e}")
                if apart > 1e-5:
                    cells[-1] += f"; theirs is {relative(theirs, exact):.0e} from its float64"
            else:
                cells.append(f"{relative(theirs, exact):.0e}, {relative(ours, exact):.0e}")
        verdicts.append(" | ".join(cells))
    verdicts += [f"refused: {option} | | " for _, _, option in REFUSED]
    for (scheduler, configuration), verdict in zip(labels(), verdicts, strict=True):
        yield f"| {scheduler} | {configuration} | {verdict} |"


PAGE = Path(__file__).parents[2] / "docs" / "diffusers.md"
MARK = "<!-- below: written by tests/integrations/diffusers_cases.py -->"

if __name__ == "__main__":
    from gmfast.integrations.diffusers import accelerate

    text = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(text + MARK + "\n\n" + "\n".join(quiet(list)(matrix(accelerate))) + "\n")
