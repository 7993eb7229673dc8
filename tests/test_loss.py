"""models/loss.py against dense targets and torch's and torchvision's own losses, and what a step may not do."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import complete_box_iou_loss

from models import assigner, loss
from models.assigner import assign
from models.head import REG_MAX, Predictions, decode_boxes
from models.loss import (
    DetectionLoss,
    LossTerms,
    SoftTargetBCE,
    background,
    complete_iou_loss,
    distribution_focal_loss,
)
from tests.real_cuda import never_waiting

STRIDES = (8, 16, 32)


def hyp(**changes: float) -> SimpleNamespace:
    values: dict[str, Any] = {"box": 7.5, "cls": 0.5, "dfl": 1.5, "one_to_one": 1.0, "label_smoothing": 0.0}
    values |= {"assign_topk": 10, "assign_alpha": 0.5, "assign_beta": 6.0}
    return SimpleNamespace(**(values | changes))


def points_of(size: int) -> tuple[Tensor, Tensor]:
    points, strides = [], []
    for stride in STRIDES:
        for y in range(size // stride):
            for x in range(size // stride):
                points.append([(x + 0.5) * stride, (y + 0.5) * stride])
                strides.append([float(stride)])
    return torch.tensor(points), torch.tensor(strides)


def case(seed: int, objects: int, nc: int = 3, size: int = 64, images: int = 2) -> tuple[Predictions, Tensor, Tensor]:
    """Random predictions, as leaves that want gradients, and objects, of which the last image has none."""
    torch.manual_seed(seed)
    points, strides = points_of(size)
    raw = [torch.randn(images, len(points), c) * 2 for c in (4 * REG_MAX, nc, nc)]
    raw[1] -= 2
    leaves = [x.requires_grad_() for x in raw]
    centre, half = torch.rand(images, objects, 2) * size, torch.rand(images, objects, 2) * size / 3 + 1
    boxes = torch.cat([centre - half, centre + half], -1).clamp(0, size)
    classes = torch.randint(0, nc, (images, objects))
    classes[-1] = -1
    shapes = tuple((size // stride, size // stride) for stride in STRIDES)
    return Predictions(*leaves, points, strides, shapes), boxes, classes


def dense_loss(settings: SimpleNamespace, p: Predictions, boxes: Tensor, classes: Tensor) -> Tensor:
    """The same loss with a target for every point and class: box, cls and dfl terms `[3]`."""
    decoded = decode_boxes(p)
    branches = ((p.logits, settings.assign_topk), (p.one_to_one, 1))
    sure = [(logits.detach().sigmoid(), topk) for logits, topk in branches]
    exponents = {"alpha": settings.assign_alpha, "beta": settings.assign_beta}
    found = assign(sure, decoded.detach(), p.points, p.strides, boxes, classes, **exponents)
    cls, smooth, nc = torch.zeros(()), settings.label_smoothing, p.logits.shape[2]
    for (logits, _), one, share in zip(branches, found, (1.0, settings.one_to_one), strict=True):
        target = torch.zeros_like(logits)
        for b, k in (one.weight > 0).nonzero().tolist():
            row = target[b, one.index[b, k]]
            row += one.weight[b, k] * smooth / nc
            row[classes[b, one.truth[b, k]]] += one.weight[b, k] * (1 - smooth)
        whole = binary_cross_entropy_with_logits(logits, target, reduction="sum")
        cls = cls + share * whole / one.weight.sum().clamp(min=1)
    box, dfl, many = torch.zeros(()), torch.zeros(()), found[0]
    for b, k in (many.weight > 0).nonzero().tolist():
        point, weight, truth = many.index[b, k], many.weight[b, k], boxes[b, many.truth[b, k]]
        box = box + weight * complete_box_iou_loss(decoded[b, point], truth)
        x, y = p.points[point]
        sides = torch.stack([x - truth[0], y - truth[1], truth[2] - x, truth[3] - y]) / p.strides[point]
        logs = log_softmax(p.distances[b, point].view(4, REG_MAX), -1)
        for side, row in zip(sides.clamp(0, REG_MAX - 1.01).tolist(), logs, strict=True):
            low = int(side)
            dfl = dfl - weight / 4 * (row[low] * (low + 1 - side) + row[low + 1] * (side - low))
    norm = many.weight.sum().clamp(min=1)
    return torch.stack([settings.box * box / norm, settings.cls * cls, settings.dfl * dfl / norm])


def gradients(p: Predictions) -> list[Tensor]:
    grads = [x.grad.clone() for x in p[:3]]
    for x in p[:3]:
        x.grad = None
    return grads


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("objects", "nc", "smoothing"), [(1, 1, 0.0), (4, 3, 0.0), (4, 3, 0.1), (30, 5, 0.0)])
def test_the_loss_and_its_gradients_are_those_of_dense_targets(
    seed: int, objects: int, nc: int, smoothing: float
) -> None:
    settings = hyp(label_smoothing=smoothing, one_to_one=0.7)
    predictions, boxes, classes = case(seed, objects, nc)
    terms = DetectionLoss(settings, nc)(predictions, boxes, classes)
    terms.total.backward()
    found = gradients(predictions)
    expected = dense_loss(settings, predictions, boxes, classes)
    (expected.sum() * len(boxes)).backward()
    torch.testing.assert_close(terms.parts, expected.detach(), rtol=1e-4, atol=1e-5)
    for one, other in zip(found, gradients(predictions), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_no_objects_teach_that_there_is_nothing() -> None:
    predictions, boxes, classes = case(0, 3)
    terms = DetectionLoss(hyp(), 3)(predictions, boxes, torch.full_like(classes, -1))
    terms.total.backward()
    assert terms.parts[0] == terms.parts[2] == 0 < terms.parts[1]
    grads = gradients(predictions)
    assert not grads[0].any() and (grads[1] > 0).all() and (grads[2] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bce_equals_torchs_far_from_0_too(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.cat([torch.linspace(-60, 60, 300), torch.randn(300)]).view(2, 100, 3).to(dtype).requires_grad_()
    index = torch.tensor([[5, 70, 5], [99, 0, 1]])  # a point twice
    part = torch.rand(2, 3, 3)
    target = torch.zeros(2, 100, 3)
    for b in range(2):
        for k in range(3):
            target[b, index[b, k]] += part[b, k]
    value = SoftTargetBCE.apply(logits, *background(logits), index, part)
    value.backward()
    found, logits.grad = logits.grad, None
    expected = binary_cross_entropy_with_logits(logits.float(), target, reduction="sum")
    expected.backward()
    assert found.dtype == dtype
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found, logits.grad, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("transposed", [True, False])  # points last in memory, as the head has them, or classes
@pytest.mark.parametrize(("images", "points", "nc"), [(1, 1, 1), (1, 21, 1), (3, 21, 5), (2, 84, 3), (7, 33, 80)])
def test_background_equals_softplus_whatever_the_pieces(
    images: int, points: int, nc: int, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(images, nc, points).transpose(1, 2) if transposed else torch.randn(images, points, nc)
    logits = logits * 6 - 4
    expected = torch.nn.functional.softplus(logits.double()).sum()
    for chunk in (1, 2 * points * nc, 10**6):
        monkeypatch.setattr(loss, "CHUNK", chunk)
        scores, value = background(logits)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(scores, logits.sigmoid())


def test_background_of_what_is_not_finite() -> None:
    """The guard of a run sees it in the loss; no product of factors underflows on the way."""
    sure = torch.full((1, 64, 1), 0.0)
    assert background(sure).loss.item() == pytest.approx(64 * math.log(2))
    for value, expected in ((float("nan"), float("nan")), (float("inf"), float("inf")), (-float("inf"), 0.0)):
        assert background(torch.full((1, 64, 1), value)).loss.item() == pytest.approx(expected, nan_ok=True)


def test_a_second_backward_of_the_bce_is_an_error_and_no_wrong_gradient() -> None:
    logits = torch.randn(1, 8, 2, requires_grad=True)
    value = SoftTargetBCE.apply(logits, *background(logits), torch.tensor([[3]]), torch.rand(1, 1, 2))
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_complete_iou_loss_and_its_gradient_equal_torchvisions() -> None:
    torch.manual_seed(0)
    low = torch.rand(500, 2) * 50
    boxes = torch.cat([low, low + torch.rand(500, 2) * 40 + 0.5], 1)
    near = boxes + torch.randn(500, 4) * torch.rand(500, 1) * 8
    near = torch.cat([near[:, :2], torch.maximum(near[:, 2:], near[:, :2] + 0.5)], 1)
    for target in (near, boxes.roll(1, 0), boxes + 1e-3):
        one, other = boxes.clone().requires_grad_(), boxes.clone().requires_grad_()
        ours, theirs = complete_iou_loss(one, target), complete_box_iou_loss(other, target)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        ours.sum().backward()
        theirs.sum().backward()
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_complete_iou_loss_by_hand() -> None:
    box = torch.tensor([0.0, 0, 4, 2])
    assert complete_iou_loss(box, box).item() == pytest.approx(0, abs=1e-5)
    beside = complete_iou_loss(box, torch.tensor([4.0, 0, 8, 2]))  # IoU 0; centres 4 apart in a frame of 8 by 2
    assert beside.item() == pytest.approx(1 + 16 / 68, abs=1e-5)
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
    turned = complete_iou_loss(box, torch.tensor([1.0, -1, 3, 3]))  # IoU 4 / 12, one centre
    assert turned.item() == pytest.approx(1 - 1 / 3 + v * v / (1 - 1 / 3 + v), abs=1e-5)


class NoWaiting(TorchDispatchMode):
    """Fails where an operation would make the host wait for the device, or has a result whose shape depends on data."""

    WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "bincount")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        assert not name.startswith(self.WAITS), f"{func} waits for the device"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert all(x is None or x.dtype is not torch.bool for x in args[1]), "a mask as an index waits"
        return func(*args, **(kwargs or {}))


def test_the_mode_that_forbids_waiting_sees_it() -> None:
    x = torch.arange(4.0)
    for waits in (lambda: x.sum().item(), lambda: x[x > 1], lambda: x.nonzero(), lambda: float(x[0])):
        with pytest.raises(AssertionError, match="wait"), NoWaiting():
            waits()


def run_loss(predictions: Predictions, boxes: Tensor, classes: Tensor) -> LossTerms:
    terms = DetectionLoss(hyp(), 3)(predictions, boxes, classes)
    terms.total.backward()
    return terms


def test_loss_and_gradient_never_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assigner, "LOOKS", ())  # as on every device but the CPU
    arguments = case(0, 5)
    with NoWaiting():
        terms = run_loss(*arguments)
    assert terms.total.isfinite()


@pytest.mark.parametrize("objects", [1, 4, 40])  # 40: more points in the windows than there are
def test_a_look_at_the_boxes_changes_nothing(objects: int, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, boxes, classes = case(0, objects, size=128)
    boxes = boxes * 0.3 + 40
    made: list[bool] = []

    def watched(*arguments: Any) -> assigner.Windows | None:
        windows = assigner.box_windows(*arguments)
        made.append(windows is not None)
        return windows

    monkeypatch.setattr(loss, "box_windows", watched)
    found = run_loss(predictions, boxes, classes)
    grads = gradients(predictions)
    monkeypatch.setattr(assigner, "LOOKS", ())
    expected = run_loss(predictions, boxes, classes)
    assert made == [True, False]
    torch.testing.assert_close(found.parts, expected.parts)
    torch.testing.assert_close(grads, gradients(predictions))


@pytest.mark.cuda
def test_loss_and_gradient_never_wait_for_a_gpu() -> None:
    predictions, boxes, classes = case(0, 5)
    leaves = [x.detach().cuda().requires_grad_() for x in predictions[:3]]
    there = Predictions(*leaves, predictions.points.cuda(), predictions.strides.cuda(), predictions.shapes)
    boxes, classes = boxes.cuda(), classes.cuda()
    with never_waiting():
        terms = run_loss(there, boxes, classes)
    torch.testing.assert_close(terms.parts.cpu(), run_loss(*case(0, 5)).parts, rtol=1e-4, atol=1e-5)


def test_distribution_focal_loss_by_hand_up_to_the_last_bin() -> None:
    """Sides of 3.25, 14.6, 20 and -1 strides of 8 pixels: each between two bins, or at the last or the first."""
    torch.manual_seed(0)
    logits, point = torch.randn(4, REG_MAX), torch.tensor([[400.0, 400.0]])
    sides = (3.25, 14.6, 20.0, -1.0)
    target = torch.tensor([[400 - 8 * sides[0], 400 - 8 * sides[1], 400 + 8 * sides[2], 400 + 8 * sides[3]]])
    log_p = logits.double().log_softmax(1).tolist()
    expected = [log_p[0][3] * 0.75 + log_p[0][4] * 0.25, log_p[1][14] * 0.4 + log_p[1][15] * 0.6]
    expected += [log_p[2][14] * 0.01 + log_p[2][15] * 0.99, log_p[3][0]]
    found = distribution_focal_loss(logits.flatten()[None], point, torch.tensor([[8.0]]), target)
    assert found.item() == pytest.approx(-sum(expected) / 4, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distribution_focal_loss_of_halves_is_computed_in_fp32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, point, stride = torch.randn(9, 4 * REG_MAX).to(dtype), torch.full((9, 2), 400.0), torch.full((9, 1), 8.0)
    target = point.repeat(1, 2) + torch.tensor([-30.0, -40.0, 50.0, 60.0])
    exact = distribution_focal_loss(logits.float(), point, stride, target)
    assert torch.equal(distribution_focal_loss(logits, point, stride, target), exact)
