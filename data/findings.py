"""What a data set holds, and what in it looks wrong without being a fault: suspicious boxes, look-alikes, leaks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.augment import MIN_SIDE
from data.config import DataConfig, Source
from data.faults import Fault
from data.images import IMAGE_SUFFIXES
from data.index import Index
from data.similar import Looks, nearest
from utils.errors import printable

TRAINED_AT = 640  # px: the long side that images are brought to at most, unless --img says otherwise
HUGE = 0.95  # share of the image
THIN = 20.0  # times as long as wide
SAME_PLACE = 0.95  # IoU
SUSPICIONS = {
    "doubled": f"Two boxes of one class in the same place (IoU above {SAME_PLACE}): one object labelled twice?",
    "two classes": f"Two boxes of different classes in the same place (IoU above {SAME_PLACE}): which one is it?",
    "tiny": f"A side of {MIN_SIDE:g} px or less where the long side is at most {TRAINED_AT} px: nothing to learn from.",
    "huge": f"More than {HUGE:.0%} of the image: a label of the whole picture?",
    "thin": f"More than {THIN:g} times as long as wide: a slip of the mouse?",
}


@dataclass(frozen=True, eq=False)
class Part:
    """A split as it was read. suspects: kind → int64 [K, 2], numbers of a box and of the other one (-1: none)."""

    name: str
    index: Index
    faults: list[Fault]
    looks: Looks
    suspects: dict[str, np.ndarray]

    @property
    def image_of(self) -> np.ndarray:
        """int64 [T]: the image of every box."""
        return np.repeat(np.arange(len(self.index)), np.diff(self.index.offsets))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images that look alike: `images[k]` (of one part and of another, or of the same) differ in `bits[k]` of 64.

    same_file: bool [K], the two are one file.
    """

    first: Part
    second: Part
    images: np.ndarray
    bits: np.ndarray
    same_file: np.ndarray

    def __len__(self) -> int:
        return len(self.bits)


@dataclass(frozen=True, eq=False)
class Findings:
    """All that a check found.

    faults: (split, fault); those of a split that can't be read at all are here too. notes: what was not looked at.
    twins: look-alikes within each part. leaks: those of two parts.
    """

    config: DataConfig
    parts: list[Part]
    faults: list[tuple[str, Fault]]
    notes: list[str] = field(default_factory=list)
    twins: list[Pairs] = field(default_factory=list)
    leaks: list[Pairs] = field(default_factory=list)

    @property
    def class_counts(self) -> np.ndarray:
        """int64 [parts, classes]: objects."""
        counts = [np.bincount(part.index.classes[~part.index.crowd], minlength=self.config.nc) for part in self.parts]
        return np.array(counts, np.int64).reshape(len(counts), self.config.nc)

    def missing(self) -> dict[str, list[int]]:
        """Classes that a part has not though another one, or the yaml, names them: a sentence → their numbers."""
        counts = dict(zip([part.name for part in self.parts], self.class_counts > 0, strict=True))
        found: dict[str, list[int]] = {}
        train = counts.pop("train", None)
        for name, has in counts.items() if train is not None else ():
            found[f"in {name}, but never in train"] = np.flatnonzero(has & ~train).tolist()
            found[f"in train, but never in {name}"] = np.flatnonzero(train & ~has).tolist()
        nowhere = ~(self.class_counts > 0).any(0)
        found["named in the yaml, but nowhere in the labels"] = np.flatnonzero(nowhere).tolist()
        return {words: classes for words, classes in found.items() if classes}

    def imbalance(self) -> tuple[int, int, float] | None:
        """(commonest class, rarest class, times as many objects) of the first part; None for fewer than two classes, or
        as many of each."""
        counts = self.class_counts[0] if self.parts else np.zeros(0, np.int64)
        present = np.flatnonzero(counts)
        if len(present) < 2:
            return None
        most, least = int(counts.argmax()), int(present[counts[present].argmin()])
        times = float(counts[most] / counts[least])
        return (most, least, times) if times > 1 else None


def faults_by_kind(faults: list[tuple[str, Fault]]) -> dict[str, list[tuple[str, Fault]]]:
    """Faults by their kind: those that stop a run first, then the commonest."""
    kinds: dict[str, list[tuple[str, Fault]]] = {}
    for split, fault in faults:
        kinds.setdefault(fault.kind or "other", []).append((split, fault))
    return dict(sorted(kinds.items(), key=lambda kind: (not any(f.stops for _, f in kind[1]), -len(kind[1]), kind[0])))


def find_suspects(index: Index) -> dict[str, np.ndarray]:
    """Boxes that look wrong: kind → int64 [K, 2], the number of a box and that of the other one (-1: none).

    Boxes of crowds are left in peace.
    """
    boxes = index.boxes.astype(np.float64)
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    sizes = np.repeat(index.sizes.astype(np.float64), np.diff(index.offsets), axis=0)
    gain = np.minimum(TRAINED_AT / sizes.max(1, initial=1), 1)
    one = ~index.crowd
    alone = {
        "tiny": one & (np.minimum(wide, high) * gain <= MIN_SIDE),
        "huge": one & (wide * high > HUGE * sizes.prod(1)),
        "thin": one & (np.maximum(wide, high) > THIN * np.minimum(wide, high)),
    }
    pairs = overlapping(index)
    alike = index.classes[pairs[:, 0]] == index.classes[pairs[:, 1]]
    found = {"doubled": pairs[alike], "two classes": pairs[~alike]}
    for kind, chosen in alone.items():
        numbers = np.flatnonzero(chosen)
        found[kind] = np.stack([numbers, np.full(len(numbers), -1)], 1)
    return {kind: found[kind] for kind in SUSPICIONS}


def overlapping(index: Index, threshold: float = SAME_PLACE) -> np.ndarray:
    """Pairs of boxes of one image with an IoU above `threshold` (0.5 to 1), crowds left out: int64 [K, 2], sorted.

    An IoU above t needs corners nearer than (1 - t) of the width: in order of their left side, few boxes are compared.
    """
    image = np.repeat(np.arange(len(index)), np.diff(index.offsets))
    order = np.flatnonzero(~index.crowd)
    order = order[np.lexsort((index.boxes[order, 0], image[order]))]
    boxes, image = index.boxes[order].astype(np.float64), image[order]
    found = [np.zeros((0, 2), np.int64)]
    start = np.arange(len(order))
    for shift in range(1, len(order)):
        start = start[start + shift < len(order)]
        other = start + shift
        slack = (1 - threshold) * (boxes[start, 2] - boxes[start, 0])
        near = (image[other] == image[start]) & (boxes[other, 0] - boxes[start, 0] <= slack)
        start, other = start[near], other[near]
        if not len(start):
            break
        hit = _iou(boxes[start], boxes[other]) > threshold
        found.append(np.sort(np.stack([order[start[hit]], order[other[hit]]], 1), axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union, row by row: [K, 4] twice, [K]."""
    inner = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(min=0).prod(1)
    return inner / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inner)


def find_twins(part: Part) -> Pairs:
    """Each image of a part that looks like another of it, with the one most like it: every pair once."""
    other, bits = nearest(part.looks)
    rows = np.flatnonzero(other >= 0)
    pairs = np.sort(np.stack([rows, other[rows]], 1), axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    return _pairs(part, part, pairs, bits[rows[first]])


def find_leaks(first: Part, second: Part) -> Pairs:
    """Each image of the second part that is, or looks like, one of the first, with the one most like it."""
    other, bits = nearest(second.looks, first.looks)
    places = {first.index.path(i): i for i in range(len(first.index))}
    for i in range(len(second.index)):
        place = places.get(second.index.path(i))
        if place is not None:
            other[i], bits[i] = place, 0
    rows = np.flatnonzero(other >= 0)
    return _pairs(first, second, np.stack([other[rows], rows], 1), bits[rows])


def _pairs(first: Part, second: Part, images: np.ndarray, bits: np.ndarray) -> Pairs:
    """Pairs, the most alike first."""
    same = [first.index.path(a) == second.index.path(b) for a, b in images.tolist()]
    order = np.lexsort((np.arange(len(bits)), bits))
    return Pairs(first, second, images[order], bits[order], np.array(same, bool)[order])


def short_path(path: Path) -> str:
    """A path as it can be shown, from the working directory where it lies below that."""
    return printable(str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path))


def image_of_fault(fault: Fault, sources: Iterable[Source]) -> str:
    """The path of the image that a fault is in; an empty text where there is none, or none can be told."""
    stem, suffix = os.path.splitext(fault.file)
    if suffix.lower() in IMAGE_SUFFIXES:
        return fault.file
    for source in sources:
        if source.annotations is None:
            parts = stem.split(os.sep)
            last = max((i for i, part in enumerate(parts[:-1]) if part == "labels"), default=None)
            stems = [stem] if last is None else [os.sep.join([*parts[:last], "images", *parts[last + 1 :]]), stem]
        elif source.annotations.is_dir():
            stems = [str(source.images / os.path.relpath(stem, source.annotations))]
        elif str(source.annotations) == fault.file:
            name = fault.where.partition(": annotation")[0]
            stems = [os.path.splitext(os.path.join(source.images, name))[0]] if name.strip() else []
        else:
            stems = []
        for one in stems:
            found = [one + end for suffix in IMAGE_SUFFIXES for end in (suffix, suffix.upper())]
            path = next(filter(os.path.isfile, found), None)
            if path is not None:
                return os.path.abspath(path)
    return ""
