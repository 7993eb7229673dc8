"""utils/hyp.py: what is read is what is written, and what can be misread is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.errors import UserError
from utils.hyp import KEYS, PRESETS, Hyp, describe, doubts, gain_doubts, hyp_markdown, hyp_table, load_hyp

CLASSIC = {  # the recipe as YOLOv5 and YOLOv7 users know it
    **{"optimizer": "SGD", "lr0": 0.01, "lrf": 0.1, "momentum": 0.937, "weight_decay": 0.0005, "nominal_batch": 64},
    **{"warmup_epochs": 3, "warmup_momentum": 0.8, "warmup_bias_lr": 0.1, "scale_weight_decay": True},
    **{"hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "translate": 0.2, "scale": 0.5, "fliplr": 0.5, "flipud": 0},
    **{"mosaic": 1, "mixup": 0.05, "degrees": 0, "shear": 0, "perspective": 0},
}
FOREIGN = "obj obj_pw cls_pw iou_t anchor_t anchors fl_gamma copy_paste paste_in loss_ota pose kobj nbs"


def read(tmp_path: Path, text: str | bytes, *overrides: str) -> Hyp:
    file = tmp_path / "my.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_hyp(str(file), list(overrides))


def refusal(tmp_path: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, *overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_default_file_says_what_is_declared() -> None:
    assert load_hyp("hyp/default.yaml") == load_hyp("default") == Hyp()


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_preset_states_every_key_with_the_declared_comment(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    comments = {line.partition(":")[0]: line.partition("  # ")[2] for line in lines}
    assert comments == {name: describe(name) for name in KEYS}
    assert all(len(line) <= 120 for line in path.read_text().splitlines())
    assert "".join(line + "\n" for line in lines) == load_hyp(str(path)).to_yaml()


def test_classic_recipe() -> None:
    hyp = load_hyp("yolov7").to_dict()
    assert {key: hyp[key] for key in CLASSIC} == CLASSIC


def test_presets_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_hyp("hyp/yolov7.yaml") == load_hyp("yolov7.yaml") == load_hyp("yolov7")
    (tmp_path / "yolov7").write_text("lr0: 0.5")
    assert load_hyp("yolov7").lr0 == 0.5, "a file of the user's comes first"


def test_keys_left_out_take_their_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, "lrf: 0.5\n") == dataclasses.replace(Hyp(), lrf=0.5)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "1.0e-3", ".001", "0.001", "+0.001", "10e-4"])
def test_every_spelling_of_a_number(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"lr0: {text}\n").lr0 == 0.001
    assert read(tmp_path, "lrf: 0.1\n", f"lr0={text}").lr0 == 0.001


def test_whole_numbers_where_a_number_is_wanted(tmp_path: Path) -> None:
    hyp = read(tmp_path, "warmup_epochs: 2\nlr0: 1\nmixup: 0\n")
    assert (hyp.warmup_epochs, hyp.lr0, hyp.mixup) == (2.0, 1.0, 0.0)
    assert all(isinstance(value, float) for value in (hyp.warmup_epochs, hyp.lr0, hyp.mixup))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lr0: yes", "'yes' is not a number; allowed: a number in (0, 10]"),
        ("scale_weight_decay: yes", "'yes' is not true or false; allowed: true, false"),
        ("scale_weight_decay: on", "'on' is not true or false"),
        ("scale_weight_decay: 1", "'1' is not true or false"),
        ("lr0: true", "'true' is not a number"),
        ("optimizer: no", "'no' is not one of its choices; allowed: SGD, Adam, AdamW"),
        ("optimizer: AdaW", "did you mean 'AdamW'?"),
        ("close_mosaic: 012", "012 starts with a 0"),
        ("lr0: 00.1", "starts with a 0"),
        ("close_mosaic: 0x10", "'0x10' is not a whole number"),
        ("close_mosaic: 1:30", "'1:30' is not a whole number"),
        ("close_mosaic: 10.0", "'10.0' is not a whole number; allowed: a whole number in [0, 100000]"),
        ("nominal_batch: 1_000", "'1_000' is not a whole number"),
        ("lr0: 0,01", "'0,01' is not a number"),
        ("lr0: ", "has no value; allowed: a number in (0, 10]"),
        ("lr0: ~", "has no value"),
        ("lr0: null", "has no value"),
        ("lr0: ''", "'' is written as text"),
        ("lr0: '0.01'", "'0.01' is written as text; allowed: a number in (0, 10], without quotes"),
        ("lr0: .nan", "is not a number"),
        ("lr0: nan", "is not a number"),
        ("clip_grad_norm: .inf", "is not a number"),
        ("clip_grad_norm: 1e400", "inf is out of range"),
        ("close_mosaic: 99999999999999999999", "is not a whole number"),
        ("lr0: 0", "0.0 is out of range; allowed: a number in (0, 10]"),
        ("lr0: -0.1", "-0.1 is out of range"),
        ("momentum: 1", "1.0 is out of range; allowed: a number in [0, 1)"),
        ("lrf: 1.01", "1.01 is out of range; allowed: a number in [0, 1]"),
        ("assign_topk: 0", "0 is out of range; allowed: a whole number in [1, 100]"),
        ("lr0: [0.1, 0.2]", "a list or mapping is not allowed here"),
        ("lr0: {start: 0.1}", "a list or mapping is not allowed here"),
        ("lr0: 0.01#fast", "'0.01#fast' is not a number"),
        ("lr0: !!python/object/apply:os.getcwd []", "a list or mapping is not allowed here"),
        ("lr0: !!python/name:os.getcwd 1", "the tag"),
        ("lr0: !mine 1", "the tag !mine is not allowed"),
    ],
)
def test_a_value_that_could_be_misread(tmp_path: Path, line: str, words: str) -> None:
    message = refusal(tmp_path, f"# my recipe\nlabel_smoothing: 0.1\n{line}\n")
    assert message.startswith(f"my.yaml:3: {line.partition(':')[0]}: ") and words in message


@pytest.mark.parametrize("end", ["lrf: 0", "lrf: 1", "momentum: 0", "lr0: 10", "assign_topk: 100", "scale: 0.999"])
def test_the_ends_of_a_range_that_belong_to_it(tmp_path: Path, end: str) -> None:
    name, _, value = end.partition(": ")
    assert read(tmp_path, end).to_dict()[name] == float(value)


def test_all_faults_of_file_and_overrides_at_once(tmp_path: Path) -> None:
    text = "lr0: abc\nlrf: 0.1\nwarmup_epoch: 3\nlrf: 0.2\nnbs: 64\nepochs: 3\n"
    assert refusal(tmp_path, text, "momentum=2", "lr0").splitlines()[1:] == [
        "  my.yaml:1: lr0: 'abc' is not a number; allowed: a number in (0, 10]",
        "  my.yaml:3: warmup_epoch: unknown key; did you mean 'warmup_epochs'?",
        "  my.yaml:4: lrf: given twice, first in line 2",
        "  my.yaml:5: nbs: not a key here: write nominal_batch, where 0 means an optimizer step every batch",
        "  my.yaml:6: epochs: not a hyper-parameter but a flag: --epochs",
        "  --set momentum=2: 2.0 is out of range; allowed: a number in [0, 1)",
        "  --set lr0: write KEY=VALUE, such as --set lr0=0.02",
    ]


def test_a_recipe_of_another_trainer_is_named_once(tmp_path: Path) -> None:
    """Its other keys are known, and their values are for another optimizer and loss."""
    lines = refusal(tmp_path, "lr0: 0.01\nbox: 0.05\nobj: 1.0\nanchor_t: 4.0\n").splitlines()
    assert [line.split(": ")[1] for line in lines[1:3]] == ["obj", "anchor_t"] and len(lines) == 4
    assert "--hyp yolov7" in lines[3] and (PRESETS / "yolov7.yaml").is_file()
    assert "--hyp yolov7" not in refusal(tmp_path, "copy_paste: 0.0\nlearning_rate: 0.1\n")


@pytest.mark.parametrize(
    ("text", "high"),
    [
        ("lr0: 0.01", True),
        ("lr0: 0.01\noptimizer: Adam", True),
        ("lr0: 0.01\noptimizer: SGD", False),
        ("lrf: 1", False),
    ],
)
def test_an_lr0_for_another_optimizer_is_doubted(tmp_path: Path, text: str, high: bool) -> None:
    hyp = read(tmp_path, text)
    found = doubts(hyp.optimizer, hyp.lr0)
    assert len(found) == high and all(word in line for line in found for word in ("lr0 0.01", "0.002", "SGD"))


def test_no_preset_is_doubted() -> None:
    presets = {path.stem: load_hyp(path.stem) for path in PRESETS.glob("*.yaml")}
    assert [name for name, hyp in presets.items() if doubts(hyp.optimizer, hyp.lr0)] == []


def test_a_gain_for_another_loss_is_doubted(tmp_path: Path) -> None:
    (line,) = gain_doubts(read(tmp_path, "box: 0.05"))
    assert "box 0.05" in line and "7.5" in line
    assert gain_doubts(read(tmp_path, "box: 0.5")) == []
    assert [path.stem for path in PRESETS.glob("*.yaml") if gain_doubts(load_hyp(path.stem))] == []


def test_an_lr0_that_no_yaml_takes_is_doubted() -> None:
    assert doubts("SGD", 18.0) == ["lr0 18 is more than lr0 may be; allowed: a number in (0, 10]"]
    assert doubts("SGD", 10.0) == []


def test_a_step_schedule_reaches_no_lrf_of_0(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="schedule: step reaches lrf by falls of one ratio each, and lrf 0 by none"):
        read(tmp_path, "schedule: step\nlrf: 0")
    assert read(tmp_path, "schedule: linear\nlrf: 0").lrf == 0
    assert Hyp.from_dict({"schedule": "step", "lrf": 0.0}).lrf == 0, "a model that was trained so can be evaluated"


@pytest.mark.parametrize("key", FOREIGN.split())
def test_keys_of_other_trainers_get_a_reason(tmp_path: Path, key: str) -> None:
    message = refusal(tmp_path, f"{key}: 1.0\n")
    assert message.startswith(f"my.yaml:1: {key}: not a key here: ") and len(message.split()) > 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "holds no 'key: value' lines"),
        (b"# nothing but a comment\n", "holds no 'key: value' lines"),
        (b"lr0:0.01\n", "a space belongs after the colon"),
        (b"- lr0: 0.01\n", "holds no 'key: value' lines"),
        (b"lrf: 0.1\n\tlr0: 0.01\n", "my.yaml:2: not valid yaml"),
        (b"lrf: 0.1\nlr0: [1\n", "not valid yaml"),
        (b"lr0: 0.1\n---\nlr0: 0.2\n", "not valid yaml"),
        (b"lr0: \xff\xfe\n", "not a UTF-8 text file"),
        (b"lr0: \x00\n", "not valid yaml"),
        (b"lr0: " + b"[" * 5000, "not valid yaml"),
        (b"? [a, b]\n: 1\n", "unknown key"),
        (b"<<: {lr0: 0.1}\n", "<<: unknown key"),
    ],
)
def test_a_file_that_is_no_hyp_file(tmp_path: Path, text: bytes, words: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith("my.yaml") and words in message


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbflr0: 0.5\n").lr0 == 0.5


def test_missing_file_names_the_presets() -> None:
    with pytest.raises(UserError, match=r"--hyp yolov77: no such file; .*default, .*yolov7.*did you mean 'yolov7'\?"):
        load_hyp("yolov77")


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    hyp = read(tmp_path, "lr0: 0.5\nmomentum: 0.7\n", "lr0=0.25", "optimizer=sgd", "scale_weight_decay=False")
    assert (hyp.lr0, hyp.momentum, hyp.optimizer, hyp.scale_weight_decay) == (0.25, 0.7, "SGD", False)


@pytest.mark.parametrize(
    ("override", "words"),
    [("lr0=", "has no value"), ("lrO=1", "unknown key"), ("nbs=64", "nominal_batch"), ("lr0=0.1=2", "not a number")],
)
def test_an_override_is_checked_like_a_file(tmp_path: Path, override: str, words: str) -> None:
    message = refusal(tmp_path, "lr0: 0.5\n", override)
    assert message.startswith(f"--set {override}: ") and words in message


def test_two_overrides_of_one_key(tmp_path: Path) -> None:
    assert "lr0 is set twice" in refusal(tmp_path, "lrf: 0.5\n", "lr0=0.1", "lr0=0.2")


def test_two_values_that_contradict_each_other(tmp_path: Path) -> None:
    message = refusal(tmp_path, "scale_weight_decay: true\n")
    assert "scale_weight_decay" in message and "nominal_batch" in message and message.startswith("my.yaml: ")
    assert read(tmp_path, "scale_weight_decay: true\n", "nominal_batch=64").scale_weight_decay


def test_no_hyp_exists_unchecked() -> None:
    with pytest.raises(UserError, match="lr0: -1 is out of range"):
        dataclasses.replace(Hyp(), lr0=-1)
    with pytest.raises(UserError, match="close_mosaic: True is not a whole number"):
        Hyp(close_mosaic=True)
    with pytest.raises(UserError, match="lr0: nan is out of range"):
        Hyp(lr0=float("nan"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Hyp().lr0 = 1.0  # type: ignore[misc]


def test_from_dict_returns_the_same_and_names_its_source() -> None:
    hyp = load_hyp("yolov7")
    assert Hyp.from_dict(hyp.to_dict()) == hyp
    assert isinstance(Hyp.from_dict({"lr0": 1}).lr0, float)
    with pytest.raises(UserError) as caught:
        Hyp.from_dict({"lr0": "0.1", "lr1": 2, "optimizer": None}, source="last.pt")
    assert [line[:15] for line in str(caught.value).splitlines()[1:]] == [
        "  last.pt: lr1:",
        "  last.pt: lr0:",
        "  last.pt: opti",
    ]


@settings(max_examples=50, deadline=None)
@given(
    lr0=st.floats(1e-12, 10),
    gain=st.floats(0, 1e30),
    topk=st.integers(1, 100),
    scaled=st.booleans(),
    optimizer=st.sampled_from(["SGD", "Adam", "AdamW"]),
)
def test_what_is_written_is_read_back_by_us_and_by_any_yaml_reader(
    tmp_path_factory: pytest.TempPathFactory, lr0: float, gain: float, topk: int, scaled: bool, optimizer: str
) -> None:
    hyp = Hyp(lr0=lr0, box=gain, assign_topk=topk, scale_weight_decay=scaled, nominal_batch=64, optimizer=optimizer)
    text = hyp.to_yaml()
    assert read(tmp_path_factory.getbasetemp(), text) == hyp
    assert yaml.safe_load(text) == hyp.to_dict()


def test_every_key_is_explained_in_the_table() -> None:
    header, *rows = hyp_table().splitlines()
    assert [row.split()[0] for row in rows] == list(KEYS)
    assert header.split() == ["key", "default", "type", "allowed", "unit", "meaning"]
    for row, key in zip(rows, KEYS.values(), strict=True):
        assert key.metadata["doc"] and row.endswith(key.metadata["doc"])
        assert key.type == "bool" or key.metadata["within"] or key.metadata["choices"]


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(), st.from_regex(r"(lr0|close_mosaic|optimizer|lr1): ?[^\n]{0,9}\n?", fullmatch=True)))
def test_whatever_a_file_holds_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    try:
        hyp = read(tmp_path_factory.getbasetemp(), text.encode("utf-8", "surrogatepass"))
    except UserError as error:
        assert "my.yaml" in str(error)
    else:
        assert 0 < hyp.lr0 <= 10 and isinstance(hyp.close_mosaic, int)


def test_the_table_in_the_docs_is_the_declaration() -> None:
    text = (PRESETS.parent / "docs" / "hyperparameters.md").read_text(encoding="utf-8")
    assert hyp_markdown() in text
    assert all(f"`--hyp {path.stem}`" in text for path in PRESETS.glob("*.yaml"))


CURVES = "lr_scale: {backbone: 0.1, head: 2}\nstep_at: [0.25, 5e-1, .75]\nhold: 1\n"


def test_lists_and_maps_in_a_file_and_on_the_command_line(tmp_path: Path) -> None:
    expected = {"lr_scale": {"backbone": 0.1, "head": 2.0}, "step_at": [0.25, 0.5, 0.75]}
    for hyp in (
        read(tmp_path, CURVES),
        read(tmp_path, "lr0: 0.1\n", "lr_scale=backbone:0.1,head:2", "step_at=0.25,0.5,0.75"),
        read(tmp_path, "lr0: 0.1\n", "lr_scale={backbone: 0.1, head: 2}", "step_at=[0.25, 0.5, 0.75]"),
        read(tmp_path, "lr_scale:\n  backbone: 0.1\n  head: 2\nstep_at:\n  - 0.25\n  - 0.5\n  - 0.75\n"),
    ):
        assert {name: hyp.to_dict()[name] for name in expected} == expected
        assert read(tmp_path, hyp.to_yaml()) == hyp and Hyp.from_dict(yaml.safe_load(hyp.to_yaml())) == hyp
    assert read(tmp_path, "lr_scale: {}\n").lr_scale == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "lr_scale: 0.1",
            "not a map from part to number; allowed: a map from backbone, neck, head to numbers in (0, 100]",
        ),
        ("lr_scale: [0.1]", "not a map from part to number"),
        ("lr_scale: {backbon: 0.1}", "'backbon' is not one of backbone, neck, head; did you mean 'backbone'?"),
        ("lr_scale: {backbone: 0}", "0.0 is out of range"),
        ("lr_scale: {backbone: yes}", "backbone: 'yes' is not a number"),
        ("lr_scale: {backbone: 0.1, backbone: 0.2}", "backbone is given twice"),
        ("lr_scale: {backbone: {stem: 1}}", "not a map from part to number"),
        ("lr_scale:", "not a map"),
        (
            "step_at: 0.5",
            "not a list of numbers; allowed: a list of rising numbers in (0, 1), such as [0.6667, 0.9167]",
        ),
        ("step_at: []", "does not rise from number to number"),
        ("step_at: [0.5, 0.4]", "[0.5, 0.4] does not rise"),
        ("step_at: [0.5, 0.5]", "does not rise"),
        ("step_at: [0.5, 1]", "1.0 is out of range"),
        ("step_at: [0.5, x]", "'x' is not a number"),
        ("step_at: [.nan]", "'.nan' is not a number"),
        ("step_at: [0.5, 012]", "'012' is not a number"),
        ("step_at: {a: 0.5}", "not a list of numbers"),
        ("schedule: my_module:my_factor", "a yaml never names code to run; give --schedule my_module:my_factor"),
        ("schedule: one_cycl", "did you mean 'one_cycle'?"),
    ],
)
def test_lists_maps_and_schedules_that_could_be_misread(tmp_path: Path, line: str, words: str) -> None:
    message = refusal(tmp_path, f"# my recipe\n{line}\n")
    assert message.startswith(f"my.yaml:2: {line.partition(':')[0]}: ") and words in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lr_scale=0.1", "not a map"),
        ("step_at=a:0.5", "not a list"),
        ("lr_scale=", "has no value"),
        ("step_at=,", "rise"),
    ],
)
def test_lists_and_maps_of_the_command_line_are_checked(tmp_path: Path, override: str, words: str) -> None:
    message = refusal(tmp_path, "lr0: 0.5\n", override)
    assert message.startswith(f"--set {override}: ") and words in message


def flagged(tmp_path: Path, text: str, flags: dict[str, str], *overrides: str) -> Hyp:
    (tmp_path / "my.yaml").write_text(text)
    return load_hyp(str(tmp_path / "my.yaml"), list(overrides), flags)


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        (
            "lr0: 0.1\nschedule: step\n",
            {"--linear-lr": "schedule=linear"},
            ("--linear-lr", "my.yaml:2: schedule: step"),
        ),
        ("optimizer: SGD\n", {"--adam": "optimizer=Adam"}, ("--adam", "my.yaml:1: optimizer: SGD")),
        ("label_smoothing: 0.1\n", {"--label-smoothing": "label_smoothing=0.0"}, ("label_smoothing: 0.1",)),
    ],
)
def test_a_flag_and_a_yaml_that_contradict_each_other_are_both_named(
    tmp_path: Path, text: str, flags: dict[str, str], words: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        flagged(tmp_path, text, flags)
    message = str(caught.value)
    assert "contradict each other" in message and all(word in message for word in words)
    assert f"--set {next(iter(flags.values()))}" in message, "it says how to have one's way"


def test_a_flag_that_agrees_with_the_yaml_or_speaks_of_what_it_leaves_out(tmp_path: Path) -> None:
    linear = {"--linear-lr": "schedule=linear"}
    assert flagged(tmp_path, "schedule: linear\n", linear).schedule == "linear"
    assert flagged(tmp_path, "lr0: 0.1\n", linear).schedule == "linear"
    assert flagged(tmp_path, "schedule: step\n", {}, "schedule=linear").schedule == "linear", "--set wins over a file"


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_a_flag_wins_over_a_preset(preset: str) -> None:
    hyp = load_hyp(preset, [], {"--linear-lr": "schedule=linear", "--optimizer": "optimizer=Adam"})
    assert (hyp.schedule, hyp.optimizer) == ("linear", "Adam")


def test_a_custom_schedule_needs_its_flag(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="schedule: custom: needs its function: --schedule my_module:my_factor"):
        flagged(tmp_path, "schedule: custom\n", {})
    assert flagged(tmp_path, "schedule: custom\n", {"--schedule": "schedule=custom"}).schedule == "custom"


def test_a_flag_with_a_value_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--schedule: 'stp' is not one of its choices.*did you mean 'step'\?"):
        flagged(tmp_path, "lr0: 0.1\n", {"--schedule": "schedule=stp"})


def test_what_divides_by_the_nominal_batch_needs_one(tmp_path: Path) -> None:
    assert "lr_batch_rule: sqrt divides by nominal_batch" in refusal(tmp_path, "lr_batch_rule: sqrt\n")
    assert read(tmp_path, "lr_batch_rule: sqrt\nnominal_batch: 64\n").lr_batch_rule == "sqrt"


def test_what_an_override_holds_stays_on_its_line() -> None:
    with pytest.raises(UserError) as caught:
        load_hyp("default", ["optimizer=\n", "a\x1bb\n=1"])
    assert str(caught.value).splitlines()[1:] == [
        "  --set optimizer=\\n: has no value; allowed: SGD, Adam, AdamW",
        "  --set a\\x1bb\\n=1: a\\x1bb: unknown key; train.py --help-hyp lists the keys",
    ]
