"""YOLO txt: boxes by hand, every slip of a row, and where labels and images are looked for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.faults import KINDS, DataError
from data.yolo_txt import label_paths
from tests.label_files import NAMES, image, read, rows, says, text, yolo


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
    ("row", "kind", "message"),
    [
        ("3 .5 .5 .1 .1", "label-class-range", "class 3 is out of range (names has 3: 0 to 2): add its name"),
        ("1e9 .5 .5 .1 .1", "label-class-range", "class 1e9 is out of range"),
        ("5.000000000000000000e+00 .5 .5 .1 .1", "label-class-range", "class 5 is out of range"),
        ("0 .5 .5 .1 .1 .9 7", "label-columns", "a box with a score and a track's number after it? take out the last"),
        ("-1 .5 .5 .1 .1", "label-class-negative", "class -1 is below zero"),
        ("0.5 .5 .5 .1 .1", "label-class-fraction", "class 0.5 is not a whole number"),
        ("nan .5 .5 .1 .1", "label-class-fraction", "class nan is not a whole number"),
        ("inf .5 .5 .1 .1", "label-class-fraction", "class inf is not a whole number"),
        ("0 .5 .5 .1", "label-columns", "4 numbers; a row is"),
        ("0 .5 .5 .1 .1 .9", "label-columns", "take out the last one, which may be a score"),
        ("0 .5 .5 .1 .1 .9 .2 .3", "label-columns", "8 numbers; a row is"),
        ("0", "label-columns", "1 number; a row is"),
        ("bird .5 .5 .1 .1", "label-text", "not numbers: 'bird .5 .5 .1 .1'"),
        ("cat .5 .5 .1 .1", "label-class-name", "the class's name, 'cat', for its number: write 0"),
        ("hot dog .5 .5 .1 .1", "label-class-name", "the class's name, 'hot dog', for its number: write 2"),
        ("0 .5 .5 .1 .1 # a cat", "label-text", "not numbers"),
        ("1_0 .5 .5 .1 .1", "label-text", "not numbers"),
        ("\uff11 .5 .5 .1 .1", "label-text", "not numbers"),
        ("0 0,5 0,5 0,1 0,1", "label-comma", "a comma for the decimal point ('0 0,5 0,5 0,1 0,1'): write 0.5"),
        ("0,.5,.5,.1,.1", "label-comma", "commas between the numbers ('0,.5,.5,.1,.1'): put spaces"),
        ("0, 0.5, 0.5, 0.1, 0.1", "label-comma", "commas between the numbers"),
        ("0 nan .5 .1 .1", "label-not-finite", "not finite: '0 nan .5 .1 .1'"),
        ("0 .5 .5 inf .1", "label-not-finite", "not finite"),
        ("0 .1 .1 .5 nan .3 .8", "label-not-finite", "not finite"),
        ("0 .5 .5 0 .1", "box-no-area", "box (50, 22.5, 50, 27.5) has no area: dropped"),
        ("0 .5 .5 .000001 .1", "box-no-area", "has no area: dropped"),
        ("0 1.5 .5 0 .1", "box-no-area", "has no area: dropped"),
        ("0 .5 .5 -.1 .1", "label-negative", "the width -0.1 is below zero"),
        ("0 .5 .5 .1 -.2", "label-negative", "the height -0.2 is below zero"),
        ("0 1.5 .5 .1 .1", "box-outside", "box (145, 22.5, 155, 27.5) is outside the 100 x 50 image"),
        ("0 1.05 .5 .1 .1", "box-outside", "is outside the 100 x 50 image"),  # touches the edge
        ("0 -.2 .5 .1 .1", "box-outside", "is outside the 100 x 50 image"),
        ("0 1.03 .5 .1 .1", "box-mostly-outside", "has only 20% of its area inside the 100 x 50 image"),
        ("0 .5 .5 2 2", "box-mostly-outside", "has only 25% of its area inside"),
        ("0 50 25 10 10", "label-pixels", "'0 50 25 10 10' looks like pixels, not shares of the image: divide x and"),
        ("0 10 10 50 10 30 40", "label-pixels", "looks like pixels"),  # a polygon
        ("0 1e308 .5 .1 .1", "label-pixels", "looks like pixels"),
    ],
)
def test_a_faulty_yolo_row_is_left_out_and_said(tmp_path: Path, row: str, kind: str, message: str) -> None:
    record, faults = yolo(tmp_path, f"1 .5 .5 .5 .5\n{row}\n2 .5 .5 .5 .5\n")
    assert record.classes.tolist() == [1, 2]
    assert [(fault.kind, fault.where) for fault in faults] == [(kind, "line 2")] and message in faults[0].text


@pytest.mark.parametrize(
    "labels",
    [
        b"\xef\xbb\xbf1 .5 .5 .25 .5\n",  # a byte order mark
        b"1 .5 .5 .25 .5\r\n",
        b"1 .5 .5 .25 .5\r",  # of an old Mac
        b"1\t.5\t.5\t.25\t.5",
        b"  1  .5 .5 .25 .5   \n\n \t\n",
        b"1.0 5e-1 +.5 0.25 .5\n",
        b"1 .375 .25 .625 .25 .5 .75\n",  # a polygon
    ],
)
def test_what_is_only_written_differently_is_read_without_a_fault(tmp_path: Path, labels: bytes) -> None:
    record, faults = yolo(tmp_path, labels)
    assert rows(record) == [(1, 37.5, 12.5, 62.5, 37.5)] and not faults


def test_boxes_and_polygons_mix(tmp_path: Path) -> None:
    record, faults = yolo(tmp_path, "0 .5 .5 .5 .5\n1 .1 .2 .5 .4 .3 .8\n2 .1 .1 .2 .1 .2 .2 .1 .2\n")
    assert rows(record) == [(0, 25, 12.5, 75, 37.5), (1, 10, 10, 50, 40), (2, 10, 5, 20, 10)] and not faults


def test_a_huge_line_is_read_or_said_in_brief(tmp_path: Path) -> None:
    many = " ".join(["0", ".2 .2", *[".5 .5"] * 300_000, ".8 .8"])
    record, faults = yolo(tmp_path, many)
    assert rows(record) == [(0, 20, 10, 80, 40)] and not faults
    _, faults = yolo(tmp_path, f"{many} .5\n{many} cat\n{many} nan .1\n")
    assert [fault.kind for fault in faults] == ["label-columns", "label-text", "label-not-finite"]
    assert all(len(fault.text) < 300 for fault in faults)


def test_lines_are_counted_as_editors_do(tmp_path: Path) -> None:
    _, faults = yolo(tmp_path, "0 .5 .5 .1 .1\x0c\n0\u2028.5 .5 .2 .2\nx\n")
    assert [fault.where for fault in faults] == ["line 3"]


@pytest.mark.parametrize(
    ("row", "said", "unsaid"),
    [
        ("0 50 25 10 10", "divide x and width by 100, y and height by 50", "x1"),  # 10 < 50: no corners
        ("0 60 30 90 45", "fit and a centre with a size doesn't, write (x1 + x2) / 2", "where it is"),
        ("0 50 25 60 40", "; where it is corners x1 y1 x2 y2, write (x1 + x2) / 2", "doesn't"),  # 20 … 80, 5 … 45
        ("0 60 30 120 45", "divide x and width by 100", "x1"),  # beyond the image either way
        ("0 10 10 50 10 30 40", "divide each x by 100, each y by 50", "width"),
    ],
)
def test_pixels_are_mended_as_what_they_are(tmp_path: Path, row: str, said: str, unsaid: str) -> None:
    _, faults = yolo(tmp_path, row)
    assert [fault.kind for fault in faults] == ["label-pixels"]
    assert said in faults[0].text and unsaid not in faults[0].text


def test_exact_duplicates_are_dropped(tmp_path: Path) -> None:
    record, faults = yolo(tmp_path, "0 .5 .5 .5 .5\n1 .5 .5 .5 .5\n0 .50 .5 .5 .5\n0 .5 .5 .5 .6\n0 .5 .5 .5 .5\n")
    assert record.classes.tolist() == [0, 1, 0]
    assert says(faults) == [
        "a.txt:line 3: the same class and box as line 1: dropped",
        "a.txt:line 5: the same class and box as line 1: dropped",
    ]
    _, faults = yolo(tmp_path, "0 .5 .5 0 .1\n0 .5 .5 0 .1\n")
    assert [fault.kind for fault in faults] == ["box-no-area", "box-no-area"]


def test_a_link_to_nothing_is_no_background(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    image(tmp_path / "images/b.png")
    text(tmp_path / "labels/b.txt", "0 .5 .5 1 1")
    (tmp_path / "labels/a.txt").symlink_to("elsewhere.txt")
    records, faults = read(tmp_path, f"train: images\n{NAMES}")
    assert [record.name for record in records] == ["images/b.png"]
    assert says(faults) == [
        "a.txt:: a link to elsewhere.txt, which isn't there: put the file there, or take the link away"
    ]


def test_boxes_that_leave_the_image_are_clipped_and_from_1_px_said(tmp_path: Path) -> None:
    record, faults = yolo(tmp_path, "0 .0 .5 .2 1\n1 .05 .5 .115 1\n2 .5 .5 1.2 1\n")
    assert rows(record) == [(0, 0, 0, 10, 50), (1, 0, 0, 10.75, 50), (2, 0, 0, 100, 50)]
    assert says(faults) == [
        "a.txt:line 1: box (-10, 0, 10, 50) leaves the 100 x 50 image, with 50% of its area: clipped to it",
        "a.txt:line 3: box (-10, 0, 110, 50) leaves the 100 x 50 image, with 17% of its area: clipped to it",
    ]
    assert record.areas.tolist() == [500, 537.5, 5000]


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=80) | st.text("0123456789.,-+eE nainf\n\r\t_#", max_size=80).map(str.encode))
def test_whatever_a_label_holds_gives_sound_boxes_or_faults(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        record, faults = yolo(Path(name), data)
    assert all(fault.kind in KINDS and fault.kind.startswith(("label-", "box-")) for fault in faults)
    if record.name == "images/a.png":
        assert np.isfinite(record.boxes).all() and (record.boxes[:, 2:] > record.boxes[:, :2]).all()
        assert (record.boxes >= 0).all() and (record.boxes <= (100, 50, 100, 50)).all()
        assert ((record.classes >= 0) & (record.classes < 3)).all()


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
    assert [len(record.boxes) for record in records] == [1, 0, 0]
    missing = tmp_path / "labels/none.txt", tmp_path / "images/none.txt"
    assert says(faults) == [
        "data.yaml:train: 1 of 3 images (33.3%) without a label file, taken as images of nothing; "
        f"for images/none.png it would be {missing[0]} or {missing[1]}"
    ]
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
    assert [fault.kind for fault in faults] == ["list-image-missing", "list-image-twice", "split-few-labels"]
    assert faults[0].where == "line 5" and faults[0].text.startswith(
        f"no such image: images/none.png (tried {tmp_path}/set"
    )
    assert str(faults[1]) == f"{tmp_path}/set/images/b.png: listed 2 times, and counts as often"


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
    assert [(os.path.basename(fault.file), fault.kind[:5]) for fault in faults if fault.stops] == [
        ("lost.txt", "label"),
        ("c.heic", "image"),
        ("empty.jpg", "image"),
        ("page.jpg", "image"),
        ("b.txt", "label"),
    ]


def test_a_split_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="data.yaml:train: no images in .*/images"):
        read(tmp_path, f"train: images\n{NAMES}")
    image(tmp_path / "images/a.png")
    assert [fault.kind for fault in read(tmp_path, f"train: images\n{NAMES}")[1]] == ["split-no-labels"]
    text(tmp_path / "labels/a.txt", "7 .5 .5 1 1")
    faults = read(tmp_path, f"train: images\n{NAMES}")[1]
    assert [fault.kind for fault in faults] == ["label-class-range", "split-no-boxes"]
    text(tmp_path / "images/a.png", "")
    records, faults = read(tmp_path, f"train: images\n{NAMES}")
    assert not records and faults[-1].kind == "split-no-images"
    with pytest.raises(DataError, match="neither a folder of images nor a txt list"):
        read(tmp_path, f"train: images/a.png\n{NAMES}")
    text(tmp_path / "x.json", "{}")
    with pytest.raises(DataError, match="a COCO json is given as {images: FOLDER, annotations: FILE.json}"):
        read(tmp_path, f"train: x.json\n{NAMES}")


@pytest.mark.parametrize(
    ("allowed", "kind"), [("", "split-few-labels"), ("0.5", "split-few-labels"), (".75", "split-backgrounds")]
)
def test_how_many_labels_may_be_missing(tmp_path: Path, allowed: str, kind: str) -> None:
    for name in "abcd":
        image(tmp_path / f"images/{name}.png")
    text(tmp_path / "labels/a.txt", "0 .5 .5 1 1")
    yaml = f"train: images\n{NAMES}max_missing_labels: {allowed}\n"
    (fault,) = read(tmp_path, yaml)[1]
    assert (fault.kind, fault.stops) == (kind, kind == "split-few-labels")
    assert fault.text.startswith("3 of 4 images (75.0%) without a label file")
    assert str(tmp_path / "labels/b.txt") in fault.text
    if fault.stops:
        assert not fault.skippable and "write max_missing_labels: 0.8 in" in fault.text
    (fault,) = read(tmp_path, f"{yaml.replace(allowed or ' ', '0.8')}", "train")[1] if allowed else (fault,)


def test_a_list_of_classes_in_another_order_is_named(tmp_path: Path) -> None:
    """labelImg leaves one beside the labels, others above; swapped classes are seen nowhere else."""
    image(tmp_path / "images/x/a.png")
    text(tmp_path / "labels/x/a.txt", "0 .5 .5 1 1")
    yaml = "train: images/x\nnames: [cat, dog]\n"
    for place in ("labels/x", "labels"):
        file = tmp_path / place / "classes.txt"
        for said, expected in (("dog\ncat\n", 1), ("Cat\n\ndog\nbird\n", 0), ("tree\nbush\n", 0), ("cat\nbird\n", 1)):
            text(file, said)
            faults = read(tmp_path, yaml)[1]
            assert [fault.kind for fault in faults] == ["label-other-names"] * expected
        assert "class 1 is 'bird' here and 'dog' in the data yaml" in faults[0].text and not faults[0].stops
        file.unlink()


@pytest.mark.parametrize(
    ("place", "name"), [("labels", "a.xml"), ("images", "a.xml"), ("images", "_annotations.coco.json")]
)
def test_labels_of_another_format_where_txt_was_looked_for_are_named(tmp_path: Path, place: str, name: str) -> None:
    image(tmp_path / "images/a.png")
    text(tmp_path / place / name, "{}")
    (fault,) = (fault for fault in read(tmp_path, f"train: images\n{NAMES}")[1] if fault.kind == "split-no-labels")
    where = tmp_path / place if name == "a.xml" else tmp_path / place / name
    assert fault.text.endswith(f"write train: {{images: {tmp_path}/images, annotations: {where}}}")


def test_labels_without_an_image(tmp_path: Path) -> None:
    for folder in ("images/x", "plain"):
        image(tmp_path / f"{folder}/a.png")
    for folder in ("labels/x", "plain"):
        text(tmp_path / f"{folder}/a.txt", "0 .5 .5 1 1")
        text(tmp_path / f"{folder}/b.txt", "0 .5 .5 1 1\n")
        text(tmp_path / f"{folder}/c.TXT", "\ufeff0 .5 .5 1 1\n")
        text(tmp_path / f"{folder}/readme.txt", "made by hand")
        text(tmp_path / f"{folder}/classes.txt", "cat")
    faults = read(tmp_path, f"train: images\n{NAMES}")[1]
    assert [(os.path.basename(f.file), f.kind) for f in faults] == [
        ("b.txt", "label-no-image"),
        ("c.TXT", "label-no-image"),
        ("readme.txt", "label-not-labels"),
    ]
    assert "write its suffix as .txt" in faults[1].text
    for row in ("\n\r\n0 .5 .5 1 1", "0 0,5 0,5 1 1"):
        text(tmp_path / "labels/x/b.txt", row)
        assert read(tmp_path, f"train: images\n{NAMES}")[1][0].kind == "label-no-image"
    faults = read(tmp_path, f"train: plain\n{NAMES}")[1]  # where lists and notes lie among the images
    assert [(os.path.basename(f.file), f.kind) for f in faults] == [
        ("b.txt", "label-no-image"),
        ("c.TXT", "label-no-image"),
    ]


def test_single_cls_reads_all_classes_as_one(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    text(tmp_path / "labels/a.txt", "2 .5 .5 1 1\n1 .5 .5 .5 .5\n3 .5 .5 1 1")
    records, faults = read(tmp_path, f"train: images\n{NAMES}", single_cls=True)
    assert records[0].classes.tolist() == [0, 0] and len(faults) == 1


def test_labels_of_an_image_that_is_not_read_are_no_fault_of_their_own(tmp_path: Path) -> None:
    for kind in ("gif", "avif"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{kind}1.{kind}").write_bytes(b"GIF89a")
        (tmp_path / "labels" / f"{kind}1.txt").write_text("0 .5 .5 .1 .1\n")
    (tmp_path / "labels" / "alone.txt").write_text("0 .5 .5 .1 .1\n")
    image(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .1 .1\n")
    _, faults = read(tmp_path, f"train: images\n{NAMES}")
    assert sorted((os.path.basename(fault.file), fault.kind) for fault in faults) == [
        ("alone.txt", "label-no-image"),
        ("avif1.avif", "image-kind-not-read"),
        ("gif1.gif", "image-kind-not-read"),
    ]


def test_lists_of_cvat_have_data_before_paths_in_the_set(tmp_path: Path) -> None:
    """Its exports in Ultralytics' format, unpacked: data.yaml, train.txt, images/ and labels/ side by side."""
    image(tmp_path / "images/train/a.png")
    text(tmp_path / "labels/train/a.txt", "0 .5 .5 .1 .1\n")
    text(tmp_path / "train.txt", "data/images/train/a.png\ndata/images/train/b.png\n")
    records, faults = read(tmp_path, f"path: .\ntrain: train.txt\n{NAMES}")
    assert len(records) == 1 and len(records[0].classes) == 1
    assert [(fault.kind, fault.where) for fault in faults] == [("list-image-missing", "line 2")]
    assert f"{tmp_path}/images/train/b.png" in faults[0].text
    image(tmp_path / "data/images/train/a.png", width=30)  # what is written comes first
    text(tmp_path / "data/labels/train/a.txt", "1 .5 .5 .1 .1\n")
    assert read(tmp_path, f"path: .\ntrain: train.txt\n{NAMES}")[0][0].classes.tolist() == [1]
