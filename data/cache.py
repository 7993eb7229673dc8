"""Decoded images: how one is read, and how all of them are kept so that no epoch after the first decodes again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from data.images import MAX_SIDE, TURNED, Header, known_header
from data.memory import memory_file
from data.processes import cores
from utils import dist
from utils.errors import UserError, many

# OpenCV runs in the thread that calls it: parallel loading comes from workers, and in the trainer's own process a
# second pool of threads would fight OpenMP's for the cores.
cv2.setNumThreads(0)

CACHE_MODES = ("ram", "disk")
FORMAT = 3  # part of every cache file's key: raise it when load_image gives other pixels
RGB = cv2.IMREAD_COLOR_RGB
REDUCED = {  # OpenCV calls them after greys; with the flag of RGB they are in colour
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | RGB,
}
MUCH = 256e6  # bytes of images that take so long to decode that it is said before
CHUNK = 2048  # images given to the decoding threads at a time


class ImageList(Protocol):
    """What the cache needs of an index."""

    sizes: np.ndarray  # int32 [N, 2]: width, height of the upright image

    def __len__(self) -> int: ...

    def path(self, i: int) -> str: ...


def cache_root() -> Path:
    """The folder of everything that we keep between runs: `$LOCKSTEP_CACHE`, else `~/.cache/lockstep`."""
    try:
        return Path(os.environ.get("LOCKSTEP_CACHE") or Path.home() / ".cache" / "lockstep")
    except RuntimeError:  # a user without a home
        raise UserError("there is no home folder to keep caches in: name one, as LOCKSTEP_CACHE=FOLDER") from None


def file_state(path: str | os.PathLike[str]) -> str:
    """What `change_marks` says of a file; `absent` where there is none."""
    try:
        return change_marks(os.stat(path))
    except OSError:
        return "absent"


def change_marks(stat: os.stat_result) -> str:
    """Size and times of a file, by which a change of it is known.

    The time of the last change to its contents is what whoever wrote it says, and archives often say the same of all
    files; that of the last change to the file is the file system's.
    """
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def keep_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Write arrays below `cache_root()`, whole or not at all; what can't be written is made anew the next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".part")
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as target:
            np.savez(target, **arrays)
        os.replace(temporary, file)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


def resized_sizes(sizes: np.ndarray, imgsz: int) -> np.ndarray:
    """Width and height `[..., 2]` once the long side is `imgsz`: exact integers, halves rounded up, at least 1 px."""
    sizes = np.asarray(sizes, np.int64)
    return np.maximum(_resized(sizes, sizes.max(-1, keepdims=True), imgsz), 1)


def resized_size(width: int, height: int, imgsz: int) -> tuple[int, int]:
    """As `resized_sizes`, of one image, in a tenth of the time."""
    longest = max(width, height)
    return max(_resized(width, longest, imgsz), 1), max(_resized(height, longest, imgsz), 1)


def _resized(side: Any, longest: Any, imgsz: int) -> Any:
    return (2 * side * imgsz + longest) // (2 * longest)


def load_image(path: str | os.PathLike[str], imgsz: int) -> np.ndarray:
    """Read an image (the first frame), upright by its EXIF tag, with its long side resized to `imgsz`.

    Grey, 16-bit, palette, alpha and CMYK become RGB. Returns uint8 `[h, w, 3]`. Raises `UserError` naming the file
    where it can't be read as an image.
    """
    return resize_long_side(read_image(path, partial(decode, imgsz=imgsz)), imgsz)


def read_image(path: str | os.PathLike[str], decoder: Callable[[np.ndarray], np.ndarray | None]) -> np.ndarray:
    """Read a file and decode its bytes; `UserError` naming the file where either can't be done."""
    try:
        with open(path, "rb", buffering=0) as file:  # not cv2.imread: it can't open every file name on every system
            data = np.frombuffer(file.read(), np.uint8)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from None
    image = decoder(data)
    if image is None:
        raise UserError(f"{path}: not an image that OpenCV can decode ({data.size} bytes)")
    return image


def decode(data: np.ndarray, imgsz: int = MAX_SIDE) -> np.ndarray | None:
    """Decode a file's bytes, uint8 `[N]`, upright; uint8 `[h, w, 3]`, RGB, or None where OpenCV can't.

    A JPEG comes at a fraction of its size where that is simple and its long side stays `imgsz` at least.
    """
    header = known_header(data)
    return decode_upright(data, RGB if header is None else _reduced(header, imgsz), header)


def decode_upright(data: np.ndarray, flag: int, header: Header | None) -> np.ndarray | None:
    """Decode a file's bytes, uint8 `[N]`, with one of OpenCV's flags; None where it can't. header: `known_header`."""
    # OpenCV's versions differ in what they make of an odd EXIF block. Read by us, it turns the pixels as it turned the
    # size that the labels were read for. TIFFs are turned by OpenCV, see `read_header`.
    if data[:2].tobytes() not in (b"II", b"MM"):
        flag |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(data, flag) if data.size else None
    except cv2.error:
        image = None
    if image is None or header is None or header.orientation == 1:
        return image
    if header.orientation in TURNED:
        image = cv2.transpose(image)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(header.orientation)
    return image if flip is None else cv2.flip(image, flip)


def _reduced(header: Header, imgsz: int) -> int:
    """OpenCV's flag to decode a JPEG at 1/8, 1/4 or 1/2 where that is still as large as asked for: half the time.

    The inverse transform of a block at a lower frequency is the mean over its pixels, as in a resize by area. Only
    where both sides are multiples of the divisor: else the last column would stand for fewer pixels than the others.
    """
    if header.kind == "JPEG":
        for divisor, flag in REDUCED.items():
            if max(header.size) >= divisor * imgsz and not (header.width % divisor or header.height % divisor):
                return flag
    return RGB


def resize_long_side(image: np.ndarray, imgsz: int) -> np.ndarray:
    """Resize uint8 `[H, W, 3]` so that its long side is `imgsz`: by area when shrinking, bilinear when growing."""
    height, width = image.shape[:2]
    size = resized_size(width, height, imgsz)
    if size == (width, height):
        return image
    shrinks = max(width, height) > imgsz
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def load_indexed(images: ImageList, i: int, imgsz: int) -> np.ndarray:
    """`load_image` of image `i` of an index; `UserError` where its shape isn't the one that the index knows."""
    try:
        image = load_image(images.path(i), imgsz)
    except UserError as error:
        raise UserError(f"{error}; --check full finds all such images, and with --skip-bad leaves them out") from None
    wide, high = images.sizes[i].tolist()
    if image.shape[1::-1] != resized_size(wide, high, imgsz):
        raise UserError(f"{images.path(i)}: the image changed: its labels were read for one of {wide}×{high} pixels")
    return image


class ImageCache:
    """All images of an index as `load_image` gives them, in one mapped file that every process shares.

    `cache[i]` is a read-only uint8 `[h, w, 3]` view. What is pickled for a worker is the file's path, never pixels.
    """

    def __init__(self, path: str, sizes: np.ndarray) -> None:
        """`path`: the file; `sizes`: int `[N, 2]`, width and height of the kept images."""
        self.path = path
        self._sizes = sizes
        self._offsets = _offsets(sizes)
        self._bytes = _map(path, "r")

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, i: int) -> np.ndarray:
        width, height = self._sizes[i]
        return self._bytes[self._offsets[i] : self._offsets[i + 1]].reshape(height, width, 3)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "sizes": self._sizes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def build_cache(images: ImageList, imgsz: int, mode: str) -> ImageCache:
    """Decode all images once, into memory (`ram`) or into a file under `cache_root()` (`disk`).

    The file is taken again by the next run that asks for the same images at the same size. Where several processes of a
    machine train, the first of them makes it and the others map it; all of them call this at the same moment.
    Raises `UserError`, in all of them, where memory or disk is too short, or an image can't be read.
    """
    if mode not in CACHE_MODES:
        raise ValueError(f"cache mode {mode!r} is none of {CACHE_MODES}")
    sizes, made, found = resized_sizes(images.sizes, imgsz), None, ""
    if dist.is_first_here():
        try:
            made = _ram_cache(images, imgsz, sizes) if mode == "ram" else _disk_cache(images, imgsz, sizes)
            found = made.path
        except UserError as error:
            found = error
    found = dist.from_first_here(found)
    if isinstance(found, UserError):
        raise found
    return made or ImageCache(found, sizes)


def _ram_cache(images: ImageList, imgsz: int, sizes: np.ndarray) -> ImageCache:
    size = int(_offsets(sizes)[-1])
    free = available_memory()
    if free is not None and size > 0.9 * free:
        raise UserError(
            f"--cache ram: {len(images)} images need {_in_words(size)} of memory, {_in_words(free)} are free: "
            "use --cache disk, a smaller --imgsz, or no --cache"
        )
    path, release = memory_file(size)
    try:
        _fill(images, imgsz, path, sizes, "memory")
        cache = ImageCache(path, sizes)
    except BaseException:
        release()
        raise
    weakref.finalize(cache, release)
    return cache


def _disk_cache(images: ImageList, imgsz: int, sizes: np.ndarray) -> ImageCache:
    folder = cache_root() / "images"
    path = folder / f"{_cache_key(images, imgsz)}.rgb"
    size = int(_offsets(sizes)[-1])
    if path.is_file() and path.stat().st_size == max(size, 1):
        print(f"image cache: {many(len(images), 'image')}, {_in_words(size)}, reused from {path}", flush=True)
        return ImageCache(str(path), sizes)
    partial = folder / f"{path.name}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if size > 0.98 * free:
            raise UserError(
                f"--cache disk: {len(images)} images need {_in_words(size)} in {folder}, {_in_words(free)} are free: "
                "set LOCKSTEP_CACHE to a folder with room, use a smaller --imgsz, or no --cache"
            )
        _reserve(partial, max(size, 1))
        _fill(images, imgsz, str(partial), sizes, str(folder))
        os.replace(partial, path)  # another run that asked for the same cache wrote the same bytes
    except OSError as error:
        raise UserError(f"--cache disk: can't write {folder}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()  # nothing to remove once it has its name
    return ImageCache(str(path), sizes)


def _fill(images: ImageList, imgsz: int, path: str, sizes: np.ndarray, where: str) -> None:
    """Decode every image into the file's place for it, on all cores that this process may use."""
    offsets = _offsets(sizes)
    what = f"{many(len(images), 'image')}, {_in_words(offsets[-1])}"
    if offsets[-1] > MUCH:
        print(f"image cache: decoding {what}, into {where}", flush=True)
    begin = time.perf_counter()
    block = _map(path, "r+")

    def load(i: int) -> None:
        block[offsets[i] : offsets[i + 1]] = load_indexed(images, i, imgsz).reshape(-1)

    with ThreadPoolExecutor(min(cores(), 16)) as pool:
        for first in range(0, len(images), CHUNK):
            for _ in pool.map(load, range(first, min(first + CHUNK, len(images)))):
                pass
    if isinstance(block.base, np.memmap):
        block.base.flush()
    print(f"image cache: {what}, decoded into {where} in {time.perf_counter() - begin:.1f} s", flush=True)


def _cache_key(images: ImageList, imgsz: int) -> str:
    """The image size and every file's path, size and times: an edited image is another cache, an edited label isn't."""
    digest = hashlib.sha256(f"{FORMAT} {cv2.__version__} {imgsz}".encode())
    for i in range(len(images)):
        path = images.path(i)
        try:
            marks = change_marks(os.stat(path))
        except OSError as error:
            raise UserError(f"{path}: can't be read: {error.strerror or error}") from None
        digest.update(f"\0{os.path.abspath(path)}\0{marks}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _reserve(path: Path, size: int) -> None:
    """Make a file with its blocks reserved: to write through a map when the disk is full would be a bus error."""
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _map(path: str, mode: str) -> np.ndarray:
    return np.asarray(np.memmap(path, np.uint8, mode))  # a plain array: slicing a memmap object is slow


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(3 * sizes[:, 0] * sizes[:, 1])])


def _in_words(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def available_memory() -> int | None:
    """Bytes that can be taken without swapping, within the control group's limit; None where that isn't known."""
    return min(_memory_limits(), default=None)


def _memory_limits() -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        limit = int((group / "memory.max").read_text())  # "max" where there is none: a ValueError
        lines = (group / "memory.stat").read_text().splitlines()
        reclaimable = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        yield limit - int((group / "memory.current").read_text()) + reclaimable


AUTO_SHARE = 0.1  # of the free memory that is taken unasked


def auto_cache(images: Sequence[ImageList], imgsz: int) -> str | None:
    """Return 'ram' where all decoded images together take less than a tenth of the free memory, else None."""
    size = sum(int(_offsets(resized_sizes(one.sizes, imgsz))[-1]) for one in images)
    free = available_memory()
    return "ram" if free is not None and size < AUTO_SHARE * free else None
