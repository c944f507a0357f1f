"""Decoding of images: what a viewer shows, as levels 0 … 255."""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._check import at_least, one_of

if TYPE_CHECKING:
    from PIL.Image import Image

#: What transparent pixels may become.
ALPHAS = ("white", "black", "refuse")

#: TIFF's tag PhotometricInterpretation.
PHOTOMETRIC = 262

#: Pillow's modes without colour; a palette is looked at.
GRAY = ("1", "L", "LA", "La", "I", "F")


@dataclass(frozen=True)
class ImageDecoder:
    """Decoder of image files to uint8 `(C, H, W)`.

    - The orientation that EXIF states is applied. Of an animation the first frame is taken.
    - 16-bit levels are divided by 257. Floats in [0, 1] are multiplied by 255, others in [0, 255] are levels;
      further ones, and 32-bit integers, are refused.
    - Palettes, bilevel, CMYK, YCbCr and L*a*b* images are converted. Colour profiles are ignored.
    - Grey levels of colours are their luma (ITU-R BT.601).

    Attributes:
        size: Side that images are shrunk and cropped at the centre to; None leaves their size.
        grayscale: Whether C is 1; None: 1 for files without colour, 3 for others.
        alpha: What transparent pixels are composed over, "white" or "black"; or "refuse".
    """

    size: int | None = None
    grayscale: bool | None = None
    alpha: str = "white"

    def __post_init__(self):
        one_of("alpha", self.alpha, ALPHAS)
        if self.size is not None:
            at_least(1, size=self.size)

    def __call__(self, source: Any) -> Tensor:
        """Decode an image.

        Args:
            source: A path, the file's bytes, a PIL image, or a mapping with "bytes" or "path".

        Raises:
            TypeError: For something else. ValueError: For what cannot be read or is refused, naming the file.
        """
        from PIL import Image, ImageOps

        image, name = _load(source)
        gray = is_gray(image) if self.grayscale is None else self.grayscale
        if image.mode.startswith(("I", "F")):
            image = self._scaled(image, name)
        if image.mode != "F":
            image = self._opaque(image, name)
            if image.mode == "LAB":
                image = image.convert("RGB")
            mode = "L" if gray else "RGB"
            image = image if image.mode == mode else image.convert(mode)
        if self.size is not None:
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.LANCZOS)
        pixels = np.array(image)
        if pixels.dtype != np.uint8:
            pixels = pixels.round().clip(0, 255).astype(np.uint8)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[None], 1 if gray else 3, 0)
            return torch.from_numpy(pixels)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def _scaled(self, image: "Image", name: str) -> "Image":
        """An image of 16 bits or of floats, as floats in [0, 255]."""
        from PIL import Image

        values = np.array(image)
        transparent = None
        if image.mode == "F":
            lowest, highest = float(values.min()), float(values.max())
            if not (lowest >= 0 and highest <= 255):
                raise ValueError(
                    f"data: expected floats in [0, 1] or levels in [0, 255], got {lowest:g} to {highest:g} "
                    f"in {name}"
                )
            scaled = values * np.float32(255 if highest <= 1 else 1)
        elif image.mode == "I" and image.format not in ("PNG", "PPM"):  # which have 16 bits at most
            raise ValueError(
                f"data: expected 8 or 16 bits or floats, got signed integers or 32 bits in {name}"
            )
        else:
            scaled = values.astype(np.float32) / np.float32(257)
            if "transparency" in image.info:
                transparent = values == image.info["transparency"]
        if transparent is not None and transparent.any():
            self._check_alpha(name)
            scaled = np.where(transparent, np.float32(255 if self.alpha == "white" else 0), scaled)
        return Image.fromarray(scaled.astype(np.float32))

    def _opaque(self, image: "Image", name: str) -> "Image":
        """An image composed over the background, if any of its pixels are transparent."""
        from PIL import Image

        if not image.has_transparency_data:
            return image
        image = image.convert("RGBA")
        if image.getextrema()[3][0] == 255:
            return image.convert("RGB")
        self._check_alpha(name)
        background = Image.new("RGBA", image.size, self.alpha)
        return Image.alpha_composite(background, image).convert("RGB")

    def _check_alpha(self, name: str) -> None:
        if self.alpha == "refuse":
            raise ValueError(f"alpha: expected opaque images, or white or black to compose over, got {name}")


def is_gray(source: Any) -> bool:
    """True if an image has no colours, by its mode or its palette, or if it cannot be read.

    Args:
        source: As `ImageDecoder` takes it.
    """
    from PIL import Image

    try:
        source, name = _source(source)
        with nullcontext(source) if isinstance(source, Image.Image) else _open(source, name) as image:
            if image.mode not in ("P", "PA"):
                return image.mode in GRAY or image.mode.startswith("I;16")
            with _naming(name):
                palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
            return bool((palette == palette[:, :1]).all())
    except ValueError:
        return True


def check_header(file: str) -> None:
    """Read the first bytes of an image file.

    Raises:
        ValueError: If they are not an image's, naming the file.
    """
    _open(file, file).close()


def _source(source: Any) -> tuple[Any, str]:
    """Path or file that Pillow opens, or an image; and its name for messages."""
    from PIL import Image

    name = "an image"
    if isinstance(source, Mapping):
        name = source.get("path") or name
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if source is None:
        raise ValueError("data: expected an image, got none")
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
    elif isinstance(source, bytes):
        source = io.BytesIO(source)
    elif not isinstance(source, Image.Image):
        raise TypeError(f"data: expected an image, an array or a tensor, got {type(source).__name__}")
    return source, name


def _load(source: Any) -> tuple["Image", str]:
    """An image, turned as EXIF states, and its name for messages."""
    from PIL import Image, ImageOps

    source, name = _source(source)
    own = not isinstance(source, Image.Image)
    with _open(source, name) if own else nullcontext(source) as image:
        with _naming(name):
            image.load()
            if own:
                turned = image
                ImageOps.exif_transpose(image, in_place=True)
            else:
                turned = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:
            turned = Image.fromarray(65535 - np.array(turned))  # white is zero: Pillow inverts 8 bits alone
        turned.format = image.format
        return turned, name


def _open(source: Any, name: str) -> "Image":
    from PIL import Image

    with _naming(name):
        return Image.open(source)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn what Pillow raises, of any kind for damaged files, into a sentence that names the file."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except Exception as error:
        known = "no known format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"data: expected an image, got {name} ({known})") from None
