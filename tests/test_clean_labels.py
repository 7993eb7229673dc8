"""The quick reader of clean YOLO labels gives to the last bit what the careful reader gives, in any processes."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import data.formats
from data.clean_labels import CleanLabels
from data.config import load_data_config
from data.faults import Fault
from data.index import ARRAYS, Index, build_index

ODD = """-|0 .5 .5 .1|0 .5 .5 .1 .1 .1|3 .5 .5 .1 .1|-1 .5 .5 .1 .1|0.5 .5 .5 .1 .1|nan .5 .5 .1 .1|0 inf .5 .1 .1
0 1e999 .5 .1 .1|0 .5 .5 0 .1|0 .5 .5 -.1 .1|0 1.5 .5 .1 .1|0 .01 .5 .2 .1|0 .0 .5 .2 1|0 .5 .5 2.5 .1|0,.5,.5,.1,.1
0 .1 .2 .5 .4 .3 .8|1_0 .5 .5 .1 .1|0 .5 .5 .1 .1 # a|0 .5 .5 .1 .000001|0 .5\x0b.5 .1 .1|0 .5 .5 .1 .1\x0c0 .5 .5 .2 .2
0 .5 .5 .1 .1\r1 .4 .4 .1 .1|\ufeff0 .5 .5 .1 .1|0 .5 .5 .1 .1\u2028|٠ .5 .5 .1 .1|0 .5 .5 .1 .1\0|2 25 30 10 10
0 .5 .5 .1 .1\n0 .5 .5 .1 .1|0 .5 .5 .1 .1\n0 0.50 5e-1 .1 +.10|2.0 .5 .5 .1 .1|+1 .5 .5 .1 .1|0 .05 .5 .1002 .1
0 .50000001 .5 1 1|0 .5 .5 1 1.0000001|1e0 .5 .5 .1 .1|0 .5 .5 .1 .1-|--0 .5 .5 .1 .1|0 .5 .5 1-1 .1|0 1e .5 .1 .1
0 . . . .|0 .05 .5 .11 .1|0 .05 .5 .103 .1"""


def rows_of(draw: random.Random) -> str:
    rows = []
    for _ in range(draw.choice([0, 1, 2, 5, 20])):
        w, h = draw.uniform(0.01, 1), draw.uniform(0.01, 1)
        x, y = draw.uniform(w / 2, 1 - w / 2), draw.uniform(h / 2, 1 - h / 2)
        form = draw.choice([".6f", ".17g", ".3f"])
        rows.append(f"{draw.randrange(3)} " + " ".join(format(value, form) for value in (x, y, w, h)))
    end = draw.choice(["\n", "\r\n", " \n", "\n\n"])
    return end.join(rows) + draw.choice(["", end, "\t\n  \n"])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clean and odd label files, missing ones, ones beside the image, links; images of all kinds, and broken ones."""
    root, draw = tmp_path_factory.mktemp("mixed"), random.Random(0)
    for folder in ("images/sub", "labels/sub"):
        (root / folder).mkdir(parents=True)
    odd = [case for line in ODD.split("\n") for case in line.split("|")]
    cases = [rows_of(draw) for _ in range(60)] + odd + [f"{rows_of(draw)}\n{case}" for case in odd]
    for i, content in enumerate(cases):
        name = f"{'sub/' * (i % 3 == 0)}{i:03d}"
        size, suffix = (draw.randint(1, 700), draw.randint(1, 700)), draw.choice(["jpg", "png", "bmp"])
        size = size if i < 60 else (640, 480)
        Image.new("L", size).save(root / f"images/{name}.{suffix}")
        place = "images" if i % 7 == 0 else "labels"
        (root / f"{place}/{name}.txt").write_bytes(content.encode())
    plain = Image.new("RGB", (20, 10))
    for name in ("absent", "folder", "link", "binary", "both", "large"):
        plain.save(root / f"images/{name}.jpg")
    (root / "labels/folder.txt").mkdir()
    (root / "labels/link.txt").symlink_to(root / "gone.txt")
    (root / "labels/binary.txt").write_bytes(b"\xff\xfe\0\1")
    (root / "labels/both.txt").write_text("1 .5 .5 1 1")
    (root / "images/both.txt").write_text("2 .5 .5 1 1")
    (root / "labels/large.txt").write_text("".join(f"0 .5 .5 {i / 5000:.5f} .5\n" for i in range(1000, 5000)))
    (root / "images/page.jpg").write_text("<html>")
    (root / "labels/page.txt").write_text("1 .5 .5 1 1")
    plain.save(root / "images/wrong.jpg", "PNG")
    (root / "labels/wrong.txt").write_text("1 .5 .5 1 1")
    for name in (b"a b\n.jpg", b"\xff.jpg", "😀.jpg".encode()):
        with open(os.path.join(os.fsencode(root), b"images", name), "wb") as file:
            plain.save(file, "JPEG")
        with open(os.path.join(os.fsencode(root), b"labels", name[:-4] + b".txt"), "wb") as file:
            file.write(b"0 .5 .5 .25 .5\n")
    (root / "data.yaml").write_text("train: images\nnames: [a, b, c]\n")
    return root


def careful(images: list[str], *_: object) -> CleanLabels:
    """Nothing is clean."""
    none, empty = np.zeros(len(images), np.int64), np.zeros(0, np.float32)
    no = none.astype(bool)
    return CleanLabels(no, np.zeros((len(images), 2), np.int32), none, no, empty.reshape(0, 4), empty, empty)


def read(root: Path, **options: Any) -> tuple[Index, list[Fault]]:
    return build_index(load_data_config(root / "data.yaml", **options), "train", cache=False)


def assert_same(found: tuple[Index, list[Fault]], expected: tuple[Index, list[Fault]]) -> None:
    for key in ARRAYS:
        one, other = getattr(found[0], key), getattr(expected[0], key)
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes(), key
    assert found[1] == expected[1]


@pytest.mark.parametrize("single_cls", [False, True])
def test_the_quick_reader_gives_what_the_careful_one_gives(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, single_cls: bool
) -> None:
    quick = read(mixed, single_cls=single_cls)
    cleans: list[int] = []
    real = data.formats.read_clean

    def counted(*args: Any) -> CleanLabels:
        found = real(*args)
        cleans.append(int(found.clean.sum()))
        return found

    for chunk in (1, 7, 512):  # blocks that are clean as a whole, and mixed ones
        monkeypatch.setattr(data.formats, "CHUNK", chunk)
        monkeypatch.setattr(data.formats, "read_clean", counted)
        assert_same(read(mixed, single_cls=single_cls), quick)
    assert cleans[-1] > 60
    monkeypatch.setattr(data.formats, "read_clean", careful)
    expected = read(mixed, single_cls=single_cls)
    assert len(expected[1]) > 40 and len(expected[0]) > 100
    assert_same(quick, expected)


def test_any_number_of_processes_gives_the_same(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read(mixed)
    monkeypatch.setattr(data.formats, "FEW", 0)
    for chunk in (5, 64, 1000):
        monkeypatch.setattr(data.formats, "CHUNK", chunk)
        assert_same(read(mixed), expected)


def test_odd_names_keep_their_labels(mixed: Path) -> None:
    index, _ = read(mixed)
    names = [index.name(i) for i in range(len(index))]
    for name in ("images/a b\n.jpg", "images/😀.jpg", "images/\udcff.jpg"):
        i = names.index(name)
        assert os.path.isfile(index.path(i))
        assert index.sizes[i].tolist() == [20, 10] and index.labels(i)[1].tolist() == [[7.5, 2.5, 12.5, 7.5]]
    assert names == sorted(names)
    assert index.labels(names.index("images/both.jpg"))[0].tolist() == [1]
