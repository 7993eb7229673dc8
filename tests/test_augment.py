"""Pixels and boxes move together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest

from data.augment import (
    MIN_DEPTH,
    SAME,
    Affine,
    Composite,
    Picture,
    Tile,
    _span,
    compose,
    finish,
    hsv_draw,
    hsv_matrix,
    letterbox,
    mixup,
    mosaic,
    paste,
    recolour,
    settle,
    warp,
    warp_boxes,
)

ALL = Affine(degrees=45, translate=0.2, scale=0.5, shear=15, perspective=0.001)


def no_boxes(image: np.ndarray) -> Picture:
    return Picture(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


def rectangle(width: int, height: int, box: tuple[int, int, int, int]) -> Picture:
    """A white rectangle on the grey of the padding."""
    image = np.full((height, width, 3), 114, np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return Picture(image, np.array([box], np.float32), np.array([3]))


def extent(inside: np.ndarray) -> np.ndarray:
    """Box around the true entries of a mask."""
    x, y = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
    return np.array([x[0], y[0], x[-1] + 1, y[-1] + 1])


def slow_extent(box: np.ndarray, matrix: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """Extent of a warped box by asking of each sixteenth of each pixel where it came from; zeros if not seen."""
    fine = 4
    x, y = np.meshgrid(*((np.arange(side * fine) + 0.5) / fine for side in target))
    back = np.linalg.inv(matrix)
    u, v, w = (row[0] * x + row[1] * y + row[2] for row in back)
    u, v = u / w, v / w
    inside = (u > max(box[0], 0)) & (u < min(box[2], source[0])) & (v > max(box[1], 0)) & (v < min(box[3], source[1]))
    return extent(inside) / fine if inside.any() else np.zeros(4)


def slow_share(box: np.ndarray, seen: np.ndarray, matrix: np.ndarray, source: tuple[int, int]) -> float:
    """Share of a box that lies in the source, times the share of that part's extent that `seen` makes up."""
    inside = np.clip(box, 0, [*source, *source])
    if np.prod(inside[2:] - inside[:2]) <= 0:
        return 0.0
    points = [matrix @ [inside[i], inside[j], 1] for i in (0, 2) for j in (1, 3)]
    sides = np.ptp([point[:2] / point[2] for point in points], axis=0)
    in_source = np.prod(inside[2:] - inside[:2]) / np.prod(box[2:] - box[:2])
    return in_source * np.prod(seen[2:] - seen[:2]) / np.prod(sides)


@pytest.mark.parametrize("seed", range(40))
def test_the_box_of_a_bright_rectangle_hugs_the_bright_pixels(seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, y = draw.integers(5, 60, 2)
    picture = rectangle(160, 120, (x, y, x + draw.integers(15, 80), y + draw.integers(15, 50)))
    matrix = ALL.draw(draw.random(8), (160, 120), (128, 96))
    image, boxes, classes = warp(picture, matrix, 128, 96)
    bright = image[..., 0] > (114 + 255) / 2
    if not len(boxes):
        assert bright.sum() < 0.3 * (picture.boxes[0, 2] - x) * (picture.boxes[0, 3] - y)
        return
    assert classes.tolist() == [3]
    assert np.abs(boxes[0] - extent(bright)).max() <= 2


@pytest.mark.parametrize("affine", [ALL, ALL._replace(perspective=0), Affine(0, 0.3, 0.5, 0, 0)])
def test_warped_boxes_equal_a_slow_search(affine: Affine) -> None:
    draw = np.random.default_rng(7)
    source, target = (100, 80), (60, 50)
    for _ in range(12):
        matrix = affine.draw(draw.random(8), source, target)
        corner = draw.uniform(-30, 90, (6, 2))
        boxes = np.concatenate([corner, corner + draw.uniform(4, 60, (6, 2))], 1)
        found, keep = warp_boxes(boxes, matrix, source, target)
        assert found.dtype == np.float32
        for box, own, kept in zip(boxes, found, keep, strict=True):
            expected = slow_extent(box, matrix, source, target)
            if kept:
                # A sharp corner between two samples is missed by the search.
                assert np.abs(own - expected).max() < 1
                assert slow_share(box, expected, matrix, source) > 0.05
            elif (expected[2:] - expected[:2] > 3).all():
                assert slow_share(box, expected, matrix, source) < 0.15


def test_a_warp_that_changes_nothing_changes_no_bit() -> None:
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    boxes = np.array([[1, 2, 30, 33.25]], np.float32)
    matrix = Affine(0, 0, 0, 0, 0).draw(draw.random(8), (60, 40), (60, 40))
    out = warp(Picture(image, boxes, np.array([0])), matrix, 60, 40)
    assert (out.image == image).all() and (out.boxes == boxes).all()


def test_turns_by_quarters_are_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    half = np.array([[-1, 0, 20], [0, -1, 30], [0, 0, 1.0]])
    assert (warp(no_boxes(image), half, 20, 30).image == image[::-1, ::-1]).all()
    quarter = np.array([[0, -1, 30], [1, 0, 0], [0, 0, 1.0]])  # clockwise
    assert (warp(no_boxes(image), quarter, 30, 20).image == np.rot90(image, -1)).all()


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[1, 0, 3], [0, 1, -5], [0, 0, 1]], [13, 15, 23, 25]),  # shift
        ([[0.5, 0, 0], [0, 2, 0], [0, 0, 1]], [5, 40, 10, 60]),  # scale: from 10..20 and 20..30
        ([[0, -1, 60], [1, 0, 0], [0, 0, 1]], [30, 10, 40, 20]),  # a quarter turn clockwise of a 60 high picture
        ([[-1, 0, 60], [0, 1, 0], [0, 0, 1]], [40, 20, 50, 30]),  # mirror
        ([[1, 1, 0], [0, 1, 0], [0, 0, 1]], [30, 20, 50, 30]),  # shear: x + y
        ([[1, 0, 0], [0, 1, 0], [0.05, 0, 1]], [6.6667, 10, 10, 20]),  # depth 1.5 at x = 10 and 2 at x = 20
        ([[1, 0, 45], [0, 1, 0], [0, 0, 1]], [55, 20, 60, 30]),  # half beyond the edge
        ([[1, 0, -15], [0, 1, -25], [0, 0, 1]], [0, 0, 5, 5]),  # a quarter left
    ],
)
def test_hand_worked_warps(matrix: list[list[float]], expected: list[float]) -> None:
    boxes, keep = warp_boxes(np.array([[10, 20, 20, 30.0]]), np.array(matrix, float), (60, 60), (60, 60))
    assert keep.all()
    assert boxes[0] == pytest.approx(expected, abs=1e-3)


def test_a_rotated_square_becomes_a_diamond_cut_by_the_edge() -> None:
    c = math.sqrt(0.5)
    turn = np.array([[c, -c, 0], [c, c, 0], [0, 0, 1]])  # an eighth of a turn about the corner (0, 0)
    (box,), keep = warp_boxes(np.array([[0, 0, 20, 20.0]]), turn, (20, 20), (40, 40))
    # Left half of the diamond is outside: from (0, 0) to the right corner at 20c and down to 40c.
    assert keep.all() and box == pytest.approx([0, 0, 20 * c, 40 * c], abs=1e-4)
    # In a picture of 40×15 the cut at y = 15 doesn't move the right corner at y = 14.14.
    (box,), _ = warp_boxes(np.array([[0, 0, 20, 20.0]]), turn, (20, 20), (40, 15))
    assert box == pytest.approx([0, 0, 20 * c, 15], abs=1e-4)
    # At y = 10 it does: there the right edge is at x = 10, not at 14.14.
    (box,), _ = warp_boxes(np.array([[0, 0, 20, 20.0]]), turn, (20, 20), (40, 10))
    assert box == pytest.approx([0, 0, 10, 10], abs=1e-4)


def test_a_box_that_covers_the_whole_picture_becomes_the_picture() -> None:
    c, s = math.cos(0.3), math.sin(0.3)
    matrix = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, -500], [0, 1, -500], [0, 0, 1]])
    (box,), _ = warp_boxes(np.array([[0, 0, 1000, 1000.0]]), matrix, (1000, 1000), (40, 30))
    assert box.tolist() == [0, 0, 40, 30]


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((10, 10, 20, 20), True),
        ((10, 10, 11.9, 40), False),  # less than 2 px wide
        ((10, 10, 12.1, 40), True),
        ((-80, 10, 20, 20), True),  # a fifth is seen
        ((-90, 10, 10, 20), False),  # a tenth is seen
        ((-50, -50, 15, 15), False),  # 15² of 65²
        ((0, 10, 400, 13), False),  # 133 : 1
        ((0, 10, 290, 13), True),  # 97 : 1
        ((10, 10, 10, 10), False),  # nothing
        ((500, 500, 600, 600), False),  # elsewhere
    ],
)
def test_which_boxes_are_kept(box: tuple[float, ...], kept: bool) -> None:
    for angle in (0.0, 1e-9):  # both ways of cutting
        turn = np.array([[1, -angle, 0], [angle, 1, 0], [0, 0, 1]])
        assert warp_boxes(np.array([box], float), turn, (400, 400), (400, 400))[1].tolist() == [kept]


def test_what_lies_outside_of_the_source_is_not_turned_into_view() -> None:
    c = math.sqrt(0.5)
    turn = np.array([[c, -c, 50], [c, c, -20], [0, 0, 1]])
    outside = np.array([[100, 0, 140, 100], [0, 100, 100, 140], [-40, 0, 0, 100], [99.9, 0, 140, 100]], float)
    assert not warp_boxes(outside, turn, (100, 100), (200, 200))[1].any()


def test_no_boxes() -> None:
    for affine in (ALL, Affine(0, 0, 0.5, 0, 0)):
        matrix = affine.draw(np.random.default_rng(0).random(8), (20, 20), (20, 20))
        out = warp(no_boxes(np.zeros((20, 20, 3), np.uint8)), matrix, 20, 20)
        assert out.boxes.shape == (0, 4) and out.boxes.dtype == np.float32 and out.classes.shape == (0,)


@pytest.mark.parametrize("seed", range(20))
def test_a_drawn_matrix_is_the_product_of_its_steps(seed: int) -> None:
    numbers = np.random.default_rng(seed).random(8)
    u = 2 * numbers - 1
    angle, gain, (shear_x, shear_y) = np.radians(45 * u[0]), 1 + 0.5 * u[1], np.tan(np.radians(15 * u[2:4]))
    to_origin = np.array([[1, 0, -50], [0, 1, -40], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, 1, 0], [*(0.001 * u[4:6]), 1]])
    turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1 / gain]]) * gain
    skew = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    to_target = np.array([[1, 0, 60 * (0.5 + 0.2 * u[6])], [0, 1, 70 * (0.5 + 0.2 * u[7])], [0, 0, 1]])
    drawn = ALL.draw(numbers, (100, 80), (60, 70))
    assert np.allclose(drawn, to_target @ skew @ turn @ tilt @ to_origin, rtol=1e-12, atol=1e-12)


def test_draws_stay_in_their_ranges_about_the_centres() -> None:
    draw = np.random.default_rng(3)
    source, target = (200, 100), (64, 64)
    angles, gains, moves = [], [], []
    for _ in range(300):
        matrix = Affine(30, 0.1, 0.5, 0, 0).draw(draw.random(8), source, target)
        center = matrix @ [100, 50, 1]
        moves.append(center[:2] / 64 - 0.5)
        gains.append(math.sqrt(np.linalg.det(matrix[:2, :2])))
        angles.append(math.degrees(math.atan2(matrix[0, 1], matrix[0, 0])))
    for values, low, high in ((moves, -0.1, 0.1), (gains, 0.5, 1.5), (angles, -30, 30)):
        margin = 0.03 * (high - low)
        assert low <= np.min(values) < low + margin and high - margin < np.max(values) <= high


def test_no_range_shifts_the_draws_of_another() -> None:
    with_shear = Affine(0, 0.1, 0.5, 10, 0).draw(np.random.default_rng(5).random(8), (50, 50), (50, 50))
    without = Affine(0, 0.1, 0.5, 0, 0).draw(np.random.default_rng(5).random(8), (50, 50), (50, 50))
    assert (with_shear @ [25, 25, 1] == without @ [25, 25, 1]).all()
    assert (with_shear != without).any()


def test_the_horizon_is_never_in_the_picture() -> None:
    draw = np.random.default_rng(0)
    corners = np.array([[0, 0, 1], [1280, 0, 1], [1280, 1280, 1], [0, 1280, 1]]).T
    affine = Affine(10, 0.1, 0.5, 5, 0.01)
    depths = [(affine.draw(draw.random(8), (1280, 1280), (640, 640)) @ corners)[2] for _ in range(200)]
    assert np.min(depths) >= MIN_DEPTH - 1e-9


def test_mosaic_puts_a_corner_of_each_picture_at_the_centre() -> None:
    sizes = [(40, 30), (24, 40), (40, 40), (40, 12)]  # width, height
    pictures = []
    for i, (width, height) in enumerate(sizes):
        image = np.full((height, width, 3), 10 * (i + 1), np.uint8)
        pictures.append(Picture(image, np.array([[1, 2, width, height]], np.float32), np.array([i])))
    image, boxes, classes = paste(mosaic(pictures, 30, 50), 80, 80)
    assert image.shape == (80, 80, 3) and classes.tolist() == [0, 1, 2, 3]
    expected = np.full((80, 80), 114)
    expected[20:50, 0:30] = 10  # 40 wide, cut off on the left
    expected[10:50, 30:54] = 20
    expected[50:80, 0:30] = 30
    expected[50:62, 30:70] = 40
    assert (image == expected[..., None]).all()
    assert boxes.tolist() == [[-9, 22, 30, 50], [31, 12, 54, 50], [-9, 52, 30, 90], [31, 52, 70, 62]]


def test_letterbox_centres_the_image() -> None:
    image = np.full((3, 4, 3), 200, np.uint8)
    canvas = np.zeros((6, 9, 3), np.uint8)
    assert letterbox(image, canvas) == (2, 1)
    assert (canvas[1:4, 2:6] == 200).all()
    assert (canvas == 114).sum() == 3 * (6 * 9 - 12)


def onto(tiles: Sequence[Tile], source: tuple[int, int], matrix: np.ndarray, target: tuple[int, int]) -> Composite:
    """Tiles composed into new pixels of `target` (width, height)."""
    return compose(tiles, source, matrix, np.zeros((*target[::-1], 3), np.uint8))


def composed(*layout: Any) -> Picture:
    return settle([onto(*layout)])[0]


def smooth_picture(draw: np.random.Generator, width: int, height: int) -> Picture:
    """A picture without fine detail, so that a shift of half a pixel changes little, with boxes in it."""
    coarse = draw.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    corner = np.array([draw.uniform(0, width - 10, 6), draw.uniform(0, height - 10, 6)]).T
    boxes = np.concatenate([corner, np.minimum(corner + draw.uniform(4, 60, (6, 2)), (width, height))], 1)
    return Picture(
        cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), boxes.astype(np.float32), np.arange(6)
    )


@pytest.mark.parametrize("seed", range(30))
def test_a_composed_mosaic_is_the_warped_canvas(seed: int) -> None:
    draw, side = np.random.default_rng(seed), 160
    pictures = [smooth_picture(draw, *draw.integers(60, side + 1, 2)) for _ in range(4)]
    tiles = mosaic(pictures, *map(int, draw.integers(side // 2, 3 * side // 2 + 1, 2)))
    matrix = Affine(0, 0.1, 0.5, 0, 0).draw(draw.random(8), (2 * side,) * 2, (side,) * 2)
    quick = composed(tiles, (2 * side,) * 2, matrix, (side,) * 2)
    exact = warp(paste(tiles, 2 * side, 2 * side), matrix, side, side)
    # Tiles end on whole pixels: the seams differ, and what lies between them by a fraction of a pixel.
    assert (np.abs(quick.image.astype(int) - exact.image).max(-1) > 16).mean() < 0.04
    assert np.abs(quick.image.astype(int) - exact.image).mean() < 3
    for box, label in zip(exact.boxes, exact.classes, strict=True):
        if (box[2:] - box[:2]).min() > 6:
            near = [np.abs(own - box).max() for own, c in zip(quick.boxes, quick.classes, strict=True) if c == label]
            assert min(near) < 1.5
    assert abs(len(quick.boxes) - len(exact.boxes)) <= 2  # at the limit of what is worth keeping


@pytest.mark.parametrize("seed", range(30))
def test_each_tile_is_resized_into_its_place_and_nothing_else_changes(seed: int) -> None:
    draw = np.random.default_rng(seed)
    matrix = np.diag([*draw.uniform(0.02, 2, 2), 1])
    pictures = [no_boxes(draw.integers(0, 256, (*draw.integers(1, 40, 2), 3), dtype=np.uint8)) for _ in range(4)]
    tiles = mosaic(pictures, *map(int, draw.integers(0, 80, 2)))
    image = onto(tiles, (80, 80), matrix, (50, 50)).image
    expected = np.full((50, 50, 3), 114, np.uint8)
    for (own, _, _), x, y in tiles:
        left, right, u1, u2 = _span(x, own.shape[1], 80, 50, matrix[0, 0], 0)
        top, bottom, v1, v2 = _span(y, own.shape[0], 80, 50, matrix[1, 1], 0)
        if u1 < u2 and v1 < v2:
            expected[v1:v2, u1:u2] = cv2.resize(own[top:bottom, left:right].copy(), (u2 - u1, v2 - v1))
    assert (image == expected).all()


def test_tiles_out_of_sight_leave_grey_and_no_boxes() -> None:
    tile = Tile(rectangle(20, 20, (0, 0, 20, 20)), 60, 5)
    image, boxes, classes = composed([tile] * 2, (100, 100), np.eye(3), (50, 50))
    assert (image == 114).all() and boxes.shape == (0, 4) and boxes.dtype == np.float32 and classes.shape == (0,)


@pytest.mark.parametrize("seed", range(20))
def test_the_box_of_a_bright_rectangle_in_a_composed_mosaic_hugs_the_bright_pixels(seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, y = draw.integers(5, 40, 2)
    bright = rectangle(100, 80, (x, y, x + draw.integers(20, 50), y + draw.integers(20, 35)))
    plain = [no_boxes(np.full((70, 90, 3), 114, np.uint8)) for _ in range(3)]
    tiles = mosaic([*plain[: seed % 4], bright, *plain[seed % 4 :]], *map(int, draw.integers(60, 140, 2)))
    matrix = Affine(0, 0.2, 0.5, 0, 0).draw(draw.random(8), (200, 200), (100, 100))
    image, boxes, classes = composed(tiles, (200, 200), matrix, (100, 100))
    assert len(boxes) == len(classes) <= 1
    if len(boxes):
        assert np.abs(boxes[0] - extent(image[..., 0] > (114 + 255) / 2)).max() <= 1
    else:
        assert (image[..., 0] > 184).sum() < 0.3 * 0.5 * 50 * 35


def test_a_turned_mosaic_goes_by_the_canvas() -> None:
    draw = np.random.default_rng(3)
    tiles = mosaic([smooth_picture(draw, 80, 60) for _ in range(4)], 70, 90)
    matrix = ALL.draw(draw.random(8), (160, 160), (80, 80))
    one, other = composed(tiles, (160, 160), matrix, (80, 80)), warp(paste(tiles, 160, 160), matrix, 80, 80)
    assert all((a == b).all() for a, b in zip(one, other, strict=True))


def test_a_tile_that_moves_by_whole_pixels_is_copied() -> None:
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = Picture(image, np.array([[1, 2, 30, 33.25]], np.float32), np.array([7]))
    matrix = np.array([[1, 0, -6], [0, 1, 3], [0, 0, 1.0]])
    out = composed([Tile(picture, 10, 20)], (100, 100), matrix, (70, 50))
    expected = np.full((50, 70, 3), 114, np.uint8)
    expected[23:50, 4:64] = image[:27]
    assert (out.image == expected).all() and out.classes.tolist() == [7]
    assert out.boxes.tolist() == [[5, 25, 34, 50]]


def jitter_hsv(image: np.ndarray, draw: np.random.Generator, *ranges: float) -> np.ndarray:
    out = image.copy()
    recolour(out, hsv_draw(image, draw.random(3), *ranges))
    return out


def classic_jitter(image: np.ndarray, u: np.ndarray, hue: float, saturation: float, value: float) -> np.ndarray:
    """The way to HSV and back, one table a channel."""
    levels = np.arange(256)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = ((levels + 180 * hue * u[0]) % 180).astype(np.uint8)[hsv[..., 0]]
    hsv[..., 1] = np.clip(levels * (1 + saturation * u[1]), 0, 255).astype(np.uint8)[hsv[..., 1]]
    hsv[..., 2] = np.clip(levels * (1 + value * u[2]), 0, 255).astype(np.uint8)[hsv[..., 2]]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


@pytest.mark.parametrize("ranges", [(0.015, 0.7, 0.4), (0.015, 0, 0), (0, 0.7, 0), (0, 0, 0.4)])
def test_hsv_jitter_has_the_mean_and_spread_of_the_classic_one(ranges: tuple[float, float, float]) -> None:
    draw = np.random.default_rng(0)
    ours, classic = [], []
    for seed in range(300):
        tint = draw.uniform(0, 60, 3)
        image = np.clip(draw.uniform(40, 160, (6, 8, 1)) + tint + draw.normal(0, 8, (6, 8, 3)), 0, 255).astype(np.uint8)
        image = cv2.resize(image, (64, 48), interpolation=cv2.INTER_CUBIC)
        u = np.random.default_rng(seed).uniform(-1, 1, 3)
        for kept, out in (
            (ours, jitter_hsv(image, np.random.default_rng(seed), *ranges)),
            (classic, classic_jitter(image, u, *ranges)),
        ):
            saturation = cv2.cvtColor(out, cv2.COLOR_RGB2HSV)[..., 1]
            kept.append([*out.mean((0, 1)), *out.std((0, 1)), saturation.mean()])
    ours, classic = np.array(ours), np.array(classic)
    assert np.abs(ours.mean(0) - classic.mean(0)).max() < 2
    assert np.abs(ours.std(0) / classic.std(0) - 1).max() < 0.1
    assert np.abs(ours - classic).mean() < 2  # image by image, too


def test_hsv_jitter_changes_what_it_says() -> None:
    image = np.full((32, 32, 3), (180, 120, 60), np.uint8)
    brighter = cv2.transform(image, hsv_matrix(image, 0, 1, 1.25))
    assert (brighter == (225, 150, 75)).all()
    paler = cv2.transform(image, hsv_matrix(image, 0, 0.5, 1))  # V stays 180, what lacks to it is halved
    assert (paler == (180, 150, 120)).all()
    turned = cv2.transform(image, hsv_matrix(image, 1 / 3, 1, 1))  # by 120 degrees: red becomes green
    assert (turned == (60, 180, 120)).all()


def test_hsv_jitter_keeps_greys_grey_and_can_be_off() -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    out = jitter_hsv(grey, np.random.default_rng(0), 0.5, 0.9, 0.4)
    assert np.ptp(out.astype(int), axis=-1).max() <= 1  # rounding
    assert (jitter_hsv(grey, np.random.default_rng(0), 0, 0, 0) == grey).all()


@pytest.mark.parametrize("side", [1, 2, 3, 31, 320])
def test_colours_changed_in_their_place_are_those_changed_elsewhere(side: int) -> None:
    draw = np.random.default_rng(side)
    image = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
    colour = hsv_draw(image, draw.random(3), 0.5, 0.9, 0.4)
    exact = np.clip(np.rint(image @ colour.T.astype(np.float64)), 0, 255)
    elsewhere = cv2.transform(image, colour)
    recolour(image, colour)
    assert (image == elsewhere).all()
    assert np.abs(image - exact).max() <= 1  # OpenCV counts in fixed point


def whole(picture: Picture) -> Composite:
    """A picture as the only part of one of its size."""
    height, width = picture.image.shape[:2]
    return onto([Tile(picture, 0, 0)], (width, height), np.eye(3), (width, height))


@pytest.mark.parametrize("colour", [SAME, np.diag([0.5, 1, 0]).astype(np.float32)])
@pytest.mark.parametrize(
    ("horizontal", "vertical", "expected"),
    [(False, False, (2, 3, 10, 9)), (True, False, (20, 3, 28, 9)), (False, True, (2, 11, 10, 17))]
    + [(True, True, (20, 11, 28, 17))],
)
def test_a_finished_picture_is_recoloured_and_mirrored_with_its_boxes(
    horizontal: bool, vertical: bool, expected: tuple[int, ...], colour: np.ndarray
) -> None:
    composite = whole(rectangle(30, 20, (2, 3, 10, 9)))
    (left, top, right, bottom), changed = expected, (255, 255, 255) if colour is SAME else (128, 255, 0)
    image, boxes, classes = settle([finish(composite, colour, (horizontal, vertical))])[0]
    assert image is composite.image and boxes.dtype == np.float32
    assert boxes.tolist() == [list(expected)] and classes.tolist() == [3]
    assert (image[top:bottom, left:right] == changed).all()
    assert (image == changed).all(-1).sum() == (right - left) * (bottom - top)


@pytest.mark.parametrize("width", [1, 2, 5, 31, 64, 333, 640])
def test_a_picture_is_mirrored_in_its_place(width: int) -> None:
    image = np.random.default_rng(width).integers(0, 256, (width // 2 + 1, width, 3), dtype=np.uint8)
    for mirrored, expected in (
        ((True, False), image[:, ::-1]),
        ((False, True), image[::-1]),
        ((True, True), image[::-1, ::-1]),
    ):
        batch = np.zeros((3, *image.shape), np.uint8)
        batch[1] = image
        finish(Composite(batch[1], [], []), SAME, mirrored)
        assert (batch[1] == expected).all() and not batch[::2].any()


def test_mixup_blends_and_keeps_all_boxes() -> None:
    first, second = rectangle(20, 20, (0, 0, 10, 20)), rectangle(20, 20, (0, 0, 20, 10))
    image, boxes, classes = settle([mixup(whole(first), whole(second), 0.25)])[0]
    assert boxes.tolist() == [[0, 0, 10, 20], [0, 0, 20, 10]] and classes.tolist() == [3, 3]
    assert image[0, 0, 0] == 255 and image[15, 15, 0] == 114
    assert image[15, 0, 0] == round(0.25 * 255 + 0.75 * 114) and image[0, 15, 0] == round(0.75 * 255 + 0.25 * 114)


def test_pictures_that_are_settled_together_are_those_settled_alone() -> None:
    draw = np.random.default_rng(0)
    composites = []
    for turn in range(12):
        tiles = mosaic([smooth_picture(draw, 80, 60) for _ in range(4)], *map(int, draw.integers(40, 120, 2)))
        ranges = ALL if turn % 3 == 0 else Affine(0, 0.3, 0.9, 0, 0)
        one = onto(tiles, (160, 160), ranges.draw(draw.random(8), (160, 160), (80, 80)), (80, 80))
        one = one if turn % 4 else mixup(one, one, 0.5)
        composites.append(finish(one, SAME, (turn % 2 == 0, turn % 5 == 0)))
    composites.insert(3, Composite(np.zeros((9, 9, 3), np.uint8), [], []))  # nothing is seen
    together, alone = settle(composites), [settle([one])[0] for one in composites]
    assert sum(len(picture.boxes) for picture in together) > 50
    for one, other in zip(together, alone, strict=True):
        assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def test_opencv_runs_in_the_calling_thread() -> None:
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize("perspective", [0.0013, 0.0015, 0.01])
def test_the_horizon_stays_out_of_the_picture(perspective: float) -> None:
    corners = np.array([[0, 0, 1], [640, 0, 1], [0, 640, 1], [640, 640, 1]])
    for tilts in ((0.999, 0.999), (0.999, 0.0), (0.0, 0.5)):
        numbers = [0.5] * 4 + [*tilts] + [0.5] * 2
        matrix = Affine(0, 0, 0, 0, perspective).draw(numbers, (640, 640), (640, 640))
        assert (corners @ matrix[2]).min() >= MIN_DEPTH - 1e-9
