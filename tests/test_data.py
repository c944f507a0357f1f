import gzip
import io
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from gmfast.data import (
    BUILT_IN,
    TABLES,
    TOYS,
    Dataset,
    ImageDecoder,
    Samples,
    Split,
    TensorSplit,
    convert,
    files,
    from_unit,
    load,
    reading,
    to_unit,
    wrap,
)
from gmfast.data.loader import load_batches


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """No test writes to the user's caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_unit_interval_and_back(num_levels):
    levels = torch.arange(num_levels, dtype=torch.uint8)
    x = to_unit(levels, num_levels)
    assert x.dtype == torch.float32 and x[0] == -1 and x[-1] == 1
    assert torch.allclose(x.diff(), torch.full((num_levels - 1,), 2 / (num_levels - 1)), atol=1e-6)
    nudge = torch.empty(num_levels).uniform_(-0.49, 0.49) * 2 / (num_levels - 1)
    assert torch.equal(from_unit(x, num_levels), levels)
    assert torch.equal(from_unit(x + nudge, num_levels), levels)


def test_digits():
    digits, again = load("digits"), load("digits")
    assert digits.train.shape == (1437, 1, 8, 8) and digits.heldout.shape == (360, 1, 8, 8)
    assert digits.train.dtype == torch.uint8 and digits.num_levels == 17 and digits.train.max() == 16
    assert digits.image_shape == (1, 8, 8) and digits.num_labels == 10
    assert torch.equal(digits.train, again.train) and torch.equal(digits.heldout_labels, again.heldout_labels)
    # Labels belong to their images: a zero is dark in the middle, a one is bright there.
    middle = digits.train[:, 0, 3:5, 3:5].float().mean((1, 2))
    assert middle[digits.train_labels == 1].mean() > 12 > 4 > middle[digits.train_labels == 0].mean()


def test_binary_digits():
    digits, binary = load("digits"), load("binary-digits")
    for split in ("train", "heldout"):
        assert torch.equal(getattr(binary, split) == 1, getattr(digits, split) > 7.5)
    assert binary.train.dtype == torch.uint8 and binary.train.max() == 1 and binary.num_levels == 2
    assert torch.equal(binary.train_labels, digits.train_labels) and binary.name == "binary-digits"


def test_photos_hold_out_a_region(monkeypatch):
    """Every pixel carries its photo, row and column, so that a crop tells where it is from."""
    rows, columns = np.meshgrid(np.arange(427), np.arange(640), indexing="ij")
    photos = [
        np.stack([columns % 256, columns // 256 + 8 * i, rows % 256], -1).astype(np.uint8) for i in (0, 1)
    ]
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: type("Bunch", (), {"images": photos}))
    dataset = load("photos", size=40)
    assert dataset.train.shape[1:] == dataset.heldout.shape[1:] == (3, 40, 40)

    def column(images):
        return images[:, 0].int() + 256 * (images[:, 1].int() % 8)

    assert column(dataset.train).max() < 480 <= column(dataset.heldout).min()
    assert (column(dataset.train).diff(dim=2) == 1).all() and (column(dataset.heldout).diff(dim=2) == 1).all()
    assert (dataset.train[:, 2].diff(dim=1) == 1).all()
    # Crops are spread over the region, and held-out tiles do not overlap.
    assert column(dataset.train).min() == 0 and column(dataset.train).max() == 479
    assert len(dataset.heldout) == 2 * (427 // 40) * (160 // 40)
    assert len(torch.unique(dataset.heldout[:, :, 0, 0], dim=0)) == len(dataset.heldout)


def test_photos_are_real():
    dataset = load("photos", size=32)
    assert torch.equal(dataset.train, load("photos", size=32).train)
    assert dataset.train.float().std() > 30 and dataset.num_levels == 256 and dataset.num_labels is None
    # Neighbouring pixels of a photograph are alike.
    images = dataset.heldout.float()
    assert images.diff(dim=3).abs().mean() < 0.5 * images.std()
    with pytest.raises(ValueError, match="size: expected at most 160 for photos, got 200"):
        load("photos", size=200)


def test_image_folder(tmp_path):
    (tmp_path / "b").mkdir()
    for i in range(20):
        image = Image.new("RGB" if i else "L", (30, 20 + i), (10 * i, 0, 5) if i else 7)
        image.save(tmp_path / ("b" if i >= 15 else ".") / f"{'z' if i >= 15 else 'a'}{i:02}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    dataset = load(tmp_path, size=8)
    assert dataset.train.shape == (18, 3, 8, 8) and dataset.train_labels is None
    assert dataset.train[:, 0, 4, 4].tolist() == [7] + [10 * i for i in range(1, 19) if i != 9]
    assert dataset.heldout[:, 0, 4, 4].tolist() == [90, 190]
    (tmp_path / "a05.png").write_bytes(b"no PNG")
    with pytest.raises(ValueError, match=r"data: expected an image, got .*a05.png"):
        load(tmp_path, size=8)


def test_npz(tmp_path):
    path = tmp_path / "data.npz"
    arrays = {
        "train": np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4) % 9,
        "heldout": np.zeros((2, 1, 4, 4), np.uint8),
        "train_labels": np.arange(5),
        "heldout_labels": np.array([4, 0], np.int32),
        "num_levels": 9,
    }
    np.savez(path, **arrays)
    dataset = load(path)
    assert torch.equal(dataset.train[:, 0], torch.from_numpy(arrays["train"])) and dataset.num_levels == 9
    assert dataset.heldout_labels.tolist() == [4, 0] and dataset.num_labels == 5 and dataset.name == "data"
    for change, message in [
        (
            {"heldout": None},
            r"data: expected an array 'heldout' in .*, found \['heldout_labels', 'num_levels'",
        ),
        (
            {"train": np.zeros((5, 4, 4))},
            r"expected 'train' in .* to be uint8 .*, got float64 \(5, 1, 4, 4\)",
        ),
        (
            {"train": np.zeros((5, 4, 4, 3), np.uint8)},
            r"expected 'train' .* with C = 1 or 3, or floats \(N, D\), got uint8 \(5, 4, 4, 3\)",
        ),
        ({"num_levels": 8}, "expected 'train' in .* below num_levels 8, got 8"),
        ({"train_labels": np.arange(4)}, r"expected 'train_labels' in .* to be 5 integers, got int64 \(4,\)"),
        ({"train_labels": None}, "expected labels for both splits or none in .*, found 'heldout_labels'"),
        (
            {"heldout": np.zeros((2, 8, 8), np.uint8)},
            r"images of one shape .*, got \(1, 4, 4\) and \(1, 8, 8\)",
        ),
    ]:
        np.savez(path, **{key: value for key, value in (arrays | change).items() if value is not None})
        with pytest.raises(ValueError, match=message):
            load(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"data: expected an \.npz file of plain arrays"):
        load(path)


def cifar10_batches():
    """The files of CIFAR-10's python version, with two images each: planes of a constant colour."""
    files = {}
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        pixels = np.zeros((2, 3, 1024), np.uint8)
        pixels[:, 0], pixels[:, 1], pixels[1, 2, 33] = 10 * i, 100, 255
        content = {b"data": pixels.reshape(2, 3072), b"labels": [i, i + 1], b"batch_label": b"x"}
        files[name] = pickle.dumps(content, protocol=2)
    return files


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10(tmp_path, packed):
    files = cifar10_batches()
    if packed:
        path = tmp_path / "cifar-10-python.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        path = tmp_path
        for name, content in files.items():
            (path / name).write_bytes(content)
    dataset = load(path)
    assert dataset.train.shape == (10, 3, 32, 32) and dataset.heldout.shape == (2, 3, 32, 32)
    assert dataset.train[::2, 0, 0, 0].tolist() == [0, 10, 20, 30, 40] and (dataset.train[:, 1] == 100).all()
    assert dataset.heldout[1, 2, 1, 1] == 255 and dataset.heldout[1, 2].sum() == 255
    assert dataset.train_labels.tolist() == [
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
        5,
    ] and dataset.heldout_labels.tolist() == [5, 6]


def test_cifar10_that_is_wrong(tmp_path):
    for name, content in cifar10_batches().items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "data_batch_4").write_bytes(pickle.dumps({b"data": print}))
    with pytest.raises(
        ValueError, match=r"expected a batch of CIFAR-10, got .*data_batch_4 \(it holds builtins.print"
    ):
        load(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(FileNotFoundError, match=r"data: expected CIFAR-10's data_batch_4 in .*, found"):
        load(tmp_path)
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"data: expected CIFAR-10's \.tar\.gz, got"):
        load(tmp_path / "x.tar.gz")


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path, packed):
    images = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)

    def write(name, array):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        content = header + array.astype(np.uint8).tobytes()
        (tmp_path / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)

    write("train-images-idx3-ubyte", images)
    write("train-labels-idx1-ubyte", np.array([7, 0, 9]))
    write("t10k-images-idx3-ubyte", images[::-1])
    with pytest.raises(
        FileNotFoundError, match=r"data: expected MNIST's t10k-labels-idx1-ubyte\[.gz\] in .*, found"
    ):
        load(tmp_path)
    write("t10k-labels-idx1-ubyte", np.array([9, 0, 7]))
    dataset = load(tmp_path)
    assert torch.equal(
        dataset.train, torch.from_numpy(images)[:, None]
    ) and dataset.train_labels.tolist() == [7, 0, 9]
    assert torch.equal(dataset.heldout, dataset.train.flip(0)) and dataset.num_labels == 10
    (tmp_path / ("t10k-labels-idx1-ubyte" + ".gz" * packed)).write_bytes(b"\0\0\x0d\x01")
    with pytest.raises(ValueError, match=r"data: expected an idx file of bytes, got .*t10k-labels"):
        load(tmp_path)


def test_missing_data(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=f"data: expected {', '.join(BUILT_IN)} or a path, but .*/nowhere does not",
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"data: expected CIFAR-10, MNIST or at least 10 images .* found 0 images"
    ):
        load(tmp_path)
    (tmp_path / "x.xyz").write_text("1,2")
    with pytest.raises(
        ValueError, match=r"data: expected a folder, sound, an .npz, .npy, .csv, .* or .* got .*x.xyz"
    ):
        load(tmp_path / "x.xyz")


@pytest.mark.parametrize("conditional", [False, True])
def test_histogram_baseline(conditional):
    random = torch.Generator().manual_seed(0)
    train = torch.randint(0, 4, (1500, 1, 2, 3), generator=random).minimum(
        torch.arange(6).reshape(1, 1, 2, 3)
    )
    heldout = torch.randint(0, 4, (7, 1, 2, 3), generator=random)
    labels, heldout_labels = torch.arange(1500) % 400 // 200, torch.arange(7) % 2
    train[labels == 1] = 3 - train[labels == 1]
    bits = 0.0
    for image, label in zip(heldout, heldout_labels, strict=True):
        others = train[labels == label] if conditional else train
        for i in range(2):
            for j in range(3):
                count = sum(int(other[0, i, j] == image[0, i, j]) for other in others)
                bits -= math.log2((count + 1) / (len(others) + 4))
    dataset = Dataset("toy", train.byte(), heldout.byte(), labels, heldout_labels, num_levels=4)
    assert dataset.histogram_bits_per_dim(conditional) == pytest.approx(bits / heldout.numel(), rel=1e-6)


@pytest.mark.parametrize("name", [*TOYS, *TABLES])
def test_real_valued_data(name):
    dataset, again = load(name), load(name)
    sizes = {"wine": (142, 36, 13), "breast-cancer": (455, 114, 30), "diabetes": (353, 89, 9)}
    train, heldout, size = sizes.get(name, (10_000, 2_000, 2))
    assert dataset.train.shape == (train, size) and dataset.heldout.shape == (heldout, size)
    assert dataset.train.dtype == torch.float32 and dataset.num_levels is None and dataset.real_valued
    assert dataset.items == "vectors" and dataset.image_shape == (size,)
    assert torch.equal(dataset.train, again.train) and torch.equal(dataset.heldout, again.heldout)
    assert to_unit(dataset.train, None) is not None and torch.equal(
        to_unit(dataset.train, None), dataset.train
    )
    standard = (dataset.train - dataset.mean) / dataset.std
    assert standard.mean(0).abs().max() < 1e-4
    assert torch.allclose(standard.square().mean(0), torch.ones(size), atol=1e-4)
    # Held out is of the same distribution, and no training point.
    assert ((dataset.heldout.mean(0) - dataset.mean) / dataset.std).abs().max() < 0.6
    assert torch.cdist(dataset.heldout.double(), dataset.train.double()).min() > 0


def test_toys_have_their_shapes():
    radius = load("circles").train.norm(dim=1)
    assert ((radius - 0.5).abs() < 0.25).sum() > 4500 and ((radius - 1).abs() < 0.25).sum() > 4500
    x = load("checkerboard").train
    assert ((x.floor().sum(1) % 2) == 0).all() and x.abs().max() <= 2
    angle = torch.atan2(*load("gaussians").train.T.flip(0)) * 4 / math.pi
    assert ((angle - angle.round()).abs() < 0.4).float().mean() > 0.98


def test_gaussian_baseline():
    """Against torch.distributions, in the data's units."""
    dataset = load("diabetes")
    train, heldout = dataset.train.double(), dataset.heldout.double()
    model = torch.distributions.MultivariateNormal(train.mean(0), torch.cov(train.T, correction=0))
    expected = -model.log_prob(heldout).mean().item() / (9 * math.log(2))
    assert dataset.gaussian_bits_per_dim() == pytest.approx(expected, abs=1e-4)


def test_files_of_vectors(tmp_path):
    generator = np.random.RandomState(0)
    x = generator.randn(50, 3) * [1, 10, 100]
    path = tmp_path / "own.csv"
    np.savetxt(path, x, delimiter=",", header="a,b,c", comments="")
    dataset = load(path)
    assert dataset.name == "own" and len(dataset.train) == 40 and len(dataset.heldout) == 10
    assert dataset.columns == ("a", "b", "c")
    both = torch.cat([dataset.train, dataset.heldout])
    assert torch.allclose(both[both[:, 0].argsort()], torch.from_numpy(x[x[:, 0].argsort()]).float())
    for text, message in [
        ("1,2\n" * 5, "expected at least 10 lines of numbers in .*, found 5"),
        ("a,b\n1,2\nx,3\n", "expected finite numbers .*, got 'x' in line 3 of .*own.csv, column 'a'"),
        ("a,b\n\n1,2\n1,nan\n", "expected finite numbers .*, got 'nan' in line 4 of .*, column 'b'"),
        ("1,2\n1,\n", "expected finite numbers .*, got '' in line 2 of .*, column 2 of 2"),
        ("1,inf\n", "expected finite numbers .*, got 'inf' in line 1 of .*, column 2 of 2"),
        (",2\n1,2\n", "expected finite numbers .*, got '' in line 1 of .*, column 1 of 2"),
        ("1,2\n1,2,3\n" * 9, "expected 2 numbers in line 2 of .*, got 3"),
        ("a,b\n1,2\n1\n" * 9, "expected 2 numbers in line 3 of .*, got 1"),
        ("1,2\n3,2\n" * 9, "expected numbers that vary, but all those of column 2 of 2 .* are 2"),
        ('x,"a, b"\n' + "1,2\n3,2\n" * 9, "expected numbers that vary, .* of column 'a, b' .* are 2"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=f"data: {message}"):
            load(path)
    path = tmp_path / "own.npz"
    arrays = {
        "train": x[:30],
        "heldout": x[30:],
        "train_labels": np.arange(30),
        "heldout_labels": np.arange(20),
    }
    np.savez(path, **arrays)
    dataset = load(path)
    assert torch.equal(dataset.train, torch.from_numpy(x[:30]).float()) and dataset.num_labels == 30
    np.savez(path, **arrays | {"heldout": np.zeros((20, 4, 4), np.uint8)})
    with pytest.raises(ValueError, match="images"):
        load(path)


def levels(*shape, high=256, dtype=np.uint8):
    return np.random.RandomState(sum(shape)).randint(0, high, shape).astype(dtype)


def decode(path, **options):
    """What `ImageDecoder` makes of a file, (H, W, C)."""
    return ImageDecoder(**options)(path).permute(1, 2, 0).numpy()


def png(width, height, depth, color, rows=b"", extra=b""):
    """A PNG file made by hand: bits of a sample, type of colour, rows with filter bytes, more chunks."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["png", "tif"])
def test_images_are_turned_as_exif_states(tmp_path, orientation, form):
    pixels = levels(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / f"x.{form}", exif=exif)
    # EXIF 2.3, tag Orientation: where the stored rows and columns are to be shown.
    shown = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels),
    }[orientation]
    assert np.array_equal(decode(tmp_path / f"x.{form}"), shown)


@pytest.mark.parametrize("form", ["png", "tif", "pgm"])
def test_16_bits_are_scaled(tmp_path, form):
    pixels = levels(5, 7, high=65536, dtype=np.uint16)
    pixels[0, :2] = 0, 65535
    Image.fromarray(pixels).save(tmp_path / f"x.{form}")
    expected = np.round(pixels / 257).astype(np.uint8)
    assert np.array_equal(decode(tmp_path / f"x.{form}")[..., 0], expected)
    assert np.array_equal(
        decode(tmp_path / f"x.{form}", grayscale=False), np.repeat(expected[..., None], 3, 2)
    )
    assert abs(decode(tmp_path / f"x.{form}", size=3).mean() - expected.mean()) < 40


def test_16_bits_with_white_at_zero(tmp_path):
    """A TIFF file made by hand: Pillow writes none of these."""
    pixels = levels(4, 4, high=65536, dtype=np.uint16)
    tags = [(256, 4), (257, 4), (258, 16), (259, 1), (262, 0), (273, 134), (277, 1), (278, 4), (279, 32)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (339, 1)])
    head = struct.pack("<2sHIH", b"II", 42, 8, 10) + entries + struct.pack("<I", 0)
    (tmp_path / "x.tif").write_bytes(head + pixels.astype("<u2").tobytes())
    assert np.array_equal(decode(tmp_path / "x.tif")[..., 0], np.round((65535 - pixels) / 257))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bits_of_colours(tmp_path, channels):
    pixels = levels(4, 4, channels, high=65536, dtype=np.uint16)
    if channels != 3:
        pixels[..., -1] = 65535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    (tmp_path / "x.png").write_bytes(png(4, 4, 16, {2: 4, 3: 2, 4: 6}[channels], rows))
    expected = pixels[..., : 1 if channels == 2 else 3] / 257
    assert np.abs(decode(tmp_path / "x.png") - expected).max() <= 1


def test_floats_are_scaled_or_refused(tmp_path):
    path, unit = tmp_path / "x.tif", np.random.RandomState(0).rand(4, 4).astype(np.float32)
    for pixels, expected in [(unit, unit * 255), (unit * 200 + 20, unit * 200 + 20)]:
        Image.fromarray(pixels).save(path)
        assert np.abs(decode(path)[..., 0] - expected).max() <= 0.5 + 1e-4
    for pixels, values in [
        (unit * 2 - 1, "-0.8.* to 0.9.*"),
        (unit * 1000, "to 9.*"),
        (unit * math.nan, "nan to nan"),
    ]:
        Image.fromarray(pixels).save(path)
        with pytest.raises(ValueError, match=rf"expected floats in \[0, 1\] or .* got .*{values} in .*x.tif"):
            decode(path)
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(path)
    with pytest.raises(
        ValueError, match=r"expected 8 or 16 bits or floats, got signed integers or 32 bits in .*x.tif"
    ):
        decode(path)


def transparent_files(path):
    """Name, colours (H, W, 3) and opacity (H, W, 1) of files with transparent pixels."""
    rgb, gray, alpha = levels(5, 5, 3), levels(5, 5), levels(5, 5, 1)
    grays = np.repeat(gray[..., None], 3, 2)
    Image.fromarray(np.concatenate([rgb, alpha], 2)).save(path / "rgba.png")
    yield "rgba.png", rgb, alpha / 255
    Image.fromarray(np.concatenate([gray[..., None], alpha], 2)).save(path / "la.png")
    yield "la.png", grays, alpha / 255
    indices = levels(5, 5, high=4)
    palette, opacity = levels(4, 3), np.array([0, 255, 128, 255])
    image = Image.fromarray(indices).convert("P")
    image.putpalette(palette.tobytes())
    image.putdata(indices.flatten().tolist())
    image.save(path / "p.png", transparency=bytes(opacity.tolist()))
    yield "p.png", palette[indices], opacity[indices][..., None] / 255
    image.save(path / "p.gif", transparency=2)
    yield "p.gif", palette[indices], (indices != 2)[..., None]
    rows = b"".join(b"\0" + row.tobytes() for row in gray)
    marked = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", gray[1, 1])
    marked += struct.pack(">I", zlib.crc32(marked[4:]))
    (path / "l.png").write_bytes(png(5, 5, 8, 0, rows, marked))
    yield "l.png", grays, (gray != gray[1, 1])[..., None]
    deep = levels(5, 5, high=65536, dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    marked = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", deep[1, 1])
    marked += struct.pack(">I", zlib.crc32(marked[4:]))
    (path / "i16.png").write_bytes(png(5, 5, 16, 0, rows, marked))
    yield "i16.png", np.repeat(deep[..., None] / 257, 3, 2), (deep != deep[1, 1])[..., None]


def test_transparent_pixels(tmp_path):
    for name, colors, opacity in transparent_files(tmp_path):
        for alpha, behind in [("white", 255), ("black", 0)]:
            expected = colors * opacity + behind * (1 - opacity)
            got = decode(tmp_path / name, alpha=alpha, grayscale=False)
            assert np.abs(got - expected).max() <= 1, (name, alpha)
        with pytest.raises(ValueError, match=f"alpha: expected opaque images, .* got .*{name}"):
            decode(tmp_path / name, alpha="refuse")
    Image.fromarray(np.concatenate([levels(5, 5, 3), np.full((5, 5, 1), 255, np.uint8)], 2)).save(
        tmp_path / "opaque.png"
    )
    assert np.array_equal(decode(tmp_path / "opaque.png", alpha="refuse"), levels(5, 5, 3))
    with pytest.raises(ValueError, match="alpha: expected one of 'white', 'black', 'refuse', got 'grey'"):
        ImageDecoder(alpha="grey")


def test_kinds_of_colours(tmp_path):
    pixels = levels(6, 6, 4)
    Image.fromarray(pixels, "CMYK").save(tmp_path / "cmyk.tif")
    ink = pixels / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert np.abs(decode(tmp_path / "cmyk.tif") - expected).max() <= 2
    # L* = 50 (128 of 255) without chroma is sRGB 119 (CIE 1976; IEC 61966-2-1).
    lab = np.zeros((4, 4, 3), np.uint8) + np.array([128, 128, 128], np.uint8)
    Image.frombytes("LAB", (4, 4), (lab + np.array([0, 128, 128], np.uint8)).tobytes()).save(
        tmp_path / "lab.tif"
    )
    assert np.abs(decode(tmp_path / "lab.tif").astype(int) - 119).max() <= 2
    bits = levels(6, 6, high=2)
    Image.fromarray(bits.astype(bool)).save(tmp_path / "1.png")
    assert np.array_equal(decode(tmp_path / "1.png")[..., 0], bits * 255)
    rgb = levels(6, 6, 3)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    luma = rgb @ [0.299, 0.587, 0.114]
    assert np.abs(decode(tmp_path / "rgb.png", grayscale=True)[..., 0] - luma).max() <= 1
    frames = [Image.fromarray(np.full((6, 6), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert (decode(tmp_path / "a.gif") == 10).all() and (decode(tmp_path / "a.png") == 10).all()


def broken_files(path):
    """Names of files that are no images, or of which a part is missing; the last two have whole headers."""
    whole = io.BytesIO()
    Image.fromarray(levels(64, 64, 3)).save(whole, "png")
    (path / "empty.png").write_bytes(b"")
    (path / "text.png").write_text("no image")
    (path / "bomb.png").write_bytes(png(20000, 20000, 8, 2))
    (path / "cut.png").write_bytes(whole.getvalue()[:3000])
    whole = io.BytesIO()
    Image.fromarray(levels(64, 64, 3)).save(whole, "jpeg")
    (path / "cut.jpg").write_bytes(whole.getvalue()[:1000])
    return ["empty.png", "text.png", "bomb.png", "cut.png", "cut.jpg"]


def test_unreadable_images_are_named(tmp_path):
    for name in broken_files(tmp_path):
        with pytest.raises(ValueError, match=rf"^data: expected an image, got .*{name} \(.+\)$"):
            decode(tmp_path / name)
    with pytest.raises(ValueError, match=r"data: expected an image, got .*nowhere.png \(.*No such file"):
        decode(tmp_path / "nowhere.png")


def image_files(path, count, size=6, start=0):
    """PNG files of noise, and their pixels (N, 3, size, size)."""
    path.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(start).randint(0, 256, (count, size, size, 3)).astype(np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(path / f"{start + i:04}.png")
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_images_can_be_skipped(tmp_path, in_memory):
    pixels = image_files(tmp_path, 30)
    names = broken_files(tmp_path)
    with pytest.raises(ValueError, match=r"data: expected an image, got"):
        load(tmp_path, size=6).split("train").__getitems__(range(30))
    with pytest.raises(ValueError, match="on_error: expected one of 'raise', 'skip', got 'ignore'"):
        load(tmp_path, on_error="ignore")
    found = names if in_memory else names[:3]
    with pytest.warns(UserWarning, match=rf"skipped {len(found)} of 35: .*/bomb.png, "):
        dataset = load(tmp_path, size=6, on_error="skip", in_memory=in_memory)
    assert sorted(os.path.basename(name) for name in dataset.skipped) == sorted(found)
    train = dataset.split("train")
    assert len(train) + len(dataset.heldout) == 35 - len(found)
    if in_memory:
        kept = [i for i in range(30) if i % 10 != 9]
        assert torch.equal(train.x, pixels[kept])
        return
    # The others are replaced by the next ones, always the same, and named once.
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        batch, again = (train.__getitems__(range(len(train))) for _ in range(2))
    assert [str(warning.message).split(" (")[0] for warning in warned] == [
        f"skipped: data: expected an image, got {tmp_path / name}" for name in ("cut.jpg", "cut.png")
    ]
    assert torch.equal(batch.x, again.x) and len(train.skipped) == 2
    assert torch.equal(batch.x[-1], pixels[0])
    assert sorted(os.path.basename(name) for name in dataset.unreadable()) == sorted(names)
    # What a worker skips is listed as well.
    with pytest.warns(UserWarning, match="skipped 3 of 35"):
        fresh = load(tmp_path, size=6, on_error="skip", in_memory=False)
    (loaded,) = load_batches(fresh.split("train"), [range(len(train))], workers=1)
    assert torch.equal(loaded.x, batch.x) and fresh.unreadable() == dataset.unreadable()


@pytest.mark.parametrize("in_memory", [True, False])
def test_class_folders(tmp_path, in_memory):
    pixels = {name: image_files(tmp_path / name, 10, start=10 * i) for i, name in enumerate(["dog", "cat"])}
    (tmp_path / ".hidden").mkdir()
    image_files(tmp_path / ".hidden", 1)
    dataset = load(tmp_path, size=6, in_memory=in_memory)
    assert dataset.classes == ("cat", "dog") and dataset.num_labels == 2 and dataset.image_shape == (3, 6, 6)
    assert dataset.train_labels.tolist() == [0] * 9 + [1] * 9 and dataset.heldout_labels.tolist() == [0, 1]
    batch = dataset.split("train").__getitems__([0, 17])
    assert torch.equal(batch.x, torch.stack([pixels["cat"][0], pixels["dog"][8]]))
    assert batch.label.tolist() == [0, 1] and batch.label.dtype == torch.int64
    assert dataset.split("heldout")[1][1] == 1
    assert isinstance(dataset.train, torch.Tensor if in_memory else Split)
    # A file beside the folders: they are no classes.
    image_files(tmp_path, 1, start=100)
    dataset = load(tmp_path, size=6, in_memory=in_memory)
    assert dataset.classes is None and dataset.train_labels is None and dataset.num_labels is None


def test_splits_by_name(tmp_path):
    train = image_files(tmp_path / "train" / "a", 3)
    image_files(tmp_path / "train" / "b", 2, start=3)
    val = image_files(tmp_path / "val" / "b" / "deep", 4, start=5)
    image_files(tmp_path / "test" / "b", 5, start=20)
    dataset = load(tmp_path, size=6)
    assert len(dataset.train) == 5 and torch.equal(dataset.train[:3], train)
    assert torch.equal(dataset.heldout, val) and dataset.classes == ("a", "b")
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1] and dataset.heldout_labels.tolist() == [1] * 4
    # A class that is named like a split, beside others: no splits.
    image_files(tmp_path / "plane", 3, start=30)
    dataset = load(tmp_path, size=6)
    assert dataset.classes == ("plane", "test", "train", "val") and len(dataset.heldout) == 1


def test_folders_without_colours(tmp_path):
    gray = levels(12, 8, 8)
    for i, pixels in enumerate(gray):
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    dataset = load(tmp_path, size=8)
    assert torch.equal(dataset.heldout[0, 0], torch.from_numpy(gray[9])) and dataset.image_shape == (1, 8, 8)
    dataset = load(tmp_path, size=8, grayscale=False)
    assert torch.equal(dataset.heldout[0], torch.from_numpy(gray[9]).expand(3, 8, 8))
    Image.fromarray(levels(8, 8, 3)).save(tmp_path / "05.png")
    assert load(tmp_path, size=8).image_shape == (3, 8, 8)
    dataset = load(tmp_path, size=8, grayscale=True)
    assert torch.equal(dataset.train[0, 0], torch.from_numpy(gray[0])) and dataset.image_shape == (1, 8, 8)
    with pytest.raises(ValueError, match=r"grayscale: expected None for photos, .* got True"):
        load("photos", grayscale=True, size=32)


def test_a_colour_among_unseen_images_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("gmfast.data.images.LOOKED_AT", 2)
    for i in range(12):
        Image.fromarray(levels(8, 8, 3) if i == 5 else levels(8, 8)).save(tmp_path / f"{i:02}.png")
    with pytest.raises(ValueError, match=r"grayscale: expected True or False, because .*05.png has colours"):
        load(tmp_path, size=8)


def test_index_is_cached_until_files_change(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CACHED_FROM", 1)
    monkeypatch.setattr(files, "SETTLED", 0)
    scans, scan = [], files._scan
    monkeypatch.setattr(files, "_scan", lambda *arguments: scans.append(1) or scan(*arguments))

    def names():
        index = files.index_files(tmp_path / "images", {".png"})
        return [os.path.relpath(index[i], tmp_path / "images") for i in range(len(index))]

    image_files(tmp_path / "images" / "b", 2)
    (tmp_path / "images" / "a.PNG").write_bytes(b"x")
    (tmp_path / "images" / "a.txt").write_bytes(b"x")
    (tmp_path / "images" / "b" / "loop").symlink_to(tmp_path / "images")
    expected = ["a.PNG", "b/0000.png", "b/0001.png"]
    assert names() == expected == names() and len(scans) == 1
    for change in (
        lambda: image_files(tmp_path / "images" / "b", 1, start=2),
        lambda: (tmp_path / "images" / "b" / "0000.png").rename(tmp_path / "images" / "b" / "zz.png"),
        lambda: (tmp_path / "images" / "a.PNG").unlink(),
        lambda: image_files(tmp_path / "images" / "c", 1, start=9),
    ):
        before = len(scans)
        change()
        found = sorted(
            path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.png")
        )
        assert [name for name in names() if name != "a.PNG"] == found and len(scans) == before + 1
        assert len(names()) >= 3 and len(scans) == before + 1
    [cache] = (tmp_path.parent / os.environ["XDG_CACHE_HOME"]).rglob("*.npz")
    for content in (b"", b"broken", cache.read_bytes()[:200]):
        cache.write_bytes(content)
        assert names() == found
    # Files of the same second as the cache may change without a trace: it is not believed then.
    monkeypatch.setattr(files, "SETTLED", 10**15)
    before = len(scans)
    assert names() == found and len(scans) == before + 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))  # a file, where no folder can be made
    assert names() == found


def test_lazy_images_are_those_in_memory(tmp_path):
    image_files(tmp_path / "a", 40, size=20)
    image_files(tmp_path / "b", 40, size=20, start=40)
    lazy, there = (load(tmp_path, size=8, in_memory=in_memory) for in_memory in (False, True))
    split = lazy.split("train")
    assert isinstance(split, Split) and isinstance(there.split("train"), TensorSplit)
    assert torch.equal(torch.cat([x for x, _ in split.batches(7)]), there.train)
    assert torch.equal(lazy.train_labels, there.train_labels)
    x, label = split[71]
    assert torch.equal(x, there.train[71]) and label == 1 and lazy.as_input(x).max() <= 1
    with pytest.raises(IndexError):
        split[72]
    for conditional in (False, True):
        expected = there.histogram_bits_per_dim(conditional)
        assert lazy.histogram_bits_per_dim(conditional) == pytest.approx(expected, rel=1e-12)
    loader = DataLoader(
        split,
        batch_size=5,
        collate_fn=as_they_are,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    batches = list(loader)
    assert all(isinstance(batch, Samples) for batch in batches)
    assert torch.equal(torch.cat([batch.x for batch in batches]), there.train)
    assert torch.equal(torch.cat([batch.label for batch in batches]), there.train_labels)


def as_they_are(samples):
    return samples


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Every one of 3,000 images is decoded; all of them would take 144 MiB."""
    (tmp_path / "x").mkdir()
    Image.fromarray(levels(64, 64, 3)).save(tmp_path / "first.png")
    for i in range(3000):
        os.link(tmp_path / "first.png", tmp_path / "x" / f"{i}.png")
    program = """
import resource, sys, torch
from gmfast.data import load
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
dataset = load(sys.argv[1], size=128, in_memory=False)
split = dataset.split("train")
split.__getitems__(range(64))
before = peak()
for batch in split.batches(64):
    assert batch.x.shape[1:] == (3, 128, 128)
print(len(split), peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "x"], capture_output=True, text=True, check=True
    )
    count, growth = done.stdout.split()
    assert int(count) == 2700 and float(growth) < 40, done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_levels": 9.0}, "num_levels: expected an integer from 2 to 256 in .*data.npz, got 9.0"),
        ({"num_levels": "many"}, "num_levels: expected an integer from 2 to 256 in .*, got 'many'"),
        ({"num_levels": [9, 9]}, r"num_levels: expected an integer .*, got .*\(2,\)"),
        ({"num_levels": 1}, "num_levels: expected an integer from 2 to 256 in .*, got 1"),
        ({"num_levels": 1000}, "num_levels: expected an integer from 2 to 256 in .*, got 1000"),
        ({"heldout_labels": np.array([1, 2, 3])}, "expected 'heldout_labels' in .* to be 2 integers"),
        ({"heldout_labels": np.array([0.0, 1])}, "expected 'heldout_labels' in .* integers, got float64"),
        (
            {"heldout_labels": np.array([0, -1])},
            "expected class indices from 0 in 'heldout_labels' .* got -1",
        ),
        ({"train": np.zeros((5, 3, 32, 32))}, r"expected 'train' .*uint8 .* got float64 \(5, 3, 32, 32\)"),
        ({"train": np.zeros((5, 3, 0, 4), np.uint8)}, r"expected 'train' .* got uint8 \(5, 3, 0, 4\)"),
        ({"train": np.array(3)}, "expected 'train_labels' in .* to be"),
        ({"train": np.array([{}] * 5, object)}, r"expected an .npz file of plain arrays, got .*data.npz"),
    ],
)
def test_npz_that_is_wrong(tmp_path, change, message):
    arrays = {
        "train": levels(5, 4, 4, high=9),
        "heldout": levels(2, 4, 4, high=9),
        "train_labels": np.arange(5),
        "heldout_labels": np.arange(2),
        "num_levels": 9,
    }
    np.savez(tmp_path / "data.npz", **arrays | change)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "data.npz")


def test_damaged_arrays(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", train=levels(50, 8, 8), heldout=levels(9, 8, 8))
    whole = (tmp_path / "x.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    for content in (b"", whole[: len(whole) // 2], bytes(flipped)):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"data: expected an \.npz file of plain arrays, got .*x.npz"):
            load(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", levels(50, 8, 8))
    whole = (tmp_path / "x.npy").read_bytes()
    for content in (b"", whole[:1000], b"\x93NUMPY junk", pickle.dumps(print)):
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"data: expected an \.npy file, got .*x.npy"):
            load(tmp_path / "x.npy")


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("layout", ["NHW", "NCHW", "NHWC", "ND"])
def test_npy(tmp_path, layout, in_memory):
    shape = {"NHW": (20, 8, 9), "NCHW": (20, 3, 8, 9), "NHWC": (20, 8, 9, 3), "ND": (20, 5)}[layout]
    array = levels(*shape) if layout != "ND" else np.random.RandomState(0).randn(*shape)
    np.save(tmp_path / "x.npy", array)
    dataset = load(tmp_path / "x.npy", in_memory=in_memory)
    expected = {"NHW": array[:, None], "NHWC": array.transpose(0, 3, 1, 2) if array.ndim == 4 else None}
    expected = torch.from_numpy(np.array(expected.get(layout, array)))
    expected = expected.float() if layout == "ND" else expected
    assert dataset.modality == ("vectors" if layout == "ND" else "images")
    assert dataset.image_shape == tuple(expected.shape[1:])
    assert torch.equal(dataset.split("heldout").__getitems__([1, 0]).x, expected[[19, 9]])
    split = pickle.loads(pickle.dumps(dataset.split("train")))
    assert torch.equal(split.__getitems__(range(18)).x, expected[[i for i in range(20) if i % 10 != 9]])
    assert isinstance(dataset.train, torch.Tensor) == in_memory
    if layout == "ND":
        train = array[[i for i in range(20) if i % 10 != 9]]
        assert torch.allclose(dataset.mean, torch.from_numpy(train.mean(0)).float(), atol=1e-6)
        assert torch.allclose(dataset.std, torch.from_numpy(train.std(0)).float(), atol=1e-6)


def test_npy_folder(tmp_path):
    train, heldout = levels(12, 8, 8), levels(5, 8, 8)
    np.save(tmp_path / "train.npy", train)
    with pytest.raises(
        FileNotFoundError, match=r"data: expected heldout.npy beside train.npy, but .* does not"
    ):
        load(tmp_path)
    np.save(tmp_path / "heldout.npy", heldout)
    np.save(tmp_path / "train_labels.npy", np.arange(12) % 3)
    with pytest.raises(ValueError, match="data: expected labels for both splits or none"):
        load(tmp_path)
    np.save(tmp_path / "heldout_labels.npy", np.arange(5) % 3)
    for in_memory in (True, False):
        dataset = load(tmp_path, in_memory=in_memory)
        assert torch.equal(dataset.split("train").__getitems__(range(12)).x[:, 0], torch.from_numpy(train))
        assert dataset.train_labels.tolist() == (np.arange(12) % 3).tolist() and dataset.num_labels == 3
        assert dataset.split("heldout").__getitems__([4]).label.tolist() == [1]
    np.save(tmp_path / "heldout_labels.npy", np.arange(4))
    with pytest.raises(ValueError, match=r"expected 'heldout_labels' in .* to be 5 integers"):
        load(tmp_path)
    np.save(tmp_path / "heldout.npy", heldout.astype(np.float64))
    with pytest.raises(ValueError, match=r"data: expected uint8 .* got float64 \(5, 8, 8\)"):
        load(tmp_path)


def test_first_lines_of_tables(tmp_path):
    path, rows = tmp_path / "x.csv", "".join(f"{i},{i * i},{-i}\n" for i in range(20))
    for first, names in [
        ("a,b,c", ("a", "b", "c")),
        ("Na,K,Ca", ("Na", "K", "Ca")),
        (",b,c", ("", "b", "c")),
    ]:
        path.write_text(f"{first}\n{rows}")
        assert load(path).columns == names
    path.write_text(rows)
    assert load(path).columns is None
    for first, cell in [
        ("1,NA,2", "NA"),
        ("NA,NA,NA", "NA"),
        ("1,x,2", "x"),
        ("nan,1,2", "nan"),
        ("?,-,null", "?"),
        ("1,,2", ""),
    ]:
        path.write_text(f"{first}\n{rows}")
        with pytest.raises(
            ValueError, match=f"expected finite numbers .*, got '{re.escape(cell)}' in line 1 of .*x.csv"
        ):
            load(path)


def test_tables_in_other_encodings(tmp_path):
    path = tmp_path / "x.csv"
    text = "größe,b\n" + "1,2\n3,5\n" * 9
    path.write_bytes(text.encode("utf-8-sig"))
    assert load(path).columns == ("größe", "b")
    for content in (text.encode("latin-1"), text.encode("utf-16"), b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"data: expected a .csv file in UTF-8, got .*x.csv"):
            load(path)


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
@pytest.mark.parametrize("wrong", ["float64", "counts", "range"])
def test_cifar10_with_other_contents(tmp_path, below, wrong):
    (tmp_path / below).mkdir(exist_ok=True)
    for name, content in cifar10_batches().items():
        (tmp_path / below / name).write_bytes(content)
    assert load(tmp_path).name == "cifar10" and load(tmp_path).num_labels == 6
    content = pickle.loads(cifar10_batches()["data_batch_2"])
    if wrong == "float64":
        content[b"data"] = content[b"data"] / 255
    else:
        content[b"labels"] = [1] if wrong == "counts" else [1, 10]
    (tmp_path / below / "data_batch_2").write_bytes(pickle.dumps(content))
    message = {
        "float64": r"expected a batch of CIFAR-10, got .*data_batch_2 \(its data are float64, not uint8\)",
        "counts": r"expected a label for each of 2 images, got 1 in .*data_batch_2",
        "range": r"data_batch_2 \(its labels are not integers from 0 to 9\)",
    }[wrong]
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("binary", [False, True])
def test_cifar100(tmp_path, binary):
    below = tmp_path / ("cifar-100-binary" if binary else "cifar-100-python")
    below.mkdir()
    (below / "meta").write_bytes(b"")
    data = {"train": levels(4, 3072), "test": levels(3, 3072)}
    for name, pixels in data.items():
        fine = np.arange(len(pixels), dtype=np.uint8) + 96
        if binary:
            records = np.concatenate([fine[:, None] // 5, fine[:, None], pixels], 1)
            (below / f"{name}.bin").write_bytes(records.tobytes())
        else:
            content = {b"data": pixels, b"fine_labels": fine.tolist(), b"coarse_labels": [0] * len(pixels)}
            (below / name).write_bytes(pickle.dumps(content))
    dataset = load(tmp_path)
    assert dataset.name == "cifar100" and dataset.train_labels.tolist() == [96, 97, 98, 99]
    assert torch.equal(dataset.heldout, torch.from_numpy(data["test"]).reshape(3, 3, 32, 32))


def test_cifar10_binary(tmp_path):
    for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        (tmp_path / name).write_bytes(b"".join(bytes([i + k]) + bytes([10 * i + k]) * 3072 for k in range(2)))
    dataset = load(tmp_path)
    assert dataset.train[:, 2, 5, 5].tolist() == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]
    assert dataset.heldout_labels.tolist() == [5, 6]
    (tmp_path / "data_batch_3.bin").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"data: expected a batch of CIFAR-10, got .*data_batch_3.bin"):
        load(tmp_path)


def test_torchvisions_mnist(tmp_path):
    for name in ("MNIST", "FashionMNIST"):
        raw = tmp_path / name / "raw"
        raw.mkdir(parents=True)
        for split, count in (("train", 4), ("t10k", 3)):
            header = bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">i4").tobytes()
            (raw / f"{split}-images-idx3-ubyte").write_bytes(header + levels(count, 28, 28).tobytes())
            labels = bytes([0, 0, 8, 1]) + np.array([count], ">i4").tobytes() + bytes(range(count))
            (raw / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    assert load(tmp_path / "MNIST").name == "mnist"
    dataset = load(tmp_path / "FashionMNIST" / "raw")
    assert dataset.name == "fashion-mnist" and dataset.train_labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(dataset.heldout[:, 0], torch.from_numpy(levels(3, 28, 28)))
    with pytest.raises(ValueError, match=r"data: expected one data set in .*, found .*MNIST"):
        load(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2, 3]))
    with pytest.raises(ValueError, match="data: expected a label for each of 4 images, got 3"):
        load(tmp_path / "MNIST")


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "huggingface")
    datasets.disable_progress_bars()
    return datasets


def encoded(pixels):
    """PNG files' bytes."""
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "png")
        yield file.getvalue()


def hugging_face(datasets, pixels, labels):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    columns = {
        "image": [{"bytes": content, "path": None} for content in encoded(pixels)],
        "label": list(labels),
    }
    return datasets.Dataset.from_dict(columns, features)


@pytest.mark.parametrize("in_memory", [True, False])
def test_parquet(tmp_path, datasets, in_memory):
    pixels, labels = levels(20, 6, 6, 3), np.arange(20) % 3
    (tmp_path / "x").mkdir()
    hugging_face(datasets, pixels, labels).to_parquet(tmp_path / "x" / "train-0.parquet")
    dataset = load(tmp_path / "x" / "train-0.parquet", size=6, in_memory=in_memory)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    train = dataset.split("train").__getitems__(range(18))
    assert torch.equal(train.x, expected[[i for i in range(20) if i % 10 != 9]])
    assert dataset.heldout_labels.tolist() == [0, 1] and dataset.classes == ("a", "b", "c")
    hugging_face(datasets, pixels[:4], labels[:4]).to_parquet(tmp_path / "x" / "validation-0.parquet")
    dataset = load(tmp_path / "x", size=6, in_memory=in_memory)
    assert torch.equal(dataset.split("heldout").__getitems__(range(4)).x, expected[:4])
    assert len(dataset.split("train")) == 20
    (tmp_path / "x" / "train-0.parquet").write_bytes(b"no parquet")
    with pytest.raises(
        ValueError, match=r"data: expected parquet files or tar shards, got .*train-0.parquet"
    ):
        load(tmp_path / "x" / "train-0.parquet")
    with pytest.raises(ValueError, match=r"data: expected parquet files or tar shards, got .*x"):
        load(tmp_path / "x")


def test_parquet_of_numbers(tmp_path, datasets):
    x = np.random.RandomState(0).randn(40, 2)
    datasets.Dataset.from_dict({"a": x[:, 0], "b": x[:, 1], "label": np.arange(40) % 2}).to_parquet(
        tmp_path / "x.parquet"
    )
    dataset = load(tmp_path / "x.parquet")
    assert dataset.modality == "vectors" and dataset.columns == ("a", "b") and len(dataset.train) == 32
    both = torch.cat([dataset.train, dataset.heldout])
    assert torch.equal(both[both[:, 0].argsort()], torch.from_numpy(x[x[:, 0].argsort()]).float())
    row = int(np.abs(x[:, 0] - dataset.train[5, 0].item()).argmin())
    assert dataset.train_labels[5] == row % 2
    datasets.Dataset.from_dict({"a": ["x", "y"]}).to_parquet(tmp_path / "y.parquet")
    with pytest.raises(
        ValueError, match=r"expected a column of images or columns of numbers in y, found \['a'"
    ):
        load(tmp_path / "y.parquet")


def test_webdataset(tmp_path, datasets):
    pixels = levels(12, 6, 6)

    def write(name, chosen):
        with tarfile.open(tmp_path / name, "w") as shard:
            for i in chosen:
                image = next(encoded(pixels[i : i + 1])) if i != 12 else b"broken"
                for suffix, content in (("png", image), ("cls", str(i % 5).encode())):
                    member = tarfile.TarInfo(f"{i:04}.{suffix}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))

    write("train-000.tar", range(6))
    write("train-001.tar", range(6, 10))
    write("val-000.tar", range(10, 12))
    dataset = load(tmp_path, size=6)
    assert torch.equal(dataset.train[:, 0], torch.from_numpy(pixels[:10])) and dataset.image_shape == (
        1,
        6,
        6,
    )
    assert dataset.train_labels.tolist() == [i % 5 for i in range(10)]
    assert torch.equal(dataset.heldout[:, 0], torch.from_numpy(pixels[10:]))
    write("val-000.tar", range(10, 13))
    with pytest.raises(ValueError, match=r"data: expected an image, got .*0012.png .*sample 2 of"):
        load(tmp_path, size=6)
    with pytest.warns(UserWarning, match="skipped 1 of 13"):
        assert len(load(tmp_path, size=6, on_error="skip").heldout) == 2
    (tmp_path / "val-000.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"data: expected parquet files or tar shards, got"):
        load(tmp_path)


def test_folders_that_datasets_saved(tmp_path, datasets):
    pixels, labels = levels(20, 6, 6, 3), np.arange(20) % 3
    whole = hugging_face(datasets, pixels, labels)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "test": whole.select(range(5))}).save_to_disk(tmp_path / "two")
    assert len(load(tmp_path / "one", size=6).heldout) == 2
    dataset = load(tmp_path / "two", size=6)
    assert len(dataset.train) == 20
    assert torch.equal(dataset.heldout, torch.from_numpy(pixels[:5]).permute(0, 3, 1, 2))
    assert dataset.heldout_labels.tolist() == labels[:5].tolist()


def test_parquet_whose_first_image_is_wrong(tmp_path, datasets):
    data = hugging_face(datasets, levels(20, 6, 6, 3), np.arange(20) % 3).to_dict()
    data["image"][0], data["image"][1] = None, {"bytes": b"broken", "path": None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(data, features).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"data: expected an image, got none \(sample 0 of x\)"):
        load(tmp_path / "x.parquet", size=6)
    for in_memory in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = load(tmp_path / "x.parquet", size=6, in_memory=in_memory, on_error="skip")
            x, label = dataset.split("train")[0]
        assert torch.equal(x, torch.from_numpy(levels(20, 6, 6, 3)[2]).permute(2, 0, 1)) and label == 2


@pytest.mark.parametrize("named", [False, True])
def test_sound_of_classes(tmp_path, named):
    soundfile = pytest.importorskip("soundfile")
    waves = {}
    for split in ("train", "test") if named else ("",):
        for i, label in enumerate(("dog", "cat")):
            (tmp_path / split / label).mkdir(parents=True)
            waves[split, label] = np.linspace(-0.9, 0.9 - i, 1000).astype(np.float32)
            soundfile.write(tmp_path / split / label / "x.wav", waves[split, label], 8000, subtype="FLOAT")
    dataset = load(tmp_path, size=100, encoding="linear")
    assert dataset.classes == ("cat", "dog") and dataset.num_labels == 2 and dataset.modality == "sound"
    for name, samples, labels in [
        ("train", dataset.train, dataset.train_labels),
        ("heldout", dataset.heldout, dataset.heldout_labels),
    ]:
        assert set(labels.tolist()) == {0, 1} and len(labels) == len(samples)
        for i, label in enumerate(("cat", "dog")):
            wave = waves[{"train": "train", "heldout": "test"}[name] if named else "", label]
            start = 0 if named or name == "train" else 800
            first = dataset.as_input(samples[labels == i][0, 0]).numpy()
            assert np.abs(first - wave[start : start + 100]).max() < 1e-4
    assert len(dataset.heldout) == (20 if named else 4)


def test_missing_extra(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "datasets", None)
    sentence = r"^datasets is missing: pip install 'gmfast\[data\]' brings it$"
    with pytest.raises(ModuleNotFoundError, match=sentence) as raised:
        load(tmp_path / "x.parquet")
    assert raised.value.name == "datasets"


class Sequence(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


PIXELS = levels(3, 6, 6)
FORMS = {
    "tensor": torch.from_numpy(PIXELS),
    "array": PIXELS.transpose(1, 2, 0),
    "channels first": PIXELS,
    "PIL": Image.fromarray(PIXELS.transpose(1, 2, 0).copy()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "packed",
    [
        lambda x: (x, 3),
        lambda x: [x, np.int64(3)],
        lambda x: (x, torch.tensor(3)),
        lambda x: {"image": x, "label": 3},
        lambda x: {"img": x, "y": 3},
        lambda x: {"pixel_values": x, "labels": torch.tensor(3)},
    ],
)
def test_items_of_other_data_sets(form, packed):
    x, label = convert(packed(FORMS[form]))
    assert torch.equal(x, torch.from_numpy(PIXELS)) and label == 3
    for alone in (FORMS[form], (FORMS[form],), (FORMS[form], -1), (FORMS[form], np.zeros(40))):
        x, label = convert(alone)
        assert torch.equal(x, torch.from_numpy(PIXELS)) and label is None
    for dataset in (wrap(Sequence([packed(FORMS[form])] * 20)), wrap(Stream([packed(FORMS[form])] * 20))):
        assert dataset.image_shape == (3, 6, 6) and dataset.num_levels == 256
        assert dataset.modality == "images"


def test_items_that_are_wrong():
    for item, message in [
        ({"picture": 1}, "expected items with one of image, img, .*, got picture"),
        ((1, 2, 3), "expected items of a sample and a label, got a tuple of 3"),
        (object(), "expected an image, an array or a tensor, got object"),
    ]:
        with pytest.raises(TypeError, match=message):
            convert(item)


def test_wrap_holds_out_every_tenth():
    x, y = torch.from_numpy(levels(30, 3, 4, 4)), torch.arange(30) % 4
    dataset = wrap(TensorDataset(x, y), name="mine")
    held = [9, 19, 29]
    assert dataset.name == "mine" and dataset.num_labels == 4 and not dataset.streamed
    assert torch.equal(dataset.split("heldout").__getitems__([0, 1, 2]).x, x[held])
    kept = [i for i in range(30) if i not in held]
    assert torch.equal(torch.cat([batch.x for batch in dataset.split("train").batches(4)]), x[kept])
    there = Dataset("there", x[kept], x[held], y[kept], y[held])
    for conditional in (False, True):
        expected = there.histogram_bits_per_dim(conditional)
        assert dataset.histogram_bits_per_dim(conditional) == pytest.approx(expected, rel=1e-12)
    dataset = wrap(TensorDataset(x), TensorDataset(x[:2]))
    assert (
        len(dataset.split("train")) == 30
        and len(dataset.split("heldout")) == 2
        and dataset.num_labels is None
    )
    source = Sequence(list(zip(x, y.tolist(), strict=True)))
    source.targets, source.classes = y.tolist(), ["a", "b", "c", "d", "e"]
    subset = torch.utils.data.Subset(source, range(10, 30))
    dataset = wrap(subset)
    assert dataset.num_labels == 5 and dataset.heldout_labels.tolist() == [19 % 4, 29 % 4]
    split = pickle.loads(pickle.dumps(dataset.split("train")))
    loader = DataLoader(split, 6, collate_fn=as_they_are)
    assert torch.equal(
        torch.cat([batch.x for batch in loader]), x[10:][[i for i in range(20) if i % 10 != 9]]
    )


def test_wrapped_floats():
    x = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = wrap(TensorDataset(x))
    assert dataset.modality == "images" and dataset.num_levels is None and dataset.items == "images"
    assert torch.equal(dataset.as_input(dataset.split("train")[0][0]), x[0])
    with pytest.warns(
        UserWarning, match=r"no negative value; models take \[-1, 1\], so images in \[0, 1\] need"
    ):
        wrap(TensorDataset(x.abs()))
    with pytest.raises(
        ValueError, match=r"expected images of real numbers in \[-1, 1\], or uint8, in .* got"
    ):
        wrap(TensorDataset(x * 127))
    dataset = wrap(TensorDataset(torch.cat([x[:5], x[5:] * 3])))
    with pytest.raises(ValueError, match=r"in \[-1, 1\].*\(sample 7 of TensorDataset\)"):
        dataset.split("train")[7]
    dataset = wrap(Sequence([*x[:10], *x[10:, :, :2]]))
    with pytest.raises(ValueError, match=r"samples of one shape in .*\(3, 4, 4\) and \(3, 2, 4\)"):
        dataset.split("train").__getitems__([0, 12])


def test_wrapped_vectors_text_and_sound():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    dataset = wrap(TensorDataset(x))
    kept = x[[i for i in range(50) if i % 10 != 9]].numpy().astype(np.float64)
    assert dataset.modality == "vectors" and torch.allclose(
        dataset.mean, torch.from_numpy(kept.mean(0)).float()
    )
    assert torch.allclose(dataset.std, torch.from_numpy(kept.std(0)).float())
    tokens = Sequence([{"input_ids": [i, 1, 2]} for i in range(20)])
    dataset = wrap(tokens, num_levels=32)
    assert dataset.modality == "text" and dataset.items == "samples"
    assert dataset.as_input(dataset.split("train")[3][0]).tolist() == [3, 1, 2]
    assert dataset.as_input(dataset.split("train")[3][0]).dtype == torch.int64
    with pytest.raises(ValueError, match="num_levels: expected the number of values of the integers"):
        wrap(tokens)
    with pytest.raises(ValueError, match=r"expected integers from 0 to 9 in .*, got 10"):
        wrap(tokens, num_levels=10).split("train").__getitems__(range(12))
    clips = TensorDataset(torch.from_numpy(levels(20, 100)))
    dataset = wrap(clips, rate=8000)
    assert dataset.modality == "sound" and dataset.image_shape == (1, 100) and dataset.rate == 8000
    assert dataset.as_input(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_streams():
    x = levels(40, 4, 4, 3)
    dataset = wrap(
        Stream([{"image": image, "label": i % 3} for i, image in enumerate(x)]),
        TensorDataset(torch.from_numpy(x).permute(0, 3, 1, 2), torch.arange(40) % 3),
    )
    assert dataset.streamed and dataset.num_labels is None and dataset.image_shape == (3, 4, 4)
    item, label = pickle.loads(pickle.dumps(dataset.convert))({"image": x[5], "label": 2})
    assert torch.equal(item, torch.from_numpy(x[5]).permute(2, 0, 1)) and label == 2
    whole = Dataset("whole", *[torch.from_numpy(x).permute(0, 3, 1, 2)] * 2)
    assert dataset.histogram_bits_per_dim() == pytest.approx(whole.histogram_bits_per_dim(), rel=1e-12)
    with pytest.raises(ValueError, match="expected samples that can be indexed, but Stream is a stream"):
        dataset.split("train")
    with pytest.raises(ValueError, match="expected held-out samples, but Stream has none"):
        wrap(Stream(list(x))).split("heldout")
    with pytest.raises(ValueError, match="split: expected 'train' or 'heldout', got 'test'"):
        dataset.split("test")
    with pytest.raises(ValueError, match="data: expected samples in Stream, found none"):
        wrap(Stream([]))
    with pytest.raises(TypeError, match="dataset: expected a map-style or iterable data set, got int"):
        wrap(3)


def test_wrapped_hugging_face(datasets):
    pixels, labels = levels(20, 6, 6, 3), np.arange(20) % 3
    dataset = wrap(hugging_face(datasets, pixels, labels))
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert torch.equal(dataset.split("heldout").__getitems__([1, 0]).x, expected[[19, 9]])
    assert dataset.classes == ("a", "b", "c") and dataset.heldout_labels.tolist() == [0, 1]
    stream = wrap(hugging_face(datasets, pixels, labels).to_iterable_dataset())
    assert stream.streamed and stream.num_labels == 3
    x, label = stream.convert(next(iter(stream.train)))
    assert torch.equal(x, expected[0]) and label == 0


def test_large_data_stay_lazy(tmp_path, monkeypatch):
    image_files(tmp_path, 12)
    assert isinstance(load(tmp_path, size=6).train, torch.Tensor)
    for name, limit in (("MEMORY", 12 * 3 * 36 - 1), ("COUNT", 11)):
        with monkeypatch.context() as patch:
            patch.setattr(reading, name, limit)
            assert isinstance(load(tmp_path, size=6).train, Split)


def test_modality_can_be_said():
    tokens = torch.zeros(4, 7, dtype=torch.int64)
    assert Dataset("text", tokens, tokens, num_levels=50, modality="text").modality == "text"
    assert Dataset("images", tokens, tokens).modality == "images"
    assert Dataset("sound", tokens, tokens, rate=8000).modality == "sound"
    assert Dataset("vectors", tokens, tokens, num_levels=None).modality == "vectors"
