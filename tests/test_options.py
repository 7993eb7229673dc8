"""utils/options.py: command lines as users of YOLOv5 and YOLOv7 type them, and a word for what does not exist."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import pytest
import yaml

from utils.errors import UserError
from utils.hyp import flag_hint
from utils.options import GROUPS, DetectOptions, TrainOptions, ValOptions, _spellings, flags, parse

ALL = (TrainOptions, ValOptions, DetectOptions)
TRAIN_FLAGS = """--weights --cfg --data --hyp --epochs --batch-size --batch --imgsz --img --img-size --linear-lr
    --cos-lr --optimizer --adam --resume --device --workers --cache --rect --multi-scale --single-cls --label-smoothing
    --patience --freeze --save-period --val-period --noval --nosave --noplots --sync-bn --seed --amp --project --name
    --exist-ok --set --download --nms --help-hyp --save-minutes --force"""
VAL_FLAGS = """--weights --data --batch-size --imgsz --conf-thres --iou-thres --max-det --task --device --single-cls
    --verbose --save-txt --save-conf --save-json --nms --amp --workers --project --name --exist-ok --noplots"""
DETECT_FLAGS = """--weights --source --imgsz --conf-thres --iou-thres --max-det --device --save-txt --save-conf
    --save-json --save-crop --nosave --classes --agnostic-nms --nms --project --name --exist-ok --line-thickness
    --hide-labels --hide-conf --vid-stride"""
FOREIGN = """--evolve --quad --image-weights --image_weights --bucket --noautoanchor --entity --upload_dataset
    --v5-metric --local_rank --artifact_alias --bbox_interval --pretrained --fraction --time --classes --val --plots
    --save --mode --show"""


def train(line: str) -> TrainOptions:
    return parse(TrainOptions, shlex.split(line), "train.py", "Train.")


def refusal(line: str, cls: type = TrainOptions) -> str:
    with pytest.raises(UserError) as caught:
        parse(cls, shlex.split(line), "train.py", "Train.", elsewhere=flag_hint)
    return str(caught.value)


def helped(cls: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        parse(cls, ["--help"], "train.py", "Train a detector.")
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_nothing_typed_gives_the_defaults() -> None:
    options = train("")
    assert options == TrainOptions() and options.explicit == frozenset()
    assert (options.data, options.cfg, options.hyp) == ("shapes", "yolo-n", "hyp/default.yaml")
    assert (options.epochs, options.batch_size, options.imgsz, options.seed) == (40, 16, 0, 0)
    assert options.resume is None and options.set == () and options.hyp_flags() == {}


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("--batch 8 --epochs=3", {"batch_size": 8, "epochs": 3}),
        ("--batch-size 8", {"batch_size": 8}),
        ("--img 416", {"imgsz": 416}),
        ("--img-size 640 640", {"imgsz": 640}),
        ("--imgsz 320 --exist-ok", {"imgsz": 320, "exist_ok": True}),
        (
            "--exist_ok --label_smoothing 0.1 --batch_size=4",
            {"exist_ok": True, "label_smoothing": 0.1, "batch_size": 4},
        ),
        ("--resume", {"resume": ""}),
        ("--resume --epochs 3", {"resume": "", "epochs": 3}),
        ("--resume runs/train/exp_7", {"resume": "runs/train/exp_7"}),
        ("--cache", {"cache": "ram"}),
        ("--cache disk", {"cache": "disk"}),
        ("--optimizer sgd", {"optimizer": "SGD"}),
        ("--weights '' --cfg yolo-s", {"weights": "", "cfg": "yolo-s"}),
        ("--freeze 10", {"freeze": "10"}),
        ("--freeze backbone", {"freeze": "backbone"}),
        ("--save-period -1", {"save_period": -1}),
        ("--set lr0=1e-3 warmup_epochs=0 --set lrf=0.1", {"set": ("lr0=1e-3", "warmup_epochs=0", "lrf=0.1")}),
        ("--epochs 3 --epochs 5", {"epochs": 5}),
    ],
)
def test_a_line_is_read_and_what_was_typed_is_known(line: str, fields: dict[str, Any]) -> None:
    options = train(line)
    assert {name: getattr(options, name) for name in fields} == fields
    assert options.explicit == set(fields)
    assert options == dataclasses.replace(TrainOptions(), **fields), "and nothing else is changed"


def test_typing_a_default_counts_as_typed() -> None:
    assert train("--epochs 40").explicit == {"epochs"} and train("--epochs 40") == train("")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--batch-size -1", "--batch-size -1: there is no automatic batch size"),
        ("--epochs 0", "--epochs 0: out of range; allowed: 1 to 1000000"),
        ("--epochs ten", "--epochs ten: not a whole number"),
        ("--epochs 1.5", "--epochs 1.5: not a whole number"),
        ("--epochs", "--epochs: expected one argument"),
        ("--patience -3", "--patience -3: out of range; allowed: 0 or more"),
        ("--label-smoothing nan", "--label-smoothing nan: out of range"),
        ("--label-smoothing much", "--label-smoothing much: not a number"),
        ("--img 640 320", "--imgsz 640 320: images are square; give one size"),
        ("--optimizer LION", "not one of SGD, Adam, AdamW"),
        ("--optimizer AdaW", "did you mean 'AdamW'?"),
        ("--amp fp8", "not one of auto, off, fp16, bf16"),
        ("--cache tape", "not one of auto, ram, disk, off"),
        ("--freeze neck", "--freeze neck: allowed: a number of stages, or backbone"),
        ("--epoch 3", "--epoch: unknown flag; did you mean '--epochs'?"),
        ("--bach-size=3", "--bach-size: unknown flag; did you mean '--batch-size'?"),
        ("--zzz", "--zzz: unknown flag; --help lists them"),
        ("--linear-lr --cos-lr", "--linear-lr and --cos-lr contradict each other"),
        ("--linear-lr --schedule step", "--linear-lr and --schedule step contradict each other"),
        ("--cos-lr --schedule mine:factor", "--cos-lr and --schedule mine:factor contradict each other"),
        ("--schedule step --set schedule=step", "--schedule and --set schedule="),
        ("--extend tail --epochs 9", "--extend tail: goes with --resume"),
        ("--extend more --resume", "not one of replan, tail"),
        ("--plan --lr-find", "--plan and --lr-find: each takes the place of training; give one of them"),
        ("--lr-find --lr-find-from 1 --lr-find-to 0.1", "--lr-find-from 1: must be smaller than --lr-find-to 0.1"),
        ("--adam --optimizer SGD", "--adam and --optimizer SGD contradict each other"),
        ("--linear-lr --set schedule=constant", "--linear-lr and --set schedule="),
        ("--adam --set optimizer=SGD", "--adam and --set optimizer="),
        ("--optimizer SGD --set optimizer=SGD", "--optimizer and --set optimizer="),
        ("--label-smoothing 0 --set label_smoothing=0.1", "--label-smoothing and --set label_smoothing="),
        ("--multi-scale --set multi_scale=0.1", "--multi-scale and --set multi_scale="),
        ("epochs=5", "epochs=5: flags are written --name value: --epochs 5"),
        ("data=coco.yaml epochs=5", "--data coco.yaml"),
        ("batch=8", "--batch 8"),
        ("lr0=0.1", "lr0: unknown flag; it is a hyper-parameter: --set lr0=0.1"),
        ("--lr0 0.1", "--lr0: unknown flag; it is a hyper-parameter: --set lr0=0.1"),
        ("--hsv_h=0.1 --epochs 3", "--hsv-h: unknown flag; it is a hyper-parameter: --set hsv_h=0.1"),
        ("--epochs 3 --mosaic", "--mosaic: unknown flag; it is a hyper-parameter: --set mosaic=VALUE"),
        ("--dropout 0.1", "--dropout: unknown flag; it belongs to image classification"),
        ("resume=True", "resume=True: flags are written --name value: --resume"),
        ("rect=False", "rect=False: flags are written --name value: leave --rect out"),
        ("amp=False", "amp=False: flags are written --name value: --amp off"),
        ("amp=true", "amp=true: flags are written --name value: --amp auto"),
        ("cache=False", "cache=False: flags are written --name value: --cache off"),
        ("profile=True", "profile=True: flags are written --name value: leave --profile out"),
        ("model=a.pt", "model=a.pt: flags are written --name value: --weights a.pt"),
        ("--model a.pt", "--model: write --weights"),
        ("fraction=0.5", "fraction does not exist here: every training image is seen"),
        ("split=val", "split: unknown flag; --task is a flag of val.py"),
        ("--mosaic --lr0 0.1", "--mosaic: unknown flag; it is a hyper-parameter: --set mosaic=VALUE"),
        ("--lr0 -0.1", "--lr0: unknown flag; it is a hyper-parameter: --set lr0=-0.1"),
        ("--conf 0.3", "--conf: unknown flag; --conf is a flag of val.py and detect.py"),
        ("--vid_stride 2", "--vid-stride: unknown flag; --vid-stride is a flag of detect.py"),
        ("--img 0", "--imgsz 0: out of range; allowed: 32 to 8192"),
        ("--exist-ok=True", "--exist-ok=True: a switch takes no value: write --exist-ok, or leave it out"),
        ("--name plan", "--name plan: plan is the folder of --plan; take another"),
        ("--name lr_find/a", "--name lr_find/a: lr_find is the folder of --lr-find; take another"),
        ("exist_ok=True", "--name value: --exist-ok"),
        ("train", "train: belongs to no flag"),
        ("--linear-lr True", "True: belongs to no flag"),
        ("--linear-lr=True", "--linear-lr"),
    ],
)
def test_a_line_that_is_wrong(line: str, words: str) -> None:
    assert words in refusal(line)


@pytest.mark.parametrize(
    "flag",
    FOREIGN.split(),
)
def test_flags_of_other_trainers_get_a_reason(flag: str) -> None:
    for line in (flag, f"{flag}=3", f"--epochs 3 {flag} 3"):
        message = refusal(line)
        assert message.startswith(f"{flag.replace('_', '-')} does not exist here: ") and len(message.split()) > 7


def test_foreign_flags_of_val_and_detect() -> None:
    assert "--amp says what numbers are" in refusal("--weights a.pt --half", ValOptions)
    assert "no window" in refusal("--weights a.pt --source b --view-img", DetectOptions)
    assert refusal("--weights a.pt --split test", ValOptions) == "train.py: --split: write --task"
    assert "knows its classes" in refusal("--weights a.pt --source b --data c.yaml", DetectOptions)


@pytest.mark.parametrize(
    ("cls", "names"), [(TrainOptions, TRAIN_FLAGS), (ValOptions, VAL_FLAGS), (DetectOptions, DETECT_FLAGS)]
)
def test_help_groups_every_flag_with_its_meaning(
    cls: type, names: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = helped(cls, capsys, monkeypatch)
    listed = {word.rstrip(",") for line in text.split("data and model:")[1].splitlines() for word in line.split()}
    assert set(names.split()) <= listed
    for flag in flags(cls):
        assert flag.metadata["group"] in GROUPS and flag.metadata["help"] in text
    headings = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[1:] == [group for group in GROUPS if group in headings]


def test_help_states_defaults(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = helped(TrainOptions, capsys, monkeypatch)
    for words in ("(default: 40)", "(default: runs/train)", "(default: from the data, at most 640)", "(default: auto)"):
        assert words in text


def test_required_flags() -> None:
    assert refusal("", ValOptions) == "train.py needs --weights PATH: checkpoint (.pt) to evaluate"
    assert "--source" in refusal("--weights a.pt", DetectOptions)
    assert parse(ValOptions, ["--weights", "a.pt"], "val.py", "").conf_thres == 0.001
    options = parse(DetectOptions, shlex.split("--weights a.pt --source b --classes 0 2"), "detect.py", "")
    assert (options.classes, options.conf_thres, options.iou_thres) == ((0, 2), 0.25, 0.45)
    assert "not a whole number" in refusal("--weights a.pt --source b --classes cat", DetectOptions)
    assert "out of range" in refusal("--weights a.pt --source b --classes 1 -2", DetectOptions)


@pytest.mark.parametrize(
    ("line", "overrides"),
    [
        ("--linear-lr", {"--linear-lr": "schedule=linear"}),
        ("--cos-lr", {"--cos-lr": "schedule=one_cycle"}),
        ("--schedule step", {"--schedule": "schedule=step"}),
        ("--schedule mine:factor", {"--schedule": "schedule=custom"}),
        ("--linear-lr --schedule linear", {"--linear-lr": "schedule=linear", "--schedule": "schedule=linear"}),
        ("--adam", {"--adam": "optimizer=Adam"}),
        ("--adam --optimizer Adam", {"--adam": "optimizer=Adam"}),
        ("--optimizer SGD --set lr0=0.1", {"--optimizer": "optimizer=SGD"}),
        ("--label-smoothing 0", {"--label-smoothing": "label_smoothing=0.0"}),
        ("--multi-scale", {"--multi-scale": "multi_scale=0.5"}),
    ],
)
def test_flags_that_speak_of_hyper_parameters(line: str, overrides: dict[str, str]) -> None:
    assert train(line).hyp_flags() == overrides


@pytest.mark.parametrize("cls", ALL)
def test_options_survive_opt_yaml(cls: type) -> None:
    lines = {
        TrainOptions: "--set lr0=0.1 lrf=0.2 --resume --label-smoothing 0.1 --freeze 3",
        ValOptions: "--weights a.pt --conf 0.01",
        DetectOptions: "--weights a.pt --source b --classes 3 1",
    }
    options = parse(cls, shlex.split(lines[cls]), "x.py", "")
    values = yaml.safe_load(yaml.safe_dump(options.to_dict()))
    assert cls.from_dict(values) == options and "explicit" not in values


def test_an_edited_opt_yaml_is_checked() -> None:
    for values, words in [
        ({"epoch": 3}, "opt.yaml: epoch: unknown option; did you mean 'epochs'?"),
        ({"epochs": True}, "opt.yaml: --epochs True: not a number"),
        ({"epochs": "40"}, "opt.yaml: --epochs 40: not a number"),
        ({"rect": 1}, "opt.yaml: --rect 1: not true or false"),
        ({"name": 3}, "opt.yaml: --name 3: not a text"),
        ({"set": ["lr0=1", 3]}, "not a text"),
        ({"set": "lr0=1"}, "not a list"),
        ({"epochs": None}, "not a number"),
    ]:
        with pytest.raises(UserError) as caught:
            TrainOptions.from_dict(values)
        assert words in str(caught.value)


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainOptions().epochs = 3  # type: ignore[misc]


def test_every_default_passes_its_own_check() -> None:
    for cls in ALL:
        assert cls.from_dict(cls().to_dict()) == cls()


@pytest.mark.parametrize(
    "flags", ["--noval --patience 3", "--nosave --save-minutes 1", "--nosave --save-period 1", "--noval --val-period 2"]
)
def test_what_a_switch_makes_void_is_refused(flags: str) -> None:
    switch, other, _ = flags.split()
    with pytest.raises(UserError, match=f"{switch} and {other} contradict each other"):
        parse(TrainOptions, flags.split(), "train.py", "")


@pytest.mark.parametrize("flag", ["--plots", "--val", "--time", "--mode"])
def test_what_is_said_of_other_trainers_flags_names_only_flags_that_are_there(flag: str) -> None:
    known = {spelling for item in flags(DetectOptions) for spelling in _spellings(item)}
    said = refusal(f"--weights a.pt --source b {flag}", DetectOptions).partition(f"{flag}: ")[2]
    assert {word.rstrip(";,.") for word in said.split() if word.startswith("--")} <= {*known, "--help"}


def test_detect_has_mixed_precision_as_val_has() -> None:
    assert "--amp says what numbers are: auto (mixed precision on CUDA)" in refusal(
        "--weights a.pt --source b --half", DetectOptions
    )
    assert parse(DetectOptions, ["--weights", "a", "--source", "b", "--amp", "bf16"], "detect.py", "").amp == "bf16"


def test_a_run_may_be_called_as_a_folder_beside_the_runs_where_it_is_one_in_it() -> None:
    assert train("--plan --name plan").name == "plan" and train("--name plans").name == "plans"


def test_a_pattern_that_the_shell_spelled_out_is_known_by_where_it_stands() -> None:
    hint = "b.jpg: --source takes one; put a pattern in quotes"
    assert hint in refusal("--weights a.pt --source a.jpg b.jpg c.jpg --conf 0.3", DetectOptions)
    assert "b.pt: belongs to no flag" in refusal("--weights a.pt b.pt --source x", DetectOptions)
    assert "x: belongs to no flag" in refusal("--source a.jpg --save-txt x --weights a.pt", DetectOptions)
