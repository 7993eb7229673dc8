"""Unpacking a data set's archive, which is not believed: only plain files within it are written, all or none."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from utils.errors import UserError, text_fault

BLOCK = 1 << 20  # bytes
MAX_MEMBERS = 4_000_000  # of an archive; the largest data sets of boxes have half as many files in one
MAX_RATIO, UNSUSPICIOUS = 200, 100 << 20  # a bomb: this many times the archive's size, and more bytes than that
MAX_HEADER = 16 << 20  # bytes that are read at once beside blocks: a tar file's own notes


def unpack(file: Path, target: Path, folder: str = "") -> None:
    """Unpack the files below `folder` of a zip or tar archive into `target`, over what is there.

    Only plain files and folders are taken. Raises `UserError` for a member that is a link or a device, whose path
    leads out of the archive or is another's, for an archive that unfolds beyond measure, and where `folder` has no
    files or the disk is too small. All members are checked before the first is written.
    """
    try:
        with _open_archive(file) as archive:
            members = _checked_members(archive, file)
            base = PurePosixPath(folder) if folder else _only_folder(members)
            wanted = [member for member in members if member.path.is_relative_to(base)]
            files = [member for member in wanted if member.kind == "file"]
            for member in wanted:
                if member.kind == "other":
                    raise UserError(f"{file.name}: '{member.path}' is a link or a device: the archive is not unpacked")
            if not files:
                raise UserError(f"{file.name}: no files in its folder '{base}'")
            check_space(file.name, sum(member.size for member in files), target)
            for member in tqdm(files, desc=f"unpacking {file.name}", unit=" files", disable=None, leave=False):
                _write_member(member, target / member.path.relative_to(base))
    except UserError:
        raise
    except Exception as error:  # a file may come from anywhere: whatever it makes a reader stumble over is damage
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise UserError(f"{target}: cannot be written: {os.strerror(error.errno)}") from None
        reason = str(error) or type(error).__name__
        raise UserError(f"{file.name}: a damaged archive, or of a kind that can't be unpacked: {reason}") from None


def check_space(what: str, size: int | None, folder: Path) -> int:
    """Return the bytes that are free where `folder` lies or will lie; `UserError` where they are fewer than `size`."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if size is not None and size > free:
        raise UserError(f"{what}: needs {size / 1e9:.1f} GB in {there}, which has {free / 1e9:.1f} GB free")
    return free


class _Member(NamedTuple):
    path: PurePosixPath
    kind: str  # file, folder, other
    size: int
    open: Callable[[], IO[bytes] | None]


class _Measured:
    """A file that refuses to be read in pieces beyond measure: a tar's header may say that it has gigabytes."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


@contextlib.contextmanager
def _open_archive(file: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    with open(file, "rb") as raw:
        start = raw.read(64)
    unpackers: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    unpacker = next((unpacker for mark, unpacker in unpackers.items() if start.startswith(mark)), open)
    if unpacker is open and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            yield archive
        return
    with unpacker(file, "rb") as content:
        try:
            archive = tarfile.open(fileobj=_Measured(content), mode="r:")  # noqa: SIM115 (closed below)
        except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError):
            hint = ", but a web page" if start.lstrip().startswith(b"<") else ""
            raise UserError(f"{file.name}: neither a zip nor a tar archive{hint}") from None
        with archive:
            yield archive


def _checked_members(archive: zipfile.ZipFile | tarfile.TarFile, file: Path) -> list[_Member]:
    """List an archive's members; `UserError` where they are too many or too large, or two have the same path."""
    members: list[_Member] = []
    seen: dict[str, PurePosixPath] = {}
    size, count, limit = 0, 0, max(MAX_RATIO * file.stat().st_size, UNSUSPICIOUS)
    for member in _zip_members(archive) if isinstance(archive, zipfile.ZipFile) else _tar_members(archive):
        size, count = size + member.size, count + 1
        if count > MAX_MEMBERS or size > limit:
            raise UserError(
                f"{file.name}: unfolds into more than {MAX_MEMBERS:,} files or {limit / 1e6:,.0f} MB, as no data set "
                f"does: it is not unpacked"
            )
        if member.path.parts[:1] == ("__MACOSX",) or member.path.name.startswith(("._", ".DS_Store")):
            continue  # which a Mac adds
        members.append(member)
        if member.kind == "file":
            key = str(member.path).casefold()  # on many systems names that differ by case are one file
            if key in seen:
                raise UserError(f"{file.name}: '{seen[key]}' and '{member.path}' are one file: it is not unpacked")
            seen[key] = member.path
    return members


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        mode = info.external_attr >> 16  # of Unix, zero when another system made the archive
        plain = stat.S_IFMT(mode) in (0, stat.S_IFREG, stat.S_IFDIR)
        kind = ("folder" if info.is_dir() else "file") if plain else "other"
        yield _Member(_safe_path(info.filename), kind, info.file_size, lambda info=info: archive.open(info))


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    for info in archive:
        kind = "file" if info.isreg() else "folder" if info.isdir() else "other"
        yield _Member(_safe_path(info.name), kind, info.size, lambda info=info: archive.extractfile(info))


def _safe_path(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if "\\" in name:
        raise UserError(
            f"the archive's member {name[:300]!r} has a backslash for a slash in its name: it is not unpacked"
        )
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
        raise UserError(f"the archive's member {name[:300]!r} leads out of the archive: it is not unpacked")
    if fault := text_fault(name):
        raise UserError(f"the archive's member {name[:80]!r} has a bad name, {fault}: it is not unpacked")
    return path


def _only_folder(members: Sequence[_Member]) -> PurePosixPath:
    """The archive's top folder when everything is in it, else the archive itself."""
    files = [member.path for member in members if member.kind == "file"]
    tops = {path.parts[0] for path in files if path.parts}
    return (
        PurePosixPath(tops.pop()) if len(tops) == 1 and all(len(path.parts) > 1 for path in files) else PurePosixPath()
    )


def _write_member(member: _Member, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    assert source is not None, member  # tarfile gives None only for what isn't a file
    with source, open(path, "wb") as target:
        shutil.copyfileobj(source, target, BLOCK)
