"""What is wrong in a data set, said in one line each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Something in the data that is left out or mended.

    file, where: the file, and the line, object or annotation in it (empty: all of it). text: what is wrong, and how to
    mend it. kind: a short name of this sort of fault, as `docs/data.md` lists them. stops: leaving it out changes what
    is learned, so that no run starts with it unasked.
    """

    file: str
    where: str
    text: str
    kind: str = ""
    stops: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.where}: {self.text}" if self.where else f"{self.file}: {self.text}"
