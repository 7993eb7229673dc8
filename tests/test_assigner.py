"""models/assigner.py against a loop over images, objects and points, and against tables worked by hand."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from models import assigner
from models.assigner import Assignment, assign, box_windows, outside_boxes, pairwise_iou


class Case(NamedTuple):
    """What `assign` is given, for one branch."""

    scores: Tensor
    boxes: Tensor
    points: Tensor
    strides: Tensor
    truth_boxes: Tensor
    truth_classes: Tensor


class Dense(NamedTuple):
    """An assignment by point: truth `[B, A]` (any value where the weight is 0), weight `[B, A]`."""

    truth: Tensor
    weight: Tensor


def run(case: Case, topk: int, alpha: float = 0.5, beta: float = 6.0) -> Dense:
    return dense(assign([(case.scores, topk)], *case[1:], alpha=alpha, beta=beta)[0], len(case.points))


def dense(found: Assignment, points: int) -> Dense:
    """Point by point; fails where two candidates have one point."""
    truth, weight = (torch.zeros(len(found.index), points, dtype=x.dtype) for x in (found.truth, found.weight))
    for b, columns in enumerate(zip(*(x.tolist() for x in found), strict=True)):
        for point, own, share in zip(*columns, strict=True):
            if share > 0:
                assert weight[b, point] == 0
                truth[b, point], weight[b, point] = own, share
    return Dense(truth, weight)


def slow_iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def slow_inside(point: list[float], box: list[float], least: float) -> bool:
    """Is the point in the box, after a side shorter than `least` was widened to it about its middle?"""
    for axis in (0, 1):
        low, high = box[axis], box[axis + 2]
        if high - low < least:
            low, high = (low + high) / 2 - least / 2, (low + high) / 2 + least / 2
        if not low <= point[axis] <= high:
            return False
    return True


def slow_owners(
    able: list[list[int]], align: list[list[float]], iou: list[list[float]], topk: int
) -> dict[int, list[int]]:
    """{object: its points}: each object wants its best `topk`; whoever overlaps a contested one most has it."""
    wanting: dict[int, list[int]] = {}
    for m in range(len(able)):
        for p in sorted(able[m], key=lambda p, m=m: -align[m][p])[:topk]:
            wanting.setdefault(p, []).append(m)
    owned: dict[int, list[int]] = {}
    for p, objects in wanting.items():
        owned.setdefault(max(objects, key=lambda m, p=p: iou[m][p]), []).append(p)
    return owned


def slow_assign(case: Case, topk: int, alpha: float, beta: float) -> list[dict[int, tuple[int, float]]]:
    """By the words of the docstring, for each image {point: (object, weight)}. Also used by the test of the loss."""
    least, points, result = float(case.strides.min()), case.points.tolist(), []
    columns = (case.scores, case.boxes, case.truth_boxes, case.truth_classes)
    for scores, boxes, truths, classes in zip(*(column.tolist() for column in columns), strict=True):
        real = [m for m, kind in enumerate(classes) if kind >= 0]
        iou = [[slow_iou(truths[m], box) for box in boxes] for m in real]
        align = [
            [score[classes[m]] ** alpha * overlap**beta for score, overlap in zip(scores, iou[row], strict=True)]
            for row, m in enumerate(real)
        ]
        able = [[p for p, point in enumerate(points) if slow_inside(point, truths[m], least)] for m in real]
        weights = {}
        for row, own in slow_owners(able, align, iou, topk).items():
            best_alignment, best_iou = max(align[row][p] for p in own), max(iou[row][p] for p in own)
            weights |= {
                p: (real[row], align[row][p] * best_iou / best_alignment if best_alignment else 0.0) for p in own
            }
        result.append(weights)
    return result


def grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Anchor points of strides 8, 16, 32, written out."""
    points, strides = [], []
    for s in (8, 16, 32):
        for y in range(height // s):
            for x in range(width // s):
                points.append([(x + 0.5) * s, (y + 0.5) * s])
                strides.append([float(s)])
    return torch.tensor(points), torch.tensor(strides)


def random_case(seed: int, objects: int, images: int = 2, nc: int = 3, size: tuple[int, int] = (64, 96)) -> Case:
    """Objects of all sizes, and predictions at each point that are some object's box, shaken."""
    torch.manual_seed(seed)
    points, strides = grid(*size)
    extent = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
    corners = torch.rand(images, objects, 2, 2)
    truth = torch.cat([corners.amin(2), corners.amax(2)], -1) * extent
    centre, half = (truth[..., :2] + truth[..., 2:]) / 2, ((truth[..., 2:] - truth[..., :2]) / 2).clamp(min=0.5)
    truth = torch.cat([centre - half, centre + half], -1)
    classes = torch.randint(0, nc, (images, objects))
    classes[1, objects // 2 :] = -1  # the second image has fewer
    which = torch.randint(0, objects, (images, len(points), 1)).expand(-1, -1, 4)
    boxes = truth.gather(1, which) + torch.randn(images, len(points), 4) * 2
    boxes = torch.cat([torch.minimum(boxes[..., :2], boxes[..., 2:] - 0.5), boxes[..., 2:]], -1)
    return Case(torch.rand(images, len(points), nc), boxes, points, strides, truth, classes)


def check_equal(found: Dense, expected: list[dict[int, tuple[int, float]]]) -> int:
    """Compare weights, and objects where there is a weight; returns the number of the latter."""
    compared = 0
    for b, points in enumerate(expected):
        for p, weight in enumerate(found.weight[b].tolist()):
            truth, exact = points.get(p, (0, 0.0))
            assert weight == pytest.approx(exact, rel=1e-3, abs=1e-7)
            if weight > 1e-6:
                assert int(found.truth[b, p]) == truth
                compared += 1
    return compared


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("objects", "topk"), [(1, 1), (1, 10), (6, 1), (6, 10), (30, 4), (30, 1000)])
def test_assignment_equals_the_loop(seed: int, objects: int, topk: int) -> None:
    case = random_case(seed, objects)
    assert check_equal(run(case, topk, 0.5, 6.0), slow_assign(case, topk, 0.5, 6.0)) > 0
    check_equal(run(case, topk, 1.0, 2.0), slow_assign(case, topk, 1.0, 2.0))


def test_thousands_of_boxes() -> None:
    case = random_case(0, 2000)
    assert check_equal(run(case, 10), slow_assign(case, 10, 0.5, 6.0)) > 100


def one_level(width: int, scores: list[list[float]], boxes: list, truths: list, classes: list) -> Case:
    """One image of stride-8 points in a row: x 4, 12, 20, …, y 4."""
    points = torch.tensor([[8.0 * i + 4, 4.0] for i in range(width)])
    tensors = (torch.tensor([value], dtype=torch.float32) for value in (scores, boxes))
    return Case(*tensors, points, torch.full((width, 1), 8.0), torch.tensor([truths]).float(), torch.tensor([classes]))


@pytest.mark.parametrize(
    ("topk", "weights"), [(1, [1, 0, 0, 0]), (2, [1, 0.6, 0, 0]), (3, [1, 0.6, 0.4, 0]), (10, [1, 0.6, 0.4, 0.2])]
)
def test_one_object_by_hand(topk: int, weights: list[float]) -> None:
    """Alignment √score·IoU: .5·1, .6·.5, .8·.25, .1·1; over the best (.5), times the best IoU (1)."""
    boxes = [[0, 0, 32, 8], [0, 0, 16, 8], [16, 0, 24, 8], [0, 0, 32, 8]]
    case = one_level(4, [[0.25], [0.36], [0.64], [0.01]], boxes, [[0, 0, 32, 8]], [0])
    assert run(case, topk, 0.5, 1.0).weight[0].tolist() == pytest.approx(weights, abs=1e-6)


def test_the_best_point_gets_the_best_iou_though_another_point_has_it() -> None:
    """Point 0: √.81·.5 = .45, point 1: √.04·1 = .2. Best alignment .45, best IoU 1: weights 1 and .444."""
    case = one_level(2, [[0.81], [0.04]], [[0, 0, 8, 8], [0, 0, 16, 8]], [[0, 0, 16, 8]], [0])
    assert run(case, 10, 0.5, 1.0).weight[0].tolist() == pytest.approx([1, 0.2 / 0.45], abs=1e-6)


def test_two_objects_contest_a_point_by_hand() -> None:
    """The middle point lies in both and overlaps the second fully, the first by a third."""
    boxes = [[0, 0, 16, 8], [8, 0, 24, 8], [16, 0, 24, 8]]
    case = one_level(3, [[0.25, 0.25]] * 3, boxes, [[0, 0, 16, 8], [8, 0, 24, 8]], [0, 1])
    found = run(case, 10, 0.5, 1.0)
    assert found.truth[0].tolist() == [0, 1, 1]
    assert found.weight[0].tolist() == pytest.approx([1, 1, 0.5], abs=1e-6)
    turned = case._replace(truth_boxes=case.truth_boxes.flip(1), truth_classes=case.truth_classes.flip(1))
    assert run(turned, 10, 0.5, 1.0).truth[0].tolist() == [1, 0, 0]


def test_an_object_that_lost_its_only_point_has_none() -> None:
    """One-to-one: both want the first point (score 1 there, .01 at the other); the second overlaps it better."""
    boxes = [[0, 0, 16, 8], [0, 0, 16, 8]]
    case = one_level(2, [[1.0], [0.01]], boxes, [[0, 0, 12, 8], [0, 0, 16, 8]], [0, 0])
    found = run(case, 1, 0.5, 1.0)
    assert found.weight[0].tolist() == pytest.approx([1, 0], abs=1e-6)
    assert found.truth[0, 0] == 1


def test_a_point_goes_to_who_wants_it_not_to_who_overlaps_it() -> None:
    """Both objects overlap both points, the second better; but with topk 1 each wants the point of its class."""
    case = one_level(2, [[1, 0.01], [0.01, 1]], [[0, 0, 24, 8]] * 2, [[0, 0, 16, 8], [0, 0, 24, 8]], [0, 1])
    found = run(case, 1, 0.5, 1.0)
    assert found.truth[0].tolist() == [0, 1]
    assert found.weight[0].tolist() == pytest.approx([2 / 3, 1], abs=1e-6)


def test_the_score_of_the_objects_own_class_counts() -> None:
    case = one_level(2, [[0.01, 1], [1, 0.01]], [[0, 0, 16, 8]] * 2, [[0, 0, 16, 8]], [1])
    assert run(case, 1).weight[0].tolist() == pytest.approx([1, 0], abs=1e-6)


def test_no_boxes_make_all_points_background() -> None:
    case = random_case(0, 4)
    empty = case._replace(truth_classes=torch.full_like(case.truth_classes, -1))
    for topk in (1, 10):
        found = run(empty, topk)
        assert not found.weight.any()
        assert ((found.truth >= 0) & (found.truth < 4)).all()


def test_a_box_that_fills_the_image_may_have_any_point() -> None:
    points, strides = grid(64, 96)
    full = torch.tensor([[[0.0, 0, 96, 64]]])
    case = Case(torch.full((1, 126, 1), 0.5), full.expand(1, 126, 4), points, strides, full, torch.zeros(1, 1).long())
    assert (~outside_boxes(points, strides, full)).all()
    torch.testing.assert_close(run(case, 126).weight, torch.ones(1, 126))
    assert (run(case, 10).weight > 0).sum() == 10


def test_padding_changes_nothing() -> None:
    case = random_case(3, 6)
    rubbish = torch.tensor([[[0.0, 0, 96, 64], [0, 0, 0, 0], [5, 5, 2, 2]]]).expand(2, 3, 4)
    padded = case._replace(
        truth_boxes=torch.cat([case.truth_boxes, rubbish], 1),
        truth_classes=torch.cat([case.truth_classes, torch.full((2, 3), -1)], 1),
    )
    plain, found = run(case, 10), run(padded, 10)
    assert torch.equal(plain.weight, found.weight)
    owned = plain.weight > 0
    assert torch.equal(plain.truth[owned], found.truth[owned])


def test_boxes_smaller_than_a_stride_have_a_point() -> None:
    """Wherever they lie, the corners between four points and the image's edge included, and however thin they are."""
    torch.manual_seed(0)
    points, strides = grid(64, 96)
    centres = torch.rand(3000, 2) * torch.tensor([96.0, 64.0])
    lattice = torch.cartesian_prod(torch.arange(0.0, 97, 8), torch.arange(0.0, 65, 8))
    centres = torch.cat([centres, lattice])
    half = torch.rand(len(centres), 2) ** 4 * 4
    has = (~outside_boxes(points, strides, torch.cat([centres - half, centres + half], 1)[None])).any(2)
    assert has.all()


def test_a_box_smaller_than_a_stride_is_learnt_from() -> None:
    points, strides = grid(64, 96)
    truth = torch.tensor([[[7.0, 7, 9, 9]]])  # between four points
    boxes = torch.tensor([6.0, 6, 10, 10]).expand(1, 126, 4)
    case = Case(torch.full((1, 126, 1), 0.5), boxes, points, strides, truth, torch.zeros(1, 1).long())
    found = run(case, 10)
    assert points[found.weight[0] > 0].tolist() == [[4, 4], [12, 4], [4, 12], [12, 12], [8, 8]]
    assert found.weight.max() == pytest.approx(0.25, rel=1e-3)


def test_points_on_the_edge_of_a_box_are_inside_and_beyond_it_are_not() -> None:
    points, strides = torch.tensor([[4.0, 4], [12, 4], [20, 4]]), torch.full((3, 1), 8.0)
    assert (~outside_boxes(points, strides, torch.tensor([[[4.0, 0, 20, 8]]]))).all()
    assert (~outside_boxes(points, strides, torch.tensor([[[4.01, 0, 19.99, 8]]]))).tolist() == [[[False, True, False]]]
    assert not (~outside_boxes(points, strides, torch.tensor([[[0.0, 10, 24, 30]]]))).any()


@pytest.mark.parametrize("seed", range(3))
def test_weights_lie_in_0_to_1_and_at_most_topk_points_answer_for_an_object(seed: int) -> None:
    case = random_case(seed, 12)
    for topk in (1, 5):
        found = run(case, topk, beta=1.0)
        assert ((found.weight >= 0) & (found.weight <= 1 + 1e-6)).all()
        for b in range(2):
            owners = found.truth[b][found.weight[b] > 0]
            assert owners.bincount(minlength=1).max() <= topk
            assert (case.truth_classes[b][owners] >= 0).all()
            assert not outside_boxes(case.points, case.strides, case.truth_boxes)[b, owners, found.weight[b] > 0].any()


def test_a_weak_alignment_loses_no_weight() -> None:
    """However unsure a class and far a box, the best point gets the IoU: 1e-20 ^ alpha is soon no number but 0."""
    for alpha, beta in ((0.5, 6.0), (1.0, 6.0), (6.0, 6.0), (20.0, 20.0), (0.0, 0.0)):
        weak = one_level(1, [[1e-20]], [[0, 0, 8, 8]], [[0, 0, 8, 80]], [0])
        assert run(weak, 10, alpha, beta).weight.item() == pytest.approx(0.1, rel=1e-6)
    far = one_level(1, [[0.5]], [[0, 0, 8, 8]], [[0, 0, 8, 8000]], [0])
    assert run(far, 10, 0.5, 20.0).weight.item() == pytest.approx(0.001, rel=1e-5)
    beside = one_level(3, [[1e-3], [1e-3], [1.0]], [[0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8]], [[0, 0, 16, 8]], [0])
    assert run(beside, 10, 20.0, 1.0).weight[0].tolist() == pytest.approx([0.5, 0.5, 0]), "of those inside the box"
    nowhere = one_level(1, [[1.0]], [[0, 80, 8, 88]], [[0, 0, 8, 8]], [0])
    assert run(nowhere, 10, 0.0, 0.0).weight.item() == 0
    none = one_level(1, [[1.0]], [[0, 80, 8, 88]], [[0, 0, 8, 8]], [0])
    assert run(none, 10).weight.item() == 0


def test_branches_are_assigned_each_by_its_own_scores() -> None:
    case = random_case(5, 6)
    other = torch.rand_like(case.scores)
    together = assign([(case.scores, 10), (other, 1)], *case[1:], alpha=0.5, beta=6.0)
    for found, alone in zip(
        (dense(one, len(case.points)) for one in together),
        (run(case, 10), run(case._replace(scores=other), 1)),
        strict=True,
    ):
        assert torch.equal(found.truth, alone.truth)
        assert torch.equal(found.weight, alone.weight)


@pytest.mark.parametrize("images_at_once", [1, 2, 3])
def test_chunks_change_nothing(images_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(7, 6, images=7)
    whole = run(case, 10)
    calls: list[int] = []

    def counted(first: Tensor, second: Tensor) -> Tensor:
        calls.append(len(first))
        return pairwise_iou(first, second)

    monkeypatch.setattr(assigner, "pairwise_iou", counted)
    monkeypatch.setattr(assigner, "MAX_CELLS", images_at_once * 6 * len(case.points))
    parts = run(case, 10)
    assert calls == {1: [1] * 7, 2: [2, 2, 2, 1], 3: [3, 3, 1]}[images_at_once]
    assert torch.equal(whole.truth, parts.truth)
    assert torch.equal(whole.weight, parts.weight)


SHAPES = ((8, 12), (4, 6), (2, 3))  # of grid(64, 96)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [0.02, 0.3, 0.6])
def test_windows_hold_all_points_of_a_box_and_each_once(seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    points, strides = grid(64, 96)
    centres = torch.rand(3, 20, 2) * torch.tensor([110.0, 80.0]) - 8  # some beyond the edge
    half = torch.rand(3, 20, 2) * torch.tensor([48.0, 32.0]) * scale
    boxes = torch.cat([centres - half, centres + half], -1)
    boxes[:, :10] = (boxes[:, :10] / 4).round() * 4  # edges on points
    windows = box_windows(points, strides, SHAPES, boxes)
    assert windows.index.shape[2] < len(points)
    outside = outside_boxes(points, strides, boxes)
    assert torch.equal(windows.outside, outside.gather(2, windows.index))
    for b in range(3):
        for m in range(20):
            own = windows.index[b, m].tolist()
            assert len(set(own)) == len(own)
            assert set((~outside[b, m]).nonzero().flatten().tolist()) <= set(own)


def test_the_window_of_a_box_by_hand() -> None:
    """One box over two by one points of stride 8, none of stride 16, none of 32: at each level at least a point."""
    points, strides = grid(64, 96)
    windows = box_windows(points, strides, SHAPES, torch.tensor([[[10.0, 16.5, 22, 24.5]]]))
    assert points[windows.index[0, 0]].tolist() == [[12, 20], [20, 20], [24, 24], [16, 48]]
    assert windows.outside[0, 0].tolist() == [False, False, True, True]
    corner = torch.tensor([[[10.0, 16.5, 22, 24.5], [90, 60, 96, 64]]])  # windows are of one size and stay in the map
    windows = box_windows(points, strides, SHAPES, corner)
    assert points[windows.index[0, 1]].tolist() == [[84, 60], [92, 60], [88, 56], [80, 48]]


def test_no_windows_where_a_box_is_large_or_a_look_would_wait() -> None:
    points, strides = grid(64, 96)
    small = torch.tensor([[[0.0, 0, 24, 24]]])
    assert box_windows(points, strides, SHAPES, small) is not None
    assert box_windows(points, strides, SHAPES, torch.cat([small, torch.tensor([[[0.0, 0, 96, 64]]])], 1)) is None
    assert box_windows(points.to("meta"), strides.to("meta"), SHAPES, small.to("meta")) is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("objects", "topk"), [(1, 1), (1, 10), (6, 10), (30, 4), (30, 1000)])
def test_assignment_in_windows_equals_that_of_all_points(seed: int, objects: int, topk: int) -> None:
    case = random_case(seed, objects)
    case = case._replace(truth_boxes=case.truth_boxes * 0.5 + 10, boxes=case.boxes * 0.5 + 10)
    windows = box_windows(case.points, case.strides, SHAPES, case.truth_boxes)
    image = torch.arange(2)[:, None, None]
    near = case._replace(boxes=case.boxes[image, windows.index])
    assert near.boxes.shape == (*windows.index.shape, 4)
    found = assign([(case.scores, topk)], *near[1:], alpha=0.5, beta=6.0, windows=windows)[0]
    whole, parts = run(case, topk), dense(found, len(case.points))
    assert whole.weight.any() or objects == 1
    torch.testing.assert_close(whole.weight, parts.weight, rtol=1e-6, atol=0)  # a power depends on its place in memory
    assert torch.equal(whole.truth[whole.weight > 0], parts.truth[whole.weight > 0])


def test_pairwise_iou_equals_loop_and_torchvision() -> None:
    torch.manual_seed(4)
    first, second = (torch.cat([low := torch.rand(2, n, 2) * 50, low + torch.rand(2, n, 2) * 40], -1) for n in (7, 9))
    found = pairwise_iou(first, second[:, None])
    assert found.shape == (2, 7, 9)
    for b in range(2):
        torch.testing.assert_close(found[b], box_iou(first[b], second[b]))
        for m in range(7):
            for a in range(9):
                assert float(found[b, m, a]) == pytest.approx(
                    slow_iou(first[b, m].tolist(), second[b, a].tolist()), abs=1e-5
                )


def test_pairwise_iou_by_hand() -> None:
    first = torch.tensor([[[0.0, 0, 4, 2], [1, 1, 1, 1], [5, 5, 3, 3]]])  # the last two: a point, and inside out
    second = torch.tensor([[[0.0, 0, 4, 2], [2, 0, 6, 2], [4, 0, 8, 2], [0, 1, 4, 3], [1, 1, 1, 1]]])
    found = pairwise_iou(first, second[:, None])[0]
    assert found[0].tolist() == pytest.approx([1, 1 / 3, 0, 1 / 3, 0])
    assert not found[1:].any()
    assert found.isfinite().all()


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.0), (0.5, 1.0), (0.0, 0.0)])
def test_no_power_takes_a_point_outside_its_box(alpha: float, beta: float) -> None:
    """0 to the power of 0 is 1: points outside would be as well aligned as those inside."""
    found = 0
    for seed in range(4):
        case = random_case(seed, 4)
        truth, weight = run(case, 10, alpha=alpha, beta=beta)
        for b, p in torch.nonzero(weight).tolist():
            box = case.truth_boxes[b, truth[b, p]].tolist()
            assert slow_inside(case.points[p].tolist(), box, float(case.strides.min()))
            found += 1
    assert found > 20
