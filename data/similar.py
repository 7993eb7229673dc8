"""Images that look alike: a 64-bit perceptual hash of each, and who has a near-duplicate where.

The hash says in which of the lowest 8 x 8 frequencies an image is strong (a discrete cosine transform of its 32 x 32
grey miniature, against the median of them): it hardly changes with the image's size, compression, brightness or
contrast, and is another for an image that is cropped, turned or mirrored. What agrees in hash is compared once more as
a 16 x 16 picture, so that two skies don't pass for one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data.cache import cache_root, file_state, keep_arrays
from data.index import Index
from data.processes import cores
from data.thumbnails import decode, shrink_for
from utils.errors import UserError

FORMAT = 1  # part of every kept hash's key: raise it when `look` gives other numbers
MINIATURE, LOW, LOOK = 32, 8, 16
LEAST_SIDE = 64  # px: what an image is decoded to at least
FLAT = 2.0  # grey levels that a miniature varies by: less is one colour, and its hash is noise
# Rescaling, JPEG and brightness change up to 8 bits, a crop by 2 % up to 10; different images of BCCD and of `shapes`
# differ in 12 and more, and their looks correlate by 0.74 at most.
MAX_DISTANCE, MIN_CORRELATION = 10, 0.9
TRIES = 16  # candidates of an image that are compared closely
BLOCK = 1 << 20  # pairs compared at a time
THREADS = 16


@dataclass(frozen=True, eq=False)
class Looks:
    """What the images of a split look like.

    hashes: uint64 [N]. looks: int8 [N, 256], 16 x 16 pixels of mean 0. flat: bool [N], one colour.
    unreadable: image -> why it can't be decoded.
    """

    hashes: np.ndarray
    looks: np.ndarray
    flat: np.ndarray
    unreadable: dict[int, str]

    @property
    def usable(self) -> np.ndarray:
        """bool [N]: the image can be compared."""
        usable = ~self.flat
        usable[list(self.unreadable)] = False
        return usable


def look(grey: np.ndarray) -> tuple[int, np.ndarray, bool]:
    """Return (hash, look int8 [256], whether it is of one colour) of a grey image, uint8 `[h, w]`."""
    small = min(grey.shape) < MINIATURE
    way = cv2.INTER_LINEAR if small else cv2.INTER_AREA
    miniature = cv2.resize(grey, (MINIATURE, MINIATURE), interpolation=way).astype(np.float32)
    waves = cv2.dct(miniature)[:LOW, :LOW].ravel()
    waves[0] = 0  # the mean: brightness
    bits = waves > np.median(waves[1:])
    picture = cv2.resize(miniature, (LOOK, LOOK), interpolation=cv2.INTER_AREA).ravel()
    picture -= picture.mean()
    length = float(np.linalg.norm(picture))
    picture *= 127 / max(float(np.abs(picture).max()), 1e-6)
    flat = length / LOOK < FLAT
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), np.rint(picture).astype(np.int8), flat


def look_at(index: Index, label: str = "images", cache: bool = True) -> Looks:
    """Hash every image of an index, in threads; what was hashed before and has not changed is taken from our cache."""
    keys = np.fromiter((_key(index.path(i)) for i in range(len(index))), np.uint64, len(index))
    file = _cache_file(index)
    hashes, looks, flat, known = _take(file, keys) if cache else _nothing(len(index))
    unreadable: dict[int, str] = {}

    def read(i: int) -> None:
        try:
            grey = decode(index.path(i), shrink_for(*index.sizes[i].tolist(), LEAST_SIDE), grey=True)
        except UserError as error:
            unreadable[i] = str(error)
        else:
            hashes[i], looks[i], flat[i] = look(grey)
            known[i] = True

    new = np.flatnonzero(~known).tolist()
    try:
        with ThreadPoolExecutor(min(THREADS, cores())) as pool:
            for _ in tqdm(_bounded(pool, read, new), f"looking at {label}", len(new), disable=None, leave=False):
                pass
    finally:  # also of a look that was interrupted
        if cache and new:
            _save(file, keys, hashes, looks, flat, known)
    return Looks(hashes, looks, flat, dict(sorted(unreadable.items())))


def _bounded(pool: ThreadPoolExecutor, function, items: list[int], chunk: int = 512) -> Iterable[None]:
    """As `pool.map`, a part of the items at a time: an interrupt need not wait for all of them."""
    for first in range(0, len(items), chunk):
        yield from pool.map(function, items[first : first + chunk])


def nearest(queries: Looks, others: Looks | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Find for every query the image of `others` that looks most alike; None: of the queries, itself left out.

    Returns (int64 [N], the image's number or -1 where none is near; uint8 [N], the bits that differ).
    Every pair of hashes is compared: the time grows as N x M, the memory does not.
    """
    same, others = others is None, queries if others is None else others
    found = np.full(len(queries.hashes), -1, np.int64)
    bits = np.full(len(queries.hashes), 255, np.uint8)
    places = np.flatnonzero(others.usable)
    hashes = others.hashes[places]
    mine = np.flatnonzero(queries.usable)
    step = max(BLOCK // max(len(places), 1), 1)
    for first in range(0, len(mine) if len(places) else 0, step):
        rows = mine[first : first + step]
        distance = popcount(queries.hashes[rows, None] ^ hashes[None])
        if same:
            distance[np.arange(len(rows)), np.arange(first, first + len(rows))] = 255
        _closest(distance, rows, places, queries.looks, others.looks, found, bits)
    return found, bits


def _closest(
    distance: np.ndarray,
    rows: np.ndarray,
    places: np.ndarray,
    looks: np.ndarray,
    others: np.ndarray,
    found: np.ndarray,
    bits: np.ndarray,
) -> None:
    """Take for each row the nearest hash whose look agrees too, trying the nearest ones in turn."""
    open_rows = np.arange(len(rows))
    for _ in range(TRIES):
        best = distance[open_rows].argmin(1)
        near = distance[open_rows, best] <= MAX_DISTANCE
        open_rows, best = open_rows[near], best[near]
        if not len(open_rows):
            return
        agrees = correlation(looks[rows[open_rows]], others[places[best]]) >= MIN_CORRELATION
        found[rows[open_rows[agrees]]] = places[best[agrees]]
        bits[rows[open_rows[agrees]]] = distance[open_rows[agrees], best[agrees]]
        open_rows, best = open_rows[~agrees], best[~agrees]
        distance[open_rows, best] = 255


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of looks, row by row: int8 `[K, 256]` twice, float32 `[K]`."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-6)


_BITS = np.array([bin(i).count("1") for i in range(1 << 16)], np.uint8)


def popcount(words: np.ndarray) -> np.ndarray:
    """The bits that are set in each uint64: uint8, of the same shape."""
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(words)
    return _BITS[words.view(np.uint16).reshape(*words.shape, 4)].sum(-1, dtype=np.uint8)


# ------------------------------------------------------------------------------------------------ cache


def _key(path: str) -> int:
    """64 bits of the file's path, size and times."""
    text = os.fsencode(f"{FORMAT} {os.path.abspath(path)}\0{file_state(path)}")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _cache_file(index: Index) -> Path:
    names = hashlib.sha256(os.fsencode(index.root) + index.paths.tobytes()).hexdigest()[:24]
    return cache_root() / "similar" / f"{names}.npz"


def _nothing(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.zeros(count, np.uint64),
        np.zeros((count, LOOK * LOOK), np.int8),
        np.zeros(count, bool),
        np.zeros(count, bool),
    )


def _take(file: Path, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(hashes, looks, flat, known bool [N]) of the images whose key is in the cache."""
    hashes, looks, flat, known = _nothing(len(keys))
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as data:
            old = {name: data[name] for name in ("keys", "hashes", "looks", "flat")}
        if not len(old["keys"]):
            return hashes, looks, flat, known
        place = np.searchsorted(old["keys"], keys).clip(0, len(old["keys"]) - 1)
        known = old["keys"][place] == keys
        hashes[known], looks[known] = old["hashes"][place[known]], old["looks"][place[known]]
        flat[known] = old["flat"][place[known]]
    except Exception:  # none yet, or one damaged in whatever way: the images are still there
        return _nothing(len(keys))
    return hashes, looks, flat, known


def _save(
    file: Path, keys: np.ndarray, hashes: np.ndarray, looks: np.ndarray, flat: np.ndarray, known: np.ndarray
) -> None:
    order = np.flatnonzero(known)[np.argsort(keys[known], kind="stable")]
    keep_arrays(file, keys=keys[order], hashes=hashes[order], looks=looks[order], flat=flat[order])
