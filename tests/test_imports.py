"""The house's rules of who imports whom and who alone does what, held over every file by reading its syntax tree."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROW_1 = ("errors", "dist", "hyp", "options", "seed", "boxes", "rundir", "device", "atomic", "archive", "signals")
ROW_1 += ("fingerprint",)
ROW_2 = ("optim", "schedule", "ema", "stopping", "checkpoint", "metrics", "loggers", "plots", "lr_finder", "telemetry")
ROW_2 += ("guard", "keeper", "profiler")
ROW_3 = ("resume",)
ENTRY_POINTS = ("train", "detect", "export")
OWN = {"train", "val", "detect", "export", "models", "data", "utils"}
THIRD_PARTY = {
    *("torch", "torchvision", "numpy", "yaml", "tqdm", "cv2", "PIL", "faster_coco_eval", "matplotlib"),
    *("tensorboard", "onnx", "onnxruntime", "onnxscript", "wandb", "mlflow"),  # optional
}
NETWORK = {"urllib", "urllib3", "socket", "socketserver", "http", "ssl", "ftplib", "smtplib", "poplib", "imaplib"}
NETWORK |= {"telnetlib", "nntplib", "xmlrpc", "asyncio", "requests", "httpx", "aiohttp"}
# What only some files may do: the full name of a module, or of something in one -> the files.
RESERVED = {
    **{"matplotlib": "utils/plots.py", "torch.save": "utils/checkpoint.py", "torch.load": "utils/checkpoint.py"},
    "importlib.import_module": "utils/schedule.py",  # the user's own schedule, named on the command line
    **{"signal": "utils/signals.py", "fcntl": "utils/rundir.py, data/memory.py", "ctypes": "utils/device.py"},
    "multiprocessing": "utils/signals.py, data/processes.py",
    **{"torch.hub": "models/backbone.py", "tarfile": "data/unpack.py"},
    **dict.fromkeys(NETWORK, "data/download.py"),
}
PROCESS_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {
    "marshal",
    "_pickle",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "jsonpickle",
    "copyreg",
    "subprocess",
    "pty",
}
FORBIDDEN_MODULES |= {"cffi", "runpy", "code", "codeop", "imp", "pip", "ensurepip", "venv", "pkg_resources"}
FORBIDDEN_MODULES |= {"webbrowser", "timeit", "pdb", "pydoc", "doctest", "lxml"}
# What of a module otherwise welcome starts programs, imports code from a path, or unpacks without a look. A name stands
# for itself, for what is in it, and with a star for all that begins so.
FORBIDDEN_NAMES = (
    *("os.system", "os.popen*", "os.exec*", "os.spawn*", "os.posix_spawn*", "os.fork*", "os.startfile"),
    *("sys.modules", "sys.meta_path", "sys.path_hooks", "__builtins__", "importlib.machinery", "importlib.reload"),
    *("importlib.util.spec_from*", "importlib.util.module_from_spec", "importlib.__import__", "logging.config"),
    *("xml.sax", "xml.dom", "shutil.unpack_archive", "torch.jit", "torch.package", "torch.utils.cpp_extension"),
    *("torch.ops.load_library", "torch.classes", "torch.serialization", "torch.hub.load*", "torch.hub.download*"),
    *("torchvision.datasets", "yaml.add_*", "yaml.YAMLObject", "numpy.lib.format", "numpy.ctypeslib"),
)
FORBIDDEN_METHODS = {"extractall", "extract", "__reduce__", "__reduce_ex__", "__subclasses__", "__globals__"}
CLOSED = {
    "os",
    "sys",
    "builtins",
    "importlib",
    "torch",
    "yaml",
    "numpy",
}  # modules not to be asked for a name at run time
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "yaml.BaseLoader", "yaml.CBaseLoader"}
SAFE_YAML = {"yaml.safe_load", "yaml.safe_load_all"}
NEEDS_LOADER = {"yaml.load", "yaml.load_all", "yaml.compose", "yaml.compose_all", "yaml.parse", "yaml.scan"}


class Module:
    """A file's syntax tree with what its names stand for."""

    def __init__(self, path: str, source: str) -> None:
        self.path, self.tree = path, ast.parse(source)
        self.name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.aliases: dict[str, str] = {}
        for node in ast.walk(self.tree):
            for local, full, _ in imported(node):
                self.aliases[local] = full  # `import a.b` binds `a`, which stands for itself

    def full_name(self, node: ast.AST) -> str:
        """Return `torch.load` for `t.load` after `import torch as t`; an empty string for what is no dotted name."""
        if isinstance(node, ast.Attribute):
            owner = self.full_name(node.value)
            return f"{owner}.{node.attr}" if owner else ""
        return self.aliases.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    def own_imports(self) -> Iterator[tuple[ast.stmt, str]]:
        """Yield the statements that import a module of ours, with its name (`utils.hyp`)."""
        for node in ast.walk(self.tree):
            for _, full, module in imported(node):
                if full.partition(".")[0] in OWN:
                    yield node, full if module in ("models", "data", "utils") else module

    def fault(self, node: ast.AST, text: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {text}"


def imported(node: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Yield (local name, empty for `import a.b`; full name; module) of what an import statement brings."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or "", alias.name, alias.name
    elif isinstance(node, ast.ImportFrom) and not node.level:
        for alias in node.names:
            yield alias.asname or alias.name, f"{node.module}.{alias.name}", str(node.module)


def check(sources: dict[str, str]) -> list[str]:
    """Return every breach of the rules in files given as path -> source."""
    modules = [Module(path, source) for path, source in sources.items()]
    rules = (order_faults, place_faults, reserved_faults, execution_faults, yaml_faults)
    return [fault for module in modules for rule in rules for fault in rule(module)] + circles(modules)


def room(name: str) -> str:
    """Return the room of a module: utils row 1, 2 or 3, models, data, val, or an entry point."""
    top, _, rest = name.partition(".")
    if top != "utils" or not rest:
        return top
    rows = {"errors": ("errors",), "row 1": ROW_1, "row 2": ROW_2, "row 3": ROW_3}
    return next((row for row, files in rows.items() if rest in files), "no row")


def may_import(importer: str, target: str) -> bool:
    row_1, row_2, utils = ({"errors", "utils", *(f"row {i}" for i in range(1, n + 1))} for n in (1, 2, 3))
    allowed = {
        "errors": set(),
        "utils": set(),
        "row 1": {"errors"},
        "row 2": row_1,
        "row 3": row_2,
        "models": utils | {"models"},
        "data": utils | {"data"},
        "val": utils | {"models", "data"},
        **dict.fromkeys(ENTRY_POINTS, utils | {"models", "data", "val"}),
    }
    return importer not in allowed or room(target) in allowed[importer]


def order_faults(module: Module) -> Iterator[str]:
    here = room(module.name)
    if here == "no row":
        yield module.fault(module.tree, "a file of utils that is in no row: name its row in tests/test_imports.py")
    for node, target in module.own_imports():
        if not may_import(here, target):
            yield module.fault(node, f"{module.name} ({here}) must not import {target} ({room(target)})")


def place_faults(module: Module) -> Iterator[str]:
    """Imports stand at the top, name their module in full, and bring only what the project depends on."""
    inner = {
        id(node)
        for scope in ast.walk(module.tree)
        if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef))
        for node in ast.walk(scope)
    }
    for node, target in module.own_imports():
        if id(node) in inner:
            yield module.fault(node, f"{target} is imported inside a function")
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield module.fault(node, "a relative import")
        for _, full, _ in imported(node):
            top = full.partition(".")[0]
            if top not in OWN | THIRD_PARTY | sys.stdlib_module_names and top != "benchmarks":
                yield module.fault(node, f"{top} is no dependency of the project")


def reserved_faults(module: Module) -> Iterator[str]:
    """matplotlib, torch.save and torch.load, the network, and the variables of torchrun have one file each."""
    for node in ast.walk(module.tree):
        names = {full for _, full, _ in imported(node)}
        if isinstance(node, ast.Attribute):
            names.add(module.full_name(node))
        for name in names:
            parts = name.split(".")
            for reserved in {".".join(parts[:length]) for length in range(1, len(parts) + 1)} & set(RESERVED):
                if module.path not in RESERVED[reserved].split(", "):
                    yield module.fault(node, f"only {RESERVED[reserved]} may use {reserved}")
        if isinstance(node, ast.Constant) and node.value in PROCESS_VARIABLES and module.path != "utils/dist.py":
            yield module.fault(node, f"only utils/dist.py may read {node.value}")


def execution_faults(module: Module) -> Iterator[str]:
    """Nothing read from a file is ever run."""
    for node in ast.walk(module.tree):
        names = {full for _, full, _ in imported(node)}
        if isinstance(node, ast.Attribute):
            names.add(module.full_name(node))
        for name in names:
            if name.partition(".")[0] in FORBIDDEN_MODULES:
                yield module.fault(node, f"{name} runs what it reads, or starts programs")
            if name.startswith(("pickle.", "_pickle.")) and not name.endswith(".UnpicklingError"):
                yield module.fault(node, f"{name}: pickle runs what it reads (only its UnpicklingError may be caught)")
        names |= asked_names(module, node)
        for name in sorted(names):
            if any(matches(name, forbidden) for forbidden in FORBIDDEN_NAMES):
                yield module.fault(node, f"{name} is not to be used: nothing that is read is run")
        yield from hidden_faults(module, node)
        if isinstance(node, ast.Call):
            yield from call_faults(module, node)


def matches(name: str, forbidden: str) -> bool:
    if forbidden.endswith("*"):
        return name.startswith(forbidden[:-1])
    return name == forbidden or name.startswith(f"{forbidden}.")


def asked_names(module: Module, node: ast.AST) -> set[str]:
    """`os.system` of `getattr(os, "system")`, and names that need no import."""
    if isinstance(node, ast.Name):
        return {module.full_name(node)}
    if isinstance(node, ast.Call) and module.full_name(node.func) in ("getattr", "builtins.getattr") and node.args[1:]:
        owner, name = module.full_name(node.args[0]), node.args[1]
        if isinstance(name, ast.Constant):
            return {f"{owner}.{name.value}"}
    return set()


def hidden_faults(module: Module, node: ast.AST) -> Iterator[str]:
    """Ways round the names: a builtin under another name, a name that is made at run time, methods of pickling."""
    if isinstance(node, ast.Name) and node.id in ("eval", "exec", "__import__"):
        yield module.fault(node, f"{node.id} runs what it is given, whatever it is called")
    method = node.attr if isinstance(node, ast.Attribute) else getattr(node, "name", "")
    if isinstance(node, (ast.Attribute, ast.FunctionDef)) and method in FORBIDDEN_METHODS:
        yield module.fault(node, f"{method}: archives are unpacked by data/unpack.py, and nothing is pickled")
    if not isinstance(node, ast.Call):
        return
    name = module.full_name(node.func)
    owner = module.full_name(node.args[0]) if node.args else ""
    made = name in ("getattr", "builtins.getattr") and not isinstance(node.args[1], ast.Constant)
    if owner in CLOSED and (made or name in ("vars", "dir")):
        yield module.fault(node, f"{name}({owner}, …) asks a module for a name that is made at run time")
    if any(word.arg == "shell" for word in node.keywords):
        yield module.fault(node, "shell=: no shell is started")


def call_faults(module: Module, call: ast.Call) -> Iterator[str]:
    name = module.full_name(call.func)
    keywords = {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}
    if name.removeprefix("builtins.") in FORBIDDEN_CALLS:
        yield module.fault(call, f"{name}() runs what it is given")
    if name == "torch.load" and keywords.get("weights_only") is not True:
        yield module.fault(call, "torch.load without weights_only=True")
    if keywords.get("weights_only") is False:
        yield module.fault(call, "weights_only=False")
    if name == "numpy.load" and "allow_pickle" not in keywords:
        yield module.fault(call, "numpy.load without allow_pickle=False")
    if any(word.arg == "allow_pickle" and keywords.get("allow_pickle") is not False for word in call.keywords):
        yield module.fault(call, "allow_pickle must be False")


def yaml_faults(module: Module) -> Iterator[str]:
    """Yaml is read by `safe_load`, or with a loader given in the call that builds nothing but plain values."""
    own = {
        node.name
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and {module.full_name(base) for base in node.bases} & SAFE_LOADERS
    }
    for node in ast.walk(module.tree):
        names = {full for _, full, _ in imported(node)}
        if isinstance(node, ast.Attribute):
            names.add(module.full_name(node))
        for name in names:
            reads = name.startswith("yaml.") and name.endswith(("Loader", "_load", "_load_all"))
            if reads and name not in SAFE_LOADERS | SAFE_YAML:
                yield module.fault(node, f"{name} is no safe loader")
        if isinstance(node, ast.Call) and module.full_name(node.func) in NEEDS_LOADER:
            loaders = [word.value for word in node.keywords if word.arg == "Loader"] or node.args[1:2]
            if not loaders or module.full_name(loaders[0]) not in SAFE_LOADERS | own:
                yield module.fault(node, f"{module.full_name(node.func)} without a safe Loader")


def circles(modules: list[Module]) -> list[str]:
    """Return circles of imports: what is left after taking away, again and again, what imports nothing left."""
    names = {module.name for module in modules}
    imports = {module.name: {target for _, target in module.own_imports()} & names for module in modules}
    while free := [name for name, targets in imports.items() if not targets & imports.keys()]:
        for name in free:
            del imports[name]
    return [f"a circle of imports among: {', '.join(sorted(imports))}"] if imports else []


def project_sources() -> dict[str, str]:
    files = [*ROOT.glob("*.py"), *(file for top in ("models", "data", "utils") for file in (ROOT / top).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in sorted(files)}


def test_the_project_keeps_the_rules() -> None:
    sources = project_sources()
    assert {"utils/errors.py", "utils/hyp.py", "models/yolo.py", "data/loader.py"} <= sources.keys()
    assert check(sources) == []


def test_every_file_named_in_a_rule_does_its_job() -> None:
    """A rule that reserves a job for a file which no longer does it is out of date."""
    sources = project_sources()
    for name, path in {"matplotlib": "utils/plots.py", "torch.load": "utils/checkpoint.py"}.items():
        assert name in sources[path]
    assert "RANK" in sources["utils/dist.py"] and "urllib" in sources["data/download.py"]
    assert "tarfile" in sources["data/unpack.py"] and "torch.hub" in sources["models/backbone.py"]


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        # order
        ("utils/seed.py", "from utils.hyp import Hyp", "utils.seed (row 1) must not import utils.hyp (row 1)"),
        ("utils/errors.py", "import utils.seed", "utils.errors (errors) must not import utils.seed"),
        ("utils/seed.py", "from utils.optim import x", "must not import utils.optim (row 2)"),
        ("utils/optim.py", "from utils import ema", "utils.optim (row 2) must not import utils.ema (row 2)"),
        ("utils/metrics.py", "from data.index import Index", "must not import data.index (data)"),
        ("utils/plots.py", "import models", "must not import models (models)"),
        ("utils/general.py", "", "in no row"),
        ("models/loss.py", "from data.loader import Batch", "must not import data.loader (data)"),
        ("data/loader.py", "from models import yolo", "must not import models.yolo (models)"),
        ("models/yolo.py", "from val import evaluate", "must not import val (val)"),
        ("data/index.py", "import train", "must not import train (train)"),
        ("val.py", "from train import main", "must not import train (train)"),
        ("detect.py", "from train import main", "must not import train (train)"),
        (
            "utils/seed.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from utils.hyp import Hyp",
            "seed.py:3: utils.seed (row 1) must not import utils.hyp",
        ),
        # place
        ("data/loader.py", "def f():\n    from data.index import Index", "loader.py:2: data.index is imported inside"),
        ("models/yolo.py", "class A:\n    def f(self):\n        import models.loss", "models.loss is imported inside"),
        ("models/yolo.py", "from . import loss", "a relative import"),
        ("models/yolo.py", "from .loss import Loss", "a relative import"),
        ("models/yolo.py", "import ultralytics", "ultralytics is no dependency"),
        ("utils/optim.py", "def f():\n    import pandas", "pandas is no dependency"),
        # one file each
        ("utils/metrics.py", "import matplotlib.pyplot as plt", "only utils/plots.py may use matplotlib"),
        ("train.py", "def f():\n    from matplotlib import pyplot", "only utils/plots.py may use matplotlib"),
        ("train.py", "import os\nos.environ.get('LOCAL_RANK', -1)", "only utils/dist.py may read LOCAL_RANK"),
        ("data/loader.py", "import os\nos.environ['WORLD_SIZE']", "only utils/dist.py may read WORLD_SIZE"),
        ("train.py", "import torch\ntorch.save({}, 'x')", "only utils/checkpoint.py may use torch.save"),
        ("val.py", "import torch as t\nt.load('x', weights_only=True)", "only utils/checkpoint.py may use torch.load"),
        ("val.py", "import torch.distributed\ntorch.load('x')", "only utils/checkpoint.py may use torch.load"),
        ("val.py", "from torch import load", "only utils/checkpoint.py may use torch.load"),
        ("val.py", "import torch\nread = torch.load", "only utils/checkpoint.py may use torch.load"),
        ("data/config.py", "import urllib.request", "only data/download.py may use urllib"),
        ("data/config.py", "def f():\n    import socket", "only data/download.py may use socket"),
        ("models/yolo.py", "from http.client import HTTPConnection", "only data/download.py may use http"),
        # nothing is run
        ("data/config.py", "eval('1')", "eval() runs what it is given"),
        ("models/yolo.py", "exec('x = 1')", "exec() runs what it is given"),
        ("models/yolo.py", "import builtins\nbuiltins.eval('1')", "builtins.eval() runs"),
        ("models/yolo.py", "__import__('os')", "__import__() runs"),
        ("data/cache.py", "import pickle\npickle.loads(b'')", "pickle.loads: pickle runs what it reads"),
        ("data/cache.py", "from pickle import Unpickler", "pickle.Unpickler: pickle runs"),
        ("data/cache.py", "import pickle as p\np.dump(1, f)", "pickle.dump: pickle runs"),
        ("data/cache.py", "import marshal", "marshal runs what it reads"),
        ("data/cache.py", "from pickle import loads as safe", "pickle.loads: pickle runs"),
        ("data/cache.py", "import _pickle", "_pickle runs what it reads"),
        ("data/cache.py", "class A:\n    def __reduce__(self): return f, ()", "__reduce__: archives are unpacked"),
        ("data/cache.py", "class A:\n    def __reduce_ex__(self, v): return f, ()", "__reduce_ex__"),
        ("data/cache.py", "import copyreg", "copyreg runs"),
        ("data/config.py", "run = eval\nrun('1')", "eval runs what it is given, whatever it is called"),
        ("data/config.py", "list(map(exec, lines))", "exec runs what it is given, whatever it is called"),
        ("data/config.py", "import os\nos.system('x')", "os.system is not to be used"),
        ("data/config.py", "import os as o\nrun = o.popen", "os.popen is not to be used"),
        ("data/config.py", "from os import execvp", "os.execvp is not to be used"),
        ("data/config.py", "import os\nos.spawnl(0, 'x')", "os.spawnl is not to be used"),
        ("data/config.py", "import os\nos.posix_spawn('x', [], {})", "os.posix_spawn is not to be used"),
        ("data/config.py", "import os\nos.fork()", "os.fork is not to be used"),
        ("data/config.py", "import os\ngetattr(os, 'system')('x')", "os.system is not to be used"),
        ("data/config.py", "import os\ngetattr(os, name)('x')", "getattr(os, …) asks a module for a name"),
        ("data/config.py", "import os\nvars(os)[name]('x')", "vars(os, …) asks a module for a name"),
        ("data/config.py", "import builtins\ngetattr(builtins, 'ev' + 'al')('1')", "getattr(builtins, …) asks"),
        ("data/config.py", "__builtins__['eval']('1')", "__builtins__ is not to be used"),
        ("data/config.py", "import sys\nsys.modules['os'].system('x')", "sys.modules is not to be used"),
        ("data/config.py", "import subprocess\nsubprocess.run(['x'])", "subprocess.run runs what it reads, or starts"),
        ("data/config.py", "from subprocess import Popen", "subprocess.Popen runs what it reads, or starts programs"),
        ("data/config.py", "f('x', shell=True)", "shell=: no shell is started"),
        ("data/config.py", "import pip", "pip runs what it reads, or starts programs"),
        ("data/config.py", "import pty", "pty runs"),
        ("data/config.py", "import ctypes", "only utils/device.py may use ctypes"),
        ("data/config.py", "import runpy\nrunpy.run_path('x')", "runpy.run_path runs"),
        (
            "data/config.py",
            "import multiprocessing",
            "only utils/signals.py, data/processes.py may use",
        ),
        (
            "data/config.py",
            "import importlib\nimportlib.import_module('x')",
            "only utils/schedule.py may use importlib",
        ),
        (
            "data/config.py",
            "import importlib.util as u\nu.spec_from_file_location('a', 'b')",
            "importlib.util.spec_from",
        ),
        ("data/config.py", "''.__class__.__base__.__subclasses__()", "__subclasses__"),
        ("data/formats.py", "from xml.sax import parse", "xml.sax.parse is not to be used"),
        ("data/formats.py", "import xml.dom.minidom", "xml.dom.minidom is not to be used"),
        ("data/formats.py", "import lxml.etree", "lxml.etree runs"),
        ("models/build.py", "import torch\ntorch.hub.load('a', 'b')", "torch.hub.load is not to be used"),
        ("models/build.py", "import torch\ntorch.hub.get_dir()", "only models/backbone.py may use torch.hub"),
        ("models/build.py", "import torch\ntorch.jit.load('x')", "torch.jit.load is not to be used"),
        ("models/build.py", "from torch.serialization import load", "torch.serialization.load is not to be used"),
        (
            "utils/checkpoint.py",
            "import torch\ntorch.serialization.add_safe_globals([f])",
            "add_safe_globals is not to",
        ),
        ("models/build.py", "import torch\ntorch.ops.load_library('x')", "torch.ops.load_library is not to be used"),
        ("data/download.py", "import tarfile", "only data/unpack.py may use tarfile"),
        ("data/unpack.py", "import zipfile\nzipfile.ZipFile('x').extractall()", "extractall: archives are unpacked by"),
        ("data/unpack.py", "import tarfile\ntarfile.open('x').extract('a')", "extract: archives are unpacked by"),
        ("data/download.py", "import shutil\nshutil.unpack_archive('x')", "shutil.unpack_archive is not to be used"),
        ("data/index.py", "import numpy as np\nnp.load('x')", "numpy.load without allow_pickle=False"),
        ("data/index.py", "import numpy as np\nnp.load('x', **options)", "numpy.load without allow_pickle=False"),
        ("utils/loggers.py", "import asyncio", "only data/download.py may use asyncio"),
        ("utils/loggers.py", "import requests", "only data/download.py may use requests"),
        ("data/config.py", "import yaml\nyaml.add_constructor('!x', f)", "yaml.add_constructor is not to be used"),
        ("data/config.py", "import yaml\nclass A(yaml.YAMLObject): pass", "yaml.YAMLObject is not to be used"),
        ("data/index.py", "import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle must be False"),
        ("utils/checkpoint.py", "import torch\ntorch.load('x')", "torch.load without weights_only=True"),
        ("utils/checkpoint.py", "import torch\ntorch.load('x', weights_only=False)", "weights_only=False"),
        ("utils/checkpoint.py", "def f(only):\n    import torch\n    torch.load('x', weights_only=only)", "without"),
        # yaml
        ("data/config.py", "import yaml\nyaml.load('x')", "yaml.load without a safe Loader"),
        ("data/config.py", "import yaml\nyaml.load('x', Loader=yaml.FullLoader)", "yaml.FullLoader is no safe loader"),
        ("data/config.py", "import yaml\nyaml.load('x', yaml.UnsafeLoader)", "yaml.load without a safe Loader"),
        ("data/config.py", "from yaml import unsafe_load", "yaml.unsafe_load is no safe loader"),
        ("data/config.py", "import yaml\nyaml.compose('x')", "yaml.compose without a safe Loader"),
        ("data/config.py", "import yaml\nclass L(yaml.Loader): pass\nyaml.load('x', L)", "yaml.load without a safe"),
    ],
)
def test_a_breach_is_found(path: str, source: str, words: str) -> None:
    assert any(words in fault for fault in check({path: source})), check({path: source})


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("utils/hyp.py", "from utils.errors import UserError"),
        ("utils/optim.py", "from utils.hyp import Hyp\nfrom utils import dist\nfrom utils.errors import UserError"),
        ("models/loss.py", "from models.assigner import assign\nfrom utils.checkpoint import load\nimport torch"),
        ("data/loader.py", "from data.index import Index\nfrom utils.seed import rng\nimport numpy as np"),
        ("val.py", "from models.yolo import YOLO\nfrom data.index import Index\nfrom utils.metrics import fitness"),
        ("train.py", "import val\nfrom val import evaluate\nfrom utils import dist"),
        ("detect.py", "from val import load_model"),
        ("utils/plots.py", "def f():\n    from matplotlib.figure import Figure"),
        ("utils/metrics.py", "def f():\n    from faster_coco_eval import COCO"),
        ("utils/dist.py", "import os\nos.environ['RANK']"),
        (
            "train.py",
            "'''How RANK is set.'''\nmodel.eval()\nimport re\nre.compile('x')\nimport torch\ntorch.compile(f)",
        ),
        (
            "utils/checkpoint.py",
            "import torch\ntorch.load('x', map_location='cpu', weights_only=True)\ntorch.save(1, f)",
        ),
        ("utils/checkpoint.py", "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass"),
        ("data/download.py", "import urllib.request\nimport urllib.error"),
        ("data/config.py", "import yaml\nyaml.safe_load('x')\nyaml.compose('x', Loader=yaml.SafeLoader)"),
        ("data/config.py", "import yaml\nclass L(yaml.SafeLoader): pass\nyaml.load('x', Loader=L)"),
        ("data/index.py", "import numpy as np\nnp.load('x', allow_pickle=False)"),
        ("data/unpack.py", "import tarfile, zipfile\ntarfile.open('x').extractfile(member)"),
        ("utils/rundir.py", "import os\ngetattr(os, 'O_CLOEXEC', 0)\ngetattr(state, name)"),
        ("utils/signals.py", "import signal\nfrom multiprocessing.process import BaseProcess\ngetattr(signal, name)"),
        ("data/formats.py", "import xml.etree.ElementTree as ET\nET.fromstring(b'')"),
        ("models/backbone.py", "import torch\ntorch.hub.get_dir()"),
    ],
)
def test_what_is_allowed_is_left_in_peace(path: str, source: str) -> None:
    assert check({path: source}) == []


def test_a_circle_is_found() -> None:
    ring = {
        "models/a.py": "from models.b import x",
        "models/b.py": "from models import c",
        "models/c.py": "import models.a",
        "models/d.py": "from models.a import x",
        "models/e.py": "",
    }
    assert check(ring) == ["a circle of imports among: models.a, models.b, models.c, models.d"]
    assert check({**ring, "models/c.py": "from models.e import x"}) == []
