"""The embedded data set: textured shapes on textured ground, made on first use, so that everything runs offline.

Five classes are to be told apart by outline alone: colours, textures, sizes and places come from the same ranges. Bars,
arcs and angles, as bright as the shapes, lie between them and are no class. Shapes overlap and are cut off by the
picture's edge, and are labelled with the extent of their outline within the picture.

The ground is darker than what lies on it. With either one brighter at random the same network needs several times as
many steps to see outlines at all, and this data set is for runs of two minutes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.errors import UserError
from utils.seed import rng

VERSION = 1  # part of the folder's name: raise it when a byte of any picture or label changes
NAMES = ("circle", "square", "triangle", "star", "cross")
SPLITS = {"train": 400, "val": 100}
SIDE = 160  # px
CLUTTER = -1  # the class of what is no class
MIN_VISIBLE = 0.75  # share of a shape's area that is in the picture and under no other shape
RADII = (15.0, 42.0)  # px, of the circle around a shape
TURN = 30.0  # ± degrees
TRIES = 20  # places tried for a shape before it is left out


@dataclass
class Shape:
    """A shape that was placed."""

    label: int  # its class, or CLUTTER
    mask: np.ndarray  # uint8 [SIDE, SIDE]: 0 to 255, how much of each pixel it fills
    area: float  # px², of the whole outline, in the picture or not
    shown: np.ndarray  # bool [SIDE, SIDE]: where it is seen

    def box(self) -> tuple[int, int, int, int]:
        """Extent of the outline within the picture: xyxy in pixels."""
        x, y = np.flatnonzero((self.mask > 127).any(0)), np.flatnonzero((self.mask > 127).any(1))
        return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def ensure_shapes(root: Path) -> Path:
    """Return the data set's folder under `root`, made if it isn't there: `images/{train,val}`, `labels/{train,val}`.

    It appears whole or not at all, and has the same bytes whenever it is made on one machine.
    """
    folder = Path(root) / f"shapes-v{VERSION}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder}: can't make the embedded data set: {error.strerror or error}") from None
    try:
        for split in SPLITS:
            _write_split(partial, split)
        partial.chmod(0o755)  # mkdtemp's is for its owner only
        os.rename(partial, folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was quicker, and made the same
            raise UserError(f"{folder}: can't make the embedded data set: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_split(folder: Path, split: str) -> None:
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for i in range(SPLITS[split]):
        image, shapes = draw_picture(rng(VERSION, "shapes", list(SPLITS).index(split), i))
        data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        (images / f"{split}-{i:04d}.jpg").write_bytes(data.tobytes())
        rows = [_yolo_row(shape) for shape in shapes if shape.label != CLUTTER]
        (labels / f"{split}-{i:04d}.txt").write_text("".join(rows), encoding="utf-8", newline="\n")


def _yolo_row(shape: Shape) -> str:
    x1, y1, x2, y2 = shape.box()
    values = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    return " ".join([str(shape.label), *(f"{value / SIDE:.6f}" for value in values)]) + "\n"


def draw_picture(draw: np.random.Generator) -> tuple[np.ndarray, list[Shape]]:
    """Draw one picture: (uint8 `[SIDE, SIDE, 3]` RGB, its shapes from the lowest to the topmost)."""
    image = _texture(draw, draw.uniform(20, 110, 3), coarse=True)
    shapes: list[Shape] = []
    labels = [*draw.integers(len(NAMES), size=draw.integers(3, 7)), *[CLUTTER] * draw.integers(1, 4)]
    for label in draw.permutation(labels):
        shape = _place(draw, int(label), shapes)
        if shape is None:
            continue
        for lower in shapes:
            lower.shown &= shape.mask < 128
        shapes.append(shape)
        texture = _texture(draw, _contrast(draw, image[shape.mask > 127].mean(0)), coarse=False)
        image += (texture - image) * (shape.mask[..., None] / np.float32(255))
    image = cv2.GaussianBlur(image, (0, 0), draw.uniform(0.3, 0.8))
    image += draw.normal(0, draw.uniform(2, 8), image.shape).astype(np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), shapes


def _place(draw: np.random.Generator, label: int, shapes: list[Shape]) -> Shape | None:
    """Find a place where enough of the new shape is in the picture and enough of the lower ones stays seen."""
    low, high = np.log(RADII)
    for _ in range(TRIES):
        points = _outline(draw, label) @ _squeeze(draw) * np.exp(draw.uniform(low, high))
        points += draw.uniform(0, SIDE, 2)
        mask = _fill(points)
        shape = Shape(label, mask, _area(points), mask > 127)
        if _share(shape, shape.shown) < MIN_VISIBLE:
            continue
        if all(_share(lower, lower.shown & ~shape.shown) >= MIN_VISIBLE for lower in shapes):
            return shape
    return None


def _fill(points: np.ndarray) -> np.ndarray:
    """How much of each pixel a polygon covers: uint8 `[SIDE, SIDE]`, 255 for all of it."""
    fine = np.zeros((4 * SIDE, 4 * SIDE), np.uint8)
    # OpenCV counts from the centre of the first pixel, in sixteenths here.
    cv2.fillPoly(fine, [np.rint((4 * points - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    return cv2.resize(fine, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _share(shape: Shape, shown: np.ndarray) -> float:
    return float(shown.sum() / shape.area)


def _area(points: np.ndarray) -> float:
    (x, y), (next_x, next_y) = points.T, np.roll(points, -1, axis=0).T
    return abs(float((x * next_y - next_x * y).sum())) / 2


def _squeeze(draw: np.random.Generator) -> np.ndarray:
    """A rotation, after a stretch that leaves the outline what it is."""
    angle, stretch = np.radians(draw.uniform(-TURN, TURN)), draw.uniform(0.85, 1.0)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1, 0], [0, stretch]]) @ np.array([[cos, sin], [-sin, cos]])


def _outline(draw: np.random.Generator, label: int) -> np.ndarray:
    """Corners of a shape within the unit circle: `[n, 2]`."""
    kinds: tuple[Callable[[], np.ndarray], ...] = (_bar, _arc, _angle)
    if label == CLUTTER:
        return kinds[draw.integers(len(kinds))]()
    return (_circle, _square, _triangle, _star, _cross)[label]()


def _around(degrees: np.ndarray, radius: np.ndarray | float = 1.0) -> np.ndarray:
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], 1) * np.reshape(radius, (-1, 1))


def _circle() -> np.ndarray:
    return _around(np.arange(0, 360, 6)) * 0.85


def _square() -> np.ndarray:
    return _around(np.arange(45, 360, 90))


def _triangle() -> np.ndarray:
    return _around(np.arange(0, 360, 120))


def _star() -> np.ndarray:
    return _around(np.arange(0, 360, 36), np.tile([1.0, 0.42], 5))


def _cross() -> np.ndarray:
    thin = np.degrees(np.arctan2(0.3, 0.95))
    quarter = np.array([-thin, thin, 45])
    angles = np.concatenate([quarter + turn for turn in range(0, 360, 90)])
    return _around(angles, np.tile([1.0, 1.0, 0.3 * np.sqrt(2)], 4))


def _bar() -> np.ndarray:
    return np.array([[-1, -0.11], [1, -0.11], [1, 0.11], [-1, 0.11]])


def _arc() -> np.ndarray:
    outer = _around(np.arange(0, 201, 8))
    return np.concatenate([outer, outer[::-1] * 0.78])


def _angle() -> np.ndarray:
    return np.array([[-0.7, -0.7], [0.8, -0.7], [0.8, -0.45], [-0.45, -0.45], [-0.45, 0.8], [-0.7, 0.8]])


def _contrast(draw: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """A bright colour that is seen on what it covers: the first of some that is far enough, else the farthest."""
    colours = draw.uniform(110, 240, (8, 3))
    distance = np.abs(colours - ground).max(1)
    far = np.flatnonzero(distance > 75)
    return colours[far[0] if len(far) else distance.argmax()]


def _texture(draw: np.random.Generator, colour: np.ndarray, coarse: bool) -> np.ndarray:
    """A textured area: float32 `[SIDE, SIDE, 3]`, about `colour`."""
    waves = draw.uniform(20, 60) if coarse else draw.uniform(5, 16)  # px
    angle, phase = draw.uniform(0, np.pi), draw.uniform(0, 2 * np.pi, 2)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    along = np.float32(2 * np.pi / waves) * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)
    across = np.float32(2 * np.pi / waves) * (np.float32(np.cos(angle)) * y - np.float32(np.sin(angle)) * x)
    kind = draw.integers(4)
    if kind == 0:
        pattern = np.sin(along + np.float32(phase[0]))
    elif kind == 1:
        pattern = np.sign(np.sin(along + np.float32(phase[0])) * np.sin(across + np.float32(phase[1])))
    elif kind == 2:
        cells = draw.uniform(-1, 1, (2 * SIDE // int(waves) + 2,) * 2).astype(np.float32)
        pattern = cv2.resize(cells, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    else:
        pattern = np.clip((along + across) / np.float32(6 * np.pi) - np.float32(1), -1, 1)
    swing = draw.uniform(-22, 22, 3).astype(np.float32)
    return colour.astype(np.float32) + pattern.astype(np.float32)[..., None] * swing
