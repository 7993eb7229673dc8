"""models/head.py: the table of anchor points, the decoding of distances, and what each branch may touch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.head import REG_MAX, DetectHead, Predictions, anchor_points, decode, decode_boxes

STRIDES = (8, 16, 32)


def maps_for(height: int, width: int, channels: tuple[int, ...] = (8, 8, 8), batch: int = 1) -> list[Tensor]:
    return [torch.zeros(batch, c, height // s, width // s) for c, s in zip(channels, STRIDES, strict=True)]


def slow_boxes(predictions: Predictions) -> np.ndarray:
    """Mean of each side's distribution, one number at a time."""
    logits = predictions.distances.detach().double().numpy()
    out = np.zeros((*logits.shape[:2], 4))
    for b, a, side in np.ndindex(out.shape):
        numbers = [math.exp(v) for v in logits[b, a, side * REG_MAX : (side + 1) * REG_MAX]]
        mean = sum(i * v for i, v in enumerate(numbers)) / sum(numbers)
        centre = float(predictions.points[a, side % 2])
        distance = mean * float(predictions.strides[a])
        out[b, a, side] = centre - distance if side < 2 else centre + distance
    return out


def predictions_of(distances: Tensor, height: int = 64, width: int = 96) -> Predictions:
    points, strides = anchor_points(maps_for(height, width), STRIDES)
    scores = torch.zeros(*distances.shape[:2], 2)
    shapes = tuple((height // stride, width // stride) for stride in STRIDES)
    return Predictions(distances, scores, scores, points, strides, shapes)


def test_anchor_points_of_a_64_by_96_image() -> None:
    points, strides = anchor_points(maps_for(64, 96), STRIDES)
    table = [
        (x, y, 8) for y in (4, 12, 20, 28, 36, 44, 52, 60) for x in (4, 12, 20, 28, 36, 44, 52, 60, 68, 76, 84, 92)
    ]
    table += [(x, y, 16) for y in (8, 24, 40, 56) for x in (8, 24, 40, 56, 72, 88)]
    table += [(16, 16, 32), (48, 16, 32), (80, 16, 32), (16, 48, 32), (48, 48, 32), (80, 48, 32)]
    assert torch.cat([points, strides], 1).tolist() == [list(map(float, row)) for row in table]
    assert points.dtype == strides.dtype == torch.float32


def test_points_stay_exact_for_half_precision_maps() -> None:
    """A float16 has steps of 1 beyond 1024 pixels: half a cell of stride 8 would be lost from 4096 on."""
    maps = [x.half() for x in maps_for(32, 8192)]
    points, _ = anchor_points(maps, STRIDES)
    assert points.dtype == torch.float32
    assert points[1023].tolist() == [8188.0, 4.0]


def test_decoding_equals_the_loop() -> None:
    torch.manual_seed(0)
    predictions = predictions_of(torch.randn(2, 126, 4 * REG_MAX) * 3)
    np.testing.assert_allclose(decode_boxes(predictions).numpy(), slow_boxes(predictions), atol=1e-3, rtol=1e-5)


def test_known_distributions_give_the_known_box() -> None:
    """Left all on bin 2, top half on 0 and half on 1, right uniform (7.5), bottom all on the last bin."""
    sides = torch.full((1, 126, 4, REG_MAX), -100.0)
    sides[..., 0, 2] = sides[..., 1, 0] = sides[..., 1, 1] = sides[..., 3, 15] = 0
    sides[..., 2, :] = 0
    boxes = decode_boxes(predictions_of(sides.flatten(2)))[0]
    # first point of stride 8 is (4, 4), of stride 16 (8, 8); the last of stride 32 is (80, 48)
    expected = [(4 - 16, 4 - 4, 4 + 60, 4 + 120), (8 - 32, 8 - 8, 8 + 120, 8 + 240), (80 - 64, 48 - 16, 80 + 240, 528)]
    for row, box in zip((0, 96, 125), expected, strict=True):
        assert boxes[row].tolist() == pytest.approx(box, abs=1e-3)


def test_boxes_are_never_inside_out_and_reach_at_most_15_strides() -> None:
    torch.manual_seed(1)
    predictions = predictions_of(torch.randn(1, 126, 4 * REG_MAX) * 50)
    boxes = decode_boxes(predictions)
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    reach = torch.cat([predictions.points - boxes[0, :, :2], boxes[0, :, 2:] - predictions.points], 1)
    assert (reach <= 15 * predictions.strides + 1e-3).all()


def test_predictions_of_half_precision_are_decoded_in_full() -> None:
    torch.manual_seed(2)
    predictions = predictions_of(torch.randn(1, 126, 4 * REG_MAX).half())
    boxes = decode_boxes(predictions)
    assert boxes.dtype == torch.float32
    np.testing.assert_allclose(boxes.numpy(), slow_boxes(predictions), atol=1e-3)


@pytest.mark.parametrize("nc", [1, 3, 200])
def test_outputs_have_the_documented_shapes(nc: int) -> None:
    head = DetectHead(nc, (8, 16, 24), STRIDES)
    out = head(maps_for(64, 96, (8, 16, 24), batch=2))
    assert out.distances.shape == (2, 126, 64)
    assert out.logits.shape == out.one_to_one.shape == (2, 126, nc)
    assert out.shapes == ((8, 12), (4, 6), (2, 3))
    assert out.points.shape == (126, 2)
    assert out.strides.shape == (126, 1)


def test_rows_of_the_outputs_lie_in_the_order_of_the_points() -> None:
    """A change in one cell of a map moves the rows of the points within the towers' reach (two 3×3) and no others."""
    torch.manual_seed(3)
    head = DetectHead(2, (8, 8, 8), STRIDES).eval()
    maps = maps_for(64, 96)
    changed = [x.clone() for x in maps]
    changed[0][0, :, 5, 9] += 1  # x 76, y 44
    with torch.no_grad():
        before, after = head(maps), head(changed)
    for a, b in zip(before[:3], after[:3], strict=True):
        moved = (a != b).any(-1)[0]
        near = ((before.points - torch.tensor([76.0, 44.0])).abs() <= 16).all(1) & (before.strides[:, 0] == 8)
        assert torch.equal(moved, near)


def test_scores_start_at_five_objects_in_640_pixels_and_boxes_at_two_strides_a_side() -> None:
    head = DetectHead(4, (8, 8, 8), STRIDES).eval()
    out = head(maps_for(64, 96))  # maps of zeros: what the biases say, as fresh norms pass a zero on
    for stride in STRIDES:
        rows = out.strides[:, 0] == stride
        prior = 5 / 4 / (640 / stride) ** 2
        for logits in (out.logits, out.one_to_one):
            torch.testing.assert_close(logits[0, rows].sigmoid(), torch.full_like(logits[0, rows], prior))
    sides = (decode_boxes(out)[0, :, 2:] - out.points) / out.strides
    falling = [(2 / 3) ** i for i in range(16)]
    mean = sum(i * p for i, p in enumerate(falling)) / sum(falling)
    assert mean == pytest.approx(2, abs=0.03)
    torch.testing.assert_close(sides, torch.full_like(sides, mean))


@pytest.mark.parametrize("branch", ["distances", "logits", "one_to_one"])
def test_every_branch_shapes_the_features_through_its_own_tower(branch: str) -> None:
    head = DetectHead(2, (8, 8, 8), STRIDES)
    maps = [torch.randn_like(x, requires_grad=True) for x in maps_for(64, 96, batch=2)]
    getattr(head(maps), branch).square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in maps)
    tower = {"distances": "boxes", "logits": "classes", "one_to_one": "one_to_one"}[branch]
    for name, parameter in head.named_parameters():
        assert (parameter.grad is not None) == name.startswith(f"{tower}."), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boxes_of_halves_are_computed_in_fp32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, point, stride = torch.randn(1, 9, 4 * REG_MAX).to(dtype), torch.full((9, 2), 400.0), torch.full((9, 1), 8.0)
    assert torch.equal(decode(logits, point, stride), decode(logits.float(), point, stride))


@pytest.mark.parametrize(("nc", "width"), [(1, 64), (80, 80), (90, 90), (365, 100)])
def test_the_width_of_the_class_towers(nc: int, width: int) -> None:
    """Checkpoints depend on it: at least a quarter of the first map's channels or 64, as many as classes up to 100."""
    head = DetectHead(nc, (64, 128, 256), (8, 16, 32))
    assert {tower[-1].in_channels for towers in (head.classes, head.one_to_one) for tower in towers} == {width}
