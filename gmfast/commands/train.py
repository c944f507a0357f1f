"""`gmfast train`."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..models.registry import MODELS
from ._launch import ProcessCount, launch
from ._shared import Device, check_folder, given_path

if TYPE_CHECKING:
    from ..training import Trainer


def train(
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"One of {', '.join(MODELS)}. `gmfast list` says what each is. [default: that of --config]"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images: digits, binary-digits, photos. Sound: speech, flute. Vectors: moons, circles, "
            "swiss-roll, checkerboard, gaussians, spirals, wine, breast-cancer, diabetes. Or a path. "
            "[default: what suits the model; `gmfast list MODEL` says which]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="PATH", help="The run's folder. [default: runs/MODEL-DATA]"),
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Train until this step.")] = 2000,
    config: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            metavar="FILE",
            help="Settings from a TOML file, such as a run's settings.toml; other options go before.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Of all processes together. [default: what suits the model, else 64]"),
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts that a batch is computed in, for less memory. [default: 1]")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate at the first step. [default: what suits the model, else 0.001]"),
    ] = None,
    lr_decay: Annotated[
        float | None, typer.Option(help="Factor of the learning rate each step. [default: 0.999995]")
    ] = None,
    lr_schedule: Annotated[
        str | None, typer.Option(help="exponential, by --lr-decay; or cosine, to 0 at --lr-steps.")
    ] = None,
    lr_steps: Annotated[
        int | None, typer.Option(help="Length of the cosine schedule. [default: --steps]")
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Steps in which the learning rate rises from 0. [default: 0]")
    ] = None,
    ema_decay: Annotated[
        float | None, typer.Option(help="Decay of the weights' running average. [default: 0.9995]")
    ] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(help="Norm that gradients are clipped to. [default: 1]")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16. [default: float32]")] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile", help="Compile the loss with torch.compile.")
    ] = None,
    checkpoint_activations: Annotated[
        bool | None,
        typer.Option(
            "--checkpoint-activations", help="Compute blocks again in the backward pass: less memory."
        ),
    ] = None,
    conditional: Annotated[bool | None, typer.Option(help="Condition on the data's labels.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Run of an edm for a consistency model to learn from.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Argument of the model, such as nr_filters=64; `gmfast list MODEL` shows all. "
            "[default: what suits the model and the data]",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Image size of photos and folders, samples in a clip. "
            "[default: what suits the model, else 32 and 4096]"
        ),
    ] = None,
    rate: Annotated[
        int | None, typer.Option(help="Hz to resample sound to. [default: the file's own; 8000 for built-in]")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Levels of sound: mulaw (256) or linear (65536). [default: mulaw]")
    ] = None,
    grayscale: Annotated[
        bool | None,
        typer.Option(help="Read image files as one channel, or as RGB. [default: as the files are]"),
    ] = None,
    alpha: Annotated[
        str | None, typer.Option(help="Transparent images: over white or black, or refuse. [default: white]")
    ] = None,
    on_error: Annotated[
        str | None, typer.Option(help="Files that cannot be read: raise, or skip and list. [default: raise]")
    ] = None,
    flip: Annotated[bool | None, typer.Option("--flip", help="Mirror half of the training images.")] = None,
    crop: Annotated[
        int | None, typer.Option(help="Pad training images by so many pixels and crop them at random.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="[default: 0]")] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(help="Steps between held-out evaluations; 0: never.")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. [default: 500]")
    ] = None,
    sample_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between pictures of samples and of the losses, in the run's folder; 0: none."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run that is in --out, and begin anew.")
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Also send metrics to tensorboard, wandb or another of accelerate's trackers."),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Short for --track tensorboard.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=0, help="Further processes that load data, for each process.")
    ] = 0,
    processes: ProcessCount = 1,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard", help="Divide weights and optimiser states too, for models that do not fit (FSDP2)."
        ),
    ] = False,
    device: Device = None,
) -> None:
    """Train a model. Ctrl-C saves; --resume continues with the numbers of an uninterrupted run."""
    from ..training import Settings, Trainer, read_config
    from ..training.tracking import check_trackers

    if resume and overwrite:
        raise ValueError("overwrite: expected none with --resume, which continues the run")
    if launch(processes):
        return
    chosen = {} if config is None else read_config(config)
    if model is None and "model" not in chosen:
        raise ValueError(
            f"model: expected one of {', '.join(MODELS)}, or a --config that names one, got none"
        )
    chosen["model"] = model = MODELS.resolve(model or chosen["model"])
    if option:
        chosen["options"] = {**chosen.get("options", {}), **_options(option)}
    given = {
        "data": data,
        "size": size,
        "rate": rate,
        "encoding": encoding,
        "grayscale": grayscale,
        "alpha": alpha,
        "on_error": on_error,
        "conditional": conditional,
        "teacher": teacher,
        "seed": seed,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "lr": lr,
        "lr_decay": lr_decay,
        "lr_schedule": lr_schedule,
        "lr_steps": lr_steps,
        "warmup": warmup,
        "ema_decay": ema_decay,
        "max_grad_norm": max_grad_norm,
        "precision": precision,
        "compile": compile,
        "checkpoint_activations": checkpoint_activations,
        "flip": flip,
        "crop": crop,
        "evaluate_every": evaluate_every,
        "checkpoint_every": checkpoint_every,
        "sample_every": sample_every,
    }
    chosen |= {name: value for name, value in given.items() if value is not None}
    if chosen.get("lr_schedule") == "cosine" and not resume:
        chosen.setdefault("lr_steps", steps)
    check_trackers(track or ())
    if out is None:
        source = Path(chosen.get("data") or MODELS[model].data)
        out = Path("runs") / f"{model}-{source.stem if source.is_file() else source.name}"
    # torchrun's elastic restart runs the same command again.
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0 and (out / "last").exists()
    if resume or again:
        trainer = Trainer.resume(out, device, workers=workers, shard=shard, **chosen)
    else:
        check_folder(out)
        trainer = Trainer.start(
            Settings(**chosen), out, device, workers=workers, shard=shard, overwrite=overwrite
        )
    main = trainer.processes.main
    if main:
        _describe(model, trainer)
    finished = trainer.fit(steps, trackers=track or (), tensorboard=tensorboard, illustrate=_illustrate)
    unreadable = trainer.processes.union(trainer.dataset.unreadable())
    if main and unreadable:
        (out / "skipped.txt").write_text("\n".join(unreadable) + "\n")
        print(f"skipped {len(unreadable)} files that cannot be read: {out / 'skipped.txt'}", file=sys.stderr)
    if main:
        print(f"{'finished' if finished else 'stopped'} at step {trainer.step}: {out}")
    if not finished:
        raise typer.Exit(130)


def _describe(model: str, trainer: "Trainer") -> None:
    """Say what is trained on what, and where."""
    parameters = sum(p.numel() for p in trainer.model.parameters())
    dataset, count = trainer.dataset, trainer.processes.count
    amount = "a stream of" if dataset.streamed else len(dataset.split("train"))
    several = f", {count} processes" if count > 1 else ""
    print(
        f"{model} of {parameters:,} parameters on {dataset.name}, {amount} {dataset.items}, "
        f"{trainer.device}{several}",
        file=sys.stderr,
    )


def _illustrate(trainer: "Trainer") -> None:
    """Draw samples of the averaged model, and the losses so far, into the run's folder."""
    import torch

    from ..models.base import evaluating
    from ..outputs import output_for
    from ..outputs.curves import draw_losses

    output = output_for(trainer.ema, trainer.settings, trainer.out)
    options, classes = {"seed": 0}, trainer.ema.num_labels
    if classes is not None:
        options["label"] = torch.arange(output.count, device=trainer.device) % classes
    if "length" in trainer.ema.sample_options():
        options["length"] = trainer.dataset.image_shape[-1]
    with evaluating(trainer.ema):
        samples = trainer.ema.sample(output.count, **options)
    default = Path(output.default)
    output.write(trainer.out / f"{default.stem}-{trainer.step:08d}{default.suffix}", samples.cpu())
    draw_losses(trainer.out / "metrics.jsonl", trainer.out / "losses.png")


def _options(pairs: list[str]) -> dict[str, Any]:
    """Options from NAME=VALUE, a value being JSON or else a string."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set: expected NAME=VALUE, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options
