"""From raw predictions to the detections of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d
from torch.nn.utils.rnn import pad_sequence

from models.head import Predictions, decode_boxes

MAX_CANDIDATES = 3000  # best scores an image that enter NMS
NOT_A_PEAK = 0.3  # what is left of a one-to-one score that a neighbour's exceeds
ALIKE = 2.0**-22  # share of a score by which one of two equal neighbours goes before the other


class ImageDetections(NamedTuple):
    """boxes `[K, 4]` xyxy pixels of the network's input, scores `[K]`, classes `[K]` int64; best score first."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


class BatchDetections(NamedTuple):
    """Those of B images, filled up to one length: boxes `[B, K, 4]`, scores `[B, K]`, classes `[B, K]` int64, and
    count `[B]` int64, how many of each image's K are detections."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    count: Tensor

    def split(self) -> list[ImageDetections]:
        """Each image's own; waits for the device where they are on one."""
        counts = self.count.tolist()
        return [ImageDetections(*(x[i, :k] for x in self[:3])) for i, k in enumerate(counts)]


def detect(
    predictions: Predictions,
    *,
    nms: bool = False,
    conf: float = 0.001,
    iou: float = 0.7,
    max_det: int = 300,
    agnostic: bool = False,
    classes: Sequence[int] = (),
    one_class: bool = False,
) -> BatchDetections:
    """Return each image's detections with a score above `conf`, at most `max_det`; only of `classes`, if any are given.

    Without `nms` the one-to-one branch answers, and points that a neighbour surpasses count for less; shapes are
    static, and no device is waited for. With it, the one-to-many branch answers, and boxes that overlap a better one of
    their class (of any, if `agnostic`) by more than `iou` go. A point may answer for several classes, as in COCO's
    evaluation; with `one_class` all count as the first, and a point answers once, with its best score.
    """
    boxes = decode_boxes(predictions)
    scores = (predictions.logits if nms else predictions.one_to_one).float().sigmoid()
    # What is no number, as of a net that diverged, is no detection, and hides none.
    scores = torch.where(boxes.isfinite().all(2, keepdim=True) & ~scores.isnan(), scores, 0.0)
    if one_class:
        scores = scores.amax(2, keepdim=True)
    if nms:
        found = _best(boxes, _only(classes, scores), MAX_CANDIDATES, conf)
        return _suppress(found, iou, max_det, agnostic)
    return _best(boxes, _only(classes, damp_neighbours(scores, predictions.shapes)), max_det, conf)


def damp_neighbours(scores: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Multiply by `NOT_A_PEAK` every score that is not the highest of its class around its point.

    Around means the 3×3 points of its own level, and what lies there in the levels next to it (a max filter over scale
    and space, as of arXiv:2012.03544). One-to-one training leaves an object a second point now and then, almost always
    next to the first: no boxes are compared, and shapes stay static.

    Of equal scores one is the highest: in half precision neighbours often are equal. Which one depends on where they
    lie, and counts as a difference of less than 1e-5 of a score.

    Args:
        scores: `[B, A, nc]`.  shapes: (height, width) of each level, fine ones first, each half of the one before.
    """
    parts = scores.split([height * width for height, width in shapes], dim=1)
    maps = [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
    ranked = [x * _precedence(level, x) for level, x in enumerate(maps)]
    tops = [max_pool2d(x, 3, stride=1, padding=1) for x in ranked]
    damped = []
    for level, (x, own, top) in enumerate(zip(maps, ranked, tops, strict=True)):
        if level > 0:
            top = torch.maximum(top, max_pool2d(tops[level - 1], 2))
        if level + 1 < len(maps):
            top = torch.maximum(top, interpolate(tops[level + 1], scale_factor=2.0, mode="nearest"))
        damped.append(torch.where(own >= top, x, x * NOT_A_PEAK).flatten(2))
    return torch.cat(damped, 2).transpose(1, 2)


def _precedence(level: int, scores: Tensor) -> Tensor:
    """Factors `[H, W]`, all but 1, that differ within any 3×3 points of a level's `[…, H, W]`, and between levels."""
    y, x = (torch.arange(side, device=scores.device) % 3 for side in scores.shape[-2:])
    return 1 - ALIKE * (9 * level + 3 * y[:, None] + x)


def _only(classes: Sequence[int], scores: Tensor) -> Tensor:
    """Scores `[B, A, nc]`, those of other classes 0, which is above no threshold."""
    if not classes:
        return scores
    wanted = torch.tensor([label in classes for label in range(scores.shape[2])], device=scores.device)
    return torch.where(wanted, scores, 0.0)


def _best(boxes: Tensor, scores: Tensor, most: int, conf: float) -> BatchDetections:
    """The `most` best of boxes `[B, A, 4]` with scores `[B, A, nc]`, those above `conf` counted."""
    nc = scores.shape[2]
    top, index = scores.flatten(1).topk(min(most, scores[0].numel()))
    chosen = boxes.gather(1, (index // nc)[..., None].expand(-1, -1, 4))
    return BatchDetections(chosen, top, index % nc, (top > conf).sum(1))


def _suppress(found: BatchDetections, iou: float, max_det: int, agnostic: bool) -> BatchDetections:
    """Greedy non-maximum suppression, image by image."""
    from torchvision.ops import batched_nms  # a second to import, and training's own evaluation does without

    kept = []
    for boxes, scores, classes in found.split():
        groups = torch.zeros_like(classes) if agnostic else classes
        keep = batched_nms(boxes, scores, groups, iou)[:max_det]
        kept.append((boxes[keep], scores[keep], classes[keep]))
    count = torch.tensor([len(scores) for _, scores, _ in kept])
    return BatchDetections(*(pad_sequence(list(parts), batch_first=True) for parts in zip(*kept, strict=True)), count)
