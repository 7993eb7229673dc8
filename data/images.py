"""Image files as they lie on the disk: which kinds are read, and what header and structure say without decoding.

JPEG, PNG and WebP are walked here, from a few small reads of the file; Pillow reads the headers of the other kinds, and
of JPEGs that don't begin in the usual way. Sources: ITU T.81 (JPEG), CIPA DC-008 (EXIF), ISO 15948 (PNG), RFC 9649
(WebP), RFC 1951 (deflate).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

# What both Pillow (headers) and OpenCV (pixels) read, and what a user may take for such a file.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
OTHER_IMAGE_SUFFIXES = (
    ".gif",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".dng",
    ".cr2",
    ".nef",
    ".psd",
    ".svg",
    ".exr",
    ".hdr",
)
SUFFIX_KINDS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **{".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".ppm": "PPM", ".pgm": "PPM"},
}
PILLOW_FORMATS = ("JPEG", "BMP", "TIFF", "PPM")  # Pillow takes MPO for a JPEG
MAX_PIXELS = 1 << 30  # OpenCV decodes no larger image
MAX_SIDE = 1 << 20
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
HEAD, TAIL = 2048, 32  # bytes read of every image; most need no more
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe is not waited for

ReadAt = Callable[[int, int], bytes]  # (offset, count) -> the bytes there, fewer at the file's end

# The first bytes of files that are taken for images, with what they are.
OTHER_KINDS = (
    (b"GIF8", "a GIF"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"8BPS", "a Photoshop image"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image"),
)
NO_IMAGES = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a pointer of Git LFS (fetch the images with `git lfs pull`)"),
)


class Unreadable(Exception):
    """A file whose content can't be had; the image is left out. kind: as in a `Fault`."""

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind


class Irregular(Exception):
    """A JPEG that doesn't begin as JPEGs do: left to Pillow."""


class Header(NamedTuple):
    """An image's kind (as Pillow calls it), size as stored, EXIF orientation (1: upright), has it several frames?"""

    kind: str
    width: int
    height: int
    orientation: int = 1
    animated: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright image."""
        return (self.height, self.width) if self.orientation in TURNED else (self.width, self.height)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (width, height) of the upright image. Raises `Unreadable`, see `read_header`."""
    return read_header(path).size


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read an image's header and check its structure, without decoding it.

    Raises `Unreadable` where the file can't be read, is no image of a kind that is read, is cut short, or is too large.
    """
    try:
        file = os.open(path, OPEN_FLAGS)
    except OSError as error:
        raise _unopened(path, error) from None
    try:
        head = os.read(file, HEAD)
        size = os.lseek(file, 0, os.SEEK_END) if len(head) == HEAD else len(head)

        def at(offset: int, count: int) -> bytes:
            if offset + count <= len(head):
                return head[offset : offset + count]
            os.lseek(file, offset, os.SEEK_SET)
            return os.read(file, count)

        return _read_header(path, head, size, at)
    except OSError as error:
        raise _unopened(path, error) from None
    finally:
        os.close(file)


def header_notes(path: str, header: Header) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of what is odd about an image that is read all the same."""
    suffix = os.path.splitext(path)[1].lower()
    if SUFFIX_KINDS.get(suffix, header.kind) != header.kind:
        yield "image-wrong-extension", f"a {header.kind} file named {suffix}: read as what it is; rename it if you like"
    if header.animated:
        yield "image-animated", "an image of several frames: the first is read; store each frame as a file to use all"


def known_header(data: np.ndarray) -> Header | None:
    """As `read_header` of a whole JPEG, PNG or WebP in memory (uint8 [N]); None of another kind, or where it fails."""
    if data[:2].tobytes() not in (b"\xff\xd8", b"\x89P", b"RI"):
        return None
    head = data[:HEAD].tobytes()

    def at(offset: int, count: int) -> bytes:
        end = offset + count
        return head[offset:end] if end <= len(head) else data[offset:end].tobytes()

    try:
        try:
            return _walk_known(head, data.size, at)
        except (Irregular, struct.error):
            return _pillow_header(io.BytesIO(data.tobytes()), head, data.size, at)
    except Unreadable:
        return None


def _read_header(path: str | os.PathLike[str], head: bytes, size: int, at: ReadAt) -> Header:
    if not size:
        raise Unreadable("an empty file: copy or download it again", "image-empty")
    try:
        header = _walk_known(head, size, at)
    except (Irregular, struct.error):
        header = None
    if header is None:
        header = _pillow_header(path, head, size, at)
    _check_pixels(header.width, header.height)
    return header


def _walk_known(head: bytes, size: int, at: ReadAt) -> Header | None:
    if head[:3] == b"\xff\xd8\xff":
        return _jpeg(size, at)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(size, at)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp(size, at)
    return None


def _check_pixels(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise Unreadable(f"the header says {width} x {height} pixels: copy or export the image again", "image-corrupt")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise Unreadable(
            f"{width} x {height} pixels are more than can be decoded: cut the image into tiles or make it smaller",
            "image-too-large",
        )


def _check_claim(width: int, height: int, size: int, least: int) -> None:
    """`least`: bytes that the smallest file of that many pixels has."""
    if size >= least:
        return
    _check_pixels(width, height)
    raise Unreadable(
        f"the header says {width} x {height} pixels, which {size} bytes can't hold: remove or replace the file",
        "image-bomb",
    )


def _cut(what: str, kind: str = "image-truncated") -> Unreadable:
    return Unreadable(f"{what}: copy or download the file again", kind)


# ------------------------------------------------------------------------------------------------ JPEG

NO_FRAME = (0xC4, 0xC8, 0xCC)  # of 0xC0 to 0xCF, which are otherwise frame headers
HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)


def _jpeg(size: int, at: ReadAt) -> Header:
    """Walk the segments up to the first scan, then look for the end marker."""
    offset, frame, orientation = 2, None, 0
    while True:
        begin = at(offset, 20)
        if len(begin) < 4:
            raise _cut("a JPEG that ends within its header")
        if begin[0] != 0xFF or begin[1] in (0x00, 0x01, 0xFF) or 0xD0 <= begin[1] <= 0xD9:
            raise Irregular
        marker, length = begin[1], begin[2] << 8 | begin[3]
        if marker == 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in NO_FRAME:
            if frame or len(begin) < 9:
                raise Irregular
            height, width = struct.unpack_from(">HH", begin, 5)
            frame = marker, width, height
        elif marker == 0xE1 and not orientation and begin[4:10] == b"Exif\0\0":
            orientation = exif_orientation(at(offset + 10, length - 8))
        offset += 2 + length
    if frame is None:
        raise Irregular
    marker, width, height = frame
    if marker in HUFFMAN_FRAMES:  # a block of 8 x 8 pixels has at least one code of at least one bit in its first scan
        _check_claim(width, height, size, width * height // 512)
    _check_jpeg_end(size, offset, at)
    return Header("JPEG", width, height, orientation or 1)


def _check_jpeg_end(size: int, scan: int, at: ReadAt) -> None:
    begin = max(scan, size - TAIL)
    if at(begin, TAIL).rstrip(b"\0\xff\r\n ").endswith(b"\xff\xd9"):
        return
    data = at(0, size)
    while 0 <= scan < size:  # more than a little follows the end marker, or it is not there
        scan = data.find(b"\xff", scan + 1)
        following = data[scan + 1 : scan + 4]
        if scan < 0 or not following:
            break
        if following[0] == 0xD9:
            return
        if following[0] not in (0x00, 0x01, 0xFF) and not 0xD0 <= following[0] <= 0xD7 and len(following) == 3:
            scan += (following[1] << 8 | following[2]) + 1  # a segment between two scans
    raise _cut("a JPEG without its end marker, the rest is missing", "image-no-end")


def exif_orientation(block: bytes) -> int:
    """Read the orientation out of a TIFF block; 1 where there is none, or none that is sound; 0 if it is no TIFF."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 0
    try:
        (first,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", block, entry)
            if tag == ExifTags.Base.Orientation:
                form = {3: "H", 4: "I"}.get(kind)
                value = struct.unpack_from(order + form, block, entry + 8)[0] if form and values == 1 else 1
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


# ------------------------------------------------------------------------------------------------ PNG

PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def _png(size: int, at: ReadAt) -> Header:
    """Walk the chunks from IHDR to IEND."""
    begin = at(8, 25)
    if len(begin) < 25:
        raise _cut("a PNG that ends within its header")
    if begin[4:8] != b"IHDR" or zlib.crc32(begin[4:21]).to_bytes(4, "big") != begin[21:]:
        raise _cut("a PNG with a broken header", "image-crc")
    width, height, depth, colour = struct.unpack_from(">IIBB", begin, 8)
    offset, data, orientation, animated = 33, 0, 1, False
    while True:
        chunk = at(offset, 8)
        if len(chunk) < 8:
            raise _cut("a PNG without its end, the rest is missing")
        length, name = int.from_bytes(chunk[:4], "big"), chunk[4:]
        if name == b"IEND":
            break
        if not name.isalpha():
            raise _cut("a PNG with something between its chunks that is none", "image-corrupt")
        if name == b"IDAT":
            data += length
        elif name == b"eXIf":
            orientation = exif_orientation(at(offset + 8, min(length, 65536))) or 1
        animated |= name == b"acTL"
        offset += 12 + length
        if offset > size:
            raise _cut("a PNG that ends within a chunk, the rest is missing")
    bits = depth * PNG_CHANNELS.get(colour, 1)
    _check_claim(width, height, data, width * height * bits // (8 * 1032))  # deflate makes 1032 bytes of one at most
    return Header("PNG", width, height, orientation, animated)


# ------------------------------------------------------------------------------------------------ WebP


def _webp(size: int, at: ReadAt) -> Header:
    """Walk the chunks of the RIFF container; the first says the size."""
    end = 8 + int.from_bytes(at(4, 4), "little")
    if end > size:
        raise _cut("a WebP that ends too soon, the rest is missing")
    begin = at(12, 18)
    width, height = _webp_size(begin)
    orientation, offset = 1, 12
    extended = begin[:4] == b"VP8X"
    while extended and begin[8] & 0x08 and offset + 8 <= end:
        name, length = struct.unpack("<4sI", at(offset, 8))
        if name == b"EXIF":
            block = at(offset + 8, min(length, 65536))
            orientation = exif_orientation(block.removeprefix(b"Exif\0\0")) or 1
            break
        offset += 8 + length + length % 2
    return Header("WEBP", width, height, orientation, extended and bool(begin[8] & 0x02))


def _webp_size(chunk: bytes) -> tuple[int, int]:
    """(width, height) out of the first 18 bytes of the first chunk."""
    if len(chunk) == 18:
        if chunk[:4] == b"VP8X":
            return tuple(int.from_bytes(chunk[i : i + 3], "little") + 1 for i in (12, 15))
        if chunk[:4] == b"VP8L" and chunk[8] == 0x2F:
            bits = int.from_bytes(chunk[9:13], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if chunk[:4] == b"VP8 " and chunk[11:14] == b"\x9d\x01\x2a":
            return tuple(side & 0x3FFF for side in struct.unpack_from("<HH", chunk, 14))
    raise _cut("a WebP with a broken header", "image-corrupt")


# ------------------------------------------------------------------------------------------------ the other kinds


def _pillow_header(file: str | os.PathLike[str] | io.BytesIO, head: bytes, size: int, at: ReadAt) -> Header:
    try:
        with Image.open(file, formats=PILLOW_FORMATS) as image:
            if image.format == "TIFF":  # Pillow's versions differ in whether `size` is turned already
                width, height, orientation = (image.tag_v2.get(tag, 1) for tag in (256, 257, 274))
                if (bits := max(image.tag_v2.get(258, (1,)))) > 16:
                    text = f"a TIFF of {bits} bits a sample: at most 16 are read; save it with 8 or 16"
                    raise Unreadable(text, "image-kind-not-read")
            else:
                (width, height), orientation = image.size, _pillow_orientation(image.info.get("exif"))
            header = Header("JPEG" if image.format == "MPO" else str(image.format), width, height, orientation)
            _check_pixels(width, height)
            if header.kind == "JPEG":
                _check_jpeg_end(size, max(head.find(b"\xff\xda"), 0), at)
            elif _expected_size(image) > size:
                raise _cut(f"a {header.kind} that ends too soon, the rest is missing")
            if header.kind == "TIFF" and _has_second_page(image):
                header = Header(header.kind, width, height, orientation, animated=True)
    except Unreadable:
        raise
    except Image.UnidentifiedImageError:
        raise _no_image(head) from None
    except Exception as error:  # Pillow's readers raise whatever a broken header makes them raise
        raise _cut(f"the header can't be read ({error})", "image-corrupt") from None
    return header


def _has_second_page(image: Image.Image) -> bool:
    """Whatever is wrong with it is no fault of the first. The image is of no use afterwards."""
    try:
        image.seek(1)
    except Exception:
        return False
    return True


def _pillow_orientation(exif: bytes | None) -> int:
    return (exif_orientation(exif.removeprefix(b"Exif\0\0")) or 1) if exif else 1


def _expected_size(image: Image.Image) -> int:
    """The bytes that a BMP, TIFF or PPM must have at least, where its header says so; else 0."""
    if image.format == "TIFF":
        offsets, counts = ((273, 279), (324, 325))[324 in image.tag_v2]
        parts = zip(image.tag_v2.get(offsets, ()), image.tag_v2.get(counts, ()), strict=False)
        return max((offset + count for offset, count in parts), default=0)
    (codec, _, offset, arguments), (width, height) = image.tile[0], image.size
    if codec == "raw" and image.format == "BMP":
        row = arguments[1]  # padded to four bytes; some writers leave out the padding of the last
        return offset + row * height - 3
    if codec in ("raw", "ppm"):
        return offset + width * height * len(image.getbands())
    return 0


def _no_image(head: bytes) -> Unreadable:
    """What a file is that is no image of a kind that is read."""
    for begin, what in OTHER_KINDS:
        if head.startswith(begin):
            return _other_kind(what)
    if head[4:8] == b"ftyp":
        return _other_kind("an AVIF" if head[8:12] in (b"avif", b"avis") else "a HEIC image or a video")
    for begin, what in NO_IMAGES:
        if head.startswith(begin):
            return Unreadable(f"not an image but {what}: replace or remove it", "image-not-an-image")
    if not head.strip(b"\0"):
        return Unreadable("not an image but zeros (a copy that broke off): copy it again", "image-not-an-image")
    what = _text_kind(head)
    if what:
        return Unreadable(f"not an image but {what} (a failed download): download it again", "image-is-text")
    return Unreadable("not an image of a known kind: replace or remove it", "image-not-an-image")


def _other_kind(what: str) -> Unreadable:
    return Unreadable(f"{what}, which is not read: convert it to JPEG or PNG", "image-kind-not-read")


def _text_kind(head: bytes) -> str:
    """Call a text by its kind; an empty string for what is no text."""
    try:
        text = head.decode("utf-8-sig", "strict" if len(head) < HEAD else "ignore").strip().lower()
    except UnicodeDecodeError:
        return ""
    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return ""
    if text.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "an HTML page"
    if text.startswith("<"):
        return "SVG or XML"
    return "JSON" if text.startswith(("{", "[")) else "text"


def _unopened(path: str | os.PathLike[str], error: OSError) -> Unreadable:
    if error.errno == errno.ELOOP:
        return Unreadable("a link that leads to itself: remove it", "image-link-loop")
    if isinstance(error, FileNotFoundError):
        if os.path.islink(path):
            target = os.readlink(path)
            return Unreadable(f"a link to {target}, which isn't there: mend or remove the link", "image-missing")
        return Unreadable("no such image: copy it there or take it out of the labels", "image-missing")
    if isinstance(error, IsADirectoryError):
        return Unreadable(
            "a folder with the name of an image: rename it, or put the image in its place", "image-folder"
        )
    return Unreadable(
        f"can't be read ({error.strerror or error}): check its permissions and the disk", "image-unreadable"
    )


@contextlib.contextmanager
def image_headers() -> Iterator[Any]:
    """Pillow without its size limit, which guards against decoding (we don't), and without its warnings."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
