"""The images and labels of a split, in whatever format they lie on the disk. Nothing is left out without a word.

Boxes are continuous corners (x1, y1, x2, y2) in pixels of the image as it is seen (turned as its EXIF tag says), whose
size is read from the image's own header, so the same labels in another format give the same records.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from data.coco_json import scan_coco
from data.config import DataConfig, Source
from data.faults import DataError, Fault
from data.images import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, Unreadable, image_headers, image_size
from data.labels import BadLabels, Entry, Record, check_boxes, walk
from data.voc_xml import folders_sharing, scan_voc
from data.yolo_txt import label_folder, label_paths, labels_in, scan_yolo, yolo_images

THREADS = 8
CHUNK = 64  # images a thread reads at a time


def read_split(config: DataConfig, split: str) -> tuple[list[Record], list[Fault]]:
    """Read all images and labels of `train`, `val` or `test`: (records by image name, faults).

    What is faulty is left out, and what remains may be nothing; who trains on it looks at the faults first.
    Raises `DataError` where the split can't be read at all.
    """
    records, faults = [], []
    for record, found in iter_split(config, split):
        faults += found
        if record is not None:
            records.append(record)
    return records, faults


def iter_split(config: DataConfig, split: str) -> Iterator[tuple[Record | None, list[Fault]]]:
    """As `read_split`, an image at a time, each with the faults found in it (no record: the image is left out)."""
    entries, faults = _scan_split(config, split)
    yield None, faults
    images, boxes = 0, 0
    read = partial(_read_chunk, config=config)
    with image_headers(), ThreadPoolExecutor(THREADS) as pool:
        for chunk in pool.map(read, [entries[i : i + CHUNK] for i in range(0, len(entries), CHUNK)]):
            for record, found in chunk:
                images += record is not None
                boxes += 0 if record is None else len(record.boxes)
                yield record, found
    yield None, _nothing_left(config, split, entries, images, boxes)


def split_files(config: DataConfig, split: str) -> Iterator[str]:
    """All files that reading the split may depend on, whether they exist or not; more than needed does no harm."""
    for source in config.split(split).sources:
        yield from map(str, source.lists)
        if source.annotations is None:
            if source.images.is_file():
                yield str(source.images)
            images, _ = yolo_images(source, config.root)
            for image in images:
                yield image
                yield from label_paths(image)
            if source.images.is_dir():
                yield from walk(source.images, OTHER_IMAGE_SUFFIXES)
                yield from labels_in(label_folder(source.images))
            continue
        yield from walk(source.images, IMAGE_SUFFIXES + OTHER_IMAGE_SUFFIXES)
        if source.annotations.is_dir():
            yield from walk(source.annotations, (".xml",))
            for folder in folders_sharing(source, config):
                yield from walk(folder, IMAGE_SUFFIXES)
        else:
            yield str(source.annotations)


def _scan_split(config: DataConfig, split: str) -> tuple[list[Entry], list[Fault]]:
    faults: list[Fault] = []
    entries: list[Entry] = []
    fatal: list[Fault] = []
    for source in config.split(split).sources:
        try:
            found, more = _scan_source(source, config)
        except DataError as error:
            fatal += error.faults
            continue
        entries += found
        faults += more
    if not entries and not fatal:
        where = ", ".join(str(source.images) for source in config.split(split).sources)
        text = f"no images in {where}: put them there, or correct the path"
        fatal = [Fault.of("split-no-images", str(config.file), split, text)]
    if fatal:
        raise DataError(*fatal, *faults)
    for name, count in Counter(entry.name for entry in entries).items():
        if count > 1:
            path = os.path.join(config.root, name)
            faults.append(Fault.of("list-image-twice", path, "", f"listed {count} times, and counts as often"))
    faults += _unlabelled(config, split, entries)
    return sorted(entries, key=lambda entry: entry.name), faults


def _scan_source(source: Source, config: DataConfig) -> tuple[list[Entry], list[Fault]]:
    if source.annotations is None:
        entries, faults = scan_yolo(source, config)
    elif source.annotations.is_dir():
        entries, faults = scan_voc(source, config)
    else:
        entries, faults = scan_coco(source, config)
    if source.images.is_dir() and not source.lists and (source.annotations is None or source.annotations.is_dir()):
        faults += [
            Fault.of("image-kind-not-read", path, "", "not a kind of image that is read: save it as JPEG or PNG")
            for path in walk(source.images, OTHER_IMAGE_SUFFIXES)
        ]
    return entries, faults


def _unlabelled(config: DataConfig, split: str, entries: Sequence[Entry]) -> list[Fault]:
    """Images without a label file are images of nothing by convention; if they are many, the labels are elsewhere."""
    missing = [entry for entry in entries if not entry.labelled]
    if not missing:
        return []
    share = len(missing) / len(entries)
    places = label_paths(missing[0].image) if missing[0].label.endswith(".txt") else [missing[0].label]
    looked = f"for {missing[0].name} it would be {' or '.join(places)}"
    count = f"{len(missing):,} of {len(entries):,} images ({share:.1%}) without a label file"
    if share == 1:
        kind, text = (
            "split-no-labels",
            f"none of {len(entries):,} images has a label file; {looked}: put them there",
        )
    elif share > config.max_missing_labels:
        way = f"if these images show nothing of interest, write max_missing_labels: {_above(share)} in the data yaml"
        kind, text = "split-few-labels", f"{count}; {looked}; {way}"
    else:
        kind, text = "split-backgrounds", f"{count}, taken as images of nothing; {looked}"
    return [Fault.of(kind, str(config.file), split, text)]


def _above(share: float) -> float:
    """A round share that is no smaller."""
    return min(1.0, (int(share * 20) + 1) / 20)


def _nothing_left(config: DataConfig, split: str, entries: Sequence[Entry], images: int, boxes: int) -> list[Fault]:
    """The fault of a split of which too little is sound."""
    file = str(config.file)
    if not images:
        text = f"none of the {len(entries):,} images and its labels can be read: mend the faults that are said of them"
        return [Fault.of("split-no-images", file, split, text)]
    if not boxes and any(entry.labelled for entry in entries):
        text = f"no sound object in {images:,} images: mend the faults of the labels, or name the right folder"
        return [Fault.of("split-no-boxes", file, split, text)]
    return []


def _read_chunk(entries: Sequence[Entry], config: DataConfig) -> list[tuple[Record | None, list[Fault]]]:
    return [_read_entry(entry, config) for entry in entries]


def _read_entry(entry: Entry, config: DataConfig) -> tuple[Record | None, list[Fault]]:
    faults: list[Fault] = []

    def say(kind: str, where: str, text: str) -> None:
        faults.append(Fault.of(kind, entry.label, where, text))

    try:
        width, height = image_size(entry.image)
        objects = entry.read(entry.label, width, height, say)
    except Unreadable as error:
        kind = "image-missing" if str(error) == "no such image" else "image-unreadable"
        return None, [*faults, Fault.of(kind, entry.image, "", str(error))]
    except BadLabels as error:
        return None, [*faults, error.fault]
    keep, boxes, areas = check_boxes(objects, width, height, entry.unit, say)
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
