"""Where the numbers of a run go: results.csv, TensorBoard, the terminal.

A logger has `log(epoch, row)`, called once an epoch, and `close()`. Epochs are counted from 1, as users read them; rows
map names like `metrics/mAP50` to numbers.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from utils.atomic import cannot_write, replace_file
from utils.errors import UserError

RESULT_COLUMNS = (
    "epoch",
    "time",
    "train/box_loss",
    "train/cls_loss",
    "train/dfl_loss",
    "metrics/precision",
    "metrics/recall",
    "metrics/mAP50",
    "metrics/mAP50-95",
    "val/box_loss",
    "val/cls_loss",
    "val/dfl_loss",
    "lr/decay",
    "lr/no_decay",
    "lr/bias",
)


class Logger(Protocol):
    """Takes one row of numbers an epoch."""

    def log(self, epoch: int, row: Mapping[str, Any]) -> None: ...


def build_loggers(run_dir: Path, after_epoch: int = 0) -> list[Logger]:
    """The loggers of a run: results.csv, and TensorBoard events where it is installed.

    `after_epoch`: rows of later epochs, left by an earlier part of the run, are dropped. 0 starts afresh.
    """
    table = CsvLogger(run_dir / "results.csv")
    table.truncate(after_epoch)
    loggers: list[Logger] = [table]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(run_dir, after_epoch))
    return loggers


class CsvLogger:
    """Keep a table with a row an epoch, floats in full precision (`float(text)` gives the number back to the last bit).

    The file is replaced as a whole each time and flushed to disk, so a reader or a crash never meets half a row, and
    no row that a checkpoint written later counts on is lost. Columns are those of
    RESULT_COLUMNS, always, and whatever else a row brings; cells without a value stay empty.
    """

    def __init__(self, path: Path) -> None:
        """Take up the table at `path`, if there is one. UserError: it is no table of epochs."""
        self.path = path
        self._rows = _read_table(path) if path.exists() else []

    def log(self, epoch: int, row: Mapping[str, Any]) -> None:
        """Append the row of `epoch`; a row of the same or of a later epoch gives way to it."""
        cells = {name: _cell(value) for name, value in row.items() if name != "epoch"}
        self._rows = [*self._up_to(epoch - 1), {"epoch": str(epoch), **cells}]
        self._write()

    def truncate(self, after_epoch: int) -> None:
        """Drop the rows of epochs later than `after_epoch`, as a run does that resumes there."""
        kept = self._up_to(after_epoch)
        if len(kept) < len(self._rows):
            self._rows = kept
            self._write()

    def _up_to(self, epoch: int) -> list[dict[str, str]]:
        return [row for row in self._rows if int(row["epoch"]) <= epoch]

    def _write(self) -> None:
        columns = dict.fromkeys([*RESULT_COLUMNS, *(name for row in self._rows for name in row)])
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        table = text.getvalue().encode()
        try:
            replace_file(self.path, lambda file: file.write(table))
        except OSError as error:
            raise cannot_write(self.path, "the table of results", error, len(table)) from error


class TensorBoardLogger:
    """Write every number of a row as a scalar, at the step of its epoch. Needs `tensorboard`."""

    def __init__(self, folder: Path, after_epoch: int = 0) -> None:
        """Events of epochs later than `after_epoch`, left in `folder` by an earlier part of the run, are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=after_epoch + 1)

    def log(self, epoch: int, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            number = _number(value)
            if name != "epoch" and number is not None:
                self._writer.add_scalar(name, number, epoch)
        self._writer.flush()


class Pace:
    """Seconds a batch since it was made, with all that lies between batches and epochs, such as evaluations."""

    def __init__(self) -> None:
        self.batches, self._start = 0, time.perf_counter()

    def seconds(self) -> float:
        return (time.perf_counter() - self._start) / self.batches


class Progress:
    """Show how far an epoch is: a bar on a terminal, else one line when it ends (never a bar in a log file).

    Both show the description, the latest facts, images/s, the time taken and the time left; the line's time left is
    that of the run, if it is said how many epochs follow.
    """

    redraw_seconds = 0.25

    def __init__(
        self,
        total: int,
        desc: str,
        *,
        initial: int = 0,
        epochs_to_come: int = 0,
        pace: Pace | None = None,
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        """total: batches of the epoch, `initial` of which are done; epochs_to_come: of the same length, after this one;
        pace: that of a run, of whose epochs this is one; enabled: False shows nothing; stream: stdout by default."""
        self.total, self.desc = total, desc
        self._done = initial
        self._epochs_to_come = epochs_to_come
        self._pace = pace or Pace()
        self._enabled = enabled
        self._stream = stream or sys.stdout
        self._images = 0
        self._facts: Mapping[str, Any] = {}
        self._start = self._last_redraw = time.perf_counter()
        self._bar: tqdm | None = None
        if enabled and self._stream.isatty():
            layout = "{desc} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix} {bar}"  # the bar shrinks first
            self._bar = tqdm(
                total=total, initial=initial, desc=desc, file=self._stream, bar_format=layout, dynamic_ncols=True
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, facts: Mapping[str, Any] | None = None, images: int = 0) -> None:
        """One more batch, of `images` images, is done.

        facts: what to show, in this order; numbers, text, or tensors of one number. They are looked at only when
        something is drawn, so tensors on a GPU are waited for a few times a second and not at every step.
        """
        self._done += 1
        self._pace.batches += 1
        self._images += images
        if facts is not None:
            self._facts = facts
        if self._bar is not None and time.perf_counter() - self._last_redraw >= self.redraw_seconds:
            self._redraw()

    def close(self) -> None:
        """Draw the last state, or write the line. A second call does nothing."""
        if self._bar is not None:
            self._redraw()
            self._bar.close()
        elif self._enabled:
            print(self._line(), file=self._stream, flush=True)
        self._bar, self._enabled = None, False

    def _redraw(self) -> None:
        assert self._bar is not None
        self._last_redraw = time.perf_counter()
        taken = tqdm.format_interval(time.perf_counter() - self._start)
        fixed = f"{self.desc} {self._done}/{self.total} [{taken}<{taken}], "
        parts, room = self._facts_words(digits=3), shutil.get_terminal_size().columns - len(fixed)
        while parts and len(" ".join(parts)) >= room:
            parts.pop()  # rather none than half of one
        self._bar.set_postfix_str(" ".join(parts), refresh=False)
        self._bar.n = self._done
        self._bar.refresh()

    def _line(self) -> str:
        seconds = time.perf_counter() - self._start
        whole = "" if self._done == self.total else f" stopped at {self._done}/{self.total}"
        parts = [f"{self.desc}{whole}", " ".join(self._facts_words(digits=4)), f"{seconds:.1f} s"]
        to_come = self._epochs_to_come * self.total + self.total - self._done
        if self._pace.batches and to_come:
            parts.append(f"{tqdm.format_interval(self._pace.seconds() * to_come)} left")
        return ", ".join(part for part in parts if part)

    def _facts_words(self, digits: int) -> list[str]:
        parts = [f"{name} {_short(value, digits)}" for name, value in self._facts.items()]
        seconds = time.perf_counter() - self._start
        if self._images and seconds > 0:
            speed = self._images / seconds
            parts.append(f"{speed:.{0 if speed >= 100 else 1}f} images/s")
        return parts


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a table of text"
        raise UserError(f"{path}: the table of results could not be read ({reason})") from None
    for line, row in enumerate(rows, start=2):
        if not str(row.get("epoch")).strip().isdecimal() or None in row or None in row.values():
            raise UserError(f"{path}:{line}: not a row of this table, which has a column `epoch` with whole numbers")
    return rows


def _number(value: Any) -> float | int | None:
    """A Python number from a number, NumPy's or torch's included; None from anything else."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int | float) else None


def _cell(value: Any) -> str:
    number = _number(value)
    if number is None:
        return "" if value is None else str(value)
    return repr(number)


def _short(value: Any, digits: int) -> str:
    number = _number(value)
    return f"{number:#.{digits}g}" if isinstance(number, float) else str(value if number is None else number)
