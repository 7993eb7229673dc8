"""All images decoded once, to find damage that header and structure don't show (`--check full`)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np
from tqdm import tqdm

from data.cache import cache_root, decode, file_state
from data.faults import Fault
from data.images import Unreadable, image_headers, read_header
from data.processes import WorkerDied, cores, in_processes

FORMAT = 1  # part of every remembered result: raise it when the checks change
PADDING = 16  # bytes between an image's data and its end mark that some cameras leave

# What the libraries say of a file whose pixels they make up. Others of their words are about colour profiles and tags.
DAMAGE = re.compile(rb"Corrupt JPEG data: .*|Premature end of JPEG file.*|libpng error: .*|TIFF_Error .*")
EXTRA = re.compile(rb"(\d+) extraneous bytes before marker 0xd9")

Finding = tuple[str, str, bool]  # kind, text, stops


def decode_faults(paths: Sequence[str], processes: int = 0, cache: bool = True) -> Iterator[tuple[str, Fault | None]]:
    """Yield (path, what is wrong with the image, or None) for every path, in order.

    All cores decode (or `processes` of them). Sound images are remembered in our cache folder: one of the same path,
    size and times is not decoded again. What can't be decoded is tried anew each time: the memory may have been short.
    On a terminal a bar shows how far it is. Raises `UserError` where a process ends, naming the image.
    """
    memory = _Memory(cache)
    keys = [_key(path) for path in paths]
    sound = memory.recall(keys)
    todo = [i for i in range(len(paths)) if keys[i] not in sound]
    found = in_processes(_Decoder, [paths[i] for i in todo], processes or cores()) if todo else iter(())
    new = set(todo)
    try:
        for i, path in enumerate(tqdm(paths, desc="decoding images", unit="image", disable=None, leave=False)):
            finding = _next(found, path) if i in new else None
            if i in new and finding is None:
                memory.keep(keys[i])
            yield path, Fault(path, "", finding[1], finding[0], finding[2]) if finding else None
    finally:
        memory.write()


def _next(found: Iterator[Finding | None], path: str) -> Finding | None:
    try:
        return next(found)
    except WorkerDied as error:
        raise WorkerDied(path, f"{path}: decoding it ended the process: the memory may be too short") from error


class _Decoder:
    """Decodes in a process of its own, whose stderr goes to a file: libjpeg says there what it makes up."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as said:
            os.dup2(said.fileno(), 2)
        cv2.setNumThreads(0)

    def __call__(self, path: str) -> Finding | None:
        try:
            with image_headers():
                width, height = read_header(path).size
            data = np.fromfile(path, np.uint8)
        except (Unreadable, OSError) as error:
            return getattr(error, "kind", "image-unreadable"), str(error), True
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
        image = decode(data)
        os.lseek(2, 0, os.SEEK_SET)
        said = os.read(2, 4096)
        words = DAMAGE.search(said)
        reason = words[0].decode("ascii", "replace").strip() if words else ""
        if image is None:
            text = f"can't be decoded ({reason or 'OpenCV gives no reason'}): copy, export or download it again"
            return "image-corrupt", text, True
        if image.shape[:2] != (height, width):
            text = f"decodes to {image.shape[1]} x {image.shape[0]} pixels, its header says {width} x {height}"
            return "image-corrupt", f"{text}: export it again", True
        extra = EXTRA.search(said)
        if reason and not (extra and int(extra[1]) <= PADDING):
            return "image-corrupt", f"part of it is made up by the decoder ({reason}): copy or download it again", True
        return None


class _Memory:
    """The images that were sound in earlier runs: a file with a line for each, its key and `ok`."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._file = cache_root() / "decoded.txt"
        self._new: list[str] = []

    def recall(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that are remembered."""
        known = {f"{key} ok\n" for key in keys}
        try:
            with open(self._file, encoding="ascii", errors="replace") as lines:
                return {line.split()[0] for line in lines if line in known} if self._wanted else set()
        except OSError:
            return set()  # none yet

    def keep(self, key: str) -> None:
        self._new.append(f"{key} ok\n")
        if len(self._new) >= 1000:
            self.write()

    def write(self) -> None:
        """Write down what is new."""
        lines, self._new = self._new, []
        if not self._wanted or not lines:
            return
        with contextlib.suppress(OSError):  # what can't be kept is only decoded again
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "ab", buffering=0) as file:  # one write: runs beside each other don't mix
                file.write(("\n" + "".join(lines)).encode())  # the last line may have been cut off


def _key(path: str) -> str:
    """Path, size and times of a file, and what would decode it."""
    name = f"{FORMAT} {cv2.__version__} {os.path.abspath(path)}\0{file_state(path)}"
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=16).hexdigest()
