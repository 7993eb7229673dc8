"""The data yaml: which images, which labels, which classes. Nothing in it is ever executed."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml

from data.cache import cache_root
from data.download import Archive, fetch
from data.shapes import ensure_shapes
from utils.errors import UserError, printable, refuse, suggest, text_fault

PROJECT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "val", "test")
NEAR = 0.66  # how alike a key must be to one that is absent: `tset`, `vla`, `nmaes`
T = TypeVar("T")
SOURCE_KEYS = ("images", "annotations", "split")
ARCHIVE_KEYS = ("url", "sha256", "size", "folder", "to")
KEYS = ("path", "train", "val", "test", "names", "nc", "kpt_shape", "download", "embedded")
# Other words for a key; keys that are none of these are notes of whoever made the file, and left alone.
SYNONYMS = {
    **dict.fromkeys(("valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("training", "train_images"), "train"),
    **dict.fromkeys(("testing", "test_images"), "test"),
    **dict.fromkeys(("classes", "class_names", "labels", "categories"), "names"),
    **dict.fromkeys(("num_classes", "n_classes", "number_of_classes"), "nc"),
    **dict.fromkeys(("root", "root_dir", "dataset_path", "data_path", "base_path"), "path"),
}
MAX_BYTES, MAX_VALUES = 4 << 20, 200_000  # of a yaml; a reference to a list counts as often as what it stands for
NOTHING = (None, "", "~", "null", "Null", "NULL")


@dataclass(frozen=True)
class Source:
    """One place that labelled images come from.

    images: a folder, searched with all below it, or (YOLO labels only) a txt file that lists images.
    annotations: None for YOLO txt files beside the images; a folder of Pascal VOC XML files; a COCO JSON file.
    lists: files that name the wanted images, a line each; none means all of them.
    """

    images: Path
    annotations: Path | None = None
    lists: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Split:
    """The sources of `train`, `val` or `test`, and why they can't be read (empty when they can)."""

    sources: tuple[Source, ...]
    missing: str = ""


@dataclass(frozen=True)
class DataConfig:
    """A data yaml, read and checked.

    root: the folder that the yaml's paths are relative to.
    label_names: the names as the labels know them; `names` are those of the model (one for all with `single_cls`).
    keypoints: numbers that follow the box in a row of a YOLO pose label (`kpt_shape`); they are not read.
    archives: where `--download` gets the data set from.
    """

    file: Path
    root: Path
    label_names: tuple[str, ...]
    splits: dict[str, Split] = field(default_factory=dict)
    single_cls: bool = False
    keypoints: int = 0
    archives: tuple[Archive, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return ("item",) if self.single_cls and len(self.label_names) > 1 else self.label_names

    @property
    def nc(self) -> int:
        return len(self.names)

    def split(self, name: str) -> Split:
        """Return the split's sources; `UserError` where the yaml has no such split or its files aren't there."""
        if name not in self.splits:
            have = ", ".join(self.splits) or "none of train, val, test"
            raise UserError(f"{self.file}: {name}: this key is missing (the file has {have})")
        if self.splits[name].missing:
            raise UserError(self.splits[name].missing + self._download_hint())
        return self.splits[name]

    def _download_hint(self) -> str:
        if not self.archives:
            return ""
        if self.root.exists():
            return f"; {self.root} exists, and --download writes over nothing: move it away to fetch the data set"
        return "; add --download to fetch the data set"


def load_data_config(
    path_or_name: str | os.PathLike[str], single_cls: bool = False, download: bool = False
) -> DataConfig:
    """Read a data yaml: a path, or the name of one of the project's (`shapes`, `bccd.yaml`).

    A relative path is looked for from the working directory, then from the project's folder and its `data/`.
    A split whose files are absent is an error only when it is asked for (`DataConfig.split`). With `download`, a data
    set whose folder is absent is fetched from the sources that the yaml gives.
    Raises `UserError` naming file, line and key.
    """
    document = _Document(_find_yaml(os.fspath(path_or_name)))
    config = _read_config(document, single_cls)
    if download and not config.root.exists():
        if not config.archives:
            what = "is a script, and scripts are never run" if document.get("download") else "is missing"
            raise document.error("download", f"{what}: get the data set by hand and put it at {config.root}")
        fetch(config.archives, config.root)
        config = _read_config(document, single_cls)
    return config


class _TextLoader(yaml.BaseLoader):
    """Leaves every scalar the text it is (a class may be called `no`, `on` or `007`) and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                problem = f"the key '{name}' is already on line {seen[name]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen[name] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


class _Document:
    """A yaml's values as text, and the line of each top key."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            if file.stat().st_size > MAX_BYTES:
                raise UserError(f"{file}: {file.stat().st_size:,} bytes are too many for a data yaml")
            loader = _TextLoader(file.read_text(encoding="utf-8-sig"))
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                raise UserError(f"{file}: not a data yaml: it has no `key: value` lines")
            if not _is_small(node):
                raise UserError(f"{file}: not a data yaml: its references (`*name`) unfold into too many values")
            self.values: dict[str, Any] = loader.construct_document(node)
        except OSError as error:
            raise UserError(f"{file}: can't be read: {error.strerror or error}") from None
        except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or f"not text that can be read ({type(error).__name__})"
            raise UserError(
                f"{file}{f':{mark.line + 1}' if mark else ''}: not valid yaml: {printable(problem)}"
            ) from None
        self.lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}

    def get(self, key: str) -> Any:
        """The value as str, list or dict; None where the key is absent or empty."""
        value = self.values.get(key)
        return None if isinstance(value, str) and value in NOTHING else value

    def error(self, key: str, text: str) -> UserError:
        line = f":{self.lines[key]}" if key in self.lines else ""
        return UserError(f"{self.file}{line}: {printable(f'{key}: {text}')}")

    def texts(self, key: str, value: Any) -> list[str]:
        """A text, or a list of texts, as a list."""
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(item, str) and item not in NOTHING for item in values):
            raise self.error(key, f"{_short(value)} is neither a text nor a list of texts")
        for item in values:
            if fault := text_fault(item):
                raise self.error(key, f"{_short(item)}: {fault}")
        return values


def _is_small(root: yaml.Node) -> bool:
    """Are there at most `MAX_VALUES` values in a yaml, references unfolded? Not so where one holds itself."""
    waiting, count = [root], 0
    while waiting and count + len(waiting) <= MAX_VALUES:
        node, count = waiting.pop(), count + 1
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return not waiting


def _short(value: Any) -> str:
    """A value as a message repeats it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _find_yaml(text: str) -> Path:
    bases = (Path(), PROJECT, PROJECT / "data")
    given = Path(text).expanduser()
    for path in [base / name for base in bases for name in (given, Path(f"{given}.yaml"))]:
        if path.is_file():
            return Path(os.path.abspath(path))
    if given.is_dir():
        inside = ", ".join(sorted(path.name for path in given.glob("*.y*ml"))) or "none"
        raise UserError(f"data '{text}': a folder; give a yaml file (those in it: {inside})")
    own = sorted(path.stem for path in (PROJECT / "data").glob("*.yaml"))
    hint = suggest(given.stem, own) or _nearest(Path(os.path.abspath(given)))
    raise UserError(f"data '{text}': no such yaml file, and none of the project's ({', '.join(own)}){hint}")


def _read_config(document: _Document, single_cls: bool) -> DataConfig:
    faults = _misspelt(document)

    def read(part: Callable[..., T], *more: Any, otherwise: T) -> T:
        """Read a part of the file; its fault waits for those of the other parts."""
        try:
            return part(document, *more)
        except UserError as error:
            faults.append(str(error))
            return otherwise

    root, missing = read(_root, otherwise=(Path(), ""))
    names = read(_names, otherwise=())
    nothing = Split(())
    splits = {
        key: read(_split, key, root, missing, otherwise=nothing) for key in SPLITS if document.get(key) is not None
    }
    if not splits and not faults:
        faults.append(f"{document.file}: none of train, val, test is there")
    if any(source.annotations for split in splits.values() for source in split.sources):
        double = [name for name, count in Counter(names).items() if count > 1]
        if double:
            fault = f"'{double[0]}' is there twice, and these annotations go by name"
            faults.append(str(document.error("names", fault)))
    keypoints = read(_keypoints, otherwise=0)
    archives = read(_archives, otherwise=())
    refuse(faults, str(document.file))
    return DataConfig(document.file, root, names, splits, single_cls, keypoints, archives)


def _misspelt(document: _Document) -> list[str]:
    """Keys that are spelled almost as one that is absent, or that other projects take for it."""
    faults = []
    absent = [key for key in KEYS if key not in document.values]
    for name in (name for name in document.values if name not in KEYS):
        near = difflib.get_close_matches(name.lower(), absent, n=1, cutoff=NEAR)
        key = SYNONYMS.get(name.lower(), near[0] if near else "")
        if key in absent:
            faults.append(str(document.error(name, f"not a key; did you mean '{key}'?")))
    return faults


def _root(document: _Document) -> tuple[Path, str]:
    """The folder that paths are relative to, and what is wrong with it (empty: nothing).

    `path` may be a list: the first that exists. Each is relative to the yaml, then to the working directory, then to
    the `datasets` folders in and beside that (where YOLOv5 and Ultralytics keep theirs).
    """
    embedded = document.get("embedded")
    if embedded is not None:
        if embedded != "shapes":
            raise document.error("embedded", f"'{embedded}' is not embedded; only 'shapes' is")
        return ensure_shapes(cache_root()).resolve(), ""
    value = document.get("path")
    if value is None:
        return document.file.parent.resolve(), ""
    here = Path.cwd()
    bases = (document.file.parent, here, here / "datasets", here.parent / "datasets")
    tried = [base / Path(text).expanduser() for base in bases for text in document.texts("path", value)]
    for path in tried:
        if path.is_dir():
            return path.resolve(), ""
    return Path(os.path.abspath(tried[0])), str(document.error("path", _not_there(tried)))


def _split(document: _Document, key: str, root: Path, missing: str) -> Split:
    value = document.get(key)
    bases = [root] if document.get("path") is not None or document.get("embedded") else [root, Path.cwd()]
    sources: list[Source] = []
    faults = [missing] if missing else []

    def locate(text: Any) -> Path:
        if not isinstance(text, str) or text in NOTHING:
            raise document.error(key, f"{_short(text)} is not a path")
        document.texts(key, text)
        tried = _candidates(text, bases)
        found = next((path for path in tried if path.exists()), None)
        if found is None:
            faults.append(str(document.error(key, f"'{text}': {_not_there(tried)}")))
        return Path(os.path.abspath(found or tried[0]))

    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            sources.append(Source(locate(item)))
            continue
        for name in item:
            if name not in SOURCE_KEYS:
                raise document.error(
                    key, f"unknown key '{name}' (allowed: {', '.join(SOURCE_KEYS)}){suggest(name, SOURCE_KEYS)}"
                )
        if "images" not in item or "annotations" not in item:
            raise document.error(key, "a mapping needs `images` (a folder) and `annotations` (a folder or a json file)")
        lists = document.texts(key, item["split"]) if item.get("split") not in NOTHING else []
        sources.append(Source(locate(item["images"]), locate(item["annotations"]), tuple(map(locate, lists))))
    return Split(tuple(sources), faults[0] if faults else "")


def _candidates(text: str, bases: Sequence[Path]) -> list[Path]:
    """Where a split's path may be. Roboflow writes `../train/images` for what lies at `train/images`."""
    path = Path(text).expanduser()
    inside = [Path(*path.parts[1:])] if path.parts[:1] == ("..",) and len(path.parts) > 1 else []
    return list(dict.fromkeys(base / each for each in [path, *inside] for base in bases))


def _not_there(tried: Iterable[Path]) -> str:
    paths = list(dict.fromkeys(os.path.abspath(path) for path in tried))
    more = f" and {len(paths) - 4} more places" if len(paths) > 4 else ""
    return f"no such file or folder (tried {', '.join(paths[:4])}{more}){_nearest(Path(paths[0]))}"


def _nearest(path: Path) -> str:
    """Name the deepest folder on the way to a missing path that exists, and what in it is spelled alike."""
    for parent in path.parents:
        if parent.is_dir():
            wrong = path.relative_to(parent).parts[0]
            try:
                near = suggest(wrong, sorted(os.listdir(parent)))
            except OSError:
                near = ""
            return f"; the nearest that exists is {parent}{near}"
    return ""


def _names(document: _Document) -> tuple[str, ...]:
    value, count = document.get("names"), document.get("nc")
    if count is not None and not (isinstance(count, str) and re.fullmatch(r"[1-9]\d{0,5}", count)):
        raise document.error("nc", f"{_short(count)} is not a number of classes (a whole number, at least 1)")
    if value is None:
        if count is None:
            raise document.error("names", "this key is missing: a list of class names, or a map from number to name")
        return tuple(f"class_{i}" for i in range(int(count)))
    if isinstance(value, dict):
        value = _names_from_map(document, value)
    if not isinstance(value, list) or not value:
        raise document.error("names", f"{_short(value)} is neither a list of class names nor a map from number to name")
    for i, name in enumerate(value):
        if not isinstance(name, str) or not name.strip():
            raise document.error("names", f"name {i}, {_short(name)}, is not a text")
        if printable(name) != name or len(name) > 200:
            raise document.error("names", f"name {i}, {_short(name)}, is too long or holds what can't be shown")
    if count is not None and int(count) != len(value):
        raise document.error("nc", f"{count}, but `names` has {len(value)}")
    return tuple(name.strip() for name in value)


def _names_from_map(document: _Document, names: dict[Any, Any]) -> list[Any]:
    for key in names:
        if not (isinstance(key, str) and re.fullmatch(r"\d{1,6}", key)):
            raise document.error("names", f"the map must go from number to name; {_short(key)} is not a number")
    numbered = {int(key): name for key, name in names.items()}
    absent = [i for i in range(len(names)) if i not in numbered]
    if absent:
        raise document.error(
            "names", f"{len(names)} names must be numbered 0 to {len(names) - 1}; {absent[0]} is missing"
        )
    return [numbered[i] for i in range(len(names))]


def _keypoints(document: _Document) -> int:
    shape = document.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(re.fullmatch("[0-9]{1,4}", str(n)) for n in shape)):
        raise document.error("kpt_shape", f"{_short(shape)} is not [number of keypoints, 2 or 3]")
    return int(shape[0]) * int(shape[1])


def _archives(document: _Document) -> tuple[Archive, ...]:
    """What `download` names: a URL, a mapping (see `Archive`), or a list of these. Anything else (Ultralytics allows
    shell and Python there) is left alone, and never run."""
    value = document.get("download")
    items = value if isinstance(value, list) else [value]
    if not all(
        isinstance(item, dict) or (isinstance(item, str) and re.fullmatch(r"https?://\S+", item)) for item in items
    ):
        return ()
    return tuple(_archive(document, item if isinstance(item, dict) else {"url": item}) for item in items)


def _archive(document: _Document, item: dict[Any, Any]) -> Archive:
    for key, value in item.items():
        if key not in ARCHIVE_KEYS:
            allowed = ", ".join(ARCHIVE_KEYS)
            raise document.error("download", f"unknown key '{key}' (allowed: {allowed}){suggest(key, ARCHIVE_KEYS)}")
        if not isinstance(value, str):
            raise document.error("download", f"{key}: {_short(value)} is not a text")
    if "url" not in item:
        raise document.error("download", "a mapping needs `url`")
    if not re.fullmatch(r"[0-9]{0,18}", item.get("size", "")):
        raise document.error("download", f"size: {_short(item['size'])} is not a number of bytes")
    if not re.fullmatch(r"([0-9a-fA-F]{64})?", item.get("sha256", "")):
        raise document.error("download", f"sha256: {_short(item['sha256'])} is not 64 hexadecimal digits")
    for key in ("folder", "to"):
        path = PurePosixPath(item.get(key, ""))
        if path.is_absolute() or ".." in path.parts or text_fault(str(path)):
            raise document.error("download", f"{key}: {_short(item[key])} must be a folder below")
    size = int(item["size"]) if item.get("size") else None
    digest = item["sha256"].lower() if item.get("sha256") else None
    return Archive(item["url"], digest, size, item.get("folder", ""), item.get("to", ""))
