"""The `gmfast` command."""

import csv
import inspect
import json
import math
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Fast operations for generative models in PyTorch, and models that use them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # which would take [default: ...] for markup
    pretty_exceptions_enable=False,
)

DEVICE_HELP = "Where to run; by default a GPU where there is one."

#: How often `--complete` draws the rest of each image.
COMPLETIONS = 6


def main() -> None:
    """Runs the command. What a user can mend ends in one sentence on stderr and exit status 2."""
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name.startswith("gmfast"):
            raise
        if error.name == "pyo":  # which no extra brings where it has no wheel
            _fail(str(error))
        extra = "audio" if error.name == "soundfile" else "train"
        _fail(f"{error.name} is missing: pip install 'gmfast[{extra}]' brings it")
    except (ValueError, OSError, FloatingPointError) as error:
        _fail(str(error))


@app.command()
def train(
    model: Annotated[
        str,
        typer.Argument(
            help="One of consistency, ddpm, edm, energy, flow_matching, flowpp, gated_pixelcnn, glow, iaf, "
            "made, maf, ncsn, nice, pixelcnn, pixelcnnpp, realnvp, spline_flow, wavenet."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, binary-digits, photos, speech, flute; for maf, iaf and spline_flow also moons, "
            "circles, swiss-roll, checkerboard, gaussians, spirals, wine, breast-cancer, diabetes; or a "
            "path. "
            "[default: speech for wavenet, moons for maf, iaf and spline_flow, else digits]"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder. [default: runs/MODEL-DATA]")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Train until this step.")] = 2000,
    batch_size: Annotated[int | None, typer.Option(help="[default: what suits the model, else 64]")] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate at the first step. [default: what suits the model, else 0.001]"),
    ] = None,
    lr_decay: Annotated[float | None, typer.Option(help="Its factor each step. [default: 0.999995]")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Polyak averaging. [default: 0.9995]")] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(help="Gradients are clipped to it. [default: 1]")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16. [default: float32]")] = None,
    conditional: Annotated[bool | None, typer.Option(help="Condition on the data's labels.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The run of an edm for a consistency model to learn from.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="An argument of the model, e.g. nr_filters=64. [default: what suits the model and the data]",
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
        int | None, typer.Option(help="Steps between held-out losses; 0: never.")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. [default: 500]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write metrics for TensorBoard.")
    ] = False,
    device: Annotated[str | None, typer.Option(help=DEVICE_HELP)] = None,
) -> None:
    """Train a model. Ctrl-C saves; --resume goes on to the numbers of an uninterrupted run."""
    from .models import DATA
    from .train import Settings, Trainer

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
        source = Path(data or DATA.get(model, "digits"))
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


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="A folder that `gmfast train` wrote.")],
    n: Annotated[
        int | None,
        typer.Option("--n", min=1, help="How many. [default: 16 images, 1 clip of sound, 2000 vectors]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Image i is the same for any number of images.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A PNG, or for sound a WAV, or for vectors an .npz or .csv (in the plane a PNG too). "
            "[default: samples.png, samples.wav, samples.npz]"
        ),
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Samples in a clip of sound. [default: as in training]")
    ] = None,
    label: Annotated[
        int | None, typer.Option(help="Class of every image; by default a conditional model takes turns.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Below 1: sharper distributions.")] = 1.0,
    complete: Annotated[
        bool,
        typer.Option("--complete", help="Draw the lower half of --n held-out images, six times each."),
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
            help="Of a diffusion model's sampler; of Langevin dynamics, for ncsn at each noise level, for "
            "energy in all. [default: what suits the model]",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Of ddpm, edm and flow_matching: ddim, dpmpp_2m, unipc, heun ...; any of "
            "`gmfast.diffusion.SAMPLERS`. [default: the model's]"
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Of a conditional diffusion model: above 1, more of the class. [default: 1]"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="bfloat16: rounded to it, half the memory to read. For cached.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Draw the same with the other method too, and compare.")
    ] = False,
    device: Annotated[str | None, typer.Option(help=DEVICE_HELP)] = None,
) -> None:
    """Draw images from a trained model into a grid, or clips of sound, one after another, into a WAV file
    with a picture of its waveform and spectrogram beside it, or vectors, in the data's units, into an .npz or
    .csv file, with a picture of data, samples and density beside it where they lie in the plane."""
    import torch

    from .train import column_names, find_device, load_run

    model, settings, _ = load_run(run)
    device = find_device(device)
    if model.config.get("num_levels", 0) is None:
        for name, value in {"complete": complete, "compare": compare}.items():
            if value:
                raise ValueError(f"{name}: expected a model of images, got one of vectors")
        for name, value in {"length": length, "weights": weights}.items():
            if value is not None:
                raise ValueError(f"{name}: expected none for vectors, got {value}")
        options = {"seed": seed, "temperature": temperature, "method": method or "cached"}
        out = out or Path("samples.npz")
        _sample_vectors(model.to(device), settings, n or 2000, label, out, options, column_names(run))
        return
    sound = settings.rate is not None
    flow = not hasattr(model, "decoder")  # or a diffusion model, whose `family` says so
    taken = set(inspect.signature(model.sample).parameters)
    takes_method = "method" in taken
    family = getattr(model, "family", "flow" if flow else "model that draws value after value")
    kind = f"{'an' if family[0] in 'aeiou' else 'a'} {family}"
    if hasattr(model, "draw"):
        taken |= inspect.signature(model.draw).parameters.keys()
    if flow:
        asked = {"weights": weights, "complete": complete}
        if not takes_method:
            asked |= {"method": method, "compare": compare}
        for name, value in asked.items():
            if value:
                raise ValueError(
                    f"{name}: expected a model that draws each value given those before it, got "
                    f"{settings.model}, {kind}"
                )
    own = {"steps": steps, "sampler": sampler, "guidance": guidance}
    if "langevin_steps" in taken:  # what such a model has for steps
        own["langevin_steps"] = own.pop("steps")
        taken |= {"steps"}
    own = {name: value for name, value in own.items() if value is not None}
    given = {**own, **({} if temperature == 1 else {"temperature": temperature})}
    for name in given:
        if name not in taken:
            guided = getattr(model, "label_dropout", 0.0) and model.num_labels
            has = [known for known in ("steps", "sampler", "temperature") if known in taken]
            has += ["guidance"] if guided else []
            which = f", which takes --{' and --'.join(has)}" if has else ""
            raise ValueError(f"{name}: expected a model that has it, got {settings.model}, {kind}{which}")
    if sound and complete:
        raise ValueError("complete: expected a model of images, got one of sound")
    if length is not None and not sound:
        raise ValueError(f"length: expected none for images, got {length}")
    out = out or Path("samples.wav" if sound else "samples.png")
    suffix = ".wav" if sound else ".png"
    if out.suffix.lower() != suffix:
        raise ValueError(f"out: expected a {suffix} file, got {out}")
    n = n or (1 if sound else 16)
    model.to(device)
    num_labels = model.config.get("num_labels")
    if label is None and num_labels is not None and not complete:
        label = torch.arange(n, device=device) % num_labels
    options = {"label": label, "seed": seed, "temperature": temperature, **own}
    options["progress"] = sys.stderr.isatty()
    options = {name: value for name, value in options.items() if name in taken}
    count, levels = n, model.config["num_levels"]
    if sound:
        options["length"] = length
    elif complete:
        originals, keep, completion = _completion(model, settings, n, label)
        count = n * COMPLETIONS
        options |= completion

    def draw(**how: str | None) -> tuple[torch.Tensor, float]:
        """What the model draws, and how many seconds that takes."""
        started = time.perf_counter()
        drawn = model.sample(count, **how, **options).cpu()
        return drawn, time.perf_counter() - started

    out.parent.mkdir(parents=True, exist_ok=True)
    method = method or "cached"
    how = ({"method": method} if takes_method else {}) | ({} if flow else {"weights": weights})
    drawn, seconds = draw(**how)
    if sound:
        duration = drawn.numel() / settings.rate
        print(
            f"{duration:.2f} s of sound in {seconds:.2f} s: {duration / seconds:.1f} times real time",
            file=sys.stderr,
        )
    if compare:
        both = {method: (drawn, seconds)}
        other = "naive" if method == "cached" else "cached"
        both[other] = draw(method=other)
        drawn_here = ~keep if complete else None
        print(_comparison(*both["cached"], *both["naive"], levels, weights, drawn_here))

    written = [out]
    if sound:
        from . import audio

        wave = audio.ENCODINGS[settings.encoding].decode(drawn).flatten()
        audio.write(out, wave, settings.rate)
        written.append(out.with_suffix(".png"))
        audio.picture(written[1], wave, settings.rate)
    else:
        from .data import from_unit
        from .image_grid import completion_grid, image_grid

        images = from_unit(drawn, levels)
        if complete:
            picture = completion_grid(originals, keep, images.unflatten(0, (n, COMPLETIONS)), levels)
        else:
            picture = image_grid(images, levels)
        picture.save(out, "PNG")
    print(*written, sep="\n")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `gmfast train` wrote.")],
    data: Annotated[str | None, typer.Option(help="Other data than the run's own.")] = None,
    device: Annotated[str | None, typer.Option(help=DEVICE_HELP)] = None,
) -> None:
    """Bits per dimension on held-out data, beside a histogram of each pixel, or of a sound's samples; for
    vectors of real numbers, of the density in their own units, beside a Gaussian's. Of a model without a
    likelihood, its loss. Diffusion models take many passes an image: minutes on a CPU."""
    from .train import evaluate, find_device, load_run

    model, settings, step = load_run(run)
    dataset = settings.load_data(data)
    model.to(find_device(device))
    progress = True if sys.stderr.isatty() else _lines("evaluated", dataset.items)
    bits = evaluate(model, dataset, settings.conditional, progress=progress)
    if dataset.real_valued:
        per_vector = dataset.train.shape[1] * math.log(2)
        for name, value in (
            (f"{settings.model} at step {step}", bits),
            ("one Gaussian of full covariance", dataset.gaussian_bits_per_dim()),
        ):
            print(
                f"{name}: {value:.4f} bits per dimension, {value * per_vector:.4f} nats per vector "
                f"on {len(dataset.heldout)} {dataset.items}"
            )
        return
    count = f"{len(dataset.heldout)} {dataset.items}"
    measured = getattr(model, "unit", None)
    if measured not in (None, "bits per dimension"):
        print(f"{settings.model} at step {step}: {bits:.4f} ({measured}) on {count}")
        return
    histogram = dataset.histogram_bits_per_dim(settings.conditional)
    unit, baseline = (
        ("dimension", "per-pixel histogram")
        if dataset.rate is None
        else ("sample", "histogram of all samples")
    )
    print(f"{settings.model} at step {step}: {bits:.4f} bits per {unit} on {count}")
    print(f"{baseline}: {histogram:.4f} bits per {unit}")


@app.command()
def doctor() -> None:
    """Say what was built, and which implementation each operation uses on each device."""
    import gmfast

    print(gmfast.doctor())


@app.command()
def bench(
    operations: Annotated[
        list[str] | None, typer.Argument(help="Words of their names, such as conv; by default all.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table, the CSV and the picture.")] = Path(
        "out/bench"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few repetitions.")] = False,
    sampling: Annotated[
        bool,
        typer.Option("--sampling", help="Time cached sampling against full passes and a loop in PyTorch."),
    ] = False,
) -> None:
    """Time the operations against plain PyTorch and torch.compile."""
    if sampling:
        if operations:
            raise ValueError(f"OPERATIONS: expected none with --sampling, got {' '.join(operations)}")
        from .benchmarks.sampling import main

        main(out=out, quick=quick)
    else:
        from . import benchmark

        benchmark.main(out=out, quick=quick, cases=benchmark.cases_of(operations) if operations else None)


def _sample_vectors(
    model, settings, n: int, label: int | None, out: Path, options: dict, columns: list[str] | None
) -> None:
    """Writes `n` vectors and, in the plane, a picture beside them, or the picture alone."""
    import numpy as np
    import torch

    plane = model.image_shape == (2,) and model.num_labels is None
    suffix = out.suffix.lower()
    if suffix not in (".npz", ".csv") and not (plane and suffix == ".png"):
        expected = "an .npz, .csv or .png file" if plane else "an .npz or .csv file"
        raise ValueError(f"out: expected {expected}, got {out}")
    if label is None and model.num_labels is not None:
        label = torch.arange(n, device=model.mean.device) % model.num_labels
    started = time.perf_counter()
    samples = model.sample(n, label=label, **options).cpu()
    print(f"{n} vectors in {time.perf_counter() - started:.2f} s", file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".csv":
        with out.open("w", encoding="utf-8", newline="") as file:
            if columns is not None:
                csv.writer(file, lineterminator="\n").writerow(columns)
            np.savetxt(file, samples.numpy(), delimiter=",", fmt="%.9g")
        print(out)
    elif suffix == ".npz":
        np.savez(out, samples=samples.numpy())
        print(out)
    if plane:
        from .density_plot import density_plot

        picture = out.with_suffix(".png")
        with torch.no_grad():
            density_plot(
                picture,
                lambda x: model.log_prob(x.to(model.mean.device)).cpu(),
                settings.load_data().heldout,
                samples,
            )
        print(picture)


def _completion(model, settings, n: int, label: int | None):
    """`n` held-out images, where their upper halves are, and what asks `sample` for the rest of each."""
    import torch

    from .data import to_unit

    dataset, levels = settings.load_data(), model.config["num_levels"]
    if n > len(dataset.heldout):
        raise ValueError(f"n: expected at most the {len(dataset.heldout)} held-out images, got {n}")
    chosen = torch.arange(n) * len(dataset.heldout) // n
    originals = dataset.heldout[chosen]
    keep = torch.zeros(originals.shape[2:], dtype=torch.bool)
    keep[: len(keep) // 2] = True
    options = {"given": to_unit(originals, levels).repeat_interleave(COMPLETIONS, 0), "mask": keep}
    if label is None and model.config.get("num_labels") is not None:
        options["label"] = dataset.heldout_labels[chosen].repeat_interleave(COMPLETIONS)
    if settings.model == "made":
        options["order"] = 0  # the raster order, in which the upper half comes first
    return originals, keep, options


def _comparison(
    cached, cached_seconds, naive, naive_seconds, num_levels: int, weights: str | None, drawn_here=None
) -> str:
    """What `--compare` says of the same samples drawn in both ways, and of the seconds it took.
    `drawn_here` says where they were drawn, not given; None: everywhere."""
    from .data import from_unit

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


def _options(pairs: list[str]) -> dict:
    """NAME=VALUE, a value being JSON or else a string."""
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


def _lines(done_is: str, items: str):
    """`progress=` for where there is no terminal: a line on stderr every half minute."""
    from .train import LINE_SECONDS

    due = time.monotonic() + LINE_SECONDS

    def progress(done: int, total: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            print(f"{done_is} {done} of {total} {items}", file=sys.stderr, flush=True)
            due = time.monotonic() + LINE_SECONDS

    return progress


def _fail(sentence: str) -> None:
    print(f"gmfast: {sentence}", file=sys.stderr)
    raise SystemExit(2)
