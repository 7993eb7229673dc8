"""Many images at a time: the images of a split as packed names, and what was read of a stretch of them.

A Python object for each of a million images would take more memory than their labels.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from data.faults import Fault
from data.growing import Growing
from data.labels import Entry, Record, absolute_path

SOME = 4096  # names that are objects of Python at a time


@dataclass(frozen=True)
class Block:
    """Some images and their objects, one after another, and the faults found in reading them.

    names: uint8 [P], the images' paths relative to the root, UTF-8. lengths: int64 [N], of the names.
    sizes: int32 [N, 2], (w, h) px. counts: int64 [N], objects of each image.
    boxes, classes, crowd, areas: of all objects, as in a `Record`. unlabelled: those, of the images and of those that
    were left out, without a label file.
    """

    names: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    faults: list[Fault] = field(default_factory=list)
    unlabelled: list[Entry] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sizes)

    def records(self, root: str | Path) -> Iterator[Record]:
        begin = end = objects = 0
        for length, (width, height), count in zip(self.lengths, self.sizes, self.counts, strict=True):
            end += int(length)
            name = os.fsdecode(self.names[begin:end].tobytes())
            own = slice(objects, objects + int(count))
            begin, objects = end, own.stop
            yield Record(
                Path(absolute_path(name, root)),
                name,
                int(width),
                int(height),
                self.boxes[own],
                self.classes[own],
                self.crowd[own],
                self.areas[own],
            )


def block_of(records: Sequence[Record], faults: Iterable[Fault] = (), unlabelled: Iterable[Entry] = ()) -> Block:
    """Put records into a block."""
    names = [os.fsencode(record.name) for record in records]
    return Block(
        names=np.frombuffer(b"".join(names), np.uint8),
        lengths=np.array([len(name) for name in names], np.int64),
        sizes=np.array([(record.width, record.height) for record in records], np.int32).reshape(-1, 2),
        counts=np.array([len(record.boxes) for record in records], np.int64),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(record.boxes for record in records)]),
        classes=np.concatenate([np.zeros(0, np.int32), *(record.classes for record in records)]),
        crowd=np.concatenate([np.zeros(0, bool), *(record.crowd for record in records)]),
        areas=np.concatenate([np.zeros(0, np.float32), *(record.areas for record in records)]),
        faults=list(faults),
        unlabelled=list(unlabelled),
    )


class Group(Protocol):
    """Images whose entries are made in one way. Pickles."""

    def entry(self, name: str, row: int) -> Entry:
        """The entry of an image by its name, or by its place among those of the group."""


@dataclass(frozen=True)
class Listed:
    """A group whose entries are at hand."""

    entries: Sequence[Entry]

    def entry(self, name: str, row: int) -> Entry:
        return self.entries[row]


class Entries(Sequence[Entry]):
    """The entries of a split by the names of the images; each is made when it is asked for."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.repeated: list[tuple[str, int]] = []  # names that are there several times, and how often
        self._names, self._offsets, self._group, self._row = (np.zeros(0, kind) for kind in ("u1", "i8", "u2", "i4"))
        self._labels = np.zeros(0, np.int64)  # hashes of the paths of label files; 0: not the image's own
        self._growing = [Growing() for _ in range(5)]
        self._growing[1].add(np.zeros(1, np.int64))
        self._previous, self._end, self._ascending = "", 0, True

    def add(self, group: Group, images: Iterable[tuple[str, str]]) -> None:
        """Add images as (name, the path of its labels, empty if it has no file of its own)."""
        names, offsets, groups, rows, labels = self._growing
        place, images = 0, iter(images)
        while some := list(itertools.islice(images, SOME)):
            for name, _ in some:
                self._ascending, self._previous = self._ascending and self._previous < name, name
            encoded = [os.fsencode(name) for name, _ in some]
            ends = self._end + np.cumsum([len(name) for name in encoded], dtype=np.int64)
            self._end = int(ends[-1])
            names.add(b"".join(encoded))
            offsets.add(ends)
            groups.add(np.full(len(some), len(self.groups), np.uint16))
            rows.add(np.arange(place, place + len(some), dtype=np.int32))
            labels.add(np.array([hash(label) if label else 0 for _, label in some], np.int64))
            place += len(some)
        self.groups.append(group)

    def finish(self) -> None:
        """Put the images in the order of their names; call it once, before anything is read."""
        kinds = ("u1", "i8", "u2", "i4", "i8")
        arrays = [growing.array(kind) for growing, kind in zip(self._growing, kinds, strict=True)]
        self._names, self._offsets, self._group, self._row, self._labels = arrays
        self._growing = []
        if not self._ascending:
            self._sort()

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, i: int) -> Entry:  # type: ignore[override]
        return self.groups[self._group[i]].entry(self.name(i), int(self._row[i]))

    def name(self, i: int) -> str:
        return os.fsdecode(self._names[self._offsets[i] : self._offsets[i + 1]].tobytes())

    def names(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The names of images `first` to `last`, after one another, and their lengths."""
        offsets = self._offsets[first : last + 1]
        return self._names[offsets[0] : offsets[-1]], np.diff(offsets)

    def group(self, i: int) -> Group:
        return self.groups[self._group[i]]

    def shared_labels(self) -> Iterator[tuple[str, list[str]]]:
        """Yield label files that are those of several images, with the images' names."""
        ascending = np.sort(self._labels)
        several = np.unique(ascending[1:][(ascending[1:] == ascending[:-1]) & (ascending[1:] != 0)])
        sharing: dict[str, list[str]] = {}
        for i in np.flatnonzero(np.isin(self._labels, several)) if len(several) else ():
            entry = self[int(i)]
            sharing.setdefault(entry.label, []).append(entry.name)
        for label, names in sharing.items():
            if len(set(names)) > 1:
                yield label, list(dict.fromkeys(names))

    def without_images(self, paths: Iterator[str]) -> Iterator[str]:
        """Yield those of some label files that are no image's own."""
        ascending = np.sort(np.append(self._labels, 0))
        while some := list(itertools.islice(paths, SOME)):
            # Of a million paths, two have one hash once in many million data sets.
            hashes = np.fromiter(map(hash, some), np.int64, len(some))
            places = np.searchsorted(ascending[:-1], hashes)
            yield from (some[i] for i in np.flatnonzero(ascending[places] != hashes))

    def _sort(self) -> None:
        names = [self.name(i) for i in range(len(self))]
        order = sorted(range(len(names)), key=names.__getitem__)
        counts: dict[int, int] = {}  # by the first of them, as the sources give them
        first = order[0]
        for i in order:
            first = first if names[first] == names[i] else i
            counts[first] = counts.get(first, 0) + 1
        self.repeated = [(names[i], counts[i]) for i in sorted(counts) if counts[i] > 1]
        encoded = [os.fsencode(names[i]) for i in order]
        self._names = np.frombuffer(b"".join(encoded), np.uint8)
        self._offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._group, self._row, self._labels = self._group[order], self._row[order], self._labels[order]
