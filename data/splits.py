"""The splits that a run needs, with all that is wrong in them said at once: what may start, and what stops."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.config import DataConfig
from data.decoding import decode_faults
from data.faults import IMAGE, KINDS, ROW, DataError, Fault
from data.index import ARRAYS, Index, build_index
from data.yolo_txt import classes_beyond
from utils import dist
from utils.errors import UserError, many, some
from utils.rundir import RunDir

LIST = "faults.txt"
EXAMPLES = 2  # faults of a kind that are said in full
SHOWN_KINDS = 8
PER_LABEL = ("boxes", "classes", "crowd", "areas")

Found = Mapping[Fault, Sequence[str]]  # each fault, and the splits it was found in


@dataclass(frozen=True)
class Splits:
    """What was read. faults: each with the splits it was found in; what is faulty is not in the indices."""

    config: DataConfig
    indices: dict[str, Index]
    faults: dict[Fault, list[str]]

    def lines(self) -> list[str]:
        """What to tell the user at the start of a run: a line for each kind of fault, those that were skipped first."""
        lines = []
        kinds = _told(self.faults).items()
        for kind, faults in sorted(kinds, key=lambda item: not item[1][0].stops):
            word = "left out" if faults[0].stops else "note" if faults[0].is_note else "warning"
            if len(faults) <= EXAMPLES:
                lines += [f"{word}: {_said(fault, self.faults)}" for fault in faults]
                continue
            splits = [name for name in self.indices if any(name in self.faults[fault] for fault in faults)]
            what = f"{_splits(splits)}{len(faults):,} x {kind} ({KINDS[kind].what}; {KINDS[kind].then})"
            lines.append(f"{word}: {what}, the first: {faults[0]}")
        skipped = _count(fault for fault in self.faults if fault.stops)
        concern = f"{many(skipped, 'fault')} concern{'s' * (skipped == 1)}"
        loss = _loss(fault for fault in self.faults if fault.stops)
        return [*lines, f"--skip-bad goes on without what {concern}{loss}"] if skipped else lines

    def write_list(self, run: RunDir) -> list[str]:
        """Write all faults into a run's folder; no file where there are none. Return what `lines` left to say."""
        if not self.faults:
            return []
        file = run.write_text(LIST, listing(self.config, self.faults))
        all_told = all(len(faults) <= EXAMPLES for faults in _by_kind(self.faults).values())
        return [] if all_told else [f"faults       all {_count(self.faults):,} are listed in {file}"]


def read_splits(
    config: DataConfig, names: Sequence[str], project: str | Path, full: bool = False, skip_bad: bool = False
) -> Splits:
    """Read splits, and their faults: all of all splits, before anything is said.

    Args:
        project: the folder of runs, where `check/faults.txt` is written if the faults stop the run.
        full: decode every image too.
        skip_bad: go on without what is faulty.

    Raises:
        UserError: there are faults that stop a run. A summary in a few lines.
    """
    found: dict[Fault, list[str]] = {fault: [] for fault in config.faults}
    indices = {}
    for name in names:
        faults: list[Fault] = []
        try:
            indices[name], faults = build_index(config, name)
            if full:
                indices[name], more = _decoded(config, name, indices[name])
                faults = faults + more
        except DataError as error:
            faults = list(error.faults)
        for fault in faults:
            splits = found.setdefault(fault, [])
            splits += [] if name in splits else [name]
    found = _names_short(config, found, indices) | found | overlap(config, indices)
    stops = [fault for fault in found if fault.stops and not (skip_bad and fault.skippable)]
    if stops:
        file = _write_beside(config, found, Path(project)) if len(found) > 1 else ""  # one is said in full
        raise UserError(refusal(config, found, stops, file))
    return Splits(config, indices, found)


def refusal(config: DataConfig, found: Found, stops: Sequence[Fault], file: str) -> str:
    """Say why no run starts: a summary of the faults by kind, and what to do. `file`: where all are listed."""
    hopeless = sorted({fault.kind for fault in stops if not fault.skippable})
    if len(found) == 1:
        return f"{stops[0]}{'' if hopeless else '; or add --skip-bad to go on without it'}"
    way = "mend them, or add --skip-bad to go on without what is faulty"
    if hopeless:
        way = f"mend them; --skip-bad can't do without {', '.join(hopeless)}"
    count = _count(stops)
    beside = _count(found) - count
    others = f", beside {beside:,} that {'does' if beside == 1 else 'do'}n't" if beside else ""
    stop = f"{many(count, 'fault')} stop{'s' * (count == 1)} the run"
    lines = [f"{config.file}: {stop}{others}{f'; all are listed in {file}' if file else ''}"]
    kinds = _told(stops)
    for kind, faults in list(kinds.items())[:SHOWN_KINDS]:
        if len(faults) == 1:
            lines.append(f"{kind}: {_said(faults[0], found)}")
            continue
        lines.append(f"{len(faults):,} x {kind}: {KINDS[kind].what}")
        lines += [f"    {_said(fault, found)}" for fault in faults[:EXAMPLES]]
    if len(kinds) > SHOWN_KINDS:
        more = (f"{len(faults):,} x {kind}" for kind, faults in list(kinds.items())[SHOWN_KINDS:])
        lines.append(f"and {', '.join(more)}")
    return "\n  ".join([*lines, f"{way}; docs/data.md explains each kind"])


def listing(config: DataConfig, found: Found) -> str:
    """All faults, a line each, kind by kind: kind, splits and message with tabs between."""
    lines = [f"# {many(_count(found), 'fault')} of {config.file}; docs/data.md says what each kind is"]
    for kind, faults in _by_kind(found).items():
        lines.append(f"# {len(faults):,} x {kind}: {KINDS[kind].what} ({KINDS[kind].then})")
        lines += [f"{kind}\t{','.join(found[fault])}\t{fault}" for fault in faults]
    return "\n".join([*lines, ""])


def without(index: Index, left_out: Sequence[int]) -> Index:
    """The index without some images and their objects."""
    stays = np.ones(len(index), bool)
    stays[np.array(left_out, int)] = False
    arrays = {key: getattr(index, key) for key in ARRAYS}
    labels = np.repeat(stays, np.diff(index.offsets))
    arrays |= {key: arrays[key][labels] for key in PER_LABEL}
    arrays["paths"] = arrays["paths"][np.repeat(stays, np.diff(index.path_offsets))]
    arrays["sizes"] = arrays["sizes"][stays]
    for key in ("offsets", "path_offsets"):
        lengths = np.diff(arrays[key])[stays]
        arrays[key] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Index(root=index.root, **arrays)


def _decoded(config: DataConfig, split: str, index: Index) -> tuple[Index, list[Fault]]:
    """Decode all images of an index: what is left of it, and the faults. One process does it for all."""
    paths = [index.path(i) for i in range(len(index))]
    found = [fault for _, fault in decode_faults(paths) if fault] if dist.is_main() else []
    faults = dist.from_main(found)
    bad = {fault.file for fault in faults if fault.stops}
    index = without(index, [i for i, path in enumerate(paths) if path in bad]) if bad else index
    if bad and not index.objects:
        text = "no sound object in the images that can be decoded: mend the faults of the images"
        faults = [*faults, Fault.of("split-no-boxes", str(config.file), split, text)]
    return index, faults


def _names_short(config: DataConfig, found: Found, indices: Mapping[str, Index]) -> dict[Fault, list[str]]:
    """Many rows of a class without a name are one fault of the yaml."""
    beyond = classes_beyond(found)
    if not beyond:
        return {}
    rows_beyond = [fault for fault in found if fault.kind == "label-class-range"]
    splits = [name for name in indices if any(name in found[fault] for fault in rows_beyond)]
    rows = some([f"{label} ({many(count, 'row')})" for label, count in sorted(beyond.items())], 10)
    names = len(config.label_names)
    has = f"{names} classes (0 to {names - 1})" if names > 1 else "1 class (0)"
    text = f"names: has {has}, the labels also use {rows}: add their names"
    first = f" (the first: {rows_beyond[0].file}:{rows_beyond[0].where})"
    from_one = max(beyond) == names and not any((index.classes == 0).any() for index in indices.values())
    hint = "; no row is of class 0: do the labels count from 1?" if from_one and not config.single_cls else ""
    return {Fault.of("yaml-names-short", str(config.file), "", text + hint + first): splits}


def overlap(config: DataConfig, indices: Mapping[str, Index]) -> dict[Fault, list[str]]:
    """The fault of images that are both trained on and evaluated on."""
    if not {"train", "val"} <= set(indices):
        return {}
    val = indices["val"]
    hashes, first = np.unique(_name_hashes(val), return_index=True)
    both = first[np.isin(hashes, _name_hashes(indices["train"]))]
    if not len(both):
        return {}
    what = f"{len(both):,} of {len(val):,} images are in `train` too, such as {val.name(int(both.min()))}"
    text = f"{what}: the scores say little about images that the model has not seen; take them out of one"
    return {Fault.of("split-overlap", str(config.file), "val", text): ["train", "val"]}


def _by_kind(faults: Sequence[Fault] | Found) -> dict[str, list[Fault]]:
    """Faults by kind; kinds in the registry's order."""
    kinds: dict[str, list[Fault]] = {kind: [] for kind in KINDS}
    for fault in faults:
        kinds[fault.kind].append(fault)
    return {kind: members for kind, members in kinds.items() if members}


def _name_hashes(index: Index) -> np.ndarray:
    """int64 [N]: a hash of each image's name. Of a million, two have the same once in many million data sets."""
    paths = index.paths.tobytes()
    ends = itertools.pairwise(map(int, index.path_offsets))
    return np.fromiter((hash(paths[begin:end]) for begin, end in ends), np.int64, len(index))


def _told(faults: Sequence[Fault] | Found) -> dict[str, list[Fault]]:
    """Faults by kind as they are told: those of more than an image first, then the frequent ones."""
    kinds = _by_kind(faults)
    if "yaml-names-short" in kinds:  # which sums them up
        kinds.pop("label-class-range")
    wide = ("yaml-", "split-", "folder-")
    return dict(sorted(kinds.items(), key=lambda item: (not item[0].startswith(wide), -len(item[1]))))


def _count(faults: Iterable[Fault]) -> int:
    return sum(fault.kind != "yaml-names-short" for fault in faults)  # which sums others up


def _loss(faults: Iterable[Fault]) -> str:
    """How much is left out for these faults, in words: images, each a file or a place in a JSON or a list, and single
    objects."""
    faults = list(faults)
    images = {
        (fault.file, fault.where if fault.file.endswith(".json") or fault.kind.startswith("list-") else "")
        for fault in faults
        if KINDS[fault.kind].then == IMAGE
    }
    objects = sum(KINDS[fault.kind].then == ROW for fault in faults if fault.kind != "yaml-names-short")
    parts = [many(count, one) for count, one in ((len(images), "image"), (objects, "object")) if count]
    return f": {' and '.join(parts)}" if parts else ""


def _said(fault: Fault, found: Found) -> str:
    """A fault with the splits that it was found in, unless it is one of a split, and names it."""
    return f"{'' if fault.kind.startswith(('split-', 'yaml-split-')) else _splits(found[fault])}{fault}"


def _splits(names: Sequence[str]) -> str:
    return f"{' and '.join(names)}: " if names else ""


def _write_beside(config: DataConfig, found: Found, project: Path) -> str:
    """List the faults of a run that doesn't start in a folder beside the runs; return the file, if it was written."""
    folder = project / "check"
    if not dist.is_main():
        return str(folder / LIST)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LIST).write_text(listing(config, found), encoding="utf-8")
    except OSError:
        return ""  # the summary stands all the same
    return os.path.join(folder, LIST)
