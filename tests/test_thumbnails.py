"""data/thumbnails.py: the right piece of the image, boxes where they belong, and no picture of what can't be read."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.thumbnails import PALETTE, Picture, around, data_uris, decode, render, shrink_for
from tests.small_data import picture, write_image
from utils.errors import UserError


def opened(uri: str) -> np.ndarray:
    """RGB."""
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_an_image_is_decoded_smaller(suffix: str, shrink: int, tmp_path: Path) -> None:
    image = picture(1, 320, 240)
    write_image(tmp_path / f"a{suffix}", image)
    found = decode(tmp_path / f"a{suffix}", shrink)
    assert found.shape == (240 // shrink, 320 // shrink, 3)
    exact = cv2.resize(image, found.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - exact).mean() < 4
    assert decode(tmp_path / f"a{suffix}", shrink, grey=True).shape == found.shape[:2]


def test_an_image_is_shown_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(picture(1, 90, 60)).save(tmp_path / "a.jpg", exif=exif)
    assert decode(tmp_path / "a.jpg").shape[:2] == (90, 60)
    assert opened(data_uris([Picture(str(tmp_path / "a.jpg"), side=45)])[0]).shape[:2] == (45, 30)


def test_how_far_an_image_may_shrink() -> None:
    assert [shrink_for(*size, 64) for size in ((640, 512), (512, 640), (511, 600), (128, 999), (127, 999), (3, 3))] == [
        8, 8, 4, 2, 1, 1,
    ]  # fmt: skip


def test_what_cannot_be_read_has_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"hello")
    write_image(tmp_path / "good.png", picture(1))
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    names = ("empty.jpg", "text.jpg", "cut.png", "gone.jpg")
    assert data_uris([Picture(str(tmp_path / name)) for name in names] + [Picture("")]) == [""] * 5
    for name in names:
        with pytest.raises(UserError, match=name):
            decode(tmp_path / name)


def test_a_box_is_drawn_where_it_is_and_in_its_colour(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((400, 800, 3), np.uint8))
    boxes = np.array([[80, 40, 400, 360], [600, 40, 720, 80]], np.float32)
    shown = opened(data_uris([Picture(str(tmp_path / "a.png"), boxes, (0, 1), side=200)])[0]).astype(int)
    assert shown.shape == (100, 200, 3)
    for (x, y), colour in (((20, 50), 0), ((100, 50), 0), ((60, 10), 0), ((60, 90), 0), ((150, 15), 1), ((180, 15), 1)):
        near = shown[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
        assert np.abs(near - PALETTE[colour]).sum(1).min() < 90, (x, y)
    assert shown[45:55, 40:80].max() < 40 and shown[30:70, 120:190].max() < 40


def test_a_region_is_cut_out(tmp_path: Path) -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[20:30, 60:80] = 255
    write_image(tmp_path / "a.png", image)
    for region, side, shape in (((60, 20, 80, 30), 80, (40, 80)), ((60, 20, 80, 30), 10, (5, 10))):
        shown = opened(data_uris([Picture(str(tmp_path / "a.png"), region=region, side=side)])[0])
        assert shown.shape[:2] == shape and shown.min() > 240


def test_a_region_of_no_size_is_a_pixel() -> None:
    image = picture(1, 40, 30)
    assert render(Picture("", region=(39.5, 29.5, 40, 30), side=16), image, (40, 30)).shape == (16, 16, 3)


sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
share = st.floats(0, 1)


@given(size=sizes, corners=st.tuples(share, share, share, share))
def test_the_region_around_a_box_holds_it_and_lies_in_the_image(size: tuple, corners: tuple) -> None:
    x1, x2 = (value * size[0] for value in sorted(corners[::2]))
    y1, y2 = (value * size[1] for value in sorted(corners[1::2]))
    left, top, right, bottom = around((x1, y1, x2, y2), size)
    slack = 1e-6 * max(size)
    assert -slack <= left <= x1 + slack and x2 - slack <= right <= size[0] + slack
    assert -slack <= top <= y1 + slack and y2 - slack <= bottom <= size[1] + slack
    assert right - left >= min(48, size[0]) - slack and bottom - top >= min(48, size[1]) - slack
