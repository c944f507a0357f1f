"""Whole sampling loops beside those of diffusers' schedulers (the [peers] extra), with the same denoiser:

    python benchmarks/diffusion.py [--out FOLDER] [--steps 20]

prints a table and, with --out, writes it as diffusion.csv. The denoiser is none (it returns the same tensor
at every step: the time is the loop's own) or tiny (two convolutions with 16 channels between them: what is
left of the gain beside a network). Rounds in which each column takes its turn; a time is the median over
rounds, a ratio the median of the rounds' ratios. Targets, of a step alone: DDPM, DDIM, DPM++2M and UniPC at
least 10, 8, 15 and 30 times as fast as diffusers on (1,4,64,64), 10, 6, 6 and 10 times on (64,3,64,64).
"""

import argparse
import time
import warnings
from pathlib import Path
from statistics import median

import torch
from torch import nn

from gmfast import benchmark, diffusion

SHAPES = [(1, 4, 64, 64), (64, 3, 64, 64)]

#: Of a sampler: ours, the class of diffusers and its configuration.
SAMPLERS = {
    "ddpm": (diffusion.DDPM(), "DDPMScheduler", dict(clip_sample=False)),
    "ddim": (diffusion.DDIM(), "DDIMScheduler", dict(clip_sample=False)),
    "dpmpp_2m": (diffusion.DPMPP2M(), "DPMSolverMultistepScheduler", {}),
    "dpmpp_3m": (diffusion.DPMPP3M(), "DPMSolverMultistepScheduler", dict(solver_order=3)),
    "dpmpp_2m_sde": (
        diffusion.DPMPP2MSDE(),
        "DPMSolverMultistepScheduler",
        dict(algorithm_type="sde-dpmsolver++"),
    ),
    "unipc": (diffusion.UniPC(), "UniPCMultistepScheduler", {}),
    "euler": (diffusion.Euler(), "EulerDiscreteScheduler", {}),
    "euler_ancestral": (diffusion.EulerAncestral(), "EulerAncestralDiscreteScheduler", {}),
    "heun": (diffusion.Heun(), "HeunDiscreteScheduler", {}),
}


def denoisers(shape):
    fixed = torch.randn(shape)
    channels = shape[1]
    tiny = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, channels, 3, padding=1)
    )
    return {"none": lambda x, t: fixed, "tiny": lambda x, t: tiny(x)}


def loops(name, shape, denoiser, steps):
    """What to call, by column."""
    sampler, class_name, config = SAMPLERS[name]
    schedule = diffusion.linear()
    columns = {
        "gmfast": lambda: diffusion.sample(
            denoiser, shape, sampler=sampler, schedule=schedule, steps=steps, seed=0
        )
    }
    try:
        import diffusers
    except ModuleNotFoundError:
        return columns
    scheduler = getattr(diffusers, class_name)(**config)

    @torch.no_grad()
    def theirs():
        scheduler.set_timesteps(steps)
        x = torch.randn(shape) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            m = denoiser(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(m, t, x, return_dict=False)[0]

    return columns | {"diffusers": theirs}


def measure(functions, rounds):
    """Seconds of each, of rounds in which each takes its turn."""
    times = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if i:
                times[name].append(time.perf_counter() - start)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="folder for diffusion.csv")
    parser.add_argument("--only", default="", help="samplers whose name contains this")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    benchmark.keep_freed_memory()
    where = benchmark.environment(torch.device("cpu"))
    print(benchmark.describe(where))
    print(f"{'steps a second':18}{'x':18}{'denoiser':10}{'gmfast':>10}{'diffusers':>11}  ratio (of fastest)")
    rows = []
    for name in SAMPLERS:
        if arguments.only not in name:
            continue
        for shape in SHAPES:
            torch.manual_seed(0)
            for network, denoiser in denoisers(shape).items():
                times = measure(loops(name, shape, denoiser, arguments.steps), arguments.rounds)
                rates = {column: arguments.steps / median(t) for column, t in times.items()}
                row = {"sampler": name, "shape": "x".join(map(str, shape)), "denoiser": network}
                row |= {f"{c}_steps_per_second": rates.get(c) for c in ("gmfast", "diffusers")}
                row |= {"over_diffusers": None, "fastest_over_fastest": None}
                ratio = ""
                if "diffusers" in times:
                    pairs = zip(times["diffusers"], times["gmfast"], strict=True)
                    row["over_diffusers"] = median(theirs / ours for theirs, ours in pairs)
                    row["fastest_over_fastest"] = min(times["diffusers"]) / min(times["gmfast"])
                    ratio = f"{row['over_diffusers']:6.1f}× ({row['fastest_over_fastest']:.1f}×)"
                rows.append(row)
                cells = f"{rates['gmfast']:10.0f}{rates.get('diffusers', float('nan')):11.0f}"
                print(f"{name:18}{row['shape']:18}{network:10}{cells}{ratio}", flush=True)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        benchmark.write_csv(rows, where, arguments.out / "diffusion.csv")


if __name__ == "__main__":
    main()
