"""YOLO label files: a txt file an image, a row an object, in shares of the image."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.config import DataConfig, Source
from data.entries import Entries
from data.faults import DataError, Fault
from data.images import IMAGE_SUFFIXES
from data.labels import (
    BadLabels,
    Entry,
    Objects,
    Say,
    absolute_path,
    label_alone,
    read_label,
    read_lines,
    relative_name,
    shorten,
    walk,
)
from utils.errors import many

SNAP = 256  # steps a pixel that rounded shares are put back on: exact for 6 decimals up to 2,600 px
PIXELS = 2.0  # a share of more is none
NOTES = ("classes.txt",)  # what labelling tools leave beside the labels
MAX_NOTE = 1 << 20  # characters of it that are read


class _RowFault(Exception):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def label_paths(image: str) -> list[str]:
    """Where the labels of an image may be: `labels` for the last `images` in its path, else beside it."""
    stem = os.path.splitext(image)[0]
    parts = stem.split(os.sep)
    beside = f"{stem}.txt"
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            return [os.sep.join([*parts[:i], "labels", *parts[i + 1 :]]) + ".txt", beside]
    return [beside]


def label_folder(images: Path) -> Path:
    """Where the labels of a folder of images are, or would be."""
    return Path(label_paths(str(images / "image.jpg"))[0]).parent


def labels_in(folder: Path) -> Iterator[str]:
    """Yield the files of a folder that may be labels."""
    if folder.is_dir():
        yield from (path for path in walk(folder, (".txt",)) if os.path.basename(path) not in NOTES)


@dataclass(frozen=True)
class YoloImages:
    """The images of YOLO sources, by their names."""

    config: DataConfig

    def entry(self, name: str, row: int) -> Entry:
        image = absolute_path(name, self.config.root)
        labels = label_paths(image)
        # A folder or a broken link of that name is a fault, which the reader names.
        label = next(filter(os.path.isfile, labels), None) or next(filter(os.path.lexists, labels), None)
        read = partial(read_yolo, config=self.config)
        return Entry(name, image, label or labels[0], "line", read, label is not None)


def yolo_names(source: Source, config: DataConfig, faults: list[Fault]) -> Iterator[tuple[str, str]]:
    """Yield name and label file (the first place for it) of every image of a source. Raises `DataError`."""
    images = yolo_images(source, config.root, faults)
    folder = prefix = labels = ""
    for image in images:
        own, _, file = image.rpartition(os.sep)
        if own != folder:
            folder = own
            prefix = relative_name(os.path.join(folder, "x"), config.root)[:-1]
            labels = label_paths(os.path.join(folder, "x.jpg"))[0][: -len("x.txt")]
        yield prefix + file, f"{labels}{os.path.splitext(file)[0]}.txt"


def yolo_images(source: Source, root: Path, faults: list[Fault]) -> Iterator[str]:
    """Yield the images of a folder, or those that a txt file lists."""
    if source.images.is_dir():
        yield from walk(source.images, IMAGE_SUFFIXES)
        return
    if source.images.suffix.lower() != ".txt":
        hint = "; a COCO json is given as {images: FOLDER, annotations: FILE.json}" * (source.images.suffix == ".json")
        text = f"neither a folder of images nor a txt list of them{hint}"
        raise DataError(Fault.of("yaml-split-path", str(source.images), "", text))
    for number, line in enumerate(read_lines(source.images), 1):
        if not line:
            continue
        bases = [source.images.parent, root] if line.startswith("./") else [root, source.images.parent, Path.cwd()]
        tried = [os.path.abspath(base / line) for base in bases]
        found = next((path for path in tried if os.path.isfile(path)), None)
        if found is None and line.startswith("data/"):  # CVAT writes that before paths in the set
            inside = [os.path.abspath(base / line.removeprefix("data/")) for base in bases]
            found, tried = next((path for path in inside if os.path.isfile(path)), None), tried + inside
        if found is None:
            places = shorten(", ".join(dict.fromkeys(tried)), 400)
            text = f"no such image: {shorten(line, 200)} (tried {places}): put it there, or take the line out"
            faults.append(Fault.of("list-image-missing", str(source.images), f"line {number}", text))
        else:
            yield found


def labels_alone(images: Path, entries: Entries) -> list[Fault]:
    """Label files of a folder that no image has."""
    folder = label_folder(images)
    faults = [_label_alone(path) for path in entries.without_images(labels_in(folder)) if os.path.isfile(path)]
    # Beside images, notes are nothing to speak of.
    return [fault for fault in faults if fault.stops] if folder == images else faults


def other_names(images: Path, names: Sequence[str]) -> Iterator[Fault]:
    """What labelling tools wrote beside the labels, or above them, where it calls a class otherwise than `names`.

    A list of other classes altogether says nothing: some tools leave one of their own.
    """
    folder = label_folder(images)
    for path in (folder / note for folder in (folder, folder.parent) for note in NOTES):
        try:
            with open(path, encoding="utf-8-sig") as file:
                listed = [line.strip() for line in file.read(MAX_NOTE).splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            continue
        pairs = enumerate(zip(listed, names, strict=False))
        apart = next(((i, *pair) for i, pair in pairs if pair[0].casefold() != pair[1].casefold()), None)
        if apart is not None and set(listed) & set(names):
            number, there, here = apart
            text = f"class {number} is {shorten(there, 60)!r} here and {here!r} in the data yaml"
            way = "which one do the labels mean? If the former, give `names` the order of this file"
            yield Fault.of("label-other-names", str(path), "", f"{text}: {way}")


def _label_alone(path: str) -> Fault:
    """Does its first row look like a label? If not, it is somebody's notes."""
    try:
        with open(path, "rb") as file:
            text = file.read(4096).removeprefix(b"\xef\xbb\xbf").replace(b",", b".").lstrip()
        row = next(iter(text.splitlines()), b"").split()
        [float(field) for field in row]
    except (OSError, ValueError):
        row = []
    if len(row) < 5:
        text = "no image has this name, and it holds no labels: not read"
        return Fault.of("label-not-labels", path, "", text)
    return label_alone(path)


def read_yolo(label: str, width: int, height: int, say: Say, *, config: DataConfig) -> Objects:
    """Rows of `class x_centre y_centre width height`, or `class x1 y1 x2 y2 x3 y3 …`, in shares of the image."""
    rows: list[tuple[float, ...]] = []
    numbers: list[int] = []
    for number, line in enumerate(_lines(label), 1):
        if not line or line.isspace():
            continue
        try:
            rows.append(_row(line, config, width, height))
            numbers.append(number)
        except _RowFault as fault:
            say(fault.kind, f"line {number}", str(fault))
    table = np.array(rows, np.float64).reshape(-1, 5)
    pixels = np.rint(table[:, 1:] * np.array([width, height, width, height], np.float64) * SNAP) / SNAP
    count = len(rows)
    return Objects(pixels, table[:, 0].astype(int), np.zeros(count, bool), np.full(count, np.nan), numbers)


def _lines(label: str) -> list[str]:
    data = read_label(label)
    if data is None:
        return []  # an image of nothing
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        what = "text in UTF-16: save it as UTF-8" if wide else "not text in UTF-8: put back the labels"
        raise BadLabels("label-not-utf8", label, "", what) from None
    if "\0" in text:
        raise BadLabels("label-binary", label, "", "holds binary data: put back the labels")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _row(line: str, config: DataConfig, width: int, height: int) -> tuple[float, ...]:
    """A row as (class, x1, y1, x2, y2), in shares of the image."""
    fields = line.split()
    try:
        label, *values = map(float, fields)
    except ValueError:
        raise _not_numbers(line, fields, config) from None
    if "_" in line or not "".join(fields).isascii():  # Python would read 1_0 and １０ as 10
        raise _not_numbers(line, fields, config)
    shown = fields[0] if len(fields[0]) <= 15 else f"{label:.15g}"
    _check_class(label, shown, len(config.label_names))
    box = len(values) == 4 or (config.keypoints > 0 and len(values) == 4 + config.keypoints)
    if not box and (len(values) < 6 or len(values) % 2):
        raise _RowFault("label-columns", _columns(len(fields)))
    values = values[:4] if box else values
    if not all(map(math.isfinite, values)):
        text = f"not finite: '{shorten(line.strip())}': correct it, or take it out"
        raise _RowFault("label-not-finite", text)
    if len(values) == 6 and max(values[:5]) <= 1 < values[5] == int(values[5]):
        text = f"'{shorten(line.strip())}': a box with a score and a track's number after it? take out the last two"
        raise _RowFault("label-columns", text)
    if max(map(abs, values)) > PIXELS:
        how = _pixels(values, width, height)
        raise _RowFault("label-pixels", f"'{shorten(line.strip())}' looks like pixels, not shares of the image: {how}")
    if not box:
        x, y = values[0::2], values[1::2]
        return label, min(x), min(y), max(x), max(y)
    x, y, wide, high = values
    if wide < 0 or high < 0:
        what = f"the {'width' if wide < 0 else 'height'} {min(wide, high):g} is below zero"
        raise _RowFault("label-negative", f"{what}: a row is class x_centre y_centre width height")
    return label, x - wide / 2, y - high / 2, x + wide / 2, y + high / 2


def _pixels(values: Sequence[float], width: int, height: int) -> str:
    """How to mend a row in pixels; a box may be given by its centre and size, or by two corners, or fit as either."""
    if len(values) != 4:
        return f"divide each x by {width}, each y by {height}"
    x, y, wide, high = values
    corners = 0 <= x < wide <= width + 1 and 0 <= y < high <= height + 1
    centre = abs(2 * x - width) <= width - wide + 1 and abs(2 * y - height) <= height - high + 1
    how = f"divide x and width by {width}, y and height by {height}"
    turned = "(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1"
    if corners and not centre:
        return f"as corners x1 y1 x2 y2 fit and a centre with a size doesn't, write {turned}, then {how}"
    return f"{how}; where it is corners x1 y1 x2 y2, write {turned} first" if corners else how


def _check_class(label: float, text: str, names: int) -> None:
    if not label.is_integer():  # nor are NaN and Inf
        raise _RowFault("label-class-fraction", f"class {text} is not a whole number: a row begins with its class")
    if label < 0:
        raise _RowFault("label-class-negative", f"class {text} is below zero: classes count from 0")
    if label >= names:
        what = f"class {text} is out of range (names has {names}: 0 to {names - 1})"
        raise _RowFault("label-class-range", f"{what}: add its name to the data yaml, or correct the row")


def _columns(count: int) -> str:
    what = f"{many(count, 'number')}; a row is a class and a box (5 numbers), or at least 3 points (7, 9, …)"
    hints = {4: "put the class before them", 6: "take out the last one, which may be a score"}
    return f"{what}: {hints.get(count, 'correct it, or take it out')}"


def _not_numbers(line: str, fields: Sequence[str], config: DataConfig) -> _RowFault:
    """Say which slip it is that makes a row other than numbers."""
    shown = f"'{shorten(line.strip())}'"
    if "," in line:
        if _are_numbers(field.replace(",", ".") for field in fields):
            return _RowFault("label-comma", f"a comma for the decimal point ({shown}): write 0.5 for 0,5")
        if _are_numbers(re.split(r"[,\s]+", line.strip(" ,\t\r"))):
            return _RowFault("label-comma", f"commas between the numbers ({shown}): put spaces there")
    for number, name in enumerate(config.label_names):
        if fields[: len(name.split())] == name.split() and _are_numbers(fields[len(name.split()) :]):
            return _RowFault("label-class-name", f"the class's name, '{name}', for its number: write {number}")
    return _RowFault("label-text", f"not numbers: {shown}: a row is class x_centre y_centre width height")


def _are_numbers(fields: Iterable[str]) -> bool:
    return all(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", field, re.ASCII) for field in fields)


def classes_beyond(faults: Iterable[Fault]) -> Counter[int]:
    """How many rows have each class that `names` doesn't have."""
    return Counter(int(float(fault.text.split()[1])) for fault in faults if fault.kind == "label-class-range")
