"""The images and labels of a split, in whatever format they lie on the disk. Nothing is left out without a word.

Boxes are continuous corners (x1, y1, x2, y2) in pixels of the image as it is seen (turned as its EXIF tag says), whose
size is read from the image's own header, so the same labels in another format give the same records.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from data.cache import change_marks, file_state
from data.clean_labels import CleanLabels, read_clean
from data.coco_json import scan_coco
from data.config import DataConfig, Source
from data.entries import Block, Entries, Listed, block_of
from data.faults import DataError, Fault
from data.images import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, Unreadable, header_notes, image_headers, read_header
from data.labels import BadLabels, Entry, Record, absolute_path, check_boxes, walk
from data.processes import FORKS, cores, in_processes
from data.voc_xml import folders_sharing, scan_voc
from data.yolo_txt import (
    NOTES,
    YoloImages,
    label_folder,
    label_paths,
    labels_alone,
    other_names,
    yolo_images,
    yolo_names,
)
from utils.errors import many

CHUNK = 512  # images that are read at a time
FEW = 1000 if FORKS else 20_000  # images that one process reads before others have started


def read_split(config: DataConfig, split: str) -> tuple[list[Record], list[Fault]]:
    """Read all images and labels of `train`, `val` or `test`: (records by image name, faults).

    What is faulty is left out, and what remains may be nothing; who trains on it looks at the faults first.
    Raises `DataError` where the split can't be read at all.
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
    total, blocks = len(entries), _read_blocks(entries, config)
    del entries  # the processes that read them have their own
    images = boxes = crowds = unlabelled = 0
    first, faulty = None, False
    for block in blocks:
        images += len(block)
        boxes += len(block.boxes)
        crowds += int(block.crowd.sum())
        unlabelled += len(block.unlabelled)
        faulty = faulty or bool(block.faults)
        first = first or next(iter(block.unlabelled), None)
        yield block
    if first is not None:
        yield block_of([], _unlabelled(config, split, first, unlabelled, total))
    if crowds:
        yield block_of([], _crowds(config, split, crowds, boxes))
    yield block_of([], _nothing_left(config, split, total, unlabelled, images, boxes - crowds, faulty or crowds > 0))


def split_state(config: DataConfig, split: str) -> Iterator[str]:
    """What all files that reading the split may depend on are like, there or not; more than needed does no harm."""
    for source in config.split(split).sources:
        yield from (_file_state(str(path)) for path in source.lists)
        if source.annotations is not None and not source.annotations.is_dir():
            yield _file_state(str(source.annotations))
        if source.images.is_dir():
            folders = {source.images, source.annotations or label_folder(source.images)}
            folders |= set(folders_sharing(source, config)) if source.annotations in folders else set()
            for folder in sorted(folder for folder in folders if folder.is_dir()):
                yield from _folder_state(str(folder), (*IMAGE_SUFFIXES, *OTHER_IMAGE_SUFFIXES, ".txt", ".xml"))
            yield from (_file_state(str(label_folder(source.images).parent / note)) for note in NOTES)
            continue
        yield _file_state(str(source.images))
        for image in yolo_images(source, config.root, []):
            yield from map(_file_state, (image, *label_paths(image)))


def _file_state(path: str) -> str:
    return f"{path}\0{file_state(path)}"


def _folder_state(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Path, size and times of the files with one of the suffixes, a folder at a time: one look at each file."""
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
                            files.append(f"{name}\0{change_marks(file.stat())}")
                        except OSError:
                            files.append(f"{name}\0absent")
        except OSError as error:
            files.append(str(error.errno))
        yield folder
        yield from sorted(files)
        waiting += sorted(folders)


def _scan_split(config: DataConfig, split: str) -> tuple[Entries, list[Fault]]:
    faults: list[Fault] = []
    fatal: list[Fault] = []
    entries = Entries()
    for source in config.split(split).sources:
        try:
            _scan_source(source, config, entries, faults)
        except DataError as error:
            fatal += error.faults
    entries.finish()
    if not len(entries) and not fatal:
        where = ", ".join(str(source.images) for source in config.split(split).sources)
        text = f"no images in {where}: put them there, or correct the path"
        fatal = [Fault.of("split-no-images", str(config.file), split, text)]
    if fatal:
        raise DataError(*fatal, *faults)
    for source in config.split(split).sources:
        listed = bool(source.lists) or (source.annotations is not None and not source.annotations.is_dir())
        others = _other_images(source.images) if source.images.is_dir() and not listed else []
        if source.annotations is None and source.images.is_dir():
            unread = {label for fault in others for label in label_paths(fault.file)}  # whose image is there
            faults += [fault for fault in labels_alone(source.images, entries) if fault.file not in unread]
            # The list above the labels may be that of several sources.
            faults += [fault for fault in other_names(source.images, config.label_names) if fault not in faults]
        faults += others
    for name, count in entries.repeated:
        path = os.path.join(config.root, name)
        faults.append(Fault.of("list-image-twice", path, "", f"listed {count} times, and counts as often"))
    for label, names in entries.shared_labels():
        if not os.path.lexists(label):
            continue
        text = f"the labels of {' and of '.join(names)}: give all but one of them another name"
        faults.append(Fault.of("image-two-of-one-stem", label, "", text))
    return entries, faults


def _scan_source(source: Source, config: DataConfig, entries: Entries, faults: list[Fault]) -> None:
    if source.annotations is None:
        entries.add(YoloImages(config), yolo_names(source, config, faults))
    else:
        own = source.annotations.is_dir()
        found, more = (scan_voc if own else scan_coco)(source, config)
        entries.add(Listed(found), ((entry.name, entry.label * own) for entry in found))
        faults += more


def _other_images(folder: Path) -> list[Fault]:
    faults = []
    for path in walk(folder, OTHER_IMAGE_SUFFIXES, IMAGE_SUFFIXES):
        if path.lower().endswith(IMAGE_SUFFIXES):
            text = "a folder with the name of an image: rename it, or put the image in its place"
            faults.append(Fault.of("image-folder", path, "", text))
        else:
            text = "not a kind of image that is read: save it as JPEG or PNG"
            faults.append(Fault.of("image-kind-not-read", path, "", text))
    return faults


def _unlabelled(config: DataConfig, split: str, first: Entry, missing: int, total: int) -> list[Fault]:
    """Images without a label file are images of nothing by convention; if they are many, the labels are elsewhere."""
    share = missing / total
    places = label_paths(first.image) if first.label.endswith(".txt") else [first.label]
    looked = f"for {first.name} it would be {' or '.join(places)}"
    count = f"{missing:,} of {total:,} images ({share:.1%}) without a label file"
    if share == 1:
        way = _other_format(split, first) or "put them there"
        kind, text = "split-no-labels", f"none of {total:,} images has a label file; {looked}: {way}"
    elif share > config.max_missing_labels:
        way = f"if these images show nothing of interest, write max_missing_labels: {_above(share)} in the data yaml"
        kind, text = "split-few-labels", f"{count}; {looked}; {way}"
    else:
        kind, text = "split-backgrounds", f"{count}, taken as images of nothing; {looked}"
    return [Fault.of(kind, str(config.file), split, text)]


def _other_format(split: str, first: Entry) -> str:
    """Say how annotations of another format are named that lie where labels would be; empty where there are none."""
    folder = os.path.dirname(first.image)
    for place in dict.fromkeys(os.path.dirname(path) for path in (first.image, *label_paths(first.image))):
        stem = os.path.splitext(os.path.basename(first.image))[0]
        if os.path.isfile(os.path.join(place, f"{stem}.xml")):
            return f"there is Pascal VOC XML: write {split}: {{images: {folder}, annotations: {place}}}"
        found = sorted(Path(place).glob("*.json"))
        if found:
            return f"if {found[0]} is COCO's, write {split}: {{images: {folder}, annotations: {found[0]}}}"
    return ""


def _above(share: float) -> float:
    """A round share that is no smaller."""
    return min(1.0, (int(share * 20) + 1) / 20)


def _crowds(config: DataConfig, split: str, crowds: int, total: int) -> list[Fault]:
    what = "outlines a crowd (iscrowd 1), which is no object" if crowds == 1 else "outline crowds (iscrowd 1)"
    text = f"{crowds:,} of {many(total, 'annotation')} {what}: not trained on"
    return [Fault.of("coco-crowds", str(config.file), split, f"{text}; what is found there counts neither way")]


def _nothing_left(
    config: DataConfig, split: str, total: int, unlabelled: int, images: int, objects: int, faulty: bool
) -> list[Fault]:
    """The fault of a split of which too little is sound."""
    file = str(config.file)
    if not images:
        text = f"none of the {total:,} images and its labels can be read: mend the faults that are said of them"
        return [Fault.of("split-no-images", file, split, text)]
    if not objects and unlabelled < total:
        text = f"no object in {many(images, 'image')}: all labels are empty; name the right folder"
        if faulty:
            text = f"no sound object in {images:,} images: mend the faults of the labels, or name the right folder"
        return [Fault.of("split-no-boxes", file, split, text)]
    return []


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
            images = [absolute_path(entries.name(i), config.root) for i in quick]
            found = read_clean(images, label_paths, len(config.label_names))
            if found.clean.all() and len(quick) == span[1] - span[0]:
                return self._clean_block(span, found)
            places = {i: k for k, i in enumerate(quick) if found.clean[k]}
            ends = np.cumsum(found.counts)
            records: list[Record] = []
            faults: list[Fault] = []
            unlabelled = [entries[i] for i, k in places.items() if not found.labelled[k]]
            for i in range(*span):
                k = places.get(i)
                if k is None:
                    record, more = _read_entry(entry := entries[i], config)
                    faults += more
                    unlabelled += [] if entry.labelled else [entry]
                    records += [record] if record is not None else []
                else:
                    own = slice(ends[k] - found.counts[k], ends[k])
                    records.append(self._clean_record(images[k], entries.name(i), found, k, own))
        return block_of(records, faults, unlabelled)

    def _clean_block(self, span: tuple[int, int], found: CleanLabels) -> Block:
        names, lengths = self._entries.names(*span)
        classes = np.zeros_like(found.classes) if self._config.single_cls else found.classes
        crowd = np.zeros(len(classes), bool)
        unlabelled = [self._entries[span[0] + int(k)] for k in np.flatnonzero(~found.labelled)]
        arrays = found.sizes, found.counts, found.boxes, classes, crowd, found.areas
        return Block(names, lengths, *arrays, unlabelled=unlabelled)

    def _clean_record(self, image: str, name: str, found: CleanLabels, k: int, own: slice) -> Record:
        width, height = found.sizes[k].tolist()
        classes = np.zeros_like(found.classes[own]) if self._config.single_cls else found.classes[own]
        crowd = np.zeros(len(classes), bool)
        return Record(Path(image), name, width, height, found.boxes[own], classes, crowd, found.areas[own])


def _read_entry(entry: Entry, config: DataConfig) -> tuple[Record | None, list[Fault]]:
    faults: list[Fault] = []

    def say(kind: str, where: str, text: str) -> None:
        faults.append(Fault.of(kind, entry.label, where, text))

    try:
        header = read_header(entry.image)
        faults += [Fault.of(kind, entry.image, "", text) for kind, text in header_notes(entry.image, header)]
        width, height = header.size
        objects = entry.read(entry.label, width, height, say)
    except Unreadable as error:
        return None, [*faults, Fault.of(error.kind, entry.image, "", str(error))]
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
