"""`gmfast sample`."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._launch import ProcessCount, launch
from ._shared import Device, check_folder, given_path, progress_lines

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.base import Model
    from ..outputs import Output
    from ..training import Settings

#: Completions of each image with `--complete`.
COMPLETIONS = 6


def sample(
    run: Annotated[
        Path, typer.Argument(parser=given_path, metavar="RUN", help="A folder that `gmfast train` wrote.")
    ],
    n: Annotated[
        int | None,
        typer.Option(
            "--num", "-n", "--n", min=1, help="How many. [default: 16 images, 1 clip of sound, 2000 vectors]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Sample i is the same for any number of samples.")] = 0,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="A PNG, or for sound a WAV, or for vectors an .npz or .csv (in the plane a PNG too). Or "
            "a folder, that is, a path without a suffix or with a / at its end: .npz shards and a manifest, "
            "of which the same command makes what is missing. [default: samples.png, samples.wav, "
            "samples.npz]",
        ),
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Samples in a clip of sound. [default: as in training]")
    ] = None,
    label: Annotated[
        int | None, typer.Option(help="Class of every sample; by default a conditional model takes turns.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Below 1: sharper distributions.")] = 1.0,
    complete: Annotated[
        bool,
        typer.Option("--complete", help="Draw the lower half of --num held-out images, six times each."),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            help="cached: nothing is computed twice; naive: a full pass for each value. "
            "[default: cached; of flows only maf, iaf and spline_flow have them]"
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps of a diffusion model's sampler, or of Langevin dynamics: for ncsn at each noise "
            "level, for energy in all. [default: what suits the model]",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Sampler of ddpm, edm and flow_matching: ddim, dpmpp_2m, unipc, heun ...; any of "
            "`gmfast.diffusion.SAMPLERS`. [default: the model's]"
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Guidance of a conditional diffusion model; above 1: more of the class. [default: 1]"
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="bfloat16: rounded to it, half the memory to read. For cached.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Draw the same with the other method too, and compare.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples to draw at once. [default: all; for a folder 64 images, 16 clips, 4096 vectors]",
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Samples in a shard of a folder. [default: 512 images, 128 clips, 32768 vectors]"
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the samples in the folder --out, and begin anew.")
    ] = False,
    processes: ProcessCount = 1,
    device: Device = None,
) -> None:
    """Draw samples from a trained model.

    Images are written as a grid; clips of sound, one after another, as a WAV file with a picture of its
    waveform and spectrogram beside it; vectors, in the data's units, as an .npz or .csv file, with a picture
    of data, samples and density beside it where they lie in the plane. Into a folder go samples of any
    number, as arrays.
    """
    if out == "":
        raise ValueError("out: expected a path, got ''")
    if launch(processes):
        return
    from .._processes import join
    from ..outputs import output_for, shards
    from ..training import load_run
    from ._drawing import Drawing

    team = join(device)
    model, settings, step = load_run(run)
    model.to(team.device)
    team.share(model)  # a run that goes on may show each process another checkpoint
    output = output_for(model, settings, run)
    for_some = {"complete": complete, "compare": compare, "length": length, "weights": weights}
    _check_modality(model, output, for_some)
    own = {"steps": steps, "sampler": sampler, "guidance": guidance}
    own["temperature"] = None if temperature == 1 else temperature
    given = {"method": method, "weights": weights, "complete": complete, "compare": compare}
    own = _model_options(model, settings, given, own)
    folder = out is not None and shards.names_folder(out)
    path = Path(out or output.default)
    for name, value in (("complete", complete), ("compare", compare)):
        if value:
            _check_whole(name, path if folder else None, team.count, batch_size)
    n = n or output.count
    how = {"method": method or "cached", "weights": weights, "length": length} | own
    has = model.sample_options()
    how = {name: value for name, value in how.items() if name in has and value is not None}
    drawing, terminal = Drawing(model, seed, label, how), sys.stderr.isatty()
    if folder:
        if team.main:
            check_folder(path)
        count = shards.write(
            path,
            drawing.request(run, settings, step) if team.main else {},
            drawing.arrays,
            num=n,
            shard_size=shard_size or 8 * output.batch,
            batch_size=batch_size or output.batch,
            processes=team,
            progress=terminal or progress_lines("drew", "samples"),
            overwrite=overwrite,
        )
        if team.main:
            print(f"{n} samples in {count} shards: {out}")
        return
    for name, value in (("shard_size", shard_size), ("overwrite", overwrite)):
        if value:
            raise ValueError(f"{name}: expected a folder as --out, got {path}")
    output.check(path)
    if team.main:
        check_folder(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
    count, options = n, {"progress": terminal and team.main}
    if complete:
        originals, keep, completion = _completion(model, settings, n, label)
        count = n * COMPLETIONS
        options |= completion

    def draw(**how: str | None) -> "tuple[Tensor, float]":
        """Samples, and the seconds that drawing them takes."""
        started = time.perf_counter()
        drawn = drawing.draw_all(count, batch_size, team, **options, **how)
        return drawn, time.perf_counter() - started

    drawn, seconds = draw()
    if not team.main:
        return
    report = output.report(drawn, seconds)
    if report is not None:
        print(report, file=sys.stderr)
    if compare:
        this, other = ("cached", "naive") if how["method"] == "cached" else ("naive", "cached")
        both = {this: (drawn, seconds), other: draw(method=other, weights=None)}
        where = ~keep if complete else None
        print(_comparison(*both["cached"], *both["naive"], model.num_levels, weights, where))
    written = (
        output.write_completions(path, originals, keep, drawn) if complete else output.write(path, drawn)
    )
    print(*written, sep="\n")


def _check_whole(name: str, folder: Path | None, processes: int, batch_size: int | None) -> None:
    """Refuse to divide samples that are drawn at once: those with the option `name`."""
    if folder is not None:
        raise ValueError(f"out: expected a file with --{name}, got {folder}")
    if processes > 1:
        raise ValueError(f"processes: expected 1 with --{name}, got {processes}")
    if batch_size is not None:
        raise ValueError(f"batch_size: expected none with --{name}, got {batch_size}")


def _check_modality(model: "Model", output: "Output", given: dict[str, Any]) -> None:
    """Refuse options of other modalities."""
    for name, value in given.items():
        if value and name not in output.options:
            if value is True:
                raise ValueError(f"{name}: expected a model of images, got one of {model.modality}")
            raise ValueError(f"{name}: expected none for {model.modality}, got {value}")


def _model_options(
    model: "Model", settings: "Settings", given: dict[str, Any], own: dict[str, Any]
) -> dict[str, Any]:
    """Options for the model's `sample`, by the names it has for them; what it has not is refused."""
    from ..models.base import Cached, Guided

    has = set(model.sample_options())
    kind = f"{settings.model}, {'an' if model.family[0] in 'aeiou' else 'a'} {model.family}"
    cached = isinstance(model, Cached)
    for name, value in given.items():
        if value and not (cached or (name in ("method", "compare") and "method" in has)):
            raise ValueError(
                f"{name}: expected a model that draws each value given those before it, got {kind}"
            )
    names = {"steps": "langevin_steps"} if "langevin_steps" in has else {}
    takes = [name for name in ("steps", "sampler", "temperature") if names.get(name, name) in has]
    takes += ["guidance"] if isinstance(model, Guided) and model.guided else []
    options = {names.get(name, name): value for name, value in own.items() if value is not None}
    for name, value in own.items():
        if value is not None and names.get(name, name) not in has:
            which = f", which takes --{' and --'.join(takes)}" if takes else ""
            raise ValueError(f"{name}: expected a model that has it, got {kind}{which}")
    return options


def _completion(
    model: "Model", settings: "Settings", n: int, label: int | None
) -> "tuple[Tensor, Tensor, dict[str, Any]]":
    """`n` held-out images, where their upper halves are, and the options of `sample` that complete each."""
    import torch

    from ..data import to_unit

    dataset = settings.load_data()
    heldout = dataset.split("heldout")
    if n > len(heldout):
        raise ValueError(f"n: expected at most the {len(heldout)} held-out images, got {n}")
    originals, labels = heldout.__getitems__((torch.arange(n) * len(heldout) // n).tolist())
    keep = torch.zeros(originals.shape[2:], dtype=torch.bool)
    keep[: len(keep) // 2] = True
    given = to_unit(originals, model.num_levels).repeat_interleave(COMPLETIONS, 0)
    options = {"given": given, "mask": keep}
    if label is None and model.num_labels is not None:
        options["label"] = labels.repeat_interleave(COMPLETIONS)
    if "order" in model.sample_options():
        options["order"] = 0  # the raster order, in which the upper half comes first
    return originals, keep, options


def _comparison(
    cached: "Tensor",
    cached_seconds: float,
    naive: "Tensor",
    naive_seconds: float,
    num_levels: int,
    weights: str | None,
    drawn_here: "Tensor | None" = None,
) -> str:
    """Compare the same samples drawn by both methods, and the seconds they took.

    `drawn_here` is true where values were drawn, not given; None: everywhere.
    """
    from ..data import from_unit

    ratio = naive_seconds / cached_seconds
    times = f"cached {cached_seconds:.2f} s, naive {naive_seconds:.2f} s: {ratio:.1f} times as long\n"
    equal = from_unit(cached, num_levels) == from_unit(naive, num_levels)
    equal = (equal if drawn_here is None else equal[..., drawn_here]).flatten(1)
    agree = f"{int(equal.sum()):,} of {equal.numel():,} values agree"
    if equal.all():
        return times + agree
    rounding = "rounding" if weights is None else f"the rounding of the weights to {weights}"
    return times + (
        f"{agree}: in {int((~equal.all(1)).sum())} of {len(equal)} samples a draw lay within {rounding} of a "
        "boundary between two levels, and what follows it is another draw"
    )
