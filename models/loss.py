"""The detection loss: box, class and distribution terms over all anchor points."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from models.assigner import Assignment, assign, box_windows
from models.head import REG_MAX, Predictions, decode, decode_boxes

EPS = 1e-7
CHUNK = 2**19  # class scores that a CPU works on at once: they stay in its caches
FACTORS = 16  # scores whose logarithms are taken as one: each is at least 1 / 2, so no product underflows


class LossWeights(Protocol):
    """The hyper-parameters that the loss reads."""

    box: float
    cls: float
    dfl: float
    one_to_one: float
    label_smoothing: float
    assign_topk: int
    assign_alpha: float
    assign_beta: float


class LossTerms(NamedTuple):
    """total: scalar to differentiate, the sum of the parts times the number of images.

    parts: `[3]` detached box, cls and dfl terms times their gains, each divided by the sum of the assignment's weights
    in the batch, at least 1.
    """

    total: Tensor
    parts: Tensor


class DetectionLoss:
    """CIoU and distribution focal loss for the boxes, binary cross-entropy against soft targets for the classes.

    Each term is divided by the sum of the assignment's weights in the batch, and the total multiplied by the number
    of images, as the YOLO recipes do: without clipping (`clip_grad_norm`, which most steps reach) a learning rate
    keeps its meaning per image whatever the batch size.
    """

    def __init__(self, hyp: LossWeights, nc: int) -> None:
        self.hyp, self.nc = hyp, nc

    def __call__(self, predictions: Predictions, truth_boxes: Tensor, truth_classes: Tensor) -> LossTerms:
        """Compute the loss.

        Args:
            predictions: raw outputs for B images.
            truth_boxes: `[B, M, 4]` xyxy pixels.  truth_classes: `[B, M]`, −1 where padding.
        """
        hyp, branches = self.hyp, (predictions.logits, predictions.one_to_one)
        sure = [background(logits) for logits in branches]
        points, strides = predictions.points, predictions.strides
        with torch.no_grad():
            windows = box_windows(points, strides, predictions.shapes, truth_boxes)
            boxes = decode_boxes(predictions) if windows is None else decode_windows(predictions, windows.index)
        many, one = assign(
            [(sure[0].scores, hyp.assign_topk), (sure[1].scores, 1)],
            boxes,
            points,
            strides,
            truth_boxes,
            truth_classes,
            alpha=hyp.assign_alpha,
            beta=hyp.assign_beta,
            windows=windows,
        )
        box, dfl = box_terms(predictions, many, truth_boxes)
        cls = self._class_term(branches[0], sure[0], many, truth_classes)
        cls = cls + hyp.one_to_one * self._class_term(branches[1], sure[1], one, truth_classes)
        parts = torch.stack([hyp.box * box, hyp.cls * cls, hyp.dfl * dfl])
        return LossTerms(parts.sum() * truth_boxes.shape[0], parts.detach())

    def _class_term(self, logits: Tensor, sure: Background, points: Assignment, truth_classes: Tensor) -> Tensor:
        """Binary cross-entropy of all points and classes; what is not assigned has the target 0."""
        classes = truth_classes.clamp(min=0).gather(1, points.truth)
        smoothing = self.hyp.label_smoothing
        own = classes[..., None] == torch.arange(self.nc, device=classes.device)
        hard = own.float() * (1 - smoothing) + smoothing / self.nc
        loss = SoftTargetBCE.apply(logits, *sure, points.index, hard * points.weight[..., None])
        return loss / points.weight.sum().clamp(min=1)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """`[B, A, C]` at `[B, K]` → `[B, K, C]`. Points last, as the head's maps have them, so that gradients do, too."""
    return values.transpose(1, 2).gather(2, index[:, None].expand(-1, values.shape[2], -1)).transpose(1, 2)


def decode_windows(predictions: Predictions, windows: Tensor) -> Tensor:
    """Boxes at the points `[B, M, N]` only, xyxy in pixels: `[B, M, N, 4]`; all of the image where these are many."""
    index = windows.flatten(1)
    if index.shape[1] < len(predictions.points) // 2:
        distances = _take(predictions.distances, index)
        boxes = decode(distances, predictions.points[index], predictions.strides[index])
    else:
        boxes = decode_boxes(predictions).gather(1, index[..., None].expand(-1, -1, 4))
    return boxes.unflatten(1, windows.shape[1:])


class Background(NamedTuple):
    """scores: `[B, A, nc]` float32, the sigmoid of logits.  loss: scalar, the sum of their binary cross-entropies
    against 0, as if there were no objects."""

    scores: Tensor
    loss: Tensor


@torch.no_grad()
def background(logits: Tensor) -> Background:
    """Take logits `[B, A, nc]` as those of a picture of nothing; on a CPU piece by piece, while they are in its caches.

    log(1 + exp(x)) = max(x, 0) − log(max(p, 1 − p)), p the sigmoid of x: as exact as softplus, takes no second
    exponential, and the logarithms' arguments can be multiplied first: logarithms would be half of the time.
    """
    images = len(logits)
    if logits.device.type == "cpu":
        images = max(1, CHUNK // max(1, logits[0].numel()))
    scores, sums = torch.empty_like(logits, dtype=torch.float32), []
    for x, p in zip(logits.detach().split(images), scores.split(images), strict=True):
        x = x.float()
        torch.sigmoid(x, out=p)
        rest = x.clamp(min=0)
        sums.append(rest.sum())
        torch.maximum(p, torch.sub(1, p, out=rest), out=rest)
        flat = rest.transpose(1, 2).flatten()
        whole = len(flat) // FACTORS * FACTORS
        sums += [-flat[:whole].view(FACTORS, -1).prod(0).log_().sum(), -flat[whole:].log_().sum()]
    return Background(scores, torch.stack(sums).sum())


class SoftTargetBCE(torch.autograd.Function):
    """Sum of the binary cross-entropies of logits whose targets are 0 but at a few points.

    Its gradient is sigmoid(logit) − target, and the caller has the sigmoid. So no exponential is taken twice, and no
    tensor of targets or of zeros is made. The sigmoid itself becomes the gradient: `backward` works once.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, scores: Tensor, loss: Tensor, index: Tensor, target: Tensor) -> Tensor:
        """logits `[B, A, nc]`; scores and loss, their `background`; target `[B, K, nc]` at the points index `[B, K]`,
        to be added up where a point is there several times."""
        ctx.save_for_backward(scores, index, target)
        ctx.dtype = logits.dtype
        return loss - (_take(logits, index).float() * target).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        scores, index, target = ctx.saved_tensors
        change = scores.mul_(grad)
        change.scatter_add_(1, index[..., None].expand_as(target), target * -grad)
        return change.to(ctx.dtype), None, None, None, None


def box_terms(predictions: Predictions, points: Assignment, truth_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """CIoU and distribution focal loss of the chosen points, weighted."""
    weight, distances = points.weight, _take(predictions.distances, points.index)
    centers, strides = predictions.points[points.index], predictions.strides[points.index]
    boxes = decode(distances, centers, strides)
    # What answers for no object has no box to learn; its own as target keeps every gradient finite and 0.
    target = torch.where(weight[..., None] > 0, _take(truth_boxes, points.truth), boxes.detach())
    norm = weight.sum().clamp(min=1)
    ciou = complete_iou_loss(boxes, target)
    dfl = distribution_focal_loss(distances, centers, strides, target)
    return (ciou * weight).sum() / norm, (dfl * weight).sum() / norm


def complete_iou_loss(boxes: Tensor, target: Tensor) -> Tensor:
    """1 − CIoU: overlap, distance of the centres, and difference of the aspects (arXiv:1911.08287, eq. 10).

    torchvision's indexes by masks, for which a device waits.

    Args:
        boxes, target: `[..., 4]` xyxy.  Returns: `[...]`.
    """
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = boxes.unbind(-1), target.unbind(-1)
    aw, ah, bw, bh = ax2 - ax1, ay2 - ay1, bx2 - bx1, by2 - by1
    common = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    common = common * (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    iou = common / (aw * ah + bw * bh - common + EPS)
    wide = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    high = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    apart = ((ax1 + ax2 - bx1 - bx2) ** 2 + (ay1 + ay2 - by1 - by2) ** 2) / 4
    aspect = 4 / math.pi**2 * (torch.atan(bw / (bh + EPS)) - torch.atan(aw / (ah + EPS))) ** 2
    with torch.no_grad():
        share = aspect / (1 - iou + aspect + EPS)
    return 1 - iou + apart / (wide**2 + high**2 + EPS) + share * aspect


def distribution_focal_loss(distances: Tensor, points: Tensor, strides: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each side's distribution against the two bins that hold the target (arXiv:2006.04388, eq. 6).

    Args:
        distances: `[..., 4 * REG_MAX]` logits.  points: `[..., 2]` pixels.  strides: `[..., 1]` pixels.
        target: `[..., 4]` xyxy pixels; sides beyond the last bin are clamped to it.
    Returns:
        `[...]`, mean over the four sides.
    """
    low, high = points - target[..., :2], target[..., 2:] - points
    sides = (torch.cat([low, high], -1) / strides).clamp(0, REG_MAX - 1 - 0.01)
    left = sides.floor()
    log_p = distances.float().unflatten(-1, (4, REG_MAX)).log_softmax(-1)
    index = left.long().clamp(0, REG_MAX - 2)[..., None]  # NaN becomes no index: the loss shows it, nothing breaks
    at_left, at_right = log_p.gather(-1, index)[..., 0], log_p.gather(-1, index + 1)[..., 0]
    share = sides - left
    return -(at_left * (1 - share) + at_right * share).mean(-1)
