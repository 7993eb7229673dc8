"""Train a detector: `python train.py --data my.yaml --hyp my-hyp.yaml`."""

from __future__ import annotations

from utils import signals

if __name__ == "__main__":
    signals.catch()  # before the slow imports: a signal that comes while they run is answered too

# isort: split
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from data.cache import auto_cache
from data.config import DataConfig, load_data_config
from data.dataset import DetectionDataset
from data.index import Index, build_index
from data.loader import Batch, Loader, multi_scale_size, resize_batch
from models.build import build_model
from models.loss import DetectionLoss
from models.transfer import freeze, hold
from models.yolo import MAX_STRIDE, YOLO, count_parameters
from utils import dist
from utils.checkpoint import TrainState, load_state, save_model, save_state
from utils.device import Precision, select_device
from utils.ema import ModelEMA
from utils.errors import Stopped, TrainingDiverged, UserError, run_cli
from utils.fingerprint import check_same_run, fingerprint
from utils.hyp import Hyp, hyp_table, load_hyp
from utils.keeper import Keeper
from utils.loggers import Logger, Progress, build_loggers
from utils.metrics import fitness
from utils.optim import (
    NamedOptimizerState,
    accumulation,
    build_optimizer,
    clip_gradients,
    describe_groups,
    scaled_weight_decay,
)
from utils.options import TrainOptions, parse
from utils.plots import plot_images, plot_labels, plot_lr, plot_results
from utils.rundir import RunDir, RunLock, new_run, resolve_resume
from utils.schedule import LearningRate, LRCurve, describe_curve, lr_curve
from utils.stopping import EarlyStopping
from val import DetectSettings, Evaluation, evaluate, load_model, print_faults, print_scores, save_pictures

MAX_IMGSZ = 640  # largest image size that is chosen unasked
# What may differ when a run goes on: nothing of it changes the weights.
FREE_ON_RESUME = {"resume", "device", "workers", "cache", "noplots", "download", "project", "nosave", "save_period"}
FREE_ON_RESUME |= {"save_minutes", "force"}


@dataclass
class Training:
    """The built objects of a run, passed to the functions that use them."""

    model: nn.Module
    ema: ModelEMA
    frozen: list[nn.Module]
    criterion: DetectionLoss
    optimizer: Optimizer
    lr: LearningRate
    accumulate: int
    clip_grad_norm: float
    precision: Precision
    loader: Loader
    resize: Callable[[Batch, int, int], Batch]
    state: TrainState
    stopping: EarlyStopping
    keeper: Keeper = field(init=False)


@dataclass
class Data:
    """Both splits, as indices and as loaders."""

    config: DataConfig
    imgsz: int
    train: Index
    val: Index
    train_loader: Loader
    val_loader: Loader


@dataclass
class Output:
    """Where a run's results go; the objects of a process that is not the main one write nothing."""

    run: RunDir
    description: dict[str, Any]
    loggers: list[Logger] = field(default_factory=list)
    lock: RunLock | None = None


def parse_opt(argv: list[str] | None = None) -> TrainOptions:
    """Read the command line."""
    return parse(TrainOptions, sys.argv[1:] if argv is None else argv, "train.py", "Train a YOLO detector.")


def train_one_epoch(training: Training, progress: Progress) -> None:
    """Train from the state's batch to the end of its epoch.

    The whole of training: batch → predictions → loss → gradients → optimizer step at the lr of `lr_curve` → EMA.
    """
    state, scaler = training.state, training.precision.scaler
    training.model.train()
    hold(training.frozen)
    batches = training.keeper.watch(training.loader.epoch(state.epoch, state.batch))
    for number, batch in enumerate(batches, state.batch):
        batch = training.resize(batch.to(training.precision.device), state.epoch, number)
        with training.precision.autocast():
            predictions = training.model(batch.images)
        loss = training.criterion(predictions, batch.boxes, batch.classes)
        scaler.scale(loss.total * dist.world_size()).backward()
        add_loss(state, loss.parts, len(batch))
        if (number + 1) % training.accumulate == 0 or number + 1 == len(training.loader):
            training.lr.apply(state.step)
            scaler.unscale_(training.optimizer)
            clip_gradients(training.optimizer, training.clip_grad_norm)
            scaler.step(training.optimizer)  # the EMA follows by the optimizer's hook: a skipped step updates nothing
            scaler.update()
            training.optimizer.zero_grad(set_to_none=True)
            state.step, state.batch = state.step + 1, number + 1
            training.keeper.after_step()
        parts = dict(zip(("box", "cls", "dfl"), loss.parts, strict=True))
        progress.update({**parts, "lr": training.optimizer.param_groups[0]["lr"]}, len(batch))


def end_epoch(training: Training) -> None:
    """Leave the state at the start of the next epoch. It is whole before and after, and not saved in between."""
    state = training.state
    training.lr.end_epoch()
    state.epoch, state.batch, state.means = state.epoch + 1, 0, {}


def add_loss(state: TrainState, parts: Tensor, images: int) -> None:
    """Add a batch to the epoch's running sums, on the device: nothing waits for the numbers."""
    weighted = torch.cat([parts * images, parts.new_tensor([images])])
    state.means["loss"] = state.means["loss"].to(parts.device) + weighted if "loss" in state.means else weighted


def take_losses(state: TrainState) -> dict[str, float]:
    """Return the epoch's mean losses over all processes.

    Raises:
        TrainingDiverged: they are not finite.
    """
    total = dist.mean(state.means["loss"].clone())
    box, cls, dfl = (total[:3] / total[3]).tolist()
    if not torch.isfinite(total).all():
        raise TrainingDiverged(
            f"epoch {state.epoch + 1}: the training loss is not finite (box {box:g}, cls {cls:g}, dfl {dfl:g}); the "
            f"checkpoint of the epoch before stands: try a smaller lr0, or --amp off"
        )
    return {"train/box_loss": box, "train/cls_loss": cls, "train/dfl_loss": dfl}


def fit(training: Training, data: Data, output: Output, options: TrainOptions, hyp: Hyp) -> None:
    """Train epoch by epoch: train, evaluate, log, save, until the last epoch or for want of a better one."""
    state, settings = training.state, DetectSettings(nms=options.nms)
    stop = dist.from_main(training.stopping.should_stop(state.epoch - 1))  # a run that was ended after its last save
    while state.epoch < options.epochs and not stop:
        epoch = state.epoch
        with Progress(
            len(data.train_loader),
            f"epoch {epoch + 1}/{options.epochs}",
            initial=state.batch,
            epochs_to_come=options.epochs - epoch - 1,
            enabled=dist.is_main(),
        ) as progress:
            train_one_epoch(training, progress)
        row: dict[str, Any] = {"time": state.seconds, **take_losses(state)}
        better, last = False, epoch + 1 == options.epochs
        if dist.is_main() and should_evaluate(options, epoch + 1):
            with signals.interruptible():
                evaluation = evaluate_ema(training, data, settings)
            row |= evaluation.row()
            better = training.stopping.update(epoch, fitness(row, hyp.fitness))
            print(score_line(evaluation, better), flush=True)
        end_epoch(training)
        row |= {f"lr/{name}": value for name, value in training.lr.current().items()}
        stop = dist.from_main(training.stopping.should_stop(epoch))
        if dist.is_main():
            for logger in output.loggers:
                logger.log(state.epoch, row)
            save(training, output, options, better, last or stop)
        if stop and not last:
            best = training.stopping.best_epoch + 1
            say(f"stopped: no better {hyp.fitness} for {options.patience} epochs (best: epoch {best})")


def should_evaluate(options: TrainOptions, epochs_done: int) -> bool:
    due = not options.noval and epochs_done % options.val_period == 0
    return due or epochs_done == options.epochs


def evaluate_ema(training: Training, data: Data, settings: DetectSettings) -> Evaluation:
    """Evaluate the averaged weights on the validation split."""
    return evaluate(
        training.ema.module,
        data.val_loader,
        data.val,
        data.config.names,
        training.criterion,
        training.precision,
        settings,
    )


def score_line(evaluation: Evaluation, better: bool) -> str:
    row = evaluation.row()
    words = ("precision", "recall", "mAP50", "mAP50-95")
    text = "  ".join(f"{word} {row[f'metrics/{word}']:.4f}" for word in words)
    return f"{'':>6}val  {text}{'  (best)' if better else ''}"


def save(training: Training, output: Output, options: TrainOptions, better: bool, last: bool) -> None:
    """Write `last.pt` (the whole state), `best.pt` where it is the best, and the one of `--save-period`."""
    weights, state = output.run.weights, training.state
    if better:
        shipped = {**output.description, "epoch": state.epoch, "fitness": training.stopping.best_fitness}
        save_model(weights / "best.pt", training.ema.module.state_dict(), shipped)
    if last or not options.nosave:
        training.keeper.save()
    if options.save_period > 0 and state.epoch % options.save_period == 0:
        save_state(weights / f"epoch{state.epoch}.pt", state, output.description)


def build_data(options: TrainOptions, hyp: Hyp) -> Data:
    """Read both splits and build their loaders; says what is wrong with the labels and which image size is used."""
    if options.download and dist.world_size() > 1:
        raise UserError("--download: fetch the data set with a single process first, then train with several")
    config = load_data_config(options.data, options.single_cls, options.download)
    train, val = (read_index(config, split) for split in ("train", "val"))
    imgsz = options.imgsz or min(-(-int(train.sizes.max()) // MAX_STRIDE) * MAX_STRIDE, MAX_IMGSZ)
    workers = options.workers if options.workers >= 0 else default_workers(options.device)
    share: dict[str, Any] = {"seed": options.seed, "epochs": options.epochs, "stride": MAX_STRIDE}
    cache = {"auto": auto_cache([train, val], imgsz), "off": None}.get(options.cache, options.cache)
    train_set = DetectionDataset(train, imgsz, hyp, augment=True, rect=options.rect, cache=cache, **share)
    val_set = DetectionDataset(val, imgsz, hyp, augment=False, rect=True, cache=cache, **share)
    if options.batch_size % dist.world_size():
        raise UserError(f"--batch-size {options.batch_size}: must be a multiple of the {dist.world_size()} processes")
    loader = Loader(
        train_set,
        options.batch_size // dist.world_size(),
        workers=workers,
        seed=options.seed,
        shuffle=True,
        rank=dist.rank(),
        world_size=dist.world_size(),
        pin_memory=True,
    )
    val_loader = Loader(val_set, options.batch_size, workers=workers, seed=options.seed, shuffle=False)
    chosen = "" if options.imgsz else " (longest side of the training images, at most 640)"
    say(f"data         {config.file}: {config.nc} classes, {len(train)} training and {len(val)} validation images")
    say(f"image size   {imgsz}{chosen}; image cache {cache or 'off'}; {workers} loader workers")
    return Data(config, imgsz, train, val, loader, val_loader)


def read_index(config: DataConfig, split: str) -> Index:
    index, faults = build_index(config, split)
    if dist.is_main():
        print_faults(split, faults)
    if not len(index):
        raise UserError(f"{config.file}: {split}: no images found")
    return index


def default_workers(device: str) -> int:
    """On a CPU all cores compute, and loading is a few percent of a step; on a GPU loading needs cores of its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_gpu = torch.cuda.is_available() and device != "cpu"
    return min(8, max(1, cores // dist.world_size())) if on_gpu else 0 if cores <= 4 else 2


def build_training(options: TrainOptions, hyp: Hyp, data: Data, precision: Precision) -> tuple[Training, LRCurve]:
    """Build model, optimizer, schedule and state, and say what will be trained and how."""
    model, origin = build_model(
        options.cfg, options.weights, data.config.names, options.seed, "cfg" in options.explicit
    )
    frozen = freeze(model, options.freeze)
    model = model.to(precision.device, memory_format=torch.channels_last)
    accumulate = accumulation(options.batch_size, hyp.nominal_batch)
    effective = accumulate * options.batch_size
    decay = hyp.weight_decay
    if hyp.scale_weight_decay:
        decay = scaled_weight_decay(decay, effective, hyp.nominal_batch)
    fused = precision.device.type in ("cpu", "cuda") and not precision.scaler.is_enabled()
    optimizer = build_optimizer(model, hyp, decay, fused)
    ema = ModelEMA(model, hyp.ema_decay, hyp.ema_tau)
    optimizer.register_step_post_hook(lambda *_: ema.update_parameters(model))
    steps = -(-len(data.train_loader) // accumulate)
    lr = LearningRate(optimizer, hyp, options.epochs, steps)
    curve = lr_curve(hyp, options.epochs, steps, {group["name"]: hyp.lr0 for group in optimizer.param_groups})
    describe(model, origin, precision, optimizer, hyp, options, effective, accumulate, curve)
    stopping = EarlyStopping(options.patience)
    parts = {
        "model": model,
        "ema": ema,
        "optimizer": NamedOptimizerState(model, optimizer),
        "scheduler": lr.scheduler,
        "scaler": precision.scaler,
        "stopping": stopping,
    }
    training = Training(
        model=dist.wrap(model, precision.device, options.sync_bn),
        ema=ema,
        frozen=frozen,
        criterion=DetectionLoss(hyp, data.config.nc),
        optimizer=optimizer,
        lr=lr,
        accumulate=accumulate,
        clip_grad_norm=hyp.clip_grad_norm,
        precision=precision,
        loader=data.train_loader,
        resize=multi_scale(options.seed, data.imgsz, hyp.multi_scale),
        state=TrainState(parts),
        stopping=stopping,
    )
    return training, curve


def multi_scale(seed: int, imgsz: int, share: float) -> Callable[[Batch, int, int], Batch]:
    """Return what resizes a batch by its (epoch, number): nothing where `share` is 0."""
    if share == 0:
        return lambda batch, epoch, number: batch
    return lambda batch, epoch, number: resize_batch(
        batch, multi_scale_size(seed, epoch, number, imgsz, share, MAX_STRIDE), MAX_STRIDE
    )


def describe(
    model: YOLO,
    origin: str,
    precision: Precision,
    optimizer: Optimizer,
    hyp: Hyp,
    options: TrainOptions,
    effective: int,
    accumulate: int,
    curve: LRCurve,
) -> None:
    """Print what was derived from the options before anything is trained."""
    say(f"model        {model.config.name}, {count_parameters(model):,} parameters; {origin}")
    say(f"device       {precision.device}, {precision.description}")
    say(f"batch        {options.batch_size}, {accumulate} a step: {effective} images an update")
    say(f"optimizer    {hyp.optimizer}, lr0 {hyp.lr0:g}, schedule {hyp.schedule} down to {hyp.lr0 * hyp.lrf:g}")
    for line in (*describe_groups(optimizer), *describe_curve(curve)):
        say(line)


def say(text: str) -> None:
    """Print for the user, once however many processes train."""
    if dist.is_main():
        print(text, flush=True)


def resume_options(options: TrainOptions) -> tuple[TrainOptions, Hyp, dict[str, Any], Path]:
    """Return the options, hyper-parameters and state of the run to go on with, and its folder.

    What the command line says anew is taken where it cannot change the weights.

    Raises:
        UserError: no such run, a run that is finished, or a flag that would make it another run.
    """
    path = resolve_resume(options.resume, options.project)
    content = load_state(path)
    saved = TrainOptions.from_dict(content["options"], source=str(path))
    for name in sorted(options.explicit - FREE_ON_RESUME):
        if getattr(options, name) != getattr(saved, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} {getattr(options, name)}: this run has {getattr(saved, name)}, and a resumed run is the same "
                f"run; leave {flag} out, or start a new one from it: --weights {path}"
            )
    given = {name: getattr(options, name) for name in options.explicit & FREE_ON_RESUME - {"project", "force"}}
    progress = content["state"]["progress"]
    if progress["epoch"] >= saved.epochs:
        raise UserError(
            f"{path}: this run has trained all of its {saved.epochs} epochs; "
            f"--weights {path.with_name('best.pt')} starts a new one from it"
        )
    explicit = saved.explicit | {"cfg"}
    return replace(saved, **given, explicit=explicit), Hyp.from_dict(content["hyp"]), content, path.parents[1]


def open_output(
    options: TrainOptions, hyp: Hyp, data: Data, training: Training, folder: Path | None, lock: RunLock | None
) -> Output | None:
    """Make the run folder with `opt.yaml`, `hyp.yaml` and `fingerprint.yaml`, or open that of a resumed run.

    None on other ranks. `lock` is that of a resumed run's folder.
    """
    if not dist.is_main():
        return None
    description = {
        "model": training.ema.module.config.to_dict(),
        "names": list(data.config.names),
        "imgsz": data.imgsz,
        "data": str(data.config.file.resolve()),
        "single_cls": options.single_cls,
        "hyp": hyp.to_dict(),
        "options": options.to_dict(),
        "fingerprint": run_fingerprint(data, training),
    }
    run = RunDir(folder) if folder else new_run(options.project, options.name, options.exist_ok)
    lock = lock or RunLock(run.path)
    if folder is None:
        run.write_yaml("opt.yaml", options.to_dict())
        run.write_text("hyp.yaml", hyp.to_yaml())
    run.write_yaml("fingerprint.yaml", description["fingerprint"], "What the weights depend on beside the options.")
    return Output(run, description, build_loggers(run.path, after_epoch=training.state.epoch), lock)


def run_fingerprint(data: Data, training: Training) -> dict[str, Any]:
    read = {"train": data.train.digest, "val": data.val.digest, "imgsz": data.imgsz}
    return fingerprint(read, training.precision.device, dist.world_size())


def build_keeper(training: Training, output: Output | None, options: TrainOptions, resumed: bool) -> Keeper:
    """Build what decides when the state is saved; in a process that is not the main one it writes nothing."""

    def write() -> None:
        if output is not None:
            save_state(output.run.weights / "last.pt", training.state, output.description)

    keeper = Keeper(
        training.state,
        write,
        minutes=0 if options.nosave else options.save_minutes,
        resume=f"python train.py --resume {output.run.path}" if output is not None else "",
        buffers=training.model.buffers() if training.accumulate > 1 else (),
    )
    if resumed:
        keeper.on_disk()
    return keeper


def draw_start(run: RunDir, data: Data, curve: LRCurve) -> None:
    """Draw what is known before training: the lr, the labels, and the first three batches as the model sees them."""
    names = data.config.names
    plot_lr(curve, run.path / "lr.png")
    train = data.train
    plot_labels(train.classes, train.boxes, train.sizes, train.offsets, names, run.path / "labels.png")
    for number, batch in zip(range(3), data.train_loader.epoch(0), strict=False):
        boxes = [b[c >= 0].numpy() for b, c in zip(batch.boxes, batch.classes, strict=True)]
        classes = [c[c >= 0].numpy() for c in batch.classes]
        plot_images(batch.images.numpy(), boxes, classes, names, run.path / f"train_batch{number}.jpg")


def finish(training: Training, data: Data, output: Output, options: TrainOptions) -> None:
    """Report on the run; training is complete, so a signal here leaves nothing to resume."""
    try:
        signals.check()
        report(training, data, output, options)
    except Stopped as stopped:
        say(f"{stopped} when training was complete, without the last pictures; results in {output.run.path}")


def report(training: Training, data: Data, output: Output, options: TrainOptions) -> None:
    """Score the best epoch's weights once more, print the table, draw the pictures, say where everything is."""
    best = output.run.weights / "best.pt"
    if best.exists():
        model, content = load_model(str(best), training.precision.device)
        settings, criterion = DetectSettings(nms=options.nms), training.criterion
        evaluation = evaluate(
            model, data.val_loader, data.val, data.config.names, criterion, training.precision, settings
        )
        print(f"best epoch {content['epoch']} of {training.state.epoch}:")
        print_scores(evaluation, data.val, data.config.names, verbose=False)
        if not options.noplots:
            save_pictures(output.run, evaluation, data.val_loader, data.val, data.config.names)
    if not options.noplots:
        plot_results(output.run.path / "results.csv", output.run.path / "results.png")
    print(f"{training.state.seconds:.0f} s of training; results in {output.run.path}")


def main(argv: list[str] | None = None) -> None:
    """Wire a run together and train it."""
    options = parse_opt(argv)
    if options.help_hyp:
        print(hyp_table())
        return
    content, folder, lock = None, None, None
    if options.resume is None:
        hyp = load_hyp(options.hyp, options.hyp_overrides())
    else:
        path, force = resolve_resume(options.resume, options.project), options.force
        lock = RunLock(path.parents[1]) if dist.is_main() else None  # before the state is read
        options, hyp, content, folder = resume_options(replace(options, resume=str(path)))
    device = select_device(options.device, dist.local_rank(), dist.local_world_size())
    dist.start(device)
    data = build_data(options, hyp)
    training, curve = build_training(options, hyp, data, Precision(device, options.amp))
    if content is not None:
        for text in check_same_run(content.get("fingerprint"), run_fingerprint(data, training), folder, force):
            say(f"warning: {text}")
        training.state.load_state_dict(content["state"])
        batch = f" and {training.state.batch} batches" if training.state.batch else ""
        say(f"resuming     {folder} after epoch {training.state.epoch}{batch}")
    output = open_output(options, hyp, data, training, folder, lock)
    training.keeper = build_keeper(training, output, options, content is not None)
    with contextlib.closing(data.train_loader), contextlib.closing(data.val_loader):
        if dist.is_main() and not options.noplots and content is None:
            draw_start(output.run, data, curve)
        with training.keeper:
            fit(training, data, output, options, hyp)
        if dist.is_main():
            finish(training, data, output, options)
    dist.stop()


if __name__ == "__main__":
    run_cli(main)
