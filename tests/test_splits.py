"""What stops a run and what it says then, what --skip-bad leaves out, and that a resumed run has the same data."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import yaml

import train
import val
from data.config import load_data_config
from data.entries import block_of
from data.faults import Fault
from data.formats import read_split
from data.index import ARRAYS, build_index, pack
from data.splits import read_splits, without
from tests.label_files import image, text
from utils.checkpoint import load_checkpoint
from utils.errors import UserError, run_cli

FLAGS = ["--imgsz", "64", "--batch", "4", "--device", "cpu", "--workers", "0", "--noplots", "--epochs", "1"]


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set, to break."""
    folder = Path(shutil.copytree(tiny_data.parent, tmp_path / "set"))
    return folder / "tiny.yaml"


def label(data: Path, name: str, rows: str) -> Path:
    path = data.parent / f"labels/{name}.txt"
    path.write_text(rows + path.read_text())
    return path


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        run()
    assert error.value.exit_code == 2
    return str(error.value)


def test_all_faults_of_both_splits_are_said_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    paths = [label(data, "train/03", "0 0,5 0,5 0,1 0,1\n"), label(data, "val/01", "0 nan .5 .1 .1\n")]
    label(data, "train/04", "0 .5 .5 0 .1\n")
    runs = tmp_path / "runs"
    said = refused(lambda: train.main(["--data", str(data), "--project", str(runs), *FLAGS])).splitlines()
    assert said[0] == f"{data}: 2 faults stop the run, beside 1 that doesn't; all are listed in {runs}/check/faults.txt"
    assert said[1].startswith(f"  label-comma: train: {paths[0]}:line 1: a comma for the decimal point")
    assert said[2].startswith(f"  label-not-finite: val: {paths[1]}:line 1: not finite")
    assert said[3] == "  mend them, or add --skip-bad to go on without what is faulty; docs/data.md explains each kind"
    assert len(said) == 4 and [path.name for path in runs.iterdir()] == ["check"]
    rows = [row.split("\t") for row in (runs / "check/faults.txt").read_text().splitlines() if row[0] != "#"]
    assert [row[:2] for row in rows] == [
        ["label-comma", "train"],
        ["label-not-finite", "val"],
        ["box-no-area", "train"],
    ]


def test_a_run_ends_with_code_2_and_no_traceback(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = label(data, "val/01", "0 nan .5 .1 .1\n")
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: train.main(["--data", str(data), "--project", str(tmp_path / "runs"), *FLAGS]))
    assert end.value.code == 2
    said = f"error: {path}:line 1: not finite: '0 nan .5 .1 .1': correct it, or take it out; or add --skip-bad to go"
    assert capsys.readouterr().err.startswith(said)


def test_paths_of_both_splits_are_said_together(data: Path, tmp_path: Path) -> None:
    data.write_text("train: images/tarin\nval: images/vla\nnames: [square, bar]\n")
    said = refused(lambda: train.main(["--data", str(data), "--project", str(tmp_path / "runs"), *FLAGS]))
    assert said.count("no such file or folder") == 2 and "2 faults stop the run" in said
    assert "mend them; --skip-bad can't do without yaml-split-path" in said
    again = refused(
        lambda: train.main(["--data", str(data), "--project", str(tmp_path / "runs"), *FLAGS, "--skip-bad"])
    )
    assert again == said


def test_a_split_that_cannot_be_read_hides_no_fault_of_the_other(data: Path, tmp_path: Path) -> None:
    label(data, "val/01", "0 nan .5 .1 .1\n")
    data.write_text("train: images/tarin\nval: images/val\nnames: [square, bar]\n")
    said = refused(lambda: train.main(["--data", str(data), "--project", str(tmp_path / "runs"), *FLAGS]))
    assert "yaml-split-path" in said and "label-not-finite" in said


def test_skip_bad_trains_without_them_and_says_how_many(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    clean = tmp_path / "clean"
    train.main(["--data", str(data), "--project", str(clean), *FLAGS])
    capsys.readouterr()
    for i in range(3):
        label(data, f"train/{i:02d}", "0 0,5 0,5 0,1 0,1\n2 .5 .5 .1 .1\n")
    label(data, "val/01", "0 nan .5 .1 .1\n")
    train.main(["--data", str(data), "--project", str(tmp_path / "runs"), *FLAGS, "--skip-bad"])
    out = capsys.readouterr().out
    assert (
        "left out: train: 3 x label-comma (commas in a row: for the decimal point, or between numbers; the obj" in out
    )
    assert f"left out: val: {data.parent}/labels/val/01.txt:line 1: not finite" in out
    assert (
        f"left out: train: {data}: names: has 2 classes (0 to 1), the labels also use 2 (3 rows): add their na" in out
    )
    assert "--skip-bad goes on without what 7 faults concern: 7 objects\n" in out
    run = tmp_path / "runs/exp"
    assert f"faults       all 7 are listed in {run}/faults.txt" in out
    assert (run / "faults.txt").read_text().count("label-comma\ttrain\t") == 3
    assert yaml.safe_load((run / "opt.yaml").read_text())["skip_bad"] is True
    ours, theirs = (load_checkpoint(folder / "weights/last.pt") for folder in (run, clean / "exp"))
    assert ours["fingerprint"]["data"] == theirs["fingerprint"]["data"]  # what is left is the data before


def test_a_resumed_run_skips_what_it_skipped(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label(data, "train/01", "0 nan .5 .1 .1\n")
    runs, save = tmp_path / "runs", train.save

    def save_and_die(training: train.Training, *arguments: object) -> None:
        save(training, *arguments)
        raise KeyboardInterrupt

    flags = [*FLAGS[:-1], "2"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "save", save_and_die)
        train.main(["--data", str(data), "--project", str(runs), *flags, "--skip-bad"])
    train.main(["--resume", str(runs / "exp"), "--check", "full"])  # were it to find more, the data would be others
    assert load_checkpoint(runs / "exp/weights/last.pt")["state"]["progress"]["epoch"] == 2


def test_a_run_with_warnings_starts_and_keeps_the_list(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = label(data, "train/01", "0 .5 .5 0 .1\n")
    train.main(["--data", str(data), "--project", str(tmp_path), *FLAGS])
    out = capsys.readouterr().out
    assert f"warning: train: {path}:line 1: box (32, 21.6016, 32, 26.3984) has no area: dropped\n" in out
    assert "--skip-bad" not in out and "faults  " not in out  # all has been said
    assert f"box-no-area\ttrain\t{path}:line 1: box" in (tmp_path / "exp/faults.txt").read_text()


def test_a_clean_run_has_no_list(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train.main(["--data", str(data), "--project", str(tmp_path), *FLAGS])
    assert "warning" not in capsys.readouterr().out and not (tmp_path / "exp/faults.txt").exists()


def test_val_does_alike(data: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights, runs = str(tiny_run / "weights/best.pt"), tmp_path / "runs"
    flags = ["--weights", weights, "--data", str(data), "--device", "cpu", "--project", str(runs), "--noplots"]
    label(data, "train/01", "0 nan .5 .1 .1\n")  # of no concern
    for i in range(2):
        label(data, f"val/{i:02d}", "0 inf .5 .1 .1\n")
    said = refused(lambda: val.main(flags))
    assert "2 faults stop the run; all are listed in" in said and (runs / "check/faults.txt").exists()
    val.main([*flags, "--skip-bad"])
    assert "--skip-bad goes on without what 2 faults concern: 2 objects\n" in capsys.readouterr().out
    assert (runs / "exp/faults.txt").exists()


def test_check_full_finds_what_headers_hide(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A PNG whose pixels are no zlib stream, with sound checksums: only decoding sees it."""
    path = data.parent / "images/val/02.png"
    picture = cv2.imread(str(path))
    path.write_bytes(damaged_png(path.read_bytes()))
    assert cv2.imread(str(path)) is None and picture is not None
    config = load_data_config(data)
    assert not read_splits(config, ("train", "val"), tmp_path).faults
    said = refused(lambda: read_splits(config, ("train", "val"), tmp_path, full=True))
    assert said.startswith(f"{path}: ") and said.endswith("; or add --skip-bad to go on without it")
    splits = read_splits(config, ("train", "val"), tmp_path, full=True, skip_bad=True)
    index = splits.indices["val"]
    assert [index.name(i) for i in range(len(index))] == [f"images/val/0{i}.png" for i in (0, 1, 3)]
    assert [(fault.kind, names) for fault, names in splits.faults.items()] == [("image-corrupt", ["val"])]
    capsys.readouterr()
    train.main(["--data", str(data), "--project", str(tmp_path), *FLAGS, "--check", "full", "--skip-bad"])
    assert "12 training and 3 validation images" in capsys.readouterr().out


def damaged_png(data: bytes) -> bytes:
    """The same PNG with noise for its pixels, and checksums that agree."""
    place = data.index(b"IDAT")
    length = int.from_bytes(data[place - 4 : place], "big")
    body = b"IDAT" + bytes(length)
    return data[:place] + body + zlib.crc32(body).to_bytes(4, "big") + data[place + 8 + length :]


@pytest.mark.parametrize("left_out", [[], [0], [3], [1, 2], [0, 1, 2, 3]])
def test_an_index_without_images_is_that_of_the_others(data: Path, left_out: list[int]) -> None:
    label(data, "val/01", "0 .5 .5 .2 .2\n0 .4 .5 .2 .2\n")
    (data.parent / "labels/val/02.txt").write_text("")
    config = load_data_config(data)
    whole, _ = build_index(config, "val")
    records, _ = read_split(config, "val")
    expected = pack(whole.root, [block_of([record for i, record in enumerate(records) if i not in left_out])])
    got = without(whole, left_out)
    for key in ARRAYS:
        assert getattr(got, key).tobytes() == getattr(expected, key).tobytes(), key
        assert getattr(got, key).dtype == getattr(expected, key).dtype, key
    assert got.digest == expected.digest and not got.boxes.flags.writeable


def test_a_list_that_cannot_be_written_is_done_without(data: Path, tmp_path: Path) -> None:
    label(data, "val/01", "0 nan .5 .1 .1\n0 0 0\n")
    (tmp_path / "file").touch()
    said = refused(lambda: read_splits(load_data_config(data), ("train", "val"), tmp_path / "file"))
    assert said.splitlines()[0] == f"{data}: 2 faults stop the run"


def test_classes_counted_from_one_are_suspected(tmp_path: Path) -> None:
    for split in ("train", "val"):
        image(tmp_path / f"images/{split}/a.png")
        text(tmp_path / f"labels/{split}/a.txt", "1 .5 .5 .1 .1\n2 .5 .5 .1 .1\n")
    text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    said = refused(lambda: read_splits(load_data_config(tmp_path / "data.yaml"), ("train", "val"), tmp_path / "runs"))
    assert "the labels also use 2 (2 rows): add their names; no row is of class 0: do the labels count from 1?" in said
    assert "label-class-range" not in said  # the same, row by row, is in the list
    assert (tmp_path / "runs/check/faults.txt").read_text().count("label-class-range\t") == 2


def test_many_faults_are_said_in_few_lines(tmp_path: Path) -> None:
    """Kinds of the whole set come first, then the frequent ones; the rest is counted."""
    bad = ["x", "0 0,5", "0 .5", ".5 .5 .5 .1 .1", "-1 .5 .5 .1 .1", "0 nan .5 .1 .1", "0 9 9 9 9", "0 .5 .5 -1 .1"]
    bad += ["0 1.5 .5 .1 .1", "0 1 .5 .2 1.8"]
    for split in ("train", "val"):
        image(tmp_path / f"images/{split}/a.png")
        text(tmp_path / f"labels/{split}/a.txt", "\n".join([*bad, *["0 .5"] * 500, "0 .5 .5 .1 .1"]))
    text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    config = load_data_config(tmp_path / "data.yaml")
    said = refused(lambda: read_splits(config, ("train", "val"), tmp_path / "runs")).splitlines()
    assert len(said) < 30 and said[0].startswith(f"{tmp_path}/data.yaml: 1,020 faults stop the run;")
    assert said[1] == "  1,002 x label-columns: a row of neither a box nor a polygon"
    assert said[-2].startswith("  and 2 x ") and said[-1].startswith("  mend them, or add --skip-bad")


def test_what_a_name_holds_stays_on_its_line() -> None:
    fault = Fault.of("label-text", "a\n\x1b[31mb\udcff.txt", "line 1", "x\ty")
    assert str(fault) == "a\\n\\x1b[31mb\\xff.txt:line 1: x\\ty"
    str(fault).encode()


def test_bccd_trains_as_it_is_published(bccd: Path, tmp_path: Path) -> None:
    splits = read_splits(load_data_config("bccd"), ("train", "val"), tmp_path)
    folder = f"warning: train: {bccd}/Annotations"
    assert splits.lines() == [
        f"{folder}/BloodImage_00338.xml:object 13: box (504, 337, 504, 337) has no area: dropped",
        f"{folder}/BloodImage_00343.xml:object 4: box (181, 329, 181, 329) has no area: dropped",
    ]
    assert not list(tmp_path.iterdir())


def test_what_skip_bad_costs_is_counted_by_images_and_objects(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    label(data, "train/01", "0 nan .5 .1 .1\n0 .5 .5 .2 .2\n")
    for i in (2, 3):
        (data.parent / f"images/train/{i:02d}.png").write_bytes(b"")
    train.main(["--data", str(data), "--project", str(tmp_path), *FLAGS, "--skip-bad"])
    assert "--skip-bad goes on without what 3 faults concern: 2 images and 1 object\n" in capsys.readouterr().out


def test_images_that_a_list_names_in_vain_are_counted_each(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    listed = [f"./images/train/{i:02d}.png" for i in range(8)]
    (data.parent / "list.txt").write_text("\n".join([*listed, *(f"./images/train/x{i}.png" for i in range(6))]))
    data.write_text(data.read_text().replace("train: images/train", "train: list.txt"))
    train.main(["--data", str(data), "--project", str(tmp_path), *FLAGS, "--skip-bad"])
    assert "--skip-bad goes on without what 6 faults concern: 6 images\n" in capsys.readouterr().out


def test_what_does_not_stop_a_run_is_counted_apart(data: Path, tmp_path: Path) -> None:
    label(data, "train/03", "7 .5 .5 .1 .1\n8 .5 .5 .1 .1\n")
    label(data, "train/04", "0 .5 .5 0 .1\n")
    said = refused(lambda: train.main(["--data", str(data), "--project", str(tmp_path / "runs"), *FLAGS]))
    assert said.startswith(f"{data}: 2 faults stop the run, beside 1 that doesn't; all are listed in")
    assert (tmp_path / "runs/check/faults.txt").read_text().startswith(f"# 3 faults of {data};")
