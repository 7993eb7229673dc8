"""Words to the user: what is told when something is wrong, the exit code that goes with it, and numbers in words."""

from __future__ import annotations

import difflib
import errno
import io
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TextIO

MAX_PATH, MAX_FILE_NAME = 4095, 255  # bytes, as Linux has it; other systems allow less
JOINERS = "\u200c\u200d"  # of letters in Persian and many Indian scripts, and of emoji
DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
LINE = 2000  # characters of a line of a message at most
EXIT_DONE, EXIT_USAGE, EXIT_DIVERGED, EXIT_STOPPED = 0, 2, 3, 75
EXIT_UNREAD = 141  # as a shell reports a program that SIGPIPE ended
EXIT_INTERRUPTED = 130  # as shells say of a program that Ctrl-C ended


class UserError(Exception):
    """A fault that the user can mend: the message names file, line, key and value, and what is allowed. Exit 2."""

    exit_code = EXIT_USAGE


class TrainingDiverged(UserError):
    """The loss left the numbers: nothing that follows would be training. Exit 3."""

    exit_code = EXIT_DIVERGED


class Stopped(SystemExit):
    """A signal asked the run to end; its words are for the user. Exit 75. `saved`: it said already what is saved.

    No `except Exception` holds it up, and where nobody prints it, it ends the program quietly with its code.
    """

    def __init__(self, text: str, saved: bool = False) -> None:
        super().__init__(text)
        self.code, self.saved = EXIT_STOPPED, saved


def suggest(word: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the choice spelled nearest to `word`, in any case, or an empty string."""
    lower = {str(choice).lower(): str(choice) for choice in choices}
    near = difflib.get_close_matches(str(word).lower(), lower, n=1, cutoff=0.6)
    return f"; did you mean '{lower[near[0]]}'?" if near else ""


def refuse(faults: list[str], source: str, hint: str = "") -> None:
    """Raise all faults of `source` in one `UserError`, a line each, and then `hint`; without faults do nothing."""
    lines = [*faults, hint] if hint else faults
    if len(faults) > 1:
        lines = [f"{len(faults)} faults in {source}:", *lines]
    if faults:
        raise UserError("\n  ".join(lines))


def text_fault(text: str) -> str:
    """Return why a text can be no name and no path, or an empty string."""
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
        return "holds a control character"
    try:
        size, longest = len(text.encode()), max(len(part.encode()) for part in re.split(r"[/\\]", text))
    except UnicodeEncodeError:
        return "not text in UTF-8"
    if size > MAX_PATH or longest > MAX_FILE_NAME:
        return f"too long; a path has at most {MAX_PATH} bytes, and each name in it {MAX_FILE_NAME}"
    return ""


def many(count: int, one: str) -> str:
    """A number with what it counts: `1 image`, `1,000 images`, `2 classes`."""
    return f"{count:,} {plural(count, one)}"


def plural(count: int, one: str) -> str:
    """The word for so many: `image` or `images`; with `es` where it ends in `s`, `x` or `tch` (batch, not epoch)."""
    return one if count == 1 else one + ("es" if one.endswith(("s", "x", "tch")) else "s")


def some(words: Sequence[str], most: int) -> str:
    """The first of the words, and how many more there are: `a, b, c and 4 more`."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def printable(text: str) -> str:
    """Return a text fit for any terminal and file: control characters, and bytes that are no UTF-8, as escapes."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs" or character in JOINERS:
        return character
    byte = ord(character) - 0xDC00  # how Python carries a byte of a file name that is no UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else ascii(character)[1:-1]


def run_cli(main: Callable[[], None]) -> None:
    """Run an entry point; a `UserError` becomes its message on stderr and its exit code, without a traceback.

    So does `Stopped`. Where stdout was closed (`| head`), it ends without words, as other programs do. Exit 141.
    What a terminal has no character for is shown as `?`; without any stdout (`>&-`) the program does its work unheard,
    as it does while the disk of its log is full.
    """
    sys.stdout, sys.stderr = _forgiving(sys.stdout), _forgiving(sys.stderr)
    try:
        main()
        sys.stdout.flush()
    except UserError as error:  # its lines are ours, what stands in them may be anybody's
        lines = [printable(line[:LINE]) + "…" * (len(line) > LINE) for line in str(error).split("\n")]
        _end("error: " + "\n".join(lines), error.exit_code)
    except Stopped as stopped:
        _end(str(stopped), EXIT_STOPPED)
    except KeyboardInterrupt:  # a program that has no state to save
        _end("stopped by SIGINT", EXIT_INTERRUPTED)
    except BrokenPipeError:
        if tell(sys.stdout, "\n"):  # it was another pipe; it takes an empty line to know
            raise
        _end("", EXIT_UNREAD)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _end(printable(f"error: {where}could not be written ({error.strerror})"), UserError.exit_code)


def _forgiving(stream: TextIO | None) -> TextIO:
    """The stream, or nowhere where there is none (Python has None then)."""
    if stream is None:
        return open(os.devnull, "w")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return Forgiving(stream)  # type: ignore[return-value]


class Forgiving:
    """A stream on which an error of the device, such as a full disk, ends no run; said once. A closed pipe still does.

    What can't be written is lost; what comes once it can be, is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._said = stream, False

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, do: Callable[..., Any], *given: Any) -> None:
        try:
            do(*given)
        except BrokenPipeError:
            raise
        except OSError as error:
            if not self._said:
                self._said = True
                tell(sys.stderr, f"warning: the output can't be written ({error.strerror}); this goes on without it\n")


def _end(words: str, code: int) -> NoReturn:
    """Say it and exit with the code, also where nobody reads any more: Python would make it 120."""
    tell(sys.stdout, "")
    if words:
        tell(sys.stderr, words + "\n")
    sys.exit(code)


def tell(stream: TextIO, text: str) -> bool:
    """Write and flush; where nobody reads any more (`| head`), this and what is left goes nowhere, without an error.

    Returns whether somebody reads.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        return False
    return True
