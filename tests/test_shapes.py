"""The embedded data set is sound, and always the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import shapes
from data.shapes import CLUTTER, MIN_VISIBLE, NAMES, SIDE, draw_picture, ensure_shapes
from utils.errors import UserError
from utils.seed import rng


@pytest.fixture(scope="module")
def pictures() -> list[tuple[np.ndarray, list[shapes.Shape]]]:
    return [draw_picture(rng(9, "shapes", 0, i)) for i in range(60)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "SPLITS", {"train": 5, "val": 3})


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.usefixtures("few")
def test_the_same_bytes_each_time_and_no_picture_twice(tmp_path: Path) -> None:
    first, second = ensure_shapes(tmp_path / "a"), ensure_shapes(tmp_path / "b")
    found = digests(first)
    assert found == digests(second)
    names = {f"{split}/{split}-{i:04d}" for split, count in (("train", 5), ("val", 3)) for i in range(count)}
    assert set(found) == {f"images/{name}.jpg" for name in names} | {f"labels/{name}.txt" for name in names}
    assert first.stat().st_mode & 0o777 == 0o755
    assert len({digest for name, digest in found.items() if name.startswith("images")}) == 8


@pytest.mark.usefixtures("few")
def test_it_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ensure_shapes(tmp_path)
    before = digests(folder)
    monkeypatch.setattr(shapes, "draw_picture", None)
    assert ensure_shapes(tmp_path) == folder
    assert digests(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == [f"shapes-v{shapes.VERSION}"]


@pytest.mark.usefixtures("few")
def test_half_of_it_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(folder: Path, split: str) -> None:
        if split == "val":
            raise OSError(28, "No space left on device")
        write(folder, split)

    write = shapes._write_split
    monkeypatch.setattr(shapes, "_write_split", full_disk)
    with pytest.raises(UserError, match="No space left"):
        ensure_shapes(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("few")
def test_two_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_is_quicker(folder: Path, split: str) -> None:
        write(folder, split)
        if split == "val":
            monkeypatch.setattr(shapes, "_write_split", write)
            ensure_shapes(tmp_path)

    write = shapes._write_split
    monkeypatch.setattr(shapes, "_write_split", other_is_quicker)
    folder = ensure_shapes(tmp_path)
    assert list(tmp_path.iterdir()) == [folder] and len(digests(folder)) == 16


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        ensure_shapes(tmp_path / "file")


@pytest.mark.usefixtures("few")
def test_labels_say_where_the_shapes_are(tmp_path: Path) -> None:
    folder = ensure_shapes(tmp_path)
    for i in range(5):
        drawn, placed = draw_picture(rng(shapes.VERSION, "shapes", 0, i))
        image = cv2.imread(str(folder / f"images/train/train-{i:04d}.jpg"))[..., ::-1]
        assert image.shape == (SIDE, SIDE, 3)
        assert np.abs(image.astype(int) - drawn).mean() < 8  # JPEG
        rows = np.loadtxt(folder / f"labels/train/train-{i:04d}.txt", ndmin=2)
        wanted = [shape for shape in placed if shape.label != CLUTTER]
        assert rows[:, 0].tolist() == [shape.label for shape in wanted]
        centers, sides = rows[:, 1:3] * SIDE, rows[:, 3:] * SIDE
        boxes = np.concatenate([centers - sides / 2, centers + sides / 2], 1)
        assert np.abs(boxes - [shape.box() for shape in wanted]).max() < 1e-3


def test_boxes_are_tight_and_inside(pictures: list[tuple[np.ndarray, list[shapes.Shape]]]) -> None:
    for _, placed in pictures:
        for shape in placed:
            x1, y1, x2, y2 = shape.box()
            filled = shape.mask > 127
            assert 0 <= x1 < x2 <= SIDE and 0 <= y1 < y2 <= SIDE
            assert filled.sum() == filled[y1:y2, x1:x2].sum()
            inner = filled[y1:y2, x1:x2]
            assert inner[0].any() and inner[-1].any() and inner[:, 0].any() and inner[:, -1].any()


def test_the_box_of_a_known_shape() -> None:
    class Fixed:
        """A generator that draws the middle of every range."""

        def uniform(self, low: float, high: float, size: int | None = None) -> float | np.ndarray:
            return (low + high) / 2 if size is None else np.full(size, (low + high) / 2)

    shape = shapes._place(Fixed(), NAMES.index("circle"), [])
    radius = 0.85 * np.sqrt(shapes.RADII[0] * shapes.RADII[1])  # no turn, stretched by 0.925 in y
    assert shape.area == pytest.approx(np.pi * 0.925 * radius**2, rel=0.01)
    expected = [80 - radius, 80 - 0.925 * radius, 80 + radius, 80 + 0.925 * radius]
    assert np.abs(np.array(shape.box()) - expected).max() <= 1
    assert (shape.mask > 127).sum() == pytest.approx(shape.area, rel=0.04)


def test_enough_of_every_shape_is_seen(pictures: list[tuple[np.ndarray, list[shapes.Shape]]]) -> None:
    overlaps = cut = 0
    for _, placed in pictures:
        top = np.full((SIDE, SIDE), -1)
        for number, shape in enumerate(placed):
            overlaps += bool((top[shape.mask > 127] >= 0).any())
            top[shape.mask > 127] = number
        for number, shape in enumerate(placed):
            assert (top == number).sum() >= MIN_VISIBLE * shape.area
            x1, y1, x2, y2 = shape.box()
            cut += min(x1, y1) == 0 or max(x2, y2) == SIDE
    assert overlaps > 40 and cut > 40


def test_colour_and_brightness_do_not_tell_a_class(pictures: list[tuple[np.ndarray, list[shapes.Shape]]]) -> None:
    colours: dict[int, list[np.ndarray]] = {label: [] for label in range(len(NAMES))}
    for image, placed in pictures:
        for shape in placed:
            if shape.label != CLUTTER:
                colours[shape.label].append(image[shape.shown].mean(0))
    values = {label: np.array(rows) for label, rows in colours.items()}
    everything = np.concatenate(list(values.values()))
    for rows in values.values():
        assert len(rows) > 20
        # Means of classes are as near to each other as chance leaves them.
        error = everything.std(0) / np.sqrt(len(rows))
        assert (np.abs(rows.mean(0) - everything.mean(0)) < 4 * error).all()


def test_every_picture_has_clutter_and_the_classes_are_even(
    pictures: list[tuple[np.ndarray, list[shapes.Shape]]],
) -> None:
    labels = [shape.label for _, placed in pictures for shape in placed]
    counts = np.bincount(np.array(labels) + 1, minlength=6)
    assert counts[0] > 60
    assert counts[1:].min() > 0.6 * counts[1:].max()
    assert np.mean([any(s.label != CLUTTER for s in placed) for _, placed in pictures]) == 1
