"""Hyper-parameters: one declaration a key, from which files are read and checked, written, and explained."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, printable, refuse, suggest

PRESETS = Path(__file__).resolve().parents[1] / "hyp"
FITNESS = ("mAP50-95", "mAP50", "precision", "recall")
SCHEDULES = ("one_cycle", "linear", "flat_cosine", "step", "constant")
CUSTOM = "custom"  # the user's own schedule, which only the command line can name
_OTHERS = dict.fromkeys(("cos", "cosine", "half_cosine"), "one_cycle")  # names that choices have elsewhere
SHOWN = 80  # characters of a value that a message repeats
MAX_BYTES = 1 << 20  # of a file
PARTS = ("backbone", "neck", "head")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WHOLE = re.compile(r"[-+]?[0-9]{1,18}")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")

# Keys of other trainers that mean nothing here: better a word on why than "unknown key".
_GONE = {
    **dict.fromkeys(("obj", "obj_pw"), "there is no objectness branch: the class scores are the confidence"),
    "cls_pw": "classes are not weighted by a positive weight: the assigner's targets balance them",
    **dict.fromkeys(("anchors", "anchor_t", "iou_t"), "the model is anchor-free: boxes are assigned by alignment"),
    "fl_gamma": "the class loss is binary cross-entropy on soft targets, without focal weighting",
    "loss_ota": "assignment is always task-aligned (assign_topk, assign_alpha, assign_beta)",
    **dict.fromkeys(("copy_paste", "copy_paste_mode", "paste_in"), "it needs masks, and only boxes are trained here"),
    **dict.fromkeys(("pose", "kobj", "rle", "angle"), "only boxes are trained here, no keypoints or rotated boxes"),
    **dict.fromkeys(("overlap_mask", "mask_ratio"), "only boxes are trained here, no masks"),
    **dict.fromkeys(("auto_augment", "erasing", "crop_fraction", "dropout"), "it belongs to image classification"),
    **dict.fromkeys(("bgr", "cutmix"), "this augmentation does not exist here"),
    "nbs": "write nominal_batch, where 0 means an optimizer step every batch",
    "giou": "write box: the gain of the box loss (CIoU)",
    "cos_lr": "write schedule: one_cycle for true, schedule: linear for false",
    "linear_lr": "write schedule: linear",
    **dict.fromkeys(("batch", "batch_size"), "not a hyper-parameter but a flag: --batch-size"),
    **dict.fromkeys(("img", "img_size"), "not a hyper-parameter but a flag: --imgsz"),
    "model": "write --cfg yolo-n, or --weights PATH",
    "lr": "write lr0: the learning rate at the start",
    "warmup_iters": "write warmup_epochs, which may be a fraction such as 0.5",
}
# What only recipes of YOLOv5 and YOLOv7 have. Their other keys are ours too, with values for another optimizer.
_CLASSIC = ("obj", "obj_pw", "cls_pw", "anchor_t", "iou_t", "fl_gamma", "loss_ota", "paste_in")
_RECIPE = (
    "it looks like a recipe of YOLOv5 or YOLOv7: --hyp yolov7 is one, with the loss gains that fit here; what else "
    "differs in yours, lrf and augmentation perhaps, goes on top, by --set KEY=VALUE"
)
LOW_BOX = 0.5  # a fifteenth of what is usual; 0.05 in recipes of YOLOv5 and YOLOv7
HIGH_LR0 = 0.005  # of Adam and AdamW; see benchmarks/RESULTS.md
_FLAGS = (
    *("weights", "cfg", "data", "epochs", "imgsz", "device", "workers", "cache", "rect", "single_cls", "patience"),
    *("freeze", "save_period", "val_period", "sync_bn", "seed", "amp", "project", "name", "exist_ok", "resume"),
)


def _key(default: Any, sentence: str, *, within: str = "", unit: str = "", choices: tuple[str, ...] = ()) -> Any:
    """Declare a key; `within` is an interval in the usual notation: `[` and `]` include the end, `(` and `)` don't.

    Of a list it holds for every member, of a map for every value; a map's keys are among `choices`.
    """
    metadata = {"doc": sentence, "within": within, "unit": unit, "choices": choices}
    return (
        field(default_factory=lambda: default, metadata=metadata)
        if default == {}
        else field(default=default, metadata=metadata)
    )


def default_of(name: str) -> Any:
    """Return what a key is where nothing is said."""
    key = KEYS[name]
    return key.default if key.default is not dataclasses.MISSING else key.default_factory()


@dataclass(frozen=True)
class Hyp:
    """The hyper-parameters of a run. Every instance has passed the checks; a fault raises `UserError`."""

    optimizer: str = _key("AdamW", "update rule", choices=("SGD", "Adam", "AdamW"))
    lr0: float = _key(0.002, "learning rate that the schedule starts from", within="(0, 10]")
    lrf: float = _key(0.01, "learning rate at the end as a share of lr0", within="[0, 1]")
    schedule: str = _key("one_cycle", "course of the learning rate", choices=(*SCHEDULES, CUSTOM))
    hold: float = _key(0.5, "flat_cosine: share of the run at lr0 before it falls", within="[0, 1]")
    step_at: tuple[float, ...] = _key(
        (0.6667, 0.9167), "step: shares of the run at which it falls, each time by the same ratio", within="(0, 1)"
    )
    lr_scale: dict[str, float] = _key(
        {},
        "multiplies the learning rate of a part of the model",
        within="(0, 100]",
        choices=PARTS,
    )
    lr_batch_rule: str = _key(
        "none",
        "lr0 times effective batch / nominal_batch, or its root",
        choices=("none", "linear", "sqrt"),
    )
    momentum: float = _key(0.9, "momentum of SGD, beta1 of Adam and AdamW", within="[0, 1)")
    weight_decay: float = _key(0.0005, "decay of weights, never of biases and norms", within="[0, 1]")
    scale_weight_decay: bool = _key(False, "multiply weight_decay by effective batch / nominal_batch")
    nominal_batch: int = _key(
        0, "accumulate gradients to about this batch; 0 = a step every batch", within="[0, 65536]", unit="images"
    )
    warmup_epochs: float = _key(3.0, "length of the warm-up; 0 = none", within="[0, 1000]", unit="epochs")
    warmup_max_fraction: float = _key(0.1, "the warm-up never takes more than this share of the run", within="[0, 1]")
    warmup_momentum: float = _key(0.8, "momentum at the start of the warm-up", within="[0, 1)")
    warmup_bias_lr: float = _key(0.0, "learning rate of biases at the start of the warm-up", within="[0, 10]")
    clip_grad_norm: float = _key(10.0, "largest norm of all gradients together; 0 = no clipping", within="[0, inf)")
    ema_decay: float = _key(0.995, "limit of the decay of the averaged weights (EMA)", within="[0, 1)")
    ema_tau: float = _key(
        100.0, "time after which the EMA's decay is at 63 % of ema_decay", within="(0, inf)", unit="steps"
    )
    fitness: str = _key("mAP50-95", "figure by which the best epoch is chosen", choices=FITNESS)

    box: float = _key(7.5, "gain of the box loss (CIoU)", within="[0, inf)")
    cls: float = _key(0.5, "gain of the class loss", within="[0, inf)")
    dfl: float = _key(1.5, "gain of the distribution focal loss on box edges", within="[0, inf)")
    one_to_one: float = _key(1.0, "weight of the NMS-free one-to-one branch in the loss", within="[0, inf)")
    label_smoothing: float = _key(0.0, "share of a class target that is spread evenly", within="[0, 1)")
    assign_topk: int = _key(10, "anchor points assigned to a box by the one-to-many branch", within="[1, 100]")
    assign_alpha: float = _key(0.5, "exponent of the class score in the alignment of point and box", within="[0, 20]")
    assign_beta: float = _key(6.0, "exponent of the IoU in the alignment of point and box", within="[0, 20]")

    hsv_h: float = _key(0.015, "hue shift at most, as a share of the colour circle", within="[0, 0.5]")
    hsv_s: float = _key(0.7, "saturation change at most, as a share", within="[0, 1]")
    hsv_v: float = _key(0.4, "brightness change at most, as a share", within="[0, 1]")
    degrees: float = _key(0.0, "rotation at most, to either side", within="[0, 180]", unit="degrees")
    translate: float = _key(0.1, "shift at most, as a share of the image's side", within="[0, 1]")
    scale: float = _key(0.5, "zoom between 1 - scale and 1 + scale", within="[0, 1)")
    shear: float = _key(0.0, "shear at most, along either axis", within="[0, 45]", unit="degrees")
    perspective: float = _key(0.0, "perspective at most", within="[0, 0.001]", unit="1/pixel")
    flipud: float = _key(0.0, "probability of an upside-down flip", within="[0, 1]")
    fliplr: float = _key(0.5, "probability of a left-right flip", within="[0, 1]")
    mosaic: float = _key(1.0, "probability of a mosaic of four images", within="[0, 1]")
    mixup: float = _key(0.0, "probability of blending two mosaics", within="[0, 1]")
    close_mosaic: int = _key(
        10, "last epochs of the run that train without mosaic and mixup", within="[0, 100000]", unit="epochs"
    )
    multi_scale: float = _key(0.0, "image size varies by this share; --multi-scale sets 0.5", within="[0, 0.75]")

    def __post_init__(self) -> None:
        faults = [f"{name}: {fault}" for name, fault in _value_faults(dataclasses.asdict(self)).items()]
        refuse(faults or _contradictions(self), "the hyper-parameters")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "hyp") -> Hyp:
        """Build from typed values such as a checkpoint's; keys left out take their defaults."""
        faults = [f"{source}: {_unknown(name)}" for name in values if name not in KEYS]
        known = {name: _settled(name, value) for name, value in values.items() if name in KEYS}
        faults += [f"{source}: {name}: {fault}" for name, fault in _value_faults(known).items()]
        refuse(faults, source)
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by key, in the order of declaration."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_yaml(self) -> str:
        """Return a yaml file's text: a key a line, with what it means. `load_hyp` reads it back to an equal `Hyp`."""
        pairs = {name: f"{name}: {_text(value)}" for name, value in self.to_dict().items()}
        width = max(map(len, pairs.values()))
        return "".join(f"{pair:<{width}}  # {describe(name)}\n" for name, pair in pairs.items())


KEYS = {key.name: key for key in dataclasses.fields(Hyp)}
LIST, MAP = "tuple[float, ...]", "dict[str, float]"
KINDS = {"float": "number", "int": "whole", "bool": "true/false", "str": "word", LIST: "list", MAP: "map"}


def load_hyp(path_or_name: str, overrides: list[str] | None = None, flags: Mapping[str, str] | None = None) -> Hyp:
    """Read a hyp yaml (a path, or a preset's name such as `yolov7`) and apply what the command line says.

    Keys left out take their defaults. `overrides`: `KEY=VALUE` texts of `--set`, which win over the file. `flags`:
    {flag: KEY=VALUE} of flags that stand for a key; they win over a preset of ours, and contradict a file of the
    user's that says otherwise. Raises one `UserError` that lists every fault with file, line, key and value.
    """
    path, shown, flags = _find(path_or_name), str(path_or_name), flags or {}
    values, lines, faults = _read_yaml(path, shown)
    changes, override_faults = _read_overrides(overrides or [])
    said, flag_faults = _read_flags(flags)
    if path.resolve().parent != PRESETS:
        flag_faults += [
            f"{flag} and {shown}:{lines[name]}: {name}: {_text(values[name])} contradict each other: mend the file, "
            f"leave the flag out, or write --set {flags[flag]}, which overrides a file"
            for flag, (name, value) in said.items()
            if name in values and values[name] != value
        ]
    foreign = sum(name in _CLASSIC for name in lines) > 1
    refuse(faults + override_faults + flag_faults, shown if faults else "the command line", _RECIPE if foreign else "")
    hyp = values | changes | dict(said.values())
    if hyp.get("schedule") == CUSTOM and "--schedule" not in flags:
        raise UserError(f"{shown}: schedule: {CUSTOM}: needs its function: --schedule my_module:my_factor")
    if hyp.get("schedule") == "step" and hyp.get("lrf") == 0:  # of a run that began so all but training is sound
        what = "schedule: step reaches lrf by falls of one ratio each, and lrf 0 by none; give lrf a number above 0"
        raise UserError(f"{shown}: {what}")
    try:
        return Hyp(**hyp)
    except UserError as error:  # every value is allowed by itself, so this is two that contradict each other
        raise UserError(f"{shown}{' with the command line' if changes or said else ''}: {error}") from None


def doubts(optimizer: str, lr0: float) -> list[str]:
    """Say that an lr0 is none that `lr0` may be, or is allowed and yet looks as if it was meant for another
    optimizer."""
    if not _inside(lr0, KEYS["lr0"].metadata["within"]):
        return [f"lr0 {lr0:g} is more than lr0 may be; allowed: {_allowed('lr0')}"]
    if optimizer == "SGD" or lr0 <= HIGH_LR0:
        return []
    usual = f"{default_of('lr0'):g} is usual; recipes of YOLOv5 and YOLOv7 are for optimizer: SGD, as in --hyp yolov7"
    return [f"lr0 {lr0:g} is high for {optimizer}: {usual}"]


def gain_doubts(hyp: Hyp) -> list[str]:
    """Say that the gain of the box loss looks as if it was meant for another loss."""
    if hyp.box >= LOW_BOX:
        return []
    return [f"box {hyp.box:g} is low: {default_of('box'):g} is usual; the 0.05 of YOLOv5 and YOLOv7 is for their loss"]


def _read_flags(flags: Mapping[str, str]) -> tuple[dict[str, tuple[str, Any]], list[str]]:
    """Return {flag: (key, value)} and the faults of flags that stand for a key."""
    said, faults = {}, []
    for flag, text in flags.items():
        name, _, value_text = text.partition("=")
        value, fault = _from_text(name, value_text)
        said[flag] = (name, value)
        faults += [f"{flag}: {fault}"] if fault else []
    return said, faults


def describe(name: str) -> str:
    """Return the values a key allows, their unit, and its sentence: the comment that hyp files carry."""
    metadata = KEYS[name].metadata
    return f"{_range_text(name)} {metadata['unit']}".strip() + f": {metadata['doc']}"


def stated(file: str | Path) -> dict[str, Any]:
    """Return the values that stand in a hyp yaml, by key. Raises `UserError` with all its faults."""
    values, _, faults = _read_yaml(Path(file), str(file))
    refuse(faults, str(file))
    return values


def hyp_table() -> str:
    """Return the table of all keys for `--help-hyp`: key, default, type, allowed values, unit, meaning."""
    rows = [("key", "default", "type", "allowed", "unit", "meaning")]
    for name, key in KEYS.items():
        rows.append((name, _text(default_of(name)), KINDS[key.type], _allowed_text(name), *_unit_and_doc(key)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)] + [0]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def hyp_markdown() -> str:
    """Return the same table for the docs, in Markdown, with a column of the classic recipe's values."""
    classic = load_hyp("yolov7").to_dict()
    lines = ["| key | default | yolov7 | type | allowed | unit | meaning |", "| --- " * 7 + "|"]
    for name, key in KEYS.items():
        values = (f"`{_text(default_of(name))}`", f"`{_text(classic[name])}`", KINDS[key.type])
        cells = (f"`{name}`", *values, _allowed_text(name).replace("|", ", "), *_unit_and_doc(key))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(line.replace("*", "·") for line in lines) + "\n"


def _unit_and_doc(key: dataclasses.Field) -> tuple[str, str]:
    return key.metadata["unit"], key.metadata["doc"]


def _allowed_text(name: str) -> str:
    return "" if KEYS[name].type == "bool" else _range_text(name)


def _find(path_or_name: str) -> Path:
    """Return the file: the path as given, or below the project's folder, or a preset's name."""
    text = str(path_or_name)
    for path in (Path(text), PRESETS.parent / text, PRESETS / text, PRESETS / f"{text}.yaml"):
        if path.is_file():
            return path
    presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    hint = suggest(Path(text).stem, presets)
    what = "a folder" if Path(text).is_dir() and text else "no such file"
    raise UserError(f"--hyp {text or repr(text)}: {what}; the presets are {', '.join(presets)}{hint}")


def _read_yaml(path: Path, shown: str) -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """Return the file's values by key, the line of each, and the faults, each with file and line."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{shown}: {path.stat().st_size:,} bytes are too many for a file of hyper-parameters")
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"{shown}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{shown}: not a UTF-8 text file") from None
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # the last two of "\\UFFFFFFFF"
        raise UserError(f"{shown}{_yaml_fault(error)}") from None
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise UserError(f"{shown}: holds no 'key: value' lines (a space belongs after the colon)")
    values: dict[str, Any] = {}
    faults = []
    first_line: dict[str, int] = {}
    for key_node, value_node in root.value:
        line = key_node.start_mark.line + 1
        name = printable(key_node.value[:SHOWN]) if isinstance(key_node, yaml.ScalarNode) else "(not a word)"
        if name in first_line:
            faults.append(f"{shown}:{line}: {name}: given twice, first in line {first_line[name]}")
            continue
        first_line[name] = line
        fault = _unknown(name)
        if not fault:
            values[name], fault = _from_node(name, value_node)
            fault = fault and f"{name}: {fault}"
        faults += [f"{shown}:{line}: {fault}"] if fault else []
    return values, first_line, faults


def _yaml_fault(error: Exception) -> str:
    """Return `:line: what is wrong` of a parser's error."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"{f':{mark.line + 1}' if mark else ''}: not valid yaml: {printable(problem or type(error).__name__)}"


def _from_node(name: str, node: yaml.Node) -> tuple[Any, str]:
    """Return a yaml node's value and its fault (empty where there is none).

    The text itself is read by the key's declared type, and yaml's own guesses (1e-3 a string, 012 octal, yes a bool)
    play no part.
    """
    if KEYS[name].type in (LIST, MAP):
        return _from_collection(name, node)
    if not isinstance(node, yaml.ScalarNode):
        return None, f"a list or mapping is not allowed here; allowed: {_allowed(name)}"
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        return None, f"the tag {node.tag} is not allowed here; allowed: {_allowed(name)}"
    if node.style and KEYS[name].type != "str":
        return None, f"'{node.value}' is written as text; allowed: {_allowed(name)}, without quotes"
    return _from_text(name, node.value)


def _from_collection(name: str, node: yaml.Node) -> tuple[Any, str]:
    """Return the list or map of numbers that a yaml node holds, and its fault."""
    wanted = yaml.SequenceNode if KEYS[name].type == LIST else yaml.MappingNode
    members = [item for pair in node.value for item in pair] if isinstance(node, yaml.MappingNode) else node.value
    if not isinstance(node, wanted) or not all(isinstance(item, yaml.ScalarNode) for item in members):
        return None, f"not {_kind_text(KEYS[name].type)}; allowed: {_allowed(name)}"
    if wanted is yaml.SequenceNode:
        return _from_numbers(name, [("", item.value) for item in members])
    return _from_numbers(name, [(key.value, value.value) for key, value in node.value])


def _from_numbers(name: str, pairs: list[tuple[str, str]]) -> tuple[Any, str]:
    """Return a list or map from (key, number) texts, and its fault."""
    for key, text in pairs:
        if not _NUMBER.fullmatch(text.strip()) or _LEADING_ZERO.match(text.strip()):
            return None, f"{f'{key}: ' * bool(key)}{_short(text)} is not a number; allowed: {_allowed(name)}"
    keys = [key.strip() for key, _ in pairs]
    if KEYS[name].type == MAP and len(set(keys)) < len(keys):
        return None, f"{max(keys, key=keys.count)} is given twice"
    numbers = [float(text) + 0.0 for _, text in pairs]
    value = tuple(numbers) if KEYS[name].type == LIST else dict(zip(keys, numbers, strict=True))
    return value, _value_fault(name, value)


def _from_text(name: str, text: str) -> tuple[Any, str]:
    """Return the value that `text` spells under the key's type, and its fault (empty where there is none)."""
    kind, choices, text = KEYS[name].type, KEYS[name].metadata["choices"], text.strip()
    if kind in (LIST, MAP) and text:  # 0.5,0.8 or backbone:0.1,neck:0.5, in brackets or not
        parts = [part for part in text.strip("[]{} ").split(",") if part.strip()]
        pairs = [part.rpartition(":") for part in parts]
        if any(bool(key.strip()) != (kind == MAP) for key, _, _ in pairs):
            return None, f"{_short(text)} is not {_kind_text(kind)}; allowed: {_allowed(name)}"
        return _from_numbers(name, [(key, number) for key, _, number in pairs])
    if not text or text in ("~", "null", "Null", "NULL"):
        return None, f"has no value; allowed: {_allowed(name)}"
    value: Any = text
    if name == "schedule" and ":" in text:
        return None, f"{text}: a yaml never names code to run; give --schedule {text} on the command line"
    if kind == "str":
        value = {choice.lower(): choice for choice in choices}.get(text.lower(), text)
    elif kind == "bool":
        value = {"true": True, "false": False}.get(text.lower(), text)
    elif _LEADING_ZERO.match(text):
        return None, f"{text} starts with a 0, which may mean octal; allowed: {_allowed(name)}"
    elif kind == "int" and _WHOLE.fullmatch(text):
        value = int(text)
    elif kind == "float" and _NUMBER.fullmatch(text):
        value = float(text) + 0.0  # no negative zero
    return value, _value_fault(name, value)


def _read_overrides(overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return values and faults of `KEY=VALUE` texts."""
    values: dict[str, Any] = {}
    faults = []
    for text in overrides:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            faults.append(f"--set {text}: write KEY=VALUE, such as --set lr0=0.02")
        elif _unknown(name):
            faults.append(f"--set {text}: {_unknown(name)}")
        elif name in values:
            faults.append(f"--set {text}: {name} is set twice")
        else:
            values[name], fault = _from_text(name, value)
            faults += [f"--set {text}: {fault}"] if fault else []
    return values, [printable(fault) for fault in faults]


def _unknown(name: str) -> str:
    """Return why `name` is no key, or an empty string where it is one."""
    if name in KEYS:
        return ""
    if name in _GONE:
        return f"{name}: not a key here: {_GONE[name]}"
    if name in _FLAGS:
        return f"{name}: not a hyper-parameter but a flag: --{name.replace('_', '-')}"
    return f"{name}: unknown key{suggest(name, KEYS) or '; train.py --help-hyp lists the keys'}"


def flag_hint(name: str, value: str) -> str:
    """Say how a hyper-parameter that was typed as a flag is given, or why there is none; empty for other names."""
    if name in KEYS:
        return f"it is a hyper-parameter: --set {name}={value or 'VALUE'}"
    return _GONE.get(name, "")


def _value_faults(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the faults of typed values by key."""
    faults = {name: _value_fault(name, value) for name, value in values.items()}
    return {name: fault for name, fault in faults.items() if fault}


def _settled(name: str, value: Any) -> Any:
    """Return a value in its key's own type, so that equal recipes are equal to the last byte: 1 becomes 1.0."""

    def number(member: Any) -> Any:
        return float(member) if type(member) is int else member

    kind = KEYS[name].type
    if kind == LIST and isinstance(value, list | tuple):
        return tuple(number(member) for member in value)
    if kind == MAP and isinstance(value, Mapping):
        return {key: number(member) for key, member in value.items()}
    return number(value) if kind == "float" else value


def _collection_fault(name: str, value: Any) -> str:
    kind, metadata = KEYS[name].type, KEYS[name].metadata
    if not isinstance(value, tuple if kind == LIST else dict):
        return f"{_short(value)} is not {_kind_text(kind)}; allowed: {_allowed(name)}"
    for key in value if kind == MAP else ():
        if key not in metadata["choices"]:
            return f"{_short(key)} is not one of {', '.join(metadata['choices'])}{suggest(key, metadata['choices'])}"
    for member in value.values() if kind == MAP else value:
        if isinstance(member, bool) or not isinstance(member, int | float):
            return f"{_short(member)} is not a number; allowed: {_allowed(name)}"
        if not _inside(member, metadata["within"]):
            return f"{member} is out of range; allowed: {_allowed(name)}"
    if kind == LIST and (not value or list(value) != sorted(set(value))):
        return f"{_text(value)} does not rise from number to number; allowed: {_allowed(name)}"
    return ""


def _value_fault(name: str, value: Any) -> str:
    """Return what is wrong with a typed value: type, not finite, out of range, no such choice; empty where nothing."""
    kind, choices = KEYS[name].type, KEYS[name].metadata["choices"]
    if kind in (LIST, MAP):
        return _collection_fault(name, value)
    types = {"float": (float, int), "int": (int,), "bool": (bool,), "str": (str,)}[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        return f"{_short(value)} is not {_kind_text(kind)}; allowed: {_allowed(name)}"
    if choices and value not in choices:
        offered = _offered(name)
        near = f"; did you mean '{_OTHERS[value]}'?" if value in _OTHERS else suggest(value, offered)
        return f"{_short(value)} is not one of its choices; allowed: {', '.join(offered)}{near}"
    if kind in ("float", "int") and not _inside(value, KEYS[name].metadata["within"]):
        return f"{value} is out of range; allowed: {_allowed(name)}"
    return ""


def _contradictions(hyp: Hyp) -> list[str]:
    """Return pairs of values that are allowed by themselves and not together."""
    if hyp.nominal_batch > 0:
        return []
    dividing = ["scale_weight_decay: true"] if hyp.scale_weight_decay else []
    dividing += [] if hyp.lr_batch_rule == "none" else [f"lr_batch_rule: {hyp.lr_batch_rule}"]
    return [f"{what} divides by nominal_batch, which is 0; set one of them otherwise" for what in dividing]


def _inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below  # never of NaN; no interval includes inf


def _short(value: Any) -> str:
    """Return a value as a message repeats it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _kind_text(kind: str) -> str:
    words = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a word"}
    return words.get(kind) or ("a list of numbers" if kind == LIST else "a map from part to number")


def _offered(name: str) -> list[str]:
    """A key's choices but the one that is no word to be typed."""
    return [choice for choice in KEYS[name].metadata["choices"] if choice != CUSTOM]


def _range_text(name: str) -> str:
    metadata = KEYS[name].metadata
    if KEYS[name].type == MAP:
        return f"{'|'.join(metadata['choices'])}: {metadata['within']}"
    return metadata["within"] or "|".join(_offered(name)) or "true|false"


def _allowed(name: str) -> str:
    kind, within = KEYS[name].type, KEYS[name].metadata["within"]
    if kind == LIST:
        return f"a list of rising numbers in {within}, such as {_text(default_of(name))}"
    if kind == MAP:
        return f"a map from {', '.join(PARTS)} to numbers in {within}, such as {{backbone: 0.1}}"
    return f"{_kind_text(kind)} in {within}" if within else _range_text(name).replace("|", ", ")


def _text(value: Any) -> str:
    """Return a value as yaml text that every yaml reader takes the same way (1e-05 without a dot is text to some)."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(member)}' for key, member in value.items())}}}"
    text = repr(value) if isinstance(value, float) else str(value)
    if isinstance(value, bool):
        return text.lower()
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text
