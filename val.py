"""Evaluate a checkpoint: `python val.py --weights runs/train/exp/weights/best.pt`.

`evaluate` is the one evaluation path: training calls the same function on the same batches.
"""

from __future__ import annotations

from utils import signals
from utils.errors import EXIT_INTERRUPTED

if __name__ == "__main__":
    signals.end_at_once(EXIT_INTERRUPTED, signals.INTERRUPT)  # while the slow imports run

# isort: split
import contextlib
import csv
import io
import json
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.coco_json import own_ids
from data.config import DataConfig, load_data_config
from data.dataset import DetectionDataset
from data.index import Index
from data.loader import Loader, default_workers
from data.splits import read_splits
from models.decode import BatchDetections, detect
from models.loss import DetectionLoss
from models.yolo import MAX_STRIDE, YOLO, ModelConfig, check_imgsz
from utils import dist
from utils.atomic import write_file
from utils.checkpoint import find_checkpoint, load_checkpoint, model_weights
from utils.device import Arriving, Precision, prefetch, select_device, within_memory
from utils.errors import UserError, many, run_cli
from utils.hyp import Hyp
from utils.loggers import Progress
from utils.metrics import (
    CONFUSION_CONF,
    CONFUSION_IOU,
    CocoScores,
    Curves,
    Detections,
    coco_evaluate,
    confusion_matrix,
    detections_to_coco,
    pr_curves,
    renumber,
    to_coco_json,
)
from utils.options import ValOptions, parse
from utils.plots import plot_confusion, plot_curves, plot_images
from utils.rundir import RunDir, distinct, met_again, new_run


@dataclass(frozen=True)
class DetectSettings:
    """How predictions become detections. `nms` takes the one-to-many branch and NMS at `iou`."""

    nms: bool = False
    conf: float = 0.001
    iou: float = 0.7
    max_det: int = 300
    one_class: bool = False  # what is found counts as one class, whatever it was found to be


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation found. losses: box, cls, dfl: those of its batches, weighted by their images."""

    scores: CocoScores
    curves: Curves
    losses: tuple[float, float, float]
    detections: Detections

    @property
    def is_finite(self) -> bool:
        """Were the losses numbers? They are not where a net's weights have grown beyond them."""
        return bool(np.isfinite(self.losses).all())

    def row(self) -> dict[str, float]:
        """The columns of results.csv."""
        metrics = {
            "precision": self.curves.best_precision,
            "recall": self.curves.best_recall,
            "mAP50": self.scores.map50,
            "mAP50-95": self.scores.map,
        }
        losses = dict(zip(("box", "cls", "dfl"), self.losses, strict=True))
        return {f"metrics/{k}": v for k, v in metrics.items()} | {f"val/{k}_loss": v for k, v in losses.items()}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    truth: Index,
    names: tuple[str, ...],
    criterion: DetectionLoss,
    precision: Precision,
    settings: DetectSettings,
    progress: Progress | None = None,
) -> Evaluation:
    """Run `model` over all batches of `loader` and score it by COCO's definition.

    Args:
        model: in any mode; evaluated in eval mode and left so.
        truth: the index that the loader's `batch.indices` point into.
    """
    model.eval()
    parts: list[Detections] = []
    losses = torch.zeros(3, device=precision.device)
    arriving: deque[Arriving] = deque()
    for batch in prefetch(loader.epoch(0), precision.device):
        with precision.autocast():
            predictions = model(batch.images)
        losses += criterion(predictions, batch.boxes, batch.classes).parts * len(batch)
        found = detect(predictions, **vars(settings))
        arriving.append(Arriving(*found, batch.indices, batch.letterbox))
        if len(arriving) > 1:  # read one batch late: the device has work meanwhile
            parts += to_original(arriving.popleft(), truth.sizes)
        if progress is not None:
            progress.update(images=len(batch))
    parts += [one for last in arriving for one in to_original(last, truth.sizes)]
    detections = Detections.concatenate(parts)
    box, cls, dfl = (losses / max(len(truth), 1)).tolist()
    scores = coco_evaluate(truth, detections, names)
    curves = pr_curves(truth, detections, len(names), settings.conf)
    return Evaluation(scores, curves, (box, cls, dfl), detections)


def to_original(arriving: Arriving, sizes: np.ndarray) -> list[Detections]:
    """Bring a batch's detections from the network's input back to pixels of the original images, clipped to them.

    Args:
        arriving: the four of `BatchDetections`, then `indices` and `letterbox` of the batch.
        sizes: `[N, 2]`, width and height of the images that the indices are of.
    """
    *found, indices, letterbox = arriving.read()
    parts = []
    for one, index, way in zip(BatchDetections(*found).split(), indices.tolist(), letterbox.tolist(), strict=True):
        boxes = to_original_boxes(one.boxes, way, sizes[index].tolist())
        images = np.full(len(boxes), index, np.int64)
        parts.append(Detections(images, boxes.numpy(), one.scores.numpy(), one.classes.numpy()))
    return parts


def to_original_boxes(boxes: Tensor, letterbox: Sequence[float], size: Sequence[int]) -> Tensor:
    """Undo a letterbox: boxes `[K, 4]`, letterbox (gain x, gain y, pad x, pad y), size (width, height) of the image."""
    gain_x, gain_y, pad_x, pad_y = letterbox
    shift, gain = boxes.new_tensor([pad_x, pad_y] * 2), boxes.new_tensor([gain_x, gain_y] * 2)
    return torch.minimum(((boxes - shift) / gain).clamp(min=0), boxes.new_tensor(tuple(size) * 2))


def load_model(path: str, device: torch.device) -> tuple[YOLO, dict]:
    """Build the model of a checkpoint with its averaged weights, in eval mode; return it and the whole checkpoint.

    Raises:
        UserError: no sound checkpoint, or one whose weights are of another model than it says.
    """
    content = load_checkpoint(find_checkpoint(path))
    model = YOLO(ModelConfig.from_dict(content["model"], path))
    try:
        model.load_state_dict(model_weights(content, path))
    except RuntimeError:
        raise UserError(f"{path}: its weights are not those of the {model.config.name} that it describes") from None
    return model.to(device, memory_format=torch.channels_last).eval(), content


def check_branch(content: dict, weights: str, nms: bool) -> None:
    """Raise the `UserError` of a model whose NMS-free branch was never trained, where it is asked for."""
    if not nms and content["hyp"].get("one_to_one") == 0:
        raise UserError(f"--weights {weights}: was trained without the NMS-free branch (one_to_one 0): add --nms")


SCORES = ("class", "images", "objects", "P", "R", "mAP50", "mAP50-95")
Scores = tuple[str, int, int, float, float, float, float]  # a row of that table


def score_table(evaluation: Evaluation, truth: Index, names: tuple[str, ...]) -> list[Scores]:
    """Rows of the columns of `SCORES`: of all classes together, then of each; NaN where a class has no object."""
    scores, curves = evaluation.scores, evaluation.curves
    image_of = np.repeat(np.arange(len(truth)), np.diff(truth.offsets))
    objects, (precision, recall) = int(curves.truths.sum()), (curves.best_precision, curves.best_recall)
    rows: list[Scores] = [("all", len(truth), objects, precision, recall, scores.map50, scores.map)]
    for i, name in enumerate(names):
        images = len(np.unique(image_of[(truth.classes == i) & ~truth.crowd]))
        precision, recall = curves.class_precision[i], curves.class_recall[i]
        rows.append((name, images, int(curves.truths[i]), precision, recall, scores.ap50[i], scores.ap[i]))
    return rows


def print_scores(evaluation: Evaluation, table: Sequence[Scores], verbose: bool) -> None:
    """Print a `score_table`: of all classes, and of each one if asked for or if they are few."""
    scores, curves = evaluation.scores, evaluation.curves
    print("{:>20}{:>9}{:>9}{:>9}{:>9}{:>9}{:>10}".format(*SCORES))
    for name, *values in table if verbose or 2 < len(table) <= 21 else table[:1]:
        print("{:>20}{:>9}{:>9}{:>9.3f}{:>9.3f}{:>9.4f}{:>10.4f}".format(name[:19], *values))
    sizes = ((scores.map_small, "small"), (scores.map_medium, "medium"), (scores.map_large, "large"))
    known = ", ".join(f"{name} {value:.4f}" for value, name in sizes if not np.isnan(value))
    best = f"best F1 {curves.best_f1:.3f} at confidence {curves.best_confidence:.3f}"
    best = best if curves.best_f1 else "no detection is right at IoU 0.5, so there is no best confidence"
    print(f"mAP50-95 by object size (COCO: below 32², below 96², larger pixels): {known}; {best}")


def write_scores(run: RunDir, table: Sequence[Scores]) -> None:
    """Write a `score_table` as `scores.csv`; a cell is empty where there is no number."""
    text = io.StringIO()
    rows = [["" if isinstance(x, float) and np.isnan(x) else x for x in row] for row in table]
    csv.writer(text, lineterminator="\n").writerows([SCORES, *rows])
    run.write_text("scores.csv", text.getvalue())


def save_pictures(run: RunDir, evaluation: Evaluation, loader: Loader, truth: Index, names: tuple[str, ...]) -> None:
    """Draw the curves, the confusion matrix and the first three batches with labels and with predictions."""
    plot_curves(evaluation.curves, names, run.path)
    found = evaluation.detections
    counted = f"confidence from {CONFUSION_CONF:g}, IoU from {CONFUSION_IOU:g}"
    plot_confusion(confusion_matrix(truth, found, len(names)), names, run.path / "confusion_matrix.png", counted)
    for number, batch in zip(range(3), loader.epoch(0), strict=False):
        plot_images(batch.images, batch.boxes, batch.classes, names, run.path / f"val_batch{number}_labels.jpg")
        chosen = [found.take((found.image == i) & (found.scores > CONFUSION_CONF)) for i in batch.indices.tolist()]
        ways = batch.letterbox.numpy()
        boxes = [d.boxes * np.tile(w[:2], 2) + np.tile(w[2:], 2) for d, w in zip(chosen, ways, strict=True)]
        plot_images(
            batch.images,
            boxes,
            [d.classes for d in chosen],
            names,
            run.path / f"val_batch{number}_pred.jpg",
            scores=[d.scores for d in chosen],
        )


def save_detections(run: RunDir, options: ValOptions, evaluation: Evaluation, truth: Index, config: DataConfig) -> None:
    """Write detections as COCO JSON (with the truth beside it, for other evaluators) and YOLO txt, as asked for."""
    if options.save_json:
        files = [truth.path(i) for i in range(len(truth))]
        expected, found = to_coco_json(truth, config.names, files), detections_to_coco(evaluation.detections)
        own = own_ids(config, options.task, files)
        if own:
            renumber(expected, found, *own)
        _dump(run.path / "truth.json", expected)
        _dump(run.path / "predictions.json", found)
        print(f"predictions.json has the ids of {'the annotations' if own else 'truth.json beside it'}")
    if options.save_txt:
        folder = run.path / "labels"
        folder.mkdir(exist_ok=True)
        stems = [Path(truth.path(i)).stem for i in range(len(truth))]
        for i, name in enumerate(distinct(stems)):
            one = evaluation.detections.take(evaluation.detections.image == i)
            rows = yolo_rows(one, tuple(truth.sizes[i].tolist()), options.save_conf)
            write_file(folder / f"{name}.txt", rows)
        for line in met_again(stems, "image"):
            print(line)


def yolo_rows(found: Detections, size: tuple[int, int], with_scores: bool) -> str:
    """Format detections as YOLO label rows: class, centre x, centre y, width, height as shares of (width, height)."""
    scale = np.array(size * 2, np.float64)
    corners = found.boxes.astype(np.float64) / scale
    rows = []
    for (x1, y1, x2, y2), label, score in zip(corners, found.classes, found.scores, strict=True):
        row = f"{label} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}"
        rows.append(row + (f" {score:.6f}\n" if with_scores else "\n"))
    return "".join(rows)


def _dump(path: Path, value: object) -> None:
    write_file(path, json.dumps(value))


def compare_names(config: DataConfig, trained: Sequence[str], weights: str) -> list[str]:
    """Warn of classes that are called otherwise than those that a model was trained on.

    Raises:
        UserError: they are more or fewer, or the same in another order: all scores would be of the wrong ones.
    """
    if config.nc != len(trained):
        classes = f"{many(config.nc, 'class')}, {weights} was trained on {len(trained)}"
        raise UserError(f"{config.file}: has {classes}")
    apart = [(i, own, old) for i, (own, old) in enumerate(zip(config.names, trained, strict=True)) if own != old]
    if not apart:
        return []
    i, own, old = apart[0]
    differ = f"class {i} is {own!r} here, {old!r} in {weights}"
    if sorted(config.names) == sorted(trained):
        raise UserError(f"{config.file}: its classes are in another order than those of the model: {differ}")
    more = f", and so on for {many(len(apart), 'class')}" if len(apart) > 1 else ""
    return [f"warning: {config.file}: {differ}{more}: is it the same kind of object?"]


def _epoch(content: dict) -> int:
    """After how many epochs of its run a checkpoint was written."""
    return content["epoch"] if content["kind"] == "model" else content["state"]["progress"]["epoch"]


@within_memory("a smaller --batch or --imgsz needs less")
def main(argv: list[str] | None = None) -> Evaluation:
    options = parse(ValOptions, sys.argv[1:] if argv is None else argv, "val.py", "Evaluate a checkpoint by COCO mAP.")
    dist.refuse("val.py")
    check_imgsz(options.imgsz)
    precision = Precision(select_device(options.device), options.amp)
    model, content = load_model(options.weights, precision.device)
    check_branch(content, options.weights, options.nms)
    config = load_data_config(
        options.data or content["data"], options.single_cls or content["single_cls"], options.download
    )
    one_class = options.single_cls and len(content["names"]) > 1
    for line in [] if one_class else compare_names(config, content["names"], options.weights):
        print(line)
    splits = read_splits(config, [options.task], options.project, options.check == "full", options.skip_bad)
    index = splits.indices[options.task]
    for line in splits.lines():
        print(line)
    hyp = Hyp.from_dict(content["hyp"])
    imgsz = options.imgsz or content["imgsz"]
    print(f"data         {config.file}: {options.task}, {many(len(index), 'image')}, {many(config.nc, 'class')}")
    print(f"image size   {imgsz}")
    print(f"model        {model.config.name}, epoch {_epoch(content)}; {options.weights}")
    if options.conf_thres > DetectSettings.conf:
        print(f"warning: --conf-thres {options.conf_thres:g}: what scores below it counts as not found, which lowers "
              f"mAP; figures to be compared are of {DetectSettings.conf:g}, the default")  # fmt: skip
    dataset = DetectionDataset(index, imgsz, hyp, seed=0, epochs=1, augment=False, rect=True, stride=MAX_STRIDE)
    workers = options.workers if options.workers >= 0 else default_workers(precision.device)
    pin = precision.device.type == "cuda"
    loader = Loader(dataset, options.batch_size, workers=workers, seed=0, shuffle=False, pin_memory=pin)
    run = new_run(options.project, options.name, options.exist_ok)
    run.write_options(options.to_dict())
    for line in splits.write_list(run):
        print(line)
    settings = DetectSettings(options.nms, options.conf_thres, options.iou_thres, options.max_det, one_class)
    with contextlib.closing(loader):
        with Progress(len(loader), options.task) as progress:
            criterion = DetectionLoss(hyp, model.config.nc)
            evaluation = evaluate(model, loader, index, config.names, criterion, precision, settings, progress)
        table = score_table(evaluation, index, config.names)
        print_scores(evaluation, table, options.verbose)
        write_scores(run, table)
        save_detections(run, options, evaluation, index, config)
        if not options.noplots:
            save_pictures(run, evaluation, loader, index, config.names)
    print(f"results in {run.path}")
    return evaluation


if __name__ == "__main__":
    signals.as_usual()
    run_cli(main)
