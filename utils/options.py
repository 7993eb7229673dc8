"""Command lines: one declaration a flag, from which parsing, checks and `--help` are made."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from utils.errors import MAX_FILE_NAME, UserError, printable, refuse, suggest, text_fault

GROUPS = ("data and model", "training", "learning rate", "evaluation", "output", "run folder", "machine")

# Flags of other trainers that do not exist here, and what takes their place.
_REFUSED = {
    "--evolve": "hyper-parameters are not evolved; compare runs with --set KEY=VALUE",
    "--quad": "batches are not cut and joined; use --imgsz and --batch-size",
    **dict.fromkeys(("--image-weights", "--img-weights"), "every image is seen once an epoch, always"),
    "--autoanchor": "the model has no anchors",
    "--noautoanchor": "the model has no anchors, so nothing has to be switched off",
    "--local-rank": "start several processes with torchrun, which says which one each is",
    "--v5-metric": "mAP is COCO's, computed by a COCO library",
    **dict.fromkeys(("--view-img", "--show"), "there is no window; look at the pictures in the run folder"),
    "--augment": "there is no test-time augmentation",
    "--visualize": "feature maps are not drawn",
    "--update": "a checkpoint is never rewritten",
    "--half": "--amp says what numbers are: auto (mixed precision on CUDA), off (fp32), fp16 or bf16",
    "--data": "the checkpoint knows its classes",
    "--dnn": "only PyTorch runs the model",
    "--save-hybrid": "labels and predictions are not mixed",
    "--trace": "the model is not traced",
    "--no-trace": "the model is not traced, so nothing has to be switched off",
    "--freeze-layers": "write --freeze",
    "--cache-images": "write --cache ram",
    "--notest": "write --noval",
    "--pretrained": "weights are random unless --weights PATH says otherwise",
    "--fraction": "every training image is seen; a txt list of images, named in the data yaml, takes a part of them",
    "--time": "a run is as long as its --epochs",
    "--classes": "every class of the data counts",
    "--val": "it is what happens unless --noval says otherwise",
    "--plots": "it is what happens unless --noplots says otherwise",
    "--save": "it is what happens unless --nosave says otherwise",
    "--mode": "train.py, val.py and detect.py are programs of their own",
    **dict.fromkeys(("--bucket", "--entity", "--upload-dataset"), "nothing is sent anywhere"),
    **dict.fromkeys(("--bbox-interval", "--artifact-alias"), "nothing is sent to Weights & Biases"),
}
# Flags that mean something only beside another one.
_GOES_WITH = {
    **dict.fromkeys(("lr_find_from", "lr_find_to", "lr_find_steps"), "lr_find"),
    **{"force": "resume", "save_conf": "save_txt", "agnostic_nms": "nms", "iou_thres": "nms"},
}
MAX_WHOLE = 2**31 - 1  # of a whole number without a limit of its own
DASHES = "–—−"  # what word processors make of hyphens
SIDE_FOLDERS = ("plan", "lr_find", "profile", "check")  # in the folder of runs, of what is no run
SHOWN = 80  # characters of a value that a message repeats

# Names of other trainers for what has another one here.
_RENAMED = {"model": "--weights", "split": "--task", "line_width": "--line-thickness"}


def _flag(default: Any, help: str, group: str, *names: str, **more: Any) -> Any:
    """Declare a flag. `names`: spellings beside the field's own; `more`: low, high, choices, metavar, shown, required.

    `shown` words the default in --help where the value itself does not say it; `bare` is the value of the flag given
    without one; `many` lets it take several.
    """
    return field(default=default, metadata={"help": help, "group": group, "names": names, **more})


def _check(
    help: str = "how well images are looked at before the start: their headers, or in full, decoding each",
) -> Any:
    """Declare `--check`, which several programs have."""
    return _flag("headers", help, "data and model", choices=("headers", "full"))


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What all entry points share. `explicit` holds the fields that the user typed, the rest have their defaults."""

    explicit: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        for flag in flags(type(self)):
            value = getattr(self, flag.name)
            fault = _fault(flag, value)
            if fault:
                raise UserError(f"{_spelling(flag)} {_shown(value)}: {fault}")
        if "imgsz" in self.explicit and getattr(self, "imgsz", None) == 0:  # which stands for the one that is found
            raise UserError("--imgsz 0: out of range; allowed: 32 to 8192")
        if hasattr(self, "name"):  # of a run
            _check_name(self.name, self.project)
        for name, partner in _GOES_WITH.items():
            if name in self.explicit and getattr(self, partner) in (False, None):
                raise UserError(
                    f"--{name.replace('_', '-')}: goes with --{partner.replace('_', '-')}, and does nothing without"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by field, for opt.yaml; `explicit` is of the command line and is left out."""
        values = {flag.name: getattr(self, flag.name) for flag in flags(type(self))}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any], source: str = "opt.yaml") -> T:
        """Build from the values of `to_dict`; fields left out take their defaults, unknown ones raise `UserError`."""
        known = {flag.name: flag for flag in flags(cls)}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        faults = [f"{source}: {name}: unknown option{suggest(name, known)}" for name in values if name not in known]
        for name, value in values.items():
            if fault := name in known and _fault(known[name], value):
                faults.append(f"{source}: {_spelling(known[name])} {_shown(value)}: {fault}")
        refuse(faults, source)
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None


T = TypeVar("T", bound=_Options)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(_Options):
    """Options of train.py."""

    data: str = _flag("shapes", "data yaml, or a shipped one's name", "data and model", metavar="YAML")
    cfg: str = _flag("yolo-n", "model: yolo-n, yolo-s, yolo-m, yolo-l, yolo-x", "data and model", metavar="MODEL")
    weights: str = _flag(
        "", "start from a checkpoint (.pt) or torchvision:NAME", "data and model", metavar="PATH", shown="random"
    )
    imgsz: int = _flag(
        0,
        "side of the training images, in pixels",
        "data and model",
        *("--img", "--img-size"),
        low=0,
        high=8192,
        shown="from the data, at most 640",
    )
    single_cls: bool = _flag(False, "train all classes as one", "data and model")
    rect: bool = _flag(False, "train on images of their own shape, without mosaic", "data and model")
    multi_scale: bool = _flag(
        False, "vary the image size, from batch to batch, by half to either side", "data and model"
    )
    cache: str = _flag(
        "auto",
        "keep decoded images in ram or on disk; auto = ram where they are few",
        "data and model",
        bare="ram",
        choices=("auto", "ram", "disk", "off"),
    )
    skip_bad: bool = _flag(False, "go on without what is faulty in the data", "data and model")
    check: str = _check()
    download: bool = _flag(
        False,
        "fetch what is missing: the data set that the data yaml names, torchvision's ImageNet weights",
        "data and model",
    )

    epochs: int = _flag(40, "epochs to train", "training", low=1, high=1_000_000)
    batch_size: int = _flag(16, "images a batch, over all devices", "training", "--batch", low=1, high=65536)
    hyp: str = _flag("hyp/default.yaml", "hyper-parameter yaml, or a preset's name", "training", metavar="YAML")
    set: tuple[str, ...] = _flag((), "override hyper-parameters", "training", metavar="KEY=VALUE", many=True)
    optimizer: str = _flag("", "update rule", "training", choices=("SGD", "Adam", "AdamW"), shown="from the hyp")
    adam: bool = _flag(False, "the same as --optimizer Adam", "training")
    label_smoothing: float | None = _flag(
        None, "share of a class target that is spread evenly", "training", low=0, high=0.999, shown="from the hyp"
    )
    freeze: str = _flag(
        "", "keep the first N stages, or the backbone, as they are", "training", metavar="N|backbone", shown="nothing"
    )
    patience: int = _flag(100, "stop after this many epochs without a better one; 0 = never", "training", low=0)
    on_divergence: str = _flag(
        "stop",
        "when losses stay non-finite: end, or go back to the epoch's start with a tenth of the lr, at most 3 times",
        "training",
        choices=("stop", "rollback"),
    )
    seed: int = _flag(0, "seed of everything random", "training", low=0, high=2**63 - 1)
    resume: str | None = _flag(
        None, "continue the newest run, or that of PATH", "training", metavar="PATH", bare="", shown="a new run"
    )

    linear_lr: bool = _flag(False, "learning rate falls on a straight line", "learning rate")
    cos_lr: bool = _flag(False, "learning rate falls on a half cosine (one_cycle)", "learning rate")
    schedule: str = _flag(
        "",
        "course of the learning rate: one_cycle, linear, flat_cosine, step, constant, or a function of yours",
        "learning rate",
        metavar="NAME|MODULE:FUNCTION",
        shown="from the hyp",
    )
    plan: bool = _flag(False, "print and draw the learning rate of the whole run, and exit", "learning rate")
    lr_find: bool = _flag(False, "find a learning rate by a range test, and exit", "learning rate")
    lr_find_from: float = _flag(1e-6, "first learning rate of the range test", "learning rate", low=1e-12, high=100)
    lr_find_to: float = _flag(1.0, "last learning rate of the range test", "learning rate", low=1e-12, high=100)
    lr_find_steps: int = _flag(100, "optimizer steps of the range test", "learning rate", low=20, high=100_000)
    extend: str = _flag(
        "",
        "with --resume and --epochs N: how a run that is over goes on",
        "learning rate",
        choices=("replan", "tail"),
        shown="it does not",
    )
    help_hyp: bool = _flag(False, "print the table of hyper-parameters and exit", "learning rate")

    val_period: int = _flag(1, "evaluate every N epochs", "evaluation", low=1)
    noval: bool = _flag(False, "evaluate after the last epoch only", "evaluation")
    nms: bool = _flag(False, "evaluate the one-to-many head with NMS instead of the NMS-free one", "evaluation")

    project: str = _flag("runs/train", "folder of runs", "run folder", metavar="DIR")
    name: str = _flag("exp", "the run's folder; a number is added where it exists", "run folder", metavar="NAME")
    exist_ok: bool = _flag(False, "write into the folder even if it exists", "run folder")
    save_period: int = _flag(0, "keep a checkpoint every N epochs; 0 = only last and best", "run folder", low=-1)
    save_minutes: float | None = _flag(
        None,
        "save the state every so many minutes of an epoch too; 0 = only at its end",
        "run folder",
        low=0,
        shown="5, or 100 times what a save takes",
    )
    nosave: bool = _flag(
        False, "save no last.pt before the end, unless a signal stops the run: a killed one can't go on", "run folder"
    )
    noplots: bool = _flag(False, "draw no pictures", "run folder")
    force: bool = _flag(False, "resume even where it would not be the same run", "run folder")

    device: str = _flag("", "cpu, 0, 0,1 or mps", "machine", shown="the first CUDA device, else the CPU")
    workers: int = _flag(-1, "processes that load data, each device", "machine", low=-1, high=1024, shown="-1, by CPUs")
    amp: str = _flag("auto", "mixed precision; auto = on CUDA", "machine", choices=("auto", "off", "fp16", "bf16"))
    compile: bool = _flag(False, "compile backbone, neck and head, which takes minutes at the start", "machine")
    profile: int = _flag(
        0, "time N steps, show where the time goes, and exit", "machine", metavar="N", low=0, high=10_000, shown="off"
    )
    sync_bn: bool = _flag(False, "batch norm over all devices", "machine")
    deterministic: bool = _flag(
        False, "take only kernels that give the same bits every time: slower on CUDA, and the rule on a CPU", "machine"
    )

    def __post_init__(self) -> None:
        if self.batch_size == -1:
            raise UserError("--batch-size -1: there is no automatic batch size; give a number, such as 16")
        super().__post_init__()
        beside = Path(self.name).parts[0].lower()
        if beside in SIDE_FOLDERS and "name" in self.explicit and not (self.plan or self.lr_find or self.profile):
            raise UserError(f"--name {self.name}: {beside} is the folder of --{beside.replace('_', '-')}; take another")
        if self.freeze and self.freeze != "backbone" and not re.fullmatch("[0-9]{1,4}", self.freeze):
            raise UserError(f"--freeze {self.freeze}: allowed: a number of stages, or backbone")
        if self.adam and self.optimizer not in ("", "Adam"):
            raise UserError(f"--adam and --optimizer {self.optimizer} contradict each other: give one of them")
        self._check_learning_rate()
        given = {text.partition("=")[0].strip() for text in self.set}
        for flag, override in self.hyp_flags().items():
            if override.partition("=")[0] in given:
                raise UserError(
                    f"{flag} and --set {override.partition('=')[0]}=… name the same thing: give one of them"
                )

    def _check_learning_rate(self) -> None:
        named = {"--linear-lr": "linear" * self.linear_lr, "--cos-lr": "one_cycle" * self.cos_lr}
        named[f"--schedule {self.schedule}"] = self.schedule
        said = [flag for flag, name in named.items() if name]
        if len({name for name in named.values() if name}) > 1:
            raise UserError(f"{' and '.join(said)} contradict each other: give one of them")
        if self.schedule == "custom":
            raise UserError("--schedule custom: give the function itself, as --schedule my_module:my_factor")
        for switch, other in (
            ("noval", "val_period"),
            ("noval", "patience"),
            ("nosave", "save_minutes"),
            ("nosave", "save_period"),
        ):
            if getattr(self, switch) and other in self.explicit:
                flag = f"--{other.replace('_', '-')}"
                raise UserError(f"--{switch} and {flag} contradict each other: give one of them")
        if self.extend and self.resume is None:
            raise UserError(f"--extend {self.extend}: goes with --resume [PATH] and --epochs N, the new number in all")
        instead = {"--plan": self.plan, "--lr-find": self.lr_find, "--profile": self.profile > 0}
        asked = [flag for flag, given in instead.items() if given]
        if asked[1:]:
            raise UserError(f"{' and '.join(asked)}: each takes the place of training; give one of them")
        if self.resume is not None and (self.lr_find or self.profile):
            raise UserError(f"{asked[0]} and --resume: give one of them")
        if self.lr_find_from >= self.lr_find_to:
            raise UserError(
                f"--lr-find-from {self.lr_find_from:g}: must be smaller than --lr-find-to {self.lr_find_to:g}"
            )

    def hyp_flags(self) -> dict[str, str]:
        """Return the flags that stand for a hyper-parameter, {flag: `KEY=VALUE`}."""
        named = self.schedule and ("custom" if ":" in self.schedule else self.schedule)
        overrides = {
            "--linear-lr": "schedule=linear" if self.linear_lr else "",
            "--cos-lr": "schedule=one_cycle" if self.cos_lr else "",
            "--schedule": f"schedule={named}",
            "--adam" if self.adam else "--optimizer": f"optimizer={'Adam' if self.adam else self.optimizer}",
            "--label-smoothing": "" if self.label_smoothing is None else f"label_smoothing={self.label_smoothing}",
            "--multi-scale": "multi_scale=0.5" if self.multi_scale else "",
        }
        return {flag: text for flag, text in overrides.items() if text and not text.endswith("=")}


@dataclass(frozen=True, kw_only=True)
class ValOptions(_Options):
    """Options of val.py."""

    weights: str = _flag("", "checkpoint (.pt) to evaluate", "data and model", metavar="PATH", required=True)
    data: str = _flag(
        "", "data yaml, or a shipped one's name", "data and model", metavar="YAML", shown="the one it was trained on"
    )
    task: str = _flag("val", "split to evaluate", "data and model", choices=("train", "val", "test"))
    imgsz: int = _flag(
        0,
        "side of the images, in pixels",
        "data and model",
        *("--img", "--img-size"),
        low=0,
        high=8192,
        shown="that of the training",
    )
    single_cls: bool = _flag(False, "take all classes as one", "data and model")
    skip_bad: bool = _flag(False, "go on without what is faulty in the data", "data and model")
    check: str = _check()
    download: bool = _flag(False, "fetch the data set that the data yaml names, where it is missing", "data and model")

    batch_size: int = _flag(16, "images a batch", "evaluation", "--batch", low=1, high=65536)
    conf_thres: float = _flag(0.001, "detections below this score are left out", "evaluation", "--conf", low=0, high=1)
    iou_thres: float = _flag(0.7, "overlap that NMS allows (with --nms)", "evaluation", "--iou", low=0, high=1)
    max_det: int = _flag(300, "detections an image at most", "evaluation", low=1, high=100_000)
    nms: bool = _flag(False, "use the one-to-many head with NMS instead of the NMS-free one", "evaluation")

    verbose: bool = _flag(False, "print figures by class even of more than 20 classes", "output")
    save_txt: bool = _flag(False, "write detections as YOLO txt files", "output")
    save_conf: bool = _flag(False, "add scores to the txt files", "output")
    save_json: bool = _flag(False, "write detections as COCO JSON", "output")
    noplots: bool = _flag(False, "draw no pictures", "output")

    project: str = _flag("runs/val", "folder of runs", "run folder", metavar="DIR")
    name: str = _flag("exp", "the run's folder; a number is added where it exists", "run folder", metavar="NAME")
    exist_ok: bool = _flag(False, "write into the folder even if it exists", "run folder")

    device: str = _flag("", "cpu, 0 or mps", "machine", shown="the first CUDA device, else the CPU")
    workers: int = _flag(-1, "processes that load data", "machine", low=-1, high=1024, shown="-1, by CPUs")
    amp: str = _flag("auto", "mixed precision; auto = on CUDA", "machine", choices=("auto", "off", "fp16", "bf16"))


@dataclass(frozen=True, kw_only=True)
class DetectOptions(_Options):
    """Options of detect.py."""

    weights: str = _flag("", "checkpoint (.pt)", "data and model", metavar="PATH", required=True)
    source: str = _flag(
        "", "image, video, folder, glob, or txt list of them", "data and model", metavar="PATH", required=True
    )
    imgsz: int = _flag(
        0,
        "side of the images, in pixels",
        "data and model",
        *("--img", "--img-size"),
        low=0,
        high=8192,
        shown="that of the training",
    )
    vid_stride: int = _flag(1, "take every Nth frame of a video", "data and model", low=1)

    conf_thres: float = _flag(0.25, "detections below this score are left out", "evaluation", "--conf", low=0, high=1)
    iou_thres: float = _flag(0.45, "overlap that NMS allows (with --nms)", "evaluation", "--iou", low=0, high=1)
    max_det: int = _flag(300, "detections an image at most", "evaluation", low=1, high=100_000)
    classes: tuple[int, ...] = _flag((), "only these classes, by number", "evaluation", many=True, low=0, shown="all")
    nms: bool = _flag(False, "use the one-to-many head with NMS instead of the NMS-free one", "evaluation")
    agnostic_nms: bool = _flag(False, "NMS across classes (with --nms)", "evaluation")

    save_txt: bool = _flag(False, "write detections as YOLO txt files", "output")
    save_conf: bool = _flag(False, "add scores to the txt files", "output")
    save_json: bool = _flag(False, "write detections as COCO JSON", "output")
    save_crop: bool = _flag(False, "write each detection's cut-out", "output")
    nosave: bool = _flag(False, "write no annotated pictures", "output")
    line_thickness: int = _flag(
        0, "width of box lines, in pixels", "output", low=0, high=100, shown="by the picture's size"
    )
    hide_labels: bool = _flag(False, "draw boxes without class names", "output")
    hide_conf: bool = _flag(False, "draw class names without scores", "output")

    project: str = _flag("runs/detect", "folder of runs", "run folder", metavar="DIR")
    name: str = _flag("exp", "the run's folder; a number is added where it exists", "run folder", metavar="NAME")
    exist_ok: bool = _flag(False, "write into the folder even if it exists", "run folder")

    device: str = _flag("", "cpu, 0 or mps", "machine", shown="the first CUDA device, else the CPU")
    amp: str = _flag("auto", "mixed precision; auto = on CUDA", "machine", choices=("auto", "off", "fp16", "bf16"))


@dataclass(frozen=True, kw_only=True)
class CheckOptions(_Options):
    """Options of data/check.py."""

    data: str = _flag(
        "", "data yaml, or a shipped one's name; may stand first, without --data", "data and model", metavar="YAML",
        required=True,
    )  # fmt: skip
    check: str = _check(
        "what is read of each image: what training reads before it starts, or every pixel at its full size"
    )
    single_cls: bool = _flag(False, "take all classes as one", "data and model")
    download: bool = _flag(False, "fetch the data set that the data yaml names, where it is missing", "data and model")
    html: str | None = _flag(
        None, "write a page with pictures", "output", metavar="FILE", bare="", shown="none; runs/check/NAME.html"
    )


def _check_name(name: str, project: str) -> None:
    if not name.strip() or Path(name).name in ("", "."):
        raise UserError(f"--name '{name}': give the run's folder a name, such as exp")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"--name {name}: leads out of --project {project}: write --project DIR --name NAME")


def flags(cls: type[_Options]) -> list[dataclasses.Field]:
    """Return the fields that are flags."""
    return [flag for flag in dataclasses.fields(cls) if flag.metadata]


def parse(
    cls: type[T],
    argv: Sequence[str],
    prog: str,
    description: str,
    elsewhere: Callable[[str, str], str] = lambda name, value: "",
) -> T:
    """Read a command line (without the program's name) into options.

    Flags may be written with `_` for `-`. `elsewhere` says of a name that is no flag, and its value, where it belongs.
    Raises `UserError` for whatever is wrong; `--help` prints and exits 0.
    """
    words = [_hyphens(word) for word in argv]
    found, rest = _parser(cls, prog, description).parse_known_args(words)
    if rest:
        if _flag_before(words, rest[0]) == "--source":
            hint = "--source takes one; put a pattern in quotes, so that the shell leaves it as it is"
            raise UserError(printable(f"{prog}: {rest[0][:MAX_FILE_NAME]}: {hint}"))
        raise UserError(printable(_stray(cls, prog, [word[:MAX_FILE_NAME] for word in rest], elsewhere)))
    values = {flag.name: _value(flag, vars(found)[flag.name]) for flag in flags(cls) if flag.name in vars(found)}
    for flag in flags(cls):
        if flag.metadata.get("required") and not values.get(flag.name):
            raise UserError(f"{prog} needs {_spelling(flag)} {_metavar(flag)}: {flag.metadata['help']}")
    return cls(explicit=frozenset(values), **values)


def _flag_before(words: Sequence[str], word: str) -> str:
    """The flag that a word is typed after, with other words between; empty where the word is a flag or after none."""
    before = [] if word.startswith("-") else words[: words.index(word)]
    return next((other for other in reversed(before) if other.startswith("--")), "")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        switch = re.fullmatch(r"argument (--[^:/]+).*: ignored explicit argument '(.*)'", message)
        if switch:
            flag, value = switch.groups()
            message = f"{flag}={value}: a switch takes no value: write {flag}, or leave it out"
        raise UserError(printable(f"{self.prog}: {message}"))


def _parser(cls: type[_Options], prog: str, description: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34),
    )
    for name in GROUPS:
        members = [flag for flag in flags(cls) if flag.metadata["group"] == name]
        group = parser.add_argument_group(name) if members else None
        for flag in members:
            group.add_argument(*_spellings(flag), **_arguments(flag))
    return parser


def _arguments(flag: dataclasses.Field) -> dict[str, Any]:
    """Return what argparse is told; it delivers texts, and only of flags that were typed."""
    metadata, help = flag.metadata, flag.metadata["help"]
    shown = metadata.get("shown", "" if metadata.get("required") else _shown(flag.default))
    help = f"{help} (default: {shown})" if shown and flag.type != "bool" else help
    arguments = {"dest": flag.name, "default": argparse.SUPPRESS, "help": help.replace("%", "%%")}
    if flag.type == "bool":
        return arguments | {"action": "store_true"}
    arguments["metavar"] = _metavar(flag)
    if "bare" in metadata:
        return arguments | {"nargs": "?", "const": metadata["bare"]}
    if metadata.get("many"):
        return arguments | {"nargs": "+", "action": "extend"}
    return arguments | ({"nargs": "+"} if flag.name == "imgsz" else {})


def _value(flag: dataclasses.Field, given: Any) -> Any:
    """Return the typed value of what argparse delivered."""
    if flag.type == "bool":
        return given
    if flag.name == "imgsz":  # YOLOv5's habit of giving width and height, or train and test size
        if len(set(given)) > 1:
            raise UserError(f"{_spelling(flag)} {' '.join(given)}: images are square; give one size")
        given = given[0]
    if flag.metadata.get("many"):
        return tuple(_convert(flag, text) for text in given)
    return _convert(flag, given)


def _convert(flag: dataclasses.Field, text: str) -> Any:
    kind = "int" if "int" in flag.type else "float" if "float" in flag.type else "str"
    choices = {choice.lower(): choice for choice in flag.metadata.get("choices", ())}
    try:
        if kind != "str" and ("_" in text or not text.isascii()):  # Python would read 1_0 and １０ as 10
            raise ValueError(text)
        return {"int": int, "float": float, "str": lambda word: choices.get(word.lower(), word)}[kind](text)
    except ValueError:
        what = "a whole number" if kind == "int" else "a number"
        raise UserError(f"{_spelling(flag)} {_shown(text)}: not {what}") from None


def _fault(flag: dataclasses.Field, value: Any) -> str:
    """Return what is wrong with a flag's typed value, or an empty string."""
    if value == flag.default and type(value) is type(flag.default):
        return ""
    if flag.type.startswith("tuple"):
        if not isinstance(value, tuple):
            return "not a list"
        faults = [_member_fault(flag, "int" if "int" in flag.type else "str", member) for member in value]
        return next(filter(None, faults), "")
    return _member_fault(flag, flag.type.removesuffix(" | None"), value)


def _member_fault(flag: dataclasses.Field, kind: str, value: Any) -> str:
    types = {"int": int, "float": (int, float), "str": str, "bool": bool}[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        return f"not {'a number' if kind in ('int', 'float') else 'a text' if kind == 'str' else 'true or false'}"
    choices = flag.metadata.get("choices")
    if choices and value not in choices:
        return f"not one of {', '.join(choices)}{suggest(str(value), choices)}"
    low, high = flag.metadata.get("low", -MAX_WHOLE), flag.metadata.get("high", MAX_WHOLE)
    if kind in ("int", "float") and not low <= value <= high:
        unlimited = high == MAX_WHOLE and value < low
        return f"out of range; allowed: {f'{low} or more' if unlimited else f'{low} to {high}'}"
    return text_fault(value) if kind == "str" else ""


def _stray(cls: type[_Options], prog: str, words: list[str], elsewhere: Callable[[str, str], str]) -> str:
    """Return what to say of the first of the words that belong to no flag."""
    word, known = words[0], {name: flag for flag in flags(cls) for name in _spellings(flag)}
    name, equals, value = word.partition("=")
    key = name.lstrip("-").replace("-", "_")
    flag = _RENAMED.get(key, f"--{key.replace('_', '-')}")
    if word[:1] in DASHES and word[1:]:
        return f"{prog}: {word}: flags begin with two plain hyphens: --{word.lstrip(DASHES)}"
    if not equals and not word.startswith("-"):
        return f"{prog}: {word}: belongs to no flag (a switch such as --exist-ok takes no word)"
    if flag in known and not word.startswith("-"):
        return f"{prog}: {word}: flags are written --name value: {_written(known[flag], flag, value)}"
    if key in _RENAMED and flag in known:
        return f"{prog}: {name}: write {flag}"
    if refused := _refusal(flag, known):
        return f"{name} does not exist here: {refused}"
    given = value if equals else "".join(next_word for next_word in words[1:2] if not next_word.startswith("--"))
    hint = elsewhere(key, given) or _owner(cls, flag) or _nearest(name, [*known, "--help"]) or "--help lists them"
    return f"{prog}: {name}: unknown flag; {hint}"


def _written(field: dataclasses.Field, flag: str, value: str) -> str:
    """How a flag is written here that was given as `name=value`, where true and false may stand for other words."""
    truth = {"true": True, "false": False}.get(value.lower())
    if truth is None:
        return flag if field.type == "bool" else f"{flag} {value}"
    word = "auto" if truth else "off"
    if word in field.metadata.get("choices", ()):
        return f"{flag} {word}"
    alone = field.type == "bool" or "bare" in field.metadata
    return flag if truth and alone else f"leave {flag} out"


def _refusal(flag: str, known: Collection[str]) -> str:
    """Why there is no such flag of other trainers; empty where the answer names a flag that this program lacks too."""
    why = _REFUSED.get(flag, "")
    return "" if flag in known or set(re.findall("--[a-z-]+[a-z]", why)) - set(known) else why


def _owner(cls: type[_Options], flag: str) -> str:
    """Say which of the other programs has a flag."""
    programs = {"train.py": TrainOptions, "val.py": ValOptions, "detect.py": DetectOptions}
    others = {name: other for name, other in programs.items() if other is not cls}
    owners = [name for name, other in others.items() if flag in chain(*map(_spellings, flags(other)))]
    return f"{flag} is a flag of {' and '.join(owners)}" if owners and len(others) < len(programs) else ""


def _nearest(name: str, known: Sequence[str]) -> str:
    """Ask for the flag that is spelled nearest; the hyphens before it, which all have, make none of them nearer."""
    near = suggest(name.lstrip("-"), [other.lstrip("-") for other in known])
    return near.removeprefix("; ").replace("'", "'--", 1)


def _hyphens(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _spelling(flag: dataclasses.Field) -> str:
    return f"--{flag.name.replace('_', '-')}"


def _spellings(flag: dataclasses.Field) -> list[str]:
    return [_spelling(flag), *flag.metadata["names"]]


def _metavar(flag: dataclasses.Field) -> str:
    choices = "{" + ",".join(flag.metadata.get("choices", ())) + "}"
    guess = "N" if "int" in flag.type else "X" if "float" in flag.type else "TEXT"
    return flag.metadata.get("metavar", guess if choices == "{}" else choices)


def _shown(value: Any) -> str:
    """Return a value as a message repeats it: short, and without what would steer a terminal."""
    text = " ".join(map(str, value)) if isinstance(value, tuple) else "''" if value == "" else str(value)
    return printable(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
