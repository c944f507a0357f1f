"""Each scheduler's steps beside the same scheduler's after `accelerate` (the [peers] extra):

    python benchmarks/accelerate.py [--out FOLDER] [--steps 20] [--rounds 9] [SCHEDULER ...]

prints a table and, with --out, writes it as accelerate.csv. A time is of one `step(…, return_dict=False)`,
the mean over a run, on one thread, whose own time it is (what else the machine does counts less); the
network's output is always the same tensor. Rounds in which each column takes its turn; a time is the median
over rounds, a ratio the median of the rounds' ratios. "keyed" is the kernel's own noise; "noise" what
torch.randn takes for diffusers' noise, which the first column contains. Target: at least 5 times as fast on
(1,4,64,64).
"""

import argparse
import copy
import inspect
import logging
import time
import warnings
from pathlib import Path
from statistics import median

import torch

from gmfast import benchmark
from gmfast.integrations.diffusers import accelerate

SHAPES = [(1, 4, 64, 64), (64, 3, 64, 64)]

#: the class without "Scheduler", its configuration, and what its steps are told
SCHEDULERS = {
    "DDPM": ("DDPM", {}, {}),
    "DDIM": ("DDIM", {}, {}),
    "DDIM eta=1": ("DDIM", {}, {"eta": 1.0}),
    "DDIMInverse": ("DDIMInverse", {}, {}),
    "DPM++2M": ("DPMSolverMultistep", {}, {}),
    "DPM++3M": ("DPMSolverMultistep", {"solver_order": 3}, {}),
    "SDE-DPM++2M": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, {}),
    "DPM++2S": ("DPMSolverSinglestep", {"lower_order_final": True}, {}),
    "EDM DPM++2M": ("EDMDPMSolverMultistep", {}, {}),
    "DEIS": ("DEISMultistep", {}, {}),
    "UniPC": ("UniPCMultistep", {}, {}),
    "Euler": ("EulerDiscrete", {}, {}),
    "Euler ancestral": ("EulerAncestralDiscrete", {}, {}),
    "Heun": ("HeunDiscrete", {}, {}),
    "LMS": ("LMSDiscrete", {}, {}),
    "LCM": ("LCM", {}, {}),
    "TCD": ("TCD", {}, {}),
    "PNDM": ("PNDM", {}, {}),
    "flow-match Euler": ("FlowMatchEulerDiscrete", {}, {}),
    "consistency": ("CMStochasticIterative", {}, {}),
    "EDM Euler": ("EDMEuler", {}, {}),
    "KDPM2": ("KDPM2Discrete", {}, {}),
    "KDPM2 ancestral": ("KDPM2AncestralDiscrete", {}, {}),
    "CogVideoX DDIM": ("CogVideoXDDIM", {}, {}),
    "inverse DPM++2M": ("DPMSolverMultistepInverse", {}, {}),
    "SA-Solver": ("SASolver", {}, {}),
    "IPNDM": ("IPNDM", {}, {}),
    "flow-match Heun": ("FlowMatchHeunDiscrete", {}, {}),
    "flow-match LCM": ("FlowMatchLCM", {}, {}),
}


def run(scheduler, shape, steps, options):
    """A function that makes one run's steps and returns the microseconds that one took."""
    x, m = torch.randn(shape), torch.randn(shape)
    steps = min(steps, getattr(scheduler.config, "original_inference_steps", steps))
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters

    def call():
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, scheduler.timesteps[0])
        more = {"generator": torch.Generator().manual_seed(0)} if takes_generator else {}
        begin = time.thread_time()
        for t in scheduler.timesteps:
            scheduler.step(m, t, x, **options, **more, return_dict=False)
        return (time.thread_time() - begin) / len(scheduler.timesteps) * 1e6

    return call


def noise_alone(shape):
    generator = torch.Generator().manual_seed(0)

    def call():
        begin = time.thread_time()
        for _ in range(10):
            torch.randn(shape, generator=generator)
        return (time.thread_time() - begin) / 10 * 1e6

    return call


def main():
    import diffusers

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("schedulers", nargs="*", metavar="SCHEDULER", help=", ".join(SCHEDULERS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    benchmark.keep_freed_memory()
    where = benchmark.environment(torch.device("cpu"))
    print(benchmark.describe(where))

    rows = []
    print(
        f"{'':18}{'shape':>16}{'diffusers':>11}{'accelerated':>13}{'ratio':>8}{'keyed':>9}{'ratio':>8}{'noise':>8}"
    )
    for name in arguments.schedulers or SCHEDULERS:
        kind, config, options = SCHEDULERS[name]
        for shape in SHAPES:
            theirs = getattr(diffusers, kind + "Scheduler")(**config)
            schedulers = {
                "theirs": theirs,
                "ours": accelerate(copy.deepcopy(theirs)),
                "keyed": accelerate(copy.deepcopy(theirs), noise="keyed", seed=0),
            }
            columns = {column: run(s, shape, arguments.steps, options) for column, s in schedulers.items()}
            columns["noise"] = noise_alone(shape)
            times = {column: [] for column in columns}
            for _ in range(arguments.rounds + 1):
                for column, call in columns.items():
                    call()  # so that none finds the caches and the heap as another left them
                    times[column].append(call())
            times = {column: values[1:] for column, values in times.items()}  # the first is a warm-up
            us = {column: median(values) for column, values in times.items()}
            ratio = {
                column: median(a / b for a, b in zip(times["theirs"], times[column], strict=True))
                for column in ("ours", "keyed")
            }
            row = {"scheduler": name, "shape": "x".join(map(str, shape)), "diffusers_us": us["theirs"]}
            row |= {"accelerated_us": us["ours"], "accelerated_over_diffusers": ratio["ours"]}
            row |= {"keyed_us": us["keyed"], "keyed_over_diffusers": ratio["keyed"], "noise_us": us["noise"]}
            rows.append(row)
            print(
                f"{name:18}{shape!s:>16}{us['theirs']:11.1f}{us['ours']:13.1f}{ratio['ours']:8.1f}"
                f"{us['keyed']:9.1f}{ratio['keyed']:8.1f}{us['noise']:8.1f}",
                flush=True,
            )
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        benchmark.write_csv(rows, where, arguments.out / "accelerate.csv")


if __name__ == "__main__":
    main()
