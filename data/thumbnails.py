"""Small pictures for a page: decoded no larger than needed, boxes drawn in, as data URIs."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np

from data.cache import decode_upright, read_image
from data.images import Unreadable, image_size, known_header
from utils.errors import UserError

QUALITY = 72  # of the JPEGs
# RGB, one a class, in turn: strong colours, to be told apart on most pictures.
PALETTE = ((230, 30, 40), (0, 110, 255), (0, 170, 60), (255, 140, 0), (190, 20, 220), (0, 180, 190), (250, 210, 0))
PALETTE += ((120, 70, 30), (255, 110, 190), (130, 130, 255))
COLOUR = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
GREY = {1: cv2.IMREAD_GRAYSCALE, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
COLOUR[8], GREY[8] = cv2.IMREAD_REDUCED_COLOR_8, cv2.IMREAD_REDUCED_GRAYSCALE_8


@dataclass(frozen=True)
class Picture:
    """What to show: an image or a region of it, with boxes drawn in.

    boxes: [n, 4], corners in pixels of the image. colours: numbers into the palette, one a box.
    region: corners in pixels; None shows all of the image.
    """

    path: str
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    colours: Sequence[int] = ()
    region: tuple[float, float, float, float] | None = None
    side: int = 160


def decode(path: str | os.PathLike[str], shrink: int = 1, grey: bool = False) -> np.ndarray:
    """Decode an image, upright, with its sides divided by `shrink` (1, 2, 4 or 8): a JPEG does so for next to nothing.

    Returns uint8 `[h, w]` or BGR `[h, w, 3]`. Raises `UserError` where it can't be decoded.
    """
    flag = (GREY if grey else COLOUR)[shrink]
    return read_image(path, lambda data: decode_upright(data, flag, known_header(data)))


def shrink_for(width: int, height: int, side: int) -> int:
    """The largest factor of `decode` that leaves the shorter side at least `side` pixels."""
    return next((factor for factor in (8, 4, 2) if min(width, height) >= factor * side), 1)


def data_uris(pictures: Sequence[Picture], threads: int = 8) -> list[str]:
    """Return each picture as a `data:image/jpeg` URI; an empty text where it can't be read."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(_data_uri, pictures))


def _data_uri(picture: Picture) -> str:
    try:
        size = image_size(picture.path)
        shrink = 1 if picture.region else shrink_for(*size, picture.side)
        image = decode(picture.path, shrink)
    except (Unreadable, UserError):
        return ""
    ok, data = cv2.imencode(".jpg", render(picture, image, size), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data).decode() if ok else ""


def render(picture: Picture, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut out the region, bring its long side to `picture.side` and draw the boxes: BGR `[h, w, 3]`.

    image: the decoded image, maybe smaller than its `size` (width, height), in whose pixels boxes and region are.
    """
    x1, y1, x2, y2 = picture.region or (0, 0, *size)
    if picture.region:  # never of a shrunk image
        image = image[int(y1) : max(int(np.ceil(y2)), int(y1) + 1), int(x1) : max(int(np.ceil(x2)), int(x1) + 1)]
        x1, y1 = int(x1), int(y1)
        x2, y2 = x1 + image.shape[1], y1 + image.shape[0]
    gain = picture.side / max(x2 - x1, y2 - y1)
    wide, high = max(round((x2 - x1) * gain), 1), max(round((y2 - y1) * gain), 1)
    grows = wide > image.shape[1]
    image = cv2.resize(image, (wide, high), interpolation=cv2.INTER_NEAREST if grows else cv2.INTER_AREA)
    for box, colour in zip(picture.boxes, picture.colours, strict=True):
        corners = np.rint((np.asarray(box, np.float64) - (x1, y1, x1, y1)) * gain).clip(-4096, 4096).astype(int)
        red, green, blue = PALETTE[colour % len(PALETTE)]
        cv2.rectangle(image, tuple(corners[:2].tolist()), tuple(corners[2:].tolist()), (blue, green, red), 2)
    return image


def around(box: Sequence[float], size: tuple[int, int], context: float = 3.0, least: int = 48) -> tuple:
    """The region to show a box in: `context` times its sides and at least `least` px, moved to lie in the image."""
    region: list[float] = []
    for low, high, length in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        longest = max(box[2] - box[0], box[3] - box[1])
        span = min(max(context * (high - low), 1.2 * longest, least), length)
        start = min(max((low + high - span) / 2, 0), length - span)
        region += [start, start + span]
    return region[0], region[2], region[1], region[3]
