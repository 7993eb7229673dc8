"""data/check.py: what is printed, what is written and where, and the exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.check import examine, main, page_path, summary
from data.config import load_data_config
from tests.conftest import ROOT
from tests.small_data import coco_set, folder_state, picture, voc_set, write_image, write_yaml, yolo_set
from tests.test_splits import damaged_png
from utils.errors import UserError

NAMES = ["cat", "dog"]
BOX = (0, 10.0, 10.0, 40.0, 40.0)
SOUND = {"train": [[BOX, (1, 50.0, 20.0, 80.0, 60.0)], [BOX], []], "val": [[BOX], [(1, 5.0, 5.0, 50.0, 30.0)]]}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: no test writes into the project."""
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main([str(word) for word in words])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("write", [yolo_set, voc_set, coco_set])
def test_a_sound_set_passes_and_is_not_touched(
    write, tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = write(tmp_path, SOUND, NAMES)
    before = folder_state(tmp_path)
    code, text = run(capsys, yaml)
    assert code == 0 and list(elsewhere.iterdir()) == [], "without --html nothing is written"
    code, again = run(capsys, "--data", yaml, "--html", "--check", "full")
    assert code == 0 and again.startswith(text.rstrip())
    assert [str(path.relative_to(elsewhere)) for path in elsewhere.rglob("*.*")] == ["runs/check/set.html"]
    assert folder_state(tmp_path) == before
    lines = [line.split() for line in text.splitlines()]
    assert ["train", "3", "3", "1", "1.0", "(0-2)", "96", "x", "72"] in lines
    assert ["val", "2", "2", "0", "1.0", "(1-1)", "96", "x", "72"] in lines or [
        "val",
        "2",
        "2",
        "0",
        "1.0",
        "(1)",
        "96",
        "x",
        "72",
    ] in lines
    assert ["cat", "2", "66.7%", "1", "50.0%"] in lines and ["dog", "1", "33.3%", "1", "50.0%"] in lines
    for words in (
        "no faults",
        "no suspicious boxes",
        "no near-duplicate images",
        "train has 2.0 times as many cat as dog",
    ):
        assert words in text


def test_any_fault_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = yolo_set(tmp_path, SOUND, NAMES)
    with open(tmp_path / "labels/val/0.txt", "a") as file:
        file.write("0 0.5 0.5 0 0\n")
    code, text = run(capsys, yaml)
    assert code == 2
    assert "1 fault, none of which would stop a training" in text
    assert "    val: labels/val/0.txt:line 2: box (48, 36, 48, 36) has no area" in text


def test_a_suspicion_or_a_copy_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = yolo_set(tmp_path, {**SOUND, "val": [[(0, 0.0, 0.0, 96.0, 72.0)]]}, NAMES)
    write_image(tmp_path / "images/val/0.jpg", picture(1))
    code, text = run(capsys, yaml)
    assert code == 0
    assert "  huge: val 1; such as images/val/0.jpg: cat (0, 0, 96, 72)" in text
    assert (
        "  1 of the 1 images of val is, or looks like, one of train; such as images/train/1.jpg and images/val/0.jpg"
        in text
    )
    assert "1 class in train, but never in val: dog" in text


@pytest.mark.parametrize("full", [False, True])
def test_pixels_that_cannot_be_had_are_a_fault(full: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file whose structure is sound: nothing that a training would see before it decodes it."""
    yaml = yolo_set(tmp_path, SOUND, NAMES)
    (tmp_path / "images/train/1.jpg").rename(tmp_path / "images/train/1.png")
    write_image(tmp_path / "images/train/1.png", picture(1))
    file = tmp_path / "images/train/1.png"
    file.write_bytes(damaged_png(file.read_bytes()))
    code, text = run(capsys, yaml, *["--check", "full"] * full)
    assert code == 2 and text.count("images/train/1.png: ") == 1
    assert "  image-corrupt: 1\n" in text and "download it again" in text


def test_full_decoding_sees_pixels_that_are_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = yolo_set(tmp_path, SOUND, NAMES)
    file = tmp_path / "images/train/1.jpg"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    assert run(capsys, yaml)[0] == 0
    code, text = run(capsys, yaml, "--check", "full")
    assert code == 2 and "images/train/1.jpg: part of it is made up by the decoder" in text


def test_a_few_backgrounds_are_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = yolo_set(tmp_path, SOUND, NAMES)
    (tmp_path / "labels/train/2.txt").unlink()
    code, text = run(capsys, yaml, "--html", tmp_path / "page.html")
    assert code == 0 and "no faults" in text
    note = "train: 1 of 3 images (33.3%) without a label file, taken as images of nothing"
    assert note in text.splitlines()[1] and note in (tmp_path / "page.html").read_text()
    (tmp_path / "labels/train/1.txt").unlink()
    code, text = run(capsys, yaml)
    assert code == 2 and "  split-few-labels: 1\n" in text


def test_what_is_odd_in_the_yaml_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = yolo_set(tmp_path, SOUND, ["cat", "cat"])
    code, text = run(capsys, yaml, "--html", tmp_path / "page.html")
    assert code == 2 and "1 fault, none of which would stop a training" in text
    said = "names: 'cat' is there twice, as class 0 and 1"
    assert said in text and said.replace("'", "&#x27;") in (tmp_path / "page.html").read_text()


def test_a_split_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = yolo_set(tmp_path, {"train": SOUND["train"], "val": []}, NAMES)
    code, text = run(capsys, yaml)
    assert (
        code == 2
        and "no images" in text
        and ["train", "3", "3", "1"] in [line.split()[:4] for line in text.splitlines()]
    )
    write_yaml(tmp_path, {"train": "images/train", "val": "images/away"}, NAMES)
    findings = examine(load_data_config(yaml))
    assert [(split, fault.stops) for split, fault in findings.faults] == [("val", True)]
    assert "'images/away': no such file or folder" in findings.faults[0][1].text
    write_yaml(tmp_path, {"train": "images/train", "val": "images/train", "test": "images/away"}, NAMES)
    findings = examine(load_data_config(yaml))
    assert [(split, fault.kind, fault.stops) for split, fault in findings.faults] == [
        ("test", "yaml-split-path", False),  # no training reads it
        ("", "split-overlap", False),
    ]
    assert findings.notes == ["val is the same as train"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("train: images/away\nnames: [a]\n", "no such file or folder"),
        ("train: [\n", "set.yaml"),
        ("train: images/train\nval: images/train\n", "names"),
    ],
)
def test_a_yaml_that_cannot_be_used_is_an_error_of_the_user(content: str, words: str, tmp_path: Path) -> None:
    yaml = yolo_set(tmp_path, SOUND, NAMES)
    yaml.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        main([str(yaml), "--html"])
    assert caught.value.exit_code == 2


def test_no_data_is_an_error_too() -> None:
    with pytest.raises(UserError, match="data.check needs --data YAML"):
        main(["--html"])
    with pytest.raises(UserError, match="--chek: unknown flag; did you mean '--check'"):
        main(["shapes", "--chek", "full"])


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for flag in ("--data YAML", "--check {headers,full}", "--single-cls", "--download", "--html [FILE]"):
        assert flag in text, flag


def test_the_page_never_takes_the_place_of_another_kind_of_file(tmp_path: Path) -> None:
    yaml = yolo_set(tmp_path, SOUND, NAMES)
    before = yaml.read_text()
    for html in (yaml, tmp_path, tmp_path / "labels/train/0.txt"):
        with pytest.raises(UserError, match="must be a file called .html"):
            main([str(yaml), "--html", str(html)])
    assert yaml.read_text() == before
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match="must be a file"):
        page_path(str(tmp_path / "folder.html"), load_data_config(yaml))


@pytest.mark.parametrize(
    ("yaml", "page"), [("cells/my.yaml", "my"), ("cells/data.yaml", "cells"), ("cells/dataset.yaml", "cells")]
)
def test_the_page_is_called_as_the_set_is(tmp_path: Path, yaml: str, page: str) -> None:
    file = tmp_path / yaml
    file.parent.mkdir()
    file.write_text(yolo_set(tmp_path, SOUND, NAMES).read_text())
    assert page_path("", load_data_config(file)) == Path(f"runs/check/{page}.html")


def test_a_page_that_cannot_be_written_is_an_error_of_the_user(tmp_path: Path) -> None:
    yaml = yolo_set(tmp_path, SOUND, NAMES)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the page could not be written"):
        main([str(yaml), "--html", str(tmp_path / "file" / "page.html")])


def test_a_second_page_replaces_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = yolo_set(tmp_path / "data", SOUND, NAMES)
    for _ in range(2):
        code, text = run(capsys, yaml, "--html", tmp_path / "new" / "page.HTML")
        assert code == 0 and str(tmp_path / "new" / "page.HTML") in text
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.HTML"]


def test_classes_can_be_taken_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, text = run(capsys, yolo_set(tmp_path, SOUND, NAMES), "--single-cls")
    assert ["item", "3", "100.0%", "2", "100.0%"] in [line.split() for line in text.splitlines()]


def test_many_classes_and_faults_are_told_briefly(tmp_path: Path) -> None:
    names = [f"class {i} with a long, long, long name" for i in range(100)]
    yaml = yolo_set(tmp_path, {"train": [[(i % 90, *BOX[1:]) for i in range(200)]], "val": [[BOX]]}, names)
    with open(tmp_path / "labels/train/0.txt", "a") as file:
        file.write("0 0.5 0.5 0 0\n" * 30)
    lines = summary(examine(load_data_config(yaml))).splitlines()
    assert len(lines) < 80 and "and 60 rarer classes" in lines
    assert any(line.endswith("and 79 more") for line in lines), "89 classes of train that val lacks"
    assert any(line.strip().startswith("and ") and line.endswith(" more") for line in lines)


def test_what_a_name_holds_cannot_drive_the_terminal(tmp_path: Path) -> None:
    yaml = yolo_set(tmp_path, {"train": [[BOX]], "val": [[BOX]]}, NAMES)
    for suffix in ("images/train/{}.jpg", "labels/train/{}.txt"):
        new = os.fsencode(tmp_path / suffix).replace(b"{}", b"\x1b[2J\x07cat\nno faults \xff")
        os.rename(tmp_path / suffix.format(0), new)
    with open(new, "w") as file:
        file.write("0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0 0\n")
    text = summary(examine(load_data_config(yaml)))
    assert "\x1b" not in text and "\x07" not in text
    start = "    train: labels/train/\\x1b[2J\\x07cat\\nno faults \\xff.txt:line 2: box"
    assert sum(line.startswith(start) for line in text.splitlines()) == 1
    text.encode("utf-8")


def test_bccd_has_two_broken_boxes(bccd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = tmp_path / "blood.yaml"
    entry = "{{images: JPEGImages, annotations: Annotations, split: ImageSets/Main/{}.txt}}"
    yaml.write_text(
        f"path: {bccd}\ntrain: {entry.format('trainval')}\nval: {entry.format('test')}\nnames: [RBC, WBC, Platelets]\n"
    )
    code, text = run(capsys, yaml, "--html", tmp_path / "blood.html")
    page = (tmp_path / "blood.html").read_text()
    assert code == 2
    for file, number in (("BloodImage_00338.xml", 13), ("BloodImage_00343.xml", 4)):
        assert f"Annotations/{file}:object {number}: " in text
        assert f'Annotations/{file}</code> <span class="where">object {number}</span>' in page
    lines = [line.split() for line in text.splitlines()]
    assert ["train", "292", "3,941"] in [line[:3] for line in lines] and ["val", "72", "945"] in [
        line[:3] for line in lines
    ]
    assert "JPEGImages/BloodImage_00037.jpg and JPEGImages/BloodImage_00038.jpg" in text, (
        "one field, photographed twice"
    )


def test_shapes_are_sound(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, "shapes")
    assert code == 0 and "no faults" in text and "no near-duplicate images" in text


def test_as_a_program_it_ends_with_its_code_and_no_traceback(tmp_path: Path) -> None:
    yaml = yolo_set(tmp_path, SOUND, NAMES)
    (tmp_path / "labels/train/0.txt").write_text("0 0.5 0.5 0 0\n0 0.5 0.5 0.2 0.2\n")
    result = subprocess.run(
        [sys.executable, "-m", "data.check", str(yaml)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stderr) == (2, "") and "1 fault" in result.stdout
    result = subprocess.run(
        [sys.executable, "-m", "data.check", str(yaml.with_name("no.yaml"))], cwd=ROOT, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert result.returncode == 2 and result.stderr.startswith("error: ") and "Traceback" not in result.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    yaml = yolo_set(tmp_path, SOUND, NAMES)
    words = [sys.executable, "-m", "data.check", str(yaml)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.close()
        assert program.wait(timeout=120) == 0 and program.stderr.read() == b""
