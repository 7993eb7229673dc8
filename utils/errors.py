"""What the user is told when something is wrong, and the exit code that goes with it."""

from __future__ import annotations

import difflib
import sys
import unicodedata
from collections.abc import Callable, Iterable

EXIT_DONE, EXIT_USAGE, EXIT_DIVERGED, EXIT_STOPPED = 0, 2, 3, 75


class UserError(Exception):
    """A fault that the user can mend: the message names file, line, key and value, and what is allowed. Exit 2."""

    exit_code = EXIT_USAGE


class TrainingDiverged(UserError):
    """The loss left the numbers: nothing that follows would be training. Exit 3."""

    exit_code = EXIT_DIVERGED


class Stopped(SystemExit):
    """A signal asked the run to end; its words are for the user. Exit 75.

    No `except Exception` holds it up, and where nobody prints it, it ends the program quietly with its code.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = EXIT_STOPPED


def suggest(word: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the choice spelled nearest to `word`, or an empty string."""
    near = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def printable(text: str) -> str:
    """Return a text with control characters, and halves of characters, as escapes: fit for any terminal and file."""
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text)


def run_cli(main: Callable[[], None]) -> None:
    """Run an entry point; a `UserError` becomes its message on stderr and its exit code, without a traceback.

    So does `Stopped`.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_STOPPED)
