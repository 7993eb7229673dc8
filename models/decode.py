"""From raw predictions to the detections of each image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from models.head import Predictions, decode_boxes

MAX_CANDIDATES = 3000  # best scores an image that enter NMS
NOT_A_PEAK = 0.3  # what is left of a one-to-one score that a neighbour's exceeds


class ImageDetections(NamedTuple):
    """boxes `[K, 4]` xyxy pixels of the network's input, scores `[K]`, classes `[K]` int64; best score first."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def detect(
    predictions: Predictions,
    *,
    nms: bool = False,
    conf: float = 0.001,
    iou: float = 0.7,
    max_det: int = 300,
    agnostic: bool = False,
) -> list[ImageDetections]:
    """Return each image's detections with a score above `conf`, at most `max_det`.

    Without `nms` the one-to-one branch answers, and points that a neighbour surpasses count for less. With it, the
    one-to-many branch answers, and boxes that overlap a better one of their class (of any, if `agnostic`) by more than
    `iou` go.
    """
    boxes = decode_boxes(predictions)
    if nms:
        scores = predictions.logits.float().sigmoid()
    else:
        scores = damp_neighbours(predictions.one_to_one.float().sigmoid(), predictions.shapes)
    return [_detect_one(b, s, nms, conf, iou, max_det, agnostic) for b, s in zip(boxes, scores, strict=True)]


def damp_neighbours(scores: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Multiply by `NOT_A_PEAK` every score that is not the highest of its class around its point.

    Around means the 3×3 points of its own level, and what lies there in the levels next to it (a max filter over scale
    and space, as of arXiv:2012.03544). One-to-one training leaves an object a second point now and then, almost always
    next to the first: no boxes are compared, and shapes stay static.

    Args:
        scores: `[B, A, nc]`.  shapes: (height, width) of each level, fine ones first, each half of the one before.
    """
    parts = scores.split([height * width for height, width in shapes], dim=1)
    maps = [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
    tops = [max_pool2d(x, 3, stride=1, padding=1) for x in maps]
    damped = []
    for level, (x, top) in enumerate(zip(maps, tops, strict=True)):
        if level > 0:
            top = torch.maximum(top, max_pool2d(tops[level - 1], 2))
        if level + 1 < len(maps):
            top = torch.maximum(top, interpolate(tops[level + 1], scale_factor=2.0, mode="nearest"))
        damped.append(torch.where(x >= top, x, x * NOT_A_PEAK).flatten(2))
    return torch.cat(damped, 2).transpose(1, 2)


def _detect_one(
    boxes: Tensor, scores: Tensor, nms: bool, conf: float, iou: float, max_det: int, agnostic: bool
) -> ImageDetections:
    """One image: boxes `[A, 4]`, scores `[A, nc]`. A point may answer for several classes, as in COCO's evaluation."""
    count = min(MAX_CANDIDATES if nms else max_det, scores.numel())
    top, index = scores.flatten().topk(count)
    index, top = index[top > conf], top[top > conf]
    boxes, classes = boxes[index // scores.shape[1]], index % scores.shape[1]
    if nms:
        from torchvision.ops import batched_nms  # a second to import, and training's own evaluation does without

        groups = torch.zeros_like(classes) if agnostic else classes
        keep = batched_nms(boxes, top, groups, iou)[:max_det]
        boxes, top, classes = boxes[keep], top[keep], classes[keep]
    return ImageDetections(boxes, top, classes)
