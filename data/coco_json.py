"""COCO JSON: one file for all images, whose annotations are kept as a table, without masks."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.config import DataConfig, Source
from data.faults import DataError, Fault
from data.labels import (
    BadLabels,
    Entry,
    Objects,
    Say,
    nearest,
    pick,
    refuse_shares,
    relative_name,
    shorten,
    size_differs,
)

KEYS = ("images", "annotations", "categories")


@dataclass
class CocoTable:
    """The annotations of a COCO file in columns, sorted by image; `offsets[i]` is where image i's begin."""

    numbers: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    offsets: np.ndarray


@dataclass
class _Rows:
    """The same while it is read."""

    images: list[int] = field(default_factory=list)
    numbers: list[Any] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)

    def table(self, count: int) -> CocoTable:
        images = np.array(self.images, np.int64)
        order = np.argsort(images, kind="stable")
        numbers = np.empty(len(order), object)
        numbers[:] = self.numbers
        return CocoTable(
            numbers=numbers[order],
            boxes=np.array(self.boxes, np.float64).reshape(-1, 4)[order],
            classes=np.array(self.classes, np.int64)[order],
            crowd=np.array(self.crowd, bool)[order],
            areas=np.array(self.areas, np.float64)[order],
            offsets=np.searchsorted(images[order], np.arange(count + 1)),
        )


class _ItemFault(Exception):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def scan_coco(source: Source, config: DataConfig) -> tuple[list[Entry], list[Fault]]:
    """The images of a source, each with its rows of the table of annotations. Raises `DataError`."""
    assert source.annotations is not None
    if not source.images.is_dir():
        raise DataError(Fault.of("yaml-split-path", str(source.images), "", "`images` must be a folder"))
    file = str(source.annotations)
    data = load_coco(file)
    faults: list[Fault] = []
    categories = _categories(file, data["categories"], config, faults)
    images = _images(file, data["images"], faults)
    table = _rows(file, data["annotations"], images, categories, config, faults).table(len(images))
    names = {item["file_name"]: i for i, item in enumerate(images.values())}
    wanted: Iterable[str] = names
    if source.lists:
        wanted, more = pick(source.lists, names)
        faults += more
    stated = [(item.get("width"), item.get("height")) for item in images.values()]
    entries, taken = [], {}
    for name in wanted:
        path = _image_path(source.images, name)
        if taken.setdefault(path, name) != name:  # both lie in folders that aren't there
            text = f"'{name}' and '{taken[path]}' are both read as {path}: put each image where the JSON says"
            faults.append(Fault.of("coco-file-twice", file, f"image '{shorten(name)}'", text))
            continue
        read = partial(read_coco, table=table, row=names[name], stated=stated[names[name]], image=name)
        entries.append(Entry(relative_name(path, config.root), path, file, f"{name}: annotation", read))
    return entries, faults


def own_ids(config: DataConfig, split: str, images: Sequence[str]) -> tuple[list[Any], list[Any]] | None:
    """The ids that a split's annotations have for its images, by their paths, and for the classes of the yaml.

    None where they are no single COCO file, or where one has no id: a class that the file doesn't have, or all as one.
    """
    source, *others = config.split(split).sources
    if others or source.annotations is None or source.annotations.suffix.lower() != ".json":
        return None
    file = str(source.annotations)
    data, faults = load_coco(file), []
    numbers = {label: key for key, label in _categories(file, data["categories"], config, faults).items()}
    entries = _images(file, data["images"], faults)
    places: dict[str, Any] = {}
    for key, item in entries.items():
        places.setdefault(_image_path(source.images, item["file_name"]), key)
    found = [places.get(os.path.abspath(path)) for path in images]
    classes = [numbers.get(label) for label in range(len(config.names))]
    whole = len(config.names) == len(config.label_names) and None not in found and None not in classes
    return (found, classes) if whole else None


def load_coco(file: str) -> dict[str, list[Any]]:
    """The three lists of a COCO file, without masks. Raises `DataError`."""

    def without_masks(item: dict[str, Any]) -> dict[str, Any]:
        item.pop("segmentation", None)  # most of the file, and of no use here
        return item

    def refuse(kind: str, text: str) -> DataError:
        return DataError(Fault.of(kind, file, "", text))

    try:
        with open(file, encoding="utf-8-sig") as stream:  # which lets go of the bytes before they are parsed
            data = json.load(stream, object_hook=without_masks)
    except OSError as error:
        raise refuse("coco-unreadable", f"can't be read ({error.strerror or error}): check its permissions") from None
    except UnicodeDecodeError:
        raise refuse("coco-not-json", "not text in UTF-8: save it as UTF-8, or put back the annotations") from None
    except json.JSONDecodeError as error:
        text = error.doc.strip()
        if text[:1] in ("{", "[") and (text[-1] not in "}]" or error.pos >= len(error.doc.rstrip())):
            text = "the JSON ends in the middle: a copy or download that was cut off? get the whole file"
            raise refuse("coco-truncated", text) from None
        text = f"not JSON ({error})" if text else "empty"
        raise refuse("coco-not-json", f"{text}: put back the annotations") from None
    except (ValueError, RecursionError) as error:
        raise refuse("coco-not-json", f"not JSON that can be read ({type(error).__name__})") from None
    if isinstance(data, list):
        text = "a list, such as one of detections: name the file with `images`, `annotations` and `categories`"
        raise refuse("coco-list", text)
    absent = [key for key in KEYS if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if absent:
        have = ", ".join(map(str, data)) if isinstance(data, dict) and data else "nothing"
        text = (
            f"has no list called '{absent[0]}' (it has {shorten(have, 200)}): name the annotations of a COCO data set"
        )
        raise refuse("coco-keys", text)
    return {key: data[key] for key in KEYS}


def _is_id(value: object) -> bool:
    """A whole number or a text; true and false are numbers to Python, and 1.0 is one that other programs write."""
    whole = isinstance(value, (int, str)) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool)


def _categories(file: str, items: list[Any], config: DataConfig, faults: list[Fault]) -> dict[Any, int | str]:
    """Category id → class, by the category's name; its name where the yaml has none such."""
    known = {name: i for i, name in enumerate(config.label_names)}
    categories: dict[Any, int | str] = {}
    for place, item in enumerate(items, 1):
        number, name = (item.get("id"), item.get("name")) if isinstance(item, dict) else (None, None)
        if not _is_id(number) or not isinstance(name, str):
            text = f"id {shorten(repr(number))}, name {shorten(repr(name))}: a category has both: correct it"
            faults.append(Fault.of("coco-category", file, f"category {place}", text))
        elif number in categories:
            text = f"the id {number!r} is there twice, so nobody knows which class is meant: give each its own"
            raise DataError(Fault.of("coco-category-twice", file, f"category {place}", text))
        else:
            categories[number] = known.get(name.strip(), name.strip())
    if not any(isinstance(value, int) for value in categories.values()):
        have, want = (", ".join(list(names)[:5]) + ", …" * (len(names) > 5) for names in (categories.values(), known))
        text = f"none is a category of {file} (it has {have or 'none'}; the yaml has {want}): write both alike"
        raise DataError(Fault.of("coco-category-none", str(config.file), "names", text))
    return categories


def _images(file: str, items: list[Any], faults: list[Fault]) -> dict[Any, dict[str, Any]]:
    """Image id → its entry, for those that have an id and a file name of their own."""
    images: dict[Any, dict[str, Any]] = {}
    names: dict[str, Any] = {}
    for place, item in enumerate(items, 1):
        key, name = (item.get("id"), item.get("file_name")) if isinstance(item, dict) else (None, None)
        where = f"image {place}"
        if not _is_id(key) or not isinstance(name, str) or not name.strip():
            text = f"id {shorten(repr(key))}, file_name {shorten(repr(name))}: an image has a number or text and a file"
            faults.append(Fault.of("coco-image", file, where, f"{text}: correct it"))
        elif key in images:
            text = f"the id {key!r} is that of '{images[key]['file_name']}' already: give '{name}' an id of its own"
            faults.append(Fault.of("coco-image-twice", file, where, text))
        elif name in names:
            text = f"'{name}' is there already, with the id {names[name]!r}: give all its annotations that id"
            faults.append(Fault.of("coco-file-twice", file, where, text))
        else:
            images[key] = item
            names[name] = key
    return images


def _rows(
    file: str,
    items: list[Any],
    images: dict[Any, Any],
    categories: dict[Any, int | str],
    config: DataConfig,
    faults: list[Fault],
) -> _Rows:
    place = {key: i for i, key in enumerate(images)}
    rows, seen, unknown = _Rows(), set(), Counter()
    for i, item in enumerate(items, 1):
        number = item.get("id") if isinstance(item, dict) else None
        number = number if _is_id(number) else i
        where = f"annotation {shorten(number)}"
        try:
            row, label = _target(item, place, categories)
            if isinstance(label, str):
                unknown[label] += 1
                continue
            box, crowd, area = _box(item), _crowd(item), item.get("area")
        except _ItemFault as fault:
            faults.append(Fault.of(fault.kind, file, where, str(fault)))
            continue
        if number in seen:
            text = "the id is there twice: both annotations are read"
            faults.append(Fault.of("coco-annotation-twice", file, where, text))
        seen.add(number)
        rows.images.append(row)
        rows.numbers.append(number)
        rows.boxes.append(box)
        rows.classes.append(label)
        rows.crowd.append(crowd)
        rows.areas.append(float(area) if _is_number(area) else float("nan"))
    for name, count in unknown.items():
        hint = nearest(name, config.label_names)
        text = f"isn't among the names, and {count:,} annotation{'s have' if count > 1 else ' has'} it{hint}"
        faults.append(Fault.of("coco-category-unknown", file, f"category '{shorten(name)}'", text))
    return rows


def _target(item: Any, place: dict[Any, int], categories: dict[Any, int | str]) -> tuple[int, int | str]:
    """The image's place and the class of an annotation (its name, where the yaml has none such)."""
    if not isinstance(item, dict):
        raise _ItemFault("coco-annotation", f"'{shorten(item)}' is no map: take it out")
    image, category = item.get("image_id"), item.get("category_id")
    if not _is_id(image) or image not in place:
        raise _ItemFault(
            "coco-image-id", f"image_id {shorten(repr(image))} isn't an image's{_other_kind(image, place)}"
        )
    if not _is_id(category) or category not in categories:
        hint = _other_kind(category, categories)
        raise _ItemFault("coco-category-id", f"category_id {shorten(repr(category))} isn't a category's{hint}")
    return place[image], categories[category]


def _other_kind(value: object, known: dict[Any, Any]) -> str:
    """How to mend an id that isn't known: the same one may be there as a number for a text, or the other way round."""
    if isinstance(value, str) and value.isdecimal() and int(value[:18]) in known:
        return f", the number {value} is: write it without quotes"
    if isinstance(value, int) and str(value) in known:
        return f", the text '{value}' is: write it in quotes"
    return ": correct it, or take the annotation out"


def _is_number(value: object) -> bool:
    """A number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 10**300


def _box(item: dict[str, Any]) -> list[float]:
    """The corners of an annotation."""
    box = item.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        have = "there is no bbox" if box is None else f"bbox {shorten(box)} isn't four numbers"
        raise _ItemFault("coco-box", f"{have}: write [x, y, width, height] in pixels")
    x, y, wide, high = map(float, box)
    if wide < 0 or high < 0:
        text = f"bbox {shorten(box)} has a size below zero: it is [x, y, width, height], x and y at the top left"
        raise _ItemFault("coco-negative", text)
    return [x, y, x + wide, y + high]


def _crowd(item: dict[str, Any]) -> bool:
    value = item.get("iscrowd")
    if value not in (None, 0, 1):
        raise _ItemFault("coco-crowd", f"iscrowd {shorten(repr(value))} is neither 0 nor 1: correct it")
    return bool(value)


def _image_path(folder: Path, name: str) -> str:
    """The image's path: some exports put a folder before the name that isn't there, or write backslashes."""
    if os.path.exists(folder / name):
        return os.path.abspath(folder / name)
    name = name.replace("\\", "/")
    path, plain = os.path.abspath(folder / name), os.path.abspath(folder / os.path.basename(name))
    return plain if plain != path and not os.path.exists(path) and os.path.exists(plain) else path


def read_coco(
    label: str, width: int, height: int, say: Say, *, table: CocoTable, row: int, stated: Any, image: str
) -> Objects:
    """The objects of the image that is number `row` of the table."""
    differs = size_differs(stated, width, height)
    if differs:
        raise BadLabels("coco-size", label, image, differs)
    own = slice(table.offsets[row], table.offsets[row + 1])
    refuse_shares(table.boxes[own], label, image)
    return Objects(table.boxes[own], table.classes[own], table.crowd[own], table.areas[own], table.numbers[own])
