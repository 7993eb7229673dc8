"""Label readers: hand-worked tables, a property between formats, and every fault said by file and number."""

from __future__ import annotations

import json
import os
import struct
import tempfile
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.config import DataConfig, load_data_config
from data.faults import Fault
from data.formats import Record, label_paths, read_split
from data.images import image_size
from utils.errors import UserError

NAMES = "names: [cat, dog, hot dog]\n"
Row = tuple[int, float, float, float, float]


def image(path: Path, width: int = 100, height: int = 50, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def read(folder: Path, yaml: str, split: str = "train", **options: bool) -> tuple[list[Record], list[Fault]]:
    return read_split(load_data_config(text(folder / "data.yaml", yaml), **options), split)


def rows(record: Record) -> list[Row]:
    return [(int(label), *map(float, box)) for label, box in zip(record.classes, record.boxes, strict=True)]


def says(faults: list[Fault]) -> list[str]:
    return [f"{os.path.basename(fault.file)}:{fault.where}: {fault.text}" for fault in faults]


def yolo(folder: Path, labels: str, width: int = 100, height: int = 50, extra: str = "") -> tuple[Record, list[str]]:
    """Read one image with these labels. A second image with one box keeps the split from being empty."""
    image(folder / "images/a.png", width, height)
    text(folder / "labels/a.txt", labels)
    image(folder / "images/b.png")
    text(folder / "labels/b.txt", "0 .5 .5 1 1")
    records, faults = read(folder, f"train: images\n{NAMES}{extra}")
    return records[0], says(faults)


def voc(*objects: tuple[str, Any, Any, Any, Any], size: tuple[int, int] | None = None, extra: str = "") -> str:
    parts = []
    for name, *corners in objects:
        keys = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{key}>{value}</{key}>" for key, value in keys)
        parts.append(f"<object><name>{name}</name>{extra}<bndbox>{box}</bndbox></object>")
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation>{stated}{''.join(parts)}</annotation>"


# ---------------------------------------------------------------- YOLO


def test_yolo_box(tmp_path: Path) -> None:
    record, faults = yolo(tmp_path, "1 0.5 0.5 0.25 0.5\n\n  2 0.1 0.2 0.2 0.4  \r\n0.0 5e-1 .5 1 1\n")
    # 100 x 50: centre 50, 25, size 25 x 25; centre 10, 10, size 20 x 20; all of it
    assert rows(record) == [(1, 37.5, 12.5, 62.5, 37.5), (2, 0, 0, 20, 20), (0, 0, 0, 100, 50)]
    assert record.areas.tolist() == [625, 400, 5000] and not record.crowd.any() and not faults
    assert (record.width, record.height, record.name) == (100, 50, "images/a.png")
    dtypes = (record.boxes.dtype, record.classes.dtype, record.crowd.dtype, record.areas.dtype)
    assert dtypes == (np.float32, np.int32, bool, np.float32)


def test_yolo_polygon_becomes_its_box(tmp_path: Path) -> None:
    record, faults = yolo(tmp_path, "0 .1 .2 .5 .4 .3 .8\n1 .2 .2 .4 .2 .4 .6 .2 .6\n")
    assert rows(record) == [(0, 10, 10, 50, 40), (1, 20, 10, 40, 30)] and not faults


def test_yolo_pose_rows_are_boxes_where_the_yaml_says_so(tmp_path: Path) -> None:
    row = "0 .5 .5 .2 .2 .9 .9 .1 .1\n"  # a box and two points, or four points
    assert rows(yolo(tmp_path, row, extra="kpt_shape: [2, 2]\n")[0]) == [(0, 40, 20, 60, 30)]
    assert rows(yolo(tmp_path, row)[0]) == [(0, 10, 5, 90, 45)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("3 .5 .5 .1 .1", "class 3 is out of range (names has 3: 0 to 2): dropped"),
        ("-1 .5 .5 .1 .1", "class -1 is out of range"),
        ("0.5 .5 .5 .1 .1", "class 0.5 is out of range"),
        ("nan .5 .5 .1 .1", "class nan is out of range"),
        ("inf .5 .5 .1 .1", "class inf is out of range"),
        ("0 .5 .5 .1", "4 numbers; a row is"),
        ("0 .5 .5 .1 .1 .9", "6 numbers; a row is"),
        ("0", "1 numbers; a row is"),
        ("cat .5 .5 .1 .1", "not numbers: 'cat .5 .5 .1 .1': dropped"),
        ("0,.5,.5,.1,.1", "not numbers"),
        ("0 nan .5 .1 .1", "isn't finite: dropped"),
        ("0 .5 .5 inf .1", "isn't finite: dropped"),
        ("0 1e308 .5 .1 .1", "isn't finite: dropped"),
        ("0 .1 .1 .5 nan .3 .8", "isn't finite: dropped"),
        ("0 .5 .5 0 .1", "box (50, 22.5, 50, 27.5) has no area: dropped"),
        ("0 .5 .5 -.1 .1", "has no area: dropped"),
        ("0 .5 .5 .000001 .1", "has no area: dropped"),
        ("0 1.5 .5 .1 .1", "box (145, 22.5, 155, 27.5) is outside the 100 x 50 image: dropped"),
        ("0 1.05 .5 .1 .1", "is outside the 100 x 50 image: dropped"),  # touches the edge
        ("0 50 25 10 10", "is outside the 100 x 50 image: dropped"),  # pixels instead of shares
    ],
)
def test_a_faulty_yolo_row_is_dropped_and_said(tmp_path: Path, row: str, message: str) -> None:
    record, faults = yolo(tmp_path, f"1 .5 .5 .5 .5\n{row}\n2 .5 .5 .5 .5\n")
    assert record.classes.tolist() == [1, 2]
    assert len(faults) == 1 and faults[0].startswith("a.txt:line 2: ") and message in faults[0]


def test_boxes_that_leave_the_image_are_clipped_and_from_1_px_said(tmp_path: Path) -> None:
    record, faults = yolo(tmp_path, "0 .0 .5 .2 1\n1 .05 .5 .115 1\n2 .5 .5 2 2\n")
    assert rows(record) == [(0, 0, 0, 10, 50), (1, 0, 0, 10.75, 50), (2, 0, 0, 100, 50)]
    assert faults == [
        "a.txt:line 1: box (-10, 0, 10, 50) leaves the 100 x 50 image by 10 px: clipped",
        "a.txt:line 3: box (-50, -25, 150, 75) leaves the 100 x 50 image by 50 px: clipped",
    ]
    assert record.areas.tolist() == [500, 537.5, 5000]


def test_yolo_labels_beside_the_image_or_in_labels(tmp_path: Path) -> None:
    assert label_paths("/images/x/images/a.b/c.jpg") == ["/images/x/labels/a.b/c.txt", "/images/x/images/a.b/c.txt"]
    assert label_paths("/x/imagesets/c.jpg") == ["/x/imagesets/c.txt"]
    assert label_paths("images/images.jpg") == ["labels/images.txt", "images/images.txt"]
    image(tmp_path / "images/sub/a.png")
    image(tmp_path / "images/B.JPG")
    text(tmp_path / "labels/sub/a.txt", "0 .5 .5 1 1")
    text(tmp_path / "images/B.txt", "\ufeff1 .5 .5 1 1")
    records, faults = read(tmp_path, f"train: images\n{NAMES}")
    assert [(record.name, record.classes.tolist()) for record in records] == [
        ("images/B.JPG", [1]),
        ("images/sub/a.png", [0]),
    ]
    assert not faults


def test_an_image_without_labels_is_a_background(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    text(tmp_path / "labels/a.txt", "0 .5 .5 1 1")
    image(tmp_path / "images/none.png")
    image(tmp_path / "images/empty.png")
    text(tmp_path / "labels/empty.txt", "")
    records, faults = read(tmp_path, f"train: images\n{NAMES}")
    assert [len(record.boxes) for record in records] == [1, 0, 0] and not faults
    assert records[1].boxes.shape == (0, 4)


def test_txt_lists(tmp_path: Path) -> None:
    for name in ("set/images/a.png", "set/images/b.png", "lists/images/c.png", "elsewhere/d.png"):
        image(tmp_path / name)
    text(tmp_path / "elsewhere/d.txt", "0 .5 .5 1 1")
    listed = f"images/b.png\n\n./images/c.png\n{tmp_path}/elsewhere/d.png\nimages/none.png\nimages/b.png\n"
    text(tmp_path / "lists/train.txt", listed)
    records, faults = read(tmp_path, f"path: set\ntrain: [../lists/train.txt]\n{NAMES}")
    names = ["../elsewhere/d.png", "../lists/images/c.png", "images/b.png", "images/b.png"]
    assert [record.name for record in records] == names
    assert len(faults) == 2
    assert faults[0].where == "line 5" and faults[0].text.startswith(
        f"no such image: images/none.png (tried {tmp_path}/set"
    )
    assert faults[1] == Fault(str(tmp_path / "set/images/b.png"), "", "listed 2 times, and counts as often")


def test_nothing_in_a_folder_is_left_out_in_silence(tmp_path: Path) -> None:
    for name in ("images/a.png", "images/.hidden.png", "images/__MACOSX/x.png", "images/sub/b.png"):
        image(tmp_path / name)
    text(tmp_path / "images/c.heic", "")
    text(tmp_path / "images/empty.jpg", "")
    text(tmp_path / "images/page.jpg", "<html>")
    text(tmp_path / "images/notes.md", "")
    text(tmp_path / "labels/a.txt", "0 .5 .5 1 1")
    text(tmp_path / "labels/lost.txt", "0 .5 .5 1 1")
    text(tmp_path / "labels/classes.txt", "cat\ndog\n")
    (tmp_path / "labels/sub").mkdir()
    (tmp_path / "labels/sub/b.txt").write_bytes(b"\xff\xfe0")
    (tmp_path / "images/loop").symlink_to(tmp_path / "images")
    records, faults = read(tmp_path, f"train: images\n{NAMES}")
    assert [record.name for record in records] == ["images/a.png"]
    assert [(os.path.basename(fault.file), fault.text.split(":")[0]) for fault in faults] == [
        ("c.heic", "not a kind of image that is read"),
        ("lost.txt", "no image for these labels"),
        ("empty.jpg", "an empty file"),
        ("page.jpg", "not an image but an HTML page (a failed download)"),
        ("b.txt", "the labels can't be read"),
    ]


def test_a_split_without_images_or_boxes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="train: no images in .*/images"):
        read(tmp_path, f"train: images\n{NAMES}")
    image(tmp_path / "images/a.png")
    with pytest.raises(UserError, match="train: no boxes in 1 images .labels looked for as .*/labels/a.txt"):
        read(tmp_path, f"train: images\n{NAMES}")
    text(tmp_path / "labels/a.txt", "7 .5 .5 1 1")
    with pytest.raises(UserError, match="no boxes in 1 images .*; first fault: .*a.txt:line 1: class 7"):
        read(tmp_path, f"train: images\n{NAMES}")
    text(tmp_path / "images/a.png", "")
    with pytest.raises(UserError, match="no image can be read; first fault: .*a.png"):
        read(tmp_path, f"train: images\n{NAMES}")
    with pytest.raises(UserError, match="neither a folder of images nor a txt list"):
        read(tmp_path, f"train: images/a.png\n{NAMES}")
    text(tmp_path / "x.json", "{}")
    with pytest.raises(UserError, match="a COCO json is given as {images: FOLDER, annotations: FILE.json}"):
        read(tmp_path, f"train: x.json\n{NAMES}")


def test_single_cls_reads_all_classes_as_one(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    text(tmp_path / "labels/a.txt", "2 .5 .5 1 1\n1 .5 .5 .5 .5\n3 .5 .5 1 1")
    records, faults = read(tmp_path, f"train: images\n{NAMES}", single_cls=True)
    assert records[0].classes.tolist() == [0, 0] and len(faults) == 1


# ---------------------------------------------------------------- image headers


@pytest.mark.parametrize("suffix", ["jpg", "mpo", "png", "webp", "tif", "bmp", "ppm"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_the_size_is_that_of_the_image_opencv_decodes(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = image(tmp_path / f"a.{suffix}", 60, 40, orientation)
    height, width = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    assert image_size(path) == (width, height)


def test_labels_are_in_the_upright_image(tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg", 100, 50, 6)
    text(tmp_path / "labels/a.txt", "0 .5 .5 1 .5")
    records, _ = read(tmp_path, f"train: images\n{NAMES}")
    assert (records[0].width, records[0].height) == (50, 100) and rows(records[0]) == [(0, 0, 25, 50, 75)]


def png_header(width: int, height: int) -> bytes:
    """A PNG with a sound header and structure, and no pixels: what an image looks like to who doesn't decode it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", bytes(3 * width * height // 1032 + 1))  # the least that could hold so many
        + chunk(b"IEND", b"")
    )


def test_large_images_and_pillows_limit(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    image(tmp_path / "images/a.png")
    text(tmp_path / "labels/a.txt", "0 .5 .5 1 1")
    (tmp_path / "images/large.png").write_bytes(png_header(30_000, 30_000))  # above Pillow's limit: satellites do this
    (tmp_path / "images/too_large.png").write_bytes(png_header(40_000, 40_000))  # above OpenCV's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records, faults = read(tmp_path, f"train: images\n{NAMES}")
    assert [record.width for record in records] == [100, 30_000]
    assert len(faults) == 1 and "too_large.png:: 40000 x 40000 pixels are more than can be decoded" in says(faults)[0]
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_broken_exif_block_turns_nothing(tmp_path: Path) -> None:
    path = image(tmp_path / "images/a.jpg")
    Image.new("RGB", (60, 40)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09garbage")
    text(tmp_path / "labels/a.txt", "0 .5 .5 1 1")
    records, faults = read(tmp_path, f"train: images\n{NAMES}")
    assert (records[0].width, records[0].height) == (60, 40) and not faults
    assert cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape == (40, 60, 3)


# ---------------------------------------------------------------- Pascal VOC

VOC_YAML = f"train: {{images: JPEGImages, annotations: Annotations}}\n{NAMES}"
LISTED_YAML = f"train: {{images: JPEGImages, annotations: Annotations, split: train.txt}}\n{NAMES}"


def read_voc(folder: Path, annotation: str | bytes, yaml: str = VOC_YAML) -> tuple[list[Record], list[str]]:
    image(folder / "JPEGImages/a.jpg")
    image(folder / "JPEGImages/b.jpg")
    text(folder / "Annotations/b.xml", voc(("cat", 0, 0, 9, 9)))
    data = annotation.encode() if isinstance(annotation, str) else annotation
    (folder / "Annotations/a.xml").write_bytes(data)
    records, faults = read(folder, yaml)
    return records, says(faults)


def test_voc_numbers_are_taken_as_they_are(tmp_path: Path) -> None:
    annotation = voc(
        ("hot dog", 1, 2, 30, 40), (" cat ", "10.5", "2e1", " 99 ", "50"), extra="<difficult>1</difficult>"
    )
    records, faults = read_voc(tmp_path, annotation)
    assert rows(records[0]) == [(2, 1, 2, 30, 40), (0, 10.5, 20, 99, 50)]
    assert records[0].areas.tolist() == [29 * 38, 88.5 * 30] and not records[0].crowd.any() and not faults


def test_voc_parts_are_no_objects(tmp_path: Path) -> None:
    part = "<part><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    records, faults = read_voc(tmp_path, voc(("cat", 1, 2, 30, 40), extra=part))
    assert rows(records[0]) == [(0, 1, 2, 30, 40)] and not faults


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (("cow", 1, 1, 9, 9), "object 2: 'cow' isn't among the names: dropped"),
        (("Hot Dog", 1, 1, 9, 9), "object 2: 'Hot Dog' isn't among the names"),
        (("dgo", 1, 1, 9, 9), "object 2: 'dgo' isn't among the names; did you mean 'dog'?: dropped"),
        (("", 1, 1, 9, 9), "object 2: '' isn't among the names"),
        (("dog", "one", 1, 9, 9), "object 2: the bndbox isn't four numbers (xmin 'one', ymin '1', xmax '9', ymax '9')"),
        (("dog", "", 1, 9, 9), "object 2: the bndbox isn't four numbers"),
        (("dog", "nan", 1, 9, 9), "object 2: box (nan, 1, 9, 9) isn't finite: dropped"),
        (("dog", 9, 1, 9, 9), "object 2: box (9, 1, 9, 9) has no area: dropped"),
        (("dog", 9, 9, 1, 1), "object 2: box (9, 9, 1, 1) has no area: dropped"),
        (("dog", 101, 1, 120, 9), "object 2: box (101, 1, 120, 9) is outside the 100 x 50 image: dropped"),
    ],
)
def test_a_faulty_voc_object_is_dropped_and_said(tmp_path: Path, item: tuple, message: str) -> None:
    records, faults = read_voc(tmp_path, voc(("cat", 1, 2, 30, 40), item, ("dog", 3, 4, 30, 40)))
    assert rows(records[0]) == [(0, 1, 2, 30, 40), (1, 3, 4, 30, 40)]
    assert len(faults) == 1 and faults[0].startswith(f"a.xml:{message}")


def test_voc_size_is_not_trusted_but_a_wrong_one_is_said(tmp_path: Path) -> None:
    for size in (None, (0, 0), (100, 50)):
        records, faults = read_voc(tmp_path, voc(("cat", 1, 2, 100, 50), size=size))
        assert (records[0].width, records[0].height) == (100, 50) and not faults
    records, faults = read_voc(tmp_path, voc(("cat", 1, 2, 100, 50), size=(50, 100)))
    assert (records[0].width, records[0].height) == (100, 50) and rows(records[0]) == [(0, 1, 2, 100, 50)]
    assert faults == ["a.xml:size: the labels say 50 x 100, the image is 100 x 50; the boxes are taken as they are"]


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha">' + "".join(
    f'<!ENTITY {chr(99 + i)} "{f"&{chr(98 + i)};" * 10}">' for i in range(10)
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            f"<?xml version='1.0'?>{LAUGHS}]><annotation><object><name>&l;</name></object></annotation>",
            "have a DOCTYPE",
        ),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "have a DOCTYPE"),
        ("<?xml version='1.0' encoding='utf-16'?><!DOCTYPE a><annotation/>".encode("utf-16"), "have a DOCTYPE"),
        ("<annotation><object>", "aren't XML: no element found"),
        ("", "aren't XML"),
        ("<annotation>&unknown;</annotation>", "aren't XML"),
        ("<?xml version='1.0' encoding='nonsense'?><annotation/>", "aren't XML"),
        (b"\x00\xff\x00", "aren't XML"),
    ],
)
def test_an_unreadable_annotation_leaves_the_image_out(tmp_path: Path, data: str | bytes, message: str) -> None:
    """As a background it would teach the model that what is on it is nothing."""
    begin = time.perf_counter()
    records, faults = read_voc(tmp_path, data)
    assert time.perf_counter() - begin < 2
    assert [record.name for record in records] == ["JPEGImages/b.jpg"]
    assert len(faults) == 1 and message in faults[0] and faults[0].endswith("; the image is left out")


def test_voc_split_lists(tmp_path: Path) -> None:
    image(tmp_path / "JPEGImages/sub/c.d.png")
    text(tmp_path / "Annotations/sub/c.d.xml", voc(("dog", 1, 2, 3, 4)))
    text(tmp_path / "Annotations/other.xml", voc(("dog", 1, 2, 3, 4)))
    image(tmp_path / "JPEGImages/b.png")
    text(tmp_path / "train.txt", "a\r\n\nsub/c.d.png\nx\nb\n")
    records, faults = read_voc(tmp_path, voc(("cat", 1, 2, 30, 40)), LISTED_YAML)
    assert [record.name for record in records] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/sub/c.d.png"]
    assert [len(record.boxes) for record in records] == [1, 1, 1]
    assert faults == [
        "train.txt:line 4: no image is called 'x'",
        "train.txt:line 5: 'b' names 2 images, the first is taken: b.jpg, b.png",
    ]
    _, faults = read_voc(tmp_path, voc(("cat", 1, 2, 30, 40)))  # without a list, labels without an image are lost
    assert faults == [
        "other.xml:: no image for these labels: left out",
        "b.xml:: the label file of JPEGImages/b.jpg and of JPEGImages/b.png, give all but one of them another name",
    ]


# ---------------------------------------------------------------- COCO


def coco(images: list[Any], annotations: list[Any], names: tuple[str, ...] = ("cat", "dog", "hot dog")) -> str:
    """Category ids 10, 20, …, in the reverse order of the names."""
    ids = {name: 10 * (i + 1) for i, name in enumerate(reversed(names))}
    listed = [{"id": number, "name": name, "supercategory": "x"} for name, number in ids.items()]
    return json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": listed})


def annotation(
    number: int, image_id: Any = 1, category: Any = 30, bbox: Any = (1, 2, 3, 4), **more: Any
) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": bbox, **more}


COCO_YAML = f"train: {{images: images, annotations: c.json}}\n{NAMES}"
A, B = {"id": 1, "file_name": "a.png", "width": 100, "height": 50}, {"id": "two", "file_name": "train/b.png"}


def read_coco(folder: Path, content: str, yaml: str = COCO_YAML) -> tuple[list[Record], list[str]]:
    image(folder / "images/a.png")
    image(folder / "images/b.png", 30, 30)
    text(folder / "c.json", content)
    records, faults = read(folder, yaml)
    return records, says(faults)


def test_coco(tmp_path: Path) -> None:
    square = {"segmentation": [[1, 1, 2, 2, 3, 1]], "area": 5.5, "iscrowd": 0}
    items = [
        annotation(1, "two", 10, [1.5, 2, 10, 20], iscrowd=1, area=7),
        annotation(2, 1, 30, [0, 0, 100, 50]),
        annotation(3, 1, 20, [10, 20, 3.25, 4], **square),
        annotation(4, "two", 30, [-0.5, 0, 30.75, 30], area=925),
        annotation(5, "two", 30, [0, 0, 1, 2], area=-1),
    ]
    records, faults = read_coco(tmp_path, coco([B, A], items))
    assert [record.name for record in records] == ["images/a.png", "images/b.png"]  # `train/` isn't there
    assert rows(records[0]) == [(0, 0, 0, 100, 50), (1, 10, 20, 13.25, 24)]
    assert rows(records[1]) == [(2, 1.5, 2, 11.5, 22), (0, 0, 0, 30, 30), (0, 0, 0, 1, 2)]
    assert [record.crowd.tolist() for record in records] == [[False, False], [True, False, False]]
    # as given; that of the box where none is; never more than what is left of a clipped box
    assert [record.areas.tolist() for record in records] == [[5000, 5.5], [7, 900, 2]]
    assert not faults


def test_coco_categories_go_by_name(tmp_path: Path) -> None:
    content = coco([A], [annotation(1), annotation(2, category=20)], ("dog", "animals", "cat"))
    records, faults = read_coco(tmp_path, content)  # ids: cat 10, animals 20, dog 30
    assert rows(records[0])[0][0] == 1
    assert faults == ["c.json:annotation 2: category 'animals' isn't among the names: dropped"]
    with pytest.raises(
        UserError, match=r"names: none is a category of .*c.json \(it has c, b, a; the yaml has cat, dog, hot dog\)"
    ):
        read_coco(tmp_path, coco([A], [annotation(1)], ("a", "b", "c")))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (annotation(9, image_id=5), "c.json:annotation 9: image_id 5 isn't an image's: dropped"),
        (annotation(9, image_id=[1]), "c.json:annotation 9: image_id [1] isn't an image's"),
        (annotation(9, category=5), "c.json:annotation 9: category_id 5 isn't a category's"),
        (annotation(9, bbox=[1, 2, 3]), "c.json:annotation 9: bbox [1, 2, 3] isn't four numbers"),
        (annotation(9, bbox=["1", 2, 3, 4]), "c.json:annotation 9: bbox ['1', 2, 3, 4] isn't four numbers"),
        (annotation(9, bbox=None), "c.json:annotation 9: bbox None isn't four numbers"),
        (annotation(9, bbox=[1, 2, float("nan"), 4]), "c.json:a.png: annotation 9: box (1, 2, nan, 6) isn't finite"),
        (annotation(9, bbox=[1, 2, 0, 4]), "c.json:a.png: annotation 9: box (1, 2, 1, 6) has no area: dropped"),
        (annotation(9, bbox=[1, 2, -3, 4]), "c.json:a.png: annotation 9: box (1, 2, -2, 6) has no area"),
        (
            annotation(9, bbox=[90, 2, 30, 4]),
            "c.json:a.png: annotation 9: box (90, 2, 120, 6) leaves the 100 x 50 image",
        ),
        ({"bbox": [1, 2, 3, 4]}, "c.json:annotation 2: image_id None isn't an image's"),
        ("text", "c.json:annotation 2: image_id None isn't an image's"),
    ],
)
def test_a_faulty_coco_annotation_is_said(tmp_path: Path, item: Any, message: str) -> None:
    records, faults = read_coco(tmp_path, coco([A], [annotation(1), item]))
    assert rows(records[0])[0] == (0, 1, 2, 4, 6)
    assert len(faults) == 1 and faults[0].startswith(message)


def test_faulty_coco_images_are_said(tmp_path: Path) -> None:
    images = [A, {"id": 3}, {"id": 1, "file_name": "b.png"}, {"id": 4, "file_name": "a.png"}, 5]
    images += [{"id": 6, "file_name": "none.png"}, {"id": 7, "file_name": "b.png", "width": 30, "height": 31}]
    records, faults = read_coco(tmp_path, coco(images, [annotation(1)]))
    assert [record.name for record in records] == ["images/a.png", "images/b.png"]
    assert [fault.split(":")[1] for fault in faults] == ["image 2", "image 3", "image 4", "image 5", "b.png", ""]
    assert "the labels say 30 x 31, the image is 30 x 30" in faults[4]
    assert faults[5].startswith("none.png:: no such image: ") and faults[5].endswith("; the image is left out")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"images": [], "annotations": {}, "categories": []}', "[" * 100_000]
)
def test_a_json_that_is_not_cocos(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match="c.json: not a COCO json"):
        read_coco(tmp_path, content)


def test_coco_split_lists(tmp_path: Path) -> None:
    text(tmp_path / "wanted.txt", "b\nx.png\n")
    yaml = COCO_YAML.replace("c.json", "c.json, split: wanted.txt")
    content = coco([A, {"id": 2, "file_name": "b.png"}], [annotation(1), annotation(2, 2)])
    records, faults = read_coco(tmp_path, content, yaml)
    assert [record.name for record in records] == ["images/b.png"]
    assert faults == ["wanted.txt:line 2: no image is called 'x.png'"]


# ---------------------------------------------------------------- between the formats


@st.composite
def labelled(draw: st.DrawFn) -> tuple[int, int, list[Row]]:
    """An image size and boxes on the grid of 1/256 px, inside it."""
    width, height = draw(st.integers(1, 2600)), draw(st.integers(1, 2600))

    def span(size: int) -> st.SearchStrategy[list[int]]:
        return st.lists(st.integers(0, size * 256), min_size=2, max_size=2, unique=True).map(sorted)

    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        (x1, x2), (y1, y2) = draw(span(width)), draw(span(height))
        boxes.append((draw(st.integers(0, 2)), x1 / 256, y1 / 256, x2 / 256, y2 / 256))
    return width, height, boxes


@settings(max_examples=40, deadline=None)
@given(case=labelled(), form=st.sampled_from([".6f", ".17g"]))
def test_all_formats_give_the_same_records(case: tuple[int, int, list[Row]], form: str) -> None:
    width, height, boxes = case
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "images").mkdir()
        (folder / "images/a.png").write_bytes(png_header(width, height))
        lines = []
        for label, x1, y1, x2, y2 in boxes:
            shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join([str(label), *(format(share, form) for share in shares)]))
        text(folder / "labels/a.txt", "\n".join(lines))
        names = ("cat", "dog", "hot dog")
        text(folder / "xml/a.xml", voc(*((names[label], *box) for label, *box in boxes)))
        items = [
            annotation(i, 1, 30 - 10 * label, [x1, y1, x2 - x1, y2 - y1])
            for i, (label, x1, y1, x2, y2) in enumerate(boxes)
        ]
        text(folder / "c.json", coco([A], items).replace('"width": 100, "height": 50', '"x": 0'))
        config = load(folder)
        for split in ("train", "val", "test"):
            (record,), faults = read_split(config, split)
            assert not faults
            assert rows(record) == [(label, *map(float, np.float32(box))) for label, *box in boxes]
            areas = [np.float32((x2 - x1) * (y2 - y1)) for _, x1, y1, x2, y2 in boxes]
            assert (
                record.areas.tolist() == areas
                and record.boxes.tobytes() == np.float32([b[1:] for b in boxes]).tobytes()
            )


def load(folder: Path) -> DataConfig:
    sources = "train: images\nval: {images: images, annotations: xml}\ntest: {images: images, annotations: c.json}\n"
    return load_data_config(text(folder / "data.yaml", sources + NAMES))


def test_records_are_sorted_and_the_folder_unchanged(tmp_path: Path) -> None:
    for name in ("b", "a10", "a2", "B", "ä"):
        image(tmp_path / f"images/{name}.png")
        text(tmp_path / f"labels/{name}.txt", "0 .5 .5 1 1")
    text(tmp_path / "data.yaml", f"train: images\n{NAMES}")
    before = snapshot(tmp_path)
    records, _ = read_split(load_data_config(tmp_path / "data.yaml"), "train")
    assert [record.name for record in records] == [f"images/{name}.png" for name in ("B", "a10", "a2", "b", "ä")]
    assert snapshot(tmp_path) == before


def snapshot(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*"))


def test_fault_text() -> None:
    assert str(Fault("a.txt", "line 3", "no area")) == "a.txt:line 3: no area"
    assert str(Fault("a.txt", "", "no area")) == "a.txt: no area"
