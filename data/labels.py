"""What the readers of all label formats share: records, the checks of boxes, folders and lists."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.faults import DataError, Fault
from utils.errors import suggest

SMALL_OVERHANG = 1.0  # px: a box that leaves the image by less is clipped without a word (rounding)
MOST = 0.5  # share of its area that a box must have inside the image
MAX_LABEL_BYTES = 64 << 20  # of a txt or XML file: a million polygon points have less


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
    """The objects of an image before their boxes are checked; `numbers` are what a fault calls them by."""

    boxes: np.ndarray  # float64 [N, 4]
    classes: np.ndarray  # int [N]
    crowd: np.ndarray  # bool [N]
    areas: np.ndarray  # float64 [N], NaN: that of the box
    numbers: Sequence[Any]


Say = Callable[[str, str, str], None]  # (kind, where, text) of a fault in the labels of an image


class Entry(NamedTuple):
    """An image, the file of its labels, what that file calls an object, and how it is read.

    read(label, width, height, say): calls `say` for an object that it leaves out.
    labelled: there is something at the label's path.
    """

    name: str
    image: str
    label: str
    unit: str
    read: Callable[[str, int, int, Say], Objects]
    labelled: bool = True


class BadLabels(Exception):
    """The labels of an image can't be had as a whole, so that the image is left out."""

    def __init__(self, kind: str, file: str, where: str, text: str) -> None:
        super().__init__(text)
        self.fault = Fault.of(kind, file, where, text)


def read_label(path: str) -> bytes | None:
    """The content of a label file; None where there is none. Raises `BadLabels`."""
    try:
        state = os.stat(path)
        if stat.S_ISDIR(state.st_mode):
            raise BadLabels("label-folder", path, "", "a folder, where a label file should be: move it away")
        if not stat.S_ISREG(state.st_mode):  # a pipe would wait for ever
            raise BadLabels(
                "label-unreadable", path, "", "a pipe or a device, where a label file should be: move it away"
            )
        if state.st_size > MAX_LABEL_BYTES:
            size = f"{state.st_size / 1e6:,.0f} MB, where an image's labels have at most {MAX_LABEL_BYTES / 1e6:.0f}"
            raise BadLabels("label-too-large", path, "", f"{size}: put back the labels")
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            text = f"a link to {os.readlink(path)}, which isn't there: put the file there, or take the link away"
            raise BadLabels("label-link", path, "", text) from None
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            text = "a link that leads back to itself: put a file in its place"
            raise BadLabels("label-link", path, "", text) from None
        text = f"can't be read ({error.strerror or error}): check its permissions and the disk"
        raise BadLabels("label-unreadable", path, "", text) from None


def check_boxes(
    objects: Objects, width: int, height: int, unit: str, say: Say
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clip boxes to the image and leave out faulty ones: (kept bool [N], boxes float32 [M, 4], areas float32 [M]).

    unit: what the label file calls an object.
    """
    raw = objects.boxes.reshape(-1, 4)
    with np.errstate(invalid="ignore", over="ignore"):
        # + 0.0: no negative zeros, which equal zero but are other bytes
        boxes = np.clip(raw, 0.0, np.array([width, height, width, height], np.float64)) + 0.0
        overhang = np.abs(raw - boxes).max(1, initial=0.0)
        solid = (boxes[:, 2:].astype(np.float32) > boxes[:, :2].astype(np.float32)).all(1) & np.isfinite(raw).all(1)
        own = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        whole = (raw[:, 2] - raw[:, 0]) * (raw[:, 3] - raw[:, 1])
        leaves = ~(overhang < SMALL_OVERHANG)
        keep = solid & ~(leaves & (own < MOST * whole))
        given = objects.areas > 0  # not so for NaN
        # A mask that was cut with its box can't be larger than what is left of the box.
        areas = np.where(given, np.where(overhang > 0, np.minimum(objects.areas, own), objects.areas), own)
    for i in np.flatnonzero(~keep | leaves):
        share = own[i] / whole[i] if solid[i] else 0.0
        kind, text = _box_fault(raw[i], bool(keep[i]), share, width, height)
        say(kind, f"{unit} {objects.numbers[i]}", text)
    for i, first in _repeated(objects, raw, keep):
        what = f"the same class and box as {unit.split(': ')[-1]} {objects.numbers[first]}: dropped"
        say("box-twice", f"{unit} {objects.numbers[i]}", what)
        keep[i] = False
    return keep, boxes[keep].astype(np.float32), areas[keep].astype(np.float32)


def _box_fault(box: np.ndarray, kept: bool, share: float, width: int, height: int) -> tuple[str, str]:
    """(kind, text) of what is wrong with a box that is cut or left out. share: of its area that lies in the image."""
    text = "box ({:.6g}, {:.6g}, {:.6g}, {:.6g})".format(*box)
    image = f"the {width} x {height} image"
    if kept:
        return "box-clipped", f"{text} leaves {image}, with {1 - share:.0%} of its area: clipped to it"
    if not np.isfinite(box).all():
        return "box-not-finite", f"{text} isn't finite: correct it, or take it out"
    if share > 0:
        return "box-mostly-outside", f"{text} has only {share:.0%} of its area inside {image}: correct it"
    if (box[2:] > box[:2]).all() and ((box[2:] <= 0) | (box[:2] >= (width, height))).any():
        return "box-outside", f"{text} is outside {image}: correct it; are these the labels of another image?"
    return "box-no-area", f"{text} has no area: dropped"


def _repeated(objects: Objects, raw: np.ndarray, keep: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (place of an object, that of the first like it) for kept objects of the same class, box and crowd."""
    if len(raw) < 2:
        return
    seen: dict[tuple[Any, ...], int] = {}
    for i, key in enumerate(zip(*raw.T.tolist(), objects.classes.tolist(), objects.crowd.tolist(), strict=True)):
        if keep[i] and (first := seen.setdefault(key, i)) != i:
            yield i, first


def size_differs(stated: Sequence[Any], width: int, height: int) -> str:
    """What to say where labels were made for an image of another size; no size, or zeros, say nothing."""
    try:
        wide, high = (float(value) for value in stated)
    except (TypeError, ValueError, OverflowError):
        return ""
    if not min(wide, high) > 0 or (wide, high) == (width, height):
        return ""
    turned = " (as before a turn by its EXIF tag)" if (wide, high) == (height, width) else ""
    made = f"the labels were made for {wide:g} x {high:g} pixels, the image has {width} x {height}{turned}"
    return f"{made}: put back the image they belong to, or scale the boxes and correct the size"


def walk(folder: str | Path, suffixes: Sequence[str], folder_suffixes: Sequence[str] = ()) -> Iterator[str]:
    """Yield the files below `folder` with one of the suffixes, in a fixed order, hidden ones left out.

    Folders too, that have one of `folder_suffixes`; what is in them is searched all the same.
    """

    def refuse(error: OSError) -> None:
        text = f"can't be searched ({error.strerror}): check its permissions"
        raise DataError(Fault.of("folder-unreadable", str(error.filename), "", text))

    seen: set[str] = set()
    for directory, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # a link that leads round in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in folders if folder_suffixes else ():
            if name.lower().endswith(tuple(folder_suffixes)):
                yield os.path.join(directory, name)
        for name in sorted(files):
            if name.lower().endswith(tuple(suffixes)) and not name.startswith("."):
                yield os.path.join(directory, name)


def relative_name(image: str, root: Path) -> str:
    """An image's path relative to `root`, with `/`."""
    try:
        name = os.path.relpath(image, root)
    except ValueError:  # on another Windows drive
        name = image
    return name.replace(os.sep, "/")


def absolute_path(name: str, root: str | Path) -> str:
    """The path of an image by its name, as `relative_name` gives it."""
    return os.path.normpath(os.path.join(root, name))


def read_lines(path: str | Path) -> list[str]:
    """The stripped lines of a list the user named; `DataError` where it can't be read."""
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        text = "not text in UTF-8: save it as UTF-8, a line for each image"
    except OSError as error:
        text = f"can't be read ({error.strerror or error}): check its permissions"
    raise DataError(Fault.of("list-unreadable", str(path), "", text))


def pick(lists: Iterable[Path], images: Iterable[str]) -> tuple[list[str], list[Fault]]:
    """The images that the lists name, by file name or by name without its suffix."""
    called: dict[str, list[str]] = {}
    for name in sorted(images):
        plain = name.replace(os.sep, "/")
        for word in {plain, os.path.splitext(plain)[0]}:
            called.setdefault(word, []).append(name)
    picked, faults = [], []
    for path in lists:
        for number, line in enumerate(read_lines(path), 1):
            found = called.get(line.removeprefix("./"), [])
            picked += found[:1]
            where = f"line {number}"
            if line and not found:
                text = f"no image is called '{line[:200]}': put it there, or take the line out"
                faults.append(Fault.of("list-image-missing", str(path), where, text))
            elif len(found) > 1:
                text = f"'{line}' names {len(found)} images ({', '.join(found)}): write which one, with its suffix"
                faults.append(Fault.of("list-name-unclear", str(path), where, text))
    return picked, faults


def refuse_shares(boxes: np.ndarray, label: str, where: str) -> None:
    """Raise `BadLabels` where boxes float64 [N, 4], to be corners in pixels, can only be shares of the image."""
    if len(boxes) and 0 < boxes.max() <= 1 and (boxes % 1 != 0).any():
        text = "no coordinate is above 1, as of shares of the image: multiply each x by its width, each y by its height"
        raise BadLabels("box-shares", label, where, text)


def label_alone(path: str) -> Fault:
    """The fault of a label file that no image has."""
    suffix = os.path.splitext(path)[1]
    small = suffix.lower()
    hint = f"write its suffix as {small}" if suffix != small else "put the image there, or take the labels out"
    return Fault.of("label-no-image", path, "", f"no image has the name of these labels: {hint}")


def nearest(name: str, names: Iterable[str]) -> str:
    """Name the class that is spelled like `name`, or how else to mend an unknown one."""
    other = {known.casefold(): known for known in names}
    if name.casefold() in other:
        return f"; did you mean '{other[name.casefold()]}'?"
    return suggest(name, other.values()) or "; add it to `names` in the data yaml, or take it out"


def shorten(value: object, limit: int = 60) -> str:
    """A value of the user's as a message repeats it."""
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
