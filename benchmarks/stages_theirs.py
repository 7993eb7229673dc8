"""What `peers.py` measures of Ultralytics, a stage each, in an environment of its own (`pip install ultralytics`).

Their package is under the AGPL: it is measured here, and imported by nothing else of this project.
"""

# ruff: noqa: E402
from __future__ import annotations

import copy
import shutil
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.build import InfiniteDataLoader, seed_worker
from ultralytics.data.dataset import YOLODataset
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.torch_utils import autocast

from benchmarks.cases import EPOCHS_LOADED, gflops, loss_case, made_by_workers, timed_steps
from benchmarks.worker import Run, serve

Facts = dict[str, Any]
AHEAD = 4  # batches that a worker of theirs is ahead, by their own default


def network(settings: Facts) -> DetectionModel:
    """YOLOv8n, its width changed until its GFLOPs are nearest to `GFLOPs` where that is given."""
    name, wanted = settings.get("net", "yolov8n"), settings.get("GFLOPs")
    plain = yaml_model_load(f"{name}.yaml")
    shapes = [(0.25, 1024)]
    if wanted is not None:  # channels come in eights: width and the cap on channels are changed together
        shapes = [(0.24 + 0.01 * i, most) for i in range(6) for most in (512, 640, 768, 896, 1024)]

    def build(width: float, most: int) -> DetectionModel:
        made = copy.deepcopy(plain)
        made["scales"], made["scale"] = {"n": [made["scales"]["n"][0], width, most]}, "n"
        return DetectionModel(made, nc=3, verbose=False)

    models = [build(*shape) for shape in shapes]
    return min(models, key=lambda m: 0 if wanted is None else abs(gflops(m, settings["size"]) - wanted))


def trainer(settings: Facts) -> DetectionTrainer:
    """Their trainer, set up as its own `train()` does before the first epoch."""
    changes = {"model": f"{settings.get('net', 'yolov8n')}.yaml", "data": settings["yaml"], "imgsz": settings["size"]}
    changes |= {"batch": settings["batch"], "workers": settings.get("workers", 0), "epochs": 40, "plots": False}
    changes |= {"device": settings.get("device", "cpu"), "pretrained": False, "exist_ok": True}
    made = DetectionTrainer(overrides={**changes, "project": settings["runs"], "name": "peer", "val": False})
    made._setup_train()
    if "threads" in settings:  # by itself it takes all cores but one
        torch.set_num_threads(settings["threads"])
    return made


def loop(settings: Facts) -> tuple[Run, Facts]:
    """Their training steps on any device, as set up by themselves, with a batch that lies there or their loader's."""
    made = trainer(settings)
    made.model.train()
    batches = (batch for _ in count() for batch in made.train_loader)
    kept = {k: v.to(made.device) if isinstance(v, torch.Tensor) else v for k, v in next(batches).items()}

    def one() -> int:
        with autocast(made.amp, device=made.device.type):
            batch = made.preprocess_batch(dict(kept) if settings["resident"] else next(batches))
            loss, _ = made.model(batch)
        made.scaler.scale(loss.sum()).backward()
        made.optimizer_step()
        return len(batch["img"])

    facts = {"amp": bool(made.amp), "threads": torch.get_num_threads()}
    ahead = 0 if settings["resident"] else AHEAD * settings["workers"]
    return lambda: timed_steps(one, settings["steps"], made.device, ahead), facts


def step(settings: Facts) -> tuple[Run, Facts]:
    """Their training step: their preprocessing, loss, clipping, optimizer step and EMA, on a batch that lies ready."""
    made = trainer(settings)
    model = network(settings)
    model.args, model.nc, model.names = made.args, 3, made.model.names
    if settings["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    made.model = model.train()
    made.optimizer = made.build_optimizer(model, name="AdamW", lr=0.002, momentum=0.9, decay=5e-4)
    made.ema = type(made.ema)(model)
    kept = next(iter(made.train_loader))

    def run() -> dict[str, float]:
        for _ in range(settings["steps"]):
            batch = made.preprocess_batch(dict(kept))
            if settings["channels_last"]:
                batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
            loss, _ = made.model(batch)
            loss.sum().backward()
            made.optimizer_step()
        return {"images": settings["steps"] * len(kept["img"])}

    run()
    return run, {"GFLOPs": gflops(model, settings["size"]), "threads": torch.get_num_threads()}


class Adapted(torch.nn.Module):
    """Their network behind our interface: its raw maps as our `Predictions`."""

    def __init__(self, net: DetectionModel, config: Any, predictions: type, points: Any) -> None:
        super().__init__()
        self.net, self.config, self._predictions, self._points = net, config, predictions, points

    def forward(self, images: torch.Tensor) -> Any:
        raw = self.net(images.float().div_(255))
        shapes = tuple(tuple(x.shape[2:]) for x in raw["feats"])
        points, strides = self._points(raw["feats"], (8, 16, 32))
        boxes, scores = raw["boxes"].transpose(1, 2), raw["scores"].transpose(1, 2)
        return self._predictions(boxes, scores, scores, points, strides, shapes)


def their_net_in_our_loop(settings: Facts) -> tuple[Run, Facts]:
    """The same network in Lockstep's loop, with Lockstep's loss of both branches."""
    import stages_ours

    import train
    from models.build import Start
    from models.head import Predictions, anchor_points
    from models.yolo import ModelConfig

    adapted = Adapted(network(settings), ModelConfig("n", 3), Predictions, anchor_points)
    train.build_model = lambda *_, **__: (adapted, Start("measured", trained=False))
    return stages_ours.steps_of(stages_ours.build(settings), settings["steps"], resident=True), {}


def loader(settings: Facts) -> tuple[Run, Facts]:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # as their own workers do
    cache = False if settings["cache"] == "cold" else settings["cache"]
    if not cache:  # it takes a `.npy` beside an image, of any earlier run and size, instead of decoding
        for kept in Path(settings["images"]).glob("*.npy"):
            kept.unlink()
    data = {"names": {0: "RBC", 1: "WBC", 2: "Platelets"}, "channels": 3}
    dataset = YOLODataset(
        img_path=settings["images"], imgsz=settings["size"], augment=True, hyp=get_cfg(), data=data, cache=cache,
        batch_size=16, stride=32, rect=False,
    )  # fmt: skip
    workers = settings.get("workers", 0)
    own = {"collate_fn": dataset.collate_fn, "worker_init_fn": seed_worker, "prefetch_factor": AHEAD}
    batches = (
        InfiniteDataLoader(dataset, settings["batch"], shuffle=True, num_workers=workers, **own) if workers else None
    )

    def run() -> dict[str, float]:
        if batches is not None:
            sizes = (len(batch["img"]) for _ in range(EPOCHS_LOADED) for batch in batches)
            return made_by_workers(sizes, AHEAD * workers)
        for _ in range(EPOCHS_LOADED):
            for i in torch.randperm(len(dataset)).tolist():
                dataset[i]
        return {"images": EPOCHS_LOADED * len(dataset)}

    run()
    return run, {}


def post(settings: Facts) -> tuple[Run, Facts]:
    """Their NMS, as their validation calls it, on the same raw predictions, already decoded (a gift to them)."""
    from models.head import Predictions, decode_boxes

    torch.set_num_threads(settings["threads"])
    ready = []
    for parts in torch.load(settings["raw"], weights_only=True)[settings["regime"]]:
        p = Predictions(*parts)
        boxes = decode_boxes(p)
        centred = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)
        ready.append(torch.cat([centred, p.logits.sigmoid()], -1).transpose(1, 2).contiguous())

    @torch.inference_mode()
    def run() -> dict[str, float]:
        limits = {"conf_thres": 0.001, "iou_thres": 0.7, "max_det": 300, "multi_label": True, "max_time_img": 1e3}
        found = [one for raw in ready for one in non_max_suppression(raw, **limits)]
        return {"images": len(found), "detections": sum(map(len, found))}

    run()
    return run, {}


def loss(settings: Facts) -> tuple[Run, Facts]:
    """Their loss: of one branch (YOLOv8n), or of two (YOLO26n, without distributions)."""
    torch.set_num_threads(settings["threads"])
    size, nc, boxes, classes, raw = loss_case(settings)
    model = DetectionModel(f"{settings['net']}.yaml", nc=nc, verbose=False)
    model.args = get_cfg()
    criterion, two = model.train().init_criterion(), settings["net"] == "yolo26n"
    distances, scores, others = raw(4 if two else 64), raw(nc, -4), raw(nc, -4)
    feats = [torch.zeros(len(boxes), 1, size // s, size // s) for s in (8, 16, 32)]
    centred = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)
    image = torch.arange(len(boxes)).repeat_interleave(boxes.shape[1]).float()
    batch = {"batch_idx": image, "cls": classes.reshape(-1, 1).float(), "bboxes": centred.reshape(-1, 4)}

    def branch(own: torch.Tensor) -> dict[str, Any]:
        return {"boxes": distances, "scores": own, "feats": feats}

    def run() -> dict[str, float]:
        for leaf in (distances, scores, others):
            leaf.grad = None
        predictions = {"one2many": branch(scores), "one2one": branch(others)} if two else branch(scores)
        criterion(predictions, batch)[0].sum().backward()
        return {"images": len(boxes)}

    run()
    return run, {}


def first_step(settings: Facts) -> tuple[Run, Facts]:
    made = trainer(settings)
    batch = made.preprocess_batch(next(iter(made.train_loader)))
    loss, _ = made.model.train()(batch)
    loss.sum().backward()
    made.optimizer_step()
    return dict, {}


def train_whole(settings: Facts) -> tuple[Run, Facts]:
    """A whole training of theirs that keeps the weights of each epoch as `epochN.pt`, and when they were there.

    Two clocks, both from when their package is imported: `in` counts everything, `out` stands still from the end of an
    epoch's steps until its weights are saved where there is validation in between.
    """
    from ultralytics import YOLO

    folder, threads, validate = Path(settings["folder"]), settings["threads"], settings["validate"]
    model, begin, pauses = YOLO(f"{settings['net']}.yaml"), time.perf_counter(), [0.0]
    clocks: dict[str, list[float]] = {"in": [], "out": []}

    def trained(own: Any) -> None:
        clocks["out"].append(time.perf_counter() - begin - sum(pauses))

    def saved(own: Any) -> None:
        clocks["in"].append(time.perf_counter() - begin)
        if validate:
            pauses.append(clocks["in"][-1] - sum(pauses) - clocks["out"][-1])
        shutil.copy(own.last, folder / f"epoch{own.epoch + 1}.pt")

    model.add_callback("on_pretrain_routine_end", lambda _: torch.set_num_threads(threads))
    model.add_callback("on_train_epoch_end", trained)
    model.add_callback("on_model_save", saved)

    def run() -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        model.train(
            data=settings["yaml"], imgsz=settings["size"], batch=settings["batch"], device="cpu", workers=0,
            epochs=settings["epochs"], seed=settings["seed"], plots=False, val=validate,
            project=settings["runs"], name="timed", exist_ok=True, verbose=False, pretrained=False,
        )  # fmt: skip
        return clocks

    return run, {}


def detections(settings: Facts) -> tuple[Run, Facts]:
    """`epochN.json` of each `epochN.pt`: detections on the test set, as their own validation writes them."""
    from ultralytics import YOLO

    torch.set_num_threads(settings["threads"])
    folder = Path(settings["folder"])

    def run() -> dict[str, float]:
        for epoch in settings["epochs"]:
            scored = YOLO(folder / f"epoch{epoch}.pt").val(
                data=settings["yaml"], imgsz=settings["size"], conf=0.001, iou=0.7, max_det=300, save_json=True,
                workers=0, device="cpu", plots=False, verbose=False, project=settings["runs"], name="timed-val",
                exist_ok=True,
            )  # fmt: skip
            shutil.copy(Path(scored.save_dir) / "predictions.json", folder / f"epoch{epoch}.json")
        return {}

    return run, {}


STAGES = {"step": step, "their_net_in_our_loop": their_net_in_our_loop, "loader": loader, "post": post, "loss": loss}
STAGES |= {"first_step": first_step, "train_whole": train_whole, "detections": detections, "loop": loop}

if __name__ == "__main__":
    serve(STAGES)
