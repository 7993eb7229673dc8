"""data/findings.py: counts and suspicions against a table by hand, pairs of boxes against comparing all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.check import examine
from data.config import Source, load_data_config
from data.entries import block_of
from data.faults import Fault
from data.findings import (
    Findings,
    faults_by_kind,
    find_suspects,
    image_of_fault,
    overlapping,
    short_path,
)
from data.index import Index, pack
from data.labels import Record
from tests.small_data import coco_set, picture, voc_set, write_image, yolo_set

NAMES = ("cat", "dog", "owl", "yak")
TRAIN = [
    [(0, 10.0, 10.0, 40.0, 40.0), (0, 50.0, 10.0, 80.0, 40.0), (1, 10.0, 45.0, 40.0, 65.0)],
    [(0, 20.0, 20.0, 40.0, 60.0)],
    [],
]
VAL = [[(1, 10.0, 10.0, 40.0, 40.0), (2, 50.0, 30.0, 90.0, 70.0)]]


def index_of(images: list[tuple[tuple[int, int], list[tuple]]]) -> Index:
    """Images as ((width, height), boxes), a box as (class, x1, y1, x2, y2) with True behind it for a crowd."""
    records = []
    for i, ((width, height), boxes) in enumerate(images):
        corners = np.array([box[1:5] for box in boxes], np.float32).reshape(-1, 4)
        crowd = np.array([len(box) > 5 for box in boxes], bool)
        classes = np.array([box[0] for box in boxes], np.int32)
        areas = (corners[:, 2:] - corners[:, :2]).prod(1)
        records.append(Record(Path(f"{i}.jpg"), f"{i}.jpg", width, height, corners, classes, crowd, areas))
    return pack("/nowhere", [block_of(records)])


@pytest.mark.parametrize("write", [yolo_set, voc_set, coco_set])
def test_counts_are_those_of_the_hand_made_set(write, tmp_path: Path) -> None:
    findings = examine(load_data_config(write(tmp_path, {"train": TRAIN, "val": VAL}, NAMES)))
    assert [part.name for part in findings.parts] == ["train", "val"]
    np.testing.assert_array_equal(findings.class_counts, [[3, 1, 0, 0], [0, 1, 1, 0]])
    train, val = findings.parts
    assert train.index.counts.tolist() == [3, 1, 0] and val.index.counts.tolist() == [2]
    assert train.index.backgrounds == 1
    assert train.image_of.tolist() == [0, 0, 0, 1]
    assert findings.imbalance() == (0, 1, 3.0)
    assert findings.missing() == {
        "in val, but never in train": [2],
        "in train, but never in val": [0],
        "named in the yaml, but nowhere in the labels": [3],
    }
    assert findings.faults == [] and all(len(boxes) == 0 for part in findings.parts for boxes in part.suspects.values())


def test_one_class_has_no_imbalance_and_nothing_missing(tmp_path: Path) -> None:
    findings = examine(load_data_config(yolo_set(tmp_path, {"train": [[TRAIN[0][0]]]}, ["cat"])))
    assert findings.imbalance() is None and findings.missing() == {}
    assert [(split, fault.kind, fault.where, fault.stops) for split, fault in findings.faults] == [
        ("", "yaml-split-missing", "val", True)
    ]


@pytest.mark.parametrize(
    ("box", "kinds"),
    [
        ((0, 100, 100, 200, 200), set()),
        ((0, 100, 100, 101.9, 200), {"tiny", "thin"}),
        ((0, 100, 100, 102, 112), {"tiny"}),  # the augmentation keeps what is larger
        ((0, 100, 100, 102.1, 112), set()),
        ((0, 100, 100, 112, 101.5), {"tiny"}),
        ((0, 0, 0, 640, 480), {"huge"}),
        ((0, 0, 0, 640, 440), set()),  # 92 %
        ((0, 0, 0, 640, 457), {"huge"}),  # 95.2 %
        ((0, 10, 10, 410, 29), {"thin"}),  # 21 : 1
        ((0, 10, 10, 29, 410), {"thin"}),
        ((0, 10, 10, 410, 30), set()),  # 20 : 1
        ((0, 0, 0, 640, 480, True), set()),
        ((0, 100, 100, 101, 200, True), set()),
    ],
)
def test_a_suspicious_box(box: tuple, kinds: set[str]) -> None:
    found = find_suspects(index_of([((640, 480), []), ((640, 480), [(1, 5, 5, 60, 60), box])]))
    assert {kind for kind, boxes in found.items() if len(boxes)} == kinds
    assert all(boxes.tolist() == [[1, -1]] for boxes in found.values() if len(boxes))


def test_tiny_goes_by_the_size_that_is_trained_at() -> None:
    sizes = [(640, 480), (1280, 960), (2000, 1000), (1000, 2000), (120, 120)]
    for side, tiny in ((5, [0, 0, 1, 1, 0]), (1.5, [1] * 5)):  # a small image is not enlarged
        found = [find_suspects(index_of([(size, [(0, 100, 100, 100 + side, 100 + side)])])) for size in sizes]
        assert [len(kinds["tiny"]) for kinds in found] == tiny


def test_doubled_boxes_are_of_one_class_and_one_image() -> None:
    box, near = (0, 10, 10, 110, 110), (0, 11, 10, 111, 110)
    other = (1, *box[1:])
    crowd = (*box, True)
    found = find_suspects(index_of([((300, 300), [box, near]), ((300, 300), [box, other]), ((300, 300), [box, crowd])]))
    assert found["doubled"].tolist() == [[0, 1]] and found["two classes"].tolist() == [[2, 3]]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_pairs_of_boxes_are_those_that_comparing_all_finds(threshold: float) -> None:
    random = np.random.default_rng(int(100 * threshold))
    images = []
    for count in (0, 1, 40, 3, 25, 60):
        centres = random.integers(20, 60, (max(count // 3, 1), 4)) + (0, 0, 60, 60)
        boxes = centres[random.integers(0, len(centres), count)] + random.integers(-3, 4, (count, 4))
        images.append(((200, 200), [(0, *box) if i % 9 else (0, *box, True) for i, box in enumerate(boxes.tolist())]))
    index = index_of(images)
    expected = []
    for i in range(len(index)):
        for a in range(index.offsets[i], index.offsets[i + 1]):
            for b in range(a + 1, index.offsets[i + 1]):
                first, second = index.boxes[a].astype(float), index.boxes[b].astype(float)
                w, h = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
                inner = max(w, 0) * max(h, 0)
                union = (first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod() - inner
                if inner / union > threshold and not (index.crowd[a] or index.crowd[b]):
                    expected.append([a, b])
    assert overlapping(index, threshold).tolist() == expected and len(expected) > 3


# ------------------------------------------------------------------------------------------------ look-alikes


def examined(root: Path) -> Findings:
    return examine(load_data_config(root / "set.yaml"))


def named(pairs) -> list[tuple[str, str, bool]]:
    names = [(pairs.first.index.name(a), pairs.second.index.name(b)) for a, b in pairs.images.tolist()]
    return [(*pair, same) for pair, same in zip(names, pairs.same_file.tolist(), strict=True)]


def test_copies_are_found_within_and_across(tmp_path: Path) -> None:
    box = [(0, 10.0, 10.0, 40.0, 40.0)]
    yolo_set(tmp_path, {"train": [box] * 6, "val": [box] * 3}, ["cat"])
    write_image(tmp_path / "images/val/1.jpg", picture(4, 200, 150), 60)  # the fifth of train, larger
    write_image(tmp_path / "images/train/0.jpg", np.clip(picture(3).astype(int) + 15, 0, 255).astype(np.uint8))
    findings = examined(tmp_path)
    assert named(findings.leaks[0]) == [("images/train/4.jpg", "images/val/1.jpg", False)]
    assert named(findings.twins[0]) == [("images/train/0.jpg", "images/train/3.jpg", False)]
    assert named(findings.twins[1]) == []


def test_a_file_of_two_splits_is_named_even_if_it_cannot_be_compared(tmp_path: Path) -> None:
    box = [(0, 10.0, 10.0, 40.0, 40.0)]
    yaml = yolo_set(tmp_path, {"train": [box] * 4, "val": [box]}, ["cat"])
    write_image(tmp_path / "images/train/2.jpg", np.zeros((72, 96, 3), np.uint8))
    (tmp_path / "val.txt").write_text("images/train/1.jpg\nimages/train/2.jpg\n")
    yaml.write_text('{"path": ".", "train": "images/train", "val": "val.txt", "names": ["cat"]}')
    findings = examined(tmp_path)
    assert named(findings.leaks[0]) == [(f"images/train/{i}.jpg",) * 2 + (True,) for i in (1, 2)]
    assert findings.leaks[0].bits.tolist() == [0, 0]


def test_two_black_images_are_no_pair(tmp_path: Path) -> None:
    box = [(0, 10.0, 10.0, 40.0, 40.0)]
    yolo_set(tmp_path, {"train": [box] * 3}, ["cat"])
    for i in range(2):
        write_image(tmp_path / f"images/train/{i}.jpg", np.zeros((72, 96, 3), np.uint8))
    findings = examined(tmp_path)
    assert len(findings.twins[0]) == 0 and findings.parts[0].looks.flat.tolist() == [True, True, False]


# ------------------------------------------------------------------------------------------------ words and files


def test_faults_that_stop_come_first_then_the_commonest() -> None:
    faults = [
        Fault("a", "", "x", "few"),
        *[Fault("b", "", "x", "many")] * 3,
        Fault("c", "", "x", "bad", True),
        Fault("d", "", "x"),
    ]
    kinds = faults_by_kind([("train", fault) for fault in faults])
    assert list(kinds) == ["bad", "many", "few", "other"] and len(kinds["many"]) == 3


def test_a_path_below_the_working_directory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "a" / "b.yaml") == str(Path("a/b.yaml"))
    assert short_path(tmp_path.parent / "b.yaml") == str(tmp_path.parent / "b.yaml")


def test_the_image_of_a_fault_is_found_in_every_format(tmp_path: Path) -> None:
    for name in ("images/sub/a.jpg", "images/B.JPG", "labels/beside.png", "labels/images/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    root = str(tmp_path)
    yolo = [Source(tmp_path / "images")]
    voc = [Source(tmp_path / "other", tmp_path), Source(tmp_path / "images", tmp_path / "labels")]
    coco = [Source(tmp_path / "images", tmp_path / "coco.json")]
    (tmp_path / "coco.json").write_text("{}")
    for fault, sources, image in [
        (Fault(f"{root}/gone.png", "", ""), yolo, "gone.png"),
        (Fault(f"{root}/labels/sub/a.txt", "line 3", ""), yolo, "images/sub/a.jpg"),
        (Fault(f"{root}/labels/B.txt", "", ""), yolo, "images/B.JPG"),
        (Fault(f"{root}/labels/beside.txt", "", ""), yolo, "labels/beside.png"),
        (Fault(f"{root}/labels/nothing.txt", "", ""), yolo, None),
        (Fault(f"{root}/labels/sub/a.xml", "object 1", ""), voc, "images/sub/a.jpg"),
        (Fault(f"{root}/coco.json", "sub/a.jpg: annotation 7", ""), coco, "images/sub/a.jpg"),
        (Fault(f"{root}/coco.json", "sub/a.jpg", ""), coco, "images/sub/a.jpg"),
        (Fault(f"{root}/coco.json", "annotation 7", ""), coco, None),
        (Fault(f"{root}/coco.json", "", ""), coco, None),
        (Fault(f"{root}/set.yaml", "line 1", ""), (), None),
    ]:
        assert image_of_fault(fault, sources) == ("" if image is None else str(tmp_path / image)), fault
