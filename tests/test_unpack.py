"""Archives that a stranger made: what is plain and within is written, all else is refused before anything is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

import data.unpack
from data.unpack import unpack
from tests.archives import tarred, tree, zipped
from utils.errors import UserError

LINK = stat.S_IFLNK | 0o777
EVIL = {
    "zip_parent": zipped({"ok.txt": b"1", "../evil.txt": b"1"}),
    "zip_inner_parent": zipped({"a/../../evil.txt": b"1"}),
    "zip_absolute": zipped({"/evil.txt": b"1"}),
    "zip_backslash": zipped({"..\\evil.txt": b"1"}),
    "zip_drive": zipped({"C:evil.txt": b"1"}),
    "zip_link": zipped({"evil": b"/etc"}, LINK),
    "tar_parent": tarred({"../evil.txt": b"1"}),
    "tar_absolute": tarred({"/evil.txt": b"1"}),
    "tar_symlink": tarred({"evil": b""}, tarfile.SYMTYPE, "/etc"),
    "tar_hardlink": tarred({"evil": b""}, tarfile.LNKTYPE, "/etc/passwd"),
    "tar_device": tarred({"evil": b""}, tarfile.CHRTYPE),
    "tar_fifo": tarred({"evil": b""}, tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("name", EVIL)
def test_an_archive_that_reaches_outside_is_refused_whole(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(EVIL[name])
    with pytest.raises(UserError, match="leads out of the archive|is a link or a device|has a backslash"):
        unpack(tmp_path / "file", tmp_path / "set/in")
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


@pytest.mark.parametrize(
    ("content", "folder", "message"),
    [
        (b"not an archive", "", "file: neither a zip nor a tar archive"),
        (zipped({"a.txt": b"1" * 1000})[:-30], "", "neither a zip nor|a damaged archive"),
        (zipped({"a.txt": b"1" * 1000}).replace(b"1" * 1000, b"2" * 1000), "", "a damaged archive"),
        (tarred({"a.txt": bytes(range(256)) * 99})[:-99], "", "neither a zip nor|a damaged archive"),
        (zipped({"a/1.txt": b"1"}), "b", "no files in its folder 'b'"),
        (zipped({}), "", "no files"),
    ],
)
def test_a_damaged_archive_is_said(content: bytes, folder: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=message):
        unpack(tmp_path / "file", tmp_path / "set", folder)


def test_links_outside_the_wanted_folder_do_no_harm(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("top/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
        info = tarfile.TarInfo("top/set/a.txt")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"1"))
    (tmp_path / "file").write_bytes(buffer.getvalue())
    unpack(tmp_path / "file", tmp_path / "set", "top/set")
    assert tree(tmp_path / "set") == {"a.txt": b"1"} and not (tmp_path / "set/link").exists()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_every_kind_of_tar(pack: type[bytes], tmp_path: Path) -> None:
    content = {"a/1.txt": b"1", "a/b/2.txt": bytes(range(256)) * 9000}
    (tmp_path / "file").write_bytes(pack(tarred(content, mode="w")))
    unpack(tmp_path / "file", tmp_path / "set")
    assert tree(tmp_path / "set") == {"1.txt": content["a/1.txt"], "b/2.txt": content["a/b/2.txt"]}


def test_what_a_mac_adds_is_left_out(tmp_path: Path) -> None:
    """Else the archive would have two top folders, and the set would lie one too deep."""
    content = {"set/a.txt": b"1", "set/b/.hidden": b"2"}
    added = {"__MACOSX/set/._a.txt": b"x", ".DS_Store": b"x", "set/.DS_Store": b"x", "set/b/._c.txt": b"x"}
    (tmp_path / "file").write_bytes(zipped(content | added))
    unpack(tmp_path / "file", tmp_path / "set")
    assert tree(tmp_path / "set") == {"a.txt": b"1", "b/.hidden": b"2"}


def big_zip(size: int, times: int = 1) -> bytes:
    """Zeros, a thousandth of their size."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(times):
            archive.writestr(f"{number}.txt", bytes(size))
    return buffer.getvalue()


def sparse_tar(size: int) -> bytes:
    """A header that says `size` bytes, and none of them."""
    info = tarfile.TarInfo("huge.bin")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def pax_tar(size: int) -> bytes:
    """An extended header of `size` bytes, which a reader takes into memory before it knows what for."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, size
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


BAD = {
    "ratio of one": (big_zip(120 << 20), "unfolds into more than"),
    "ratio of many": (big_zip(30 << 20, 4), "unfolds into more than"),
    "tar that claims much": (sparse_tar(1 << 40), "unfolds into more than"),
    "tar header of gigabytes": (pax_tar(4 << 30), "neither a zip nor a tar|a damaged archive"),
    "twice the same": (tarred({"a.txt": b"1", "./a.txt": b"2"}), "'a.txt' and 'a.txt' are one file"),
    "case alone differs": (zipped({"a/x.TXT": b"1", "A/X.txt": b"2"}), "'a/x.TXT' and 'A/X.txt' are one file"),
    "a file for a folder": (zipped({"a": b"1", "a/b.txt": b"2"}), "a damaged archive"),
    "long name": (zipped({"x" * 256: b"1"}), "has a bad name, too long"),
    "long path": (tarred({"/".join(["y" * 200] * 21): b"1"}), "has a bad name, too long"),
    "escape in a name": (zipped({"a\x1b[2Jb": b"1"}), r"'a\\x1b\[2Jb' has a bad name, holds a control character"),
    "line end in a name": (tarred({"a\nb": b"1"}), "has a bad name, holds a control character"),
    "web page": (b"<!DOCTYPE html><html>Please log in</html>", "neither a zip nor a tar archive, but a web page"),
    "nothing": (b"", "neither a zip nor a tar archive"),
    "half of gzip": (gzip.compress(bytes(9999))[:20], "neither a zip nor a tar archive"),
    "zip in zip's clothes": (b"PK\x03\x04" + bytes(100), "neither a zip nor a tar archive"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_archive_leaves_nothing(name: str, tmp_path: Path) -> None:
    content, words = BAD[name]
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=words) as fault:
        unpack(tmp_path / "file", tmp_path / "set")
    assert "\n" not in str(fault.value)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written == [tmp_path / "file"] or name == "a file for a folder"


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.unpack, "MAX_MEMBERS", 10)
    for count in (10, 11):
        (tmp_path / "file").write_bytes(zipped({f"{i}.txt": b"1" for i in range(count)}))
        if count == 10:
            unpack(tmp_path / "file", tmp_path / "set")
        else:
            with pytest.raises(UserError, match="more than 10 files"):
                unpack(tmp_path / "file", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("at", [8, 10, 30, 40, -60, -40, -30, -10])
def test_a_flipped_byte_is_an_error_of_one_line_or_none(at: int, tmp_path: Path) -> None:
    """Whatever zlib, lzma and the readers of headers raise, it is told in a line."""
    for number, content in enumerate((big_zip(5000), tarred({"a": bytes(5000)}), lzma.compress(tarred({"a": b"1"})))):
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        (tmp_path / "file").write_bytes(damaged)
        try:
            unpack(tmp_path / "file", tmp_path / f"set{number}")
        except UserError as error:
            assert "\n" not in str(error)


def test_a_zip_whose_member_is_longer_than_it_says(tmp_path: Path) -> None:
    content = bytearray(big_zip(5000))
    at = content.rindex(b"PK\x01\x02") + 24  # the size in the table of contents
    content[at : at + 4] = struct.pack("<I", 10)
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match="a damaged archive"):
        unpack(tmp_path / "file", tmp_path / "set")
    assert sum(path.stat().st_size for path in (tmp_path / "set").rglob("*")) <= 5000
