"""results.csv to the last bit and across a resume, TensorBoard's events, and what a terminal and a log file get."""

from __future__ import annotations

import csv
import io
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import loggers
from utils.errors import UserError
from utils.loggers import RESULT_COLUMNS, CsvLogger, Progress, TensorBoardLogger, build_loggers


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    table = CsvLogger(tmp_path / "results.csv")
    values = [0.1, 1 / 3, 2e-05 / 3, 1e300, 5e-324]
    for epoch, value in enumerate(values, 1):
        table.log(epoch, {"lr/decay": value, "time": np.float64(value), "val/box_loss": torch.tensor(0.1)})
    rows = read(table.path)
    for row, value in zip(rows, values, strict=True):
        assert (
            struct.pack("d", float(row["lr/decay"])) == struct.pack("d", value) == struct.pack("d", float(row["time"]))
        )
        assert float(row["val/box_loss"]) == float(np.float32(0.1))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]


def test_columns_stand_in_a_fixed_order_and_missing_values_are_empty(tmp_path: Path) -> None:
    table = CsvLogger(tmp_path / "results.csv")
    table.log(1, {"lr/bias": 0.1, "train/box_loss": 2.0})
    table.log(2, {"metrics/mAP50": 0.5, "extra": 7, "time": float("nan"), "val/box_loss": None})
    lines = table.path.read_text().splitlines()
    assert lines[0] == ",".join([*RESULT_COLUMNS, "extra"])
    first, second = read(table.path)
    assert (first["metrics/mAP50"], first["extra"], first["lr/bias"]) == ("", "", "0.1")
    assert (second["metrics/mAP50"], second["extra"], second["time"], second["val/box_loss"]) == ("0.5", "7", "nan", "")


def test_a_resumed_table_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def row(epoch: int) -> dict[str, float]:
        return {"time": epoch / 3, "extra": epoch / 7} | ({"metrics/mAP50": epoch / 9} if epoch % 2 == 0 else {})

    whole = CsvLogger(tmp_path / "whole.csv")
    for epoch in range(1, 7):
        whole.log(epoch, row(epoch))
    part = CsvLogger(tmp_path / "part.csv")
    for epoch in range(1, 6):
        part.log(epoch, {**row(epoch), "time": 99.0} if epoch > 3 else row(epoch))
    part = CsvLogger(tmp_path / "part.csv")  # the state of epoch 3 is resumed; 4 and 5 are trained again
    part.truncate(3)
    assert len(read(part.path)) == 3
    for epoch in range(4, 7):
        part.log(epoch, row(epoch))
    assert part.path.read_bytes() == whole.path.read_bytes()


def test_an_epoch_logged_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    table = CsvLogger(tmp_path / "results.csv")
    for epoch, time in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0)):
        table.log(epoch, {"time": time})
    assert [(row["epoch"], row["time"]) for row in read(table.path)] == [("1", "1.0"), ("2", "20.0")]


def test_a_crash_while_writing_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = CsvLogger(tmp_path / "results.csv")
    table.log(1, {"time": 1.0})
    before = table.path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no power")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"results\.csv: .*\(no power\): it needs \d+ bytes"):
        table.log(2, {"time": 2.0})
    assert table.path.read_bytes() == before


@pytest.mark.parametrize("text", ["epoch,time\none,2\n", "time\n2\n", "epoch,time\n1\n", "epoch,time\n1,2,3\n"])
def test_a_file_that_is_no_such_table_is_refused_by_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"results\.csv:2: .*`epoch`"):
        CsvLogger(path)


@pytest.mark.parametrize("content", [b"epoch,time\n1,\xff\n", b"epoch\n" + b"1" * 200_000 + b"\n"])
def test_a_table_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"results\.csv: the table of results could not be read"):
        CsvLogger(path)


def test_build_loggers_starts_afresh_or_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)  # TensorBoard is not installed
    for after_epoch, expected in ((0, ["1", "2", "3"]), (2, ["1", "2", "3"]), (0, ["3"])):
        (table,) = build_loggers(tmp_path, after_epoch)
        for epoch in (1, 2, 3) if expected == ["1", "2", "3"] and after_epoch == 0 else (3,):
            table.log(epoch, {"time": 1.0})
        assert [row["epoch"] for row in read(tmp_path / "results.csv")] == expected


def test_tensorboard_gets_every_number_and_forgets_what_a_resume_drops(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = TensorBoardLogger(tmp_path)
    for epoch in (1, 2, 3):
        first.log(epoch, {"epoch": epoch, "time": epoch / 2, "note": "text", "metrics/mAP50": None})
    second = TensorBoardLogger(tmp_path, after_epoch=2)
    second.log(3, {"time": np.float32(9.0), "lr/bias": torch.tensor(0.5)})
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["lr/bias", "time"]
    assert [(event.step, event.value) for event in events.Scalars("time")] == [(1, 0.5), (2, 1.0), (3, 9.0)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_progress(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, batches: int = 4) -> None:
    """Four batches of 16 images, half a second each, by a clock of our own."""
    now = [100.0]
    monkeypatch.setattr(loggers.time, "perf_counter", lambda: now[0])
    with Progress(4, "epoch 3/10", epochs_to_come=7, stream=stream) as progress:
        for i in range(batches):
            now[0] += 0.5
            progress.update({"box": 4.0 / (i + 1), "cls": torch.tensor(0.25), "lr": 0.002}, images=16)


def test_a_log_file_gets_one_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    run_progress(stream, monkeypatch)
    line = "epoch 3/10, box 1.000 cls 0.2500 lr 0.002000 32.0 images/s, 2.0 s, 00:14 left\n"
    assert stream.getvalue() == line


def test_an_epoch_that_breaks_off_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    run_progress(stream, monkeypatch, batches=2)
    assert stream.getvalue().startswith("epoch 3/10 stopped at 2/4, box 2.000 ")
    assert stream.getvalue().endswith("1.0 s, 00:15 left\n")


def test_the_time_left_of_a_run_counts_what_lies_between_its_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs of four batches of half a second, each with an evaluation of three seconds."""
    now, stream = [100.0], io.StringIO()
    monkeypatch.setattr(loggers.time, "perf_counter", lambda: now[0])
    pace = loggers.Pace()
    for epoch in range(3):
        with Progress(4, f"epoch {epoch + 1}/3", epochs_to_come=2 - epoch, pace=pace, stream=stream) as progress:
            for _ in range(4):
                now[0] += 0.5
                progress.update(images=16)
        now[0] += 3.0
    first, second, third = stream.getvalue().splitlines()
    assert first.endswith("2.0 s, 00:04 left")  # of an evaluation nothing is known yet
    assert second.endswith("2.0 s, 00:03 left")  # 7 seconds for 8 batches, and 4 to come
    assert third.endswith("2.0 s") and "left" not in third


def test_an_epoch_that_breaks_off_before_its_first_batch_is_no_error() -> None:
    stream = io.StringIO()
    Progress(4, "epoch 1/2", epochs_to_come=1, stream=stream).close()
    assert stream.getvalue().startswith("epoch 1/2 stopped at 0/4, ") and "left" not in stream.getvalue()


@pytest.mark.parametrize(
    ("columns", "end"),
    [(200, "lr 0.00200 32.0 images/s"), (75, "lr 0.00200 32.0 images/s"), (70, "cls 0.250 lr 0.00200"), (20, "]")],
)
def test_a_terminal_gets_whole_facts(columns: int, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    run_progress(stream, monkeypatch)
    last = stream.getvalue().strip("\r\n").split("\r")[-1]
    assert last.rstrip(" ,#").endswith(end)


def test_a_terminal_gets_a_bar_with_the_same_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    run_progress(stream, monkeypatch)
    last = stream.getvalue().strip("\r\n").split("\r")[-1]
    assert "epoch 3/10 4/4 [" in last and "box 1.00 cls 0.250 lr 0.00200 32.0 images/s" in last
    assert stream.getvalue().endswith("\n") and "stopped" not in last


def test_facts_are_looked_at_only_when_something_is_drawn() -> None:
    class Fact:
        looked_at = 0

        def __str__(self) -> str:
            Fact.looked_at += 1
            return "x"

    with Progress(1000, "epoch 1/1", stream=Terminal()) as progress:
        for _ in range(1000):
            progress.update({"fact": Fact()})
    assert 1 <= Fact.looked_at < 20


def test_a_silent_progress_and_a_second_close_write_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, "epoch 1/1", enabled=False) as progress:
        progress.update({"box": 1.0})
    assert capsys.readouterr() == ("", "")
    with Progress(2, "epoch 1/1", initial=1, stream=sys.stdout) as progress:
        progress.update()
        progress.close()
    assert capsys.readouterr().out.count("\n") == 1
