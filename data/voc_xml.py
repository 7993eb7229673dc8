"""Pascal VOC annotations: an XML file an image, an `<object>` an object, corners in pixels."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path
from xml.parsers import expat

import numpy as np

from data.config import DataConfig, Source
from data.faults import DataError, Fault
from data.images import IMAGE_SUFFIXES
from data.labels import (
    BadLabels,
    Entry,
    Objects,
    Say,
    label_alone,
    nearest,
    pick,
    read_label,
    refuse_shares,
    relative_name,
    shorten,
    size_differs,
    walk,
)

CORNERS = ("xmin", "ymin", "xmax", "ymax")
NO_ELEMENTS = expat.errors.codes[expat.errors.XML_ERROR_NO_ELEMENTS]
ENCODING = {expat.errors.codes[text] for text in (
    expat.errors.XML_ERROR_UNKNOWN_ENCODING, expat.errors.XML_ERROR_INCORRECT_ENCODING
)}  # fmt: skip
UNCLOSED = {NO_ELEMENTS, expat.errors.codes[expat.errors.XML_ERROR_UNCLOSED_TOKEN]}


def scan_voc(source: Source, config: DataConfig) -> tuple[list[Entry], list[Fault]]:
    """The images of a source and where their annotations are. Raises `DataError`."""
    assert source.annotations is not None
    if not source.images.is_dir():
        raise DataError(Fault.of("yaml-split-path", str(source.images), "", "`images` must be a folder"))
    images = {os.path.relpath(path, source.images): path for path in walk(source.images, IMAGE_SUFFIXES)}
    files = {name: str(source.annotations / f"{os.path.splitext(name)[0]}.xml") for name in images}
    faults: list[Fault] = []
    if source.lists:
        wanted, faults = pick(source.lists, images)
    else:
        wanted = list(images)
        used = set(files.values()) | _used_elsewhere(source, config)
        faults = [label_alone(path) for path in walk(source.annotations, (".xml",)) if path not in used]
    read = partial(read_voc, classes={name: i for i, name in enumerate(config.label_names)})
    entries = [
        Entry(relative_name(images[name], config.root), images[name], files[name], "object", read, there)
        for name in wanted
        for there in [os.path.lexists(files[name])]
    ]
    return entries, faults


def _used_elsewhere(source: Source, config: DataConfig) -> set[str]:
    """The annotations in the source's folder that are those of images of other sources, of any split."""
    return {
        str(source.annotations / f"{os.path.splitext(os.path.relpath(path, folder))[0]}.xml")
        for folder in folders_sharing(source, config)
        for path in walk(folder, IMAGE_SUFFIXES)
    }


def folders_sharing(source: Source, config: DataConfig) -> list[Path]:
    """The folders of other images, of any split, whose annotations lie in the same folder."""
    sources = {other for split in config.splits.values() if not split.missing for other in split.sources}
    folders = {other.images for other in sources if other.annotations == source.annotations}
    return sorted(folder for folder in folders - {source.images} if folder.is_dir())


def read_voc(label: str, width: int, height: int, say: Say, *, classes: dict[str, int]) -> Objects:
    """`<object>`s with `<name>` and `<bndbox>`, whose numbers are taken as they are (no 1 is subtracted)."""
    root = _parse(label)
    boxes: list[list[float]] = []
    labels: list[int] = []
    numbers: list[int] = []
    if root is not None:
        differs = size_differs([root.findtext(f"size/{key}") for key in ("width", "height")], width, height)
        if differs:
            raise BadLabels("voc-size", label, "size", differs)
    for number, item in enumerate(root.findall("object") if root is not None else (), 1):
        where, name = f"object {number}", (item.findtext("name") or "").strip()
        box = _box(item, where, say)
        if not name:
            say("voc-name-missing", where, "has no name: write the class in <name>")
        elif name not in classes:
            say("voc-name-unknown", where, f"'{shorten(name)}' isn't among the names{nearest(name, classes)}")
        elif box is not None:
            boxes.append(box)
            labels.append(classes[name])
            numbers.append(number)
    count = len(boxes)
    table = np.array(boxes, np.float64).reshape(-1, 4)
    refuse_shares(table, label, "")
    return Objects(table, np.array(labels, int), np.zeros(count, bool), np.full(count, np.nan), numbers)


def _box(item: ET.Element, where: str, say: Say) -> list[float] | None:
    """The corners of an object, or None and a fault."""
    found = item.findall("bndbox")
    if len(found) != 1:
        other = "; <robndbox>, a turned box, is not read" if item.find("robndbox") is not None else ""
        say("voc-box", where, f"has {len(found) or 'no'} <bndbox>{other}: write one, with {' '.join(CORNERS)}")
        return None
    texts = [(found[0].findtext(key) or "").strip() for key in CORNERS]
    try:
        box = [float(text) for text in texts]
        if any("_" in text or not text.isascii() for text in texts):  # Python would read 1_0 and １０ as 10
            raise ValueError
    except ValueError:
        shown = ", ".join(f"{key} '{shorten(text, 20)}'" for key, text in zip(CORNERS, texts, strict=True))
        hint = "write a point for the comma" if any("," in text for text in texts) else "correct it"
        say("voc-box", where, f"the bndbox isn't four numbers ({shown}): {hint}")
        return None
    if box[2] < box[0] or box[3] < box[1]:
        shown = "({:.6g}, {:.6g}, {:.6g}, {:.6g})".format(*box)
        say("voc-corners", where, f"box {shown} has its corners swapped: xmin and ymin are the smaller ones")
        return None
    return box


def _parse(path: str) -> ET.Element | None:
    """Parse an annotation; None where there is no file. A DOCTYPE can make a parser expand things, and is refused."""
    data = read_label(path)
    if data is None:
        return None
    if not data.strip():
        raise BadLabels(
            "voc-empty", path, "", "empty: put back the annotation, or delete it if the image shows nothing"
        )
    if b"<!DOCTYPE" in data.replace(b"\0", b""):  # the zeros of UTF-16
        raise BadLabels("voc-doctype", path, "", "has a DOCTYPE, which can make a parser do things: take it out")
    try:
        root = ET.fromstring(data)
    except ET.ParseError as error:
        raise _not_xml(path, data, error) from None
    except (LookupError, ValueError):
        text = "its first line names an encoding that can't be read: write encoding='utf-8', and save it so"
        raise BadLabels("voc-encoding", path, "line 1", text) from None
    if root.tag.lower() != "annotation":
        text = f"begins with <{shorten(root.tag)}>, not <annotation>: put back the annotation"
        raise BadLabels("voc-root", path, "", text)
    return root


def _not_xml(path: str, data: bytes, error: ET.ParseError) -> BadLabels:
    where = f"line {error.position[0]}"
    if error.code in UNCLOSED:
        return BadLabels("voc-not-xml", path, where, "ends in the middle: a copy that was cut off? put back the whole")
    said = re.match(rb"\s*<\?xml[^>]*encoding=.([-\w]+)", data)
    begins = data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")
    if error.code in ENCODING or (begins and (not said or said[1].lower() == b"utf-8") and not _is_utf8(data)):
        text = "not in the encoding that its first line says (UTF-8 where it says none): save it as UTF-8"
        return BadLabels("voc-encoding", path, where, text)
    return BadLabels("voc-not-xml", path, where, f"isn't XML ({error}): put back the annotation")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
