"""What is done to the pixels and boxes of a training picture. All draws come from a generator that is passed in.

Boxes are xyxy in pixels, with pixel i covering [i, i + 1]: the centre of the first pixel is at 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

GREY = (114, 114, 114)  # the colour of all padding; the mean of natural images, roughly
MIN_SIDE = 2.0  # px: a smaller box shows nothing to learn
MIN_VISIBLE = 0.1  # share of a box's area that must be left in the picture
MAX_ASPECT = 100.0
MIN_DEPTH = 0.2  # least denominator of a perspective anywhere in the picture


class Picture(NamedTuple):
    """An image, uint8 `[H, W, 3]` RGB, with its boxes, float32 `[n, 4]`, and classes, int64 `[n]`."""

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


def letterbox(image: np.ndarray, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """Centre an image on a grey `height`×`width` canvas: (canvas, left padding, top padding)."""
    high, wide = image.shape[:2]
    left, top = (width - wide) // 2, (height - high) // 2
    canvas = np.full((height, width, 3), GREY[0], np.uint8)
    canvas[top : top + high, left : left + wide] = image
    return canvas, left, top


def mosaic(pictures: Sequence[Picture], center_x: int, center_y: int, size: int) -> Picture:
    """Paste four pictures around a point of a grey canvas of 2·`size` (mosaic: YOLOv4, arXiv:2004.10934).

    Each has a corner at the centre and is cut off at the canvas's edge. Boxes are shifted, not cut: the warp that
    follows cuts them, and must know their full size to judge what share is left.
    """
    side = 2 * size
    canvas = np.full((side, side, 3), GREY[0], np.uint8)
    boxes = []
    for corner, (image, picture_boxes, _) in enumerate(pictures):
        height, width = image.shape[:2]
        x = center_x if corner % 2 else center_x - width
        y = center_y if corner // 2 else center_y - height
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, side), min(y + height, side)
        canvas[top:bottom, left:right] = image[top - y : bottom - y, left - x : right - x]
        boxes.append(picture_boxes + np.array([x, y, x, y], np.float32))
    return Picture(canvas, np.concatenate(boxes), np.concatenate([picture.classes for picture in pictures]))


class Affine(NamedTuple):
    """Ranges of a random warp, in the units of the hyper-parameters of the same names."""

    degrees: float  # ±, rotation
    translate: float  # ±, share of the output's side
    scale: float  # gain from 1 − scale to 1 + scale
    shear: float  # ±, degrees
    perspective: float  # ±, change of depth per pixel

    def draw(self, rng: np.random.Generator, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
        """Draw a 3×3 matrix from `source` (width, height) to `target` pixels, about the centres of both."""
        (source_w, source_h), (target_w, target_h) = source, target
        u = rng.uniform(-1.0, 1.0, 8)  # always eight draws: a range of 0 doesn't shift the others
        angle, gain = math.radians(self.degrees * u[0]), 1.0 + self.scale * u[1]
        shear_x, shear_y = math.tan(math.radians(self.shear * u[2])), math.tan(math.radians(self.shear * u[3]))
        tilt_x, tilt_y = self.perspective * u[4], self.perspective * u[5]
        reach = abs(tilt_x) * source_w / 2 + abs(tilt_y) * source_h / 2
        if reach > 1 - MIN_DEPTH:  # else the horizon would lie in the picture
            tilt_x, tilt_y = tilt_x * (1 - MIN_DEPTH) / reach, tilt_y * (1 - MIN_DEPTH) / reach
        cos, sin = gain * math.cos(angle), gain * math.sin(angle)
        to_origin = np.array([[1, 0, -source_w / 2], [0, 1, -source_h / 2], [0, 0, 1]])
        tilt = np.array([[1, 0, 0], [0, 1, 0], [tilt_x, tilt_y, 1]])
        rotate = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        skew = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
        move_x, move_y = target_w * (0.5 + self.translate * u[6]), target_h * (0.5 + self.translate * u[7])
        to_target = np.array([[1, 0, move_x], [0, 1, move_y], [0, 0, 1]])
        return to_target @ skew @ rotate @ tilt @ to_origin


def warp(picture: Picture, matrix: np.ndarray, width: int, height: int) -> Picture:
    """Warp by a 3×3 `matrix` to `width`×`height`, grey outside; boxes are cut to what is seen, see `warp_boxes`."""
    # OpenCV counts from the centre of the first pixel, boxes from its edge.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    back = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    by_center = back @ matrix @ half
    flat = matrix[2, 0] == 0 and matrix[2, 1] == 0
    if flat:
        image = cv2.warpAffine(picture.image, by_center[:2], (width, height), borderValue=GREY)
    else:
        image = cv2.warpPerspective(picture.image, by_center, (width, height), borderValue=GREY)
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
    w, h = seen[:, 2] - seen[:, 0], seen[:, 3] - seen[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = _areas(inside) / _areas(whole) * (w * h / _areas(warped))
    keep = (w > MIN_SIDE) & (h > MIN_SIDE) & (share > MIN_VISIBLE)
    keep &= np.maximum(w, h) < MAX_ASPECT * np.minimum(w, h)
    return seen.astype(np.float32), keep


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


def mixup(first: Picture, second: Picture, share: float) -> Picture:
    """Blend two pictures of one size, `share` of the first; all boxes of both stay (Zhang et al. 2018)."""
    image = cv2.addWeighted(first.image, share, second.image, 1 - share, 0)
    boxes = np.concatenate([first.boxes, second.boxes])
    return Picture(image, boxes, np.concatenate([first.classes, second.classes]))


def jitter_hsv(image: np.ndarray, rng: np.random.Generator, hue: float, saturation: float, value: float) -> np.ndarray:
    """Turn the hue by up to ±`hue` of a full circle, and multiply saturation and value by 1 ± their shares."""
    if not (hue or saturation or value):
        return image
    u = rng.uniform(-1.0, 1.0, 3)
    levels = np.arange(256, dtype=np.float64)
    table = np.empty((1, 256, 3), np.uint8)
    table[0, :, 0] = (levels + round(180 * hue * u[0])) % 180  # OpenCV's hue of 8 bits has a step of 2 degrees
    table[0, :, 1] = np.clip(np.rint(levels * (1 + saturation * u[1])), 0, 255)
    table[0, :, 2] = np.clip(np.rint(levels * (1 + value * u[2])), 0, 255)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, table, dst=hsv), cv2.COLOR_HSV2RGB, dst=hsv)


def flip(picture: Picture, horizontal: bool, vertical: bool) -> Picture:
    """Mirror a picture left-right, top-bottom, or both."""
    if not (horizontal or vertical):
        return picture
    image, boxes, classes = picture
    height, width = image.shape[:2]
    if horizontal:
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    if vertical:
        boxes = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1)
    code = -1 if horizontal and vertical else int(horizontal)
    return Picture(cv2.flip(image, code), boxes.astype(np.float32, copy=False), classes)
