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


class Windows(NamedTuple):
    """N different points for each of the M boxes.

    index: `[B, M, N]` int64, which of the A anchor points.
    outside: `[B, M, N]` bool: does the point lie outside the box (see `outside_boxes`)?
    """

    index: Tensor
    outside: Tensor


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
    windows: Windows | None = None,
) -> list[Assignment]:
    """Assign points to objects by how well class and place agree (TOOD, arXiv:2108.07755).

    The alignment of point and object is t = score^alpha · IoU^beta; an object takes its `topk` best points among
    those inside its box; a point wanted by several objects goes to the one of highest IoU. The weight is t scaled so
    that an object's best point gets that object's best IoU. Only the ratios of an object's alignments matter: each is
    formed from shares of the object's highest score and IoU, as powers of small numbers would soon be 0 themselves.

    Args:
        branches: class branches that score the same boxes: (probabilities `[B, A, nc]`, topk) of each.
        boxes: predicted, xyxy pixels: `[B, A, 4]`, or `[B, M, N, 4]` where there are windows.
        points: `[A, 2]` pixels.  strides: `[A, 1]` pixels.
        truth_boxes: `[B, M, 4]` xyxy pixels.  truth_classes: `[B, M]`, −1 where padding.
        windows: of `box_windows`: the only points that are considered.
    Returns:
        one `Assignment` a branch.
    """
    objects, count = truth_boxes.shape[1], len(points)
    cells = MAX_CELLS if boxes.device.type == "cpu" else GPU_CELLS
    per_chunk = max(1, cells // max(1, objects * (count if windows is None else windows.index.shape[2])))
    chunks: list[list[Assignment]] = [[] for _ in branches]
    for first in range(0, len(boxes), per_chunk):
        part = slice(first, first + per_chunk)
        if windows is None:
            own, predicted = None, boxes[part, None]
            outside = outside_boxes(points, strides, truth_boxes[part])
        else:
            own, predicted, outside = windows.index[part], boxes[part], windows.outside[part]
        outside = outside | (truth_classes[part] < 0)[..., None]
        overlap = pairwise_iou(truth_boxes[part], predicted).masked_fill_(outside, 0)
        apart = overlap == 0
        closeness = _of_highest(overlap).pow_(beta).masked_fill_(apart, 0)  # 0 to the power of 0 would be 1
        classes = truth_classes[part].clamp(min=0)
        for (scores, topk), done in zip(branches, chunks, strict=True):
            certainty = _of_highest(_own_scores(scores[part], classes, own).masked_fill_(apart, 0))
            alignment = certainty.pow_(alpha).mul_(closeness)
            done.append(_resolve(alignment, overlap, topk, own, count))
    return [Assignment(*(torch.cat(parts) for parts in zip(*done, strict=True))) for done in chunks]


def box_windows(
    points: Tensor, strides: Tensor, shapes: tuple[tuple[int, int], ...], truth_boxes: Tensor
) -> Windows | None:
    """Return the points around each box, among which all inside it are; or None: all points.

    They are a rectangle of each level's map, as wide and as high as the largest box needs. So their number depends on
    the boxes, and the host has to look at them: None where that would be a wait, or where little is gained.

    Args:
        points: `[A, 2]` pixels, level by level, row by row.  strides: `[A, 1]` pixels.
        shapes: (height, width) of each level's map.  truth_boxes: `[B, M, 4]` xyxy pixels.
    """
    if truth_boxes.device.type not in LOOKS:
        return None
    left, top, right, bottom = widened(truth_boxes, strides)
    spans, first = [], 0
    for height, width in shapes:
        level = points[first : first + height * width]
        spans += [_span(level[:width, 0], left, right), _span(level[::width, 1], top, bottom)]
        first += height * width
    sizes = torch.stack([(end - begin).amax() for begin, end in spans]).clamp_(min=1).tolist()
    if sum(w * h for w, h in zip(sizes[::2], sizes[1::2], strict=True)) > len(points) // 2:
        return None
    index, outside, first = [], [], 0
    for level, (height, width) in enumerate(shapes):
        x, beside = _places(*spans[2 * level], sizes[2 * level], width)
        y, above = _places(*spans[2 * level + 1], sizes[2 * level + 1], height)
        index.append((y[..., None] * width + (x + first)[..., None, :]).flatten(2))
        outside.append((above[..., None] | beside[..., None, :]).flatten(2))
        first += height * width
    return Windows(torch.cat(index, 2), torch.cat(outside, 2))


def _span(places: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the rising `places` that is in [low, high], and the first beyond."""
    places = places.contiguous()
    return torch.searchsorted(places, low), torch.searchsorted(places, high, right=True)


def _places(begin: Tensor, end: Tensor, size: int, most: int) -> tuple[Tensor, Tensor]:
    """`size` neighbours of `most`, `[B, M, size]`, from `begin` to `end` `[B, M]` among them; and which are beyond."""
    index = begin.clamp(max=most - size)[..., None] + torch.arange(size, device=begin.device)
    return index, (index < begin[..., None]) | (index >= end[..., None])


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
    weight = _of_highest(best) * best_iou
    truth = torch.arange(objects, device=index.device)[:, None].expand_as(index)
    return Assignment(index.flatten(1), truth.flatten(1), weight.flatten(1))


def _of_highest(values: Tensor) -> Tensor:
    """Values of at least 0, `[B, M, N]`, as shares of each row's highest; 0 where that is 0."""
    return values / values.amax(2, keepdim=True).clamp_(min=torch.finfo(values.dtype).tiny)


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
    """Return `[B, M, A]`: does the point lie outside the box, once that is `widened`?"""
    left, top, right, bottom = (side[..., None] for side in widened(truth_boxes, strides))
    x, y = points.unbind(1)
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
