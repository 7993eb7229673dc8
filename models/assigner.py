"""Task-aligned assignment: which anchor points answer for which object."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-9
MAX_CELLS = 2**20  # boxes × points worked on at once: bounds memory, and on a CPU stays near its caches


class Assignment(NamedTuple):
    """What each of the A anchor points shall predict.

    truth: `[B, A]` int64, index of the box it answers for (any value where `weight` is 0).
    weight: `[B, A]` in [0, 1], the target of that box's class score; 0 where the point is background.
    """

    truth: Tensor
    weight: Tensor


@torch.no_grad()
def assign(
    branches: list[tuple[Tensor, int]],
    boxes: Tensor,
    points: Tensor,
    strides: Tensor,
    truth_boxes: Tensor,
    truth_classes: Tensor,
    *,
    alpha: float,
    beta: float,
) -> list[Assignment]:
    """Assign points to objects by how well class and place agree (TOOD, arXiv:2108.07755).

    The alignment of point and object is t = score^alpha · IoU^beta; an object takes its `topk` best points among
    those inside its box; a point wanted by several objects goes to the one of highest IoU. The weight is t scaled so
    that an object's best point gets that object's best IoU.

    Args:
        branches: class branches that score the same boxes: (probabilities `[B, A, nc]`, topk) of each.
        boxes: `[B, A, 4]` predicted, xyxy pixels.  points: `[A, 2]` pixels.  strides: `[A, 1]` pixels.
        truth_boxes: `[B, M, 4]` xyxy pixels.  truth_classes: `[B, M]`, −1 where padding.
    Returns:
        one `Assignment` a branch.
    """
    per_chunk = max(1, MAX_CELLS // max(1, truth_boxes.shape[1] * points.shape[0]))
    chunks: list[list[Assignment]] = [[] for _ in branches]
    for first in range(0, len(boxes), per_chunk):
        part = slice(first, first + per_chunk)
        valid = (truth_classes[part] >= 0)[..., None]
        eligible = inside(points, strides, truth_boxes[part]) & valid
        overlap = pairwise_iou(truth_boxes[part], boxes[part]) * eligible
        closeness = overlap.pow(beta)
        index = truth_classes[part].clamp(min=0)[..., None].expand(-1, -1, boxes.shape[1])
        for (scores, topk), done in zip(branches, chunks, strict=True):
            alignment = scores[part].pow(alpha).transpose(1, 2).gather(1, index) * closeness
            done.append(_resolve(alignment, overlap, eligible, topk))
    return [Assignment(*(torch.cat(parts) for parts in zip(*done, strict=True))) for done in chunks]


def _resolve(alignment: Tensor, overlap: Tensor, eligible: Tensor, topk: int) -> Assignment:
    """Pick each object's best points and settle who owns a contested one; all tensors `[B, M, A]`."""
    wanted = _top_mask(alignment, topk) & eligible
    truth = torch.where(wanted, overlap, -1.0).argmax(1)
    owner = torch.zeros_like(wanted).scatter_(1, truth[:, None], True)
    alignment = alignment * (wanted & owner)
    best_alignment = alignment.amax(2, keepdim=True)
    best_overlap = (overlap * (alignment > 0)).amax(2, keepdim=True)
    weight = (alignment * (best_overlap / (best_alignment + EPS))).amax(1)
    return Assignment(truth, weight)


def _top_mask(values: Tensor, k: int) -> Tensor:
    """Mark the `k` greatest values of the last dimension."""
    top = values.topk(min(k, values.shape[-1]), dim=-1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, top, True)


def inside(points: Tensor, strides: Tensor, truth_boxes: Tensor) -> Tensor:
    """Return `[B, M, A]`: is the point inside the box?

    A box smaller than the finest stride may hold no point at all; it is widened to that stride, so that every object
    has one to learn from.
    """
    x1, y1, x2, y2 = truth_boxes[..., None].unbind(2)
    least = strides.amin() / 2
    near_x = (points[:, 0] - (x1 + x2) / 2).abs() <= ((x2 - x1) / 2).clamp(min=least)
    near_y = (points[:, 1] - (y1 + y2) / 2).abs() <= ((y2 - y1) / 2).clamp(min=least)
    return near_x & near_y


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes `[B, M, 4]` with boxes `[B, A, 4]` → `[B, M, A]` (torchvision's has no batch dimension)."""
    ax1, ay1, ax2, ay2 = first[..., None].unbind(2)
    bx1, by1, bx2, by2 = second[:, None].unbind(3)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp_(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp_(min=0)
    common = width.mul_(height)
    total = (ax2 - ax1).clamp(min=0) * (ay2 - ay1).clamp(min=0) + (bx2 - bx1).clamp(min=0) * (by2 - by1).clamp(min=0)
    return common / (total - common + EPS)
