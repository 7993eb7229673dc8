"""Scores against pycocotools, against slow loops written from the definition, and against numbers worked by hand."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from utils import metrics
from utils.metrics import (
    ON_CROWD,
    UNMATCHED,
    Detections,
    coco_evaluate,
    confusion_matrix,
    detections_to_coco,
    fitness,
    match,
    pr_curves,
    renumber,
    to_coco_json,
)


def make_truth(images: list[list[tuple]]) -> SimpleNamespace:
    """Truth of images given as lists of (class, x1, y1, x2, y2[, crowd[, area]])."""
    rows = [row for image in images for row in image]
    boxes = np.array([row[1:5] for row in rows], np.float32).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for i, row in enumerate(rows):
        areas[i] = row[6] if len(row) > 6 else areas[i]
    return SimpleNamespace(
        sizes=np.tile(np.int32([[640, 480]]), (len(images), 1)),
        boxes=boxes,
        classes=np.array([row[0] for row in rows], np.int32),
        crowd=np.array([len(row) > 5 and row[5] for row in rows], bool),
        areas=areas.astype(np.float32),
        offsets=np.cumsum([0, *(len(image) for image in images)]).astype(np.int64),
    )


def make_detections(rows: list[tuple]) -> Detections:
    """Detections given as (image, class, score, x1, y1, x2, y2)."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    return Detections(
        image=table[:, 0].astype(np.int64),
        boxes=table[:, 3:].astype(np.float32),
        scores=table[:, 2].astype(np.float32),
        classes=table[:, 1].astype(np.int64),
    )


def make_scene(
    seed: int,
    images: int = 12,
    nc: int = 4,
    per_image: int = 8,
    found: int = 40,
    crowd: float = 0.1,
    ties: bool = False,
) -> tuple[SimpleNamespace, Detections]:
    """Random boxes of all sizes, some crowd, images without any; detections near them, some of a wrong class."""
    rng = np.random.default_rng(seed)
    rows: list[list[tuple]] = []
    detections = []
    for image in range(images):
        count = 0 if image % 5 == 3 else rng.poisson(per_image)
        corner, extent = rng.uniform(0, 400, (count, 2)), np.exp(rng.uniform(2, 5.5, (count, 2)))
        own = []
        for (x, y), (w, h) in zip(corner, extent, strict=True):
            area = w * h * rng.uniform(0.4, 1)  # COCO's area is the mask's, which is smaller than the box
            own.append((int(rng.integers(nc)), x, y, x + w, y + h, rng.random() < crowd, area))
        rows.append(own)
        for _ in range(0 if image % 7 == 5 else found):
            x, y, w, h = rng.uniform(0, 400), rng.uniform(0, 400), rng.uniform(5, 200), rng.uniform(5, 200)
            c = int(rng.integers(nc))
            if own and rng.random() < 0.8:
                near = own[rng.integers(len(own))]
                c = near[0] if rng.random() < 0.8 else c
                x, y = rng.normal(near[1:3], 4)
                w, h = np.maximum(2, rng.normal([near[3] - near[1], near[4] - near[2]], 8))
            score = rng.random()
            detections.append((image, c, round(score, 1) if ties else score, x, y, x + w, y + h))
    return make_truth(rows), make_detections(detections)


def by_pycocotools(truth: SimpleNamespace, detections: Detections, nc: int) -> dict[str, np.ndarray]:
    """What pycocotools says of the exported JSON."""
    names = [f"class {c}" for c in range(nc)]
    files = [f"{i}.jpg" for i in range(len(truth.sizes))]
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO()
        expected.dataset = json.loads(json.dumps(to_coco_json(truth, names, files)))
        expected.createIndex()
        found = expected.loadRes(json.loads(json.dumps(detections_to_coco(detections))))
        evaluation = COCOeval(expected, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., 0, -1]  # [IoU, recall, class], all areas, 100 detections
    precision = np.where(precision < 0, np.nan, precision)
    stats = np.where(evaluation.stats < 0, np.nan, evaluation.stats)
    return {"stats": stats[:6], "ap": precision.mean(axis=(0, 1)), "ap50": precision[0].mean(axis=0)}


def assert_as_pycocotools(truth: SimpleNamespace, detections: Detections, nc: int) -> None:
    ours = coco_evaluate(truth, detections, [f"class {c}" for c in range(nc)])
    theirs = by_pycocotools(truth, detections, nc)
    six = [ours.map, ours.map50, ours.map75, ours.map_small, ours.map_medium, ours.map_large]
    np.testing.assert_allclose(six, theirs["stats"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.ap, theirs["ap"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.ap50, theirs["ap50"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_coco_scores_equal_pycocotools(seed: int, ties: bool) -> None:
    truth, detections = make_scene(seed, ties=ties)
    assert_as_pycocotools(truth, detections, nc=4)


def test_coco_scores_with_more_than_100_detections_of_a_class_in_an_image_equal_pycocotools() -> None:
    truth, detections = make_scene(seed=7, images=4, nc=2, found=400, ties=True)
    assert_as_pycocotools(truth, detections, nc=2)


def test_class_without_truth_is_nan_and_left_out_of_the_mean() -> None:
    truth, detections = make_scene(seed=3, nc=3)
    detections.classes[::9] = 4  # found, but nowhere to be found
    scores = coco_evaluate(truth, detections, list("abcde"))
    assert np.isnan(scores.ap[3:]).all() and np.isnan(scores.ap50[3:]).all()
    assert scores.map == pytest.approx(scores.ap[:3].mean(), abs=1e-12)
    assert_as_pycocotools(truth, detections, nc=5)


def test_no_detections_score_zero() -> None:
    truth, _ = make_scene(seed=1)
    scores = coco_evaluate(truth, Detections.concatenate([]), list("abcd"))
    assert (scores.map, scores.map50, scores.map75, scores.map_small) == (0, 0, 0, 0)
    assert (scores.ap == 0).all()
    curves = pr_curves(truth, Detections.concatenate([]), 4)
    assert (curves.best_precision, curves.best_recall, curves.best_f1, curves.ap50.sum()) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "images", [[], [[]], [[], []], [[(0, 0, 0, 50, 50, True)]]], ids=["no image", "empty", "two empty", "only crowd"]
)
def test_nothing_to_find_is_nan_and_no_error(images: list) -> None:
    truth = make_truth(images)
    detections = make_detections([(0, 0, 0.9, 0, 0, 50, 50)] if images else [])
    scores = coco_evaluate(truth, detections, ["a"])
    assert math.isnan(scores.map) and np.isnan(scores.ap).all()
    curves = pr_curves(truth, detections, 1)
    assert np.isnan(curves.f1).all() and curves.best_f1 == 0
    on_background = len(images) > 0 and not truth.crowd.any()
    assert confusion_matrix(truth, detections, 1).tolist() == [[0, int(on_background)], [0, 0]]


def test_an_iou_of_062_scores_at_three_of_ten_thresholds() -> None:
    truth = make_truth([[(0, 0, 0, 100, 100)]])
    scores = coco_evaluate(truth, make_detections([(0, 0, 0.5, 0, 0, 62, 100)]), ["a"])
    assert scores.map == pytest.approx(0.3, abs=1e-9)
    assert (scores.map50, scores.map75) == (pytest.approx(1, abs=1e-9), 0)
    assert math.isnan(scores.map_small) and scores.map_large == scores.map  # 100 × 100 px is large to COCO


def test_the_area_of_the_truth_decides_its_size() -> None:
    truth = make_truth([[(0, 0, 0, 100, 100, False, 1000.0)]])
    scores = coco_evaluate(truth, make_detections([(0, 0, 0.5, 0, 0, 100, 100)]), ["a"])
    assert scores.map_small == pytest.approx(1, abs=1e-9) and math.isnan(scores.map_large)


def test_order_of_detections_does_not_matter() -> None:
    truth, detections = make_scene(seed=5)
    order = np.random.default_rng(0).permutation(len(detections))
    first, second = (coco_evaluate(truth, d, list("abcd")) for d in (detections, detections.take(order)))
    assert first.map == second.map and (first.ap == second.ap).all()


def test_evaluation_says_nothing(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    truth, detections = make_scene(seed=2)
    with caplog.at_level(logging.DEBUG):
        coco_evaluate(truth, detections, list("abcd"))
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_coco_json_is_complete_and_exact() -> None:
    truth = make_truth([[], [(1, 10, 20, 110.1, 60, True, 7.5)]])
    text = json.dumps(to_coco_json(truth, ["a", "b"], ["x.jpg", "y.jpg"]))
    assert json.loads(text) == {
        "images": [
            {"id": 1, "file_name": "x.jpg", "width": 640, "height": 480},
            {"id": 2, "file_name": "y.jpg", "width": 640, "height": 480},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 2,
                "category_id": 2,
                "bbox": [10.0, 20.0, float(np.float32(110.1)) - 10.0, 40.0],
                "area": 7.5,
                "iscrowd": 1,
            }
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    found = json.loads(json.dumps(detections_to_coco(make_detections([(1, 0, 0.1, 1, 2, 4, 8)]))))
    assert found == [{"image_id": 2, "category_id": 1, "bbox": [1, 2, 3, 6], "score": float(np.float32(0.1))}]


def slow_iou(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """IoU, and the share of `a` that `b` covers."""
    ax1, ay1, ax2, ay2 = (float(v) for v in a)
    bx1, by1, bx2, by2 = (float(v) for v in b)
    inside = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    area_a, area_b = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
    return inside / (area_a + area_b - inside), inside / area_a


def slow_match(truth: SimpleNamespace, detections: Detections, iou: float, across_classes: bool) -> list[int]:
    """The definition, in loops."""
    result = [UNMATCHED] * len(detections)
    taken = set()
    for d in sorted(range(len(detections)), key=lambda i: -detections.scores[i]):
        image = detections.image[d]
        best, choice = iou, None
        for t in range(truth.offsets[image], truth.offsets[image + 1]):
            same = truth.classes[t] == detections.classes[d]
            overlap, covered = slow_iou(detections.boxes[d], truth.boxes[t])
            if truth.crowd[t]:
                if same and covered >= iou and choice is None:
                    result[d] = ON_CROWD
            elif (same or across_classes) and t not in taken and overlap >= best:
                best, choice = overlap, t
        if choice is not None:
            result[d] = choice
            taken.add(choice)
    return result


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("across_classes", [False, True])
def test_matching_equals_slow_loops(seed: int, across_classes: bool) -> None:
    truth, detections = make_scene(seed, per_image=12, crowd=0.15, ties=seed % 2 == 1)
    expected = slow_match(truth, detections, 0.5, across_classes)
    assert match(truth, detections, 0.5, across_classes).tolist() == expected
    assert {UNMATCHED, ON_CROWD} < set(expected) and max(expected) > 0


def test_matching_in_small_portions_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, detections = make_scene(seed=0)
    whole = match(truth, detections, 0.5)
    monkeypatch.setattr(metrics, "_PAIRS_AT_ONCE", 7)
    assert (match(truth, detections, 0.5) == whole).all()


def test_a_truth_is_found_once_and_by_the_better_score() -> None:
    truth = make_truth([[(0, 0, 0, 10, 10)]])
    detections = make_detections([(0, 0, 0.3, 0, 0, 10, 10), (0, 0, 0.8, 0, 0, 10, 9)])
    assert match(truth, detections, 0.5).tolist() == [UNMATCHED, 0]


def test_of_equal_overlaps_the_last_truth_is_taken_as_coco_does() -> None:
    truth = make_truth([[(0, 0, 0, 10, 10), (0, 0, 0, 10, 10), (0, 0, 0, 10, 30)]])
    detections = make_detections([(0, 0, 0.9, 0, 0, 10, 10), (0, 0, 0.8, 0, 0, 10, 10), (0, 0, 0.7, 0, 0, 10, 10)])
    assert match(truth, detections, 0.3).tolist() == [1, 0, 2]


def test_a_detection_counts_at_a_threshold_equal_to_its_score() -> None:
    truth = make_truth([[(0, 0, 0, 10, 10), (0, 50, 50, 60, 60)]])
    detections = make_detections([(0, 0, 1.0, 0, 0, 10, 10), (0, 0, 0.0, 50, 50, 60, 60)])
    curves = pr_curves(truth, detections, 1)
    assert curves.recall[0, [0, 1, 998, 999]].tolist() == [1, 0.5, 0.5, 0.5]
    assert confusion_matrix(truth, detections, 1, conf=1.0).tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_curves_equal_slow_counts(seed: int) -> None:
    truth, detections = make_scene(seed, nc=3)
    curves = pr_curves(truth, detections, nc=4)
    matched = slow_match(truth, detections, 0.5, across_classes=False)
    for c in range(3):
        wanted = sum(1 for k, crowd in zip(truth.classes, truth.crowd, strict=True) if k == c and not crowd)
        own = [i for i in range(len(detections)) if detections.classes[i] == c and matched[i] != ON_CROWD]
        assert curves.truths[c] == wanted
        for point in range(0, 1000, 37):
            kept = [i for i in own if detections.scores[i] >= curves.confidence[point]]
            right = sum(1 for i in kept if matched[i] >= 0)
            p, r = (right / len(kept) if kept else 1.0), right / wanted
            f1 = 2 * p * r / (p + r) if p + r else 0.0
            point_values = curves.precision[c, point], curves.recall[c, point], curves.f1[c, point]
            assert point_values == pytest.approx((p, r, f1), abs=1e-12)
    assert np.isnan(curves.precision[3]).all() and np.isnan(curves.ap50[3])
    mean_f1 = [np.mean([curves.f1[c, i] for c in range(3)]) for i in range(1000)]
    best = mean_f1.index(max(mean_f1))
    assert curves.best_confidence == curves.confidence[best] and curves.best_f1 == pytest.approx(mean_f1[best])
    found = curves.recall[:3, best] > 0
    assert curves.best_precision == pytest.approx(np.mean(np.where(found, curves.precision[:3, best], 0)))
    assert curves.best_recall == pytest.approx(np.mean(curves.recall[:3, best]))


@pytest.mark.parametrize("ties", [False, True])
def test_ap50_of_the_curves_is_cocos(ties: bool) -> None:
    truth, detections = make_scene(seed=11, nc=3, found=80, ties=ties)
    ours, theirs = pr_curves(truth, detections, 3).ap50, coco_evaluate(truth, detections, list("abc")).ap50
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_curves_of_a_hand_worked_table() -> None:
    """Two truths; found in order of score: right 0.9, wrong 0.6, right 0.3."""
    truth = make_truth([[(0, 0, 0, 10, 10), (0, 50, 50, 60, 60)]])
    rows = [(0, 0, 0.9, 0, 0, 10, 10), (0, 0, 0.6, 200, 200, 210, 210), (0, 0, 0.3, 50, 50, 60, 60)]
    curves = pr_curves(truth, make_detections(rows), 1)

    def at(confidence: float) -> tuple[float, float]:
        i = int(np.abs(curves.confidence - confidence).argmin())
        return float(curves.precision[0, i]), float(curves.recall[0, i])

    assert at(0.95) == (1, 0) and at(0.7) == (1, 0.5) and at(0.5) == (0.5, 0.5) and at(0.1) == (pytest.approx(2 / 3), 1)
    assert curves.best_f1 == pytest.approx(0.8) and curves.best_confidence == 0
    assert curves.pr_precision[0, 0] == 1 and curves.pr_precision[0, 499] == 1  # recall 0.4995
    assert curves.pr_precision[0, 501] == pytest.approx(2 / 3) and curves.pr_precision[0, 999] == pytest.approx(2 / 3)
    assert curves.ap50[0] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_confusion_matrix_of_a_hand_worked_scene() -> None:
    truth = make_truth(
        [
            [(0, 0, 0, 10, 10), (1, 50, 0, 60, 10), (1, 100, 0, 110, 10)],
            [(0, 0, 0, 100, 100, True), (1, 200, 0, 210, 10)],
        ]
    )
    rows = [
        (0, 0, 0.9, 0, 0, 10, 10),  # right
        (0, 0, 0.8, 50, 0, 60, 10),  # a 1 taken for a 0
        (0, 1, 0.7, 50, 0, 60, 10),  # the truth is taken: on background
        (0, 1, 0.2, 100, 0, 110, 10),  # too unsure: its truth is missed
        (1, 0, 0.9, 20, 20, 40, 40),  # on a crowd of its class: not counted
        (1, 1, 0.9, 20, 20, 40, 40),  # on a crowd of another class: on background
        (1, 1, 0.9, 200, 0, 210, 4),  # IoU 0.4, under 0.45: on background, and its truth is missed
    ]
    expected = [[1, 1, 0], [0, 0, 3], [0, 2, 0]]
    assert confusion_matrix(truth, make_detections(rows), 2).tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_confusion_matrix_counts_everything_once(seed: int) -> None:
    truth, detections = make_scene(seed, nc=4)
    counts = confusion_matrix(truth, detections, 4, conf=0.3, iou=0.45)
    kept = detections.take(detections.scores >= 0.3)
    matched = slow_match(truth, kept, 0.45, across_classes=True)
    expected = np.zeros((5, 5), int)
    for d, t in enumerate(matched):
        if t != ON_CROWD:
            expected[kept.classes[d], truth.classes[t] if t >= 0 else 4] += 1
    for t in range(len(truth.boxes)):
        if not truth.crowd[t] and t not in matched:
            expected[4, truth.classes[t]] += 1
    assert counts.tolist() == expected.tolist()
    assert counts[:, :4].sum(axis=0).tolist() == np.bincount(truth.classes[~truth.crowd], minlength=4).tolist()


def test_concatenate_keeps_order_and_types() -> None:
    _, detections = make_scene(seed=0)
    half = len(detections) // 2
    joined = Detections.concatenate(
        [detections.take(np.arange(half)), detections.take(np.arange(half, len(detections)))]
    )
    for field in ("image", "boxes", "scores", "classes"):
        before, after = getattr(detections, field), getattr(joined, field)
        assert (before == after).all() and before.dtype == after.dtype
    assert len(Detections.concatenate([])) == 0


def test_fitness_reads_either_name_and_nan_as_nothing() -> None:
    assert fitness({"metrics/mAP50": 0.7, "metrics/mAP50-95": 0.5}, "mAP50-95") == 0.5
    assert fitness({"mAP50": np.float64(0.7)}, "mAP50") == 0.7
    assert fitness({"mAP50": math.nan}, "mAP50") == 0.0
    with pytest.raises(KeyError):
        fitness({"mAP50": 0.7}, "recall")


def test_ids_of_another_file_take_the_place_of_ours() -> None:
    found = [{"image_id": 2, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
    expected = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    renumber(expected, found, ["x", 7], [90, 30])
    assert found == [{"image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4], "score": 0.5}]
    assert expected == {
        "images": [{"id": "x"}, {"id": 7}],
        "annotations": [{"id": 1, "image_id": "x", "category_id": 30}],
        "categories": [{"id": 90, "name": "a"}, {"id": 30, "name": "b"}],
    }


def test_a_class_that_is_not_found_has_no_precision_to_boast_of() -> None:
    """Above its highest score a class's precision counts as 1 in the curve; in the table, and its mean, as 0."""
    truth = make_truth([[(0, 0, 0, 10, 10)], [(0, 0, 0, 10, 10)], [(1, 0, 0, 10, 10)]])
    rows = [(0, 0, 0.9, 0, 0, 10, 10), (1, 0, 0.9, 0, 0, 10, 10), (2, 1, 0.5, 20, 20, 30, 30)]
    curves = pr_curves(truth, make_detections(rows), 2)
    assert curves.best_confidence < 0.9 and curves.precision[1, -1] == 1
    high = pr_curves(truth, make_detections(rows), 2, conf=0.6)
    for found in (curves, high):
        assert found.class_precision.tolist() == [1, 0] and found.class_recall.tolist() == [1, 0]
        assert (found.best_precision, found.best_recall) == (0.5, 0.5)


def test_an_overlap_of_exactly_the_threshold_counts() -> None:
    truth = make_truth([[(0, 0, 0, 10, 10)]])
    found = make_detections([(0, 0, 0.9, 0, 0, 10, 5)])
    assert match(truth, found, 0.5).tolist() == [0]
    assert pr_curves(truth, found, 1).ap50[0] == coco_evaluate(truth, found, ["a"]).map50 == 1


def test_a_class_without_a_detection_has_no_precision() -> None:
    truth = make_truth([[(0, 0, 0, 10, 10)]] * 2)
    assert (pr_curves(truth, make_detections([]), 1).precision == 0).all()


def test_equal_scores_count_the_same_in_whatever_order_the_images_came() -> None:
    """Batches are of one shape, so images of a validation come in another order than that of the index."""
    count, draw = 40, np.random.default_rng(0)
    truth = make_truth([[(0, 0, 0, 10, 10)]] * count)
    boxes = [((0, 0, 10, 10), (12, 12, 18, 18))[i] for i in draw.integers(0, 2, count)]
    found = make_detections([(i, 0, draw.choice([0.5, 0.6]), *box) for i, box in enumerate(boxes)])
    other = found.take(draw.permutation(count))
    np.testing.assert_array_equal(pr_curves(truth, found, 1).pr_precision, pr_curves(truth, other, 1).pr_precision)
