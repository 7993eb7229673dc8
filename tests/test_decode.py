"""models/decode.py: which scores become detections, against loops and tables worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from models.decode import NOT_A_PEAK, damp_neighbours, detect
from models.head import REG_MAX, Predictions, anchor_points, decode_boxes

SHAPES = ((8, 12), (4, 6), (2, 3))
STRIDES = (8, 16, 32)


def slow_damped(scores: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Point by point. A point of level l covers the rows and columns of a level next to it that lie under its cell.

    Of equal scores the finer level's comes first, then the one in the first of every three rows, then columns.
    """
    first = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]

    def at(b: int, level: int, y: int, x: int, c: int) -> tuple[float, int, int, int]:
        height, width = shapes[level]
        inside = 0 <= y < height and 0 <= x < width
        score = float(scores[b, first[level] + y * width + x, c]) if inside else -1.0
        return score, -level, -(y % 3), -(x % 3)

    def around(b: int, level: int, y: int, x: int, c: int) -> tuple[float, int, int, int]:
        return max(at(b, level, y + dy, x + dx, c) for dy in (-1, 0, 1) for dx in (-1, 0, 1))

    out = scores.clone()
    for b in range(scores.shape[0]):
        for level, (height, width) in enumerate(shapes):
            for y, x, c in torch.cartesian_prod(*map(torch.arange, (height, width, scores.shape[2]))).tolist():
                top = around(b, level, y, x, c)
                if level > 0:
                    top = max(top, *(around(b, level - 1, 2 * y + i, 2 * x + j, c) for i in (0, 1) for j in (0, 1)))
                if level + 1 < len(shapes):
                    top = max(top, around(b, level + 1, y // 2, x // 2, c))
                if at(b, level, y, x, c) < top:
                    out[b, first[level] + y * width + x, c] *= NOT_A_PEAK
    return out


@pytest.mark.parametrize("seed", range(3))
def test_damping_equals_the_loop(seed: int) -> None:
    scores = torch.rand(2, 126, 2, generator=torch.Generator().manual_seed(seed))
    damped = damp_neighbours(scores, SHAPES)
    torch.testing.assert_close(damped, slow_damped(scores, SHAPES), rtol=0, atol=0)
    assert 0 < (damped == scores).float().mean() < 0.5


def test_damping_by_hand() -> None:
    """One row of points: 0.9 stays and quiets 0.8 beside it; 0.7, three cells off, is a peak of its own."""
    scores = torch.zeros(1, 126, 1)
    scores[0, [2, 3, 6], 0] = torch.tensor([0.9, 0.8, 0.7])
    scores[0, 96, 0] = 0.4  # the coarser point above columns 0 and 1, beside that of column 2
    damped = damp_neighbours(scores, SHAPES)[0, [2, 3, 6, 96], 0]
    assert damped.tolist() == pytest.approx([0.9, 0.8 * NOT_A_PEAK, 0.7, 0.4 * NOT_A_PEAK])


def test_classes_do_not_quiet_each_other() -> None:
    scores = torch.zeros(1, 126, 2)
    scores[0, 50, 0], scores[0, 51, 1] = 0.9, 0.5
    assert torch.equal(damp_neighbours(scores, SHAPES), scores)


@pytest.mark.parametrize("seed", range(3))
def test_of_equal_neighbours_one_stays(seed: int) -> None:
    """As the loop has it; scores of half precision, of few values, and all of one."""
    random = torch.rand(2, 126, 2, generator=torch.Generator().manual_seed(seed))
    for scores in (random.bfloat16().float(), (4 * random).round() / 4 + 0.1, torch.full_like(random, 1.0)):
        damped = damp_neighbours(scores, SHAPES)
        torch.testing.assert_close(damped, slow_damped(scores, SHAPES), rtol=0, atol=0)
    fine = damped[:, :96].unflatten(1, SHAPES[0])  # of those that are all one: every third of a row and a column
    assert (fine == 1).sum() == fine[:, ::3, ::3].numel() and (fine[:, ::3, ::3] == 1).all()


def predictions(one_to_one: Tensor, many: Tensor) -> Predictions:
    """Boxes of 4 strides around every point."""
    maps = [torch.zeros(1, 1, height, width) for height, width in SHAPES]
    points, strides = anchor_points(maps, STRIDES)
    distances = torch.full((1, 126, 4, REG_MAX), -100.0)
    distances[..., 2] = 100.0
    return Predictions(distances.flatten(2), many, one_to_one, points, strides, SHAPES)


def logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability)))


@pytest.mark.parametrize("nms", [False, True])
def test_as_one_class_a_point_answers_once_with_its_best_score(nms: bool) -> None:
    """Point 2 sees classes 1 and 0, point 3 beside it class 2, less clearly; point 80 class 2."""
    scores = torch.full((1, 126, 3), -20.0)
    scores[0, 2, [1, 0]] = torch.tensor([logit(0.9), logit(0.7)])
    scores[0, [3, 80], 2] = torch.tensor([logit(0.8), logit(0.6)])
    (apart,) = detect(predictions(scores, scores), nms=nms, iou=0.5, conf=0.5).split()
    assert apart.classes.tolist() == [1, 2, 0, 2]
    (found,) = detect(predictions(scores, scores), nms=nms, iou=0.5, conf=0.5, one_class=True).split()
    assert found.scores.tolist() == pytest.approx([0.9, 0.6]) and found.classes.tolist() == [0, 0]
    assert torch.equal(found.boxes, apart.boxes[[0, 3]])


def test_the_branches_answer_each_in_its_own_way() -> None:
    """Point 2 sees an object, point 3 the same one again: NMS drops it, the one-to-one branch believes it less."""
    scores = torch.full((1, 126, 1), -20.0)
    scores[0, [2, 3], 0] = torch.tensor([logit(0.9), logit(0.8)])
    (plain,) = detect(predictions(scores, scores), conf=0.01).split()
    assert plain.scores.tolist() == pytest.approx([0.9, 0.8 * NOT_A_PEAK])
    assert plain.boxes.tolist() == [[4.0, -12.0, 36.0, 20.0], [12.0, -12.0, 44.0, 20.0]]
    (nms,) = detect(predictions(scores, scores), nms=True, conf=0.01, iou=0.5).split()
    assert nms.scores.tolist() == pytest.approx([0.9]) and nms.boxes.tolist() == [[4.0, -12.0, 36.0, 20.0]]


def test_confidence_and_count_bound_what_is_given_out() -> None:
    scores = torch.full((1, 126, 1), -20.0)
    scores[0, [0, 5, 90], 0] = torch.tensor([logit(0.3), logit(0.9), logit(0.6)])
    raw = predictions(scores, scores)
    assert [round(s, 4) for s in detect(raw, conf=0.4).split()[0].scores.tolist()] == [0.9, 0.6]
    assert [round(s, 4) for s in detect(raw, max_det=1).split()[0].scores.tolist()] == [0.9]
    assert detect(raw, conf=0.95).split()[0].scores.shape == (0,)


@pytest.mark.parametrize("nms", [False, True])
@pytest.mark.parametrize("where", ["scores", "boxes"])
def test_what_is_no_number_is_no_detection_and_hides_none(nms: bool, where: str) -> None:
    scores = torch.full((1, 126, 2), -20.0)
    scores[0, [0, 90], 1] = torch.tensor([logit(0.9), logit(0.6)])
    raw = predictions(scores, scores.clone())
    for broken in (1, 95):  # beside the two, one in the same map and one in that
        scores[0, broken] = math.nan if where == "scores" else logit(0.99)
    raw = raw._replace(logits=scores, one_to_one=scores)
    if where == "boxes":
        raw.distances[0, [1, 95], 3] = math.nan
    (found,) = detect(raw, nms=nms, conf=0.5, max_det=2).split()
    assert found.scores.tolist() == pytest.approx([0.9, 0.6]) and found.classes.tolist() == [1, 1]


@pytest.mark.parametrize("agnostic", [False, True])
def test_nms_keeps_classes_apart_unless_it_is_agnostic(agnostic: bool) -> None:
    scores = torch.full((1, 126, 2), -20.0)
    scores[0, 2, 0], scores[0, 3, 1], scores[0, 80, 1] = logit(0.9), logit(0.8), logit(0.7)
    (found,) = detect(predictions(scores, scores), nms=True, conf=0.5, iou=0.5, agnostic=agnostic).split()
    assert found.classes.tolist() == ([0, 1] if agnostic else [0, 1, 1])


def one_by_one(raw: Predictions, nms: bool, conf: float, iou: float, max_det: int) -> list[list[tuple]]:
    """Each image's (score, class, box) in Python: all scores sorted, and boxes compared in pairs."""
    boxes, found = decode_boxes(raw), []
    scores = raw.logits.sigmoid() if nms else damp_neighbours(raw.one_to_one.sigmoid(), raw.shapes)
    for own, image in zip(scores, boxes, strict=True):
        places = [(a, c) for a, c in torch.cartesian_prod(*map(torch.arange, own.shape)).tolist() if own[a, c] > conf]
        rows = sorted(((float(own[a, c]), c, tuple(image[a].tolist())) for a, c in places), reverse=True)
        kept: list[tuple] = []
        for row in rows:
            rivals = torch.tensor([other[2] for other in kept if other[1] == row[1]]).view(-1, 4)
            if not nms or not (box_iou(torch.tensor([row[2]]), rivals) > iou).any():
                kept.append(row)
        found.append(kept[:max_det])
    return found


@pytest.mark.parametrize("nms", [False, True])
@pytest.mark.parametrize(("conf", "max_det"), [(0.001, 300), (0.6, 300), (0.5, 7), (0.9999, 5)])
def test_a_batch_is_what_each_image_gives(nms: bool, conf: float, max_det: int) -> None:
    """Images with many detections, some, and none, filled up to one length."""
    draw = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 126, 2, generator=draw) * torch.tensor([3.0, 1.0, 0.0])[:, None, None]
    scores[2] = -20
    distances = 2 * torch.randn(3, 126, 4 * REG_MAX, generator=draw)
    raw = predictions(scores, scores)._replace(distances=distances)
    batch = detect(raw, nms=nms, conf=conf, iou=0.3, max_det=max_det)
    expected = one_by_one(raw, nms, conf, 0.3, max_det)
    assert batch.count.tolist() == [len(rows) for rows in expected]
    assert batch.scores.shape == batch.classes.shape == batch.boxes.shape[:2]
    for found, rows in zip(batch.split(), expected, strict=True):
        got = zip(found.scores.tolist(), found.classes.tolist(), map(tuple, found.boxes.tolist()), strict=True)
        assert list(got) == rows


@pytest.mark.parametrize("nms", [False, True])
def test_only_the_wanted_classes_are_counted(nms: bool) -> None:
    """Before the most that are given out are chosen: a better one of another class takes no place."""
    scores = torch.full((1, 126, 3), -20.0)
    scores[0, [0, 5, 90], [0, 1, 2]] = torch.tensor([logit(0.9), logit(0.6), logit(0.3)])
    (found,) = detect(predictions(scores, scores), nms=nms, conf=0.01, max_det=1, classes=(1, 2)).split()
    assert found.classes.tolist() == [1] and found.scores.tolist() == pytest.approx([0.6])


@pytest.mark.parametrize("nms", [False, True])
def test_classes_that_are_not_asked_for_are_none_at_confidence_0_either(nms: bool) -> None:
    scores = torch.full((1, 126, 3), -20.0)
    scores[0, 0, 0] = logit(0.9)
    (found,) = detect(predictions(scores, scores), nms=nms, conf=0.0, max_det=400, classes=(1,)).split()
    assert set(found.classes.tolist()) == {1}
