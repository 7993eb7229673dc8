"""utils/atomic.py: the old file or the new one, nothing beside them, and one line that says what is needed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from utils.atomic import cannot_write, replace_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_the_one_before_kept(tmp_path: Path) -> None:
    path, previous = tmp_path / "a", tmp_path / "b"
    for content in (b"one", b"second", b"3"):
        replace_file(path, lambda file, content=content: file.write(content), previous)
    assert (path.read_bytes(), previous.read_bytes(), names(tmp_path)) == (b"3", b"second", ["a", "b"])


def test_what_a_crash_left_is_not_in_the_way(tmp_path: Path) -> None:
    """A crash between the two renames leaves one file under both names; one before the first, a link."""
    path, previous = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"one")
    os.link(path, previous)
    (tmp_path / ".a.tmp").write_bytes(b"longer than the new content")
    (tmp_path / ".a.link").write_bytes(b"of an older crash")
    for content in (b"two", b"three"):
        before = path.read_bytes()
        replace_file(path, lambda file, content=content: file.write(content), previous)
        assert (path.read_bytes(), previous.read_bytes(), names(tmp_path)) == (content, before, ["a", "b"])


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), RuntimeError("x"), KeyboardInterrupt(), SystemExit(75)])
def test_whatever_stops_the_writing_the_old_file_stands_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")

    def write(file: BinaryIO) -> int:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        replace_file(path, write)
    assert path.read_bytes() == b"one" and names(tmp_path) == ["a"]


def test_fewer_bytes_on_disk_than_were_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    with pytest.raises(OSError, match="fewer bytes"):
        replace_file(path, lambda file: file.write(b"two") + 1)
    assert path.read_bytes() == b"one" and names(tmp_path) == ["a"]


def test_the_folders_of_a_first_file_are_flushed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run makes `runs/exp/weights` just before: names in three folders are new."""
    folder = tmp_path / "exp" / "weights"
    folder.mkdir(parents=True)
    opened: dict[int, str] = {}
    flushed: list[str] = []
    real_open, real_fsync = os.open, os.fsync

    def record_open(path: str, *options: int) -> int:
        descriptor = real_open(path, *options)
        opened[descriptor] = str(path)
        return descriptor

    def record_fsync(descriptor: int) -> None:
        flushed.append(opened.get(descriptor, "file"))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "open", record_open)
    monkeypatch.setattr(os, "fsync", record_fsync)
    replace_file(folder / "a", lambda file: file.write(b"one"))
    assert flushed == ["file", str(folder), str(tmp_path / "exp"), str(tmp_path)]
    flushed.clear()
    opened.clear()
    replace_file(folder / "a", lambda file: file.write(b"two"))
    assert flushed == ["file", str(folder)]


def test_a_folder_above_that_cannot_be_flushed_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may belong to somebody else."""
    path, real_open = tmp_path / "weights" / "a", os.open
    path.parent.mkdir()

    def refuse(folder: Path, *options: int) -> int:
        if Path(folder) == tmp_path:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return real_open(folder, *options)

    monkeypatch.setattr(os, "open", refuse)
    replace_file(path, lambda file: file.write(b"one"))
    assert path.read_bytes() == b"one"


def test_the_line_says_what_the_system_said_and_what_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    covered = RuntimeError("unexpected position\nmore")
    covered.__context__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    text = str(cannot_write(path, "the table", covered, 12_345))
    assert text.startswith(f"{path}: the table could not be written (No space left on device): it needs 12,345 bytes, ")
    assert text.endswith(" are free")
    path.touch()
    text = str(cannot_write(path, "the table", RuntimeError("one\ntwo"), 0))
    assert text.startswith(f"{path}: the table could not be written (one), ")
    assert text.endswith("; the one before it stands")
    nowhere = tmp_path / "no" / "a"
    text = str(cannot_write(nowhere, "the table", OSError(errno.ENOENT, "No such folder"), 1))
    assert text == f"{nowhere}: the table could not be written (No such folder): it needs 1 bytes"


def test_a_name_that_is_not_flushed_is_said_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("utils.atomic.sync_folder", fail)
    with pytest.raises(OSError, match="Input/output error") as error:
        replace_file(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert str(cannot_write(path, "it", error.value, 3)).endswith("; it stands, but may not outlast a power cut")
