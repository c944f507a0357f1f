"""The share of a diffusers pipeline's time that its scheduler takes, before and after `accelerate`.

    python examples/accelerate_diffusers.py [--steps 20] [--size 32] [--channels 16] [--rounds 5]

A latent diffusion transformer with guidance (`DiTPipeline`) and a pixel UNet (`DDPMPipeline`), small and
randomly initialised, with schedulers of several kinds. Needs the [diffusers] extra. The larger the network,
the smaller what a scheduler's speed is worth: try --channels 128.
"""

import argparse
import copy
import functools
import logging
import statistics
import time
import warnings

import torch

from gmfast.integrations.diffusers import accelerate


def pipelines(size, channels):
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=size,
        layers_per_block=1,
        block_out_channels=(channels, 2 * channels),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    ).eval()
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=channels // 4,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=size,
        patch_size=4,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    ).eval()
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    for name in ("DDPM", "DDIM"):
        pipeline = diffusers.DDPMPipeline if name == "DDPM" else diffusers.DDIMPipeline
        scheduler = getattr(diffusers, name + "Scheduler")()
        yield f"UNet, {name}", pipeline(unet, scheduler), {"batch_size": 1}
    for name in ("DPMSolverMultistep", "UniPCMultistep", "EulerAncestralDiscrete", "DEISMultistep"):
        scheduler = getattr(diffusers, name + "Scheduler")()
        yield (
            f"DiT, {name}",
            diffusers.DiTPipeline(transformer, vae, scheduler),
            {"class_labels": [1], "guidance_scale": 4.0},
        )


def timed(pipeline, options):
    """Milliseconds of a whole call, and of them in the scheduler's methods."""
    scheduler, spent = pipeline.scheduler, 0.0
    methods = {name: getattr(scheduler, name) for name in ("set_timesteps", "scale_model_input", "step")}
    own = {name: vars(scheduler).get(name) for name in methods}

    def counted(method):
        @functools.wraps(method)
        def call(*args, **kwargs):
            nonlocal spent
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent += time.perf_counter() - begin

        return call

    for name, method in methods.items():
        setattr(scheduler, name, counted(method))
    begin = time.perf_counter()
    pipeline(**options, generator=torch.Generator().manual_seed(0), output_type="np")
    total = time.perf_counter() - begin
    for name, method in own.items():
        if method is None:
            delattr(scheduler, name)
        else:
            setattr(scheduler, name, method)
    return total * 1e3, spent * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    print(f"{'':30}{'a call, ms':>24}{'its scheduler, ms':>24}{'share':>20}")
    for name, pipeline, options in pipelines(arguments.size, arguments.channels):
        pipeline.set_progress_bar_config(disable=True)
        options["num_inference_steps"] = arguments.steps
        schedulers = pipeline.scheduler, accelerate(copy.deepcopy(pipeline.scheduler))
        found = [], []
        for _ in range(arguments.rounds + 1):
            for scheduler, times in zip(schedulers, found, strict=True):
                pipeline.scheduler = scheduler
                times.append(timed(pipeline, options))
        before, after = (
            [statistics.median(column) for column in zip(*times[1:], strict=True)] for times in found
        )
        print(
            f"{name:30}{before[0]:13.1f} → {after[0]:7.1f}{before[1]:14.2f} → {after[1]:7.2f}"
            f"{before[1] / before[0]:12.1%} → {after[1] / after[0]:5.1%}"
        )


if __name__ == "__main__":
    main()
