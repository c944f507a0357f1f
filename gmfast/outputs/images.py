"""Images as one picture: a grid, or held-out images with their completions."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..data import Dataset, from_unit
from . import base


class Output(base.Output):
    """A PNG with a grid of images."""

    count = 16
    default = "samples.png"
    batch = 64
    options = frozenset({"complete", "compare", "weights"})

    def write(self, out: Path, samples: Tensor) -> list[Path]:
        """Write a grid of images `(n, C, H, W)` in [-1, 1]."""
        levels = self.model.num_levels
        image_grid(from_unit(samples, levels), levels).save(out, "PNG")
        return [out]

    def write_completions(self, out: Path, originals: Tensor, keep: Tensor, samples: Tensor) -> list[Path]:
        """Write held-out images beside their completions.

        Args:
            out: The file.
            originals: Integers `(n, C, H, W)`.
            keep: Booleans `(H, W)`, true where an image was given.
            samples: Completions `(n * D, C, H, W)` in [-1, 1], those of an image one after another.
        """
        levels = self.model.num_levels
        completions = from_unit(samples, levels).unflatten(0, (len(originals), -1))
        completion_grid(originals, keep, completions, levels).save(out, "PNG")
        return [out]

    def baseline(self, dataset: Dataset, conditional: bool) -> tuple[str, float]:
        """A histogram of each subpixel."""
        return "per-pixel histogram", dataset.histogram_bits_per_dim(conditional)


def image_grid(
    images: Tensor, num_levels: int = 256, *, columns: int | None = None, tile: int = 48
) -> Image.Image:
    """Draw images in rows, with a thin line between them.

    Args:
        images: Integers `(N, C, H, W)` below `num_levels`, C = 1 or 3.
        num_levels: Number of values of a subpixel.
        columns: Images in a row; by default the grid is as square as can be.
        tile: Size in pixels that small images are enlarged to, about; their pixels stay square.

    Raises:
        ValueError: For an empty batch or another number of channels.
    """
    if images.dim() != 4 or not len(images) or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images: expected shape (N, C, H, W), N > 0 and C = 1 or 3, got {tuple(images.shape)}"
        )
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    grey = (images.detach().cpu().double() * (255 / (num_levels - 1))).round().numpy().astype(np.uint8)
    grey = grey.repeat(3 // grey.shape[1], axis=1)
    zoom = max(1, tile // max(grey.shape[2:]))
    tiles = grey.repeat(zoom, axis=2).repeat(zoom, axis=3).transpose(0, 2, 3, 1)
    _, height, width, _ = tiles.shape
    line = 2
    canvas = np.full((rows * (height + line) + line, columns * (width + line) + line, 3), 96, np.uint8)
    for i, tile in enumerate(tiles):
        top = line + i // columns * (height + line)
        left = line + i % columns * (width + line)
        canvas[top : top + height, left : left + width] = tile
    return Image.fromarray(canvas)


def completion_grid(images: Tensor, keep: Tensor, completions: Tensor, num_levels: int = 256) -> Image.Image:
    """Draw a row for each image: the image, the part of it that was given, and its completions.

    Args:
        images: Integers `(N, C, H, W)` below `num_levels`.
        keep: Booleans `(H, W)`, true where an image was given.
        completions: Integers `(N, D, C, H, W)`.
        num_levels: Number of values of a subpixel.
    """
    paper = torch.tensor([0.28, 0.36, 0.47])[:, None, None] * (num_levels - 1)  # a blue that no level has
    given = torch.where(keep, images.expand(-1, 3, -1, -1), paper)
    panels = {
        "held out": image_grid(images, num_levels, columns=1, tile=64),
        "given": image_grid(given, num_levels, columns=1, tile=64),
        "drawn by the model": image_grid(
            completions.flatten(0, 1), num_levels, columns=completions.shape[1], tile=64
        ),
    }
    margin, heading = 12, 24
    width = sum(panel.width + margin for panel in panels.values()) + margin
    height = max(panel.height for panel in panels.values()) + margin + heading
    picture = Image.new("RGB", (width, height), "white")
    draw, left = ImageDraw.Draw(picture), margin
    for title, panel in panels.items():
        picture.paste(panel, (left, heading))
        draw.text((left + panel.width / 2, heading / 2), title, "black", anchor="mm")
        left += panel.width + margin
    return picture
