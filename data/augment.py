"""What is done to the pixels and boxes of a training picture. All draws come from numbers that are passed in.

Boxes are xyxy in pixels, with pixel i covering [i, i + 1]: the centre of the first pixel is at 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

GREY = (114, 114, 114)  # the colour of all padding; the mean of natural images, roughly
SAME = np.eye(3, dtype=np.float32)  # the matrix on RGB that leaves all colours as they are
MIN_SIDE = 2.0  # px: a smaller box shows nothing to learn
MIN_VISIBLE = 0.1  # share of a box's area that must be left in the picture
MAX_ASPECT = 100.0
SPARSE = 16  # px between those that are looked at for an image's colours
TINY = 1e-9  # square px: no box is smaller, and nothing is divided by 0
MIN_DEPTH = 0.2  # least denominator of a perspective anywhere in the picture


class Picture(NamedTuple):
    """An image, uint8 `[H, W, 3]` RGB, with its boxes, float32 `[n, 4]`, and classes, integers `[n]`."""

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


def letterbox(image: np.ndarray, canvas: np.ndarray) -> tuple[int, int]:
    """Put an image into the middle of a canvas of its size or larger, grey around it: (left padding, top padding)."""
    (high, wide), (height, width) = image.shape[:2], canvas.shape[:2]
    left, top = (width - wide) // 2, (height - high) // 2
    canvas[...] = GREY[0]
    canvas[top : top + high, left : left + wide] = image
    return left, top


class Tile(NamedTuple):
    """A picture and the pixel (x, y) of a canvas at which its first pixel lies; it may reach beyond the canvas."""

    picture: Picture
    x: int
    y: int


def mosaic(pictures: Sequence[Picture], center_x: int, center_y: int) -> list[Tile]:
    """Lay four pictures around a point of a canvas, each with a corner at it (mosaic: YOLOv4, arXiv:2004.10934)."""
    tiles = []
    for corner, picture in enumerate(pictures):
        height, width = picture.image.shape[:2]
        x = center_x if corner % 2 else center_x - width
        y = center_y if corner // 2 else center_y - height
        tiles.append(Tile(picture, x, y))
    return tiles


def paste(tiles: Sequence[Tile], width: int, height: int) -> Picture:
    """Put tiles on a grey canvas. Boxes are shifted, not cut: the warp that follows must know their full size."""
    canvas = np.full((height, width, 3), GREY[0], np.uint8)
    boxes = []
    for (image, own, _), x, y in tiles:
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + image.shape[1], width), min(y + image.shape[0], height)
        if left < right and top < bottom:
            canvas[top:bottom, left:right] = image[top - y : bottom - y, left - x : right - x]
        boxes.append(own + np.array([x, y, x, y], np.float32))
    return Picture(canvas, np.concatenate(boxes), np.concatenate([tile.picture.classes for tile in tiles]))


class Affine(NamedTuple):
    """Ranges of a random warp, in the units of the hyper-parameters of the same names."""

    degrees: float  # ±, rotation
    translate: float  # ±, share of the output's side
    scale: float  # gain from 1 − scale to 1 + scale
    shear: float  # ±, degrees
    perspective: float  # ±, change of depth per pixel

    def draw(self, numbers: Sequence[float], source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
        """Make a 3×3 matrix from `source` (width, height) to `target` pixels, about the centres of both, of eight
        numbers in [0, 1): a range of 0 doesn't shift what the others draw."""
        u = [2 * number - 1 for number in numbers]
        center_x, center_y = source[0] / 2, source[1] / 2
        angle, gain = math.radians(self.degrees * u[0]), 1.0 + self.scale * u[1]
        shear_x, shear_y = math.tan(math.radians(self.shear * u[2])), math.tan(math.radians(self.shear * u[3]))
        tilt_x, tilt_y = self.perspective * u[4], self.perspective * u[5]
        reach = abs(tilt_x) * center_x + abs(tilt_y) * center_y
        if reach > 1 - MIN_DEPTH:  # else the horizon would lie in the picture
            tilt_x, tilt_y = tilt_x * (1 - MIN_DEPTH) / reach, tilt_y * (1 - MIN_DEPTH) / reach
        cos, sin = gain * math.cos(angle), gain * math.sin(angle)
        move_x, move_y = target[0] * (0.5 + self.translate * u[6]), target[1] * (0.5 + self.translate * u[7])
        # To the origin, tilt, rotate, shear, to the target's centre: the product of five matrices, written out.
        depth = [tilt_x, tilt_y, 1 - tilt_x * center_x - tilt_y * center_y]
        rows = []
        for along_x, along_y, move in (
            (cos - shear_x * sin, sin + shear_x * cos, move_x),
            (shear_y * cos - sin, shear_y * sin + cos, move_y),
        ):
            linear = (along_x, along_y, -along_x * center_x - along_y * center_y)
            rows.append([own + move * deep for own, deep in zip(linear, depth, strict=True)])
        return np.array([*rows, depth])


class Composite(NamedTuple):
    """A picture whose boxes are yet to be made, by `settle`: of those of its parts, each part with its way into it."""

    image: np.ndarray
    parts: list[Picture]
    ways: list[tuple[float, ...]]  # of a box's four coordinates: gain · 4, shift · 4, least value · 4, greatest · 4
    mirrored: tuple[bool, bool] = False, False  # left-right, top-bottom, after all that


STAY = (*[1.0] * 4, *[0.0] * 4, *[-math.inf] * 4, *[math.inf] * 4)  # the way of boxes that lie in the picture


def compose(tiles: Sequence[Tile], source: tuple[int, int], matrix: np.ndarray, out: np.ndarray) -> Composite:
    """Lay tiles on a canvas of `source` (width, height) and warp it by a 3×3 `matrix` into the pixels of `out`, uint8
    `[H, W, 3]`, grey elsewhere.

    Where nothing is turned, sheared or tilted, each tile is resized right into its place, and no canvas is made: the
    same picture, but that tiles begin and end on whole pixels of the result, in a fraction of the time.
    """
    (gain_x, skew_x, shift_x), (skew_y, gain_y, shift_y), depth = matrix.tolist()
    high, wide = out.shape[:2]
    if skew_x or skew_y or depth[0] or depth[1] or gain_x <= 0 or gain_y <= 0:
        picture = warp(paste(tiles, *source), matrix, wide, high, out)
        return Composite(out, [picture], [STAY])
    across, down = (source[0], wide, gain_x, shift_x), (source[1], high, gain_y, shift_y)
    out[...] = GREY[0]
    parts, ways = [], []
    for part, x, y in tiles:
        left, right, u1, u2 = _span(x, part.image.shape[1], *across)
        top, bottom, v1, v2 = _span(y, part.image.shape[0], *down)
        if u1 == u2 or v1 == v2:
            continue
        cv2.resize(part.image[top:bottom, left:right], (u2 - u1, v2 - v1), dst=out[v1:v2, u1:u2])
        gain, end = ((u2 - u1) / (right - left), (v2 - v1) / (bottom - top)), (u2, v2)
        shift = u1 - left * gain[0], v1 - top * gain[1]
        ways.append((*gain, *gain, *shift, *shift, u1, v1, u1, v1, *end, *end))
        parts.append(part)
    return Composite(out, parts, ways)


def settle(composites: Sequence[Composite]) -> list[Picture]:
    """Give composites the boxes that are still worth keeping, all in one pass."""
    parts = [part for composite in composites for part in composite.parts]
    if not parts:
        return [Picture(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64)) for image, *_ in composites]
    boxes, classes = (np.concatenate([getattr(part, name) for part in parts]) for name in ("boxes", "classes"))
    ways = np.array([way for composite in composites for way in composite.ways])
    way = ways.repeat([len(part.boxes) for part in parts], axis=0)  # a box goes the way of its part
    moved = boxes * way[:, 0:4] + way[:, 4:8]
    seen = np.minimum(np.maximum(moved, way[:, 8:12]), way[:, 12:16])
    keep = _worth_keeping(seen, _areas(seen) / np.maximum(_areas(moved), TINY))
    seen, classes = seen[keep].astype(np.float32), classes[keep].astype(np.int64)
    kept, last, pictures = [0, *keep.cumsum().tolist()], 0, []
    for image, own, _, mirrored in composites:
        first, last = last, last + sum(len(part.boxes) for part in own)
        picture = Picture(image, seen[kept[first] : kept[last]], classes[kept[first] : kept[last]])
        _mirror(picture.boxes, image.shape[1], image.shape[0], *mirrored)
        pictures.append(picture)
    return pictures


def _span(start: int, length: int, source: int, target: int, gain: float, shift: float) -> tuple[int, int, int, int]:
    """Which pixels of a tile, along one axis, fill which of the target: (from, to, from, to); four zeros if none do.

    The tile covers `start` … `start + length` of a canvas of `source` pixels, whose x lies at `gain · x + shift`.
    """
    first = max(round(gain * max(start, 0) + shift), 0)
    last = min(round(gain * min(start + length, source) + shift), target)
    begin = min(max(round((first - shift) / gain) - start, 0), length)
    end = min(max(round((last - shift) / gain) - start, 0), length)
    return (begin, end, first, last) if first < last and begin < end else (0, 0, 0, 0)


def warp(picture: Picture, matrix: np.ndarray, width: int, height: int, out: np.ndarray | None = None) -> Picture:
    """Warp by a 3×3 `matrix` to `width`×`height`, grey outside, into the pixels of `out` or new ones; boxes are cut to
    what is seen, see `warp_boxes`."""
    # OpenCV counts from the centre of the first pixel, boxes from its edge.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    back = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    by_center = back @ matrix @ half
    flat = matrix[2, 0] == 0 and matrix[2, 1] == 0
    if flat:
        image = cv2.warpAffine(picture.image, by_center[:2], (width, height), dst=out, borderValue=GREY)
    else:
        image = cv2.warpPerspective(picture.image, by_center, (width, height), dst=out, borderValue=GREY)
    source_h, source_w = picture.image.shape[:2]
    boxes, keep = warp_boxes(picture.boxes, matrix, (source_w, source_h), (width, height))
    return Picture(image, boxes[keep], picture.classes[keep])


def warp_boxes(
    boxes: np.ndarray, matrix: np.ndarray, source: tuple[int, int], target: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `[n, 4]` after a warp from `source` to `target` (width, height): (boxes float32 `[n, 4]`, keep bool `[n]`).

    A box becomes the box around what is seen of its warped rectangle. It is kept where both sides exceed 2 px, more
    than a tenth of it is seen, and it is no sliver.
    """
    whole = np.asarray(boxes, np.float64)
    inside = _clip_boxes(whole, source)
    quads = _project(inside, matrix)
    warped = _enclose(quads)
    upright = not (matrix[0, 1] or matrix[1, 0] or matrix[2, 0] or matrix[2, 1])
    seen = _clip_boxes(warped, target) if upright else _enclose_inside(quads, target)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = _areas(inside) / _areas(whole) * (_areas(seen) / _areas(warped))
    return seen.astype(np.float32), _worth_keeping(seen, share)


def _worth_keeping(seen: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Which boxes `[n, 4]` still show their object: large enough, no slivers, and enough of it (`share` `[n]`)."""
    width, height = seen[:, 2] - seen[:, 0], seen[:, 3] - seen[:, 1]
    large = (np.minimum(width, height) > MIN_SIDE) & (share > MIN_VISIBLE)
    return large & (np.maximum(width, height) < MAX_ASPECT * np.minimum(width, height))


def _project(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Corners of boxes `[n, 4]` after a projective map, in order around the rectangle: `[n, 4, 2]`."""
    corners = np.asarray(boxes, np.float64)[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    points = corners @ matrix[:, :2].T + matrix[:, 2]
    return points[..., :2] / points[..., 2:]


def _enclose(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(1), points.max(1)], 1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.clip(boxes, 0, np.array([*size, *size], np.float64))


def _enclose_inside(quads: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes around what of each convex quadrilateral `[n, 4, 2]` lies in the picture; all zeros where nothing does.

    The extremes are ends of edges clipped to the picture (Liang and Barsky 1984) or corners of the picture that the
    quadrilateral covers. Cutting the box instead of the shape would leave room where a corner was cut off.
    """
    limit = np.array(size, np.float64)
    start, step = quads, np.roll(quads, -1, axis=1) - quads
    with np.errstate(divide="ignore", invalid="ignore"):
        at_low, at_high = -start / step, (limit - start) / step
    parallel, inside = step == 0, (start >= 0) & (start <= limit)
    enter = np.where(parallel, np.where(inside, 0.0, 2.0), np.minimum(at_low, at_high)).max(-1).clip(0)
    leave = np.where(parallel, 1.0, np.maximum(at_low, at_high)).min(-1).clip(max=1)
    crossing = (enter <= leave)[..., None]
    ends = [np.where(crossing, start + t[..., None] * step, np.nan) for t in (enter, leave)]

    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * limit
    to_corner = corners - start[:, :, None]  # [n, edge, corner, 2]
    side = step[:, :, None, 0] * to_corner[..., 1] - step[:, :, None, 1] * to_corner[..., 0]
    covered = ((side >= 0).all(1) | (side <= 0).all(1)) & (step != 0).any((1, 2))[:, None]
    points = np.concatenate([*ends, np.where(covered[..., None], corners, np.nan)], 1)
    missing = np.isnan(points)
    low, high = np.where(missing, np.inf, points).min(1), np.where(missing, -np.inf, points).max(1)
    boxes = np.concatenate([low, high], 1)
    return _clip_boxes(np.where(np.isfinite(boxes).all(1, keepdims=True), boxes, 0.0), size)


def mixup(first: Composite, second: Composite, share: float) -> Composite:
    """Blend a picture into the first, `share` of which is left; all boxes of both stay (Zhang et al. 2018)."""
    cv2.addWeighted(first.image, share, second.image, 1 - share, 0, dst=first.image)
    return Composite(first.image, first.parts + second.parts, first.ways + second.ways)


def hsv_draw(image: np.ndarray, numbers: Sequence[float], hue: float, saturation: float, value: float) -> np.ndarray:
    """A change of colours, a matrix as of `hsv_matrix`, of three numbers in [0, 1): the hue turned by up to ±`hue` of
    a full circle, saturation and value multiplied by 1 ± their shares. `SAME` where all ranges are 0."""
    if not (hue or saturation or value):
        return SAME
    turn, vivid, bright = (2 * number - 1 for number in numbers)
    return hsv_matrix(image, hue * turn, 1 + saturation * vivid, 1 + value * bright)


def recolour(image: np.ndarray, colour: np.ndarray) -> None:
    """Multiply the RGB of every pixel by a 3×3 matrix, in place, rounded and kept within 0 and 255."""
    if colour is not SAME:
        cv2.transform(image, colour, dst=image)


def hsv_matrix(image: np.ndarray, turn: float, saturation: float, value: float) -> np.ndarray:
    """The 3×3 matrix on RGB, float32, nearest to a change of an image's hue (in circles), saturation and value.

    With V = max(R, G, B), a saturation that grows k-fold moves each channel c to V − k·(V − c). V is a channel, but not
    the same one everywhere: it is taken as the mean of the channels weighted by how often each is the largest. A hue is
    turned about the axis of greys. One matrix costs a fifteenth of the way to HSV and back, and gives pictures of the
    same mean and spread.
    """
    counts = np.bincount(image[::SPARSE, ::SPARSE].argmax(-1).ravel(), minlength=3).tolist()
    red, green, blue = (count / sum(counts) for count in counts)
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    same, side = (1 - cos) / 3, sin / math.sqrt(3)
    near, before, after = cos + same, same - side, same + side
    turned = (near, before, after), (after, near, before), (before, after, near)
    top = [red * one + green * two + blue * three for one, two, three in zip(*turned, strict=True)]
    vivid, grey = value * saturation, value * (1 - saturation)
    rows = [[vivid * own + grey * v for own, v in zip(row, top, strict=True)] for row in turned]
    return np.array(rows, np.float32)


def finish(composite: Composite, colour: np.ndarray, mirrored: tuple[bool, bool]) -> Composite:
    """Recolour a picture, and mirror it left-right, top-bottom, or both: in place, where its pixels are at hand."""
    image, (horizontal, vertical) = composite.image, mirrored
    recolour(image, colour)
    if horizontal or vertical:
        cv2.flip(image, -1 if horizontal and vertical else int(horizontal), dst=image)
    return composite._replace(mirrored=mirrored)


def _mirror(boxes: np.ndarray, width: int, height: int, horizontal: bool, vertical: bool) -> None:
    """Mirror boxes `[n, 4]` in their place in the picture."""
    if horizontal:
        boxes[:, 0::2] = width - boxes[:, 2::-2]
    if vertical:
        boxes[:, 1::2] = height - boxes[:, 3::-2]
