"""What the readers of all label formats share: an image that is to be read, and what was read of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Record:
    """An image and its objects.

    name: its path relative to the data set's root, with `/`. width, height: pixels, upright.
    boxes: float32 [N, 4], corners in pixels, inside the image. classes: int32 [N]. crowd: bool [N].
    areas: float32 [N], square pixels: of the object's mask where the labels know it, else of its box.
    """

    image: Path
    name: str
    width: int
    height: int
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray


class Objects(NamedTuple):
    """The objects of an image before they are checked; `numbers` are what a fault calls them by."""

    boxes: np.ndarray  # float64 [N, 4]
    classes: np.ndarray  # int [N]
    crowd: np.ndarray  # bool [N]
    areas: np.ndarray  # float64 [N], NaN: that of the box
    numbers: Sequence[Any]


class Entry(NamedTuple):
    """An image, the file of its labels, what that file calls an object, and how it is read.

    read(label, width, height, fault): calls fault(where, text) for an object that it leaves out.
    """

    name: str
    image: str
    label: str
    unit: str
    read: Callable[[str, int, int, Callable[[str, str], None]], Objects]
