"""Small labelled data sets in every format, and what a reader makes of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

from data.config import load_data_config
from data.faults import Fault
from data.formats import Record, read_split

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


def yolo(folder: Path, labels: str | bytes, extra: str = "") -> tuple[Record, list[Fault]]:
    """Read one image of 100 x 50 with these labels. A second one keeps the split from being empty."""
    image(folder / "images/a.png")
    text(folder / "labels/a.txt", "")
    (folder / "labels/a.txt").write_bytes(labels if isinstance(labels, bytes) else labels.encode())
    image(folder / "images/b.png")
    text(folder / "labels/b.txt", "0 .5 .5 1 1")
    records, faults = read(folder, f"train: images\n{NAMES}{extra}")
    return records[0], faults


def voc(*objects: tuple[str, Any, Any, Any, Any], size: tuple[int, int] | None = None, extra: str = "") -> str:
    parts = []
    for name, *corners in objects:
        keys = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{key}>{value}</{key}>" for key, value in keys)
        parts.append(f"<object><name>{name}</name>{extra}<bndbox>{box}</bndbox></object>")
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation>{stated}{''.join(parts)}</annotation>"


def coco(images: list[Any], annotations: list[Any], names: tuple[str, ...] = ("cat", "dog", "hot dog")) -> str:
    """Category ids 10, 20, …, in the reverse order of the names."""
    ids = {name: 10 * (i + 1) for i, name in enumerate(reversed(names))}
    listed = [{"id": number, "name": name, "supercategory": "x"} for name, number in ids.items()]
    return json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": listed})


def annotation(
    number: int, image_id: Any = 1, category: Any = 30, bbox: Any = (1, 2, 3, 4), **more: Any
) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": bbox, **more}


A, B = {"id": 1, "file_name": "a.png", "width": 100, "height": 50}, {"id": "two", "file_name": "train/b.png"}
