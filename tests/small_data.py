"""Data sets of a few drawn images, in all three formats, for the tests of the check."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

Box = tuple[int, float, float, float, float]  # class, and corners in pixels


def picture(seed: int, width: int = 96, height: int = 72) -> np.ndarray:
    """A smooth random image: no two seeds look alike. BGR."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def write_image(path: str | bytes | Path, image: np.ndarray, quality: int = 95) -> None:
    name = os.fsdecode(path)
    data = cv2.imencode(Path(name).suffix, image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    with open(path, "wb") as file:
        file.write(data.tobytes())


def yolo_set(root: Path, splits: Mapping[str, Sequence[Sequence[Box]]], names: Sequence[str]) -> Path:
    """Write images `0.jpg`, `1.jpg`, … of each split with their boxes; return the yaml."""
    for s, (split, images) in enumerate(splits.items()):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for i, boxes in enumerate(images):
            image = picture(1000 * s + i)
            write_image(root / "images" / split / f"{i}.jpg", image)
            rows = [yolo_row(box, image.shape[1], image.shape[0]) for box in boxes]
            (root / "labels" / split / f"{i}.txt").write_text("".join(rows))
    return write_yaml(root, {split: f"images/{split}" for split in splits}, names)


def yolo_row(box: Box, width: int, height: int) -> str:
    label, x1, y1, x2, y2 = box
    return f"{label} {(x1 + x2) / 2 / width:.8f} {(y1 + y2) / 2 / height:.8f} " + (
        f"{(x2 - x1) / width:.8f} {(y2 - y1) / height:.8f}\n"
    )


def voc_set(root: Path, splits: Mapping[str, Sequence[Sequence[Box]]], names: Sequence[str]) -> Path:
    """The same as Pascal VOC."""
    entries = {}
    for s, (split, images) in enumerate(splits.items()):
        for folder in ("images", "xml"):
            (root / split / folder).mkdir(parents=True)
        for i, boxes in enumerate(images):
            write_image(root / split / "images" / f"{i}.jpg", picture(1000 * s + i))
            objects = "".join(
                f"<object><name>{names[label]}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
                f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for label, x1, y1, x2, y2 in boxes
            )
            (root / split / "xml" / f"{i}.xml").write_text(f"<annotation>{objects}</annotation>")
        entries[split] = {"images": f"{split}/images", "annotations": f"{split}/xml"}
    return write_yaml(root, entries, names)


def coco_set(root: Path, splits: Mapping[str, Sequence[Sequence[Box]]], names: Sequence[str]) -> Path:
    """The same as COCO JSON."""
    entries = {}
    for s, (split, images) in enumerate(splits.items()):
        (root / split).mkdir(parents=True)
        annotations = []
        for i, boxes in enumerate(images):
            write_image(root / split / f"{i}.jpg", picture(1000 * s + i))
            for label, x1, y1, x2, y2 in boxes:
                one = {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
                annotations.append(one)
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "width": 96, "height": 72} for i in range(len(images))],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        }
        (root / f"{split}.json").write_text(json.dumps(content))
        entries[split] = {"images": split, "annotations": f"{split}.json"}
    return write_yaml(root, entries, names)


def write_yaml(root: Path, splits: Mapping[str, object], names: Sequence[str]) -> Path:
    file = root / "set.yaml"
    file.write_text(json.dumps({"path": ".", **splits, "names": list(names)}))  # json is yaml
    return file


def folder_state(root: Path) -> str:
    """A hash of all names, times and bytes below a folder."""
    digest = hashlib.sha256()
    for path in sorted(map(os.fsencode, root.rglob("*"))):
        stat = os.stat(path)
        digest.update(path + str((stat.st_mode, stat.st_mtime_ns)).encode())
        if os.path.isfile(path):
            with open(path, "rb") as file:
                digest.update(file.read())
    return digest.hexdigest()
