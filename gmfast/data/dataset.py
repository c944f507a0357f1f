"""The form that all data have in memory."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Training and held-out samples of one modality.

    Attributes:
        name: Name for messages.
        train: Images, uint8 `(N, C, H, W)`, or clips of sound, uint8 or int32 `(N, 1, T)`, with values below
            `num_levels`; or vectors, float32 `(N, D)` in their own units.
        heldout: Held-out samples, likewise.
        train_labels: Class indices, int64 `(N,)`, or None.
        heldout_labels: Class indices of the held-out samples.
        num_levels: Number of values of an element; None for vectors of real numbers.
        rate: Sample rate of sound, in Hz; None for other data.
        columns: Names of the vectors' elements, where the data have them.
    """

    name: str
    train: Tensor
    heldout: Tensor
    train_labels: Tensor | None = None
    heldout_labels: Tensor | None = None
    num_levels: int | None = 256
    rate: int | None = None
    columns: tuple[str, ...] | None = None

    @property
    def modality(self) -> str:
        """Kind of data: "images", "sound" or "vectors"."""
        if self.real_valued:
            return "vectors"
        return "images" if self.rate is None else "sound"

    @property
    def real_valued(self) -> bool:
        """True if the samples are real numbers rather than levels."""
        return self.num_levels is None

    @property
    def items(self) -> str:
        """Name of the items for messages: images, clips or vectors."""
        return "clips" if self.modality == "sound" else self.modality

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one sample: `(C, H, W)`, `(1, T)` or `(D,)`."""
        return tuple(self.train.shape[1:])

    @property
    def mean(self) -> Tensor:
        """Per-feature mean over the training vectors, shape `(D,)`."""
        return self.train.double().mean(0).float()

    @property
    def std(self) -> Tensor:
        """Per-feature standard deviation over the training vectors, shape `(D,)`."""
        return self.train.double().std(0, correction=0).float()

    @property
    def num_labels(self) -> int | None:
        """Number of classes, or None."""
        return None if self.train_labels is None else int(self.train_labels.max()) + 1

    def gaussian_bits_per_dim(self) -> float:
        """Held-out bits per dimension of a Gaussian with the training vectors' mean and full covariance.

        The density is that of the data's units. Each variance is raised by a millionth of itself, so that the
        covariance is not singular.
        """
        train, heldout = self.train.double(), self.heldout.double()
        mean, std = train.mean(0), train.std(0, correction=0)
        train, heldout = (train - mean) / std, (heldout - mean) / std
        size = train.shape[1]
        covariance = train.t() @ train / len(train) + 1e-6 * torch.eye(size, dtype=torch.float64)
        factor = torch.linalg.cholesky(covariance)
        z = torch.linalg.solve_triangular(factor, heldout.t(), upper=False)
        log_det = factor.diagonal().log().sum() + std.log().sum()
        nats = 0.5 * z.square().sum(0).mean() + log_det + size / 2 * math.log(2 * math.pi)
        return nats.item() / (size * math.log(2))

    def histogram_bits_per_dim(self, conditional: bool = False) -> float:
        """Held-out bits per dimension of independent categorical distributions, one for each subpixel.

        They are counted on the training images, for each class if `conditional`, and one is added to each.
        The samples of sound, which is stationary, share one distribution.
        """
        size, levels = self.train[0].numel(), self.num_levels
        cells = size if self.rate is None else 1
        cell = torch.arange(size) % cells * levels
        total = 0.0
        for label in range(self.num_labels) if conditional else [None]:
            train, heldout = (
                images.flatten(1) if label is None else images[labels == label].flatten(1)
                for images, labels in ((self.train, self.train_labels), (self.heldout, self.heldout_labels))
            )
            counts = torch.ones(cells * levels, dtype=torch.int64)
            for images in train.split(1024):
                counts += torch.bincount((images + cell).flatten(), minlength=len(counts))
            bits = -torch.log2(counts / (len(train) * size // cells + levels))
            total += bits[heldout + cell].double().sum().item()
        return total / self.heldout.numel()


def to_unit(images: Tensor, num_levels: int | None) -> Tensor:
    """Map integers 0 … `num_levels` - 1 to float32 in [-1, 1]; with None, real numbers stay as they are."""
    if num_levels is None:
        return images.float()
    return images.float() * (2 / (num_levels - 1)) - 1


def from_unit(x: Tensor, num_levels: int) -> Tensor:
    """Invert `to_unit`, rounding to the nearest level: uint8, or int32 for more than 256 levels."""
    dtype = torch.uint8 if num_levels <= 256 else torch.int32
    return ((x + 1) * ((num_levels - 1) / 2)).round().clamp(0, num_levels - 1).to(dtype)
