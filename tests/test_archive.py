"""utils/archive.py: whatever a file holds, nothing is run, little memory and time is spent, one line says why not."""

from __future__ import annotations

import builtins
import collections
import contextlib
import copy
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import traceback
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_checkpoint import DESCRIPTION, SHIPPED, run
from utils.archive import MAX_DEPTH, Seal, check_archive, check_savable
from utils.checkpoint import VERSION, load_checkpoint, load_state, save_state
from utils.errors import UserError, run_cli

FLOAT = torch.FloatStorage


# An archive put together by hand


@dataclass
class Entry:
    """A zip entry; what is left out is what an honest one has."""

    name: str | bytes
    data: bytes
    method: int = 0
    flags: int = 0x0800
    size: int | None = None
    packed: int | None = None
    crc: int | None = None
    attributes: int = 0
    at: int | None = None  # where the table of contents says that it begins

    def local(self, name: bytes) -> bytes:
        return (
            struct.pack("<4s5H3L2H", b"PK\3\4", 0, self.flags, self.method, 0, 0, *self.numbers(), len(name), 0) + name
        )

    def central(self, name: bytes, offset: int) -> bytes:
        return (
            struct.pack(
                "<4s6H3L5H", b"PK\1\2", 0, 0, self.flags, self.method, 0, 0, *self.numbers(), len(name), 0, 0, 0, 0
            )
            + struct.pack("<2L", self.attributes, offset if self.at is None else self.at)
            + name
        )

    def numbers(self) -> tuple[int, int, int]:
        size = len(self.data) if self.size is None else self.size
        packed = size if self.packed is None else self.packed
        return zlib.crc32(self.data) if self.crc is None else self.crc, packed, size


def build(
    entries: list[Entry], seal: bool = False, count: int | None = None, length: int | None = None, **junk: bytes
) -> bytes:
    """A zip archive with the closing records of torch's. junk: `before` the first entry, `between`, `after` the end."""
    body, table = junk.get("before", b""), b""
    for entry in entries:
        name = entry.name if isinstance(entry.name, bytes) else entry.name.encode()
        table += entry.central(name, len(body))
        body += entry.local(name) + entry.data
    body += junk.get("between", b"")
    count, length = len(entries) if count is None else count, len(table) if length is None else length
    end64 = len(body) + len(table)
    records = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 0, 45, 0, 0, count, count, length, len(body))
    records += struct.pack("<4sLQL", b"PK\6\7", 0, end64, 1)
    records += struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, *[min(count, 0xFFFF)] * 2, min(length, 0xFFFFFFFF), len(body), 0
    )
    return sealed(body + table + records) if seal else body + table + records + junk.get("after", b"")


def sealed(archive: bytes) -> bytes:
    file = io.BytesIO()
    seal = Seal(file)
    seal.write(archive)
    seal.close()
    return file.getvalue()


# A pickle put together by hand


@dataclass
class Stored:
    """A storage as torch.save writes it."""

    kind: Any = FLOAT
    key: Any = "0"
    count: Any = 2
    location: Any = "cpu"
    word: Any = "storage"


@dataclass
class Shown:
    """A tensor as torch.save writes it."""

    storage: Any = field(default_factory=Stored)
    offset: Any = 0
    size: Any = (2,)
    stride: Any = (1,)
    requires_grad: Any = False
    hooks: Any = field(default_factory=OrderedDict)
    rebuild: Any = torch._utils._rebuild_tensor_v2

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.rebuild, (self.storage, self.offset, self.size, self.stride, self.requires_grad, self.hooks)


class Call:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return (value.word, value.kind, value.key, value.location, value.count) if type(value) is Stored else None


def dumps(content: Any, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol).dump(content)
    return file.getvalue()


def model(**changes: Any) -> dict[str, Any]:
    """A small model checkpoint's content."""
    return {"lockstep": VERSION, "kind": "model", **copy.deepcopy(SHIPPED), "weights": {"w": Shown()}, **changes}


def entries(pickled: bytes, root: str = "archive") -> list[Entry]:
    storage = struct.pack("<2f", 1.5, -2.0)
    parts = {"data.pkl": pickled, "byteorder": b"little", "data/0": storage, "version": b"3\n"}
    return [Entry(f"{root}/{name}", data) for name, data in parts.items()]


def holding(content: Any, protocol: int = 2) -> bytes:
    return build(entries(dumps(content, protocol)))


def raw(operations: bytes) -> bytes:
    """An archive whose pickle holds hand-written operations as the value of a key of the description."""
    whole = dumps(model(extra="HERE"))
    text = b"X\4\0\0\0HERE"
    assert whole.count(text) == 1
    return build(entries(whole.replace(text, operations)))


# The zoo


def calls(canary: str) -> dict[str, bytes]:
    """Pickles that call, import or make something."""
    touch = f"touch {canary}"
    values = {
        "os.system": Call(os.system, touch),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", canary]),
        "subprocess.check_output": Call(subprocess.check_output, ["touch", canary]),
        "eval": Call(builtins.eval, f"open({canary!r}, 'w')"),
        "exec": Call(builtins.exec, f"open({canary!r}, 'w')"),
        "open": Call(io.open, canary, "w"),
        "__import__": Call(builtins.__import__, "antigravity"),
        "getattr": Call(builtins.getattr, Call(builtins.__import__, "os"), "system"),
        "os.mkdir": Call(os.mkdir, canary),
        "os.fork": Call(os.fork),
        "os._exit": Call(os._exit, 0),
        "signal.raise_signal": Call(signal.raise_signal, signal.SIGKILL.value),
        "torch.load": Call(torch.load, "/etc/passwd"),
        "torch.hub": Call(torch.hub.load, "a/b", "c"),
        "torch.storage._load_from_bytes": Call(torch.storage._load_from_bytes, b"cos\nsystem\n."),
        "torch.set_default_dtype": Call(torch.set_default_dtype, torch.float64),
        "bytearray of 10^12": Call(bytearray, 10**12),
        "torch.Tensor of 10^11": Call(torch.Tensor, 10**11),
        "torch.FloatStorage of 10^11": Call(FLOAT, 10**11),
        "torch.Size": Call(torch.Size, (1, 2)),
        "Counter": Call(collections.Counter, "abc"),
        "OrderedDict of pairs": Call(OrderedDict, [("a", 1)]),
        "Parameter": Call(torch._utils._rebuild_parameter, Shown(), True, OrderedDict()),
        "sparse": Call(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, (Shown(), Shown(), (9,))),
        "meta": Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (10**12,), (1,), False),
        "from_type": Call(torch._tensor._rebuild_from_type_v2, torch.zeros, torch.Tensor, ((10**11,),), {}),
        "numpy array": np.zeros(3),
        "a dtype": torch.float32,
        "a device": Call(torch.device, "cuda"),
    }
    archives = {name: holding(model(extra=value)) for name, value in values.items()}
    archives["a call in the weights"] = holding(model(weights={"w": Call(os.system, touch)}))
    archives["a call as a key"] = raw(
        b"}(cposix\nsystem\nX" + struct.pack("<L", len(touch)) + touch.encode() + b"\x85RK\1u"
    )
    text = b"X" + struct.pack("<L", len(touch)) + touch.encode()
    archives["INST"] = raw(b"(" + text + b"ios\nsystem\n")
    archives["OBJ"] = raw(b"(cos\nsystem\n" + text + b"o")
    archives["NEWOBJ"] = raw(b"csubprocess\nPopen\n" + text + b"\x85\x81")
    archives["NEWOBJ_EX"] = raw(b"csubprocess\nPopen\n" + text + b"\x85}\x92")
    archives["STACK_GLOBAL"] = raw(b"X\2\0\0\0osX\6\0\0\0system\x93" + text + b"\x85R")
    archives["EXT1"] = raw(b"\x82\1")
    archives["PERSID"] = raw(b"P0\n")
    archives["BUILD hides a method"] = raw(b"ccollections\nOrderedDict\n)R}X\5\0\0\0itemsK\1sb")
    archives["BUILD of a list"] = raw(b"]}X\11\0\0\0_metadataK\1sb")
    archives["a class as a value"] = raw(b"ctorch\nFloatStorage\n")
    archives["an unfinished pickle"] = build(entries(dumps(model())[:-1]))
    archives["an empty pickle"] = build(entries(b""))
    archives["protocol 4"] = holding(model(), 4)
    archives["two values left"] = build(entries(b"\x80\2K\1K\2."))
    archives["marks without end"] = build(entries(b"\x80\2" + b"(" * 400_000 + b"."))
    archives["ten million operations"] = build(entries(b"\x80\2" + b"N" * 10_000_000 + b"."))
    return archives


def tensors() -> dict[str, bytes]:
    """Tensors and storages that lie about themselves."""
    ten = 10**12
    storages = {
        "storage of 10^12 elements": Stored(count=ten),
        "storage one too long": Stored(count=3),
        "storage one too short": Stored(count=1),
        "storage of -1": Stored(count=-1),
        "storage of a text": Stored(count="2"),
        "storage of doubles": Stored(torch.DoubleStorage),
        "storage of complex": Stored(torch.ComplexFloatStorage, count=1),
        "storage of quantized": Stored(torch.QInt8Storage, count=8),
        "storage not there": Stored(key="1"),
        "storage of another place": Stored(key="../../etc/passwd"),
        "storage of no place": Stored(location=7),
        "storage of another word": Stored(word="tensor"),
        "storage of a function": Stored(os.system),
    }
    shown = {
        "10^12 elements of 8 bytes": Shown(size=(ten,), stride=(0,)),
        "10^12 elements in two": Shown(size=(10**6, 10**6), stride=(0, 0)),
        "2^120 elements": Shown(size=(2**39, 2**39, 2**39), stride=(0, 0, 0)),
        "overflow to nothing": Shown(size=(2**62, 4), stride=(0, 0)),
        "beyond the end": Shown(size=(3,)),
        "offset beyond": Shown(offset=1),
        "offset below": Shown(offset=-1),
        "stride below": Shown(offset=1, stride=(-1,)),
        "size below": Shown(size=(-2,)),
        "overlapping": Shown(size=(2, 2), stride=(1, 0)),
        "overlapping by one": Shown(size=(1, 2, 2), stride=(9, 1, 1)),
        "more strides than sizes": Shown(stride=(1, 1)),
        "size of floats": Shown(size=(2.0,)),
        "size of bools": Shown(size=(True,)),
        "size a list": Shown(size=[2]),
        "size of a text": Shown(size="2"),
        "400,000 dimensions": Shown(size=(1,) * 200_000, stride=(1,) * 200_000),
        "a gradient wanted": Shown(requires_grad=True),
        "hooks": Shown(hooks=OrderedDict(a=1)),
        "a number for a storage": Shown(storage=5),
        "another rebuild": Shown(rebuild=torch._utils._rebuild_tensor),
    }
    archives = {name: holding(model(weights={"w": Shown(storage)})) for name, storage in storages.items()}
    archives |= {name: holding(model(weights={"w": value})) for name, value in shown.items()}
    two = [Shown(), Shown(Stored(torch.LongStorage, count=1), size=(1,))]
    archives["one storage of two kinds"] = holding(model(weights={"v": two[0], "w": two[1]}))
    return archives


def values() -> dict[str, bytes]:
    """Plain values that are not so plain, and what they do to messages."""
    doubled: list[Any] = ["lol"]
    for _ in range(30):
        doubled = [doubled, doubled]
    nested = b"]" * 100_000 + b"a" * 99_999
    return {
        "nested 10^5 deep": raw(nested),
        "tuples 10^5 deep": raw(b")" + b"\x85" * 100_000),
        "dicts 10^5 deep": raw(b"}" + b"K\0}" * 100_000 + b"s" * 100_000),
        "deeper than a checkpoint": raw(b"]" * (MAX_DEPTH + 1) + b"a" * MAX_DEPTH),
        "a billion laughs": holding(model(extra=doubled)),
        "a list in itself": raw(b"]q\xffh\xffa"),
        "a wide list in a wide list": raw(b"](" + b"]q\xff(" + b"N" * 200_000 + b"e" + b"h\xff" * 200_000 + b"e"),
        "a number of 255 bytes": holding(model(extra=1 << 2000)),
        "a number of 10 MB": raw(b"\x8b" + struct.pack("<L", 10**7) + b"\7" * 10**7),
        "a number in digits": raw(b"I" + b"7" * 100_000 + b"\n"),
        "a text of 20 MB": holding(model(extra="a" * 20_000_000)),
        "a set": holding(model(extra={1, 2})),
        "bytes": holding(model(extra=b"abc"), 2),
        "a complex number": holding(model(extra=1j)),
        "a key of None": holding(model(extra={None: 1})),
        "a key of a tuple": holding(model(extra={(1, 2): 1})),
        "not a dict": holding([1, 2]),
        "a tensor alone": holding(Shown()),
        "a number alone": holding(7),
        "another program's": holding({"model": {"w": Shown()}, "epoch": 3}),
        "version 2": holding(model(lockstep=2)),
        "version 10^18": holding(model(lockstep=10**18)),
        "version True": holding(model(lockstep=True)),
        "version 1.0": holding(model(lockstep=1.0)),
        "version in words": holding(model(lockstep="one\n\x1b[2J\r\u202e")),
        "version a dict": holding(model(lockstep={"a": ["b"] * 5000})),
        "half a character": raw(b"X\3\0\0\0\xed\xa0\x80"),
        "half a character as version": build(
            entries(dumps(model(lockstep="ab")).replace(b"X\2\0\0\0ab", b"X\3\0\0\0\xed\xa0\x80"))
        ),
    }


def archives(canary: str) -> dict[str, bytes]:
    """Archives that are not what torch writes, and files that are no archives."""
    good = dumps(model())
    bomb = zlib.compress(bytes(10**8), 9)[2:-4]
    extra = Entry("archive/data/1", bytes(8))
    one = Entry("archive/data/0", bytes(8)).central(b"archive/data/0", 0)
    script = [Entry("archive/constants.pkl", b"\x80\2)."), Entry("archive/code/__torch__.py", b"import os")]
    legacy, jit = io.BytesIO(), entries(good) + script
    torch.save(Call(os.system, f"touch {canary}"), legacy, _use_new_zipfile_serialization=False)

    def changed(index: int, **changes: Any) -> bytes:
        parts = entries(good)
        for key, value in changes.items():
            setattr(parts[index], key, value)
        return build(parts)

    return {
        "empty": b"",
        "text": b"weights\n" * 100,
        "gzip": gzip.compress(build(entries(good))),
        "pickle": pickle.dumps(Call(os.system, f"touch {canary}")),
        "legacy": legacy.getvalue(),
        "legacy state": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2),
        "TorchScript": build(jit),
        "TorchScript alone": build(script),
        "a deflated bomb": changed(0, method=8, data=bomb, size=10**8, packed=len(bomb)),
        "a deflated storage": changed(2, method=8, data=bomb, size=8, packed=len(bomb)),
        "a stored bomb": changed(2, size=2**32 - 2),
        "a stored bomb of a pickle": changed(0, size=2**32 - 2),
        "sizes that differ": changed(2, size=8, packed=4),
        "encrypted": changed(2, flags=0x0801),
        "patched data": changed(2, flags=0x0820),
        "a folder": changed(2, attributes=0x10),
        "a wrong checksum": changed(2, crc=1),
        "a pickle of 20 MB": build(entries(good + bytes(20_000_000))),
        "a long note": build([*entries(good), Entry("archive/note", bytes(10_000))]),
        "10^6 entries": build(entries(good), between=one * 1_000_000, count=1_000_000),
        "10^6 entries in the table": sealed_table(entries(good), one * 1_000_000, 1_000_000),
        "10^6 entries, said few": sealed_table(entries(good), one * 1_000_000, 4),
        "2^63 entries": build(entries(good), count=2**63),
        "a table of 2^40 bytes": build(entries(good), length=2**40),
        "traversal": build([*entries(good), Entry("archive/../../canary", b"x")]),
        "traversal of the root": build(entries(good, "..")),
        "absolute": build([*entries(good), Entry("/etc/passwd", b"x")]),
        "backslash": build([*entries(good), Entry("archive\\data", b"x")]),
        "a name with a zero": build([*entries(good), Entry("archive/data/1\0.txt", b"x")]),
        "a name of no characters": build([*entries(good), Entry("", b"x")]),
        "a name of broken UTF-8": build([*entries(good), Entry(b"archive/\xff\xfe", b"x")]),
        "a name with a line break": build([*entries(good), Entry("archive/a\nb\x1b[2J", b"x")]),
        "twice": build([*entries(good), *entries(good)]),
        "a storage twice": build([*entries(good), Entry("archive/data/0", bytes(8))]),
        "twice but for its case": build([*entries(good), Entry("archive/DATA.PKL", good)]),
        "two roots": build([*entries(good), Entry("other/data.pkl", good)]),
        "no pickle": build(entries(good)[1:]),
        "no entries": build([]),
        "overlapping entries": build([*entries(good), Entry("archive/data/1", b"", size=8, at=0)]),
        "an entry in the table": build([*entries(good), Entry("archive/data/1", b"", size=60)]),
        "an entry outside": build([*entries(good), Entry("archive/data/1", b"", size=8, at=2**31)]),
        "something before": build([*entries(good), extra], before=b"#!/bin/sh\n"),
        "something in between": build(entries(good), between=b"PK\1\2" * 20, length=5),
        "something after": build(entries(good), after=b"\0"),
        "a comment": build(entries(good))[:-2] + b"\5\0hello",
        "a false seal": sealed(build(entries(good)))[:-1] + b"z",
        "another's seal": build(entries(good))[:-2] + sealed(build(entries(dumps(model(imgsz=64)))))[-73:],
        "the end alone": build([])[-22:],
        "zip without zip64": build(entries(good)).replace(b"PK\6\7", b"PK\6\0"),
        "no byte order torch knows": build(
            [Entry("archive/byteorder", b"middle") if "byte" in str(e.name) else e for e in entries(good)]
        ),
        "no version torch knows": build(
            [
                Entry("archive/version", b"99999999999999999999") if "version" in str(e.name) else e
                for e in entries(good)
            ]
        ),
    }


def sealed_table(parts: list[Entry], more: bytes, count: int) -> bytes:
    """An archive with more entries in its table of contents than it has."""
    whole = build(parts)
    table, end = whole.index(b"PK\1\2"), whole.index(b"PK\6\6")
    length = end - table + len(more)
    records = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 0, 45, 0, 0, count, count, length, table)
    records += struct.pack("<4sLQL", b"PK\6\7", 0, end + len(more), 1) + whole[-22:]
    return sealed(whole[:end] + more + records)


def states(path: Path) -> dict[str, bytes]:
    """Sound archives of states in which something is missing, of the wrong type, or not this run's."""
    save_state(path, run(steps=3), DESCRIPTION)
    good = load_checkpoint(path)
    tensor = torch.zeros(3)
    changes: list[tuple[str, Any]] = [
        *((key, ...) for key in ("kind", "model", "names", "imgsz", "data", "single_cls", "hyp", "options", "state")),
        *(("kind", value) for value in ("other", 5)),
        *(("model", value) for value in ([], {"size": "n"}, {"size": 1, "nc": 2, "backbone": "csp"})),
        ("model/nc", 10**9),
        *(("names", value) for value in ("ab", [1, 2], ["a"], {0: "a", 1: "b"})),
        *(("imgsz", value) for value in ("64", 64.0, True, 0, -32)),
        *((key, 5) for key in ("data", "single_cls", "hyp", "options", "state")),
        *((key, tensor) for key in ("hyp/lr0", "options/data", "extra", "names")),
        *((f"state/{key}", ...) for key in ("progress", "means", "components")),
        *((f"state/{key}", [1]) for key in ("progress", "means", "components", "extra")),
        *((f"state/progress/{key}", ...) for key in ("epoch", "batch", "step", "seconds")),
        *(
            (f"state/progress/{key}", value)
            for key in ("epoch", "step")
            for value in (-1, "1", 1.5, True, 2**63, tensor)
        ),
        *(("state/progress/seconds", value) for value in (float("nan"), float("inf"), -1.0, 3)),
        *((f"state/progress/{key}", 1) for key in ("components", "load_state_dict")),
        *(("state/means/loss", value) for value in (1.0, tensor.long(), torch.zeros(3, 3, 3), [tensor])),
        *((f"state/components/{key}", ...) for key in ("model", "ema", "optimizer", "scheduler", "scaler", "stopping")),
        *((f"state/components/{key}", value) for key in ("model", "ema", "optimizer") for value in (5, [], {1: 2})),
        *((f"state/components/{key}", {}) for key in ("model", "ema", "optimizer", "scheduler", "scaler", "stopping")),
        ("state/components/extra", {}),
        *((f"state/components/model/{key}", ...) for key in ("0.weight", "1.num_batches_tracked")),
        *(("state/components/model/0.weight", value) for value in (tensor, 1.0, None, tensor.int(), tensor.bool())),
        *(("state/components/ema/module.0.weight", value) for value in (tensor, ..., "w")),
        ("state/components/model/forward", tensor),
        *((f"state/components/optimizer/{key}", value) for key in ("groups", "state") for value in (..., 5, [])),
        *(("state/components/optimizer/groups/bias", value) for value in (..., 5)),
        *(("state/components/optimizer/groups/bias/lr", value) for value in ("0.1", tensor, [1])),
        *(("state/components/optimizer/state/0.weight", value) for value in (5, {"exp_avg": tensor})),
        *(("state/components/scheduler/last_epoch", value) for value in ("1", [1], tensor)),
        *(("state/components/scheduler/base_lrs", value) for value in (5, ["a", "b", "c"], ["a"])),
        *((f"state/components/scheduler/{key}", 5) for key in ("step", "optimizer", "get_lr")),
        ("state/components/scheduler/lr_lambdas", 5),
        *(("state/components/stopping/best_epoch", value) for value in ("x", ..., [1])),
        ("state/components/stopping/should_stop", 1),
    ]
    files = {}
    for place, value in changes:
        content = copy.deepcopy(good)
        *way, last = place.split("/")
        inner = content
        for key in way:
            inner = inner[key]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
        file = io.BytesIO()
        torch.save(content, file)
        files[f"{place}: {'nothing' if value is ... else repr(value)[:30]}"] = file.getvalue()
    return files


# A child in which nothing may happen

FORBIDDEN = ("os.", "subprocess.", "socket.", "ctypes.", "shutil.", "pty.", "urllib.", "exec", "compile", "import")
QUIET = ("os.listdir", "os.scandir")


def watch(seen: list[str]) -> None:
    """From now on in this process, note whatever runs, spawns, connects, imports, or writes to files."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or (event.startswith(FORBIDDEN) and event not in QUIET):
            seen.append(f"{event} {arguments}"[:200])

    sys.addaudithook(hook)


Look = Callable[[Path], str]  # raises UserError, or returns how a file was loaded


def in_a_child(tmp_path: Path, files: Iterable[tuple[str, bytes]], look: Look) -> dict[str, dict[str, Any]]:
    """Look at each file in a forked child that has 1 GB to spend and may do nothing else.

    Returns:
        by name: `error` (a UserError's text), `loaded` or `crash` (a traceback); `events` of the audit hook; CPU
        `seconds`; `memory`, the child's peak so far in MB, counted from its start.
    """
    path, report = tmp_path / "x.pt", tmp_path / "report.txt"
    path.touch()
    pid = os.fork()
    if pid == 0:
        try:
            with report.open("w") as out, path.open("r+b", buffering=0) as file:
                look_at_all(path, file, files, look, out)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    lines = report.read_text().splitlines()
    assert status == 0 and lines and lines[-1] == "done", (
        f"the child ended at {lines[-1] if lines else 'once'}: {status}"
    )
    return dict(json.loads(line) for line in lines[:-1])


def look_at_all(path: Path, file: Any, files: Iterable[tuple[str, bytes]], look: Look, out: Any) -> None:
    "".encode("cp437")  # of names in zip files
    path.write_bytes(holding(model()))
    load_checkpoint(path)  # what a first look imports is imported
    seen: list[str] = []
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch(seen)
    for name, data in files:
        os.ftruncate(file.fileno(), len(data))
        os.pwrite(file.fileno(), data, 0)
        seen.clear()
        result: dict[str, Any] = {}
        begin = time.process_time()
        try:
            result["loaded"] = look(path)
        except UserError as error:
            result["error"] = str(error)
        except BaseException:
            result["crash"] = traceback.format_exc()
        result["seconds"] = time.process_time() - begin
        result["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
        result["events"] = list(seen)
        out.write(json.dumps([name, result]) + "\n")
        out.flush()
    out.write("done\n")


def check_harmless(results: dict[str, dict[str, Any]], may_load: bool = False) -> None:
    for name, result in results.items():
        assert "crash" not in result, (name, result["crash"])
        assert may_load or "error" in result, (name, "was believed")
        error = result.get("error", "")
        assert error.isprintable() and len(error) < 500, (name, error)
        assert result["events"] == [], (name, result["events"])
        assert result["seconds"] < 2, (name, result["seconds"])
        assert result["memory"] < 400, (name, result["memory"])


def load(path: Path) -> str:
    """Load a file as a command does that ships or validates it: the exit code must be 2."""
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            run_cli(lambda: load_checkpoint(path))
        except SystemExit as leaving:
            word, _, message = stderr.getvalue().partition(": ")
            assert leaving.code == 2 and word == "error" and message.endswith("\n")
            raise UserError(message.removesuffix("\n")) from None
    return "loaded"


def resume(path: Path) -> str:
    """Load a state, and take it."""
    content = load_state(path)
    run().load_state_dict(content["state"])
    return "loaded"


def test_the_hand_made_archive_is_sound(tmp_path: Path) -> None:
    """Else the zoo would be refused for nothing."""
    for number, data in enumerate(
        (holding(model()), sealed(holding(model())), build(entries(dumps(model()), "my model")))
    ):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(data)
        weights = load_checkpoint(path)["weights"]["w"]
        assert weights.tolist() == [1.5, -2.0] and weights.dtype == torch.float32


@pytest.mark.parametrize(
    "zoo", [calls, lambda _: tensors(), lambda _: values(), archives], ids=["calls", "tensors", "values", "archives"]
)
def test_hostile_files_do_nothing_but_fail(tmp_path: Path, zoo: Callable[[str], dict[str, bytes]]) -> None:
    canary = tmp_path / "canary"
    files = zoo(str(canary))
    assert len(files) >= 28
    results = in_a_child(tmp_path, files.items(), load)
    assert results.keys() == files.keys()
    check_harmless(results)
    assert not canary.exists()


@pytest.mark.parametrize("name", tensors())
def test_tensors_that_lie_never_get_as_far_as_torch(name: str) -> None:
    """Some versions of torch believe them."""
    with pytest.raises(Exception, match="."):
        check_archive(io.BytesIO(tensors()[name]))


def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    files = states(tmp_path / "good.pt")
    assert len(files) >= 90
    results = in_a_child(tmp_path, files.items(), resume)
    assert results.keys() == files.keys()
    check_harmless(results)


# Mutations

OPERATIONS = b"(.0125FIJKLMNPQRSTUVXabcdeghijlopqrstu}]){" + bytes(range(0x80, 0x96))
SNIPPETS = (
    b"cos\nsystem\n",
    b"\x8c\x02os\x8c\x06system\x93",
    b"\x85R",
    b"X\7\0\0\0touch x",
    b"h\1",
    b"(lp0\n",
    b"Q",
    b"}b",
)


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Flip, overwrite, insert, cut, repeat or move some bytes."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(out) + 1)
        end = min(place + draw.choice((1, 1, 2, 4, 16, 64)), len(out))
        kind = draw.randrange(7)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            out[place : place + 1] = bytes([draw.choice(OPERATIONS)])
        elif kind == 2:
            out[place:place] = draw.choice(SNIPPETS)
        elif kind == 3 and end - place < len(out):
            del out[place:end]
        elif kind == 4:
            out[place:place] = out[place:end]
        elif kind == 5:
            out[place:end] = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - place)
        else:
            other = draw.randrange(len(out))
            out[place:end] = out[other : other + end - place]
    return bytes(out)


def mutations(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Half with a mutated pickle in a sound archive, half with a mutated archive; some sealed, so that no CRC helps."""
    draw = random.Random(seed)
    pickled = dumps(model())
    whole = holding(model())
    tables = (whole.index(b"PK\1\2"), len(whole))
    for number in range(count):
        if number % 2:
            data = build(entries(mutate(pickled, draw)))
        elif number % 4:
            data = whole[: tables[0]] + mutate(whole[slice(*tables)], draw)
        else:
            data = mutate(whole, draw)
        yield str(number), sealed(data) if draw.random() < 0.5 and len(data) > 2 else data


def load_plain(path: Path) -> str:
    """Load a file; what is believed must be plain, small, and whole."""
    content = load_checkpoint(path)
    check_savable(content)
    assert content["lockstep"] == VERSION and content["kind"] in ("model", "state")
    return "loaded"


@pytest.mark.torture
def test_five_thousand_mutations_do_nothing_but_fail(tmp_path: Path) -> None:
    results = in_a_child(tmp_path, mutations(5_000, seed=8), load_plain)
    assert len(results) == 5_000
    check_harmless(results, may_load=True)
    refused = sum("error" in result for result in results.values())
    assert 2_500 < refused < 5_000, "some bytes mean nothing, or mean another sound value"


# What is passed, and what is not saved


def test_what_torch_saves_again_is_passed(tmp_path: Path) -> None:
    """Any tensor that this program keeps: every dtype, none of its elements, views, channels last."""
    weights = torch.arange(24.0).reshape(1, 2, 3, 4)
    content = {
        "dtypes": [torch.ones(3).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64)],
        "small": [torch.ones(3).to(dtype) for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)],
        "empty": [torch.zeros(0), torch.zeros(3, 0), torch.tensor(1.5)],
        "views": [weights.contiguous(memory_format=torch.channels_last), weights[:, 1], weights.mT, weights[..., ::2]],
        "plain": [None, True, -1, 2**63, 1.5, "ü", (1, 2, 3, 4), {1: {}}],
    }
    check_savable(content)
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with path.open("rb") as file:
        check_archive(file)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Path("a"), "PosixPath is neither"),
        ({1, 2}, "set is neither"),
        (b"abc", "bytes is neither"),
        (torch.ones(1, requires_grad=True), "requires_grad True"),
        (torch.nn.Parameter(torch.ones(1)), "Parameter is neither"),
        (torch.ones(1, dtype=torch.complex64), "complex64"),
        (torch.ones(1).to_sparse(), "sparse"),
        (collections.Counter("a"), "Counter is neither"),
        ({None: 1}, "a key"),
        (1 << 70, "64 bits"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, value: Any, words: str) -> None:
    """Better a run that stops at its first checkpoint than one that cannot be resumed."""
    with pytest.raises(ValueError, match=words):
        save_state(tmp_path / "last.pt", run(), {**DESCRIPTION, "extra": [value]})
    assert list(tmp_path.iterdir()) == []


def test_the_seal_is_the_hash_of_what_was_written() -> None:
    archive = build(entries(dumps(model())))
    expected = archive[:-2] + struct.pack("<H", 71) + b"sha256:" + hashlib.sha256(archive).hexdigest().encode()
    assert sealed(archive) == expected
