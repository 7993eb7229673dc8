"""Train a detector: `python train.py --data my.yaml --hyp my-hyp.yaml`."""

from __future__ import annotations

import gc

from utils import signals
from utils.errors import EXIT_STOPPED

if __name__ == "__main__":
    signals.end_at_once(EXIT_STOPPED)  # while the slow imports run
    gc.disable()  # imports make a great many objects and no garbage; looking for some takes a tenth of their time

# isort: split
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from data.cache import auto_cache
from data.config import DataConfig, load_data_config
from data.dataset import DetectionDataset, without_crowds
from data.index import Index
from data.loader import Batch, Loader, default_workers, multi_scale_range, multi_scale_size, resize_batch
from data.processes import cores
from data.splits import Splits, read_splits
from models.build import Start, build_model, check_request, rebuild_model
from models.loss import DetectionLoss, LossTerms
from models.transfer import describe_frozen, freeze, hold
from models.yolo import MAX_STRIDE, YOLO, count_parameters
from utils import dist
from utils.checkpoint import TrainState, load_state, remove_state, restart_from, save_model, save_state
from utils.device import (
    Precision,
    compile_regions,
    keep_freed_memory,
    prefetch,
    select_device,
    set_deterministic,
    within_memory,
)
from utils.ema import ModelEMA
from utils.errors import Stopped, TrainingDiverged, UserError, many, printable, run_cli, some
from utils.fingerprint import check_same_run, fingerprint
from utils.guard import Recovery, Rollback, StepGuard, Stop, finite_only, lowered
from utils.hyp import Hyp, doubts, flag_hint, gain_doubts, hyp_table
from utils.keeper import Keeper, before_training
from utils.loggers import Logger, Pace, Progress, build_loggers
from utils.lr_finder import describe, range_test, suggest, write_csv
from utils.metrics import fitness
from utils.optim import (
    NamedOptimizerState,
    build_optimizer,
    clip_gradients,
    describe_groups,
    describe_update,
    idle_scales,
    plain_lr,
    plan_update,
)
from utils.options import TrainOptions, parse
from utils.plots import plot_images, plot_labels, plot_lr, plot_lr_find, plot_results
from utils.profiler import WARM_UP, phase, profile_steps
from utils.resume import Origin, go_on, resume_words, start_anew
from utils.rundir import HYP, LAST, OPTIONS, RunDir, RunLock, check_place, new_run, resolve_resume
from utils.schedule import (
    LearningRate,
    LRCurve,
    Schedule,
    describe_curve,
    describe_mosaic,
    describe_schedule,
    group_rates,
    lr_curve,
)
from utils.seed import seed_torch
from utils.stopping import EarlyStopping, is_evaluated
from utils.telemetry import Telemetry
from val import DetectSettings, Evaluation, evaluate, load_model, print_scores, save_pictures, score_table, write_scores

MAX_IMGSZ = 640  # largest image size that is chosen unasked
LOSSES = ("box", "cls", "dfl")
ROLLBACK = "rollback.pt"  # in the folder of weights: the way back of `--on-divergence rollback`


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
    prepare: Callable[[Batch, int, int], Batch]
    reseed: Callable[[int, int], None]
    guard: StepGuard
    telemetry: Telemetry
    state: TrainState
    stopping: EarlyStopping
    keeper: Keeper = field(init=False)

    def begin(self) -> None:
        """Make ready for steps: call before those of an epoch, as an evaluation may have been in between."""
        self.model.train()
        hold(self.frozen)
        self.guard.begin()

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start` … of an epoch, on the device."""
        return prefetch(self.loader.epoch(epoch, start), self.precision.device)


@dataclass
class Data:
    """Both splits, as indices and as loaders."""

    config: DataConfig
    splits: Splits
    imgsz: int
    train: Index
    val: Index
    train_loader: Loader
    val_loader: Loader


@dataclass
class Output:
    """Where a run's results go; a process that is not the main one has none."""

    run: RunDir
    description: dict[str, Any]
    loggers: list[Logger]
    lock: RunLock


def parse_opt(argv: list[str] | None = None) -> TrainOptions:
    """Read the command line."""
    words = sys.argv[1:] if argv is None else argv
    return parse(TrainOptions, words, "train.py", "Train a YOLO detector.", elsewhere=flag_hint)


def train_one_epoch(training: Training, progress: Progress) -> None:
    """Train from the state's batch to the end of its epoch.

    The whole of training: batch → predictions → loss → gradients → optimizer step at the lr of `lr_curve` → EMA.
    """
    state = training.state
    training.begin()
    batches = training.keeper.watch(training.batches(state.epoch, state.batch))
    for number, batch in enumerate(batches, state.batch):
        last = (number + 1) % training.accumulate == 0 or number + 1 == len(training.loader)
        loss = backward(training, batch, number, last)
        if last:
            training.lr.apply(state.step)
            update(training)
            state.step, state.batch = state.step + 1, number + 1
        facts = {**mean_losses(state, loss), "lr": plain_lr(training.optimizer)}
        progress.update(facts, len(batch) * dist.world_size())
        if last:
            training.keeper.after_step()
    training.guard.end_epoch(state.means, state.epoch)


def mean_losses(state: TrainState, last: LossTerms) -> dict[str, Tensor]:
    """The epoch's mean losses so far; those of its first batch while no step is done."""
    total = state.means.get("loss")
    return dict(zip(LOSSES, last.parts if total is None else total[:3] / total[3], strict=True))


def end_epoch(training: Training) -> None:
    """Leave the state at the start of the next epoch. It is whole before and after, and not saved in between."""
    state = training.state
    training.lr.end_epoch()
    state.epoch, state.batch, state.means = state.epoch + 1, 0, {}


def backward(training: Training, batch: Batch, number: int, last: bool = True) -> LossTerms:
    """Add a batch's gradients; `number` is its place in the epoch, and an optimizer step follows the `last`."""
    precision = training.precision
    with phase("prepare"):
        batch = training.prepare(batch, training.state.epoch, number)
    training.reseed(training.state.epoch, number)
    with dist.averaging(training.model, now=last):
        with phase("forward"), precision.autocast():
            predictions = training.model(batch.images)
        with phase("loss"):
            loss = training.criterion(predictions, batch.boxes, batch.classes)
        with phase("backward"):
            precision.scaler.scale(loss.total * dist.world_size()).backward()
    training.guard.add(loss.parts, batch.indices)
    return loss


def update(training: Training) -> None:
    """Take one optimizer step with the gradients that were added, at the lr that its groups have."""
    state, optimizer, scaler = training.state, training.optimizer, training.precision.scaler
    scaler.unscale_(optimizer)
    norm = clip_gradients(optimizer, training.clip_grad_norm)
    skipped = training.guard.decide(state.means, state.step, norm)
    with training.telemetry.step(state.means, state.step, norm, skipped):
        scaler.step(optimizer)  # the EMA follows by the optimizer's hook, unless it was skipped
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    training.guard.look(state.step)


def take_losses(state: TrainState) -> dict[str, float]:
    """Return the epoch's mean losses."""
    total = state.means["loss"]
    return {f"train/{name}_loss": mean for name, mean in zip(LOSSES, (total[:3] / total[3]).tolist(), strict=True)}


def fit(training: Training, data: Data, output: Output | None, options: TrainOptions, hyp: Hyp) -> None:
    """Train epoch by epoch: train, evaluate, log, save, until the last epoch or for want of a better one."""
    state, stopping = training.state, training.stopping
    recovery = build_recovery(training, output, options)
    pace, stop = Pace(), False
    while state.epoch < options.epochs and not stop:
        epoch, better = state.epoch, False
        recovery.keep(at_start=state.batch == 0)
        try:
            row, evaluation = train_and_evaluate(training, data, options, pace)
        except TrainingDiverged as error:
            recovery.recover(error)
            training.keeper.changed()
            continue
        if evaluation is not None:
            better = stopping.update(epoch, fitness(row, hyp.fitness))
            print(score_line(evaluation, better and stopping.best_fitness > 0), flush=True)
        end_epoch(training)
        row |= {f"lr/{name}": value for name, value in training.lr.current().items()}
        last = state.epoch == options.epochs
        stop = dist.from_main(evaluation is not None and stopping.should_stop(epoch))
        if dist.is_main():
            for logger in output.loggers:
                logger.log(state.epoch, finite_only(row))
            save(training, output, options, better, last or stop)
            if last or stop:
                remove_state(output.run.weights / ROLLBACK)
        if stop and not last:
            best = stopping.best_epoch + 1
            say(f"stopped: no better {hyp.fitness} for {many(options.patience, 'epoch')} (best: epoch {best})")


def train_and_evaluate(
    training: Training, data: Data, options: TrainOptions, pace: Pace
) -> tuple[dict[str, Any], Evaluation | None]:
    """Train to the end of an epoch; return its row, and its evaluation: the main process has one of some epochs.

    Raises `TrainingDiverged`, in all processes.
    """
    state, evaluation = training.state, None
    epoch = state.epoch
    with Progress(
        len(data.train_loader),
        f"epoch {epoch + 1}/{options.epochs}",
        initial=state.batch,
        epochs_to_come=options.epochs - epoch - 1,
        pace=pace,
        enabled=dist.is_main(),
    ) as progress:
        train_one_epoch(training, progress)
    taken = training.telemetry.take(dict(state.means))  # a stop in the evaluation saves them
    row: dict[str, Any] = {"time": state.seconds, **take_losses(state), **taken}
    if dist.is_main() and is_evaluated(epoch + 1, options.epochs, options.val_period, options.noval):
        with signals.interruptible():
            evaluation = evaluate_ema(training, data, options)
        row |= evaluation.row()
    training.guard.judge_evaluation(epoch, dist.from_main(evaluation is None or evaluation.is_finite))
    return row, evaluation


def build_recovery(training: Training, output: Output | None, options: TrainOptions) -> Recovery:
    """Return what `--on-divergence` asks for."""
    if options.on_divergence == "stop":
        if output is not None:  # of the run before it was stopped: later on it would be the start of no epoch
            remove_state(output.run.weights / ROLLBACK)
        return Stop()

    def save_here(path: Path) -> None:
        if output is not None:
            save_state(path, training.state, output.description)
        dist.barrier()

    def load_here(path: Path) -> None:
        training.state.load_state_dict(load_state(path)["state"])

    path = dist.from_main(output.run.weights / ROLLBACK if output is not None else None)
    return Rollback(training.guard, training.lr.lower, path, save_here, load_here, say)


def evaluate_ema(training: Training, data: Data, options: TrainOptions) -> Evaluation:
    """Evaluate the averaged weights on the validation split."""
    return evaluate(
        training.ema.module,
        data.val_loader,
        data.val,
        data.config.names,
        training.criterion,
        training.precision,
        DetectSettings(nms=options.nms),
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


def build_data(options: TrainOptions, origin: Origin, device: torch.device) -> Data:
    """Read both splits and build their loaders; says what is wrong with the labels and which image size is used."""
    if options.download and dist.world_size() > 1:
        raise UserError("--download: fetch the data set with a single process first, then train with several")
    config = load_data_config(options.data, options.single_cls, options.download)
    splits = read_splits(config, ("train", "val"), options.project, options.check == "full", options.skip_bad)
    for line in splits.lines():
        say(line)
    train, val = splits.indices["train"], splits.indices["val"]
    imgsz = options.imgsz or min(-(-int(train.sizes.max()) // MAX_STRIDE) * MAX_STRIDE, MAX_IMGSZ)
    workers = options.workers if options.workers >= 0 else default_workers(device)
    share: dict[str, Any] = {"seed": options.seed, "epochs": origin.course.planned, "stride": MAX_STRIDE}
    cache = {"auto": auto_cache([train, val], imgsz), "off": None}.get(options.cache, options.cache)
    cache = None if dist.any_process(cache is None) else cache  # where memory is short on one machine, all do without
    share["cache"] = None if options.plan else cache
    train_set = DetectionDataset(
        train, imgsz, origin.hyp, augment=True, rect=options.rect, defer_colour=defers_colour(device), **share
    )
    val_set = DetectionDataset(val, imgsz, origin.hyp, augment=False, rect=True, **share)
    if options.batch_size % dist.world_size():
        raise UserError(f"--batch-size {options.batch_size}: must be a multiple of the {dist.world_size()} processes")
    each = options.batch_size // dist.world_size()
    common: dict[str, Any] = {"workers": workers, "seed": options.seed, "pin_memory": device.type == "cuda"}
    low, high = multi_scale_range(imgsz, origin.hyp.multi_scale, MAX_STRIDE)
    loader = Loader(
        train_set,
        each,
        shuffle=True,
        rank=dist.rank(),
        world_size=dist.world_size(),
        **common,
    )
    val_loader = Loader(val_set, each, shuffle=False, **common)
    if low == 1 == loader.smallest_batch:
        raise UserError(
            f"--img {imgsz}: of {len(train)} images, {each} at a time, a batch comes to one image of {MAX_STRIDE} "
            f"pixels, and batch norm can't train on its coarsest map, one value: use a larger --img or another --batch"
        )
    chosen = "" if options.imgsz else " (longest side of the training images, at most 640)"
    chosen += f", in training {low * MAX_STRIDE} to {high * MAX_STRIDE}" if origin.hyp.multi_scale else ""
    classes = many(config.nc, "class")
    say(f"data         {config.file}: {classes}, {len(train)} training and {len(val)} validation images")
    for line in [*train_set.doubts(), *absent(config.names, train)]:
        say(line)
    say(f"image size   {imgsz}{chosen}; image cache {cache or 'off'}; {many(workers, 'loader worker')}")
    if workers * dist.local_world_size() > cores():
        say(f"warning: {many(workers, 'worker')} a process: more than the {many(cores(), 'core')} of this machine")
    return Data(config, splits, imgsz, train, val, loader, val_loader)


def absent(names: Sequence[str], index: Index) -> list[str]:
    """Say which classes have no object to learn from."""
    counts = np.bincount(index.classes[~index.crowd], minlength=len(names))
    gone = [printable(names[i]) for i in np.flatnonzero(counts == 0)]
    return [f"warning: no training object is of class {some(gone, 5)}"] if gone else []


def build_training(
    options: TrainOptions, origin: Origin, data: Data, precision: Precision, start: dict[str, Any] | None = None
) -> tuple[Training, LRCurve]:
    """Build model, optimizer, schedule and state, and say what will be trained and how.

    start: the checkpoint of `--weights`, where it was read already.
    """
    hyp = origin.hyp
    model, source = make_model(options, origin, data, precision, start)
    frozen = freeze(model, options.freeze)
    accumulate, _, lr0, decay = plan = plan_update(hyp, options.batch_size, len(data.train))
    optimizer = build_optimizer(model, hyp, lr0, decay, fused=precision.device.type in ("cpu", "cuda"))
    ema = ModelEMA(model, hyp.ema_decay, hyp.ema_tau)
    guard = StepGuard(model, optimizer, data.train.path, mixed=precision.mode != "off")
    optimizer.register_step_post_hook(lambda *_: ema.update_parameters(model, guard.skipped))
    steps = -(-len(data.train_loader) // accumulate)
    closing = 0 if options.rect or not (hyp.mosaic or hyp.mixup) else hyp.close_mosaic
    schedule, rates = Schedule(hyp, origin.course, steps, origin.custom), group_rates(optimizer, hyp.warmup_bias_lr)
    lr, curve = LearningRate(optimizer, schedule, rates), lr_curve(schedule, rates, closing)
    say(f"model        {model.config.name}, {count_parameters(model):,} parameters; {source}")
    for line in (
        *describe_frozen(frozen, source.trained),
        f"device       {precision.device}, {precision.description}{describe_processes(options.batch_size)}",
        *describe_update(hyp, options.batch_size, plan),
        *idle_scales(model, hyp.lr_scale),
        f"schedule     {describe_schedule(hyp, options.schedule, lr0 * schedule.factor(origin.course.epochs - 1))}",
        *describe_mosaic(hyp.mosaic, hyp.mixup, options.rect, hyp.close_mosaic, curve),
        *(f"warning: {doubt}" for doubt in [*doubts(hyp.optimizer, hyp.lr0), *gain_doubts(hyp)]),
        *describe_groups(model, optimizer),
        *describe_curve(curve),
    ):
        say(line)
    stopping = EarlyStopping(options.patience)
    parts = {
        "model": model,
        "ema": ema,
        "optimizer": NamedOptimizerState(model, optimizer),
        "scheduler": lr.scheduler,
        "scaler": precision.scaler,
        "stopping": stopping,
        "guard": guard,
    }
    training = Training(
        model=dist.wrap(model, precision.device),
        ema=ema,
        frozen=frozen,
        criterion=DetectionLoss(hyp, data.config.nc),
        optimizer=optimizer,
        lr=lr,
        accumulate=accumulate,
        clip_grad_norm=hyp.clip_grad_norm,
        precision=precision,
        loader=data.train_loader,
        prepare=preparation(options.seed, data.imgsz, hyp.multi_scale, defers_colour(precision.device)),
        reseed=reseeding(options.seed, precision.device),
        guard=guard,
        telemetry=Telemetry(optimizer, hyp.clip_grad_norm, steps),
        state=TrainState(parts),
        stopping=stopping,
    )
    return training, curve


def describe_processes(batch_size: int) -> str:
    count = dist.world_size()
    return f"; {count} processes, {many(batch_size // count, 'image')} of a batch each" if count > 1 else ""


def make_model(
    options: TrainOptions, origin: Origin, data: Data, precision: Precision, start: dict[str, Any] | None = None
) -> tuple[YOLO, Start]:
    """Return the model of the run, on its device, and where its weights come from."""
    if origin.content is not None:
        model, source = rebuild_model(origin.content["model"], data.config.names)
    else:
        model, source = build_model(
            options.cfg,
            options.weights,
            data.config.names,
            options.seed,
            cfg_given="cfg" in options.explicit,
            download=options.download,
            content=start,
        )
    model = dist.synchronised(model, precision.device) if options.sync_bn else model
    model = model.to(precision.device, memory_format=torch.channels_last)
    if options.compile:
        regions, fixed = (model.backbone, model.neck, model.head), not (options.rect or origin.hyp.multi_scale)
        compile_regions(regions, precision.device, fixed)
    return model, source


def preparation(seed: int, imgsz: int, scale: float, recolour: bool) -> Callable[[Batch, int, int], Batch]:
    """Return what is done to a batch, by its (epoch, number), on the device: resized where `scale` is not 0, and given
    the colours that the loader left to do."""

    def prepare(batch: Batch, epoch: int, number: int) -> Batch:
        if scale:
            size = multi_scale_size(seed, epoch, number, imgsz, scale, MAX_STRIDE)
            batch = resize_batch(batch, size, MAX_STRIDE)
        return batch.recoloured() if recolour else batch

    return prepare


def reseeding(seed: int, device: torch.device) -> Callable[[int, int], None]:
    """Return what keys the random numbers of a batch's forward pass by its (epoch, number): some of torchvision's
    backbones leave out parts of themselves at random."""
    return lambda epoch, number: seed_torch(device, seed, "forward", epoch, number, dist.rank())


def defers_colour(device: torch.device) -> bool:
    """Does the device change the colours? On a CPU it would be the same work in another place."""
    return device.type == "cuda"


def say(text: str) -> None:
    """Print for the user, once however many processes train."""
    if dist.is_main():
        print(text, flush=True)


def open_output(
    options: TrainOptions, origin: Origin, data: Data, training: Training, lock: RunLock | None
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
        "hyp": origin.hyp.to_dict(),
        "options": options.to_dict(),
        "course": origin.course.to_dict(),
        "schedule_sha256": origin.custom.sha256 if origin.custom else "",
        "fingerprint": run_fingerprint(data, training),
    }
    run = RunDir(origin.folder) if origin.folder else new_run(options.project, options.name, options.exist_ok)
    lock = lock or RunLock(run.path)
    if origin.folder is None:
        run.forget_weights(keep=options.weights)
    anew = origin.folder is None or bool(options.extend) or origin.force
    if anew or not (run.path / HYP).exists():
        run.write_text(HYP, origin.hyp.to_yaml())
    if anew or options.data != origin.content["options"]["data"]:
        run.write_yaml(OPTIONS, options.to_dict())
    for line in data.splits.write_list(run):
        say(line)
    if origin.taken is not None:
        restart_from(origin.taken, run.weights / LAST.name, training.state, description)
    run.write_yaml("fingerprint.yaml", description["fingerprint"], "What the weights depend on beside the options.")
    return Output(run, description, build_loggers(run.path, after_epoch=training.state.epoch), lock)


def run_fingerprint(data: Data, training: Training) -> dict[str, Any]:
    read = {"train": data.train.digest, "val": data.val.digest, "files": data.train.stored, "imgsz": data.imgsz}
    read["names"] = list(data.config.names)
    return fingerprint(read, training.precision.device, training.precision.description, dist.world_size())


def build_keeper(training: Training, output: Output | None, options: TrainOptions, resumed: bool) -> Keeper:
    """Build what decides when the state is saved; in a process that is not the main one it writes nothing."""
    path = dist.from_main(str(output.run.path) if output is not None else None)

    def write() -> None:
        if output is not None:
            save_state(output.run.weights / LAST.name, training.state, output.description)

    keeper = Keeper(
        training.state,
        write,
        minutes=0 if options.nosave else options.save_minutes,
        resume=resume_command(path, options.schedule),
        buffers=training.model.buffers() if training.accumulate > 1 else (),
    )
    if resumed:
        keeper.on_disk()
    return keeper


def draw_start(training: Training, curve: LRCurve, data: Data, run: RunDir, anew: bool) -> None:
    """Draw what is known before training: the lr; of a new run the labels, and three batches as the model sees them."""
    with signals.interruptible():
        plot_lr(curve, run.path / "lr.png", training.state.step)
        if anew:
            draw_data(data, run)


def draw_data(data: Data, run: RunDir) -> None:
    """Draw the labels, and the first three batches as the model sees them."""
    names, train = data.config.names, data.train
    boxes, classes, offsets = without_crowds(train)
    plot_labels(classes, boxes, train.sizes, offsets, names, run.path / "labels.png")
    for number, batch in zip(range(3), data.train_loader.epoch(0), strict=False):
        path = run.path / f"train_batch{number}.jpg"
        plot_images(batch.recoloured().images, batch.boxes, batch.classes, names, path)


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
        table = score_table(evaluation, data.val, data.config.names)
        print_scores(evaluation, table, verbose=False)
        write_scores(output.run, table)
        if not options.noplots:
            save_pictures(output.run, evaluation, data.val_loader, data.val, data.config.names)
    if not options.noplots:
        plot_results(output.run.path / "results.csv", output.run.path / "results.png")
    print(f"{training.state.seconds:.0f} s of training; results in {output.run.path}")


def restore(training: Training, data: Data, options: TrainOptions, origin: Origin) -> None:
    """Load the saved state of a run that goes on, and say which kind of run this is."""
    if origin.content is None:
        if options.weights.endswith(".pt"):
            say(f"fine-tuning  a new run that starts from {options.weights}")
        return
    now, state = run_fingerprint(data, training), training.state
    for text in check_same_run(origin.content.get("fingerprint"), now, origin.folder, origin.force):
        say(f"warning: {text}")
    state.load_state_dict(origin.content["state"], origin.force)
    training.lr.refresh()
    if options.extend:
        training.stopping.restart(state.epoch)
        jump = origin.jump(origin.before, origin.course, state.epoch)
        epochs = f"from {state.epoch} to {origin.course.epochs} epochs"
        say(f"extending    {origin.folder} {epochs} ({options.extend}): {jump}")
    else:
        batch = f" and {many(state.batch, 'batch')}" if state.batch else ""
        say(f"resuming     {origin.folder} after epoch {state.epoch}{batch}")
    if training.guard.rollbacks:
        say(f"rolled back  {many(training.guard.rollbacks, 'time')} so far: {lowered(training.guard.rollbacks)}")


def draw_plan(options: TrainOptions, training: Training, curve: LRCurve) -> None:
    """Draw the lr of the whole run into a folder of its own, the same for every plan."""
    folder = side_folder(options, "plan")
    plot_lr(curve, folder / "lr.png", training.state.step)
    say(f"plan         drawn in {folder / 'lr.png'}; nothing was trained")


def find_lr(training: Training, options: TrainOptions, hyp: Hyp) -> None:
    """Run the range test with the very objects of training, and write and say what it found."""
    batches = begin_steps(training)

    def step(_: int) -> Tensor:
        done = [(loss.parts.sum(), images) for loss, images in step_backward(training, batches)]
        update(training)
        training.state.step += 1
        loss = dist.mean(torch.stack([loss for loss, _ in done]).mean())
        facts = {"loss": loss, "lr": plain_lr(training.optimizer)}
        progress.update(facts, sum(images for _, images in done) * dist.world_size())
        return loss

    bounds = (options.lr_find_from, options.lr_find_to, options.lr_find_steps)
    say(f"lr find      {many(options.lr_find_steps, 'step')} at most, of {many(training.accumulate, 'batch')} each")
    with Progress(options.lr_find_steps, "range test", enabled=dist.is_main()) as progress:
        result = range_test(training.optimizer, step, *bounds, lr0=hyp.lr0)
    suggestion, folder = suggest(result), side_folder(options, "lr_find")
    for line in describe(result, suggestion):
        say(line)
    for doubt in doubts(hyp.optimizer, suggestion.lr) if suggestion.lr else ():
        say(f"warning: {doubt}")
    if dist.is_main():
        write_csv(result, folder / "lr_find.csv")
        curves = (result.lr, result.loss, result.smoothed)
        plot_lr_find(*curves, suggestion.marks, suggestion.recommended, folder / "lr_find.png")
    say(f"lr find      results in {folder}; nothing else was written, and no run begun")


def profile_run(training: Training, options: TrainOptions) -> None:
    """Time `--profile` steps of the very training, and write and say where their time goes."""
    batches, lr = begin_steps(training), training.lr

    def step() -> int:
        images = sum(count for _, count in step_backward(training, batches))
        lr.apply(training.state.step)
        with phase("update"):
            update(training)
        training.state.step += 1  # of which some are looked at closely, as in training
        return images

    folder, steps = side_folder(options, "profile"), options.profile
    say(f"profile      {WARM_UP} steps to warm up, then {steps} that are timed and {steps} that are recorded")
    for line in profile_steps(step, steps, folder if dist.is_main() else None, training.precision.device):
        say(line)
    say(f"profile      in {folder}: profile.txt, and trace.json for chrome://tracing; no run begun")


def begin_steps(training: Training) -> Iterator[tuple[int, Batch]]:
    """Make ready for steps outside a run; return (place in its epoch, batch) without end."""
    training.begin()
    return ((number, batch) for epoch in count() for number, batch in enumerate(training.batches(epoch)))


def step_backward(training: Training, batches: Iterator[tuple[int, Batch]]) -> Iterator[tuple[LossTerms, int]]:
    """Add the gradients of an optimizer step's batches, of `begin_steps`; yield each one's loss and count of images."""
    for left in reversed(range(training.accumulate)):
        with phase("loader"):
            number, batch = next(batches)
        yield backward(training, batch, number, last=left == 0), len(batch)


def side_folder(options: TrainOptions, name: str) -> Path:
    """Return the folder of something that is no run, the same each time; one in it where the user names one."""
    folder = Path(options.project) / name / (options.name if "name" in options.explicit else "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    return folder


@dist.among_others()
@within_memory("a smaller --batch or --imgsz needs less")
def main(argv: list[str] | None = None) -> None:
    """Wire a run together and train it."""
    options = parse_opt(argv)
    if options.help_hyp:
        print(hyp_table())
        return
    lock = None
    if options.resume is None:
        origin = start_anew(options)
    else:
        path = resolve_resume(options.resume, options.project)
        lock = RunLock(path.parents[1]) if dist.is_main() else None  # before the state is read
        options, origin = go_on(replace(options, resume=str(path)), path)
    with before_training(way_on(options, origin)):
        build_and_run(options, origin, lock)
    dist.stop()


def way_on(options: TrainOptions, origin: Origin) -> str | None:
    """The command that a resumed run goes on with if it is stopped before it is trained; None for a new run."""
    if origin.content is None:
        return None
    longer = f" --epochs {options.epochs} --extend {options.extend}" if options.extend else ""
    from_last = Path(options.resume).name == LAST.name
    return f"{resume_command(origin.folder if from_last else options.resume, options.schedule)}{longer}"


def resume_command(folder: str | Path | None, schedule: str) -> str:
    return f"{dist.launcher()} train.py {resume_words(folder, schedule)}"


def build_and_run(options: TrainOptions, origin: Origin, lock: RunLock | None) -> None:
    """Build all that a run is made of, and train, or do what takes the place of training."""
    if origin.folder is None:
        check_place(options.project, options.name, options.exist_ok)
    new = origin.content is None
    start = check_request(options.cfg, options.weights * new, options.imgsz, options.freeze * new)
    set_deterministic(options.deterministic)
    device = select_device(options.device, dist.local_rank(), dist.local_world_size())
    if device.type == "cpu":
        keep_freed_memory()
    precision = Precision(device, options.amp)
    dist.start(device)
    data = build_data(options, origin, device)
    training, curve = build_training(options, origin, data, precision, start)
    del start  # the model has its weights
    restore(training, data, options, origin)
    with contextlib.closing(data.train_loader), contextlib.closing(data.val_loader):
        if options.plan:
            draw_plan(options, training, curve)
        elif options.lr_find:
            find_lr(training, options, origin.hyp)
        elif options.profile:
            profile_run(training, options)
        else:
            run(training, curve, data, options, origin, lock)


def run(
    training: Training, curve: LRCurve, data: Data, options: TrainOptions, origin: Origin, lock: RunLock | None
) -> None:
    """Train, and write the run folder."""
    output = open_output(options, origin, data, training, lock)
    training.keeper = build_keeper(training, output, options, origin.content is not None and not options.extend)
    with training.keeper:
        if dist.is_main() and not options.noplots:
            draw_start(training, curve, data, output.run, anew=origin.content is None)
        fit(training, data, output, options, origin.hyp)
    if dist.is_main():
        finish(training, data, output, options)


if __name__ == "__main__":
    gc.freeze()  # what was imported stays to the end: no collection looks at it again
    gc.enable()
    signals.catch()
    try:
        run_cli(main)
    finally:
        signals.hold()  # all is said: one that comes now would end as a traceback of the interpreter's end
