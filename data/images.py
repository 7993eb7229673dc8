"""Image files as they lie on the disk: which kinds are read, and what the header alone says."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

from PIL import ExifTags, Image

# What both Pillow (headers) and OpenCV (pixels) read, and what a user may take for such a file.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
OTHER_IMAGE_SUFFIXES = (
    ".gif",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".dng",
    ".cr2",
    ".nef",
    ".psd",
    ".svg",
    ".exr",
    ".hdr",
)
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "PPM", "WEBP")  # of Pillow, which takes MPO for a JPEG
MAX_PIXELS = 1 << 30  # OpenCV decodes no larger image
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Unreadable(Exception):
    """A file whose content can't be had; the image is left out."""


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (width, height) of the upright image, from the header alone."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if image.format == "TIFF":  # Pillow's versions differ in whether `size` is turned already
                width, height, orientation = (image.tag_v2.get(tag, 1) for tag in (256, 257, 274))
            else:
                orientation = _orientation(image.info.get("exif"))
    except FileNotFoundError:
        raise Unreadable("no such image") from None
    except Exception as error:  # Pillow's readers raise whatever a broken header makes them raise
        text = "not an image of a known kind" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise Unreadable(f"the image can't be read: {text}") from None
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise Unreadable(f"the image can't be read: {width} x {height} pixels")
    return (height, width) if orientation in TURNED else (width, height)


def _orientation(exif: bytes | None) -> int:
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        return int(tags.get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block turns nothing, here as in OpenCV
        return 1


@contextlib.contextmanager
def image_headers() -> Iterator[None]:
    """Pillow without its size limit, which guards against decoding (we don't), and without its warnings."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
