"""What `peers.py` measures of Lockstep, a stage each: `(settings) -> (run, facts)`, see `worker.py`."""

# ruff: noqa: E402
from __future__ import annotations

import gc

gc.disable()  # as train.py does while it imports

import shutil
import sys
import time
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import train
import val
from benchmarks.cases import EPOCHS_LOADED, gflops, loss_case, made_by_workers, timed_steps
from benchmarks.worker import Run, serve
from data.config import load_data_config
from data.dataset import DetectionDataset, SampleKey, epoch_order
from data.index import build_index
from data.loader import PREFETCH, Loader
from models.decode import detect
from models.head import Predictions, anchor_points
from models.loss import DetectionLoss
from utils.device import Precision, keep_freed_memory, select_device
from utils.hyp import Hyp
from utils.resume import start_anew

gc.freeze()
gc.enable()
Facts = dict[str, Any]


def build(settings: Facts) -> train.Training:
    """The training that `train.py` would do, ready for its first step."""
    device = select_device(settings.get("device", "cpu"))
    if device.type == "cpu":
        torch.set_num_threads(settings.get("threads", 2))
        keep_freed_memory()
    argv = ["--data", settings["data"], "--img", str(settings["size"]), "--batch", str(settings["batch"])]
    argv += ["--cfg", settings.get("cfg", "yolo-n"), "--workers", str(settings.get("workers", 0))]
    options = train.parse_opt([*argv, "--device", str(device), *["--compile"] * settings.get("compile", False)])
    origin = start_anew(options)
    data = train.build_data(options, origin, device)
    training, _ = train.build_training(options, origin, data, Precision(device, options.amp))
    return training


def stepper(training: train.Training, resident: bool) -> Callable[[], int]:
    """What runs a training step, with a batch that lies ready or with what the loader gives, and returns its images."""
    batches = train.begin_steps(training)
    kept = next(batches)

    def one() -> int:
        number, batch = kept if resident else next(batches)
        train.backward(training, batch, number)
        training.lr.apply(training.state.step)
        train.update(training)
        training.state.step += 1  # of which some are measured, as in training
        return len(batch)

    return one


def steps_of(training: train.Training, steps: int, resident: bool) -> Run:
    """Several of them a turn."""
    one = stepper(training, resident)

    def run() -> dict[str, float]:
        start = time.perf_counter()
        images = sum(one() for _ in range(steps))
        return {"images": images, "seconds": time.perf_counter() - start}

    run()
    return run


def step(settings: Facts) -> tuple[Run, Facts]:
    training = build(settings)
    run = steps_of(training, settings["steps"], settings.get("resident", True))
    return run, {"GFLOPs": gflops(training.model, settings["size"])}


def loop(settings: Facts) -> tuple[Run, Facts]:
    """Training steps on any device, with a batch that lies there or with the loader's."""
    training = build(settings)
    one, device = stepper(training, settings["resident"]), training.precision.device
    ahead = 0 if settings["resident"] else PREFETCH * settings["workers"]
    return lambda: timed_steps(one, settings["steps"], device, ahead), {"precision": training.precision.description}


def bare(settings: Facts) -> tuple[Run, Facts]:
    """Forward and backward of the same net on one batch, and nothing else."""
    training = build(settings)
    _, batch = next(train.begin_steps(training))

    def run() -> dict[str, float]:
        for _ in range(settings["steps"]):
            distances, logits, one_to_one, *_ = training.model(batch.images)
            (distances.sum() + logits.sum() + one_to_one.sum()).backward()
            training.optimizer.zero_grad(set_to_none=True)
        return {"images": settings["steps"] * len(batch)}

    run()
    return run, {}


def loader(settings: Facts) -> tuple[Run, Facts]:
    """Mosaic samples, a few epochs a run: of one process, set up as a worker is, or batches of several `workers`."""
    torch.set_num_threads(1)
    keep_freed_memory()
    index, _ = build_index(load_data_config(settings["data"]), "train")
    cache = None if settings["cache"] == "cold" else settings["cache"]
    workers = settings.get("workers", 0)
    hyp, epoch = Hyp(), count()
    dataset = DetectionDataset(index, settings["size"], hyp, seed=0, epochs=10**6, augment=True, cache=cache)
    batches = Loader(dataset, settings["batch"], workers=workers, seed=0, shuffle=True)

    def run() -> dict[str, float]:
        epochs = list(islice(epoch, EPOCHS_LOADED))
        if workers:
            sizes = (len(batch) for now in epochs for batch in batches.epoch(now))
            return made_by_workers(sizes, PREFETCH * workers)
        for now in epochs:
            keys = [SampleKey(now, int(i)) for i in epoch_order(0, now, len(index))[0]]
            for first in range(0, len(keys), settings["batch"]):  # as a worker does
                dataset.samples(keys[first : first + settings["batch"]])
        return {"images": len(epochs) * len(index)}

    run()
    return run, {}


def post(settings: Facts) -> tuple[Run, Facts]:
    """Raw predictions to detections: NMS on the one-to-many branch, or the NMS-free branch."""
    torch.set_num_threads(2)
    raw = [Predictions(*parts) for parts in torch.load(settings["raw"], weights_only=True)[settings["regime"]]]

    @torch.inference_mode()
    def run() -> dict[str, float]:
        settled = [detect(p, nms=settings["nms"], conf=0.001, iou=0.7, max_det=300) for p in raw]
        found = [one for batch in settled for one in batch.split()]
        return {"images": len(found), "detections": sum(len(one.boxes) for one in found)}

    run()
    return run, {}


def loss(settings: Facts) -> tuple[Run, Facts]:
    """Loss, assignment and gradients for raw predictions, both branches."""
    torch.set_num_threads(2)
    keep_freed_memory()
    size, nc, boxes, classes, raw = loss_case(settings)
    maps = [torch.zeros(1, 1, size // s, size // s) for s in (8, 16, 32)]
    points, strides = anchor_points(maps, (8, 16, 32))
    shapes = tuple(tuple(x.shape[2:]) for x in maps)
    leaves = [raw(64), raw(nc, -4), raw(nc, -4)]
    criterion = DetectionLoss(Hyp(), nc)

    def run() -> dict[str, float]:
        for leaf in leaves:
            leaf.grad = None
        predictions = Predictions(*(leaf.transpose(1, 2) for leaf in leaves), points, strides, shapes)
        criterion(predictions, boxes * size, classes).total.backward()
        return {"images": len(boxes)}

    run()
    return run, {}


def first_step(settings: Facts) -> tuple[Run, Facts]:
    """Ready once the first training step is done, from a cold start of Python."""
    stepper(build(settings), resident=False)()
    return dict, {}


def detections(settings: Facts) -> tuple[Run, Facts]:
    """`epochN.json` of each `epochN.pt`, and `truth.json`: detections on the test set, as `val.py` writes them."""
    torch.set_num_threads(2)
    folder, runs = Path(settings["folder"]), Path(settings["runs"])
    argv = ["--data", settings["data"], "--device", "cpu", "--project", str(runs), "--name", "ours-val", "--exist-ok"]

    def run() -> dict[str, float]:
        for epoch in settings["epochs"]:
            val.main([*argv, "--weights", str(folder / f"epoch{epoch}.pt"), "--save-json", "--noplots"])
            shutil.copy(runs / "ours-val/predictions.json", folder / f"epoch{epoch}.json")
        shutil.copy(runs / "ours-val/truth.json", folder)
        return {}

    return run, {}


STAGES = {"step": step, "bare": bare, "loader": loader, "post": post, "loss": loss, "first_step": first_step}
STAGES |= {"detections": detections, "loop": loop}

if __name__ == "__main__":
    serve(STAGES)
