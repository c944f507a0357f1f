"""`gmfast bench --sampling`: its baselines draw what the models draw, and its figures are what they say."""

import csv
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from gmfast import _philox, benchmark, decode
from gmfast.benchmarks import sampling
from gmfast.benchmarks.python_loops import LOOPS
from gmfast.benchmarks.sampling import Target, Work
from gmfast.decode.builder import When, masked_conv_taps
from gmfast.models import MADE, GatedPixelCNN, PixelCNN, PixelCNNPP, WaveNet
from gmfast.nn import MaskedConv2d

TINY = {
    "pixelcnnpp": partial(PixelCNNPP, (3, 8, 12), 2, 6, 3),
    "pixelcnnpp grey": partial(PixelCNNPP, (1, 8, 8), 1, 6, 3, num_levels=17),
    "wavenet": partial(WaveNet, 30, 2, 3, 2, 8, 12, num_levels=32),
    "wavenet mixture": partial(WaveNet, 30, 1, 4, 2, 8, 12, "mixture", 3),
    "made": partial(MADE, (1, 4, 5), (30, 40), 1, "mixture", 3),
    "made linear": partial(MADE, (1, 4, 5), (), 1, "categorical", num_levels=16),
    "gated": partial(GatedPixelCNN, (3, 5, 7), 3, 6, 3, 12, num_levels=16),
    "gated mixture": partial(GatedPixelCNN, (3, 5, 7), 2, 6, 5, 12, "mixture", 3),
    "pixelcnn": partial(PixelCNN, (3, 5, 7), 2, 6, 12, num_levels=16),
    "pixelcnn grey": partial(PixelCNN, (1, 5, 7), 2, 6, 12, "mixture", 3),
}


def length_of(model):
    return model.length if isinstance(model, WaveNet) else None


@pytest.mark.parametrize("name", TINY)
def test_python_loop_draws_what_the_model_draws(name):
    torch.manual_seed(0)
    model = TINY[name]().double().eval()
    if isinstance(model, PixelCNNPP):  # the only one that is initialised from data
        model.initialize(torch.rand(8, *model.image_shape, dtype=torch.float64) * 2 - 1)
    want = model.sample(3, seed=5, method="naive").reshape(3, *sampling.shape_of(model, length_of(model)))
    loop, positions = LOOPS[type(model)](model, 3), want.shape[2]
    uniform = _philox.uniform(
        torch.tensor(5), 3, (positions,), loop.num_uniforms, torch.float64, want.device
    ).permute(2, 0, 1)
    for _ in range(2):  # the second time from caches that are full
        torch.testing.assert_close(loop.sample(uniform), want, rtol=0, atol=1e-12)
    part = loop.sample(uniform[: positions // 2])
    torch.testing.assert_close(part, want[:, :, : positions // 2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [partial(WaveNet, num_labels=2), partial(WaveNet, kernel_size=3), partial(PixelCNNPP, num_labels=2)],
)
def test_python_loop_refuses_what_it_does_not_do(make):
    model = make()
    with pytest.raises(ValueError, match="model: expected"):
        LOOPS[type(model)](model, 1)


def test_reads_and_products():
    # A 3×3 layer of type A sees 4 pixels, one of a single tap the pixel itself.
    stack = torch.nn.Sequential(MaskedConv2d(1, 4, 3, mask_type="A"), torch.nn.ReLU(), MaskedConv2d(4, 5, 1))
    builder = decode.Builder(6, 7)
    x, y, z = builder.value(1), builder.value(4), builder.value(5)
    for source, conv, made in ((x, stack[0], y), (y, stack[2], z)):
        builder.layer(masked_conv_taps(source, conv)[0], conv.bias, out=made)
    assert sampling.reads_and_products(builder) == ((4 * 4 + 4 * 5) * 42,) * 2
    every_second = When(2, 2, whole_row=True, first_row=1)
    builder.layer(masked_conv_taps(y, stack[2])[0], out=z, when=every_second)
    # Rows 2 and 4: read twice, and used at four columns of each.
    assert sampling.reads_and_products(builder) == (36 * 42 + 20 * 2, 36 * 42 + 20 * 2 * 4)


@pytest.fixture
def book(monkeypatch):
    """Time by the book: a pass of the model takes 1 s, a position of the loop 0.25 s, whatever else 1/16."""
    spent = [0.0]

    def seconds_of(call):
        before = spent[0]
        call()
        return spent[0] - before or 1 / 16

    def costing(function, seconds):
        def counted(*args, **kwargs):
            spent[0] += seconds(*args)
            return function(*args, **kwargs)

        return counted

    for model, loop in LOOPS.items():
        monkeypatch.setattr(model, "forward", costing(model.forward, lambda *_: 1))
        monkeypatch.setattr(loop, "sample", costing(loop.sample, lambda _, uniform: len(uniform) / 4))
    monkeypatch.setattr(sampling, "seconds_of", seconds_of)
    monkeypatch.setattr(sampling, "bandwidth", lambda size, threads: 1e6 * threads)
    monkeypatch.setattr(sampling, "peak", lambda threads: 1e7 * threads)
    return spent


def test_known_ratios(book):
    work = Work("fake", TINY["pixelcnnpp"], 2, 1)
    row = sampling.measure(work, 1e9, {})
    assert (row["naive_s"], row["naive_is"]) == (96, "measured")
    assert (row["loop_s"], row["loop_is"]) == (24, "measured")
    assert row["gmfast_s"] == 1 / 16 and row["gmfast_runs"] == 3
    assert (row["over_naive"], row["over_loop"]) == (96 * 16, 24 * 16)
    assert row["loop_operations"] > 100


def test_a_part_is_timed_of_what_is_long(book):
    row = sampling.measure(Work("fake", TINY["gated"], 2, 1), 10, {})
    # A pass for each of 3 colours: 3 passes a position, of which there is time for 10 // 3 positions.
    assert (row["naive_s"], row["naive_is"]) == (105, "from 9 of 105 passes")
    # Four rows of 7 pixels take 7 s, and are timed alone.
    assert (row["loop_s"], row["loop_is"]) == (35 / 4, "from 28 of 35 positions")


def test_baselines_are_shared_between_weights(book):
    work, known = Work("fake", TINY["made"], 2, 1), {}
    first = sampling.measure(work, 1e9, known)
    before = book[0]
    second = sampling.measure(Work("fake", TINY["made"], 2, 1, "bfloat16"), 1e9, known)
    assert book[0] == before and second["naive_s"] == first["naive_s"] == 20
    assert second["weights"] == "bfloat16"
    assert second["read_MB_a_position"] == first["read_MB_a_position"] / 2


def test_floor(book):
    make = TINY["pixelcnnpp grey"]
    reads, products = sampling.reads_and_products(sampling.model_of(make).decoder())
    row = sampling.measure(Work("fake", make, 4, 1, baselines=False), 1, {})
    assert row["reading_s"] == pytest.approx(4 * reads / 1e6)
    assert row["arithmetic_s"] == pytest.approx(4 * 2 * products / 1e7)
    assert row["floor_s"] == max(row["reading_s"], row["arithmetic_s"])
    assert row["share"] == row["floor_s"] * 16
    assert row["over_naive"] is row["over_loop"] is row["kHz"] is None


def test_targets(book):
    def reached(name="pixelcnnpp grey", length=None, **goal):
        work = Work("fake", TINY[name], 2, 1, length=length, targets={1: Target(**goal)})
        return sampling.measure(work, 1e9, {})["reached"]

    # 64 passes, or 16 s of the loop, against 1/16 s.
    assert reached(naive=1024, loop=256) == "yes"
    assert reached(naive=1025) == reached(loop=257) == reached(khz=1) == "no"
    assert reached("wavenet", 30, khz=0.48) == "yes" and reached("wavenet", 30, khz=0.49) == "no"
    assert str(Target(naive=400, loop=5)) == "≥ 400× naive, ≥ 5× loop"
    assert (
        sampling.measure(Work("fake", TINY["made"], 1, 1, targets={2: Target(loop=1)}), 1, {})["reached"]
        == ""
    )


def test_rates_of_the_machine(monkeypatch):
    # By the seconds that this process computes, whatever else the machine does.
    monkeypatch.setattr(sampling, "time", SimpleNamespace(perf_counter=time.process_time))
    assert 1e8 < sampling.bandwidth(1 << 21, 1) < 1e13
    assert 1e8 < sampling.peak(1) < 1e14


def test_works_have_the_targets():
    works = sampling.load_works()
    goals = {
        (work.name, work.threads): work.targets[work.threads]
        for work in works
        if work.threads in work.targets
    }
    assert goals["PixelCNN++ 32×32", 2] == Target(naive=400, loop=5)
    assert goals["WaveNet", 1] == Target(khz=24) and goals["WaveNet", 2] == Target(khz=32, loop=40)
    assert all(type(sampling.model_of(work.make)) in LOOPS for work in works if work.quick)


@pytest.mark.parametrize("name", ["pixelcnnpp grey", "wavenet", "made"])
def test_bits_per_dim(name):
    torch.manual_seed(0)
    model = TINY[name]().eval()
    levels = model.config["num_levels"]
    shape = (1, 30) if isinstance(model, WaveNet) else model.image_shape
    x = torch.randint(levels, (4, *shape)) * (2 / (levels - 1)) - 1
    with torch.no_grad():
        want = model.loss(x).item()
    assert sampling.bits_per_dim(model, x) == pytest.approx(want, rel=1e-5)
    rounded = sampling.bits_per_dim(model, x, "bfloat16")
    assert rounded != sampling.bits_per_dim(model, x) and rounded == pytest.approx(want, rel=2e-2)


def test_rounding_of_a_trained_model():
    (row,) = sampling.measure_rounding({"pixelcnn": 2})
    assert row["data"] == "digits" and row["heldout"] == "360 images"
    assert row["difference"] == row["bfloat16"] - row["float32"] != 0
    assert abs(row["difference"]) < 0.05


def test_main_writes_csv_and_png(book, tmp_path, capsys, monkeypatch):
    sound, image = TINY["wavenet"], TINY["pixelcnnpp"]
    works = [
        Work("image", image, 2, 1, targets={1: Target(naive=1e9)}),
        Work("sound", sound, 1, 1, "bfloat16", 30, {1: Target(khz=0.1)}),
        *(Work("sound", sound, batch, 1, None, 30, baselines=False) for batch in (1, 2)),
    ]
    monkeypatch.setattr(
        sampling,
        "measure_rounding",
        lambda steps: [
            {"model": name, "data": "fake", "steps": count, "float32": 2.0, "difference": 0.125}
            for name, count in steps.items()
        ],
    )
    rows = sampling.main(tmp_path, works=works, rounding={"made": 3}, targets=True)
    assert [row["reached"] for row in rows] == ["no", "yes", "", ""]
    with open(tmp_path / "sampling.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["work"] for line in lines] == ["image", "sound", "sound", "sound"]
    assert [int(line["threads"]) for line in lines] == [1] * 4
    assert all(line["torch"] == torch.__version__ for line in lines)
    assert (tmp_path / "sampling.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "bfloat16.csv").read_text().count("\n") == 2
    printed = capsys.readouterr().out
    assert "MISSED" in printed and "1 of 2 targets reached" in printed
    sampling.main(tmp_path, works=works[2:], rounding={})
    assert "target" not in capsys.readouterr().out + (tmp_path / "sampling.csv").read_text()
    assert "made after 3 steps on fake: 2.00000 bits per dimension, +0.12500 with bfloat16 weights" in printed


def test_aligned():
    assert benchmark.aligned([("a", "bb"), ("ccc", "")]) == ["  a    bb", "  ccc"]
