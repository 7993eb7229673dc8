"""Fetching a data set, only because the user said `--download`: the only file that touches the network."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

from utils.errors import UserError

BLOCK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Archive:
    """A zip or tar file to fetch and what of it is wanted.

    sha256, size (bytes): checked where given.
    folder: the folder of the archive that is wanted; by default the top one if there is only one, else all of it.
    to: where that folder's content goes, below the data set's folder.
    """

    url: str
    sha256: str | None = None
    size: int | None = None
    folder: str = ""
    to: str = ""


def fetch(archives: Sequence[Archive], root: Path, allow_http: bool = False) -> None:
    """Fetch and unpack `archives` so that `root`, which must not exist, appears whole or not at all.

    The work is done in a folder beside it; archives that are complete are kept there until the end, so a second try
    after a failure goes on with the next one. Raises `UserError` naming the URL or the member at fault.
    """
    if root.exists():
        raise UserError(f"{root} exists already: nothing is downloaded over it")
    work = root.with_name(f".{root.name}.download")
    unpacked = work / "unpacked"
    try:
        work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unpacked, ignore_errors=True)  # of a try that failed
        unpacked.mkdir()
        for archive in archives:
            key = hashlib.sha256(repr(archive).encode()).hexdigest()[:8]
            file = work / f"{key}-{_file_name(archive.url)}"
            if not file.exists():
                fetch_file(archive, file, allow_http)
            unpack(file, unpacked / archive.to, archive.folder)
        os.replace(unpacked, root)
    except OSError as error:
        raise UserError(f"download to {root}: {error.strerror or error}") from None
    shutil.rmtree(work, ignore_errors=True)


def fetch_file(archive: Archive, target: Path, allow_http: bool = False) -> None:
    """Fetch one file over https to `target`, by a temporary name and only if size and sha256 are right.

    `allow_http` is for servers on the same machine. Raises `UserError` naming the URL.
    """
    url = archive.url
    _check_scheme(url, allow_http)
    partial = target.with_name(f"{target.name}.part")
    request = urllib.request.Request(url, headers={"User-Agent": "lockstep"})
    try:
        with urllib.request.build_opener(_Redirects(allow_http)).open(request, timeout=TIMEOUT) as response:
            announced = response.headers.get("Content-Length", "")
            size = archive.size if archive.size is not None else int(announced) if announced.isdigit() else None
            _check_space(url, size, target.parent)
            with open(partial, "wb") as file:
                received, digest = _copy(response, file, size, _file_name(url))
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise UserError(f"{url}: can't be fetched: {getattr(error, 'reason', None) or error}") from None
    if size is not None and received != size:
        more = "more than " if received > size else ""
        raise UserError(f"{url}: {more}{received:,} bytes came where {size:,} were to come; try again")
    if archive.sha256 and digest != archive.sha256:
        raise UserError(f"{url}: the sha256 of what came is {digest}, not {archive.sha256}: not the file it should be")
    os.replace(partial, target)


def unpack(file: Path, target: Path, folder: str = "") -> None:
    """Unpack the files below `folder` of a zip or tar archive into `target`, over what is there.

    Only plain files and folders are taken. Raises `UserError` for a member that is a link or a device, or whose path
    leads out of the archive, and where `folder` has no files or the disk is too small.
    """
    try:
        with _open_archive(file) as archive:
            members = list(_zip_members(archive) if isinstance(archive, zipfile.ZipFile) else _tar_members(archive))
            base = PurePosixPath(folder) if folder else _only_folder(members)
            wanted = [member for member in members if member.path.is_relative_to(base)]
            files = [member for member in wanted if member.kind == "file"]
            for member in wanted:
                if member.kind == "other":
                    raise UserError(f"{file.name}: '{member.path}' is a link or a device: the archive is not unpacked")
            if not files:
                raise UserError(f"{file.name}: no files in its folder '{base}'")
            _check_space(file.name, sum(member.size for member in files), target)
            for member in tqdm(files, desc=f"unpacking {file.name}", unit=" files", disable=None, leave=False):
                _write_member(member, target / member.path.relative_to(base))
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{file.name}: a damaged archive, or of a kind that can't be unpacked: {error}") from None


class _Member(NamedTuple):
    path: PurePosixPath
    kind: str  # file, folder, other
    size: int
    open: Callable[[], IO[bytes] | None]


def _open_archive(file: Path) -> AbstractContextManager[zipfile.ZipFile | tarfile.TarFile]:
    if zipfile.is_zipfile(file):
        return zipfile.ZipFile(file)
    if tarfile.is_tarfile(file):
        return tarfile.open(file)
    raise UserError(f"{file.name}: neither a zip nor a tar archive")


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
    if path.is_absolute() or ".." in path.parts or "\\" in name or re.match("[A-Za-z]:", name):
        raise UserError(f"the archive's member {name!r} leads out of the archive: it is not unpacked")
    return path


def _only_folder(members: Sequence[_Member]) -> PurePosixPath:
    """The archive's top folder when everything is in it, else the archive itself."""
    files = [member.path for member in members if member.kind == "file"]
    tops = {path.parts[0] for path in files}
    return (
        PurePosixPath(tops.pop()) if len(tops) == 1 and all(len(path.parts) > 1 for path in files) else PurePosixPath()
    )


def _write_member(member: _Member, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    assert source is not None, member  # tarfile gives None only for what isn't a file
    with source, open(path, "wb") as target:
        shutil.copyfileobj(source, target, BLOCK)


def _copy(response: IO[bytes], file: IO[bytes], size: int | None, name: str) -> tuple[int, str]:
    """Copy until the end, or until more than `size` bytes came: (bytes, sha256)."""
    received, digest = 0, hashlib.sha256()
    with tqdm(desc=name, total=size, unit="B", unit_scale=True, disable=None) as bar:
        while block := response.read(BLOCK):
            file.write(block)
            digest.update(block)
            received += len(block)
            bar.update(len(block))
            if size is not None and received > size:
                break
    return received, digest.hexdigest()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects as long as they stay on https."""

    def __init__(self, allow_http: bool) -> None:
        self.allow_http = allow_http

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: ANN001, ANN201 (as in the base class)
        _check_scheme(newurl, self.allow_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str, allow_http: bool) -> None:
    if urllib.parse.urlsplit(url).scheme not in ("https", *(["http"] if allow_http else [])):
        raise UserError(f"{url}: only https is fetched: get this data set by hand")


def _check_space(what: str, size: int | None, folder: Path) -> None:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if size is not None and size > free:
        raise UserError(f"{what}: needs {size / 1e9:.1f} GB in {there}, which has {free / 1e9:.1f} GB free")


def _file_name(url: str) -> str:
    return PurePosixPath(urllib.parse.urlsplit(url).path).name or "archive"
