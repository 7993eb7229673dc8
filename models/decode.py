"""From raw predictions to the detections of each image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from models.head import Predictions, decode_boxes

MAX_CANDIDATES = 3000  # best scores an image that enter NMS


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

    Without `nms` the one-to-one branch answers and its best scores are taken as they are. With it, the one-to-many
    branch answers, and boxes that overlap a better one of their class (of any, if `agnostic`) by more than `iou` go.
    """
    boxes = decode_boxes(predictions)
    scores = (predictions.logits if nms else predictions.one_to_one).float().sigmoid()
    return [_detect_one(b, s, nms, conf, iou, max_det, agnostic) for b, s in zip(boxes, scores, strict=True)]


def _detect_one(
    boxes: Tensor, scores: Tensor, nms: bool, conf: float, iou: float, max_det: int, agnostic: bool
) -> ImageDetections:
    """One image: boxes `[A, 4]`, scores `[A, nc]`. A point may answer for several classes, as in COCO's evaluation."""
    count = min(MAX_CANDIDATES if nms else max_det, scores.numel())
    top, index = scores.flatten().topk(count)
    index, top = index[top > conf], top[top > conf]
    boxes, classes = boxes[index // scores.shape[1]], index % scores.shape[1]
    if nms:
        groups = torch.zeros_like(classes) if agnostic else classes
        keep = batched_nms(boxes, top, groups, iou)[:max_det]
        boxes, top, classes = boxes[keep], top[keep], classes[keep]
    return ImageDetections(boxes, top, classes)
