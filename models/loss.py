"""The detection loss: box, class and distribution terms over all anchor points."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torchvision.ops import complete_box_iou_loss

from models.assigner import Assignment, assign
from models.head import REG_MAX, Predictions, decode_boxes


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
    """total: scalar to differentiate.  parts: `[3]` detached box, cls and dfl terms, weighted, mean over images."""

    total: Tensor
    parts: Tensor


class DetectionLoss:
    """CIoU and distribution focal loss for the boxes, binary cross-entropy against soft targets for the classes.

    Each term is divided by the sum of the assignment's weights in the batch, and the total multiplied by the number
    of images, as the YOLO recipes do: a learning rate keeps its meaning per image whatever the batch size.
    """

    def __init__(self, hyp: LossWeights, nc: int) -> None:
        self.hyp, self.nc = hyp, nc

    def __call__(self, predictions: Predictions, truth_boxes: Tensor, truth_classes: Tensor) -> LossTerms:
        """Compute the loss.

        Args:
            predictions: raw outputs for B images.
            truth_boxes: `[B, M, 4]` xyxy pixels.  truth_classes: `[B, M]`, −1 where padding.
        """
        hyp = self.hyp
        boxes = decode_boxes(predictions)
        many, one = assign(
            [
                (predictions.logits.detach().float().sigmoid(), hyp.assign_topk),
                (predictions.one_to_one.detach().float().sigmoid(), 1),
            ],
            boxes.detach(),
            predictions.points,
            predictions.strides,
            truth_boxes,
            truth_classes,
            alpha=hyp.assign_alpha,
            beta=hyp.assign_beta,
        )
        box, dfl = self._box_terms(predictions, boxes, many, truth_boxes)
        cls = self._class_term(predictions.logits, many, truth_classes)
        cls = cls + hyp.one_to_one * self._class_term(predictions.one_to_one, one, truth_classes)
        parts = torch.stack([hyp.box * box, hyp.cls * cls, hyp.dfl * dfl])
        return LossTerms(parts.sum() * truth_boxes.shape[0], parts.detach())

    def _class_term(self, logits: Tensor, assignment: Assignment, truth_classes: Tensor) -> Tensor:
        classes = truth_classes.clamp(min=0).gather(1, assignment.truth)
        smoothing = self.hyp.label_smoothing
        hard = one_hot(classes, self.nc).float() * (1 - smoothing) + smoothing / self.nc
        target = hard * assignment.weight[..., None]
        loss = binary_cross_entropy_with_logits(logits.float(), target, reduction="sum")
        return loss / assignment.weight.sum().clamp(min=1)

    def _box_terms(
        self, predictions: Predictions, boxes: Tensor, assignment: Assignment, truth_boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Dense over all points and weighted, rather than gathered: shapes stay static and the device never waits."""
        weight = assignment.weight
        target = truth_boxes.gather(1, assignment.truth[..., None].expand(-1, -1, 4))
        # Background points have no box to learn; their own prediction as target keeps every gradient finite and 0.
        target = torch.where(weight[..., None] > 0, target, boxes.detach())
        norm = weight.sum().clamp(min=1)
        ciou = complete_box_iou_loss(boxes.flatten(0, 1), target.flatten(0, 1)).view_as(weight)
        dfl = distribution_focal_loss(predictions, target)
        return (ciou * weight).sum() / norm, (dfl * weight).sum() / norm


def distribution_focal_loss(predictions: Predictions, target: Tensor) -> Tensor:
    """Cross-entropy of each side's distribution against the two bins that hold the target (arXiv:2006.04388, eq. 6).

    Args:
        target: `[B, A, 4]` xyxy pixels; sides beyond the last bin are clamped to it.
    Returns:
        `[B, A]`, mean over the four sides.
    """
    low, high = predictions.points - target[..., :2], target[..., 2:] - predictions.points
    sides = (torch.cat([low, high], -1) / predictions.strides).clamp(0, REG_MAX - 1 - 0.01)
    left = sides.floor()
    log_p = predictions.distances.float().unflatten(-1, (4, REG_MAX)).log_softmax(-1)
    index = left.long().clamp(0, REG_MAX - 2)[..., None]  # NaN becomes no index: the loss shows it, nothing breaks
    at_left, at_right = log_p.gather(-1, index)[..., 0], log_p.gather(-1, index + 1)[..., 0]
    share = sides - left
    return -(at_left * (1 - share) + at_right * share).mean(-1)
