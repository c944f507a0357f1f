"""Whole loops of k-diffusion's samplers (the [peers] extra) and of gmfast.integrations.k_diffusion:

    python benchmarks/k_diffusion.py [--out FOLDER] [--steps 20] [--rounds 11]

prints a table and, with --out, writes it as k_diffusion.csv: on one thread, with a model that returns the
same tensor at every step, so that the time is the loop's own. "gmfast" draws the noise that the original
draws, from torch's generator; "seed" makes it in the steps. Times are medians over rounds in which each takes
its turn; ratios are medians of the rounds' ratios, and, in brackets, those of the fastest rounds.
"""

import argparse
import importlib
import importlib.machinery
import sys
import types
from pathlib import Path
from statistics import median

import torch
from diffusion import measure

from gmfast import benchmark
from gmfast.integrations import k_diffusion as ours

SHAPES = [(1, 4, 64, 64), (64, 3, 64, 64)]
SAMPLERS = [
    ("sample_euler", {}),
    ("sample_euler", {"s_churn": 40.0}),
    ("sample_euler_ancestral", {}),
    ("sample_heun", {}),
    ("sample_dpm_2", {}),
    ("sample_dpm_2_ancestral", {}),
    ("sample_lms", {}),
    ("sample_dpmpp_2s_ancestral", {}),
    ("sample_dpmpp_sde", {}),
    ("sample_dpmpp_2m", {}),
    ("sample_dpmpp_2m_sde", {}),
    ("sample_dpmpp_3m_sde", {}),
]


def original():
    """Their `sampling`, without what the rest of the package needs."""
    others = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]
    spec = importlib.machinery.PathFinder.find_spec("k_diffusion", others)
    if spec is None:
        raise SystemExit("k-diffusion is not installed: pip install 'gmfast[peers]'")
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(Path(spec.origin).parent)]
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, dims: x[(..., *[None] * (dims - x.dim()))]
    package.utils = utils
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    return importlib.import_module("k_diffusion.sampling")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="folder for k_diffusion.csv")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", default="", help="samplers whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    theirs = original()
    sigmas = theirs.get_sigmas_karras(arguments.steps, 0.03, 14.6)
    benchmark.keep_freed_memory()
    where, rows = benchmark.environment(torch.device("cpu")), []
    print(benchmark.describe(where))
    print(f"{'µs a step':42}{'original':>10}{'gmfast':>10}{'seed':>10}  original/gmfast, original/seed")
    for name, options in SAMPLERS:
        if arguments.only not in name:
            continue
        for shape in SHAPES:
            fixed, x = torch.randn(shape), 14.6 * torch.randn(shape)
            given = dict(options)
            if "sde" in name:  # a Brownian tree would be most of their time
                given["noise_sampler"] = lambda sigma, to, x=x: torch.randn_like(x)

            def loop(module, name=name, x=x, fixed=fixed, **options):
                run = getattr(module, name)
                return lambda: run(lambda x, sigma: fixed, x, sigmas, disable=True, **options)

            functions = {"original": loop(theirs, **given), "gmfast": loop(ours, **given)}
            if "lms" not in name and name != "sample_dpmpp_2m":
                functions["seed"] = loop(ours, seed=0, **options)
            times = measure(functions, arguments.rounds)
            label = f"{name[7:]}{' with churn' if options else ''}"
            row = {"sampler": label, "shape": "x".join(map(str, shape))}
            row |= {f"{c}_us": 1e6 * median(t) / arguments.steps for c, t in times.items()}
            row |= {"seed_us": row.get("seed_us"), "over_k_diffusion": None, "seed_over_k_diffusion": None}
            cells, ratios = "", []
            for column in ("original", "gmfast", "seed"):
                if column not in times:
                    cells += f"{'':10}"
                    continue
                cells += f"{1e6 * median(times[column]) / arguments.steps:10.0f}"
                if column != "original":
                    pairs = zip(times["original"], times[column], strict=True)
                    fastest = min(times["original"]) / min(times[column])
                    over = median(a / b for a, b in pairs)
                    row["seed_over_k_diffusion" if column == "seed" else "over_k_diffusion"] = over
                    ratios.append(f"{over:5.1f}× ({fastest:.1f}×)")
            rows.append(row)
            print(f"{label:24}{row['shape']:18}{cells}  {', '.join(ratios)}", flush=True)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        benchmark.write_csv(rows, where, arguments.out / "k_diffusion.csv")


if __name__ == "__main__":
    main()
