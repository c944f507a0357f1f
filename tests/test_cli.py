import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gmfast
from gmfast.commands.sample import _comparison
from gmfast.data import BUILT_IN, load, to_unit
from gmfast.models import MODELS
from gmfast.outputs.images import image_grid

TINY = ["--set", "nr_resnet=1", "--set", "nr_filters=4", "--set", "nr_logistic_mix=2"]


def test_train_resume_evaluate_sample(gmfast_command, tmp_path):
    run, picture = tmp_path / "run", tmp_path / "new" / "grid.png"
    options = [
        "train",
        "pixelcnnpp",
        "--out",
        run,
        "--conditional",
        "--batch-size",
        "16",
        "--lr",
        "0.01",
        *TINY,
    ]
    status, out, err = gmfast_command(*options, "--steps", "3")
    assert (status, out) == (0, f"finished at step 3: {run}\n")
    assert re.search(r"\nstep 3 of 3: loss \d+\.\d{3}\n", err) and "\r" not in err  # which is no terminal
    status, out, _ = gmfast_command(*options, "--steps", "5", "--resume")
    assert (status, out) == (0, f"finished at step 5: {run}\n")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5] and lines[4]["loss"] < lines[0]["loss"]

    status, out, _ = gmfast_command("evaluate", run)
    model, histogram = out.splitlines()
    assert status == 0 and model.startswith("pixelcnnpp at step 5: ") and model.endswith(" on 360 images")
    assert 1 < float(model.split()[4]) < 8
    assert (
        histogram
        == f"per-pixel histogram: {load('digits').histogram_bits_per_dim(True):.4f} bits per dimension"
    )

    status, out, _ = gmfast_command(
        "sample", run, "--device", "cpu", "--n", "6", "--seed", "3", "--out", picture
    )
    assert (status, out) == (0, f"{picture}\n")
    with Image.open(picture) as first:
        first = first.convert("RGB")
        assert first.size == (3 * 50 + 2, 2 * 50 + 2)
    gmfast_command("sample", run, "--device", "cpu", "--n", "3", "--seed", "3", "--out", picture)
    with Image.open(picture) as again:  # its first row begins as the other one does
        box = (0, 0, 102, 52)
        assert list(again.convert("RGB").crop(box).get_flattened_data()) == list(
            first.crop(box).get_flattened_data()
        )
    for method in ("cached", "naive"):
        other = tmp_path / f"{method}.png"
        options = [
            "--device",
            "cpu",
            "--n",
            "3",
            "--seed",
            "3",
            "--method",
            method,
            "--compare",
            "--out",
            other,
        ]
        status, out, _ = gmfast_command("sample", run, *options)
        times, values, path = out.splitlines()
        assert status == 0 and path == str(other) and other.read_bytes() == picture.read_bytes()
        assert re.fullmatch(r"cached \d+\.\d\d s, naive \d+\.\d\d s: \d+\.\d times as long", times)
        assert values == "192 of 192 values agree"
    status, _, err = gmfast_command("sample", run, "--method", "naive", "--weights", "bfloat16")
    assert status == 2 and "weights: expected None with method=\"naive\", got 'bfloat16'" in err
    status, out, _ = gmfast_command("sample", run, "--complete", "--n", "2", "--out", picture)
    assert (status, out) == (0, f"{picture}\n")
    with Image.open(picture) as completions:  # rows of a held-out digit, its upper half, and six completions
        assert completions.size == (12 + 2 * (68 + 12) + 6 * 66 + 2 + 12, 24 + 2 * 66 + 2 + 12)
        lefts = [14, 94, *range(174, 174 + 6 * 66, 66)]
        for top, digit in ((26, 0), (92, 180)):
            upper = [completions.crop((left, top, left + 64, top + 32)).tobytes() for left in lefts]
            lower = [completions.crop((left, top + 32, left + 64, top + 64)).tobytes() for left in lefts]
            assert len(set(upper)) == 1 and len(set(lower)) == 8
            grey = [completions.getpixel((14 + 8 * i, top + 8))[0] for i in range(8)]
            assert grey == [round(v * 255 / 16) for v in load("digits").heldout[digit, 0, 1].tolist()]
    status, _, err = gmfast_command("sample", run, "--complete", "--n", "361", "--out", picture)
    assert status == 2 and "n: expected at most the 360 held-out images, got 361" in err
    status, _, err = gmfast_command("sample", run, "--out", "x.jpg")
    assert (status, err) == (2, "gmfast: out: expected a .png file, got x.jpg\n")
    status, _, err = gmfast_command("sample", run, "--label", "10", "--out", picture)
    assert status == 2 and "label: expected integers from 0 to 9, got values from 10 to 10" in err


def test_flows_are_trained_evaluated_and_sampled_in_one_pass(gmfast_command, tmp_path):
    run, picture = tmp_path / "run", tmp_path / "grid.png"
    options = ["--conditional", "--batch-size", "16", "--set", "num_steps=1", "--set", "width=4"]
    status, _, err = gmfast_command("train", "glow", "--out", run, *options, "--steps", "2")
    assert status == 0, err
    outputs = [gmfast_command("evaluate", run) for _ in range(2)]
    assert outputs[0] == outputs[1] and outputs[0][1].startswith("glow at step 2: ")
    status, out, _ = gmfast_command("sample", run, "--n", "3", "--temperature", "0.7", "--out", picture)
    assert (status, out) == (0, f"{picture}\n")
    with Image.open(picture) as grid:
        assert grid.size == (2 * 50 + 2, 2 * 50 + 2)
    for arguments in (
        ["--method", "naive"],
        ["--method", "cached"],
        ["--weights", "bfloat16"],
        ["--compare"],
        ["--complete"],
    ):
        status, _, err = gmfast_command("sample", run, *arguments, "--out", picture)
        name = arguments[0][2:]
        sentence = f"{name}: expected a model that draws each value given those before it, got glow, a flow"
        assert (status, err) == (2, f"gmfast: {sentence}\n")


def test_autoregressive_flows_of_images_are_sampled_by_both_methods(gmfast_command, tmp_path):
    run, picture = tmp_path / "run", tmp_path / "grid.png"
    options = ["--data", "digits", "--out", run, "--steps", "1", "--set", "hidden=[8]"]
    assert gmfast_command("train", "maf", *options)[0] == 0
    status, out, err = gmfast_command("sample", run, "--n", "2", "--compare", "--out", picture)
    assert status == 0, err
    assert re.search(r"cached \d+\.\d\d s, naive \d+\.\d\d s", out) and "128 values agree" in out
    assert gmfast_command("sample", run, "--n", "2", "--method", "naive", "--out", picture)[0] == 0


def test_diffusion_models(gmfast_command, tmp_path):
    run, picture = tmp_path / "run", tmp_path / "grid.png"
    small = ["channels=4", "num_blocks=1", "num_timesteps=20"]
    options = ["--out", run, "--steps", "20", "--conditional", *(f"--set={pair}" for pair in small)]
    assert gmfast_command("train", "ddpm", *options)[0] == 0
    drawn = []
    for how in ([], ["--sampler", "ddim", "--steps", "5"], ["--guidance", "300"]):
        status, out, err = gmfast_command("sample", run, "--n", "4", "--out", picture, *how)
        assert (status, out) == (0, f"{picture}\n"), err
        drawn.append(picture.read_bytes())
    assert len(set(drawn)) == 3
    status, out, _ = gmfast_command("evaluate", run)
    assert status == 0 and re.match(r"ddpm at step 20: \d+\.\d+ bits per dimension on 360 images\n", out)
    for arguments, sentence in [
        (
            ["--temperature", "0.5"],
            "temperature: expected a model that has it, got ddpm, a diffusion model, which takes --steps and "
            "--sampler and --guidance\n",
        ),
        (["--complete"], "complete: expected a model that draws each value given those before it, got ddpm"),
        (["--sampler", "euler2"], "sampler: expected a Sampler object or one of ddpm, ddim, "),
    ]:
        status, _, err = gmfast_command("sample", run, *arguments, "--out", picture)
        assert status == 2 and err.startswith(f"gmfast: {sentence}")


def test_a_model_without_a_likelihood_is_evaluated_by_its_loss(gmfast_command, tmp_path, monkeypatch):
    monkeypatch.setattr("gmfast.training.trainer.LINE_SECONDS", 0)
    run = tmp_path / "run"
    small = ["channels=4", "num_scales=1", "langevin_steps=2", "buffer_size=8"]
    options = ["--out", run, "--steps", "1", *(f"--set={pair}" for pair in small)]
    assert gmfast_command("train", "energy", *options)[0] == 0
    status, out, err = gmfast_command("evaluate", run)
    assert status == 0
    lines = err.splitlines()  # how far it is
    assert lines[0] == "evaluated 32 of 360 images" and lines[-1] == "evaluated 360 of 360 images"
    assert re.fullmatch(
        r"energy at step 1: -?\d+\.\d+ \(energy of data less that of samples\) on 360 images\n", out
    )
    status, _, err = gmfast_command("sample", run, "--sampler", "ddim")
    assert (status, err) == (
        2,
        "gmfast: sampler: expected a model that has it, got energy, an energy model, which takes --steps\n",
    )


def test_a_model_of_langevin_dynamics_takes_its_steps(gmfast_command, tmp_path):
    run = tmp_path / "run"
    small = ["channels=4", "num_blocks=1", "sigma_min=1.0", "attention=[]"]
    options = ["--out", run, "--steps", "1", *(f"--set={pair}" for pair in small)]
    assert gmfast_command("train", "ncsn", *options)[0] == 0
    status, _, err = gmfast_command("sample", run, "--sampler", "heun", "--out", tmp_path / "x.png")
    assert status == 2 and err.endswith("got ncsn, a score model, which takes --steps\n")
    drawn = []
    for steps in ("1", "10"):
        picture = tmp_path / f"{steps}.png"
        assert gmfast_command("sample", run, "--steps", steps, "--out", picture)[0] == 0
        drawn.append(picture.read_bytes())
    assert drawn[0] != drawn[1]


def test_help_of_training_names_every_model(gmfast_command):
    _, out, _ = gmfast_command("train", "--help")
    named = re.search(r"One of (.*?)\.", " ".join(out.split())).group(1)
    assert named.split(", ") == list(MODELS)


def test_list(gmfast_command):
    _, out, _ = gmfast_command("list")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(MODELS)
    assert next(line for line in lines if line.startswith("glow")).split(":")[0].endswith("flow, images")
    status, out, _ = gmfast_command("list", "PixelCNN++")
    header, *rows = (line.split() for line in out.splitlines()[3:])
    assert status == 0 and out.startswith("pixelcnnpp: PixelCNN++ (Salimans et al., 2017, ")
    assert header == ["option", "published", "digits"] and ["nr_resnet", "5", "1"] in rows
    assert not {"image_shape", "num_levels", "num_labels"} & {row[0] for row in rows if row}
    assert ["channels", "128", "32"] in [
        line.split() for line in gmfast_command("list", "ddpm")[1].splitlines()
    ]
    status, out, err = gmfast_command("list", "glwo")
    assert (status, out) == (2, "") and err.endswith("got 'glwo'; did you mean 'glow'?\n")


def test_vectors(gmfast_command, tmp_path):
    run, out = tmp_path / "run", tmp_path / "new" / "points.npz"
    small = ["--set", "hidden=[8]", "--set", "num_transforms=2"]
    status, _, err = gmfast_command("train", "maf", "--data", "moons", "--out", run, "--steps", "3", *small)
    assert status == 0 and "on moons, 10000 vectors" in err
    status, said, _ = gmfast_command("evaluate", run)
    model, gaussian = said.splitlines()
    assert status == 0 and model.startswith("maf at step 3: ") and model.endswith("on 2000 vectors")
    bits, nats = float(gaussian.split()[5]), float(gaussian.split()[9])
    assert gaussian.startswith("one Gaussian of full covariance: 1.3") and nats == pytest.approx(
        bits * 2 * math.log(2), abs=1e-3
    )
    status, said, _ = gmfast_command("sample", run, "--n", "50", "--out", out)
    picture = out.with_suffix(".png")
    assert (status, said) == (0, f"{out}\n{picture}\n")
    samples = np.load(out)["samples"]
    assert samples.shape == (50, 2) and samples.dtype == np.float32
    with Image.open(picture) as image:  # an aspect of three panels, and more than one colour
        assert image.width > 2 * image.height and len(image.convert("RGB").getcolors(10**6)) > 50
    status, said, _ = gmfast_command("sample", run, "--n", "50", "--out", tmp_path / "alone.png")
    assert (status, said) == (0, f"{tmp_path / 'alone.png'}\n") and not (tmp_path / "alone.npz").exists()
    assert (tmp_path / "alone.png").read_bytes() == picture.read_bytes()
    table = tmp_path / "points.csv"
    gmfast_command("sample", run, "--n", "50", "--out", table, "--method", "naive")
    np.testing.assert_allclose(np.loadtxt(table, delimiter=","), samples, rtol=1e-4, atol=1e-4)
    for arguments, sentence in [
        (["--out", "x.txt"], "out: expected an .npz, .csv or .png file, got x.txt"),
        (["--complete"], "complete: expected a model of images, got one of vectors"),
        (["--compare"], "compare: expected a model of images, got one of vectors"),
        (["--weights", "bfloat16"], "weights: expected none for vectors, got bfloat16"),
        (["--length", "5"], "length: expected none for vectors, got 5"),
    ]:
        assert gmfast_command("sample", run, *arguments)[::2] == (2, f"gmfast: {sentence}\n")


def test_a_table_of_one_s_own(gmfast_command, tmp_path, monkeypatch):
    """The run is called after the table, and samples have its header; a mistake goes before the run there."""
    monkeypatch.chdir(tmp_path)
    numbers = np.random.RandomState(0).randn(100, 3)
    np.savetxt("my.csv", numbers, delimiter=",", header='age,"height, m",weight', comments="")
    train = ["train", "maf", "--data", "my.csv", "--steps", "1", "--set", "hidden=[8]"]
    assert gmfast_command(*train)[:2] == (0, "finished at step 1: runs/maf-my\n")
    assert gmfast_command("sample", "runs/maf-my", "--n", "5", "--out", "new.csv")[:2] == (0, "new.csv\n")
    lines = Path("new.csv").read_text().splitlines()
    assert lines[0] == 'age,"height, m",weight' and len(lines) == 6
    assert np.loadtxt("new.csv", delimiter=",", skiprows=1).shape == (5, 3)
    for more, sentence in [
        ([], "out: expected a new folder, but runs/maf-my holds a run (--resume continues it)\n"),
        (["--set", "hidden=8"], "hidden: expected a list such as [100], got 8\n"),
        (["--conditional"], "conditional: expected data with labels, but my has none\n"),
    ]:
        assert gmfast_command(*train, *more)[::2] == (2, f"gmfast: {sentence}")
    picture = gmfast_command("sample", "runs/maf-my", "--out", "x.png")
    assert picture[::2] == (2, "gmfast: out: expected an .npz or .csv file, got x.png\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "pixelrnn"], f"model: expected one of {', '.join(MODELS)}, got 'pixelrnn'"),
        (
            ["train", "pixelcnnpp", "--data", "nowhere"],
            f"data: expected {', '.join(BUILT_IN)} or a path, but ",
        ),
        (["train", "pixelcnnpp", "--set", "nr_filters"], "--set: expected NAME=VALUE, got 'nr_filters'"),
        (["train", "pixelcnnpp", "--set", "nr_filters=x"], "nr_filters: expected int, got 'x'"),
        (
            ["train", "pixelcnnpp", "--device", "gpu"],
            "device: expected a name such as cpu or cuda, got 'gpu'",
        ),
        *(
            (
                ["train", "pixelcnnpp", "--device", name],
                f"device: expected one that this machine and torch have, got {name}",
            )
            for name in ("meta", "xpu", "lazy", "privateuseone")
        ),
        (["train", "made", "--data", ""], "data: expected a name or a path, got ''"),
        (["train", "made", "--lr", "inf"], "lr: expected a finite number, got inf"),
        (["train", "made", "--config", "."], "config: expected a TOML file, got . (Is a directory)"),
        (["train", "made", "--set", "hidden=[true]"], "hidden: expected a sequence of ints, got [True]"),
        (
            ["train", "made", "--out", "/dev/null"],
            "out: expected a folder, or a place for one, but /dev/null is a file",
        ),
        (["train", "made", "--resume", "--overwrite"], "overwrite: expected none with --resume"),
        (
            ["bench", "--out", "/dev/null/x"],
            "out: expected a folder, or a place for one, but /dev/null is a file",
        ),
        (
            ["evaluate", "nowhere", "--per-sample", "/dev/null/x.csv"],
            "per_sample: expected a folder, or a place",
        ),
        (["sample", "nowhere", "--out", ""], "out: expected a path, got ''"),
        (["train", "pixelcnnpp", "--resume"], "run: expected a folder that `gmfast train` wrote, but "),
        (
            ["sample", "nowhere"],
            "run: expected a folder that `gmfast train` wrote, but nowhere/last does not exist",
        ),
        (
            ["evaluate", "nowhere"],
            "run: expected a folder that `gmfast train` wrote, but nowhere/last does not exist",
        ),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(gmfast_command, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    status, out, err = gmfast_command(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"gmfast: {sentence}") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(gmfast_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for name in [name for name in sys.modules if name.startswith("gmfast.training")]:
        monkeypatch.delitem(sys.modules, name)
    status, _, err = gmfast_command("train", "pixelcnnpp")
    assert status == 2 and err == "gmfast: safetensors is missing: pip install 'gmfast[train]' brings it\n"


def test_errors_of_memory_and_files_are_sentences(gmfast_command, monkeypatch, tmp_path):
    for error, sentence in (
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "memory: expected enough for the model and the batch",
        ),
        (MemoryError(), "memory: expected enough for the model and the batch"),
        (
            PermissionError(13, "Permission denied", tmp_path),
            f"expected to read or write {tmp_path} (Permission denied)",
        ),
        (ImportError("libfoo.so: cannot open"), "libfoo.so: cannot open"),
    ):

        def fail(error=error):
            raise error

        monkeypatch.setattr(gmfast, "doctor", fail)
        status, out, err = gmfast_command("doctor")
        assert (status, out) == (2, "") and err.startswith(f"gmfast: {sentence}") and err.count("\n") == 1


def test_comparison_counts_the_draws_that_rounding_moved():
    cached = to_unit(torch.randint(17, (4, 1, 2, 3)), 17)
    naive = cached.clone()
    naive[0, 0, 0, 0] *= 1 + 1e-6  # the same level
    assert _comparison(cached, 0.5, naive, 4.0, 17, None) == (
        "cached 0.50 s, naive 4.00 s: 8.0 times as long\n24 of 24 values agree"
    )
    naive[1, 0, 1] = -cached[1, 0, 1] + 1 / 8
    naive[3, 0, 1, 2] = -cached[3, 0, 1, 2] + 1 / 8
    for weights, rounding in (
        (None, "rounding"),
        ("bfloat16", "the rounding of the weights to bfloat16"),
    ):
        assert _comparison(cached, 0.5, naive, 4.0, 17, weights).splitlines()[1] == (
            f"20 of 24 values agree: in 2 of 4 samples a draw lay within {rounding} of a boundary between "
            "two levels, and what follows it is another draw"
        )
    drawn = torch.tensor([[False] * 3, [True] * 3])  # the upper row was given
    assert _comparison(cached, 0.5, cached, 4.0, 17, None, drawn).splitlines()[1] == "12 of 12 values agree"


def test_doctor_prints_what_the_library_says(gmfast_command):
    assert gmfast_command("doctor") == (0, f"{gmfast.doctor()}\n", "")


def test_version(gmfast_command):
    assert gmfast_command("--version") == (0, f"gmfast {gmfast.__version__}\n", "")


def test_help_names_every_command():
    command = [sys.executable, "-c", "from gmfast.cli import main; main()", "--help"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(name in out for name in ("train", "sample", "evaluate", "list", "doctor", "bench"))


def test_image_grid():
    images = load("digits").train[:5]
    grid = image_grid(images, 17, columns=3)
    assert grid.size == (3 * 50 + 2, 2 * 50 + 2)
    for i, image in enumerate(images):
        for row, column in ((0, 3), (7, 4), (4, 4)):
            x, y = 2 + i % 3 * 50 + 6 * column + 3, 2 + i // 3 * 50 + 6 * row + 3
            assert grid.getpixel((x, y)) == (round(image[0, row, column].item() * 255 / 16),) * 3
    with pytest.raises(ValueError, match=r"images: expected shape \(N, C, H, W\), .* got \(5, 8, 8\)"):
        image_grid(images[:, 0], 17)
