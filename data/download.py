"""Fetching a data set, only because the user said `--download`: the only file that touches the network.

A server is not believed: a transfer that stalls, falls short, runs over, changes or is led elsewhere ends in one line
for the user and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO

from tqdm import tqdm

from data.unpack import BLOCK, check_space, unpack
from utils.errors import UserError

TIMEOUT = 60  # seconds without a byte; in each such time at least `SLOWEST` bytes a second must come
SLOWEST = 1024


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
    if os.path.lexists(root):
        raise UserError(f"{root} exists already: nothing is downloaded over it")
    work = root.with_name(f".{root.name}.download")
    unpacked = work / "unpacked"
    try:
        work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unpacked, ignore_errors=True)  # of a try that was killed
        unpacked.mkdir()
        for archive in archives:
            _fetch_and_unpack(archive, work, unpacked / archive.to, allow_http)
        os.replace(unpacked, root)
        shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(f"download to {root}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
        with contextlib.suppress(OSError):
            work.rmdir()  # stays where complete archives lie in it


def _fetch_and_unpack(archive: Archive, work: Path, target: Path, allow_http: bool) -> None:
    key = hashlib.sha256(repr(archive).encode()).hexdigest()[:8]
    file = work / f"{key}-{_file_name(archive.url)}"
    if not file.exists():
        fetch_file(archive, file, allow_http)
    try:
        unpack(file, target, archive.folder)
    except UserError:
        file.unlink(missing_ok=True)  # the next try must not meet it again
        raise


def fetch_file(archive: Archive, target: Path, allow_http: bool = False) -> None:
    """Fetch one file over https to `target`, by a temporary name and only if size and sha256 are right.

    Plain http, where anybody on the way can change the file, is taken only with a sha256 to hold it against, or with
    `allow_http`: of a server on the same machine. Raises `UserError` naming the URL; then nothing is left behind.
    """
    url, allow_http = archive.url, allow_http or bool(archive.sha256)
    _check_scheme(url, allow_http)
    partial = target.with_name(f"{target.name}.part")
    try:
        received, size, digest = _receive(archive, partial, allow_http)
        if size is not None and received != size:
            more = "more than " if received > size else ""
            raise UserError(f"{url}: {more}{received:,} bytes came where {size:,} were to come; try again")
        if archive.sha256 and digest != archive.sha256:
            raise UserError(
                f"{url}: the sha256 of what came is {digest}, not {archive.sha256}: not the file it should be"
            )
        os.replace(partial, target)
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError; an unusable URL a ValueError
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = (
            getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
        )
        raise UserError(f"{url}: can't be fetched: {' '.join(str(reason).split())[:300]}") from None
    finally:
        partial.unlink(missing_ok=True)


def _receive(archive: Archive, partial: Path, allow_http: bool) -> tuple[int, int | None, str]:
    """Write what the server sends to `partial`: (bytes, bytes that were to come where that is known, sha256)."""
    request = urllib.request.Request(archive.url, headers={"User-Agent": "lockstep"})
    with urllib.request.build_opener(_Redirects(allow_http)).open(request, timeout=TIMEOUT) as response:
        announced = response.headers.get("Content-Length", "")
        promised = int(announced) if re.fullmatch("[0-9]{1,20}", announced) else None
        size = promised if archive.size is None else archive.size
        free = check_space(archive.url, size, partial.parent)
        with open(partial, "wb") as file:
            received, digest = _copy(response, file, archive.url, size, free)
    return received, size, digest


def _copy(response: HTTPResponse, file: IO[bytes], url: str, size: int | None, free: int) -> tuple[int, str]:
    """Copy until the end, or until more than `size` bytes came: (bytes, sha256)."""
    received, digest = 0, hashlib.sha256()
    begin, before = time.monotonic(), 0
    with tqdm(desc=_file_name(url), total=size, unit="B", unit_scale=True, disable=None) as bar:
        while block := response.read1(BLOCK):
            file.write(block)
            digest.update(block)
            received += len(block)
            bar.update(len(block))
            if size is not None and received > size:
                break
            if size is None and received > free:
                raise UserError(f"{url}: more came than the {free / 1e9:.1f} GB that are free")
            now = time.monotonic()
            if now - begin > TIMEOUT:
                if received - before < SLOWEST * (now - begin):
                    raise TimeoutError(f"less than {SLOWEST} bytes a second came")
                begin, before = now, received
    return received, digest.hexdigest()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects as long as they stay on https."""

    def __init__(self, allow_http: bool) -> None:
        self.allow_http = allow_http

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: ANN001, ANN201 (as in the base class)
        with contextlib.closing(fp):  # also where the new address is refused
            _check_scheme(newurl, self.allow_http)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str, allow_http: bool) -> None:
    if url.partition(":")[0].lower() not in ("https", *(["http"] if allow_http else [])):
        raise UserError(
            f"{url}: only https is fetched, and http where the yaml gives a sha256: get this data set by hand"
        )


def _file_name(url: str) -> str:
    """A file's name that says where it comes from, harmless whatever the URL is."""
    return re.sub(r"[^\w.-]", "_", re.split("[?#]", url)[0].rpartition("/")[2], flags=re.ASCII)[-60:] or "archive"
