"""YOLO label files in which nothing is wrong, many at a time: most are so, and to check many rows at once is quick.

What is in the least unusual is left to the careful reader, which says what it is. For what is read here both give the
same to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data.images import OPEN_FLAGS, Unreadable, header_notes, read_header
from data.labels import SMALL_OVERHANG
from data.yolo_txt import PIXELS, SNAP

PLAIN = b"0123456789.-+eE \t\r\n"  # no words, no NaN, no characters that one reader takes for a line's end
SMALL_FILE = 1 << 16  # bytes
# Odd numbers: products of distinct boxes, as whole numbers that overflow, are hardly ever the same.
MIX = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5, 0xD6E8FEB86659FD93], np.uint64
)


@dataclass(frozen=True)
class CleanLabels:
    """Images with their objects; `clean` [N]: was the image read here? One that was not has count 0.

    sizes: int32 [N, 2]. counts: int64 [N]. labelled: bool [N], is there a label file? boxes: float32 [T, 4].
    classes: int32 [T]. areas: float32 [T].
    """

    clean: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    labelled: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    areas: np.ndarray


def read_clean(images: Sequence[str], label_paths: Callable[[str], Iterable[str]], names: int) -> CleanLabels:
    """Read images whose labels are the first file there is of `label_paths(image)`; `names`: how many classes."""
    sizes = np.zeros((len(images), 2), np.int32)
    counts = np.zeros(len(images), np.int64)
    clean, labelled = np.zeros((2, len(images)), bool)
    values: list[float] = []
    for i, image in enumerate(images):
        try:
            header = read_header(image)
            data = _first_file(label_paths(image))
            fields = _fields(data or b"")
        except (OSError, Unreadable, ValueError):
            continue
        if fields is None or any(header_notes(image, header)):
            continue
        values += fields
        sizes[i], counts[i], clean[i], labelled[i] = header.size, len(fields) // 5, True, data is not None
    rows = np.array(values, np.float64).reshape(-1, 5)
    owner = np.repeat(np.arange(len(images)), counts)
    boxes, areas, sound = _check(rows, sizes[owner].astype(np.float64), names)
    clean[owner[~sound]] = False
    clean[_repeating(rows[:, 0], boxes, owner)] = False
    keep = clean[owner]
    return CleanLabels(
        clean=clean,
        sizes=sizes,
        counts=np.where(clean, counts, 0),
        labelled=labelled,
        boxes=boxes[keep].astype(np.float32),
        classes=rows[keep, 0].astype(np.int32),
        areas=areas[keep].astype(np.float32),
    )


def _first_file(paths: Iterable[str]) -> bytes | None:
    """The content of the first file there is; None where there is none. Raises OSError for anything odd."""
    tried = []
    for path in paths:
        try:
            file = os.open(path, OPEN_FLAGS)
        except FileNotFoundError:
            tried.append(path)
            continue
        try:
            data = os.read(file, SMALL_FILE)
        finally:
            os.close(file)
        if len(data) == SMALL_FILE or (not data and not os.path.isfile(path)):
            raise OSError("large, or no file")
        if any(map(os.path.lexists, tried)):
            break
        return data
    if any(map(os.path.lexists, tried)):
        raise OSError("a broken link")
    return None


def _fields(data: bytes) -> list[float] | None:
    """The numbers of all rows, five each; None where a row has another number of them. Raises ValueError."""
    if data.translate(None, PLAIN):
        return None
    fields: list[bytes] = []
    for line in data.splitlines():
        row = line.split()
        if len(row) != 5 and row:
            return None
        fields += row
    return list(map(float, fields))


def _check(rows: np.ndarray, sizes: np.ndarray, names: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [T, 4] in pixels, areas [T], and which rows are sound [T]; `sizes` [T, 2]: of each row's image."""
    shares = rows[:, 1:]
    half = shares[:, 2:] / 2
    limit = np.concatenate([sizes, sizes], 1)
    with np.errstate(invalid="ignore", over="ignore"):
        corners = np.concatenate([shares[:, :2] - half, shares[:, :2] + half], 1)
        raw = np.rint(corners * limit * SNAP) / SNAP
        boxes = np.clip(raw, 0.0, limit) + 0.0  # + 0.0: no negative zeros
        sound = (np.abs(raw - boxes) < SMALL_OVERHANG).all(1)  # a larger overhang is something to say
        sound &= (boxes[:, 2:].astype(np.float32) > boxes[:, :2].astype(np.float32)).all(1)
        sound &= (np.abs(shares) <= PIXELS).all(1)
        sound &= (rows[:, 0] >= 0) & (rows[:, 0] < names) & (rows[:, 0] == np.floor(rows[:, 0]))
    return boxes, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), sound


def _repeating(classes: np.ndarray, boxes: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Images that may have an object twice: a wrong guess costs only time."""
    with np.errstate(invalid="ignore", over="ignore"):
        whole = np.concatenate([np.nan_to_num(classes)[:, None], boxes * SNAP], 1).astype(np.int64).view(np.uint64)
        keys = (whole * MIX).sum(1, dtype=np.uint64) + owner.astype(np.uint64) * np.uint64(0x94D049BB133111EB)
        keys ^= keys >> np.uint64(29)
    order = np.argsort(keys)
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    return np.unique(owner[order[same]])
