"""Pascal VOC XML: numbers as they are, every slip of an object, and files that are traps or no annotations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data.faults import Fault
from data.formats import Record
from tests.label_files import NAMES, image, read, rows, says, text, voc

BNDBOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
VOC_YAML = f"train: {{images: JPEGImages, annotations: Annotations}}\n{NAMES}"
LISTED_YAML = f"train: {{images: JPEGImages, annotations: Annotations, split: train.txt}}\n{NAMES}"


def read_voc(folder: Path, annotation: str | bytes, yaml: str = VOC_YAML) -> tuple[list[Record], list[Fault]]:
    image(folder / "JPEGImages/a.jpg")
    image(folder / "JPEGImages/b.jpg")
    text(folder / "Annotations/b.xml", voc(("cat", 0, 0, 9, 9)))
    data = annotation.encode() if isinstance(annotation, str) else annotation
    (folder / "Annotations/a.xml").write_bytes(data)
    return read(folder, yaml)


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
    ("item", "kind", "message"),
    [
        (("cow", 1, 1, 9, 9), "voc-name-unknown", "'cow' isn't among the names; add it to `names`"),
        (("Hot Dog", 1, 1, 9, 9), "voc-name-unknown", "'Hot Dog' isn't among the names; did you mean 'hot dog'?"),
        (("dgo", 1, 1, 9, 9), "voc-name-unknown", "'dgo' isn't among the names; did you mean 'dog'?"),
        (("", 1, 1, 9, 9), "voc-name-missing", "has no name"),
        (("dog", "one", 1, 9, 9), "voc-box", "isn't four numbers (xmin 'one', ymin '1', xmax '9', ymax '9'): correct"),
        (("dog", "", 1, 9, 9), "voc-box", "the bndbox isn't four numbers"),
        (("dog", "1,5", 1, 9, 9), "voc-box", "write a point for the comma"),
        (("dog", "1_0", 1, 90, 9), "voc-box", "the bndbox isn't four numbers"),
        (("dog", "nan", 1, 9, 9), "box-not-finite", "box (nan, 1, 9, 9) isn't finite"),
        (("dog", 1, 1, "inf", 9), "box-not-finite", "isn't finite"),
        (("dog", 9, 1, 9, 9), "box-no-area", "box (9, 1, 9, 9) has no area: dropped"),
        (("dog", 9, 9, 1, 1), "voc-corners", "box (9, 9, 1, 1) has its corners swapped"),
        (("dog", 1, 9, 9, 1), "voc-corners", "has its corners swapped"),
        (("dog", 101, 1, 120, 9), "box-outside", "box (101, 1, 120, 9) is outside the 100 x 50 image"),
        (("dog", 90, 1, 190, 9), "box-mostly-outside", "has only 10% of its area inside the 100 x 50 image"),
        (("cat", 1, 2, 30, 40), "box-twice", "the same class and box as object 1: dropped"),
    ],
)
def test_a_faulty_voc_object_is_left_out_and_said(tmp_path: Path, item: tuple, kind: str, message: str) -> None:
    records, faults = read_voc(tmp_path, voc(("cat", 1, 2, 30, 40), item, ("dog", 3, 4, 30, 40)))
    assert rows(records[0]) == [(0, 1, 2, 30, 40), (1, 3, 4, 30, 40)]
    assert [(fault.kind, fault.where) for fault in faults] == [(kind, "object 2")] and message in faults[0].text


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("<object><name>dog</name></object>", "has no <bndbox>: write one"),
        ("<object><name>dog</name><robndbox/></object>", "<robndbox>, a turned box, is not read"),
        (f"<object><name>dog</name>{BNDBOX}{BNDBOX}</object>", "has 2 <bndbox>"),
    ],
)
def test_an_object_has_one_box(tmp_path: Path, item: str, message: str) -> None:
    whole = voc(("cat", 1, 2, 30, 40)).replace("</annotation>", f"{item}</annotation>")
    records, faults = read_voc(tmp_path, whole)
    assert len(records[0].boxes) == 1
    assert [fault.kind for fault in faults] == ["voc-box"] and message in faults[0].text


def test_an_annotation_for_an_image_of_another_size_leaves_it_out(tmp_path: Path) -> None:
    for size in (None, (0, 0), (100, 50)):
        records, faults = read_voc(tmp_path, voc(("cat", 1, 2, 100, 50), size=size))
        assert (records[0].width, records[0].height) == (100, 50) and not faults
    records, faults = read_voc(tmp_path, voc(("cat", 1, 2, 100, 50), size=(50, 100)))
    assert [record.name for record in records] == ["JPEGImages/b.jpg"]
    (said,) = says(faults)
    assert said.startswith("a.xml:size: the labels were made for 50 x 100 pixels, the image has 100 x 50 (as before a")
    assert faults[0].kind == "voc-size"


def test_annotations_of_other_splits_in_the_same_folder_are_no_strays(tmp_path: Path) -> None:
    yaml = f"train: {{images: a, annotations: xml}}\nval: {{images: b, annotations: xml}}\n{NAMES}"
    for name in ("a/1", "b/2"):
        image(tmp_path / f"{name}.png")
    for name in "123":
        text(tmp_path / f"xml/{name}.xml", voc(("cat", 1, 2, 30, 40)))
    for split in ("train", "val"):
        faults = read(tmp_path, yaml, split)[1]
        assert [os.path.basename(fault.file) for fault in faults] == ["3.xml"]


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha">' + "".join(
    f'<!ENTITY {chr(99 + i)} "{f"&{chr(98 + i)};" * 10}">' for i in range(10)
)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (
            f"<?xml version='1.0'?>{LAUGHS}]><annotation><object><name>&l;</name></object></annotation>",
            "voc-doctype",
            "has a DOCTYPE",
        ),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "voc-doctype", "has a DOCTYPE"),
        (
            "<?xml version='1.0' encoding='utf-16'?><!DOCTYPE a><annotation/>".encode("utf-16"),
            "voc-doctype",
            "has a DOCTYPE",
        ),
        ("<annotation><object>", "voc-not-xml", "ends in the middle"),
        ("<annotation><obj", "voc-not-xml", "ends in the middle"),
        ("", "voc-empty", "empty"),
        (" \n", "voc-empty", "empty"),
        ("<annotation>&unknown;</annotation>", "voc-not-xml", "isn't XML (undefined entity"),
        ("0 .5 .5 .1 .1", "voc-not-xml", "isn't XML"),
        ("<?xml version='1.0' encoding='nonsense'?><annotation/>", "voc-encoding", "an encoding that can't be read"),
        (
            "<?xml version='1.0' encoding='shift_jis'?><annotation/>",
            "voc-encoding",
            "names an encoding that can't be read",
        ),
        ("<annotation><folder>Gr\xfcn</folder></annotation>".encode("latin-1"), "voc-encoding", "save it as UTF-8"),
        (
            "<?xml version='1.0' encoding='UTF-8'?><annotation>Gr\xfcn</annotation>".encode("latin-1"),
            "voc-encoding",
            "save it as UTF-8",
        ),
        (b"\x00\xff\x00", "voc-not-xml", "isn't XML"),
        ("<html><body/></html>", "voc-root", "begins with <html>, not <annotation>"),
    ],
)
def test_an_unreadable_annotation_leaves_the_image_out(
    tmp_path: Path, data: str | bytes, kind: str, message: str
) -> None:
    """As a background it would teach the model that what is on it is nothing."""
    records, faults = read_voc(tmp_path, data)
    assert [record.name for record in records] == ["JPEGImages/b.jpg"]
    assert [fault.kind for fault in faults] == [kind] and message in faults[0].text
    assert faults[0].file == str(tmp_path / "Annotations/a.xml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_an_annotation_may_be_in_any_encoding_that_it_names(tmp_path: Path, encoding: str) -> None:
    whole = voc(("cat", 1, 2, 30, 40)).replace("<object>", "<folder>Gr\xfcn</folder><object>")
    data = f"<?xml version='1.0' encoding='{encoding.removesuffix('-sig')}'?>{whole}".encode(encoding)
    records, faults = read_voc(tmp_path, data)
    assert rows(records[0]) == [(0, 1, 2, 30, 40)] and not faults


def test_a_deep_annotation_is_no_trap(tmp_path: Path) -> None:
    deep = "<a>" * 50_000 + "</a>" * 50_000
    records, faults = read_voc(tmp_path, f"<annotation>{deep}</annotation>")
    assert len(records) == 2 and not faults


def test_voc_split_lists(tmp_path: Path) -> None:
    image(tmp_path / "JPEGImages/sub/c.d.png")
    text(tmp_path / "Annotations/sub/c.d.xml", voc(("dog", 1, 2, 3, 4)))
    text(tmp_path / "Annotations/other.xml", voc(("dog", 1, 2, 3, 4)))
    image(tmp_path / "JPEGImages/b.png")
    text(tmp_path / "train.txt", "a\r\n\nsub/c.d.png\nx\nb\n")
    records, faults = read_voc(tmp_path, voc(("cat", 1, 2, 30, 40)), LISTED_YAML)
    assert [record.name for record in records] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/sub/c.d.png"]
    assert [len(record.boxes) for record in records] == [1, 1, 1]
    assert says(faults) == [
        "train.txt:line 4: no image is called 'x': put it there, or take the line out",
        "train.txt:line 5: 'b' names 2 images (b.jpg, b.png): write which one, with its suffix",
    ]
    _, faults = read_voc(tmp_path, voc(("cat", 1, 2, 30, 40)))  # without a list, labels without an image are lost
    assert [os.path.basename(fault.file) for fault in faults if fault.kind == "label-no-image"] == ["other.xml"]
