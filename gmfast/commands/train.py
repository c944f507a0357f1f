"""`gmfast train`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..models.registry import MODELS
from ._shared import Device


def train(
    model: Annotated[
        str, typer.Argument(help=f"One of {', '.join(MODELS)}. `gmfast list` says what each is.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Images: digits, binary-digits, photos. Sound: speech, flute. Vectors: moons, circles, "
            "swiss-roll, checkerboard, gaussians, spirals, wine, breast-cancer, diabetes. Or a path. "
            "[default: what suits the model; `gmfast list MODEL` says which]"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder. [default: runs/MODEL-DATA]")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Train until this step.")] = 2000,
    batch_size: Annotated[int | None, typer.Option(help="[default: what suits the model, else 64]")] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate at the first step. [default: what suits the model, else 0.001]"),
    ] = None,
    lr_decay: Annotated[
        float | None, typer.Option(help="Factor of the learning rate each step. [default: 0.999995]")
    ] = None,
    ema_decay: Annotated[
        float | None, typer.Option(help="Decay of the weights' running average. [default: 0.9995]")
    ] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(help="Norm that gradients are clipped to. [default: 1]")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16. [default: float32]")] = None,
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
    seed: Annotated[int | None, typer.Option(help="[default: 0]")] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(help="Steps between held-out evaluations; 0: never.")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. [default: 500]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write metrics for TensorBoard.")
    ] = False,
    device: Device = None,
) -> None:
    """Train a model. Ctrl-C saves; --resume continues with the numbers of an uninterrupted run."""
    from ..training import Settings, Trainer

    model = MODELS.resolve(model)
    given = {
        "model": model,
        "data": data,
        "size": size,
        "rate": rate,
        "encoding": encoding,
        "conditional": conditional,
        "teacher": teacher,
        "options": _options(option) if option else None,
        "seed": seed,
        "batch_size": batch_size,
        "lr": lr,
        "lr_decay": lr_decay,
        "ema_decay": ema_decay,
        "max_grad_norm": max_grad_norm,
        "precision": precision,
        "evaluate_every": evaluate_every,
        "checkpoint_every": checkpoint_every,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if out is None:
        source = Path(data or MODELS[model].data)
        out = Path("runs") / f"{model}-{source.stem if source.is_file() else source.name}"
    if resume:
        trainer = Trainer.resume(out, device, **given)
    else:
        trainer = Trainer.start(Settings(**given), out, device)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(
        f"{model} of {parameters:,} parameters on {trainer.dataset.name}, "
        f"{len(trainer.dataset.train)} {trainer.dataset.items}, {trainer.device}",
        file=sys.stderr,
    )
    finished = trainer.fit(steps, tensorboard=tensorboard)
    print(f"{'finished' if finished else 'stopped'} at step {trainer.step}: {out}")
    if not finished:
        raise typer.Exit(130)


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
