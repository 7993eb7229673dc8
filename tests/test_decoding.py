"""Damage that only decoding shows, and nothing said of sound images; what was found is remembered."""

from __future__ import annotations

import os
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.decoding
from data.cache import cache_root
from data.decoding import decode_faults
from data.faults import Fault
from data.images import image_size
from tests.test_images import JPEG, NOISE, PNG, SOUND, chunks, encoded, png, write
from utils.errors import UserError

PROGRESSIVE = encoded(NOISE, "JPEG", progressive=True)
FLAT = encoded(Image.new("RGB", (640, 640), (90, 20, 30)), "JPEG")
MIDDLE = len(JPEG) // 2
PIXELS = zlib.decompress(b"".join(content for name, content in chunks(PNG) if name == b"IDAT"))

HIDDEN = {  # what the structure doesn't show
    "cut.jpg": JPEG[:MIDDLE] + b"\xff\xd9",
    "progressive.jpg": PROGRESSIVE[: len(PROGRESSIVE) // 2] + b"\xff\xd9",
    "progressive-late.jpg": PROGRESSIVE[: -len(PROGRESSIVE) // 20] + b"\xff\xd9",
    "flat.jpg": FLAT[: -len(FLAT) // 8] + b"\xff\xd9",
    "no-scan.jpg": JPEG[: JPEG.index(b"\xff\xda") + 14] + b"\xff\xd9",
    "zeros.jpg": JPEG[:MIDDLE] + bytes(200) + JPEG[MIDDLE + 200 :],
    "flipped.jpg": JPEG[:MIDDLE] + bytes([JPEG[MIDDLE] ^ 0x55]) + JPEG[MIDDLE + 1 :],
    "short.png": png(chunks(PNG)[0], (b"IDAT", zlib.compress(PIXELS[: len(PIXELS) // 2])), (b"IEND", b"")),
    "cut.png": png(chunks(PNG)[0], (b"IDAT", chunks(PNG)[1][1][:4000]), (b"IEND", b"")),
    "crc.png": PNG[:3000] + bytes([PNG[3000] ^ 1]) + PNG[3001:],
    "sum.png": PNG[:-17] + bytes([PNG[-17] ^ 1]) + PNG[-16:],
}


@pytest.fixture(autouse=True)
def empty_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "cache"))


def test_hidden_damage_is_found_in_order_and_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = []
    for i, (name, content) in enumerate(HIDDEN.items()):
        paths += [str(write(tmp_path / name, content)), str(write(tmp_path / f"sound{i}.jpg", JPEG))]
        assert image_size(paths[-2]) in ((60, 40), (640, 640))  # sound, as far as the structure goes
    found = list(decode_faults(paths, processes=2))
    assert [path for path, _ in found] == paths
    for path, fault in found:
        if "sound" in path:
            assert fault is None
        else:
            assert fault and (fault.file, fault.kind, fault.stops, fault.where) == (path, "image-corrupt", True, "")
            assert ": copy" in fault.text and "\n" not in fault.text
    assert "premature end of data segment" in str(found[0][1])
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_faults_of_the_structure_are_named_as_ever(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", JPEG[:-2])
    write(tmp_path / "b.jpg", b"<html>")
    paths = [str(tmp_path / f"{name}.jpg") for name in "abc"]
    assert [fault.kind for _, fault in decode_faults(paths) if fault] == [
        "image-no-end",
        "image-is-text",
        "image-missing",
    ]


def test_nothing_is_said_of_sound_images(bccd: Path, tmp_path: Path) -> None:
    paths = sorted(str(path) for path in (bccd / "JPEGImages").iterdir())
    paths += [str(write(tmp_path / f"{i}.img", content)) for i, content in enumerate(SOUND.values())]
    for i, colour in enumerate([0, 128, 255, (90, 20, 30), (255, 0, 0)]):
        image = Image.new("RGB", (123, 77), colour)
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            paths.append(str(write(tmp_path / f"flat{i}.{kind}", encoded(image, kind))))
    paths.append(str(write(tmp_path / "padded.jpg", JPEG[:-2] + bytes(9) + JPEG[-2:])))  # some cameras do
    profile = encoded(NOISE, "PNG", icc_profile=b"not a colour profile")
    paths.append(str(write(tmp_path / "profile.png", profile)))
    assert len(paths) > 390
    assert [fault for _, fault in decode_faults(paths) if fault] == []


def count_decodings(monkeypatch: pytest.MonkeyPatch, paths: list[str]) -> tuple[int, list[Fault | None]]:
    asked: list[str] = []
    real = data.decoding.in_processes
    with monkeypatch.context() as patch:
        patch.setattr(data.decoding, "in_processes", lambda make, items, n: asked.extend(items) or real(make, items, n))
        found = [fault for _, fault in decode_faults(paths)]
    return len(asked), found


def test_sound_images_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be decoded is tried each time: perhaps the memory was short."""
    paths = [str(write(tmp_path / "a.jpg", JPEG)), str(write(tmp_path / "b.jpg", HIDDEN["cut.jpg"]))]
    number, first = count_decodings(monkeypatch, paths)
    assert number == 2 and first[0] is None and first[1] is not None
    assert count_decodings(monkeypatch, paths) == (1, first)
    assert count_decodings(monkeypatch, paths[::-1]) == (1, first[::-1])
    stat = os.stat(paths[1])
    write(tmp_path / "b.jpg", JPEG)
    assert count_decodings(monkeypatch, paths) == (1, [None, None])
    assert count_decodings(monkeypatch, paths) == (0, [None, None])
    write(tmp_path / "b.jpg", HIDDEN["cut.jpg"])
    os.utime(paths[1], ns=(stat.st_mtime_ns, stat.st_mtime_ns))  # as an archive that says the same time of all
    assert count_decodings(monkeypatch, paths) == (1, first)
    write(tmp_path / "c.jpg", JPEG)
    assert count_decodings(monkeypatch, [*paths, str(tmp_path / "c.jpg")]) == (2, [*first, None])


@pytest.mark.parametrize("keep", [0, 5, 33, 34, 35])
def test_a_torn_memory_calls_nothing_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    """However the last line was cut off."""
    paths = [str(write(tmp_path / "b.jpg", JPEG))]
    assert count_decodings(monkeypatch, paths) == (1, [None])
    file = cache_root() / "decoded.txt"
    content = file.read_bytes()
    assert len(content) == 37  # a new line, 32 digits, " ok", a new line
    file.write_bytes(content[: 1 + keep])
    assert count_decodings(monkeypatch, paths) == (1, [None])
    assert count_decodings(monkeypatch, paths) == (0, [None])


def test_without_a_place_to_remember(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "file"))
    paths = [str(write(tmp_path / "a.jpg", JPEG))]
    assert [count_decodings(monkeypatch, paths) for _ in range(2)] == [(1, [None])] * 2


def test_an_image_that_ends_the_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(write(tmp_path / f"{name}.jpg", JPEG)) for name in "abc"]

    def decode(data: np.ndarray) -> np.ndarray:
        if len(data) > len(JPEG):
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when the memory is full
        return NOISE

    write(tmp_path / "b.jpg", JPEG + b"\0")
    monkeypatch.setattr(data.decoding, "decode", decode)
    with pytest.raises(UserError, match=r"b.jpg: decoding it ended the process"):
        list(decode_faults(paths, processes=1))
