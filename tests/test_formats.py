"""Splits: all formats give the same records, in a fixed order, and image headers say the size."""

from __future__ import annotations

import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.config import DataConfig, load_data_config
from data.formats import read_split
from data.images import image_size
from tests.label_files import NAMES, A, Row, annotation, coco, image, read, rows, says, text, voc

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
    assert any("too_large.png:: 40000 x 40000 pixels are more than can be decoded" in text for text in says(faults))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_broken_exif_block_turns_nothing(tmp_path: Path) -> None:
    path = image(tmp_path / "images/a.jpg")
    Image.new("RGB", (60, 40)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09garbage")
    text(tmp_path / "labels/a.txt", "0 .5 .5 1 1")
    records, faults = read(tmp_path, f"train: images\n{NAMES}")
    assert (records[0].width, records[0].height) == (60, 40) and not faults
    assert cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).shape == (40, 60, 3)


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
    return width, height, list(dict.fromkeys(boxes))  # the same object twice is a fault


@settings(max_examples=40, deadline=None)
@given(case=labelled(), form=st.sampled_from([".6f", ".17g"]))
def test_all_formats_give_the_same_records(case: tuple[int, int, list[Row]], form: str) -> None:
    width, height, boxes = case
    assume(not boxes or max(side for box in boxes for side in box[1:]) > 1)  # else they would be taken for shares
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
