"""Files replaced whole: whatever stops the program or the machine, and when, the old file or the new one stands."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError


class CannotWrite(UserError):
    """A file that could not be written: the message names it, why, and how many bytes it needs."""


class NotFlushed(OSError):
    """The new file stands, but the system would not flush its name to disk."""


def replace_file(path: Path, write: Callable[[BinaryIO], int], previous: Path | None = None) -> None:
    """Write beside the target, flush to disk, rename, flush the folder.

    Args:
        write: writes the content and returns how many bytes that were.
        previous: the name under which the file that stood at `path` is kept, if there was one.

    Raises:
        OSError: the system refuses; nothing is left beside the target where that can be helped.
    """
    temporary, first = path.with_name(f".{path.name}.tmp"), not path.exists()
    try:
        with temporary.open("wb") as file:
            size = write(file)
            file.flush()
            if os.fstat(file.fileno()).st_size != size:
                raise OSError(errno.EIO, "the system took fewer bytes than it said")
            os.fsync(file.fileno())
        if previous is not None and not first:
            _keep(path, previous)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise NotFlushed(error.errno, error.strerror) from error
    if first:  # the folders may be as new as the file, and their own names are in the folders above
        for folder in list(path.absolute().parents)[1:3]:
            with contextlib.suppress(OSError):
                sync_folder(folder)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file that no one else reads meanwhile; what could not be written whole is removed.

    Raises:
        OSError: the system refuses; it names the file, which a full disk's own error does not.
    """
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def cannot_write(path: Path, what: str, error: Exception, size: int) -> CannotWrite:
    """Return the one line that says why `what` could not be written to `path`, and that it needs `size` bytes."""
    chain: list[BaseException] = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    # torch.save covers the system's own word with its complaint that nothing more could be written
    reason = next((e.strerror for e in chain if isinstance(e, OSError) and e.strerror), str(error).partition("\n")[0])
    needs, stands = f": it needs {size:,} bytes" if size else "", ""
    with contextlib.suppress(OSError):
        needs += f", {shutil.disk_usage(path.parent).free:,} are free"
        if isinstance(error, NotFlushed):
            stands = "; it stands, but may not outlast a power cut"
        elif path.exists():
            stands = "; the one before it stands"
    return CannotWrite(f"{path}: {what} could not be written ({reason}){needs}{stands}")


def sync_folder(folder: Path) -> None:
    """Flush a folder: the names in it are on disk."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the answer of network file systems that do not flush folders
                raise
        finally:
            os.close(descriptor)


def _keep(path: Path, previous: Path) -> None:
    """Give the current file its second name; a file system without hard links simply has no previous one."""
    link = path.with_name(f".{path.name}.link")
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        os.link(path, link)
        os.replace(link, previous)
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)  # renamed onto another name of the same file, it is still there (POSIX)
