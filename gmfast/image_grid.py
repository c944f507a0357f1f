"""Batches of images as one picture."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor


def image_grid(
    images: Tensor, num_levels: int = 256, *, columns: int | None = None, tile: int = 48
) -> Image.Image:
    """`images`, integers (N, C, H, W) below `num_levels` with C = 1 or 3, in rows of `columns` (by default as
    square as can be) with a thin line between them. Small images are enlarged to about `tile` pixels, each
    staying square.

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
    """A row for each of `images` (N, C, H, W): the image, what is given of it (where `keep`, booleans (H, W),
    is true), and its `completions` (N, D, C, H, W). Integers below `num_levels`, as for `image_grid`."""
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
