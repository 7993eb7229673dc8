"""train.py from the command line: what a run writes, that its lr is the planned one, and that a resumed run is the
uninterrupted one."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml

import detect
import models.yolo
import train
import val
from data.shapes import NAMES, ensure_shapes
from utils.checkpoint import load_checkpoint
from utils.errors import Stopped, TrainingDiverged, UserError
from utils.lr_finder import Suggestion

FAST = ["--imgsz", "64", "--batch", "4", "--device", "cpu", "--workers", "0", "--noplots"]


def run(data: Path, project: Path, *flags: str) -> Path:
    """Train, and return the run folder."""
    before = set(project.iterdir()) if project.exists() else set()
    train.main(["--data", str(data), "--project", str(project), *FAST, *flags])
    new = set(project.iterdir()) - before
    return new.pop() if new else max(project.iterdir(), key=lambda p: p.stat().st_mtime)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def same(a: object, b: object) -> bool:
    """Equal to the last bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


class Interrupted(Exception):
    pass


def interrupt_after(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Let the run die right after it saved `epoch` (counted from 1)."""
    save = train.save

    def save_and_die(training, *args, **kwargs):
        save(training, *args, **kwargs)
        if training.state.epoch == epoch:
            raise Interrupted

    monkeypatch.setattr(train, "save", save_and_die)


@pytest.mark.parametrize("flags", [("--batch", "1"), ("--batch", "11"), ("--batch", "4", "--set", "multi_scale=0.6")])
def test_a_batch_of_one_value_a_channel_is_refused_before_the_first_step(tiny_data, tmp_path, flags):
    """Of 12 images."""
    words = r"--img \d+: of 12 images, \d+ at a time, a batch comes to one image of 32 pixels, and batch norm can't"
    if "--set" in flags:
        run(tiny_data, tmp_path, *flags, "--img", "64", "--epochs", "1")  # batches of four
        flags = ("--batch", "11", *flags[2:], "--img", "64")
    else:
        flags = (*flags, "--img", "32")
    with pytest.raises(UserError, match=words):
        run(tiny_data, tmp_path / "none", *flags, "--epochs", "1")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_resumed_run_is_the_uninterrupted_one(tiny_data, tmp_path, monkeypatch, optimizer):
    flags = ["--epochs", "4", "--optimizer", optimizer, "--multi-scale", "--set", "close_mosaic=1", "nominal_batch=8"]
    whole = run(tiny_data, tmp_path / "whole", *flags)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Interrupted):
            run(tiny_data, tmp_path / "parts", *flags)
    parts = tmp_path / "parts" / "exp"
    assert [row["epoch"] for row in rows(parts)] == ["1", "2"]
    train.main(["--resume", str(parts), "--workers", "2"])

    expected, got = (load_checkpoint(folder / "weights" / "last.pt")["state"] for folder in (whole, parts))
    assert expected["progress"].pop("seconds") > 0 and got["progress"].pop("seconds") > 0
    assert same(expected, got)
    for one, other in zip(rows(whole), rows(parts), strict=True):
        assert {**one, "time": ""} == {**other, "time": ""}
    times = [float(row["time"]) for row in rows(parts)]
    assert times == sorted(times)


def test_a_backbone_that_draws_numbers_is_trained_and_resumed_alike(tiny_data, tmp_path, monkeypatch):
    """EfficientNet leaves out layers at random (stochastic depth)."""
    flags = ["--weights", "torchvision:efficientnet_b0:random", "--epochs", "2", "--noval"]
    whole = run(tiny_data, tmp_path / "whole", *flags)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            run(tiny_data, tmp_path / "parts", *flags)
    torch.rand(3)  # another process has another state
    train.main(["--resume", str(tmp_path / "parts" / "exp")])
    expected, got = (load_checkpoint(folder / "weights" / "last.pt") for folder in (whole, tmp_path / "parts" / "exp"))
    assert same(expected["state"]["components"]["model"], got["state"]["components"]["model"])


def test_a_hyp_file_that_changed_is_no_resumed_run(tiny_data, tmp_path, monkeypatch):
    hyp = tmp_path / "my.yaml"
    hyp.write_text("lr0: 0.001\n")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            run(tiny_data, tmp_path / "runs", "--epochs", "2", "--hyp", str(hyp), "--set", "lrf=0.5")
    resume = ["--resume", str(tmp_path / "runs" / "exp"), "--hyp", str(hyp)]
    hyp.write_text("lr0: 0.0001\n")
    with pytest.raises(
        UserError, match=r"--hyp .*my.yaml: lr0 is 0.0001, this run has 0.001, and a resumed run is the"
    ):
        train.main(resume)
    hyp.write_text("lr0: 0.001\n")
    train.main(resume)


def test_without_the_nms_free_branch_nms_is_asked_for(tiny_data, tmp_path):
    with pytest.raises(UserError, match="one_to_one 0 leaves the NMS-free branch untrained.*: add --nms"):
        run(tiny_data, tmp_path, "--epochs", "1", "--set", "one_to_one=0")
    folder = run(tiny_data, tmp_path, "--epochs", "1", "--set", "one_to_one=0", "--nms")
    best = str(folder / "weights" / "best.pt")
    for program, more in ((val, []), (detect, ["--source", str(tiny_data.parent / "images" / "val")])):
        with pytest.raises(UserError, match="best.pt: was trained without the NMS-free branch .*: add --nms"):
            program.main(["--weights", best, "--project", str(tmp_path / "out"), *more])
        program.main(["--weights", best, "--project", str(tmp_path / "out"), *more, "--nms"])


def test_weights_that_hardly_fit_are_said_and_no_trained_backbone(tiny_data, tiny_run, tmp_path, capsys):
    best = str(tiny_run / "weights" / "best.pt")
    run(tiny_data, tmp_path, "--plan", "--weights", best, "--freeze", "backbone")
    said = capsys.readouterr().out
    assert "100% of the numbers" in said and "random as they are" not in said
    run(tiny_data, tmp_path, "--plan", "--weights", best, "--cfg", "yolo-s", "--freeze", "backbone")
    said = capsys.readouterr().out
    (share,) = re.findall(r"tensors transferred, ([\d.]+)% of the numbers;.*; is --cfg that of the checkpoint\?", said)
    assert float(share) < 5 and "random as they are" in said
    run(tiny_data, tmp_path, "--plan", "--weights", "torchvision:resnet18:random", "--freeze", "backbone")
    assert "random as they are" in capsys.readouterr().out


def test_plans_go_into_no_folder_of_a_run(tiny_data, tmp_path):
    folder = run(tiny_data, tmp_path, "--epochs", "1", "--noval", "--name", "mine")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    train.main(["--data", str(tiny_data), "--project", str(tmp_path), *FAST, "--plan", "--name", "mine"])
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert (tmp_path / "plan" / "mine" / "lr.png").exists()


@pytest.mark.parametrize("schedule", ["", "my_module:my_factor"])
def test_the_command_to_go_on_with_can_be_typed(schedule):
    command = train.resume_command("/runs of mine/exp", schedule)
    more = ["--schedule", schedule] if schedule else []
    assert shlex.split(command)[1:] == ["train.py", "--resume", "/runs of mine/exp", *more]


def test_same_seed_same_weights_other_seed_other_weights(tiny_data, tmp_path):
    folders = [run(tiny_data, tmp_path, "--epochs", "1", "--seed", seed) for seed in ("3", "3", "4")]
    first, second, third = (load_checkpoint(f / "weights" / "last.pt")["state"]["components"] for f in folders)
    assert same(first["model"], second["model"])
    assert not same(first["model"], third["model"])


def test_linear_lr_logs_the_factors_by_hand(tiny_data, tmp_path):
    flags = ["--linear-lr", "--epochs", "5", "--set", "lr0=0.01", "lrf=0.2", "warmup_epochs=0"]
    folder = run(tiny_data, tmp_path, *flags)
    expected = [0.2 + share * 0.8 for share in (1, 0.75, 0.5, 0.25, 0)]
    for group in ("decay", "no_decay", "bias"):
        assert [float(row[f"lr/{group}"]) / 0.01 for row in rows(folder)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("schedule", ["--linear-lr", "--cos-lr"])
def test_the_shortest_runs_train(tiny_data, tmp_path, epochs, schedule):
    folder = run(tiny_data, tmp_path, "--epochs", str(epochs), schedule)
    table = rows(folder)
    assert [row["epoch"] for row in table] == [str(e + 1) for e in range(epochs)]
    assert all(float(row["train/box_loss"]) > 0 for row in table)


def test_run_folder_and_its_files(tiny_data, tmp_path):
    flags = [flag for flag in FAST if flag != "--noplots"]
    train.main(["--data", str(tiny_data), "--project", str(tmp_path), *flags, "--epochs", "1", "--save-period", "1"])
    folder = tmp_path / "exp"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {"opt.yaml", "hyp.yaml", "lr.png", "results.csv", "results.png", "labels.png", "confusion_matrix.png"}
    expected |= {f"train_batch{i}.jpg" for i in range(3)} | {f"{c}_curve.png" for c in ("PR", "F1", "P", "R")}
    expected |= {"val_batch0_labels.jpg", "val_batch0_pred.jpg"}
    expected |= {f"weights/{name}.pt" for name in ("last", "best", "epoch1")}
    assert expected <= names
    assert yaml.safe_load((folder / "opt.yaml").read_text())["imgsz"] == 64
    assert yaml.safe_load((folder / "hyp.yaml").read_text())["lr0"] > 0


def test_image_size_comes_from_the_data(tiny_data, tmp_path, capsys):
    train.main(["--data", str(tiny_data), "--project", str(tmp_path), "--epochs", "1", "--noplots", "--batch", "6"])
    assert "image size   64 (longest side" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "exp" / "weights" / "best.pt")["imgsz"] == 64


def test_frozen_backbone_stays_to_the_last_bit(tiny_data, tmp_path):
    folder = run(tiny_data, tmp_path, "--epochs", "1", "--freeze", "backbone", "--seed", "5")
    fresh = train.build_model("yolo-n", "", ("square", "bar"), 5, cfg_given=True)[0].state_dict()
    trained = load_checkpoint(folder / "weights" / "last.pt")["state"]["components"]["model"]
    assert all(torch.equal(trained[name], fresh[name]) for name in fresh if name.startswith("backbone."))
    assert not torch.equal(trained["head.boxes.0.2.weight"], fresh["head.boxes.0.2.weight"])


def test_fine_tuning_starts_from_the_checkpoint_and_says_what_fits(tiny_data, tmp_path, capsys):
    first = run(tiny_data, tmp_path, "--epochs", "1")
    other = tiny_data.with_name("other.yaml")
    other.write_text(tiny_data.read_text().replace("square, bar", "bar, square, disc"))
    capsys.readouterr()
    run(other, tmp_path, "--epochs", "1", "--weights", str(first / "weights" / "best.pt"))
    said = capsys.readouterr().out
    assert (
        "over 99.9% of the numbers; classes kept: bar, square; new classes: disc" in said
        and "fine-tuning  a new run that starts from" in said
    )


def test_early_stopping_stops(tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "fitness", lambda *_: 0.5)  # no epoch beats the first
    folder = run(tiny_data, tmp_path, "--epochs", "6", "--patience", "2")
    assert len(rows(folder)) == 3
    assert "no better mAP50-95 for 2 epochs (best: epoch 1)" in capsys.readouterr().out


def test_an_epoch_that_is_not_validated_ends_no_run(tiny_data, tmp_path, monkeypatch):
    """Validated after epochs 3 and 6, and no better: patience of 1 is over after 3 more, not after 1."""
    monkeypatch.setattr(train, "fitness", lambda *_: 0.5)
    folder = run(tiny_data, tmp_path, "--epochs", "9", "--val-period", "3", "--patience", "1")
    assert [bool(row["metrics/mAP50"]) for row in rows(folder)] == [False, False, True] * 2


def test_a_stop_on_the_way_to_a_validation_is_resumed(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "fitness", lambda *_: 0.5)
    save = train.save

    def save_and_die(training, *others):
        save(training, *others)
        if training.state.epoch == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "save", save_and_die)
        run(tiny_data, tmp_path, "--epochs", "9", "--val-period", "3", "--patience", "1")
    train.main(["--resume", str(tmp_path / "exp")])
    assert len(rows(tmp_path / "exp")) == 6


def test_validation_and_saving_as_asked(tiny_data, tmp_path):
    folder = run(tiny_data, tmp_path, "--epochs", "3", "--val-period", "2")
    assert [bool(row["metrics/mAP50"]) for row in rows(folder)] == [False, True, True]
    folder = run(tiny_data, tmp_path, "--epochs", "3", "--noval")
    assert [bool(row["metrics/mAP50"]) for row in rows(folder)] == [False, False, True]


def test_a_loss_that_is_no_number_ends_the_run_and_saves_nothing(tiny_data, tmp_path):
    with pytest.raises(TrainingDiverged, match="epoch 1: the training loss was never finite"):
        run(tiny_data, tmp_path, "--epochs", "2", "--set", "box=1e38", "dfl=1e38")
    assert not list((tmp_path / "exp" / "weights").iterdir())


def test_resuming_a_run_that_is_over_explains_the_ways_on_with_numbers(tiny_data, tmp_path):
    """linear from 0.01 to 0.002: over 2 epochs it is 0.01, 0.002; over 5 the third is 0.006."""
    folder = run(tiny_data, tmp_path, "--epochs", "2", "--linear-lr", "--set", "lr0=0.01", "lrf=0.2", "warmup_epochs=0")
    for flags in ([], ["--epochs", "5"]):
        with pytest.raises(UserError, match="has trained all of its 2 epochs") as caught:
            train.main(["--resume", str(folder), *flags])
    replan, tail, weights = str(caught.value).splitlines()[1:]
    assert f"--resume {folder} --epochs 5 --extend replan" in replan
    assert "lr 0.002 in epoch 2 -> 0.006 in epoch 3 (x 3), 0.002 in epoch 5" in replan
    assert "--extend tail" in tail and "lr 0.002 in epoch 2 -> 0.002 in epoch 3 (no jump)" in tail
    assert f"--weights {folder / 'weights' / 'best.pt'}" in weights and "a new run" in weights


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "9"], "--epochs 9: this run has 3"),
        (["--batch", "2"], "--batch-size 2: this run has 4"),
        (["--linear-lr"], "--linear-lr: this run is without it"),
        (["--epochs", "9", "--extend", "tail"], "is at epoch 1 of 3; --resume finishes it"),
    ],
)
def test_resume_refuses_what_would_be_another_run(tiny_data, tmp_path, monkeypatch, flags, message):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            run(tiny_data, tmp_path, "--epochs", "3")
    with pytest.raises(UserError, match=message):
        train.main(["--resume", str(tmp_path / "exp"), *flags])


@pytest.mark.parametrize("anew", [True, False], ids=["--data", "from another folder"])
def test_a_run_whose_data_moved_is_resumed_exactly(tiny_data, tmp_path, monkeypatch, capsys, anew):
    """`--data` says where they lie now. A yaml that stayed is found from any working directory."""
    whole = run(tiny_data, tmp_path / "whole", "--epochs", "2")
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    shutil.copytree(tiny_data.parent, home)
    monkeypatch.chdir(home)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            run(Path("tiny.yaml"), tmp_path / "parts", "--epochs", "2")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    parts = tmp_path / "parts" / "exp"
    if anew:
        home.rename(elsewhere / "data")
        with pytest.raises(UserError, match="no such yaml file"):
            train.main(["--resume", str(parts)])
        train.main(["--resume", str(parts), "--data", "data/tiny.yaml"])
    else:
        train.main(["--resume", str(parts)])
    expected, got = (load_checkpoint(folder / "weights" / "last.pt") for folder in (whole, parts))
    assert same(expected["state"]["components"], got["state"]["components"])
    assert got["data"] == str((elsewhere / "data" if anew else home) / "tiny.yaml")


@pytest.mark.parametrize("change", ["labels", "names", "classes"])
def test_other_data_are_another_run(tiny_data, tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            run(tiny_data, tmp_path / "runs", "--epochs", "2")
    shutil.copytree(tiny_data.parent, tmp_path / "data")
    yaml_file = tmp_path / "data" / "tiny.yaml"
    if change == "labels":
        next((tmp_path / "data" / "labels" / "train").iterdir()).write_text("0 0.5 0.5 0.5 0.5\n")
    else:
        names = "[bar, square]" if change == "names" else "[square, bar, ring]"
        yaml_file.write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
    what = "data/train was" if change == "labels" else "data/names 0 was square, is bar"
    resume = ["--resume", str(tmp_path / "runs" / "exp"), "--data", str(yaml_file)]
    if change == "classes":
        for force in ([], ["--force"]):
            with pytest.raises(UserError, match="the data have 3 classes, this run's model 2: it can't go on"):
                train.main([*resume, *force])
        return
    with pytest.raises(UserError, match=f"would not go on as the same run: {what}.*--force"):
        train.main(resume)
    train.main([*resume, "--force"])
    assert rows(tmp_path / "runs" / "exp")[-1]["epoch"] == "2"


LINEAR = ["--linear-lr", "--set", "lr0=0.01", "lrf=0.2", "warmup_epochs=0", "close_mosaic=1"]
EXTENDED = {"replan": [1, 0.2, 0.6, 0.4, 0.2], "tail": [1, 0.2, 0.2, 0.2, 0.2]}  # of 1 - 0.8·x/1, then 1 - 0.8·x/4


@pytest.mark.parametrize("mode", EXTENDED)
def test_a_run_that_is_over_is_extended_and_the_extended_run_resumes_exactly(
    tiny_data, tmp_path, monkeypatch, capsys, mode
):
    whole, parts = (run(tiny_data, tmp_path / name, "--epochs", "2", *LINEAR) for name in ("whole", "parts"))
    capsys.readouterr()
    extend = ["--epochs", "5", "--extend", mode]
    train.main(["--resume", str(whole), *extend])
    assert f"extending    {whole} from 2 to 5 epochs ({mode}): lr 0.002 in epoch 2 -> " in capsys.readouterr().out
    assert [float(row["lr/decay"]) / 0.01 for row in rows(whole)] == pytest.approx(EXTENDED[mode])
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(Interrupted):
            train.main(["--resume", str(parts), *extend])
    capsys.readouterr()
    train.main(["--resume", str(parts)])
    assert f"resuming     {parts} after epoch 4" in capsys.readouterr().out
    expected, got = (load_checkpoint(folder / "weights" / "last.pt") for folder in (whole, parts))
    assert expected["course"] == got["course"] == {"first": 2, "extensions": [[2, 5, mode]]}
    for content in (expected, got):
        content["state"]["progress"].pop("seconds")
    assert same(expected["state"], got["state"])


def test_an_extension_says_how_long(tiny_data, tmp_path, capsys):
    folder = run(tiny_data, tmp_path, "--epochs", "1")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="--extend tail: goes with --resume .* and --epochs N"):
        train.main(["--resume", str(folder), "--extend", "tail"])
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_stopped_early_is_extended_and_is_patient_anew(tiny_data, tmp_path, monkeypatch):
    """No epoch beats the first: it stops after 3, and after 2 more."""
    monkeypatch.setattr(train, "fitness", lambda *_: 0.5)
    folder = run(tiny_data, tmp_path, "--epochs", "9", "--patience", "2")
    with pytest.raises(UserError, match="this run stopped early, after epoch 3 of 9.* for example to 9 epochs"):
        train.main(["--resume", str(folder)])
    train.main(["--resume", str(folder), "--epochs", "9", "--extend", "tail"])
    assert len(rows(folder)) == 6


@pytest.mark.parametrize(("workers", "said"), [(0, False), (1024, True)])
def test_workers_beyond_the_cores_are_said(workers: int, said: bool, tiny_data, tmp_path, capsys):
    flags = ["--data", str(tiny_data), "--project", str(tmp_path), *FAST, "--plan", "--workers", str(workers)]
    train.main(flags)
    assert ("warning: 1,024 workers a process: " in capsys.readouterr().out) == said


def test_a_plan_says_and_draws_what_the_run_then_does_and_trains_nothing(tiny_data, tmp_path, capsys):
    flags = ["--data", str(tiny_data), "--project", str(tmp_path), *FAST, "--epochs", "3", "--hyp", "yolov7"]
    flags += ["--set", "lr_scale=backbone:0.5", "nominal_batch=8", "lr_batch_rule=sqrt", "--freeze", "1"]
    train.main([*flags, "--plan"])
    plan = capsys.readouterr().out
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"plan", "plan/lr.png"}
    assert "batch        4 images, 2 a step (nominal_batch 8): 8 images an update" in plan
    assert "lr0 0.01 = 0.01 scaled by 8/8 (sqrt), weight decay 0.0005 = 0.0005 x 8/8" in plan
    assert "lr x 0.5, such as backbone.stages.0.0.0.weight" in plan and "backbone.stem" not in plan
    assert "iterations   6 = 3 epochs x 2 optimizer steps" in plan
    train.main(flags)
    said = capsys.readouterr().out
    lines = [line for line in plan.splitlines() if not line.startswith(("plan ", "image size", "image cache"))]
    assert len(lines) > 15 and all(line in said.splitlines() for line in lines), "the plan is the run's own words"
    last = [line.split() for line in lines if line.startswith("lr/")]
    assert [name for name, *_ in last] == [
        f"lr/{p}{k}" for k in ("decay", "no_decay", "bias") for p in ("backbone/", "")
    ]
    logged = rows(tmp_path / "exp")[-1]
    assert {name: f"{float(logged[name]):.6g}" for name, *_ in last} == {name: values[-1] for name, *values in last}


def test_the_range_test_leaves_no_trace(tiny_data, tmp_path, capsys):
    before = run(tiny_data, tmp_path, "--epochs", "1", "--name", "before")
    flags = ["--data", str(tiny_data), "--project", str(tmp_path), *FAST, "--epochs", "1"]
    bounds = ["--lr-find-from", "1e-5", "--lr-find-to", "0.5", "--lr-find-steps", "30"]
    capsys.readouterr()
    train.main([*flags, "--lr-find", *bounds, "--set", "nominal_batch=8"])
    said = capsys.readouterr().out
    found = {path.name for path in (tmp_path / "lr_find").iterdir()}
    assert found == {"lr_find.csv", "lr_find.png"}
    with (tmp_path / "lr_find" / "lr_find.csv").open() as file:
        table = list(csv.DictReader(file))
    # factor(i) = (final/initial)^(i/(N-1))
    for row in (table[0], table[1], table[-1]):
        share = int(row["iteration"]) / 29
        assert float(row["lr"]) == pytest.approx(1e-5 * (0.5 / 1e-5) ** share, rel=1e-9)
    assert "lr0: " in said or "nothing is recommended" in said
    after = run(tiny_data, tmp_path, "--epochs", "1", "--name", "after")
    first, second = (load_checkpoint(f / "weights" / "last.pt")["state"]["components"] for f in (before, after))
    assert same(first, second)


def test_the_range_test_doubts_what_training_would_doubt(tiny_data, tmp_path, monkeypatch, capsys):
    flags = ["--data", str(tiny_data), "--project", str(tmp_path), *FAST, "--lr-find", "--lr-find-steps", "30"]
    for lr, warned in ((0.02, 1), (0.002, 0)):
        found = train.suggest
        monkeypatch.setattr(
            train, "suggest", lambda result, lr=lr, found=found: replace(found(result), line=f"lr0: {lr}")
        )
        train.main([*flags, "--set", "optimizer=AdamW"])
        assert capsys.readouterr().out.count("warning: lr0 0.02 is high for AdamW: 0.002 is usual") == warned


def interrupted_under_an_own_schedule(tiny_data: Path, tmp_path: Path, monkeypatch, module: Path) -> list[str]:
    """Write a module that halves the lr, train 2 of 3 epochs under it into `runs/exp`; return its flag."""
    module.write_text("def halving(epoch, epochs, lrf):\n    return 0.5**epoch\n")
    monkeypatch.chdir(tmp_path)
    flag = ["--schedule", f"{module.stem}:halving"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Interrupted):
            run(tiny_data, tmp_path / "runs", "--epochs", "3", *flag, "--set", "lr0=0.01", "warmup_epochs=0")
    return flag


def test_a_schedule_of_ones_own_is_named_again_on_resume(tiny_data, tmp_path, monkeypatch):
    flag = interrupted_under_an_own_schedule(tiny_data, tmp_path, monkeypatch, tmp_path / "own_schedule.py")
    folder = tmp_path / "runs" / "exp"
    assert yaml.safe_load((folder / "hyp.yaml").read_text())["schedule"] == "custom"
    with pytest.raises(UserError, match="names no code to run: add --schedule own_schedule:halving"):
        train.main(["--resume", str(folder)])
    train.main(["--resume", str(folder), *flag])
    assert [float(row["lr/bias"]) for row in rows(folder)] == pytest.approx([0.01, 0.005, 0.0025])


def test_a_schedule_of_ones_own_whose_source_changed_is_another_run(tiny_data, tmp_path, monkeypatch):
    module = tmp_path / "changing_schedule.py"
    flag = interrupted_under_an_own_schedule(tiny_data, tmp_path, monkeypatch, module)
    module.write_text("def halving(epoch, epochs, lrf):\n    return 0.25**epoch\n")
    with pytest.raises(UserError, match="its source is not what this run began with"):
        train.main(["--resume", str(tmp_path / "runs" / "exp"), *flag])


def test_frozen_stages_leave_the_optimizer_and_their_norms_keep_their_statistics(tiny_data, tmp_path):
    folder = run(tiny_data, tmp_path, "--epochs", "1", "--freeze", "2", "--seed", "5")
    fresh = train.build_model("yolo-n", "", ("square", "bar"), 5, cfg_given=True)[0].state_dict()
    components = load_checkpoint(folder / "weights" / "last.pt")["state"]["components"]
    still = ("backbone.stem.", "backbone.stages.0.")
    assert not any(name.startswith(still) for name in components["optimizer"]["state"])
    assert all(torch.equal(components["model"][name], fresh[name]) for name in fresh if name.startswith(still))
    moved = "backbone.stages.1.0.1.running_mean"
    assert not torch.equal(components["model"][moved], fresh[moved])


@pytest.mark.parametrize("flags", [["--amp", "bf16"], ["--rect"], ["--single-cls"], ["--adam"], ["--cache", "disk"]])
def test_options_train(tiny_data, tmp_path, flags):
    folder = run(tiny_data, tmp_path, "--epochs", "1", *flags)
    assert float(rows(folder)[0]["train/box_loss"]) > 0


def test_workers_and_cache_do_not_change_the_weights(tiny_data, tmp_path):
    plain = run(tiny_data, tmp_path, "--epochs", "1", "--cache", "off")
    other = run(tiny_data, tmp_path, "--epochs", "1", "--cache", "ram", "--workers", "2")
    first, second = (load_checkpoint(f / "weights" / "last.pt")["state"]["components"] for f in (plain, other))
    assert same(first, second)


def test_deterministic_is_asked_for_and_given_up_again(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    run(tiny_data, tmp_path, "--epochs", "1", "--deterministic")
    assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    run(tiny_data, tmp_path, "--epochs", "1")
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_line_of_an_epoch_shows_its_means_and_the_lr_that_no_factor_changes(tiny_data, tmp_path, capsys):
    folder = run(tiny_data, tmp_path, "--epochs", "1", "--set", "lr_scale={backbone: 0.5}")
    row, line = rows(folder)[0], next(line for line in capsys.readouterr().out.splitlines() if "epoch 1/1" in line)
    shown = dict(zip(line.split()[2::2], line.split()[3::2], strict=False))
    for name in ("box", "cls", "dfl"):
        assert float(shown[name]) == pytest.approx(float(row[f"train/{name}_loss"]), rel=1e-3)
    assert 0 < float(row["lr/backbone/decay"]) < float(shown["lr"])


def die(*_):
    raise Interrupted


def test_a_run_into_a_used_folder_leaves_no_checkpoint_of_the_one_before(tiny_data, tmp_path, monkeypatch):
    folder = run(tiny_data, tmp_path, "--epochs", "2", "--save-period", "1")
    assert {path.name for path in (folder / "weights").iterdir()} == {
        *("last.pt", "last.previous.pt", "best.pt", "epoch1.pt", "epoch2.pt")
    }
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(train, "fit", die)  # before it saves for the first time
        run(tiny_data, tmp_path, "--epochs", "3", "--exist-ok")
    assert not list((folder / "weights").iterdir())


def test_a_run_that_goes_back_to_an_epoch_has_its_state_before_its_rows_are_cut(tiny_data, tmp_path, monkeypatch):
    whole = run(tiny_data, tmp_path, "--epochs", "3", "--save-period", "1")
    expected, table = load_checkpoint(whole / "weights" / "last.pt"), rows(whole)

    def stop(*_):
        raise Stopped("stopped by SIGTERM")

    for end, error in ((die, Interrupted), (stop, Stopped)):
        with monkeypatch.context() as patch, pytest.raises(error) as caught:
            patch.setattr(train, "fit", end)  # before it saves for the first time
            train.main(["--resume", str(whole / "weights" / "epoch1.pt")])
        assert load_checkpoint(whole / "weights" / "last.pt")["state"]["progress"]["epoch"] == len(rows(whole)) == 1
    assert str(caught.value).endswith(f"the state is saved; go on with: python train.py --resume {whole}")
    train.main(["--resume", str(whole)])
    again = load_checkpoint(whole / "weights" / "last.pt")
    for state in (expected["state"], again["state"]):
        del state["progress"]["seconds"]
    assert same(expected["state"], again["state"])
    assert [{**row, "time": ""} for row in rows(whole)] == [{**row, "time": ""} for row in table]


def test_a_stop_before_training_says_which_file_the_run_was_to_go_on_from(tiny_data, tmp_path, monkeypatch):
    folder = run(tiny_data, tmp_path, "--epochs", "2", "--save-period", "1")

    def stop(*_):
        raise Stopped("stopped by SIGTERM")

    monkeypatch.setattr(train, "build_data", stop)
    with pytest.raises(Stopped) as caught:
        train.main(["--resume", str(folder / "weights" / "epoch1.pt")])
    assert str(caught.value).endswith(f"--resume {folder / 'weights' / 'epoch1.pt'}")


@pytest.mark.cuda
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_on_cuda_a_deterministic_run_resumes_exactly(tiny_data, tmp_path, monkeypatch, amp):
    """The state of gradient scaling (fp16) is part of it."""
    if amp == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this device does not compute in bf16")
    flags = ["--epochs", "3", "--amp", amp, "--deterministic", "--device", "0"]
    whole = run(tiny_data, tmp_path / "whole", *flags)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(Interrupted):
            run(tiny_data, tmp_path / "parts", *flags)
    train.main(["--resume", str(tmp_path / "parts" / "exp")])
    expected, got = (
        load_checkpoint(folder / "weights" / "last.pt")["state"] for folder in (whole, tmp_path / "parts" / "exp")
    )
    assert expected["progress"].pop("seconds") > 0 and got["progress"].pop("seconds") > 0
    assert same(expected, got) and bool(expected["components"]["scaler"]) == (amp == "fp16")


@pytest.mark.slow
def test_eight_images_are_learnt_by_heart(tmp_path):
    """A wrong box, assignment or loss shows here first: on what it was trained on, a net must find nearly all."""
    images = sorted((ensure_shapes(tmp_path) / "images" / "train").iterdir())[:8]
    listed = tmp_path / "eight.txt"
    listed.write_text("".join(f"{image}\n" for image in images))
    data = tmp_path / "eight.yaml"
    data.write_text(f"train: {listed}\nval: {listed}\nnames: [{', '.join(NAMES)}]\n")
    flags = ["--data", str(data), "--project", str(tmp_path), "--batch", "8", "--device", "cpu", "--workers", "0"]
    still = ["mosaic=0", "scale=0", "translate=0", "fliplr=0", "hsv_h=0", "hsv_s=0", "hsv_v=0", "ema_decay=0.9"]
    train.main([*flags, "--noplots", "--noval", "--epochs", "200", "--set", *still, "ema_tau=10", "close_mosaic=0"])
    assert float(rows(tmp_path / "exp")[-1]["metrics/mAP50-95"]) > 0.9


def test_train_py_stays_a_contents_page():
    """The loop fits on a screen and does not ask who it is."""
    import ast
    import inspect

    source = inspect.getsource(train.train_one_epoch)
    assert len(source.splitlines()) <= 60
    asked = [ast.unparse(node.test) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.If)]
    assert set(asked) == {"last"}


def test_a_fine_tuned_run_goes_on_as_what_it_is(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its model is the checkpoint's that it began from, not the default of --cfg; and that file may be gone."""
    monkeypatch.setitem(models.yolo.SIZES, "t", (1 / 3, 1 / 64, 1024))
    monkeypatch.chdir(tmp_path)
    flags = ["--data", str(tiny_data), "--epochs", "1", "--img", "64", "--batch", "4", "--workers", "0", "--noplots"]
    flags += ["--device", "cpu", "--project", "runs", "--nms"]
    train.main([*flags, "--cfg", "yolo-t", "--name", "first"])
    train.main([*flags, "--weights", "runs/first/weights/last.pt", "--name", "second"])
    (tmp_path / "runs/first/weights/last.pt").unlink()
    capsys.readouterr()
    train.main(["--resume", "runs/second", "--epochs", "2", "--extend", "tail"])
    assert "yolo-t" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "runs/second/weights/last.pt")["state"]["progress"]["epoch"] == 2


def test_other_pixels_are_another_run(tiny_data, tmp_path):
    """Of the same size in pixels, with the same labels: the files are shorter."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data.parent, data)
    folder = run(data / tiny_data.name, tmp_path, "--epochs", "2")
    image = data / "images" / "train" / "03.png"
    cv2.imwrite(str(image), np.zeros_like(cv2.imread(str(image))))
    with pytest.raises(UserError, match="would not go on as the same run: data/files was"):
        train.main(["--resume", str(folder), "--epochs", "3", "--extend", "tail"])


def test_images_an_update_are_no_more_than_there_are(tiny_data, tmp_path, capsys):
    flags = ["--data", str(tiny_data), "--project", str(tmp_path), *FAST, "--plan", "--set", "nominal_batch=64"]
    train.main([*flags, "lr_batch_rule=linear", "scale_weight_decay=true"])
    out = capsys.readouterr().out
    assert "batch        4 images, 16 a step (nominal_batch 64): 12 images an update, all there are" in out
    assert "lr0 0.000375 = 0.002 scaled by 12/64 (linear), weight decay 9.375e-05 = 0.0005 x 12/64" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--epochs", "40"], "mosaic       not in the last 10 epochs (close_mosaic 10)"),
        (["--epochs", "10"], "mosaic       in none of the epochs (close_mosaic 10)"),
        (
            ["--epochs", "40", "--set", "mixup=0.1"],
            "mosaic       and mixup: not in the last 10 epochs (close_mosaic 10)",
        ),
        (
            ["--epochs", "40", "--set", "mixup=0.1", "mosaic=0"],
            "mixup        not in the last 10 epochs (close_mosaic 10)",
        ),
        (["--epochs", "40", "--rect"], "mosaic       not with --rect"),
        (
            ["--epochs", "40", "--rect", "--set", "close_mosaic=0", "mixup=0.1"],
            "mosaic       and mixup: not with --rect",
        ),
        (["--epochs", "40", "--rect", "--set", "mosaic=0"], ""),
        (["--epochs", "40", "--set", "close_mosaic=0"], ""),
        (["--epochs", "40", "--set", "mosaic=0"], ""),
    ],
)
def test_what_becomes_of_mosaics_is_said(flags, said, tiny_data, tmp_path, capsys):
    train.main(["--data", str(tiny_data), "--project", str(tmp_path), *FAST, "--plan", *flags])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("mosaic", "mixup"))]
    assert lines == [said][: bool(said)]


def test_what_is_frozen_and_which_sizes_are_drawn_is_said(tiny_data, tmp_path, capsys):
    flags = ["--data", str(tiny_data), "--project", str(tmp_path), *FAST, "--plan"]
    train.main([*flags, "--freeze", "backbone", "--img", "128", "--set", "multi_scale=0.5"])
    out = capsys.readouterr().out
    whole = re.search(r"model .* ([\d,]+) parameters", out)[1]
    held = re.search(r"frozen +([\d,]+) of them, (.*)\n", out)
    moving = sum(int(n.replace(",", "")) for n in re.findall(r"^group .* ([\d,]+) parameters", out, re.M))
    assert int(held[1].replace(",", "")) + moving == int(whole.replace(",", ""))
    with pytest.raises(UserError, match="the backbone has 4 stages"):
        train.main([*flags, "--freeze", "5"])
    assert held[2] == "4 stages of the backbone; random as they are: --weights gives trained ones"
    assert "image size   128, in training 64 to 192; " in out
    train.main(flags)
    assert "\nfrozen" not in (out := capsys.readouterr().out) and "in training" not in out


def test_a_start_that_is_stopped_leaves_what_it_found(tiny_data, tmp_path, monkeypatch):
    """A new run has nothing to go on from, and says so; the state of a resumed one is on the disk."""

    def stop(*_):
        raise Stopped("stopped by SIGTERM")

    folder = run(tiny_data, tmp_path, "--epochs", "1")
    monkeypatch.setattr(train, "build_training", stop)
    with pytest.raises(Stopped, match="before training began: nothing is saved, so start it again without --resume"):
        run(tiny_data, tmp_path, "--epochs", "1")
    assert not (tmp_path / "exp2").exists()
    with pytest.raises(Stopped, match=f"the state is saved; go on with: .*--resume {folder} --epochs 2 --extend tail"):
        train.main(["--resume", str(folder), "--epochs", "2", "--extend", "tail"])


def test_a_stop_while_the_first_pictures_are_drawn_is_resumed(tiny_data, tmp_path, monkeypatch):
    """Else `--resume` would take the run before for it."""
    run(tiny_data, tmp_path, "--epochs", "1")
    flags = [flag for flag in FAST if flag != "--noplots"]
    with monkeypatch.context() as patch, pytest.raises(Stopped) as caught:
        patch.setattr(train, "plot_lr", lambda *_: (_ for _ in ()).throw(Stopped("stopped by SIGTERM")))
        train.main(["--data", str(tiny_data), "--project", str(tmp_path), *flags, "--epochs", "1"])
    assert f"the state is saved; go on with: python train.py --resume {tmp_path / 'exp2'}" in str(caught.value)
    train.main(["--resume", "--project", str(tmp_path), "--noplots"])
    assert len(rows(tmp_path / "exp2")) == 1


def test_a_presets_own_lr_of_a_frozen_part_is_said_to_do_nothing(tiny_data, tiny_run, tmp_path, capsys):
    best = str(tiny_run / "weights" / "best.pt")
    flags = ["--data", str(tiny_data), "--project", str(tmp_path), *FAST, "--plan", "--weights", best]
    train.main([*flags, "--hyp", "finetune", "--freeze", "backbone"])
    assert "lr_scale     backbone 0.3 does nothing: all of it is frozen\n" in capsys.readouterr().out
    train.main([*flags, "--freeze", "backbone", "--set", "lr_scale=neck:0.1"])
    train.main([*flags, "--hyp", "finetune"])
    assert "does nothing" not in capsys.readouterr().out


def test_a_range_test_beyond_what_lr0_may_be_keeps_its_results(tiny_data, tmp_path, monkeypatch, capsys):
    """As of SGD without momentum and with tight clipping."""
    steep = Suggestion({"steepest": 18.0}, "steepest", "a reason", "lr0: 18.0")
    monkeypatch.setattr(train, "suggest", lambda result: steep)
    flags = ["--lr-find", "--lr-find-to", "100", "--lr-find-steps", "20", "--optimizer", "SGD"]
    train.main(["--data", str(tiny_data), "--project", str(tmp_path), *FAST, *flags])
    out = capsys.readouterr().out
    assert "warning: lr0 18 is more than lr0 may be; allowed: a number in (0, 10]\n" in out
    assert "lr find      20 steps at most, of 1 batch each\n" in out and "\nrange test" in out
    assert {path.name for path in (tmp_path / "lr_find").iterdir()} == {"lr_find.csv", "lr_find.png"}


def test_an_edited_hyp_yaml_of_a_run_is_not_passed_over(tiny_data, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            run(tiny_data, tmp_path, "--epochs", "2")
    file = tmp_path / "exp" / "hyp.yaml"
    before = file.read_text()
    lr0 = re.search(r"^lr0: (\S+)", before, re.MULTILINE)[1]
    file.write_text(before.replace(f"lr0: {lr0}", "lr0: 0.0007"))
    with pytest.raises(
        UserError, match=f"hyp.yaml: lr0 is 0.0007, this run has {lr0}, and a resumed run is the same run"
    ):
        train.main(["--resume", str(tmp_path / "exp")])
    file.write_text("lr0 0.1\n")
    with pytest.raises(UserError, match="the state has what the run began with: remove the file to go on"):
        train.main(["--resume", str(tmp_path / "exp")])
    file.write_text(before.replace(f"lr0: {lr0}", "lr0: 0.0007"))
    saved = shutil.copytree(tmp_path / "exp", tmp_path / "forced")
    capsys.readouterr()
    train.main(["--resume", str(saved), "--force"])
    assert f"hyp.yaml: lr0 is 0.0007, this run has {lr0}" in capsys.readouterr().err
    assert rows(saved)[-1]["epoch"] == "2" and (saved / "hyp.yaml").read_text() == before
    gone = shutil.copytree(tmp_path / "exp", tmp_path / "gone")
    (gone / "hyp.yaml").unlink()
    train.main(["--resume", str(gone)])
    assert (gone / "hyp.yaml").read_text() == before
    file.write_text(before.replace("#", "# my").replace(f"lr0: {lr0}", ""))  # words are free; a line may be gone
    train.main(["--resume", str(tmp_path / "exp")])
    assert rows(tmp_path / "exp")[-1]["epoch"] == "2"


def test_an_edited_opt_yaml_of_a_run_is_not_passed_over(tiny_data, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            run(tiny_data, tmp_path, "--epochs", "2")
    folder, file = tmp_path / "exp", tmp_path / "exp" / "opt.yaml"
    before = file.read_text()
    file.write_text(before.replace("epochs: 2", "epochs: 9").replace("workers: 0", "workers: 1"))
    with pytest.raises(
        UserError, match=r"opt.yaml: epochs is 9, this run has 2, .*put it back; a run that is over goes"
    ):
        train.main(["--resume", str(folder)])
    file.write_text("- a list\n")
    with pytest.raises(UserError, match="opt.yaml: holds no options\n  .*remove the file to go on"):
        train.main(["--resume", str(folder)])
    forced = shutil.copytree(folder, tmp_path / "forced")
    train.main(["--resume", str(forced), "--force"])
    assert yaml.safe_load((forced / "opt.yaml").read_text())["epochs"] == 2 == len(rows(forced))
    file.write_text(before.replace("workers: 0", "workers: 1"))  # it may change on resume, and says nothing of the run
    train.main(["--resume", str(folder)])
    with pytest.raises(
        UserError, match=rf"--resume {tmp_path}: a folder of runs; name one, such as .*--resume {tmp_path}/"
    ):
        train.main(["--resume", str(tmp_path)])


def test_moved_data_are_in_opt_yaml(tiny_data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            run(tiny_data, tmp_path / "runs", "--epochs", "2")
    shutil.copytree(tiny_data.parent, tmp_path / "moved")
    moved = str(tmp_path / "moved" / tiny_data.name)
    folder = tmp_path / "runs" / "exp"
    before = yaml.safe_load((folder / "opt.yaml").read_text())
    train.main(["--resume", str(folder), "--data", moved])
    assert yaml.safe_load((folder / "opt.yaml").read_text()) == {
        **before,
        "data": moved,
        "resume": str(folder / "weights" / "last.pt"),
    }


def test_a_class_that_no_training_object_has_is_said(tiny_data, tmp_path, capsys):
    data = tiny_data.with_name("ghosts.yaml")
    data.write_text(tiny_data.read_text().replace("square, bar", "square, bar, g0, g1, g2, g3, g4, g5, g6"))
    train.main(["--data", str(data), "--project", str(tmp_path), *FAST, "--plan"])
    assert "warning: no training object is of class g0, g1, g2, g3, g4 and 2 more\n" in capsys.readouterr().out
    train.main(["--data", str(tiny_data), "--project", str(tmp_path), *FAST, "--plan"])
    assert "no training object" not in capsys.readouterr().out


def test_too_many_frozen_stages_are_refused_before_the_data_are_read(monkeypatch):
    monkeypatch.setattr(train, "build_data", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError, match="--freeze 9: the backbone has 4 stages; allowed: 0 to 4, or backbone"):
        train.main([*FAST, "--freeze", "9"])
    with pytest.raises(UserError, match="--freeze 12: the backbone has 8 stages"):
        train.main([*FAST, "--freeze", "12", "--weights", "torchvision:resnet18:random"])


def test_frozen_stages_are_those_of_the_backbone_in_use(tiny_data, tmp_path, monkeypatch, capsys):
    flags = ["--data", str(tiny_data), "--project", str(tmp_path), *FAST, "--freeze"]
    train.main([*flags, "2", "--weights", "torchvision:regnet_y_400mf:random", "--plan"])
    assert "2 stages of the backbone" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(Interrupted):
            train.main([*flags, "6", "--weights", "torchvision:resnet18:random", "--epochs", "2"])
    train.main(["--resume", str(tmp_path / "exp")])  # which builds no backbone of another kind to look at
    best = str(tmp_path / "exp" / "weights" / "best.pt")
    with pytest.raises(UserError, match="--freeze 12: the backbone has 8 stages"):
        train.main([*flags, "12", "--weights", best])


def test_crowds_are_no_objects_to_learn_from():
    index = SimpleNamespace(classes=np.array([0, 1]), crowd=np.array([False, True]))
    assert train.absent(("a", "b"), index) == ["warning: no training object is of class b"]


def test_weights_of_other_trainers_that_are_not_there_are_known_by_name(tmp_path):
    for name in (
        "yolov8n.pt",
        "yolo11s.pt",
        "YOLOv5s.pt",
        "yolov7-tiny.pt",
        "yolo26x-seg.pt",
        "rtdetr-l.pt",
        "sam_b.pt",
    ):
        with pytest.raises(UserError, match=f"{name}: no such file; weights of YOLOv5, .* can't be used; torchvision:"):
            train.main([*FAST, "--weights", name])
    for name in ("mine.pt", "sample.pt", "yolo_mine_best.pt"):
        with pytest.raises(UserError, match=rf"{name}: no such file$"):
            train.main([*FAST, "--weights", name])


def test_each_process_draws_its_own_in_a_forward_pass_by_epoch_and_batch(monkeypatch):
    def drawn(rank: int, epoch: int, number: int) -> float:
        monkeypatch.setattr(train.dist, "rank", lambda: rank)
        train.reseeding(3, torch.device("cpu"))(epoch, number)
        return torch.rand(()).item()

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    first = [drawn(*key) for key in keys]
    assert len(set(first)) == 4 and [drawn(*key) for key in keys] == first


def test_the_time_left_is_that_of_the_whole_run(tiny_data, tmp_path, monkeypatch):
    """What lies between epochs counts: all of them go by one clock."""
    clocks = []

    class Watched(train.Pace):
        def __init__(self) -> None:
            super().__init__()
            clocks.append(self)

    monkeypatch.setattr(train, "Pace", Watched)
    run(tiny_data, tmp_path, "--epochs", "2")
    assert [clock.batches for clock in clocks] == [6]
