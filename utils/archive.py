"""A checkpoint's archive: its seal, and the check that a file holds nothing but tensors and plain values.

`torch.load(weights_only=True)` runs no code of the file, but believes what the file says of itself: it takes a storage
for as long as its pickle claims, whatever was stored, unpacks what is packed, and checks no CRC. So it is given only
what passed here: an archive of stored entries that do not overlap, whose pickle was followed step by step, with every
size compared. Nothing here builds an object, or takes more memory than some times the pickle.
"""

from __future__ import annotations

import hashlib
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import RawIOBase
from typing import IO, Any, BinaryIO

import torch
from torch import Tensor

MAX_ENTRIES = 30_000  # of an archive; the largest model with Adam's state has 2,100
MAX_OPERATIONS = 300_000  # of a pickle, and values in what it makes; the largest has 70,000
MAX_PICKLE = 16 << 20  # bytes
MAX_DEPTH = 32  # of values within values
MAX_DIMENSIONS = 16  # of a tensor
MAX_NOTE = 256  # bytes of an entry that is neither the pickle nor a storage: versions, byte order

SEAL = b"sha256:"
SEAL_SIZE = len(SEAL) + 64
END_SIZE, LOCATOR_SIZE, END64_SIZE, LOCAL_SIZE = 22, 20, 56, 30  # of the zip records that close and open
MSDOS_FOLDER = 0x10  # bit of a zip entry's external attributes
HARMLESS_FLAGS = 0x0808  # sizes after the data, names in UTF-8
ENTRY = re.compile(r"(?!\.\.?/)[^/\\\x00-\x1f]+/(data\.pkl|data/\d+|\.?\w+|\.data/\w+)", re.ASCII)

STORAGES = {
    **{"torch FloatStorage": torch.float32, "torch DoubleStorage": torch.float64, "torch HalfStorage": torch.float16},
    **{"torch BFloat16Storage": torch.bfloat16, "torch LongStorage": torch.int64, "torch IntStorage": torch.int32},
    **{"torch ShortStorage": torch.int16, "torch CharStorage": torch.int8, "torch ByteStorage": torch.uint8},
    "torch BoolStorage": torch.bool,
}
DICT, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
PLAIN = (str, int, float, bool, type(None))


class Seal:
    """A file to write an archive to, hashed on the way; `close` appends the SHA-256 as the archive's comment.

    One hash over the whole file sees what CRCs don't: names, sizes, flags, padding.
    """

    def __init__(self, file: IO[bytes] | RawIOBase) -> None:
        self._file, self._hash, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        """Part of what torch asks of a file; whoever opened this one flushes it."""

    def close(self) -> int:
        """Write the seal over the archive's last field, the length of an empty comment; return the file's size."""
        self._file.seek(-2, 2)
        self._file.write(struct.pack("<H", SEAL_SIZE) + SEAL + self._hash.hexdigest().encode())
        return self.size + SEAL_SIZE


def check_archive(file: BinaryIO) -> None:
    """Check that a file is an archive as `torch.save` writes it, whole, of tensors and plain values only.

    An archive without a seal (one that somebody saved again with `torch.save`) is held against its CRCs.

    Raises:
        Exception: of whatever kind, if it is anything else.
    """
    sealed = _check_seal(file)
    directory = _check_end(file, SEAL_SIZE if sealed else 0)
    with zipfile.ZipFile(file) as archive:
        sizes = _check_entries(archive, file, directory)
        if not sealed and (damaged := archive.testzip()) is not None:
            raise ValueError(f"checksum of {damaged} does not match")
        pickle = archive.read(next(entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")))
    reader = _Reader(sizes)
    for value in leaves((reader.read(pickle), reader.attributes)):
        if type(value) not in (*PLAIN, _View):
            raise ValueError("it holds something that is neither a tensor nor a plain value")


def check_savable(content: Any) -> None:
    """Check that `check_archive` will pass what is about to be saved.

    Raises:
        ValueError: it holds something else than dense tensors without gradient, and plain values.
    """
    for value in leaves(content):
        if type(value) is Tensor:
            dense = value.layout is torch.strided and value.dtype in STORAGES.values() and not value.requires_grad
            if not dense:
                raise ValueError(f"a {value.dtype} tensor, {value.layout}, requires_grad {value.requires_grad}")
        elif type(value) not in PLAIN:
            raise ValueError(f"a {type(value).__name__} is neither a tensor nor a plain value: {str(value)[:80]}")


def leaves(content: Any) -> Iterator[Any]:
    """Yield what the dicts (keys too), lists and tuples of `content` hold.

    Raises:
        ValueError: they are nested too deeply, hold too much (a list that holds another twice counts it twice), or
            hold a number of more than 64 bits.
    """
    waiting, count = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH or count + len(waiting) > MAX_OPERATIONS:
            raise ValueError("values within values: too deep, or too many")
        if type(value) in (dict, OrderedDict):
            if not all(type(key) in (str, int) for key in value):
                raise ValueError("a key that is neither text nor a whole number")
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif type(value) in (list, tuple):
            waiting += [(part, depth + 1) for part in value]
        elif type(value) is int and not -(1 << 63) <= value < 1 << 64:
            raise ValueError("a number of more than 64 bits")
        else:
            if type(value) is str:
                value.encode()  # half a character could not be printed
            yield value


def _check_seal(file: BinaryIO) -> bool:
    """Return whether the file has a seal, which is then right; ValueError if it is broken."""
    size = file.seek(0, 2)
    file.seek(max(size - SEAL_SIZE - 2, 0))
    tail = file.read()
    if not tail[2:].startswith(SEAL):
        return False
    digest, left = hashlib.sha256(), size - len(tail)
    file.seek(0)
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        digest.update(part)
        left -= len(part)
    digest.update(b"\0\0")  # the comment's length, as it was when the archive was hashed
    if tail != struct.pack("<H", SEAL_SIZE) + SEAL + digest.hexdigest().encode():
        raise ValueError("its SHA-256 does not match")
    return True


def _check_end(file: BinaryIO, comment: int) -> int:
    """Return where the table of contents begins, which must end where the closing records begin.

    Readers of zip files differ in where they look for these records; here there is one place for each.
    """
    size = file.seek(0, 2) - comment
    start = size - END_SIZE - LOCATOR_SIZE - END64_SIZE
    if start < 0:
        raise ValueError("too short")
    file.seek(start)
    records = file.read(size - start)
    mark, _, _, _, _, _, _, entries, length, offset = struct.unpack("<4sQ2H2L4Q", records[:END64_SIZE])
    locator, _, end64, _ = struct.unpack("<4sLQL", records[END64_SIZE:-END_SIZE])
    end, length_of_comment = struct.unpack("<4s16xH", records[-END_SIZE:])
    if (mark, locator, end) != (b"PK\x06\x06", b"PK\x06\x07", b"PK\x05\x06") or length_of_comment != comment:
        raise ValueError("it does not end as an archive of torch.save does")
    if end64 != start or offset + length != start:
        raise ValueError("the table of contents is not where it should be")
    if entries > MAX_ENTRIES or length > MAX_ENTRIES * 256:
        raise ValueError(f"{entries} entries are too many")
    return offset


def _check_entries(archive: zipfile.ZipFile, file: BinaryIO, directory: int) -> dict[str, int]:
    """Return the sizes of the storages by their keys."""
    sizes: dict[str, int] = {}
    end, names, roots = 0, set(), set()
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        name = entry.filename
        # Torch stores entries as they are. It takes one that is marked as a folder (by a flipped bit, say) for
        # empty, and its tensor is then whatever lies in memory. It looks names up in any case of letters.
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not stored or entry.external_attr & MSDOS_FOLDER or entry.flag_bits & ~HARMLESS_FLAGS:
            raise ValueError(f"the table of contents is wrong about {name}")
        match = ENTRY.fullmatch(name)
        if match is None or name != entry.orig_filename or name.lower() in names:
            raise ValueError(f"an entry of that name does not belong there: {name}")
        file.seek(entry.header_offset)
        mark, name_size, extra_size = struct.unpack("<4s22x2H", file.read(LOCAL_SIZE))
        if mark != b"PK\x03\x04" or entry.header_offset < end:
            raise ValueError(f"{name} is not where the table of contents says")
        end = entry.header_offset + LOCAL_SIZE + name_size + extra_size + entry.file_size
        names.add(name.lower())
        roots.add(name.partition("/")[0])
        record = match[1]
        if record.startswith("data/"):
            sizes[record.removeprefix("data/")] = entry.file_size
        elif entry.file_size > (MAX_PICKLE if record == "data.pkl" else MAX_NOTE):
            raise ValueError(f"{name} is too long")
    file.seek(0)
    begins = file.read(4) == b"PK\x03\x04"  # else torch takes it for a pickle
    if not begins or end > directory or len(roots) != 1 or f"{next(iter(roots))}/data.pkl".lower() not in names:
        raise ValueError("it is not laid out as torch.save does")
    return sizes


@dataclass(frozen=True)
class _Global:
    """A name that a pickle asks for."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A storage's dtype and number of elements."""

    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor: the part of a storage that it shows."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def check(self) -> None:
        """ValueError unless every element has a place of its own within the storage."""
        tuples = type(self.size) is tuple and type(self.stride) is tuple
        if not tuples or len(self.size) != len(self.stride) or len(self.size) > MAX_DIMENSIONS:
            raise ValueError("a tensor's shape and strides do not go together")
        numbers = (self.offset, *self.size, *self.stride)
        if any(type(number) is not int or not 0 <= number < 1 << 40 for number in numbers):
            raise ValueError("a tensor's offset, shape and strides must be natural numbers")
        reach = 1  # elements that the dimensions so far span
        for stride, count in sorted(zip(self.stride, self.size, strict=True)):
            if count > 1 and stride < reach:
                raise ValueError("a tensor's elements overlap")
            reach += stride * (count - 1) if count else 0
        if self.offset + (0 if 0 in self.size else reach) > self.storage.count:
            raise ValueError("a tensor reaches beyond its storage")


@dataclass
class _Reader:
    """Follow a pickle as `torch.save` writes them, with a `_View` in each tensor's place; ValueError at anything else.

    sizes: bytes of each storage, by key.
    """

    sizes: Mapping[str, int]
    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)  # stacks under a mark
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, _Storage] = field(default_factory=dict)
    attributes: list[Any] = field(default_factory=list)  # that dicts were given

    def read(self, pickle: bytes) -> Any:
        for number, (operation, argument, _) in enumerate(pickletools.genops(pickle)):
            step = getattr(self, f"_{operation.name.lower()}", None)
            if number >= MAX_OPERATIONS:
                raise ValueError("its pickle is too long")
            if operation.name in LITERALS:
                self.stack.append(argument)
            elif operation.name in FRESH:
                self.stack.append(FRESH[operation.name]())
            elif step is None:
                raise ValueError(f"its pickle does what no checkpoint needs: {operation.name}")
            elif argument is None:
                step()
            else:
                step(argument)
        (content,) = self.stack
        return content

    def _proto(self, version: int) -> None:
        if version != 2:
            raise ValueError(f"pickle protocol {version}")

    def _stop(self) -> None:
        self.stack = [self.stack[-1]]

    def _mark(self) -> None:
        if len(self.below) > 2 * MAX_DEPTH:
            raise ValueError("marks within marks")
        self.below.append(self.stack)
        self.stack = []

    def _marked(self) -> list[Any]:
        marked, self.stack = self.stack, self.below.pop()
        return marked

    def _binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _long_binput = _binput

    def _binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _long_binget = _binget

    def _global(self, name: str) -> None:
        if name not in STORAGES and name not in (DICT, TENSOR):
            raise ValueError(f"it asks for {name.replace(' ', '.')}, which is neither a tensor nor a plain value")
        self.stack.append(_Global(name))

    def _tuple(self) -> None:
        parts = self._marked()
        self.stack.append(tuple(parts))

    def _tuple1(self, count: int = 1) -> None:
        parts = self.stack[-count:]
        if len(parts) < count:
            raise ValueError("a tuple without its parts")
        self.stack[-count:] = [tuple(parts)]

    def _tuple2(self) -> None:
        self._tuple1(2)

    def _tuple3(self) -> None:
        self._tuple1(3)

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self._marked())

    def _extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("only a list can be appended to")
        self.stack[-1].extend(values)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _setitems(self) -> None:
        self._update(self._marked())

    def _update(self, flat: list[Any]) -> None:
        keys, values = flat[::2], flat[1::2]
        if type(self.stack[-1]) is not dict or not all(type(key) in (str, int) for key in keys):
            raise ValueError("only a dict has items, under text or whole numbers")
        self.stack[-1].update(zip(keys, values, strict=True))

    def _binpersid(self) -> None:
        word, kind, key, location, count = self.stack.pop()
        dtype = STORAGES[kind.name]
        if word != "storage" or type(location) is not str or type(key) is not str or type(count) is not int:
            raise ValueError("a storage that is not described as torch.save does")
        if self.sizes[key] != count * dtype.itemsize:
            raise ValueError(f"storage {key} has {self.sizes[key]} bytes, where {count} x {dtype} are claimed")
        storage = _Storage(dtype, count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key} is described in two ways")
        self.stack.append(storage)

    def _reduce(self) -> None:
        arguments, made = self.stack.pop(), self.stack.pop()
        if made == _Global(DICT) and arguments == ():
            self.stack.append({})
            return
        storage, offset, size, stride, requires_grad, hooks = arguments
        if made != _Global(TENSOR) or type(storage) is not _Storage or requires_grad is not False or hooks != {}:
            raise ValueError("a tensor that is not described as torch.save does")
        view = _View(storage, offset, size, stride)
        view.check()
        self.stack.append(view)

    def _build(self) -> None:
        """Give a dict attributes: a module's state has `_metadata`; any other name could hide a method."""
        attributes = self.stack.pop()
        if type(self.stack[-1]) is not dict or type(attributes) is not dict or set(attributes) != {"_metadata"}:
            raise ValueError("an object with attributes of its own")
        self.attributes.append(attributes)


LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
FRESH = {
    **{"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple},
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
}
