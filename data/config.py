"""The data yaml: which images, which labels, which classes. Nothing in it is ever executed."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from data.cache import cache_root
from data.document import NOTHING, Document, shorten
from data.download import Archive, fetch
from data.faults import DataError, Fault
from data.shapes import ensure_shapes
from utils.errors import printable, suggest, text_fault

PROJECT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "val", "test")
SOURCE_KEYS = ("images", "annotations", "split")
ARCHIVE_KEYS = ("url", "sha256", "size", "folder", "to")
KEYS = ("path", *SPLITS, "names", "nc", "max_missing_labels", "embedded", "kpt_shape", "download")
# What people write for a key, beside slips of the keyboard.
OTHER_WORDS = {
    **dict.fromkeys(("valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("training", "train_images"), "train"),
    **dict.fromkeys(("testing", "test_images"), "test"),
    **dict.fromkeys(("classes", "class_names", "labels", "categories"), "names"),
    **dict.fromkeys(("num_classes", "n_classes", "number_of_classes"), "nc"),
    **dict.fromkeys(("root", "root_dir", "dataset_path", "data_path", "base_path"), "path"),
}
NEAR, NEAR_SHORT = 0.75, 0.66  # likeness of a slip of the keyboard, such as `nmaes`; in three letters, such as `vla`
MAX_MISSING_LABELS = 0.5
MAX_NAME = 200  # characters of the name of a class


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
    missing: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class DataConfig:
    """A data yaml, read and checked.

    root: the folder that the yaml's paths are relative to.
    label_names: the names as the labels know them; `names` are those of the model (one for all with `single_cls`).
    keypoints: numbers that follow the box in a row of a YOLO pose label (`kpt_shape`); they are not read.
    archives: where `--download` gets the data set from.
    max_missing_labels: largest share of a split's images that may have no label file.
    empty: splits that the yaml names and leaves empty.
    faults: what is odd in the yaml and stops nothing.
    """

    file: Path
    root: Path
    label_names: tuple[str, ...]
    splits: dict[str, Split] = field(default_factory=dict)
    single_cls: bool = False
    keypoints: int = 0
    archives: tuple[Archive, ...] = ()
    max_missing_labels: float = MAX_MISSING_LABELS
    empty: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return ("item",) if self.single_cls and len(self.label_names) > 1 else self.label_names

    @property
    def nc(self) -> int:
        return len(self.names)

    def split(self, name: str) -> Split:
        """Return the split's sources; `DataError` where the yaml has no such split or its files aren't there."""
        if name not in self.splits:
            what = "nothing stands behind this key" if name in self.empty else "this key is missing"
            text = f"{what} (the file has {', '.join(self.splits)}): name a folder of images, or a list"
            raise DataError(Fault.of("yaml-split-missing", str(self.file), name, text))
        if self.splits[name].missing:
            hint = self._download_hint()
            raise DataError(*(replace(fault, text=fault.text + hint) for fault in self.splits[name].missing))
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
    Raises `DataError` with all that is wrong, each naming file, line and key.
    """
    document = Document(_find_yaml(os.fspath(path_or_name)))
    config = _read_config(document, single_cls)
    if download and not config.root.exists():
        if not config.archives:
            what = "is a script, and scripts are never run" if document.get("download") else "is missing"
            raise document.error(
                "yaml-value", "download", f"{what}: get the data set by hand and put it at {config.root}"
            )
        fetch(config.archives, config.root)
        config = _read_config(document, single_cls)
    return config


def _find_yaml(text: str) -> Path:
    bases = (Path(), PROJECT, PROJECT / "data")
    given = _expand(text)
    for path in [base / name for base in bases for name in (given, Path(f"{given}.yaml"))]:
        if os.path.isfile(path):
            return Path(os.path.abspath(path))
    if os.path.isdir(given):
        inside = ", ".join(sorted(path.name for path in given.glob("*.y*ml"))) or "none"
        why = f"a folder; give a yaml file (those in it: {inside})"
        raise DataError(Fault.of("yaml-missing", f"data '{text}'", "", why))
    own = sorted(path.stem for path in (PROJECT / "data").glob("*.yaml"))
    hint = suggest(given.stem, own) or _nearest(Path(os.path.abspath(given)))
    why = f"no such yaml file, and none of the project's ({', '.join(own)}){hint}"
    raise DataError(Fault.of("yaml-missing", f"data '{text}'", "", why))


def _expand(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # the home folder of a user who doesn't exist
        return Path(text)


T = TypeVar("T")


def _read_config(document: Document, single_cls: bool) -> DataConfig:
    faults: list[Fault] = _slips(document)

    def collect(read: Callable[..., T], *arguments: Any, otherwise: T) -> T:
        try:
            return read(document, *arguments)
        except DataError as error:
            faults.extend(error.faults)
            return otherwise

    place = collect(_root, otherwise=None)
    root, missing = place or (Path(), ())
    names = collect(_names, otherwise=())
    splits = {}
    empty = tuple(key for key in SPLITS if key in document.values and document.get(key) is None)
    for key in SPLITS:
        if document.get(key) is not None:
            splits[key] = collect(_split, key, root, missing, otherwise=Split(()))
    keypoints = collect(_keypoints, otherwise=0)
    archives = collect(_archives, otherwise=())
    max_missing_labels = collect(_max_missing_labels, otherwise=MAX_MISSING_LABELS)
    if not splits and not faults:
        text = "none of train, val, test is there: name a folder of images, or a list of them, for each"
        faults.append(Fault.of("yaml-split-missing", str(document.file), "", text))
    by_name = any(source.annotations for split in splits.values() for source in split.sources)
    alike = _names_alike(document, names, by_name)
    faults += alike if by_name else []
    if faults:
        if place and not archives:  # else the files may be there yet
            faults += [fault for key in ("train", "val") if key in splits for fault in splits[key].missing]
        raise DataError(*dict.fromkeys(faults))
    return DataConfig(
        file=document.file,
        root=root,
        label_names=names,
        splits=splits,
        single_cls=single_cls,
        keypoints=keypoints,
        archives=archives,
        max_missing_labels=max_missing_labels,
        empty=empty,
        faults=tuple(alike),
    )


def _slips(document: Document) -> list[Fault]:
    """Unknown keys that look like a slip for a key that is absent. Others are notes, of the user or of an export."""
    meant = {str(key): _meant(document, key) for key in document.values}
    return [
        document.fault("yaml-key-unknown", key, f"unknown key; did you mean '{word}'?")
        for key, word in meant.items()
        if word
    ]


def _meant(document: Document, key: object) -> str:
    """The key that is absent and that an unknown one seems to stand for, or an empty text."""
    word = str(key)
    absent = [] if word in KEYS else [known for known in KEYS if known not in document.values]
    near = difflib.get_close_matches(word.lower(), absent, n=1, cutoff=NEAR if len(word) > 3 else NEAR_SHORT)
    other = OTHER_WORDS.get(word.lower(), "")
    return near[0] if near else other if other in absent else ""


def _names_alike(document: Document, names: Sequence[str], by_name: bool) -> list[Fault]:
    double = [name for name, count in Counter(names).items() if count > 1]
    if not double:
        return []
    places = [i for i, name in enumerate(names) if name == double[0]]
    said = f"'{double[0]}' is there twice, as class {' and '.join(map(str, places[:2]))}"
    if by_name:
        text = f"{said}, and these annotations go by name: give each class its own"
        return [document.fault("yaml-names-twice", "names", text)]
    return [document.fault("yaml-names-alike", "names", f"{said}: read as two classes; give each its own name")]


def _max_missing_labels(document: Document) -> float:
    value = document.get("max_missing_labels")
    if value is None:
        return MAX_MISSING_LABELS
    if not (isinstance(value, str) and re.fullmatch(r"0?\.\d+|[01](\.0*)?", value)):
        text = f"{shorten(value)} is not a share of the images: write a number from 0 to 1"
        raise document.error("yaml-value", "max_missing_labels", text)
    return float(value)


def _root(document: Document) -> tuple[Path, tuple[Fault, ...]]:
    """The folder that paths are relative to, and what is wrong with it (empty: nothing).

    `path` may be a list: the first that exists. Each is relative to the yaml, then to the working directory, then to
    the `datasets` folders in and beside that (where YOLOv5 and Ultralytics keep theirs). A yaml that lies in its
    set, beside a split, in a folder of the name that `path` ends with, means that folder.
    """
    embedded = document.get("embedded")
    if embedded is not None:
        if embedded != "shapes":
            raise document.error("yaml-value", "embedded", f"{shorten(embedded)} is not embedded; only 'shapes' is")
        return ensure_shapes(cache_root()).resolve(), ()
    value = document.get("path")
    if value is None:
        return document.file.parent.resolve(), ()
    here = Path.cwd()
    bases = (document.file.parent, here, here / "datasets", here.parent / "datasets")
    tried = [base / _expand(text) for base in bases for text in document.texts("path", value)]
    for path in tried:
        if os.path.isdir(path):
            return path.resolve(), ()
    own = document.file.parent.resolve()
    named = any(
        not path.is_absolute() and path.name == own.name for path in map(_expand, document.texts("path", value))
    )
    splits = [split for split in map(document.get, SPLITS) if isinstance(split, str) and split not in NOTHING]
    if named and any(os.path.exists(own / _expand(split)) for split in splits):
        return own, ()
    return Path(os.path.abspath(tried[0])), (document.fault("yaml-path", "path", _not_there(tried)),)


def _split(document: Document, key: str, root: Path, missing: tuple[Fault, ...]) -> Split:
    value = document.get(key)
    bases = [root] if document.get("path") is not None or document.get("embedded") else [root, Path.cwd()]
    sources: list[Source] = []
    faults: list[Fault] = []

    def locate(text: Any) -> Path:
        if not isinstance(text, str) or text in NOTHING:
            raise document.error(
                "yaml-value", key, f"{shorten(text)} is not a path: name a folder, or a list of images"
            )
        document.texts(key, text)
        tried = _candidates(text, bases)
        found = next((path for path in tried if os.path.exists(path)), None)
        beside = [path for path in _candidates(text, bases[:1]) if os.path.exists(path)]
        if len({os.path.realpath(path) for path in beside}) > 1:  # two sets unpacked into each other
            both = " or ".join(map(os.path.abspath, beside))
            raise document.error("yaml-value", key, f"'{text[:200]}' may be {both}: write the whole path of one")
        if found is None:
            faults.append(document.fault("yaml-split-path", key, f"'{text[:200]}': {_not_there(tried)}"))
        return Path(os.path.abspath(found or tried[0]))

    if value == []:
        raise document.error("yaml-value", key, "an empty list: name a folder, or a list of images")
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            sources.append(Source(locate(item)))
            continue
        for name in item:
            if name not in SOURCE_KEYS:
                text = f"unknown key '{name}' (allowed: {', '.join(SOURCE_KEYS)}){suggest(name, SOURCE_KEYS)}"
                raise document.error("yaml-value", key, text)
        if "images" not in item or "annotations" not in item:
            raise document.error(
                "yaml-value", key, "a mapping needs `images` (a folder) and `annotations` (a folder or a json file)"
            )
        lists = document.texts(key, item["split"]) if item.get("split") not in NOTHING else []
        sources.append(Source(locate(item["images"]), locate(item["annotations"]), tuple(map(locate, lists))))
    # Where the root isn't there, nothing in it is, and that is said once.
    return Split(tuple(sources), missing or tuple(faults))


def _candidates(text: str, bases: Sequence[Path]) -> list[Path]:
    """Where a split's path may be. Roboflow writes `../train/images` for what lies at `train/images`."""
    path = _expand(text)
    inside = [Path(*path.parts[1:])] if path.parts[:1] == ("..",) and len(path.parts) > 1 else []
    return list(dict.fromkeys(base / each for base in bases for each in [path, *inside]))


def _not_there(tried: Iterable[Path]) -> str:
    paths = list(dict.fromkeys(os.path.abspath(path) for path in tried))
    more = f" and {len(paths) - 4} more places" if len(paths) > 4 else ""
    return f"no such file or folder (tried {', '.join(paths[:4])}{more}){_nearest(Path(paths[0]))}"


def _nearest(path: Path) -> str:
    """Name the deepest folder on the way to a missing path that exists, and what in it is spelled alike, or the link to
    nothing that is in the way."""
    for parent in path.parents:
        if os.path.isdir(parent):
            wrong = path.relative_to(parent).parts[0]
            if os.path.islink(parent / wrong):
                return f"; {parent / wrong} is a link to {os.readlink(parent / wrong)}, which isn't there"
            try:
                near = suggest(wrong, sorted(os.listdir(parent)))
            except OSError:
                near = ""
            known = parent in (Path.cwd(), Path(parent.anchor)) and not near
            return "" if known else f"; the nearest that exists is {parent}{near}"
    return ""


def _names(document: Document) -> tuple[str, ...]:
    value, count = document.get("names"), document.get("nc")
    if value is None and any(_meant(document, key) == "names" for key in document.values):
        return ()  # which is said of that key
    if count is not None and not (isinstance(count, str) and re.fullmatch(r"[1-9]\d{0,5}", count)):
        raise document.error(
            "yaml-nc", "nc", f"{shorten(count)} is not a number of classes (a whole number, at least 1)"
        )
    if value is None:
        if count is None:
            text = "this key is missing: write a list of class names, or a map from number to name"
            raise document.error("yaml-names-missing", "names", text)
        return tuple(f"class_{i}" for i in range(int(count)))
    if isinstance(value, dict):
        value = _names_from_map(document, value)
    if not isinstance(value, list) or not value:
        text = f"{shorten(value)} is neither a list of class names nor a map from number to name"
        raise document.error("yaml-value", "names", text)
    for i, name in enumerate(value):
        if not isinstance(name, str) or not name.strip():
            raise document.error("yaml-value", "names", f"name {i}, {shorten(name)}, is not a text")
        if printable(name) != name or len(name) > MAX_NAME:
            text = f"name {i}, {shorten(name)}, is too long or holds what can't be shown: write another"
            raise document.error("yaml-value", "names", text)
    if count is not None and int(count) != len(value):
        raise document.error("yaml-nc", "nc", f"{count}, but `names` has {len(value)}: correct one, or leave `nc` out")
    return tuple(name.strip() for name in value)


def _names_from_map(document: Document, names: dict[Any, Any]) -> list[Any]:
    for key in names:
        if not (isinstance(key, str) and re.fullmatch(r"\d{1,6}", key)):
            text = f"the map must go from number to name; {shorten(key)} is not a number"
            raise document.error("yaml-value", "names", text)
    numbered = {int(key): name for key, name in names.items()}
    absent = [i for i in range(len(names)) if i not in numbered]
    if absent:
        text = f"{len(names)} names must be numbered 0 to {len(names) - 1}; {absent[0]} is missing: number them so"
        raise document.error("yaml-names-gap", "names", text)
    return [numbered[i] for i in range(len(names))]


def _keypoints(document: Document) -> int:
    shape = document.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(re.fullmatch("[0-9]{1,4}", str(n)) for n in shape)):
        text = f"{shorten(shape)} is not [number of keypoints, 2 or 3]"
        raise document.error("yaml-value", "kpt_shape", text)
    return int(shape[0]) * int(shape[1])


def _archives(document: Document) -> tuple[Archive, ...]:
    """What `download` names: a URL, a mapping (see `Archive`), or a list of these. Anything else (Ultralytics allows
    shell and Python there) is left alone, and never run."""
    value = document.get("download")
    items = value if isinstance(value, list) else [value]
    if not all(
        isinstance(item, dict) or (isinstance(item, str) and re.fullmatch(r"https?://\S+", item)) for item in items
    ):
        return ()
    return tuple(_archive(document, item if isinstance(item, dict) else {"url": item}) for item in items)


def _archive(document: Document, item: dict[Any, Any]) -> Archive:
    for key, value in item.items():
        if key not in ARCHIVE_KEYS:
            allowed = ", ".join(ARCHIVE_KEYS)
            raise document.error(
                "yaml-value", "download", f"unknown key '{key}' (allowed: {allowed}){suggest(key, ARCHIVE_KEYS)}"
            )
        if not isinstance(value, str):
            raise document.error("yaml-value", "download", f"{key}: {shorten(value)} is not a text")
    if "url" not in item:
        raise document.error("yaml-value", "download", "a mapping needs `url`")
    if not re.fullmatch("[0-9]{0,18}", item.get("size", "")):
        raise document.error("yaml-value", "download", f"size: {shorten(item['size'])} is not a number of bytes")
    if not re.fullmatch(r"([0-9a-fA-F]{64})?", item.get("sha256", "")):
        raise document.error(
            "yaml-value", "download", f"sha256: {shorten(item['sha256'])} is not 64 hexadecimal digits"
        )
    for key in ("folder", "to"):
        path = PurePosixPath(item.get(key, ""))
        if path.is_absolute() or ".." in path.parts or text_fault(str(path)):
            raise document.error("yaml-value", "download", f"{key}: {shorten(item[key])} must be a folder below")
    size = int(item["size"]) if item.get("size") else None
    digest = item["sha256"].lower() if item.get("sha256") else None
    return Archive(item["url"], digest, size, item.get("folder", ""), item.get("to", ""))
