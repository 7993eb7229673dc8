"""The packed index: the same from every format, the same from its cache, and never a stale one."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import data.index
from data.cache import cache_root
from data.config import DataConfig, load_data_config
from data.entries import block_of
from data.faults import Fault
from data.index import ARRAYS, Index, build_index, pack
from data.labels import Record
from tests.small_data import picture, write_image

NAMES = ("RBC", "WBC", "Platelets")
WIDTH, HEIGHT = 640, 480  # of every image of BCCD
OBJECT = re.compile(r"<object>.*?</object>", re.DOTALL)


def objects_of(bccd: Path, stem: str) -> list[tuple[int, int, int, int, int]]:
    """Class and corners of all objects, the faulty ones too, by another parser."""
    rows = []
    for item in OBJECT.findall((bccd / f"Annotations/{stem}.xml").read_text()):
        name = re.search(r"<name>(.*?)</name>", item)
        corners = [re.search(rf"<{key}>(\d+)</{key}>", item) for key in ("xmin", "ymin", "xmax", "ymax")]
        assert name and all(corners)
        rows.append((NAMES.index(name[1]), *(int(match[1]) for match in corners if match)))
    return rows


def stems_of(bccd: Path, split: str) -> list[str]:
    return (bccd / f"ImageSets/Main/{split}.txt").read_text().split()


def voc_config(bccd: Path, folder: Path) -> DataConfig:
    source = "{{images: JPEGImages, annotations: Annotations, split: ImageSets/Main/{}.txt}}"
    splits = "".join(f"{key}: {source.format(name)}\n" for key, name in (("train", "trainval"), ("val", "test")))
    file = folder / "voc.yaml"
    file.write_text(f"path: {bccd}\n{splits}names: [{', '.join(NAMES)}]\n")
    return load_data_config(file)


def coco_config(bccd: Path, folder: Path) -> DataConfig:
    """A COCO JSON copy beside linked images; ids with gaps, categories, images and annotations shuffled."""
    root = folder / "coco"
    root.mkdir()
    (root / "JPEGImages").symlink_to(bccd / "JPEGImages")
    categories = [{"id": 7, "name": "Platelets"}, {"id": 3, "name": "RBC"}, {"id": 90, "name": "WBC"}]
    ids = {NAMES.index(item["name"]): item["id"] for item in categories}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, stem in enumerate(stems_of(bccd, "trainval")):
        images.append({"id": 5 * number, "file_name": f"{stem}.jpg", "width": WIDTH, "height": HEIGHT})
        for label, x1, y1, x2, y2 in objects_of(bccd, stem):
            width, height = x2 - x1, y2 - y1
            item = {"image_id": 5 * number, "category_id": ids[label], "bbox": [x1, y1, width, height]}
            annotations.append({"id": len(annotations) + 1, **item, "area": width * height, "iscrowd": 0})
    order = np.random.default_rng(0).permutation(len(images))
    content = {"images": [images[i] for i in order], "annotations": annotations, "categories": categories}
    (root / "all.json").write_text(json.dumps(content))
    (root / "data.yaml").write_text(
        f"train: {{images: JPEGImages, annotations: all.json}}\nnames: [{', '.join(NAMES)}]\n"
    )
    return load_data_config(root / "data.yaml")


def yolo_config(bccd: Path, folder: Path, form: str) -> DataConfig:
    root = folder / f"yolo{form}"
    (root / "JPEGImages").mkdir(parents=True)
    for stem in stems_of(bccd, "trainval"):
        (root / f"JPEGImages/{stem}.jpg").symlink_to(bccd / f"JPEGImages/{stem}.jpg")
        lines = []
        for label, x1, y1, x2, y2 in objects_of(bccd, stem):
            shares = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
            lines.append(f"{label} {' '.join(format(share, form) for share in shares)}\n")
        (root / f"JPEGImages/{stem}.txt").write_text("".join(lines))
    (root / "data.yaml").write_text(f"train: JPEGImages\nnames: [{', '.join(NAMES)}]\n")
    return load_data_config(root / "data.yaml")


def test_bccd_in_every_format_is_the_identical_index(bccd: Path, tmp_path: Path) -> None:
    reference, faults = build_index(voc_config(bccd, tmp_path), "train")
    assert (len(reference), len(reference.boxes)) == (292, 3941)
    assert [str(fault)[len(str(bccd)) + 1 :] for fault in faults] == [
        "Annotations/BloodImage_00338.xml:object 13: box (504, 337, 504, 337) has no area: dropped",
        "Annotations/BloodImage_00343.xml:object 4: box (181, 329, 181, 329) has no area: dropped",
    ]
    copies = [coco_config(bccd, tmp_path), yolo_config(bccd, tmp_path, ".6f"), yolo_config(bccd, tmp_path, ".17g")]
    for config in copies:
        index, found = build_index(config, "train")
        assert len(found) == 2 and all("has no area: dropped" in fault.text for fault in found)
        for key in ARRAYS:
            array, expected = getattr(index, key), getattr(reference, key)
            assert array.dtype == expected.dtype and array.tobytes() == expected.tobytes(), key
        assert index.digest == reference.digest
        assert index.root == str(config.root) != reference.root


def test_bccd_is_what_other_readers_see(bccd: Path, tmp_path: Path) -> None:
    index, _ = build_index(voc_config(bccd, tmp_path), "val")
    stems = stems_of(bccd, "test")
    assert [Path(index.path(i)) for i in range(len(index))] == [
        bccd / f"JPEGImages/{stem}.jpg" for stem in sorted(stems)
    ]
    for i, stem in enumerate(sorted(stems)):
        classes, boxes = index.labels(i)
        rows = [(label, *corners) for label, corners in zip(classes.tolist(), boxes.tolist(), strict=True)]
        assert rows == [(label, *map(float, corners)) for label, *corners in objects_of(bccd, stem)]
    config = coco_config(bccd, tmp_path)
    index, _ = build_index(config, "train")
    coco = COCO(config.root / "all.json")
    names = {coco.cats[number]["name"]: number for number in coco.cats}
    by_name = {image["file_name"]: number for number, image in coco.imgs.items()}
    for i in range(0, len(index), 17):
        items = coco.imgToAnns[by_name[os.path.basename(index.path(i))]]
        items = [item for item in items if item["area"] > 0]
        classes, boxes = index.labels(i)
        assert [names[config.names[label]] for label in classes] == [item["category_id"] for item in items]
        assert np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist() == [
            item["bbox"] for item in items
        ]


# ---------------------------------------------------------------- packing


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    for name, labels in {"a": "0 .5 .5 .5 .5\n1 .5 .5 1 1\n9 .5 .5 1 1\n", "b": None, "ä c": "1 .25 .5 .5 1\n"}.items():
        path = tmp_path / f"set/images/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 4)).save(path)
        if labels:
            (tmp_path / "set/labels").mkdir(exist_ok=True)
            (tmp_path / f"set/labels/{name}.txt").write_text(labels)
    (tmp_path / "set/data.yaml").write_text("train: images\nnames: [x, y]\n")
    return tmp_path / "set"


def test_the_arrays_by_hand(toy: Path) -> None:
    index, faults = build_index(load_data_config(toy / "data.yaml"), "train")
    names = ["images/a.png", "images/b.png", "images/ä c.png"]
    assert index.paths.tobytes().decode() == "".join(names)
    assert index.path_offsets.tolist() == [0, 12, 24, 24 + len(names[2].encode())]
    assert index.sizes.tolist() == [[8, 4]] * 3
    assert index.offsets.tolist() == [0, 2, 2, 3]
    assert index.classes.tolist() == [0, 1, 1]
    assert index.boxes.tolist() == [[2, 1, 6, 3], [0, 0, 8, 4], [0, 0, 4, 4]]
    assert index.areas.tolist() == [8, 32, 16] and index.crowd.tolist() == [False] * 3
    kinds = {key: getattr(index, key).dtype for key in ARRAYS}
    assert kinds == dict(zip(ARRAYS, ("u1", "i8", "i4", "f4", "i4", "?", "f4", "i8"), strict=True))
    assert len(index) == 3 and index.backgrounds == 1
    assert [fault.kind for fault in faults] == ["label-class-range", "split-backgrounds"]
    assert [index.path(i) for i in range(3)] == [str(toy / name) for name in names]
    assert index.labels(1)[0].shape == (0,) and index.labels(1)[1].shape == (0, 4)


def test_the_arrays_cannot_be_written_to(toy: Path) -> None:
    for _ in range(2):  # as read, and from the cache
        index, _ = build_index(load_data_config(toy / "data.yaml"), "train")
        with pytest.raises(ValueError, match="read-only"):
            index.labels(0)[1][:] *= 2


def test_the_digest_is_of_the_content(toy: Path, tmp_path: Path) -> None:
    index, _ = build_index(load_data_config(toy / "data.yaml"), "train")
    digest = index.digest
    assert pickle.loads(pickle.dumps(index)).digest == digest
    os.rename(toy, tmp_path / "moved")
    moved, _ = build_index(load_data_config(tmp_path / "moved/data.yaml"), "train")
    assert moved.digest == digest and moved.path(0) == str(tmp_path / "moved/images/a.png")
    for key in ARRAYS:
        arrays = {name: getattr(index, name).copy() for name in ARRAYS}
        arrays[key].reshape(-1).view(np.uint8)[0] ^= 1
        assert Index(root=index.root, **arrays).digest != digest, key


def test_crowds_are_no_objects() -> None:
    boxes, classes, areas = np.array([[0, 0, 1, 1]] * 3, np.float32), np.zeros(3, np.int32), np.ones(3, np.float32)
    records = [
        Record(Path(f"/{i}"), f"{i}", 3, 2, boxes, classes, np.array(crowd), areas)
        for i, crowd in enumerate([[True, False, True], [True, True, True]])
    ]
    index = pack("/", [block_of(records)])
    assert len(index.boxes) == 6 and index.counts.tolist() == [1, 0]
    assert (index.objects, index.backgrounds) == (1, 1)


def test_no_records() -> None:
    index = pack("/", [])
    assert len(index) == 0 and index.offsets.tolist() == [0] and index.boxes.shape == (0, 4)
    empty = np.zeros(0, np.float32)
    record = Record(Path("/a"), "a", 3, 2, empty.reshape(0, 4), empty.astype(np.int32), empty.astype(bool), empty)
    index = pack("/", [block_of([record])])
    assert len(index) == 1 and index.backgrounds == 1 and index.sizes.tolist() == [[3, 2]]


# ---------------------------------------------------------------- cache


def builds(toy: Path, monkeypatch: pytest.MonkeyPatch, **options: bool) -> tuple[str, int]:
    """(digest, how often the labels were read) of a build."""
    calls = []
    real = data.index.iter_split
    with monkeypatch.context() as patch:
        patch.setattr(data.index, "iter_split", lambda *args: calls.append(1) or real(*args))
        index, faults = build_index(load_data_config(toy / "data.yaml", **options), "train")
    assert [(fault.kind, fault.where) for fault in faults if fault.stops] == [("label-class-range", "line 3")]
    return index.digest, len(calls)


def test_the_cache_gives_the_same_and_is_ours(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy.rglob("*")}
    digest, reads = builds(toy, monkeypatch)
    assert reads == 1
    assert builds(toy, monkeypatch) == (digest, 0)
    assert before == {path: path.stat().st_mtime_ns for path in toy.rglob("*")}
    assert build_index(load_data_config(toy / "data.yaml"), "train", cache=False)[0].digest == digest


def test_the_cache_keeps_faults_whole(toy: Path) -> None:
    config = load_data_config(toy / "data.yaml")
    _, faults = build_index(config, "train")
    assert build_index(config, "train")[1] == faults == build_index(config, "train", cache=False)[1]


def test_what_an_archive_unpacks_with_the_times_of_before_is_another_file(toy: Path) -> None:
    """Of the same size, too."""
    config = load_data_config(toy / "data.yaml")
    digest = build_index(config, "train")[0].digest
    label = toy / "labels/a.txt"
    stat, content = label.stat(), label.read_text()
    label.write_text(content.replace(".5", ".4", 1))
    os.utime(label, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert label.stat().st_size == stat.st_size and label.read_text() != content
    assert build_index(config, "train")[0].digest != digest


@pytest.mark.parametrize("kind", ["label-unreadable", "image-unreadable"])
def test_a_failure_to_read_is_not_kept(toy: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A disk that failed once leaves no mark on the file."""
    config, real = load_data_config(toy / "data.yaml"), data.index.iter_split

    def failing(*args: Any) -> Any:
        yield from real(*args)
        yield block_of([], [Fault.of(kind, str(toy / "labels/a.txt"), "", "can't be read (Input/output error)")])

    with monkeypatch.context() as patch:
        patch.setattr(data.index, "iter_split", failing)
        assert kind in {fault.kind for fault in build_index(config, "train")[1]}
    assert kind not in {fault.kind for fault in build_index(config, "train")[1]}


@pytest.mark.parametrize("stray", ["images/odd.heic", "labels/alone.txt"])
def test_a_fault_that_is_mended_is_gone(toy: Path, stray: str) -> None:
    """What is read of no image is looked at too: a cached fault would stop a run for ever."""
    config = load_data_config(toy / "data.yaml")
    path = toy / stray
    path.write_text("0 .5 .5 1 1")
    assert str(path) in {fault.file for fault in build_index(config, "train")[1]}
    path.unlink()
    assert str(path) not in {fault.file for fault in build_index(config, "train")[1]}


def test_a_share_of_missing_labels_is_part_of_the_index(toy: Path) -> None:
    yaml = (toy / "data.yaml").read_text()
    for allowed, stops in (("0.2", True), ("0.4", False)):
        (toy / "data.yaml").write_text(f"{yaml}max_missing_labels: {allowed}\n")
        faults = build_index(load_data_config(toy / "data.yaml"), "train")[1]
        assert [fault.stops for fault in faults if fault.kind.startswith("split-")] == [stops]


def touch_label(toy: Path) -> None:
    stat = (toy / "labels/a.txt").stat()
    os.utime(toy / "labels/a.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def label_the_background(toy: Path) -> None:
    (toy / "images/b.txt").write_text("0 .5 .5 1 1")


def other_image_size(toy: Path) -> None:
    Image.new("RGB", (16, 8)).save(toy / "images/a.png")


def new_image(toy: Path) -> None:
    Image.new("RGB", (16, 8)).save(toy / "images/d.png")


def other_names(toy: Path) -> None:
    (toy / "data.yaml").write_text("train: images\nnames: [x, z]\n")


def label_in_a_new_folder(toy: Path) -> None:
    (toy / "images/sub").mkdir()
    (toy / "labels/sub").mkdir()
    Image.new("RGB", (8, 4)).save(toy / "images/sub/z.png")
    (toy / "labels/sub/z.txt").write_text("0 .5 .5 1 1")


@pytest.mark.parametrize(
    "change", [touch_label, label_the_background, other_image_size, new_image, other_names, label_in_a_new_folder]
)
def test_a_change_is_seen(toy: Path, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    digest, _ = builds(toy, monkeypatch)
    change(toy)
    changed, reads = builds(toy, monkeypatch)
    assert reads == 1
    assert (changed == digest) == (change in (touch_label, other_names))
    assert builds(toy, monkeypatch) == (changed, 0)


def test_what_is_mended_in_the_folders_is_no_fault_any_more(toy: Path) -> None:
    (toy / "images/x.gif").touch()
    (toy / "images/y.jpg").mkdir()
    (toy / "labels/lost.txt").write_text("0 .5 .5 1 1")
    Image.new("RGB", (8, 4)).save(toy / "images/a.jpg")
    config = load_data_config(toy / "data.yaml")
    kinds = {os.path.basename(fault.file): fault.kind for fault in build_index(config, "train")[1]}
    assert kinds["x.gif"] == "image-kind-not-read" and kinds["y.jpg"] == "image-folder" and "lost.txt" in kinds
    assert [fault.stops for fault in build_index(config, "train")[1] if fault.kind == "image-two-of-one-stem"] == [True]
    (toy / "images/x.gif").unlink()
    (toy / "images/y.jpg").rmdir()
    (toy / "labels/lost.txt").unlink()
    (toy / "images/a.jpg").unlink()
    files = {os.path.basename(fault.file) for fault in build_index(config, "train")[1]}
    assert not files & {"x.gif", "y.jpg", "lost.txt"}


def test_single_cls_is_another_index(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, _ = builds(toy, monkeypatch)
    single, reads = builds(toy, monkeypatch, single_cls=True)
    assert single != digest and reads == 1
    assert builds(toy, monkeypatch) == (digest, 0)


def test_changes_of_annotation_files_and_lists_are_seen(bccd: Path, tmp_path: Path) -> None:
    """VOC and COCO sources, whose label files aren't found by the image's name."""
    config = coco_config(bccd, tmp_path)
    first, _ = build_index(config, "train")
    file = config.root / "all.json"
    content = json.loads(file.read_text())
    content["annotations"].pop()
    file.write_text(json.dumps(content))
    assert len(build_index(config, "train")[0].boxes) == len(first.boxes) - 1
    root = tmp_path / "voc"
    (root / "xml").mkdir(parents=True)
    (root / "list.txt").write_text("BloodImage_00000\n")
    for stem in ("BloodImage_00000", "BloodImage_00001"):
        (root / f"xml/{stem}.xml").write_bytes((bccd / f"Annotations/{stem}.xml").read_bytes())
    source = f"{{images: {bccd}/JPEGImages, annotations: xml, split: list.txt}}"
    (root / "data.yaml").write_text(f"train: {source}\nnames: [{', '.join(NAMES)}]\n")
    config = load_data_config(root / "data.yaml")
    assert len(build_index(config, "train")[0]) == 1
    (root / "list.txt").write_text("BloodImage_00000\nBloodImage_00001\n")
    index, _ = build_index(config, "train")
    assert len(index) == 2
    (root / "xml/BloodImage_00001.xml").write_text("<annotation/>")
    assert len(build_index(config, "train")[0].boxes) == index.offsets[1]


@pytest.mark.parametrize("damage", ["empty", "not a zip", "cut", "a flipped byte"])
def test_a_damaged_cache_is_read_anew(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "cache"))
    digest, _ = builds(toy, monkeypatch)
    (file,) = (cache_root() / "index").iterdir()
    whole = file.read_bytes()
    place = whole.index(b"images/a.png") + 3  # in the paths
    flipped = whole[:place] + b"X" + whole[place + 1 :]
    file.write_bytes({"empty": b"", "not a zip": b"PK\x03\x04", "cut": whole[:-9], "a flipped byte": flipped}[damage])
    assert builds(toy, monkeypatch) == (digest, 1)
    assert builds(toy, monkeypatch) == (digest, 0)


def test_a_cache_that_cannot_be_written_is_done_without(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "file"))
    digest, reads = builds(toy, monkeypatch)
    assert builds(toy, monkeypatch) == (digest, reads) and reads == 1


def test_keypoints_that_the_yaml_names_later_are_read_anew(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "0.jpg", picture(0))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 0.2 0.2 0.5 0.5 2\n")
    file = tmp_path / "my.yaml"
    file.write_text("train: images\nval: images\nnames: [a]\n")
    assert build_index(load_data_config(str(file)), "train")[1]
    file.write_text(file.read_text() + "kpt_shape: [1, 3]\n")
    index, faults = build_index(load_data_config(str(file)), "train")
    assert index.objects == 1 and not faults
