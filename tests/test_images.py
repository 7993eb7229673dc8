"""Image files of every kind and with every damage: what is said of them without decoding, and what is read."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data.cache import load_image
from data.images import Header, Unreadable, header_notes, image_headers, image_size, read_header

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (40, 60, 3), np.uint8)  # RGB
SMOOTH = np.stack(
    np.broadcast_arrays(np.arange(0, 240, 6)[:, None], np.arange(0, 240, 4)[None], np.full((40, 60), 90)), -1
).astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


JPEG = encoded(NOISE, "JPEG", quality=90)
PNG = encoded(NOISE, "PNG")
WEBP = encoded(NOISE, "WEBP")
FLOATS = encoded(NOISE[..., 0].astype(np.float32), "TIFF")
BMP, TIFF, PPM = (encoded(NOISE, kind) for kind in ("BMP", "TIFF", "PPM"))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    parts, offset = [], 8
    while offset < len(png):
        (length,) = struct.unpack_from(">I", png, offset)
        parts.append((png[offset + 4 : offset + 8], png[offset + 8 : offset + 8 + length]))
        offset += 12 + length
    return parts


def png(*parts: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def png_of(width: int, height: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))


def jpeg_of(width: int, height: int) -> bytes:
    """JPEG whose header claims another size."""
    place = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:place] + struct.pack(">HH", height, width) + JPEG[place + 4 :]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def fault(path: str | os.PathLike[str]) -> tuple[str, str]:
    with image_headers(), pytest.raises(Unreadable) as caught:
        read_header(path)
    return caught.value.kind, str(caught.value)


# ---------------------------------------------------------------- faults

DAMAGED = {
    "empty": ("a.jpg", b"", "image-empty", "an empty file: copy or download"),
    "a page": ("a.jpg", b"\n<!DOCTYPE HTML><html>404", "image-is-text", "an HTML page (a failed download)"),
    "long page": ("a.jpg", b"<html>" + "é".encode() * 5000, "image-is-text", "an HTML page (a failed download)"),
    "xml": ("a.png", b"<?xml version='1.0'?><Error/>", "image-is-text", "SVG or XML"),
    "json": ("a.png", b'{"error": "not found"}', "image-is-text", "JSON (a failed download): download it again"),
    "text": ("a.bmp", b"Not Found\n", "image-is-text", "but text (a failed download)"),
    "lfs": ("a.jpg", b"version https://git-lfs.github.com/spec/v1\noid", "image-not-an-image", "git lfs pull"),
    "zip": ("a.jpg", b"PK\x03\x04" + bytes(50), "image-not-an-image", "a zip archive"),
    "zeros": ("a.jpg", bytes(5000), "image-not-an-image", "zeros (a copy that broke off)"),
    "noise": ("a.jpg", RANDOM.bytes(500), "image-not-an-image", "not an image of a known kind"),
    "gif": ("a.jpg", encoded(NOISE, "GIF"), "image-kind-not-read", "a GIF, which is not read: convert it"),
    "heic": ("a.jpg", b"\0\0\0\x18ftypheic" + bytes(50), "image-kind-not-read", "a HEIC image"),
    "avif": ("a.jpg", b"\0\0\0\x18ftypavif" + bytes(50), "image-kind-not-read", "an AVIF"),
    "jpeg cut in half": ("a.jpg", JPEG[: len(JPEG) // 2], "image-no-end", "without its end marker"),
    "jpeg cut by a byte": ("a.jpg", JPEG[:-1], "image-no-end", "without its end marker"),
    "jpeg cut, then zeros": ("a.jpg", JPEG[: len(JPEG) // 2] + bytes(5000), "image-no-end", "the rest is missing"),
    "jpeg of a thumbnail": ("a.jpg", encoded(NOISE, "JPEG", exif=b"Exif\0\0" + JPEG)[:-2], "image-no-end", "end mark"),
    "progressive cut": ("a.jpg", encoded(NOISE, "JPEG", progressive=True)[:-60], "image-no-end", "without its end"),
    "jpeg header cut": ("a.jpg", JPEG[:100], "image-truncated", "ends within its header"),
    "jpeg of two bytes": ("a.jpg", JPEG[:3], "image-truncated", "ends within its header"),
    "jpeg bomb": ("a.jpg", jpeg_of(30_000, 30_000), "image-bomb", "30000 x 30000 pixels, which"),
    "jpeg too large": ("a.jpg", jpeg_of(65_500, 65_500), "image-too-large", "65500 x 65500 pixels"),
    "jpeg of no height": ("a.jpg", jpeg_of(60, 0), "image-corrupt", "60 x 0 pixels"),
    "png without end": ("a.png", png(*chunks(PNG)[:-1]), "image-truncated", "a PNG without its end"),
    "png cut": ("a.png", PNG[: len(PNG) // 2], "image-truncated", "ends within a chunk"),
    "png of 20 bytes": ("a.png", PNG[:20], "image-truncated", "ends within its header"),
    "png header": ("a.png", PNG[:30] + b"XX" + PNG[32:], "image-crc", "a PNG with a broken header"),
    "png bomb": ("a.png", png_of(30_000, 30_000, zlib.compress(bytes(1000))), "image-bomb", "30000 x 30000"),
    "png too large": ("a.png", png_of(2**31 - 1, 2**31 - 1, b"x"), "image-too-large", "2147483647 x 2147483647"),
    "png too wide": ("a.png", png_of((1 << 20) + 1, 1, bytes(9999)), "image-too-large", "1048577 x 1"),
    "png garbage": ("a.png", PNG[:33] + b"\0\0\0\1\0\0\0\0" + PNG[33:], "image-corrupt", "between its chunks"),
    "webp cut": ("a.webp", WEBP[: len(WEBP) // 2], "image-truncated", "a WebP that ends too soon"),
    "webp header": ("a.webp", WEBP[:12] + b"\0" * (len(WEBP) - 12), "image-corrupt", "a WebP with a broken header"),
    "bmp cut": ("a.bmp", BMP[:-200], "image-truncated", "a BMP that ends too soon"),
    "ppm cut": ("a.ppm", PPM[:-1], "image-truncated", "a PPM that ends too soon"),
    "tiff of floats": ("a.tif", FLOATS, "image-kind-not-read", "a TIFF of 32 bits a sample: at most 16 are read"),
    "tiff cut": ("a.tif", TIFF[:-200], "image-truncated", "a TIFF that ends too soon"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_seen_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    name, data, kind, words = DAMAGED[case]
    path = write(tmp_path / name, data)
    monkeypatch.setattr(Image.Image, "load", None)
    found, text = fault(path)
    assert (found, words in text) == (kind, True), text
    assert ": " in text and "\n" not in text
    with pytest.raises(Unreadable):
        image_size(path)


@pytest.mark.parametrize("case", [case for case in DAMAGED if "bomb" not in case and "too" not in case])
def test_what_is_called_damaged_can_not_be_decoded_whole(tmp_path: Path, case: str) -> None:
    """Or by one reader of two: each forgives other things."""
    data = DAMAGED[case][1]
    whole = []
    if data and cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None:
        whole.append("OpenCV")
    try:
        Image.open(io.BytesIO(data)).load()
        whole.append("Pillow")
    except Exception:
        pass
    # A GIF is sound, and not read; zeros at the end are taken for pixels.
    assert len(whole) < 2 or case in ("gif", "jpeg cut, then zeros")


def test_files_that_are_none(tmp_path: Path) -> None:
    assert fault(tmp_path / "a.jpg")[0] == "image-missing"
    (tmp_path / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    kind, text = fault(tmp_path / "b.jpg")
    assert kind == "image-missing" and "a link to" in text and "gone.jpg, which isn't there" in text
    (tmp_path / "c.jpg").symlink_to(tmp_path / "c.jpg")
    assert fault(tmp_path / "c.jpg")[0] == "image-link-loop"
    (tmp_path / "d.jpg").mkdir()
    assert fault(tmp_path / "d.jpg") == (
        "image-folder",
        "a folder with the name of an image: rename it, or put the image in its place",
    )
    os.mkfifo(tmp_path / "e.jpg")
    assert fault(tmp_path / "e.jpg")[0] in ("image-empty", "image-unreadable")  # and does not wait for ever


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "a.jpg", JPEG)
    monkeypatch.setattr(os, "open", refuse)
    assert fault(path) == ("image-unreadable", "can't be read (Permission denied): check its permissions and the disk")


# ---------------------------------------------------------------- what is sound


@pytest.mark.parametrize("name", ["a b.jpg", "a\nb.jpg", "😀.jpg", b"\xff\xfe.jpg", "-rf.jpg", "%s {x}.jpg"])
def test_odd_names(tmp_path: Path, name: str | bytes) -> None:
    path = os.path.join(tmp_path, os.fsdecode(name))
    with open(path, "wb") as file:
        file.write(JPEG)
    assert image_size(path) == (60, 40) and load_image(path, 60).shape == (40, 60, 3)


SOUND = {
    "zeros after the end": JPEG + bytes(5000),
    "ff before the end": JPEG[:-2] + b"\xff\xff" + JPEG[-2:],
    "a video after the end": JPEG + b"\0\0\0\x18ftypmp42" + RANDOM.bytes(3000).replace(b"\xff", b"\0"),
    "filled markers": JPEG[:2] + b"\xff\xff\xff" + JPEG[2:],
    "a long comment": encoded(NOISE, "JPEG", comment=b"x" * 60_000),
    "a thumbnail": encoded(NOISE, "JPEG", exif=b"Exif\0\0" + JPEG),
    "progressive": encoded(NOISE, "JPEG", progressive=True),
    "progressive, then junk": encoded(NOISE, "JPEG", progressive=True) + b"junk" * 50,
    "restart markers": encoded(NOISE, "JPEG", restart_marker_blocks=1) + b"junk" * 50,
    "junk after a PNG": PNG + b"junk",
    "interlaced, many chunks": png(
        chunks(PNG)[0], *((b"IDAT", chunks(PNG)[1][1][i : i + 7]) for i in range(0, 8000, 7)), (b"IEND", b"")
    ),
    "mpo": encoded(NOISE, "MPO", save_all=True, append_images=[Image.fromarray(SMOOTH)]),
    "webp lossless": encoded(NOISE, "WEBP", lossless=True),
    "webp extended": encoded(NOISE, "WEBP", exif=exif(1)),
    "tiff lzw": encoded(NOISE, "TIFF", compression="tiff_lzw"),
    "tiff tiles of jpeg": encoded(NOISE, "TIFF", compression="jpeg"),
    "plain ppm": b"P3 60 40 255\n" + b"7 " * 7200,
}


@pytest.mark.parametrize("case", SOUND)
def test_what_is_sound_is_left_in_peace(tmp_path: Path, case: str) -> None:
    path = write(tmp_path / "a.img", SOUND[case])
    with image_headers():
        header = read_header(path)
    assert header.size == (60, 40) and not header.animated and not list(header_notes(str(path), header))
    assert cv2.imdecode(np.frombuffer(SOUND[case], np.uint8), cv2.IMREAD_COLOR).shape == (40, 60, 3)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20_000, 3), (3, 20_000), (8, 8), (16_383, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_tiny_long_and_flat_images_are_no_bombs(tmp_path: Path, kind: str, width: int, height: int) -> None:
    if kind == "WEBP":
        width, height = min(width, 16_383), min(height, 16_383)
    path = write(tmp_path / "a.img", encoded(Image.new("RGB", (width, height)), kind))
    assert image_size(path) == (width, height)
    assert max(load_image(path, 64).shape) == 64


def test_the_flattest_large_images_are_no_bombs(tmp_path: Path) -> None:
    for mode in ("1", "L", "RGB"):
        path = write(tmp_path / "a.png", encoded(Image.new(mode, (6000, 6000)), "PNG", compress_level=9))
        assert image_size(path) == (6000, 6000)
    for progressive in (False, True):
        image = Image.new("L", (6000, 6000), 128)
        path = write(tmp_path / "a.jpg", encoded(image, "JPEG", progressive=progressive, optimize=True))
        assert image_size(path) == (6000, 6000)


def test_notes(tmp_path: Path) -> None:
    frames = [Image.fromarray(RANDOM.integers(0, 256, (20, 30, 3), np.uint8)) for _ in range(3)]
    for kind, suffix in (("WEBP", "webp"), ("PNG", "png"), ("TIFF", "tif")):
        data = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **{"lossless": True} if kind == "WEBP" else {}
        )
        path = write(tmp_path / f"a.{suffix}", data)
        header = read_header(path)
        assert header.size == (30, 20)
        assert [kind for kind, _ in header_notes(str(path), header)] == ["image-animated"]
        np.testing.assert_array_equal(load_image(path, 30), np.asarray(frames[0]))
    assert not list(header_notes("a.JPEG", Header("JPEG", 1, 1))) and not list(header_notes("a", Header("PNG", 1, 1)))
    ((kind, text),) = header_notes("a.jpg", Header("PNG", 1, 1))
    assert kind == "image-wrong-extension" and text.startswith("a PNG file named .jpg: read as what it is")
    for name, data in (("a.jpg", PNG), ("a.png", JPEG), ("a.bmp", WEBP)):
        assert load_image(write(tmp_path / name, data), 60).shape == (40, 60, 3)


# ---------------------------------------------------------------- against Pillow


@st.composite
def files(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["JPEG", "JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"]))
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    mode = draw(
        st.sampled_from({"JPEG": ["RGB", "L", "CMYK"], "PNG": ["RGB", "L", "P", "RGBA", "1"]}.get(kind, ["RGB"]))
    )
    options: dict[str, Any] = {}
    if kind != "PPM" and kind != "BMP" and draw(st.booleans()):
        options["exif"] = exif(draw(st.integers(0, 9)))
    if kind == "JPEG":
        options |= {"progressive": draw(st.booleans()), "quality": draw(st.integers(1, 100))}
        options["comment"] = draw(st.binary(max_size=5)) * draw(st.integers(1, 900))
    if kind == "WEBP":
        options["lossless"] = draw(st.booleans())
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (height, width, 3), np.uint8)
    return encoded(Image.fromarray(pixels).convert(mode), kind, **options)


@settings(max_examples=300, deadline=None)
@given(data=files())
def test_sizes_and_pixels_are_those_that_pillow_reads(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.img"
    path.write_bytes(data)
    with Image.open(path) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        upright = ImageOps.exif_transpose(image)
    assert image_size(path) == upright.size
    assert load_image(path, max(upright.size)).shape[1::-1] == upright.size


@settings(max_examples=200, deadline=None)
@given(data=files(), cut=st.integers(1, 4000))
def test_no_cut_makes_another_error_than_ours(tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.img"
    path.write_bytes(data[: max(len(data) - cut, 0)])
    try:
        with image_headers():
            read_header(path)
    except Unreadable as error:
        assert error.kind.startswith("image-") and "\n" not in str(error)


@settings(max_examples=200, deadline=None)
@given(data=files(), place=st.floats(0, 1, exclude_max=True), junk=st.binary(min_size=1, max_size=12))
def test_no_damage_makes_another_error_than_ours(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, place: float, junk: bytes
) -> None:
    path, begin = tmp_path_factory.getbasetemp() / "junk.img", int(place * min(len(data), 700))
    path.write_bytes(data[:begin] + junk + data[begin + len(junk) :])
    try:
        with image_headers():
            width, height = image_size(path)
        assert width > 0 < height
    except Unreadable as error:
        assert error.kind.startswith("image-") and "\n" not in str(error)


# ---------------------------------------------------------------- EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_as_viewers_turn_them(tmp_path: Path, kind: str, orientation: int) -> None:
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(SMOOTH, kind, exif=exif(orientation), lossless=True, **options)
    path = write(tmp_path / "a.img", data)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert image_size(path) == expected.shape[1::-1]
    loaded = load_image(path, 60)
    assert loaded.shape == expected.shape and np.abs(loaded.astype(int) - expected).max() <= 3


def tiff_block(*entries: tuple[int, int, int, int], order: str = ">", magic: int = 42) -> bytes:
    """A TIFF block of (tag, type, count, value), each value two bytes at the front of its field."""
    block = (b"MM" if order == ">" else b"II") + struct.pack(order + "HIH", magic, 8, len(entries))
    return block + b"".join(struct.pack(order + "HHIHH", *entry, 0) for entry in entries) + bytes(4)


def with_exif(*blocks: bytes) -> bytes:
    segments = [b"Exif\0\0" + block for block in blocks]
    return JPEG[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments) + JPEG[2:]


TURN = (0x0112, 3, 1, 6)
EXIF = {
    "big-endian": (with_exif(tiff_block(TURN)), True),
    "little-endian": (with_exif(tiff_block(TURN, order="<")), True),
    "the first of two": (with_exif(tiff_block(TURN), tiff_block((0x0112, 3, 1, 1))), True),
    "the first of two, upright": (with_exif(tiff_block((0x0112, 3, 1, 1)), tiff_block(TURN)), False),
    "no TIFF, then one": (with_exif(b"garbage!", tiff_block(TURN)), True),
    "twice in one": (with_exif(tiff_block(TURN, (0x0112, 3, 1, 1))), True),
    "after a broken tag": (with_exif(tiff_block((0x010F, 2, 9999, 9999), TURN)), True),
    "zero": (with_exif(tiff_block((0x0112, 3, 1, 0))), False),
    "nine": (with_exif(tiff_block((0x0112, 3, 1, 9))), False),
    "a text": (with_exif(tiff_block((0x0112, 2, 1, 6))), False),
    "two values": (with_exif(tiff_block((0x0112, 3, 2, 6))), False),
    "another magic": (with_exif(tiff_block(TURN, magic=43)), False),
    "cut": (with_exif(tiff_block(TURN)[:15]), False),
    "offset beyond": (with_exif(b"MM\0*\xff\xff\xff\xff" + tiff_block(TURN)[8:]), False),
    "empty": (with_exif(b""), False),
    "more tags than there are": (with_exif(tiff_block(TURN)[:8] + b"\0\x99" + tiff_block(TURN)[10:]), True),
    "in XMP only": (
        with_exif().replace(JPEG[:2], JPEG[:2] + b"\xff\xe1\0\x20http://ns.adobe.com/xap/1.0/\0x", 1),
        False,
    ),
    "in a PNG after its pixels": (png(*chunks(PNG)[:-1], (b"eXIf", tiff_block(TURN)), (b"IEND", b"")), True),
    "in a PNG, cut": (png(chunks(PNG)[0], (b"eXIf", b"MM"), *chunks(PNG)[1:]), False),
}


@pytest.mark.parametrize("case", EXIF)
def test_pixels_turn_as_the_size_turns_whatever_is_in_the_exif_block(tmp_path: Path, case: str) -> None:
    data, turned = EXIF[case]
    path = write(tmp_path / "a.img", data)
    size = image_size(path)
    assert size == ((40, 60) if turned else (60, 40))
    loaded = load_image(path, 60)
    assert loaded.shape[1::-1] == size
    plain = load_image(write(tmp_path / "b.img", PNG if case.startswith("in a PNG") else JPEG), 60)
    np.testing.assert_array_equal(loaded, np.rot90(plain, -1) if turned else plain)  # 6: a quarter turn clockwise


# ---------------------------------------------------------------- pixels of unusual kinds


def test_cmyk_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    pixels = np.concatenate([SMOOTH, np.full((40, 60, 1), 30, np.uint8)], -1)
    data = encoded(Image.fromarray(pixels, "CMYK"), "JPEG", quality=98)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.ptp(expected, axis=(0, 1)).min() >= 0 and expected.std() > 20
    loaded = load_image(write(tmp_path / "a.jpg", data), 60)
    assert np.abs(loaded - expected).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_become_8(tmp_path: Path, suffix: str) -> None:
    deep = SMOOTH.astype(np.uint16) * 257 + 20  # 257: full scale to full scale
    for pixels in (deep[..., ::-1], deep[..., 0]):
        data = cv2.imencode(f".{suffix}", pixels)[1].tobytes()
        path = write(tmp_path / f"a.{suffix}", data)
        assert image_size(path) == (60, 40)
        expected = SMOOTH if pixels.ndim == 3 else np.repeat(SMOOTH[..., :1], 3, -1)
        assert np.abs(load_image(path, 60).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP", "JPEG"])
def test_grey_palette_and_alpha(tmp_path: Path, mode: str, kind: str) -> None:
    image = Image.fromarray(SMOOTH).convert(mode)
    if mode in ("RGBA", "LA"):  # how much of a picture is seen is no part of it
        image.putalpha(Image.fromarray(np.tile(np.arange(60, dtype=np.uint8) + 1, (40, 1))))
    try:
        data = encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    except (OSError, ValueError):
        pytest.skip("no such file")
    expected = np.asarray(image.convert("RGB")).astype(int)
    if kind == "JPEG":
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    if (kind, mode) == ("TIFF", "RGBA"):  # libtiff puts the picture on black
        expected = expected * np.asarray(image)[..., 3:] / 255
    loaded = load_image(write(tmp_path / "a.img", data), 60)
    assert loaded.shape == (40, 60, 3) and np.abs(loaded - expected).max() <= 1
