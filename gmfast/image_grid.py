"""A batch of images as one picture."""

import math

import numpy as np
from PIL import Image
from torch import Tensor


def image_grid(images: Tensor, num_levels: int = 256, *, columns: int | None = None) -> Image.Image:
    """`images`, integers (N, C, H, W) below `num_levels` with C = 1 or 3, in rows of `columns` (by default as
    square as can be) with a thin line between them. Small images are enlarged, pixels staying square.

    Raises ValueError for an empty batch or another number of channels.
    """
    if images.dim() != 4 or not len(images) or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images: expected shape (N, C, H, W), N > 0 and C = 1 or 3, got {tuple(images.shape)}"
        )
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    grey = (images.detach().cpu().double() * (255 / (num_levels - 1))).round().numpy().astype(np.uint8)
    grey = grey.repeat(3 // grey.shape[1], axis=1)
    zoom = max(1, 48 // max(grey.shape[2:]))
    tiles = grey.repeat(zoom, axis=2).repeat(zoom, axis=3).transpose(0, 2, 3, 1)
    _, height, width, _ = tiles.shape
    line = 2
    canvas = np.full((rows * (height + line) + line, columns * (width + line) + line, 3), 96, np.uint8)
    for i, tile in enumerate(tiles):
        top = line + i // columns * (height + line)
        left = line + i % columns * (width + line)
        canvas[top : top + height, left : left + width] = tile
    return Image.fromarray(canvas)
