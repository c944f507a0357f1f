"""One step of a sampler, in the middle of 50, with the histories of a multistep method as they then are.

The peer is diffusers: its scheduler's own `step`, set back to the same step before each call. DDPM clips x0
and draws noise, which the peer and plain PyTorch take from torch.
"""

from functools import cache, partial

import torch

import gmfast.functional as GF
from gmfast import diffusion, reference
from gmfast.benchmark import Case, Target, normal

try:
    import diffusers
except ImportError:
    diffusers = None

STEPS, STEP = 50, 25


@cache
def plan(sampler):
    schedule = diffusion.scaled_linear()
    sampler = {
        "DDPM": diffusion.DDPM(),
        "DDIM": diffusion.DDIM(),
        "DPM++2M": diffusion.DPMPP2M(),
        "UniPC": diffusion.UniPC(),
    }[sampler]
    return sampler.plan(schedule, sampler.times(schedule, STEPS))


def inputs(case, device):
    """x, the denoiser's output and the histories."""
    sampler = case.options["sampler"]
    histories = len(plan(sampler).rows[STEP - 1].keep)
    return tuple(normal(case, device) for _ in range(2 + histories))


def options_of(sampler):
    keep = plan(sampler).rows[STEP].keep
    return {"x0": "x0" in keep, "kept": "kept" in keep, "clip": 1.0 if sampler == "DDPM" else None}


@cache
def arguments_of(sampler, device):
    seed = torch.tensor(1, device=device)
    return plan(sampler).table(device), {"step": STEP, "seed": seed, **options_of(sampler)}


def calling(function, sampler, **given):
    """A step as a sampler's loop calls it, which has all but the tensors ready."""
    ready = {}

    def call(x, m, *history, **more):
        if x.is_cuda not in ready:
            table, options = arguments_of(sampler, x.device)
            ready[x.is_cuda] = partial(function, table=table, **(options | given))
        return ready[x.is_cuda](x, m, history=history, **more)

    return call


def row_of(sampler):
    """The row's numbers that are not 0, as Python's."""
    values = plan(sampler).table(torch.device("cpu"))[STEP].tolist()
    return {name: value for name, value in zip(diffusion.COLUMNS, values, strict=True) if value}


def textbook(x, m, *history, row, options, noise=None):
    x0 = row["x0_x"] * x + row["x0_m"] * m
    if "threshold" in options:
        largest = torch.quantile(x0.abs().flatten(1), options["threshold"], dim=1)
        largest = largest.clamp(1, options["threshold_max"]).view(-1, *[1] * (x.dim() - 1))
        x0 = x0.clamp(-largest, largest) / largest
    elif options["clip"]:
        x0 = x0.clamp(-options["clip"], options["clip"])
    tensors = {"x": x, "m": m, "x0": x0, **{f"h{i}": h for i, h in enumerate(history, 1)}}

    def result(prefix):
        terms = [row[prefix + name] * tensor for name, tensor in tensors.items() if prefix + name in row]
        if prefix + "noise" in row:
            terms.append(row[prefix + "noise"] * (torch.randn_like(x) if noise is None else noise))
        return sum(terms[1:], terms[0])

    results = [result("")] + [x0] * options["x0"] + ([result("kept_")] if options["kept"] else [])
    return results[0] if len(results) == 1 else tuple(results)


@cache
def scheduler(sampler):
    options = dict(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing"
    )
    if sampler == "DDPM":
        made = diffusers.DDPMScheduler(**options)
    elif sampler == "DDIM":
        made = diffusers.DDIMScheduler(clip_sample=False, **options)
    elif sampler == "DPM++2M":
        made = diffusers.DPMSolverMultistepScheduler(**options)
    else:
        made = diffusers.UniPCMultistepScheduler(**options)
    made.set_timesteps(STEPS)
    return made


def peer(x, m, *history, sampler):
    of = scheduler(sampler)
    if sampler in ("DPM++2M", "UniPC"):
        # h1 of UniPC is x before; then follow the x0s, the newest first.
        x0s = history[1:] if sampler == "UniPC" else history
        of._step_index = STEP
        of.model_outputs = [None, x0s[0]] if len(x0s) == 1 else [x0s[1], x0s[0]]
        of.timestep_list = [of.timesteps[STEP - 2], of.timesteps[STEP - 1]]
        of.lower_order_nums, of.this_order, of.last_sample = 2, 2, history[0]
    return of.step(m, of.timesteps[STEP], x, return_dict=False)[0]


def case(sampler, shape, over_peer=None, **more):
    options = {"sampler": sampler} | more.pop("options", {})
    given = {name: v for name, v in options.items() if name != "sampler"}
    on_cpu = Target(peer=over_peer, compile=1.0) if over_peer else Target(compile=1.0)
    return Case(
        operation="diffusion_step",
        shape=shape,
        inputs=inputs,
        options=options,
        gmfast=calling(GF.diffusion_step, sampler, **given),
        baselines={
            "textbook": partial(textbook, row=row_of(sampler), options=options_of(sampler) | given),
            "reference": calling(reference.diffusion_step, sampler, **given),
        },
        peers={"diffusers": partial(peer, sampler=sampler)} if diffusers and not given else {},
        targets=more.pop("targets", {"cpu": on_cpu}),
        **more,
    )


LATENTS, IMAGES, MANY = (1, 4, 64, 64), (64, 3, 64, 64), (64, 3, 512, 512)
FACTORS = {"DDPM": (10, 10), "DDIM": (8, 6), "DPM++2M": (15, 6), "UniPC": (30, 10)}
ON_CUDA = {"devices": ("cuda",), "targets": {"cuda": Target(share=0.8, compile=1.0)}}
THRESHOLD = {"threshold": 0.995, "threshold_max": 2.0}

CASES = [
    *(case(sampler, LATENTS, factors[0]) for sampler, factors in FACTORS.items()),
    *(case(sampler, IMAGES, factors[1]) for sampler, factors in FACTORS.items()),
    case("DPM++2M", IMAGES, layout="channels_last"),
    case("DPM++2M", IMAGES, dtype=torch.bfloat16),
    case("DDIM", LATENTS, options=THRESHOLD),
    case("DDIM", IMAGES, options=THRESHOLD),
    *(case(sampler, MANY, **ON_CUDA) for sampler in ("DDPM", "DPM++2M")),
]
