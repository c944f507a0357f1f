import gzip
import io
import math
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from gmfast.data import BUILT_IN, TABLES, TOYS, Dataset, from_unit, load, to_unit


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
