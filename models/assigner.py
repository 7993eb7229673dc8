"""Task-aligned assignment: which anchor points answer for which object."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-9
MAX_CELLS = 2**20  # boxes × points worked on at once: stays near a CPU's caches
GPU_CELLS = 2**26  # bounds memory: 256 MB a tensor, few kernels
LOOKS = ("cpu",)  # kinds of device whose numbers the host may look at without a wait


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
    windows: Tensor | None = None,
) -> list[Assignment]:
    """Assign points to objects by how well class and place agree (TOOD, arXiv:2108.07755).

    The alignment of point and object is t = score^alpha · IoU^beta; an object takes its `topk` best points among
    those inside its box; a point wanted by several objects goes to the one of highest IoU. The weight is t scaled so
    that an object's best point gets that object's best IoU.

    Args:
        branches: class branches that score the same boxes: (probabilities `[B, A, nc]`, topk) of each.
        boxes: predicted, xyxy pixels: `[B, A, 4]`, or `[B, M, N, 4]` at the points of `windows`.
        points: `[A, 2]` pixels.  strides: `[A, 1]` pixels.
        truth_boxes: `[B, M, 4]` xyxy pixels.  truth_classes: `[B, M]`, −1 where padding.
        windows: what `box_windows` gives: no other points are considered.
    Returns:
        one `Assignment` a branch.
    """
    objects, count = truth_boxes.shape[1], len(points)
    cells = MAX_CELLS if boxes.device.type == "cpu" else GPU_CELLS
    per_chunk = max(1, cells // max(1, objects * (count if windows is None else windows.shape[2])))
    chunks: list[list[Assignment]] = [[] for _ in branches]
    for first in range(0, len(boxes), per_chunk):
        part = slice(first, first + per_chunk)
        own = None if windows is None else windows[part]
        near = points[None, None] if own is None else points[own]
        predicted = boxes[part, None] if boxes.ndim == 3 else boxes[part]
        outside = outside_boxes(near, strides, truth_boxes[part]) | (truth_classes[part] < 0)[..., None]
        overlap = pairwise_iou(truth_boxes[part], predicted).masked_fill_(outside, 0)
        closeness = overlap.pow(beta)
        classes = truth_classes[part].clamp(min=0)
        for (scores, topk), done in zip(branches, chunks, strict=True):
            alignment = _own_scores(scores[part], classes, own).pow_(alpha).mul_(closeness)
            done.append(_resolve(alignment, overlap, topk, own, count))
    return [Assignment(*(torch.cat(parts) for parts in zip(*done, strict=True))) for done in chunks]


def box_windows(
    points: Tensor, strides: Tensor, shapes: tuple[tuple[int, int], ...], truth_boxes: Tensor
) -> Tensor | None:
    """Return `[B, M, N]` int64: for each box N different points, all those inside it among them; or None: all points.

    They are a rectangle of each level's map, as wide and as high as the largest box needs. So N depends on the boxes,
    and the host has to look at them: None where that would be a wait, or where little is gained.

    Args:
        points: `[A, 2]` pixels, level by level, row by row.  strides: `[A, 1]` pixels.
        shapes: (height, width) of each level's map.  truth_boxes: `[B, M, 4]` xyxy pixels.
    """
    if truth_boxes.device.type not in LOOKS:
        return None
    sides, first, firsts, sizes = widened(truth_boxes, strides), 0, [], []
    for height, width in shapes:
        level = points[first : first + height * width]
        for places, axis in ((level[:width, 0].contiguous(), 0), (level[::width, 1].contiguous(), 1)):
            begin = torch.searchsorted(places, sides[axis])
            end = torch.searchsorted(places, sides[axis + 2], right=True)
            firsts.append(begin)
            sizes.append((end - begin).amax().clamp(min=1))
        first += height * width
    wide = torch.stack(sizes).tolist()
    if sum(w * h for w, h in zip(wide[::2], wide[1::2], strict=True)) > len(points) // 2:
        return None
    windows, first = [], 0
    for level, (height, width) in enumerate(shapes):
        w, h = wide[2 * level : 2 * level + 2]
        x = firsts[2 * level].clamp(max=width - w)[..., None] + torch.arange(w, device=points.device)
        y = firsts[2 * level + 1].clamp(max=height - h)[..., None] + torch.arange(h, device=points.device)
        windows.append((first + y[..., None] * width + x[..., None, :]).flatten(2))
        first += height * width
    return torch.cat(windows, 2)


def _own_scores(scores: Tensor, classes: Tensor, windows: Tensor | None) -> Tensor:
    """Scores `[B, A, nc]` of each object's class `[B, M]` at all points or in its window: `[B, M, N]`, a copy."""
    by_class = scores.transpose(1, 2)
    if windows is None:
        return by_class[torch.arange(len(classes), device=classes.device)[:, None], classes]
    places = classes[..., None] * scores.shape[1] + windows
    return by_class.flatten(1).gather(1, places.flatten(1)).view_as(windows)


def _resolve(alignment: Tensor, overlap: Tensor, topk: int, windows: Tensor | None, count: int) -> Assignment:
    """Pick each object's best points and settle who owns a contested one.

    alignment, overlap: `[B, M, N]` at the points of `windows` or all `count`, 0 for points outside the object's box.
    All that follows the choice is about the candidates alone, `[B, M, topk]`.
    """
    objects = alignment.shape[1]
    best, index = alignment.topk(min(topk, alignment.shape[2]), dim=2)
    iou = overlap.gather(2, index)
    if windows is not None:
        index = windows.gather(2, index)
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


def widened(boxes: Tensor, strides: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Left, top, right, bottom of boxes `[..., 4]`, none narrower than the finest stride: one smaller than that may
    hold no point at all, and every object shall have one to learn from."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    least = strides.amin() / 2
    wide, high = ((x2 - x1) / 2).clamp(min=least), ((y2 - y1) / 2).clamp(min=least)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - wide, y - high, x + wide, y + high


def outside_boxes(points: Tensor, strides: Tensor, truth_boxes: Tensor) -> Tensor:
    """Return `[B, M, N]`: does the point lie outside the box, after that was widened (see there)?

    Args:
        points: `[..., N, 2]`, broadcast to `[B, M, N, 2]`.  strides: `[A, 1]` of all points.
        truth_boxes: `[B, M, 4]`.
    """
    left, top, right, bottom = (side[..., None] for side in widened(truth_boxes, strides))
    x, y = points.unbind(-1)
    return (x < left) | (x > right) | (y < top) | (y > bottom)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes `[B, M, 4]` with boxes `[B, M or 1, N, 4]` → `[B, M, N]` (torchvision's has no batch dimension)."""
    ax1, ay1, ax2, ay2 = first_sides = first[..., None].unbind(2)
    bx1, by1, bx2, by2 = second_sides = second.unbind(3)
    common = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    common.mul_(height)
    areas = [(x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0) for x1, y1, x2, y2 in (first_sides, second_sides)]
    total = torch.add(areas[0] + EPS, areas[1], out=height)  # memory is the limit here: nothing is made anew
    return common.div_(total.sub_(common))
