"""Random changes of training images."""

import torch
from torch import Tensor


def augment(
    images: Tensor, *, flip: bool, crop: int, seed: int, first: int = 0, total: int | None = None
) -> Tensor:
    """Mirror and crop images at random.

    Args:
        images: `(B, C, H, W)`, of any dtype.
        flip: Whether each image is mirrored with probability 1/2.
        crop: Pixels by which each image is padded with its reflection, to be cropped to its size at random.
        seed: Seed of the draws, one for each image of the whole batch.
        first: Number of the first image in the whole batch, of `total` images (default: B).
    """
    total = len(images) if total is None else total
    generator = torch.Generator().manual_seed(seed)
    mirrored = torch.rand(total, generator=generator) < 0.5
    offsets = torch.randint(-crop, crop + 1, (total, 2), generator=generator)
    part = slice(first, first + len(images))
    if flip:
        images = torch.where(mirrored[part].to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)
    if not crop:
        return images
    height, width = images.shape[2:]
    if crop >= min(height, width):
        raise ValueError(f"crop: expected fewer pixels than the {height}x{width} of the images, got {crop}")
    top, left = offsets[part].to(images.device).unbind(1)
    rows, columns = (_reflected(offset, size) for offset, size in ((top, height), (left, width)))
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(offset: Tensor, size: int) -> Tensor:
    """Indices `(B, size)` of a window moved by `offset`, reflected at the borders."""
    index = (torch.arange(size, device=offset.device) + offset[:, None]).abs()
    return torch.where(index < size, index, 2 * (size - 1) - index)
