"""utils/errors.py: one line for the user, the exit code that goes with it, and no traceback."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from utils.errors import (
    EXIT_DIVERGED,
    EXIT_STOPPED,
    EXIT_USAGE,
    Forgiving,
    TrainingDiverged,
    UserError,
    many,
    printable,
    run_cli,
    suggest,
)


@pytest.mark.parametrize(("error", "code"), [(UserError, 2), (TrainingDiverged, 3)])
def test_a_fault_of_the_user_is_one_line_and_an_exit_code(
    error: type[UserError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error("my.yaml:3: lr0: 'abc' is not a number")

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    captured = capsys.readouterr()
    assert caught.value.code == code
    assert captured.err == "error: my.yaml:3: lr0: 'abc' is not a number\n" and not captured.out


@pytest.mark.parametrize("file", [None, "out/labels/a.txt"])
def test_a_full_disk_is_one_line(file: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", file)

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    where = f"{file}: " if file else ""
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {where}could not be written (No space left on device)\n"


def test_another_fault_of_the_system_is_no_fault_of_the_user() -> None:
    def main() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        run_cli(main)


def test_a_run_that_ends_well_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run_cli(lambda: None)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("error", "code"), [("UserError('bad')", 2), ("Stopped('stopped')", 75)])
def test_the_exit_code_stands_where_nobody_reads(error: str, code: int) -> None:
    program = f"""
import sys
from utils.errors import Stopped, UserError, run_cli
def main():
    print("never read")
    sys.stdin.read()
    raise {error}
run_cli(main)
"""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[1], env=buffered, **pipes)
    process.stdout.close()
    process.stdin.close()
    words = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == code
    assert words == ("error: bad\n" if code == 2 else "stopped\n")


@pytest.mark.parametrize("broken", ["stdout", "another"])
def test_a_closed_stdout_ends_a_program_without_words(broken: str) -> None:
    program = f"""
import os, sys
from utils.errors import run_cli
def main():
    sys.stdin.read()
    if {broken == "another"}:
        reading, writing = os.pipe()
        os.close(reading)
        os.write(writing, b"to nobody")
    print("never read", flush=True)
run_cli(main)
"""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[1], **pipes)
    if broken == "stdout":
        process.stdout.close()
    process.stdin.close()
    words = process.stderr.read().decode()
    process.stderr.close()
    process.stdout.close()
    code = process.wait()
    assert (code, words) == (141, "") if broken == "stdout" else (code == 1 and "BrokenPipeError" in words)


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_cli(main)


def test_exit_codes_that_scripts_rely_on() -> None:
    assert (EXIT_USAGE, EXIT_DIVERGED, EXIT_STOPPED) == (2, 3, 75)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("momentun", "; did you mean 'momentum'?"),
        ("warmup_epoch", "; did you mean 'warmup_epochs'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_the_nearest_spelling(word: str, expected: str) -> None:
    assert suggest(word, ("momentum", "warmup_momentum", "warmup_epochs")) == expected


def test_choices_need_not_be_texts() -> None:
    assert suggest("121", [12, 120, 345]) in ("; did you mean '12'?", "; did you mean '120'?")
    assert suggest("12", []) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Ünïcode ☃.jpg", "plain Ünïcode ☃.jpg"),
        ("a\nb\tc", "a\\nb\\tc"),
        (b"caf\xe9.jpg".decode("utf-8", "surrogateescape"), "caf\\xe9.jpg"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202egpj.exe", "\\u202egpj.exe"),  # which would turn the text round
        ("\u0686\u0647\u200c\u0633", "\u0686\u0647\u200c\u0633"),  # a Persian word
        ("\ud800", "\\ud800"),
        ("a\u3000b", "a\u3000b"),  # a space of Chinese texts
    ],
)
def test_what_is_shown_can_be_printed_anywhere(text: str, shown: str) -> None:
    assert printable(text) == shown == printable(shown)
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("count", "one", "words"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (1_000, "image", "1,000 images"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (2, "suspicious box", "2 suspicious boxes"),
        (2, "batch", "2 batches"),
        (2, "epoch", "2 epochs"),
    ],
)
def test_numbers_with_what_they_count(count: int, one: str, words: str) -> None:
    assert many(count, one) == words


def test_a_character_that_the_terminal_lacks_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
    run_cli(lambda: print("below 32², Bälle", flush=True))
    assert screen.getvalue() == b"below 32?, B?lle\n"


def test_without_a_stdout_the_work_is_done_unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    done: list[bool] = []

    def work() -> None:
        sys.stdout.write("nobody hears it")
        done.append(sys.stdout.isatty())

    run_cli(work)
    sys.stdout.close()
    assert done == [False]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux's")
@pytest.mark.parametrize("full", ["stdout", "both"])
def test_a_full_disk_under_the_log_ends_no_run(full: str) -> None:
    program = """
import sys
from utils.errors import UserError, run_cli
def main():
    for i in range(3000):
        print("an epoch", i, flush=i % 2 == 0)
    raise UserError("the end")
run_cli(main)
"""
    with open("/dev/full", "wb") as disk:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[1],
            stdout=disk,
            stderr=disk if full == "both" else subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            timeout=60,
        )
    assert done.returncode == 2
    if full == "stdout":
        warning, *last = done.stderr.decode().splitlines()
        assert warning.startswith("warning: the output can't be written (No space left") and last == ["error: the end"]


def test_a_log_is_written_again_once_there_is_room(capsys: pytest.CaptureFixture[str]) -> None:
    class Disk(io.RawIOBase):
        full, kept = True, b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            if Disk.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            Disk.kept += bytes(data)
            return len(data)

    stream = Forgiving(io.TextIOWrapper(io.BufferedWriter(Disk())))
    for i in range(2000):
        print("epoch", i, file=stream, flush=True)
    Disk.full = False
    print("the last epoch", file=stream, flush=True)
    assert Disk.kept.endswith(b"the last epoch\n") and capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code == 130 and capsys.readouterr().err == "stopped by SIGINT\n"
