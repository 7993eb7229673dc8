"""Label files as they lie on the disk: YOLO txt, Pascal VOC XML, COCO JSON. Nothing is left out without a word.

Boxes are continuous corners (x1, y1, x2, y2) in pixels of the image as it is seen (turned as its EXIF tag says), whose
size is read from the image's own header, so the same labels in another format give the same records.
"""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.blocks import Block, Entries, Listed, block_of
from data.clean_labels import CleanLabels, read_clean
from data.config import DataConfig, Source
from data.faults import Fault
from data.images import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, Unreadable, header_notes, image_headers, read_header
from data.labels import Entry as _Entry
from data.labels import Objects as _Objects
from data.labels import Record
from data.processes import FORKS, cores, in_processes
from utils.errors import UserError, suggest

SNAP = 256  # steps a pixel that YOLO's rounded shares are put back on: exact for 6 decimals up to 2,600 px
SMALL_OVERHANG = 1.0  # px: a box that leaves the image by less is clipped without a word (rounding)
CHUNK = 512  # images that are read at a time
FEW = 1000 if FORKS else 20_000  # images that one process reads before others have started


def read_split(config: DataConfig, split: str) -> tuple[list[Record], list[Fault]]:
    """Read all images and labels of `train`, `val` or `test`: (records by image name, faults).

    Raises `UserError` where the split can't be read at all, or has no images or no boxes.
    """
    records: list[Record] = []
    faults: list[Fault] = []
    for block in iter_split(config, split):
        records += block.records(config.root)
        faults += block.faults
    return records, faults


def iter_split(config: DataConfig, split: str) -> Iterator[Block]:
    """As `read_split`, a block of images at a time; many images are read by all cores."""
    entries, faults = _scan_split(config, split)
    yield block_of([], faults)
    images, boxes, first = 0, 0, faults[:1]
    looked_for, blocks = entries[0].label, _read_blocks(entries, config)
    del entries  # the processes that read them have their own
    for block in blocks:
        first = first or block.faults[:1]
        images += len(block)
        boxes += len(block.boxes)
        yield block
    why = f"; first fault: {first[0]}" if first else ""
    if not images:
        raise UserError(f"{config.file}: {split}: no image can be read{why}")
    if not boxes:
        raise UserError(f"{config.file}: {split}: no boxes in {images} images (labels looked for as {looked_for}){why}")


def split_state(config: DataConfig, split: str) -> Iterator[str]:
    """What all files that reading the split may depend on are like, there or not; more than needed does no harm."""
    for source in config.split(split).sources:
        yield from (_file_state(str(path)) for path in source.lists)
        if source.annotations is not None and not source.annotations.is_dir():
            yield _file_state(str(source.annotations))
        if source.images.is_dir():
            folders = {source.images, source.annotations or _labels_folder(source.images)}
            for folder in sorted(folder for folder in folders if folder.is_dir()):
                yield from _folder_state(str(folder), (*IMAGE_SUFFIXES, *OTHER_IMAGE_SUFFIXES, ".txt", ".xml"))
            continue
        yield _file_state(str(source.images))
        for image in _yolo_images(source, config.root, []):
            yield from map(_file_state, (image, *label_paths(image)))


def _file_state(path: str) -> str:
    try:
        stat = os.stat(path)
        return f"{path}\0{stat.st_size} {stat.st_mtime_ns}"
    except OSError:
        return f"{path}\0absent"


def _folder_state(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Path, size and time of the files with one of the suffixes, a folder at a time: one look at each file."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        files, folders = [], []
        try:
            with os.scandir(folder) as found:
                for file in found:
                    name = file.name
                    if file.is_dir():
                        if not name.startswith("."):
                            folders.append(file.path)
                    elif name.lower().endswith(suffixes):
                        try:
                            stat = file.stat()
                            files.append(f"{name}\0{stat.st_size} {stat.st_mtime_ns}")
                        except OSError:
                            files.append(f"{name}\0absent")
        except OSError as error:
            files.append(str(error.errno))
        yield folder
        yield from sorted(files)
        waiting += sorted(folders)


def _walk(folder: Path, suffixes: Sequence[str], folder_suffixes: Sequence[str] = ()) -> Iterator[str]:
    """Yield the files below `folder` with one of the suffixes, in a fixed order, hidden ones left out.

    Folders too, that have one of `folder_suffixes`; what is in them is searched all the same.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: can't be read: {error.strerror}")

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


# ------------------------------------------------------------------------------------------------ reading


def _scan_split(config: DataConfig, split: str) -> tuple[Entries, list[Fault]]:
    faults: list[Fault] = []
    entries = Entries()
    for source in config.split(split).sources:
        if source.annotations is None:
            entries.add(YoloImages(config), _yolo_names(source, config, faults))
            continue
        own = source.annotations.is_dir()
        found, more = (_scan_voc if own else _scan_coco)(source, config)
        entries.add(Listed(found), ((entry.name, entry.label * own) for entry in found))
        faults += more
    entries.finish()
    if not len(entries):
        where = ", ".join(str(source.images) for source in config.split(split).sources)
        why = f"; first fault: {faults[0]}" if faults else ""
        raise UserError(f"{config.file}: {split}: no images in {where}{why}")
    for source in config.split(split).sources:
        if source.annotations is None and source.images.is_dir():
            faults += [*_other_images(source.images), *_labels_alone(source.images, entries)]
    for name, count in entries.repeated:
        faults.append(Fault(os.path.join(config.root, name), "", f"listed {count} times, and counts as often"))
    for label, names in entries.shared_labels():
        text = f"the label file of {' and of '.join(names)}, give all but one of them another name"
        faults.append(Fault(label, "", text, "image-two-of-one-stem", stops=True))
    return entries, faults


def _read_blocks(entries: Entries, config: DataConfig) -> Iterator[Block]:
    spans = [(first, min(first + CHUNK, len(entries))) for first in range(0, len(entries), CHUNK)]
    if len(entries) < FEW:
        return map(_Reader(entries, config), spans)
    # More than the cores: one that waits for a disk needs none.
    return in_processes(partial(_Reader, entries, config), spans, max(cores(), 4))


class _Reader:
    """Reads stretches of entries: YOLO labels many at a time where they are clean, all else one by one."""

    def __init__(self, entries: Entries, config: DataConfig) -> None:
        self._entries, self._config = entries, config

    def __call__(self, span: tuple[int, int]) -> Block:
        entries, config = self._entries, self._config
        quick = [i for i in range(*span) if isinstance(entries.group(i), YoloImages)]
        with image_headers():
            images = [_image_path(entries.name(i), config.root) for i in quick]
            found = read_clean(images, label_paths, len(config.label_names))
            if found.clean.all() and len(quick) == span[1] - span[0]:
                return self._clean_block(span, found)
            places = {i: k for k, i in enumerate(quick) if found.clean[k]}
            ends = np.cumsum(found.counts)
            records: list[Record] = []
            faults: list[Fault] = []
            for i in range(*span):
                k = places.get(i)
                if k is None:
                    record, more = _read_entry(entries[i], config)
                    faults += more
                    records += [record] if record is not None else []
                else:
                    own = slice(ends[k] - found.counts[k], ends[k])
                    records.append(self._clean_record(images[k], entries.name(i), found, k, own))
        return block_of(records, faults)

    def _clean_block(self, span: tuple[int, int], found: CleanLabels) -> Block:
        names, lengths = self._entries.names(*span)
        classes = np.zeros_like(found.classes) if self._config.single_cls else found.classes
        crowd = np.zeros(len(classes), bool)
        return Block(names, lengths, found.sizes, found.counts, found.boxes, classes, crowd, found.areas)

    def _clean_record(self, image: str, name: str, found: CleanLabels, k: int, own: slice) -> Record:
        width, height = found.sizes[k].tolist()
        classes = np.zeros_like(found.classes[own]) if self._config.single_cls else found.classes[own]
        crowd = np.zeros(len(classes), bool)
        return Record(Path(image), name, width, height, found.boxes[own], classes, crowd, found.areas[own])


def _read_entry(entry: _Entry, config: DataConfig) -> tuple[Record | None, list[Fault]]:
    faults: list[Fault] = []

    def fault(where: str, text: str) -> None:
        faults.append(Fault(entry.label, where, text))

    file = entry.image
    try:
        header = read_header(file)
        faults += [Fault(file, "", text, kind) for kind, text in header_notes(file, header)]
        width, height = header.size
        file = entry.label
        objects = entry.read(entry.label, width, height, fault)
    except Unreadable as error:
        return None, [*faults, Fault(file, "", f"{error}; the image is left out", error.kind, stops=True)]
    keep, boxes, areas = _check_boxes(
        objects, width, height, lambda i, text: fault(f"{entry.unit} {objects.numbers[i]}", text)
    )
    classes = objects.classes[keep].astype(np.int32)
    record = Record(
        image=Path(entry.image),
        name=entry.name,
        width=width,
        height=height,
        boxes=boxes,
        classes=np.zeros_like(classes) if config.single_cls else classes,
        crowd=objects.crowd[keep].astype(bool),
        areas=areas,
    )
    return record, faults


def _check_boxes(
    objects: _Objects, width: int, height: int, fault: Callable[[int, str], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clip boxes to the image and leave out what has no area in it: (kept bool [N], boxes [M, 4], areas [M])."""
    raw = objects.boxes.reshape(-1, 4)
    size = f"{width} x {height}"
    with np.errstate(invalid="ignore", over="ignore"):
        # + 0.0: no negative zeros, which equal zero but are other bytes
        boxes = np.clip(raw, 0.0, np.array([width, height, width, height], np.float64)) + 0.0
        overhang = np.abs(raw - boxes).max(1, initial=0.0)
        keep = (boxes[:, 2:].astype(np.float32) > boxes[:, :2].astype(np.float32)).all(1) & np.isfinite(raw).all(1)
        own = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        given = objects.areas > 0  # not so for NaN
        # A mask that was cut with its box can't be larger than what is left of the box.
        areas = np.where(given, np.where(overhang > 0, np.minimum(objects.areas, own), objects.areas), own)
    for i in np.flatnonzero(~keep | ~(overhang < SMALL_OVERHANG)):
        text = "({:.6g}, {:.6g}, {:.6g}, {:.6g})".format(*raw[i])
        if keep[i]:
            fault(i, f"box {text} leaves the {size} image by {overhang[i]:.6g} px: clipped")
        elif not np.isfinite(raw[i]).all():
            fault(i, f"box {text} isn't finite: dropped")
        elif overhang[i] > 0 and (raw[i, 2:] > raw[i, :2]).all():
            fault(i, f"box {text} is outside the {size} image: dropped")
        else:
            fault(i, f"box {text} has no area: dropped")
    return keep, boxes[keep].astype(np.float32), areas[keep].astype(np.float32)


def _read_lines(path: str | Path) -> list[str]:
    """The stripped lines of a list the user named; `UserError` where it can't be read."""
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from None


def _image_path(name: str, root: Path) -> str:
    return os.path.normpath(os.path.join(root, name))


def _name(image: str, root: Path) -> str:
    try:
        name = os.path.relpath(image, root)
    except ValueError:  # on another Windows drive
        name = image
    return name.replace(os.sep, "/")


def _other_images(folder: Path) -> list[Fault]:
    faults = []
    for path in _walk(folder, OTHER_IMAGE_SUFFIXES, IMAGE_SUFFIXES):
        if path.lower().endswith(IMAGE_SUFFIXES):
            text = "a folder with the name of an image: rename it, or put the image in its place"
            faults.append(Fault(path, "", text, "image-folder", stops=True))
        else:
            text = "not a kind of image that is read: left out"
            faults.append(Fault(path, "", text, "image-kind-not-read", stops=True))
    return faults


# ------------------------------------------------------------------------------------------------ YOLO txt


def label_paths(image: str) -> list[str]:
    """Where the labels of an image may be: `labels` for the last `images` in its path, else beside it."""
    stem = os.path.splitext(image)[0]
    parts = stem.split(os.sep)
    beside = f"{stem}.txt"
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            return [os.sep.join([*parts[:i], "labels", *parts[i + 1 :]]) + ".txt", beside]
    return [beside]


def _labels_folder(images: Path) -> Path:
    """Where the labels of the images in a folder are."""
    return Path(label_paths(str(images / "image.jpg"))[0]).parent


@dataclass(frozen=True)
class YoloImages:
    """The images of a YOLO source."""

    config: DataConfig

    def entry(self, name: str, row: int) -> _Entry:
        image = _image_path(name, self.config.root)
        labels = label_paths(image)
        label = next((path for path in labels if os.path.isfile(path)), labels[0])
        return _Entry(name, image, label, "line", partial(_read_yolo, config=self.config))


def _yolo_names(source: Source, config: DataConfig, faults: list[Fault]) -> Iterator[tuple[str, str]]:
    """Yield name and label file (the first place for it) of every image."""
    images = _yolo_images(source, config.root, faults)
    folder = prefix = labels = ""
    for image in images:
        own, _, file = image.rpartition(os.sep)
        if own != folder:
            folder = own
            prefix = _name(os.path.join(folder, "x"), config.root)[:-1]
            labels = label_paths(os.path.join(folder, "x.jpg"))[0][: -len("x.txt")]
        yield prefix + file, f"{labels}{os.path.splitext(file)[0]}.txt"


def _yolo_images(source: Source, root: Path, faults: list[Fault]) -> Iterator[str]:
    if source.images.is_dir():
        yield from _walk(source.images, IMAGE_SUFFIXES)
        return
    if source.images.suffix.lower() != ".txt":
        hint = "; a COCO json is given as {images: FOLDER, annotations: FILE.json}" * (source.images.suffix == ".json")
        raise UserError(f"{source.images}: neither a folder of images nor a txt list of them{hint}")
    for number, line in enumerate(_read_lines(source.images), 1):
        if not line:
            continue
        bases = [source.images.parent, root] if line.startswith("./") else [root, source.images.parent, Path.cwd()]
        tried = [os.path.abspath(base / line) for base in bases]
        found = next((path for path in tried if os.path.isfile(path)), None)
        if found is None:
            text = f"no such image: {line} (tried {', '.join(dict.fromkeys(tried))})"
            faults.append(Fault(str(source.images), f"line {number}", text))
        else:
            yield found


def _labels_alone(images: Path, entries: Entries) -> list[Fault]:
    """Label files of a folder that no image has. `classes.txt` is what labelling tools leave there."""
    folder = _labels_folder(images)
    if not folder.is_dir() or folder == images:
        return []
    return [
        Fault(path, "", "no image for these labels: left out")
        for path in entries.without_images(_walk(folder, (".txt",)))
        if os.path.basename(path) != "classes.txt"
    ]


def _read_yolo(
    label: str, width: int, height: int, fault: Callable[[str, str], None], *, config: DataConfig
) -> _Objects:
    """Rows of `class x_centre y_centre width height`, or `class x1 y1 x2 y2 x3 y3 …`, in shares of the image."""
    try:
        text = Path(label).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        text = ""  # an image of nothing
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"the labels can't be read: {error}") from None
    rows: list[tuple[float, ...]] = []
    numbers: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(_yolo_row(line.split(), config))
            numbers.append(number)
        except ValueError as error:
            fault(f"line {number}", f"{error}: dropped")
    table = np.array(rows, np.float64).reshape(-1, 5)
    with np.errstate(invalid="ignore", over="ignore"):
        pixels = np.rint(table[:, 1:] * np.array([width, height, width, height], np.float64) * SNAP) / SNAP
    count = len(rows)
    return _Objects(pixels, table[:, 0].astype(int), np.zeros(count, bool), np.full(count, np.nan), numbers)


def _yolo_row(fields: Sequence[str], config: DataConfig) -> tuple[float, ...]:
    """A row as (class, x1, y1, x2, y2), in shares of the image. Raises ValueError with what is wrong."""
    try:
        label, *values = map(float, fields)
    except ValueError:
        raise ValueError(f"not numbers: '{' '.join(fields)[:60]}'") from None
    names = len(config.label_names)
    if not (label.is_integer() and 0 <= label < names):
        raise ValueError(f"class {fields[0]} is out of range (names has {names}: 0 to {names - 1})")
    if len(values) == 4 or (config.keypoints and len(values) == 4 + config.keypoints):
        x, y, wide, high = values[:4]
        return label, x - wide / 2, y - high / 2, x + wide / 2, y + high / 2
    if len(values) >= 6 and len(values) % 2 == 0:
        x, y = values[0::2], values[1::2]
        if any(value != value for value in values):  # min and max may pass a NaN by
            return label, *[float("nan")] * 4
        return label, min(x), min(y), max(x), max(y)
    raise ValueError(f"{len(fields)} numbers; a row is a class and a box (5 numbers) or at least 3 points (7, 9, …)")


# ------------------------------------------------------------------------------------------------ Pascal VOC XML


def _scan_voc(source: Source, config: DataConfig) -> tuple[list[_Entry], list[Fault]]:
    assert source.annotations is not None
    if not source.images.is_dir():
        raise UserError(f"{source.images}: `images` must be a folder")
    images = {os.path.relpath(path, source.images): path for path in _walk(source.images, IMAGE_SUFFIXES)}
    faults = _other_images(source.images)
    xml = {name: str(source.annotations / f"{os.path.splitext(name)[0]}.xml") for name in images}
    if source.lists:
        wanted, more = _pick(source.lists, images)
        faults += more
    else:
        wanted, used = list(images), set(xml.values())
        alone = [path for path in _walk(source.annotations, (".xml",)) if path not in used]
        faults += [Fault(path, "", "no image for these labels: left out") for path in alone]
    read = partial(_read_voc, classes={name: i for i, name in enumerate(config.label_names)})
    entries = [_Entry(_name(images[name], config.root), images[name], xml[name], "object", read) for name in wanted]
    return entries, faults


def _pick(lists: Iterable[Path], images: Iterable[str]) -> tuple[list[str], list[Fault]]:
    """The images that the lists name, by file name or by name without its suffix."""
    called: dict[str, list[str]] = {}
    for name in sorted(images):
        plain = name.replace(os.sep, "/")
        for word in {plain, os.path.splitext(plain)[0]}:
            called.setdefault(word, []).append(name)
    picked, faults = [], []
    for path in lists:
        for number, line in enumerate(_read_lines(path), 1):
            found = called.get(line.removeprefix("./"), [])
            picked += found[:1]
            if line and len(found) != 1:
                text = (
                    f"'{line}' names {len(found)} images, the first is taken: {', '.join(found)}"
                    if found
                    else f"no image is called '{line}'"
                )
                faults.append(Fault(str(path), f"line {number}", text))
    return picked, faults


def _read_voc(
    label: str, width: int, height: int, fault: Callable[[str, str], None], *, classes: dict[str, int]
) -> _Objects:
    """`<object>`s with `<name>` and `<bndbox>`, whose numbers are taken as they are (no 1 is subtracted)."""
    root = _parse_xml(label)
    boxes: list[list[float]] = []
    labels: list[int] = []
    numbers: list[int] = []
    for number, item in enumerate(root.findall("object") if root is not None else (), 1):
        name = (item.findtext("name") or "").strip()
        if name not in classes:
            fault(f"object {number}", f"'{name}' isn't among the names{suggest(name, classes)}: dropped")
            continue
        texts = [(key, (item.findtext(f"bndbox/{key}") or "").strip()) for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            boxes.append([float(text) for _, text in texts])
        except ValueError:
            wrong = ", ".join(f"{key} '{text}'" for key, text in texts)
            fault(f"object {number}", f"the bndbox isn't four numbers ({wrong}): dropped")
            continue
        labels.append(classes[name])
        numbers.append(number)
    if root is not None:
        _check_size(
            [root.findtext(f"size/{key}") for key in ("width", "height")], width, height, partial(fault, "size")
        )
    count = len(boxes)
    table = np.array(boxes, np.float64).reshape(-1, 4)
    return _Objects(table, np.array(labels, int), np.zeros(count, bool), np.full(count, np.nan), numbers)


def _parse_xml(path: str) -> ET.Element | None:
    """Parse an annotation; None where there is no file. A DOCTYPE can make a parser expand things, and is refused."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"the labels can't be read: {error.strerror or error}") from None
    if b"<!DOCTYPE" in data.replace(b"\0", b""):  # the zeros of UTF-16
        raise Unreadable("the labels have a DOCTYPE, which is refused")
    try:
        return ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise Unreadable(f"the labels aren't XML: {error}") from None


def _check_size(stated: Sequence[Any], width: int, height: int, fault: Callable[[str], None]) -> None:
    """Say so where labels were made for an image of another size; no size, or zeros, say nothing."""
    try:
        wide, high = (float(value) for value in stated)
    except (TypeError, ValueError):
        return
    if min(wide, high) > 0 and (wide, high) != (width, height):
        fault(f"the labels say {wide:g} x {high:g}, the image is {width} x {height}; the boxes are taken as they are")


# ------------------------------------------------------------------------------------------------ COCO JSON


@dataclass
class _CocoTable:
    """The annotations of a COCO file in columns, sorted by image; `offsets[i]` is where image i's begin."""

    numbers: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    offsets: np.ndarray


@dataclass
class _CocoRows:
    """The same while it is read."""

    images: list[int] = field(default_factory=list)
    numbers: list[Any] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)

    def table(self, count: int) -> _CocoTable:
        images = np.array(self.images, np.int64)
        order = np.argsort(images, kind="stable")
        return _CocoTable(
            numbers=np.array(self.numbers, object)[order],
            boxes=np.array(self.boxes, np.float64).reshape(-1, 4)[order],
            classes=np.array(self.classes, np.int64)[order],
            crowd=np.array(self.crowd, bool)[order],
            areas=np.array(self.areas, np.float64)[order],
            offsets=np.searchsorted(images[order], np.arange(count + 1)),
        )


def _scan_coco(source: Source, config: DataConfig) -> tuple[list[_Entry], list[Fault]]:
    assert source.annotations is not None
    if not source.images.is_dir():
        raise UserError(f"{source.images}: `images` must be a folder")
    file = str(source.annotations)
    data = _load_coco(file)
    classes = _coco_classes(file, data["categories"], config)
    faults: list[Fault] = []
    images = _coco_images(file, data["images"], faults)
    table = _coco_rows(file, data["annotations"], images, classes, faults).table(len(images))
    names = {item["file_name"]: i for i, item in enumerate(images.values())}
    wanted: Iterable[str] = names
    if source.lists:
        wanted, more = _pick(source.lists, names)
        faults += more
    stated = [(item.get("width"), item.get("height")) for item in images.values()]
    entries = []
    for name in wanted:
        path = _coco_image(source.images, name)
        read = partial(_read_coco, table=table, row=names[name], stated=stated[names[name]], image=name)
        entries.append(_Entry(_name(path, config.root), path, file, f"{name}: annotation", read))
    return entries, faults


def _load_coco(file: str) -> dict[str, list[Any]]:
    def without_masks(item: dict[str, Any]) -> dict[str, Any]:
        item.pop("segmentation", None)  # most of the file, and of no use here
        return item

    try:
        data = json.loads(Path(file).read_bytes(), object_hook=without_masks)
    except OSError as error:
        raise UserError(f"{file}: can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a COCO json: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise UserError(f"{file}: not a COCO json: it has no list called '{key}'")
    return data


def _coco_classes(file: str, categories: list[Any], config: DataConfig) -> dict[Any, int | str]:
    """Category id → class, by the category's name; its name where the yaml has none such."""
    known = {name: i for i, name in enumerate(config.label_names)}
    pairs = [
        (item["id"], str(item["name"]).strip())
        for item in categories
        if isinstance(item, dict) and {"id", "name"} <= set(item)
    ]
    classes = {number: known.get(name, name) for number, name in pairs if isinstance(number, (int, str))}
    if not any(isinstance(value, int) for value in classes.values()):
        have, want = (", ".join(list(names)[:5]) + ", …" * (len(names) > 5) for names in (dict(pairs).values(), known))
        raise UserError(f"{config.file}: names: none is a category of {file} (it has {have}; the yaml has {want})")
    return classes


def _coco_images(file: str, items: list[Any], faults: list[Fault]) -> dict[Any, dict[str, Any]]:
    """Image id → its entry, for those that have an id and a file name of their own."""
    images: dict[Any, dict[str, Any]] = {}
    names: set[str] = set()
    for number, item in enumerate(items, 1):
        key, name = (item.get("id"), item.get("file_name")) if isinstance(item, dict) else (None, None)
        if not isinstance(key, (int, str)) or not isinstance(name, str) or not name:
            faults.append(Fault(file, f"image {number}", "has no id or no file_name: left out"))
        elif key in images or name in names:
            faults.append(
                Fault(file, f"image {number}", f"the id {key!r} or the file_name {name!r} is there twice: left out")
            )
        else:
            images[key] = item
            names.add(name)
    return images


def _coco_rows(
    file: str, items: list[Any], images: dict[Any, Any], classes: dict[Any, int | str], faults: list[Fault]
) -> _CocoRows:
    place = {key: i for i, key in enumerate(images)}
    rows = _CocoRows()
    for i, item in enumerate(items, 1):
        item = item if isinstance(item, dict) else {}
        number, image, category = (item.get(key) for key in ("id", "image_id", "category_id"))
        try:
            row, label = place.get(image), classes.get(category)
        except TypeError:  # a list or a map for an id
            row, label = None, None
        box, area = item.get("bbox"), item.get("area")
        why = ""
        if row is None:
            why = f"image_id {image!r} isn't an image's"
        elif label is None:
            why = f"category_id {category!r} isn't a category's"
        elif isinstance(label, str):
            why = f"category '{label}' isn't among the names"
        elif not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
            why = f"bbox {str(box)[:60]} isn't four numbers"
        if why:
            faults.append(Fault(file, f"annotation {i if number is None else number}", f"{why}: dropped"))
            continue
        x, y, wide, high = map(float, box)
        rows.images.append(row)
        rows.numbers.append(i if number is None else number)
        rows.boxes.append([x, y, x + wide, y + high])
        rows.classes.append(label)
        rows.crowd.append(bool(item.get("iscrowd")))
        rows.areas.append(float(area) if isinstance(area, (int, float)) else float("nan"))
    return rows


def _coco_image(folder: Path, name: str) -> str:
    """The image's path: some exports put a folder before the file name that isn't there."""
    path, plain = os.path.abspath(folder / name), os.path.abspath(folder / os.path.basename(name))
    return plain if plain != path and not os.path.exists(path) and os.path.exists(plain) else path


def _read_coco(
    label: str,
    width: int,
    height: int,
    fault: Callable[[str, str], None],
    *,
    table: _CocoTable,
    row: int,
    stated: Any,
    image: str,
) -> _Objects:
    _check_size(stated, width, height, partial(fault, image))
    own = slice(table.offsets[row], table.offsets[row + 1])
    return _Objects(table.boxes[own], table.classes[own], table.crowd[own], table.areas[own], table.numbers[own])
