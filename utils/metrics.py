"""How good are detections: COCO scores, precision/recall curves, the confusion matrix, and the one number to maximise.

Ground truth is any object with the flat arrays of a packed index of N images and T boxes: `sizes` int[N, 2] (width,
height), `boxes` float32[T, 4] (xyxy, pixels), `classes` int[T], `crowd` bool[T], `areas` float32[T] (square pixels) and
`offsets` int64[N + 1] (the boxes of image i are offsets[i]:offsets[i + 1]).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

MAX_DETECTIONS = 100  # COCO scores this many detections per image and class, the best first
CONFIDENCES = np.linspace(0.0, 1.0, 1000)
RECALLS = np.linspace(0.0, 1.0, 1000)
COCO_RECALLS = np.linspace(0.0, 1.0, 101)
UNMATCHED, ON_CROWD = -1, -2
_PAIRS_AT_ONCE = 1 << 21  # bounds the memory of matching: about 300 MB


class GroundTruth(Protocol):
    """The part of a packed index that is needed to score detections."""

    sizes: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    offsets: np.ndarray


@dataclass(frozen=True)
class Detections:
    """K detections over all images, in any order.

    image: int64[K], index of the image; boxes: float32[K, 4], xyxy in pixels of the original image;
    scores: float32[K]; classes: int64[K].
    """

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """Join parts (of batches or of processes) in order; no parts give no detections."""
        return cls(
            image=np.concatenate([np.zeros(0, np.int64), *(part.image for part in parts)]),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *(part.boxes for part in parts)]),
            scores=np.concatenate([np.zeros(0, np.float32), *(part.scores for part in parts)]),
            classes=np.concatenate([np.zeros(0, np.int64), *(part.classes for part in parts)]),
        )

    def take(self, which: np.ndarray) -> Detections:
        """Select detections by a mask or by indices."""
        return Detections(self.image[which], self.boxes[which], self.scores[which], self.classes[which])


@dataclass(frozen=True)
class CocoScores:
    """Average precision as COCO defines it, in 0…1; NaN where there is no truth to find.

    map: mean over classes and IoU 0.50:0.05:0.95; map50, map75: at one IoU; map_small, map_medium, map_large: over
    truths of an area below 32², between, and above 96² square pixels; ap, ap50: float64[nc], per class.
    """

    map: float
    map50: float
    map75: float
    map_small: float
    map_medium: float
    map_large: float
    ap: np.ndarray
    ap50: np.ndarray


@dataclass(frozen=True)
class Curves:
    """Precision and recall at IoU 0.5 against the confidence threshold; rows of classes without truth are NaN.

    confidence: float64[1000]; precision, recall, f1: float64[nc, 1000] over `confidence`;
    pr_recall: float64[1000]; pr_precision: float64[nc, 1000], the best precision at `pr_recall` or more;
    ap50: float64[nc], COCO's 101-point mean of it; truths: int64[nc], how many boxes of each class there are to find.
    best_confidence: the threshold of the best mean F1; class_precision, class_recall: float64[nc] there, the precision
    of a class of which nothing is found being 0 and no longer 1; best_precision, best_recall, best_f1: means there over
    the classes with truth (0 if there are none).
    """

    confidence: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    pr_recall: np.ndarray
    pr_precision: np.ndarray
    ap50: np.ndarray
    truths: np.ndarray
    best_confidence: float
    class_precision: np.ndarray
    class_recall: np.ndarray
    best_precision: float
    best_recall: float
    best_f1: float


# ---- COCO ------------------------------------------------------------------------------------------------------------


def to_coco_json(truth: GroundTruth, names: Sequence[str], file_names: Sequence[str]) -> dict[str, Any]:
    """The ground truth in COCO's format; ids of images, boxes and categories are their indices + 1."""
    images = [
        {"id": i + 1, "file_name": file_name, "width": width, "height": height}
        for i, (file_name, (width, height)) in enumerate(zip(file_names, truth.sizes.tolist(), strict=True))
    ]
    columns = (
        (_truth_images(truth) + 1).tolist(),
        (truth.classes.astype(np.int64) + 1).tolist(),
        _xywh(truth.boxes).tolist(),
        truth.areas.astype(np.float64).tolist(),
        truth.crowd.astype(np.int64).tolist(),
    )
    annotations = [
        {"id": i + 1, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
        for i, (image, category, box, area, crowd) in enumerate(zip(*columns, strict=True))
    ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def detections_to_coco(detections: Detections) -> list[dict[str, Any]]:
    """Detections in COCO's results format, with the ids of `to_coco_json` and nothing rounded."""
    columns = (
        (detections.image + 1).tolist(),
        (detections.classes + 1).tolist(),
        _xywh(detections.boxes).tolist(),
        detections.scores.astype(np.float64).tolist(),
    )
    return [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in zip(*columns, strict=True)
    ]


def renumber(
    expected: dict[str, Any], found: list[dict[str, Any]], images: Sequence[Any], categories: Sequence[Any]
) -> None:
    """Put other ids in place of those of `to_coco_json` and `detections_to_coco`: of the images, of the classes."""
    for entry in expected["images"]:
        entry["id"] = images[entry["id"] - 1]
    for category in expected["categories"]:
        category["id"] = categories[category["id"] - 1]
    for box in (*expected["annotations"], *found):
        box["image_id"], box["category_id"] = images[box["image_id"] - 1], categories[box["category_id"] - 1]


def coco_evaluate(truth: GroundTruth, detections: Detections, names: Sequence[str]) -> CocoScores:
    """Score detections by COCO's definition (bbox, 100 detections per image and class), without a word on stdout.

    A class with truth and no detections scores 0; one without truth scores NaN and is left out of every mean.
    """
    if not len(truth.sizes) or not len(names):
        return _coco_scores(np.full((10, 101, len(names), 4), -1.0))

    from faster_coco_eval import COCO, COCOeval_faster

    expected = to_coco_json(truth, names, [""] * len(truth.sizes))
    found = detections_to_coco(_top_detections(detections))
    for i, detection in enumerate(found):
        detection["id"] = i + 1
        detection["area"] = detection["bbox"][2] * detection["bbox"][3]
        detection["iscrowd"] = 0
    coco_truth = COCO(expected, print_function=_say_nothing)
    coco_found = COCO({**expected, "annotations": found}, print_function=_say_nothing)
    evaluation = COCOeval_faster(coco_truth, coco_found, "bbox", print_function=_say_nothing)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    return _coco_scores(evaluation.eval["precision"][..., 0])


def fitness(scores: Mapping[str, float], which: str) -> float:
    """The number that training maximises: `scores[which]`, or 0 where it is NaN (nothing to find).

    `scores` may carry the names of results.csv (`metrics/mAP50-95`) or bare ones (`mAP50-95`).
    """
    value = scores[which] if which in scores else scores[f"metrics/{which}"]
    return 0.0 if math.isnan(value) else float(value)


def _say_nothing(*_: object) -> None:
    pass


def _coco_scores(precision: np.ndarray) -> CocoScores:
    """Means of precision[10 IoUs, 101 recalls, nc, 4 area ranges], where −1 stands for a class without truth."""
    precision = np.where(precision < 0, np.nan, precision)
    everything, small, medium, large = np.moveaxis(precision, -1, 0)
    return CocoScores(
        map=_nanmean(everything),
        map50=_nanmean(everything[0]),
        map75=_nanmean(everything[5]),
        map_small=_nanmean(small),
        map_medium=_nanmean(medium),
        map_large=_nanmean(large),
        ap=everything.mean(axis=(0, 1)),
        ap50=everything[0].mean(axis=0),
    )


def _nanmean(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN, without a warning, where nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _top_detections(detections: Detections) -> Detections:
    """Drop what COCO would not look at: beyond the best 100 of an image and class. The others keep their order."""
    order = np.lexsort((-detections.scores, detections.classes, detections.image))  # stable, as COCO's sort is
    image, classes = detections.image[order], detections.classes[order]
    first = np.ones(len(order), bool)
    first[1:] = (image[1:] != image[:-1]) | (classes[1:] != classes[:-1])
    starts = np.flatnonzero(first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return detections.take(np.sort(order[rank < MAX_DETECTIONS]))


def _xywh(boxes: np.ndarray) -> np.ndarray:
    """COCO's float64[n, 4] (x, y, width, height) of float32[n, 4] xyxy."""
    boxes = boxes.astype(np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _truth_images(truth: GroundTruth) -> np.ndarray:
    """int64[T]: the image of every truth box."""
    return np.repeat(np.arange(len(truth.sizes), dtype=np.int64), np.diff(truth.offsets))


# ---- curves and confusion --------------------------------------------------------------------------------------------


def pr_curves(truth: GroundTruth, detections: Detections, nc: int, conf: float = 0.0) -> Curves:
    """Precision, recall and F1 of every class at IoU 0.5 over 1000 confidence thresholds.

    `conf` is the score below which there are no detections: no threshold below it can be the best one.

    A detection counts at all thresholds up to its score. Above a class's highest score its precision is 1; a class
    with truth and not one detection has precision 0. Detections on crowd regions are neither right nor wrong.
    """
    matches = match(truth, detections, iou=0.5)
    counted = matches != ON_CROWD
    detections, right = detections.take(counted), matches[counted] >= 0
    order = np.lexsort((detections.image, -detections.scores, detections.classes))
    scores, right = detections.scores[order].astype(np.float64), right[order]
    bounds = np.searchsorted(detections.classes[order], np.arange(nc + 1))
    truths = np.bincount(truth.classes[~truth.crowd], minlength=nc)

    precision, recall, pr_precision = (np.full((nc, 1000), np.nan) for _ in range(3))
    ap50 = np.full(nc, np.nan)
    for c in np.flatnonzero(truths):
        own = slice(bounds[c], bounds[c + 1])
        precision[c], recall[c] = _over_confidence(scores[own], right[own], truths[c])
        pr_precision[c] = _over_recall(right[own], truths[c], RECALLS)
        ap50[c] = _over_recall(right[own], truths[c], COCO_RECALLS).mean()

    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-16)
    known = truths > 0
    mean_f1 = f1[known].mean(axis=0) if known.any() else np.zeros(1000)
    first = int(np.searchsorted(CONFIDENCES, conf))
    best = first + int(mean_f1[first:].argmax())
    at_recall = recall[:, best]
    at_precision = np.where(at_recall == 0, 0.0, precision[:, best])  # a class that is never found is no success
    return Curves(
        confidence=CONFIDENCES,
        precision=precision,
        recall=recall,
        f1=f1,
        pr_recall=RECALLS,
        pr_precision=pr_precision,
        ap50=ap50,
        truths=truths,
        best_confidence=float(CONFIDENCES[best]),
        class_precision=at_precision,
        class_recall=at_recall,
        best_precision=float(at_precision[known].mean()) if known.any() else 0.0,
        best_recall=float(at_recall[known].mean()) if known.any() else 0.0,
        best_f1=float(mean_f1[best]),
    )


CONFUSION_CONF, CONFUSION_IOU = 0.25, 0.45  # what counts as found in a confusion matrix


def confusion_matrix(
    truth: GroundTruth, detections: Detections, nc: int, conf: float = CONFUSION_CONF, iou: float = CONFUSION_IOU
) -> np.ndarray:
    """Count what was taken for what: int64[nc + 1, nc + 1], predicted class × true class; the last is background.

    Detections below `conf` are left out. Matching is as in `match`, across classes. The last row holds truths not
    found, the last column detections of nothing.
    """
    detections = detections.take(detections.scores >= conf)
    matches = match(truth, detections, iou, across_classes=True)
    found, loose = matches >= 0, matches == UNMATCHED
    missed = np.setdiff1d(np.flatnonzero(~truth.crowd), matches[found])
    predicted = [detections.classes[found], detections.classes[loose], np.full(len(missed), nc)]
    actual = [truth.classes[matches[found]], np.full(np.count_nonzero(loose), nc), truth.classes[missed]]
    size = nc + 1
    cells = np.concatenate(predicted) * size + np.concatenate(actual)
    return np.bincount(cells, minlength=size * size).reshape(size, size)


def match(truth: GroundTruth, detections: Detections, iou: float, across_classes: bool = False) -> np.ndarray:
    """Match detections to truths: int64[K], the index of the truth box, or UNMATCHED, or ON_CROWD.

    In each image the detections choose in the order of their scores; each takes the truth of its own class (of any
    class, if `across_classes`) that it overlaps most, by at least `iou`, among those not taken yet. One that finds none
    but lies by a share of `iou` or more in a crowd region of its class is ON_CROWD. This is COCO's matching.
    """
    truth_image, truth_class = _truth_images(truth), truth.classes.astype(np.int64)
    nc = 1 + int(max(truth_class.max(initial=0), detections.classes.max(initial=0)))
    fine = (detections.image * nc + detections.classes, truth_image * nc + truth_class)
    keys = (detections.image, truth_image) if across_classes else fine

    matches = np.full(len(detections), UNMATCHED)
    wanted, crowd = np.flatnonzero(~truth.crowd), np.flatnonzero(truth.crowd)
    pairs = list(_overlapping(detections, truth, keys[0], keys[1], wanted, iou))
    if pairs:
        found, expected, overlap = (np.concatenate(column) for column in zip(*pairs, strict=True))
        rank = np.empty(len(detections), np.int64)
        rank[np.argsort(-detections.scores, kind="stable")] = np.arange(len(detections))
        order = np.lexsort((-expected, -overlap, rank[found]))  # of equal overlaps COCO takes the last truth
        _match_greedily(matches, found[order], expected[order])
    for found, _, _ in _overlapping(detections, truth, fine[0], fine[1], crowd, iou):
        matches[found[matches[found] == UNMATCHED]] = ON_CROWD
    return matches


def _match_greedily(matches: np.ndarray, found: np.ndarray, expected: np.ndarray) -> None:
    """Fill `matches` from candidate pairs in the order in which they may be taken."""
    taken_found: set[int] = set()
    taken_expected: set[int] = set()
    for detection, box in zip(found.tolist(), expected.tolist(), strict=True):
        if detection not in taken_found and box not in taken_expected:
            taken_found.add(detection)
            taken_expected.add(box)
            matches[detection] = box


def _overlapping(
    detections: Detections,
    truth: GroundTruth,
    detection_keys: np.ndarray,
    truth_keys: np.ndarray,
    subset: np.ndarray,
    threshold: float,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs (detection, truth box of `subset`, overlap) of the same key that overlap by at least `threshold`.

    Overlap is IoU, or the share of the detection that is covered where the truth is a crowd region.
    """
    by_key = subset[np.argsort(truth_keys[subset], kind="stable")]
    start = np.searchsorted(truth_keys[by_key], detection_keys, "left")
    count = np.searchsorted(truth_keys[by_key], detection_keys, "right") - start
    with_truth = np.flatnonzero(count)
    total = np.cumsum(count[with_truth])
    parts = np.searchsorted(total, np.arange(_PAIRS_AT_ONCE, total[-1] if len(total) else 0, _PAIRS_AT_ONCE))
    for part in np.split(with_truth, parts):
        first = np.cumsum(count[part]) - count[part]
        step = np.arange(int(count[part].sum())) - np.repeat(first, count[part])
        found = np.repeat(part, count[part])
        expected = by_key[np.repeat(start[part], count[part]) + step]
        overlap = _overlap(detections.boxes[found], truth.boxes[expected], truth.crowd[expected])
        enough = overlap >= threshold
        yield found[enough], expected[enough], overlap[enough]


def _overlap(found: np.ndarray, expected: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """float64[n]: IoU of paired xyxy boxes, or the covered share of the found box where the other is a crowd region."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    sides = np.minimum(found[:, 2:], expected[:, 2:]) - np.maximum(found[:, :2], expected[:, :2])
    shared = sides.clip(0).prod(axis=1)
    area_found = (found[:, 2:] - found[:, :2]).prod(axis=1)
    area_expected = (expected[:, 2:] - expected[:, :2]).prod(axis=1)
    whole = np.where(crowd, area_found, area_found + area_expected - shared)
    return shared / np.maximum(whole, np.finfo(np.float64).tiny)


def _over_confidence(scores: np.ndarray, right: np.ndarray, truths: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall float64[1000] at each confidence, from one class's scores in falling order."""
    if not len(scores):
        return np.zeros(1000), np.zeros(1000)
    count = np.searchsorted(-scores, -CONFIDENCES, side="right")  # how many have a score of at least the confidence
    hits = np.append(0, np.cumsum(right))[count]
    return np.where(count > 0, hits / np.maximum(count, 1), 1.0), hits / truths


def _over_recall(right: np.ndarray, truths: int, recalls: np.ndarray) -> np.ndarray:
    """The best precision reached at each recall or beyond, 0 where that recall is never reached."""
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(hits / truths, recalls, side="left")]
