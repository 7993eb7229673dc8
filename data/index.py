"""The labels of a whole split in a few flat arrays: a million images cost the same each as a thousand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.cache import cache_root, keep_arrays
from data.config import DataConfig
from data.entries import Block
from data.faults import Fault
from data.formats import iter_split, split_state
from data.growing import Growing
from data.images import IMAGE_SUFFIXES

FORMAT = 3  # part of every cached index's key: raise it when the readers give other arrays
KINDS = {
    "paths": "u1",
    "path_offsets": "i8",
    "sizes": "i4",
    "boxes": "f4",
    "classes": "i4",
    "crowd": "?",
    "areas": "f4",
}
KINDS["offsets"] = "i8"
ARRAYS = tuple(KINDS)
PARTS = {"paths": "names", "path_offsets": "lengths", "offsets": "counts"}  # of a block, where it calls them otherwise


@dataclass(frozen=True, eq=False)
class Index:
    """Images and objects of a split, images in order of their path; the arrays can't be written to.

    root: the folder that the paths are relative to.
    paths: uint8 [P], all paths after one another, UTF-8. path_offsets: int64 [N + 1]. sizes: int32 [N, 2], (w, h) px.
    boxes: float32 [T, 4], corners in pixels of the upright image. classes: int32 [T]. crowd: bool [T].
    areas: float32 [T], square pixels. offsets: int64 [N + 1]: image i has the objects offsets[i] to offsets[i + 1].
    """

    root: str
    paths: np.ndarray
    path_offsets: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        for key in ARRAYS:
            getattr(self, key).flags.writeable = False

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, i: int) -> str:
        """The path of image i relative to the root, with `/`."""
        return os.fsdecode(self.paths[self.path_offsets[i] : self.path_offsets[i + 1]].tobytes())

    def path(self, i: int) -> str:
        return os.path.normpath(os.path.join(self.root, self.name(i)))

    def labels(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(classes int32 [n], boxes float32 [n, 4]) of image i, views."""
        own = slice(self.offsets[i], self.offsets[i + 1])
        return self.classes[own], self.boxes[own]

    @cached_property
    def stored(self) -> str:
        """sha256 over the sizes in bytes of all image files: few are as long as before once their pixels were changed.

        A file that is gone counts as empty.
        """
        sizes = np.zeros(len(self), np.int64)
        for i in range(len(self)):
            with contextlib.suppress(OSError):
                sizes[i] = os.stat(self.path(i)).st_size
        return hashlib.sha256(sizes.data).hexdigest()

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 [N]: the objects of each image; crowds are none."""
        before = np.concatenate([[0], np.cumsum(~self.crowd)])
        return np.diff(before[self.offsets])

    @property
    def objects(self) -> int:
        return int(self.counts.sum())

    @property
    def backgrounds(self) -> int:
        """The number of images without an object."""
        return int((self.counts == 0).sum())

    @cached_property
    def digest(self) -> str:
        """sha256, in hexadecimal, of all that is here but the root: the same data elsewhere has the same."""
        digest = hashlib.sha256()
        for key in ARRAYS:
            array = np.ascontiguousarray(getattr(self, key))
            digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
            digest.update(array.data)
        return digest.hexdigest()


def pack(root: str, blocks: Iterable[Block]) -> Index:
    """Put blocks into an index, one at a time: they aren't kept, and no array is ever there twice."""
    buffers = {key: Growing() for key in ARRAYS}
    ends = {"path_offsets": 0, "offsets": 0}
    for key in ends:
        buffers[key].add(np.zeros(1, np.int64))
    for block in blocks:
        for key, end in ends.items():
            offsets = end + np.cumsum(getattr(block, PARTS[key]), dtype=np.int64)
            buffers[key].add(offsets)
            ends[key] = int(offsets[-1]) if len(offsets) else end
        for key in set(ARRAYS) - set(ends):
            buffers[key].add(np.asarray(getattr(block, PARTS.get(key, key)), KINDS[key]))
    arrays = {key: buffers[key].array(KINDS[key]) for key in ARRAYS}
    arrays |= {"sizes": arrays["sizes"].reshape(-1, 2), "boxes": arrays["boxes"].reshape(-1, 4)}
    return Index(root=root, **arrays)


def build_index(config: DataConfig, split: str, cache: bool = True) -> tuple[Index, list[Fault]]:
    """Read a split's labels, or take what was read the last time if no file has changed since.

    The cached copy lies in our own cache folder, never beside the data.
    What is faulty is left out, and what remains may be nothing.
    Raises `DataError` where the split can't be read at all.
    """
    key = _key(config, split) if cache else ""
    file = _cache_file(config, split)
    kept = _load(file, key, config) if cache else None
    if kept is not None:
        return kept
    faults: list[Fault] = []

    def blocks() -> Iterable[Block]:
        for block in iter_split(config, split):
            faults.extend(block.faults)
            yield block

    index = pack(str(config.root), blocks())
    if cache and all(_watched(fault, config, split) for fault in faults):
        _save(file, key, index, faults)
    return index, faults


def _watched(fault: Fault, config: DataConfig, split: str) -> bool:
    """Would the key change once this fault was mended? A passing failure of a disk leaves no trace in it."""
    if fault.kind != "image-missing":
        return not fault.kind.endswith("-unreadable")
    folders = [source.images for source in config.split(split).sources]
    return fault.file.lower().endswith(IMAGE_SUFFIXES) and any(Path(fault.file).is_relative_to(at) for at in folders)


def _identity(config: DataConfig, split: str) -> str:
    return repr(
        (
            FORMAT,
            str(config.root),
            config.label_names,
            config.single_cls,
            config.keypoints,
            config.max_missing_labels,
            config.split(split).sources,
        )
    )


def _cache_file(config: DataConfig, split: str) -> Path:
    short = hashlib.sha256(f"{config.file} {_identity(config, split)}".encode()).hexdigest()[:12]
    return cache_root() / "index" / f"{config.file.stem}-{split}-{short}.npz"


def _key(config: DataConfig, split: str) -> str:
    """A hash of what the yaml says and of path, size and times of every file that was, or could be, read."""
    digest = hashlib.sha256(_identity(config, split).encode(errors="surrogateescape"))
    for state in split_state(config, split):
        digest.update(b"\0" + state.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _load(file: Path, key: str, config: DataConfig) -> tuple[Index, list[Fault]] | None:
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as data:
            if str(data["key"]) != key:
                return None
            index = Index(root=str(config.root), **{name: data[name] for name in ARRAYS})
            return index, [Fault(*row) for row in json.loads(str(data["faults"]))]
    except Exception:  # none yet, or one damaged in whatever way: what it holds can be read again
        return None


def _save(file: Path, key: str, index: Index, faults: list[Fault]) -> None:
    rows = json.dumps([(fault.file, fault.where, fault.text, fault.kind, fault.stops) for fault in faults])
    arrays = {name: getattr(index, name) for name in ARRAYS}
    keep_arrays(file, key=np.array(key), faults=np.array(rows), **arrays)
