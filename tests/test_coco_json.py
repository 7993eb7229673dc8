"""COCO JSON: boxes and classes by hand, every slip of an image, category or annotation, and files that are no COCO."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from data.coco_json import load_coco, own_ids
from data.config import load_data_config
from data.faults import DataError, Fault
from data.formats import Record
from data.index import build_index
from tests.label_files import NAMES, A, B, annotation, coco, image, read, rows, says, text

COCO_YAML = f"train: {{images: images, annotations: c.json}}\n{NAMES}"


def read_coco(folder: Path, content: str, yaml: str = COCO_YAML) -> tuple[list[Record], list[Fault]]:
    image(folder / "images/a.png")
    image(folder / "images/b.png", 30, 30)
    text(folder / "c.json", content)
    return read(folder, yaml)


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
    assert [fault.kind for fault in faults] == ["coco-crowds"]


def test_coco_categories_go_by_name(tmp_path: Path) -> None:
    content = coco([A], [annotation(1), annotation(2, category=20)], ("dog", "animals", "cat"))
    records, faults = read_coco(tmp_path, content)  # ids: cat 10, animals 20, dog 30
    assert rows(records[0])[0][0] == 1
    assert says(faults) == [
        "c.json:category 'animals': isn't among the names, and 1 annotation has it; add it to `names` "
        "in the data yaml, or take it out"
    ]
    with pytest.raises(
        DataError, match=r"names: none is a category of .*c.json \(it has c, b, a; the yaml has cat, dog, hot dog\)"
    ):
        read_coco(tmp_path, coco([A], [annotation(1)], ("a", "b", "c")))


def test_gaps_in_ids_text_ids_and_whole_floats_are_read(tmp_path: Path) -> None:
    images = [{"id": 5, "file_name": "a.png"}, {"id": "two", "file_name": "b.png"}]
    items = [annotation(1, 5.0, 30.0), annotation("x", "two", 10)]
    records, faults = read_coco(tmp_path, coco(images, items))
    assert [record.classes.tolist() for record in records] == [[0], [2]] and not faults


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        (annotation(9, image_id=5), "coco-image-id", "image_id 5 isn't an image's: correct it"),
        (annotation(9, image_id="1"), "coco-image-id", "image_id '1' isn't an image's, the number 1 is: write it"),
        (annotation(9, image_id=True), "coco-image-id", "image_id True isn't an image's"),
        (annotation(9, image_id=[1]), "coco-image-id", "image_id [1] isn't an image's"),
        (annotation(9, category=5), "coco-category-id", "category_id 5 isn't a category's"),
        (annotation(9, category="30"), "coco-category-id", "the number 30 is: write it without quotes"),
        (annotation(9, bbox=[1, 2, 3]), "coco-box", "bbox [1, 2, 3] isn't four numbers"),
        (annotation(9, bbox=["1", 2, 3, 4]), "coco-box", "bbox ['1', 2, 3, 4] isn't four numbers"),
        (annotation(9, bbox=[True, 2, 3, 4]), "coco-box", "isn't four numbers"),
        (annotation(9, bbox=None), "coco-box", "there is no bbox: write [x, y, width, height]"),
        (annotation(9, bbox=[1, 2, float("nan"), 4]), "coco-box", "bbox [1, 2, nan, 4] isn't four numbers"),
        (annotation(9, bbox=[1, 2, 10**400, 4]), "coco-box", "isn't four numbers"),
        (annotation(9, bbox=[1, 2, -3, 4]), "coco-negative", "bbox [1, 2, -3, 4] has a size below zero"),
        (annotation(9, iscrowd="0"), "coco-crowd", "iscrowd '0' is neither 0 nor 1"),
        (annotation(9, iscrowd=2), "coco-crowd", "iscrowd 2 is neither 0 nor 1"),
        ({"bbox": [1, 2, 3, 4]}, "coco-image-id", "image_id None isn't an image's"),
        ("text", "coco-annotation", "'text' is no map"),
        (None, "coco-annotation", "'None' is no map"),
    ],
)
def test_a_faulty_coco_annotation_is_said(tmp_path: Path, item: Any, kind: str, message: str) -> None:
    records, faults = read_coco(tmp_path, coco([A], [annotation(1), item]))
    assert rows(records[0]) == [(0, 1, 2, 4, 6)]
    number = item["id"] if isinstance(item, dict) and "id" in item else 2
    assert [(fault.kind, fault.where) for fault in faults] == [(kind, f"annotation {number}")]
    assert message in faults[0].text


@pytest.mark.parametrize(
    ("bbox", "kind", "message"),
    [
        ([1, 2, 0, 4], "box-no-area", "box (1, 2, 1, 6) has no area: dropped"),
        ([90, 2, 15, 4], "box-clipped", "leaves the 100 x 50 image, with 33% of its area: clipped to it"),
        ([90, 2, 30, 4], "box-mostly-outside", "has only 33% of its area"),
        ([101, 2, 30, 4], "box-outside", "is outside the 100 x 50 image"),
        ([1, 2, 3, 4], "box-twice", "the same class and box as annotation 1: dropped"),
    ],
)
def test_a_box_is_held_to_its_image(tmp_path: Path, bbox: list, kind: str, message: str) -> None:
    records, faults = read_coco(tmp_path, coco([A], [annotation(1), annotation(9, bbox=bbox)]))
    assert len(records[0].boxes) == 1 + (kind == "box-clipped")
    assert [(fault.kind, fault.where) for fault in faults] == [(kind, "a.png: annotation 9")]
    assert message in faults[0].text


def test_a_crowd_is_no_duplicate_and_a_doubled_id_is_read(tmp_path: Path) -> None:
    records, faults = read_coco(
        tmp_path, coco([A], [annotation(1), annotation(2, iscrowd=1), annotation(1, bbox=[5, 6, 7, 8])])
    )
    assert records[0].crowd.tolist() == [False, True, False]
    assert says(faults) == [
        "c.json:annotation 1: the id is there twice: both annotations are read",
        "data.yaml:train: 1 of 3 annotations outlines a crowd (iscrowd 1), which is no object: not trained on; "
        "what is found there counts neither way",
    ]


def test_a_split_of_crowds_has_no_object(tmp_path: Path) -> None:
    _, faults = read_coco(tmp_path, coco([A], [annotation(1, iscrowd=1), annotation(2, iscrowd=1, bbox=[5, 6, 7, 8])]))
    assert [(fault.kind, fault.stops) for fault in faults] == [("coco-crowds", False), ("split-no-boxes", True)]


def test_names_with_folders_that_are_not_there(tmp_path: Path) -> None:
    """They are looked for by their last part, each for one image; a backslash is a slash."""
    images = [{"id": 1, "file_name": "p\\a.png"}, {"id": 2, "file_name": "q/a.png"}, {"id": 3, "file_name": "q/b.png"}]
    records, faults = read_coco(tmp_path, coco(images, [annotation(1)]))
    assert [record.name for record in records] == ["images/a.png", "images/b.png"]
    assert [(fault.kind, fault.where) for fault in faults] == [("coco-file-twice", "image 'q/a.png'")]
    assert "and 'p\\a.png' are both read as " in faults[0].text


@pytest.mark.parametrize("name", ["x", "x.pbm", "../else/x.png"])
def test_a_missing_image_that_is_put_there_is_found(tmp_path: Path, name: str) -> None:
    """Also where it is of a kind, or in a place, that folders are not searched for."""
    read_coco(tmp_path, coco([A, {"id": 2, "file_name": name}], [annotation(1)]))
    config = load_data_config(tmp_path / "data.yaml")
    assert "image-missing" in {fault.kind for fault in build_index(config, "train")[1]}
    path = tmp_path / "images" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((tmp_path / "images" / "a.png").read_bytes())
    assert "image-missing" not in {fault.kind for fault in build_index(config, "train")[1]}


def test_shares_of_the_image_are_no_pixels(tmp_path: Path) -> None:
    _, faults = read_coco(tmp_path, coco([A], [annotation(1, bbox=[0.1, 0.2, 0.3, 0.4])]))
    assert [(fault.kind, fault.where) for fault in faults[:1]] == [("box-shares", "a.png")]
    assert not read_coco(tmp_path, coco([A], [annotation(1, bbox=[0, 0, 1, 1])]))[1]


def test_faulty_coco_images_are_said(tmp_path: Path) -> None:
    images = [A, {"id": 3}, {"id": 1, "file_name": "b.png"}, {"id": 4, "file_name": "a.png"}, 5]
    images += [{"id": True, "file_name": "t.png"}, {"id": 6, "file_name": "none.png"}]
    images += [{"id": 7, "file_name": "b.png", "width": 30, "height": 31}]
    records, faults = read_coco(tmp_path, coco(images, [annotation(1)]))
    assert [record.name for record in records] == ["images/a.png"]
    assert [(fault.kind, fault.where) for fault in faults] == [
        ("coco-image", "image 2"),
        ("coco-image-twice", "image 3"),
        ("coco-file-twice", "image 4"),
        ("coco-image", "image 5"),
        ("coco-image", "image 6"),
        ("coco-size", "b.png"),
        ("image-missing", ""),
    ]
    assert "made for 30 x 31 pixels, the image has 30 x 30" in faults[5].text


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("", "coco-not-json", "empty"),
        ("<html></html>", "coco-not-json", "not JSON (Expecting value: line 1 column 1"),
        ('{"images": []]', "coco-not-json", "not JSON"),
        ("{", "coco-truncated", "ends in the middle"),
        ('{"images": [{"file_name": "a.p', "coco-truncated", "ends in the middle"),
        ('{"images": [{"id": 1}', "coco-truncated", "ends in the middle"),
        ('{"images": [{"id": 1}], "annotations": tr', "coco-truncated", "ends in the middle"),
        ("[]", "coco-list", "a list, such as one of detections"),
        ("{}", "coco-keys", "has no list called 'images' (it has nothing)"),
        ("7", "coco-keys", "has no list called 'images'"),
        ('{"images": [], "annotations": {}, "categories": []}', "coco-keys", "has no list called 'annotations'"),
        ("[" * 100_000, "coco-not-json", "not JSON that can be read (RecursionError)"),
        (f'{{"images": [{"9" * 5000}]}}', "coco-not-json", "not JSON that can be read (ValueError)"),
    ],
)
def test_a_json_that_is_not_cocos(tmp_path: Path, content: str, kind: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_coco(tmp_path, content)
    (fault,) = error.value.faults
    assert (fault.kind, fault.file) == (kind, str(tmp_path / "c.json")) and message in fault.text
    assert fault.stops and not fault.skippable


def test_a_json_in_another_encoding_is_refused_and_a_byte_order_mark_read(tmp_path: Path) -> None:
    content = coco([A], [annotation(1)])
    read_coco(tmp_path, content)
    for encoding, good in (("utf-8-sig", True), ("utf-16", False)):
        (tmp_path / "c.json").write_bytes(content.encode(encoding))
        if good:
            assert len(read(tmp_path, COCO_YAML)[0]) == 1
        else:
            with pytest.raises(DataError, match="c.json: not text in UTF-8"):
                read(tmp_path, COCO_YAML)


def test_faulty_categories(tmp_path: Path) -> None:
    content = json.loads(coco([A], [annotation(1)]))
    content["categories"] += [{"id": 5}, {"name": "bird"}, {"id": True, "name": "ant"}, 7]
    _, faults = read_coco(tmp_path, json.dumps(content))
    assert [(fault.kind, fault.where) for fault in faults] == [
        ("coco-category", f"category {place}") for place in (4, 5, 6, 7)
    ]
    content["categories"].append({"id": 10, "name": "cat"})
    with pytest.raises(DataError, match="c.json:category 8: the id 10 is there twice, so nobody knows"):
        read_coco(tmp_path, json.dumps(content))


def test_masks_are_not_kept(tmp_path: Path) -> None:
    mask = [[float(i) for i in range(2000)]]
    items = [annotation(i, bbox=[i % 90, 1, 3, 4 + i], segmentation=mask) for i in range(200)]
    file = text(tmp_path / "c.json", coco([A], items))
    tracemalloc.start()
    data = load_coco(str(file))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = file.stat().st_size
    assert size > 2_900_000 and len(data["annotations"]) == 200
    assert kept < size / 10  # the masks are gone
    assert peak < 3 * size  # bytes and text of the file, never all masks as numbers


def test_coco_split_lists(tmp_path: Path) -> None:
    text(tmp_path / "wanted.txt", "b\nx.png\n")
    yaml = COCO_YAML.replace("c.json", "c.json, split: wanted.txt")
    content = coco([A, {"id": 2, "file_name": "b.png"}], [annotation(1), annotation(2, 2)])
    records, faults = read_coco(tmp_path, content, yaml)
    assert [record.name for record in records] == ["images/b.png"]
    assert says(faults) == ["wanted.txt:line 2: no image is called 'x.png': put it there, or take the line out"]


def test_the_ids_of_the_annotations_are_found_again(tmp_path: Path) -> None:
    """Of images by their path, whatever folder the file name has before it; of classes by name."""
    read_coco(tmp_path, coco([B, A], []))
    (tmp_path / "d.yaml").write_text(f"{COCO_YAML}val: {{images: images, annotations: labels}}\n")
    config = load_data_config(tmp_path / "d.yaml")
    paths = [str(tmp_path / "images" / name) for name in ("b.png", "a.png")]
    assert own_ids(config, "train", paths) == (["two", 1], [30, 20, 10])
    assert own_ids(config, "train", [*paths, str(tmp_path / "images/c.png")]) is None
    assert own_ids(load_data_config(tmp_path / "d.yaml", single_cls=True), "train", paths) is None
    (tmp_path / "labels").mkdir()
    assert own_ids(load_data_config(tmp_path / "d.yaml"), "val", paths) is None
