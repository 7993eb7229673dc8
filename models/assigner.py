"""Task-aligned assignment: which anchor points answer for which object."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-9
MAX_CELLS = 2**20  # boxes × points worked on at once: stays near a CPU's caches
GPU_CELLS = 2**26  # bounds memory: 256 MB a tensor, few kernels


class Assignment(NamedTuple):
    """The points that shall answer for an object, K = M · topk an image: `topk` candidates for each of the M boxes.

    index: `[B, K]` int64, which of the A anchor points; one that several boxes want is there several times.
    truth: `[B, K]` int64, the box.
    weight: `[B, K]` in [0, 1], the target of that box's class score; 0 for a candidate that answers for nothing.
    """

    index: Tensor
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
    cells = MAX_CELLS if boxes.device.type == "cpu" else GPU_CELLS
    per_chunk = max(1, cells // max(1, truth_boxes.shape[1] * points.shape[0]))
    chunks: list[list[Assignment]] = [[] for _ in branches]
    for first in range(0, len(boxes), per_chunk):
        part = slice(first, first + per_chunk)
        outside = outside_boxes(points, strides, truth_boxes[part]) | (truth_classes[part] < 0)[..., None]
        overlap = pairwise_iou(truth_boxes[part], boxes[part]).masked_fill_(outside, 0)
        closeness = overlap.pow(beta)
        image = torch.arange(len(overlap), device=overlap.device)[:, None]
        classes = truth_classes[part].clamp(min=0)
        for (scores, topk), done in zip(branches, chunks, strict=True):
            alignment = scores[part].transpose(1, 2)[image, classes].pow_(alpha).mul_(closeness)
            done.append(_resolve(alignment, overlap, topk))
    return [Assignment(*(torch.cat(parts) for parts in zip(*done, strict=True))) for done in chunks]


def _resolve(alignment: Tensor, overlap: Tensor, topk: int) -> Assignment:
    """Pick each object's best points and settle who owns a contested one.

    alignment, overlap: `[B, M, A]`, 0 for points outside the object's box. All that follows the choice is about the
    candidates alone, `[B, M, topk]`.
    """
    objects, count = alignment.shape[1:]
    best, index = alignment.topk(min(topk, count), dim=2)
    iou = overlap.gather(2, index)
    owned = _owners(index, iou, count)
    best = best * owned
    best_iou = (iou * (best > 0)).amax(2, keepdim=True)
    weight = best * (best_iou / (best.amax(2, keepdim=True) + EPS))
    truth = torch.arange(objects, device=index.device)[:, None].expand_as(index)
    return Assignment(index.flatten(1), truth.flatten(1), weight.flatten(1))


def _owners(index: Tensor, iou: Tensor, count: int) -> Tensor:
    """Mark, `[B, M, topk]`, the candidates that have their point: of all boxes that want it, that of highest IoU (of
    equals, the first)."""
    points, values = index.flatten(1), iou.flatten(1)
    highest = values.new_zeros(len(values), count).scatter_reduce_(1, points, values, "amax").gather(1, points)
    objects = torch.arange(index.shape[1], device=index.device)[:, None].expand_as(index).flatten(1)
    objects = torch.where(values == highest, objects, index.shape[1])
    first = objects.new_full((len(values), count), index.shape[1]).scatter_reduce_(1, points, objects, "amin")
    return ((objects == first.gather(1, points)) & (values == highest)).view_as(index)


def outside_boxes(points: Tensor, strides: Tensor, truth_boxes: Tensor) -> Tensor:
    """Return `[B, M, A]`: does the point lie outside the box?

    A box smaller than the finest stride may hold no point at all; it is widened to that stride, so that every object
    has one to learn from.
    """
    x1, y1, x2, y2 = truth_boxes[..., None].unbind(2)
    least = strides.amin() / 2
    x, y = points.unbind(1)
    wide, high = ((x2 - x1) / 2).clamp(min=least), ((y2 - y1) / 2).clamp(min=least)
    left, right, top, bottom = (x1 + x2) / 2 - wide, (x1 + x2) / 2 + wide, (y1 + y2) / 2 - high, (y1 + y2) / 2 + high
    return (x < left) | (x > right) | (y < top) | (y > bottom)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes `[B, M, 4]` with boxes `[B, A, 4]` → `[B, M, A]` (torchvision's has no batch dimension)."""
    ax1, ay1, ax2, ay2 = first_sides = first[..., None].unbind(2)
    bx1, by1, bx2, by2 = second_sides = second[:, None].unbind(3)
    common = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    common.mul_(height)
    areas = [(x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0) for x1, y1, x2, y2 in (first_sides, second_sides)]
    total = torch.add(areas[0] + EPS, areas[1], out=height)  # memory is the limit here: nothing is made anew
    return common.div_(total.sub_(common))
