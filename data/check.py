"""Look at a data set before training on it: `python -m data.check my.yaml --html`.

The checks are those of training, and some that training can't make: what is written is a report to be looked at.
Exit code 0: no fault, 2: at least one, whether it stops a run or not. Suspicions and look-alikes are no faults, nor are
images without a label file where they are few.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from data.config import DataConfig, load_data_config
from data.decoding import decode_faults
from data.faults import DataError, Fault
from data.findings import (
    Findings,
    Pairs,
    Part,
    faults_by_kind,
    find_leaks,
    find_suspects,
    find_twins,
    short_path,
)
from data.index import Index, build_index
from data.report import build_page
from data.similar import Looks, look_at
from data.splits import overlap
from utils.atomic import cannot_write, replace_file
from utils.errors import EXIT_DONE, EXIT_USAGE, UserError, many, printable, run_cli, tell
from utils.options import CheckOptions, parse

EXAMPLES = 5  # of each kind that are printed
CLASSES = 40  # rows of the class table that are printed


def examine(config: DataConfig, full: bool = False) -> Findings:
    """Read all splits of a data set and look at every image.

    full: decode every image at its full size. A split that can't be read is a fault, and the others are examined.
    Raises `DataError` where none can be read.
    """
    parts: list[Part] = []
    faults = [("", fault) for fault in config.faults]
    notes: list[str] = []
    seen: dict[tuple, str] = {}
    indices: dict[str, Index] = {}
    for name in dict.fromkeys((*config.splits, "train", "val")):  # a training needs the two
        try:
            sources = config.split(name).sources
            if sources in seen:
                notes.append(f"{name} is the same as {seen[sources]}")
                indices[name] = indices[seen[sources]]
                continue
            part = _examine_split(config, name, full)
        except DataError as error:  # no training reads `test`
            where = name if name in config.splits else ""
            faults += [(where, replace(fault, stops=fault.stops and name != "test")) for fault in error.faults]
            continue
        seen[sources], indices[name] = name, part.index
        parts.append(part)
        notes += [f"{name}: {fault.text}" for fault in part.faults if fault.is_note]
        faults += [(name, fault) for fault in part.faults if not fault.is_note]
    if not parts:
        raise DataError(*dict.fromkeys(fault for _, fault in faults))
    faults += [("", fault) for fault in overlap(config, indices)]
    leaks = [find_leaks(first, second) for first, second in combinations(parts, 2)]
    return Findings(config, parts, faults, notes, [find_twins(part) for part in parts], leaks)


def _examine_split(config: DataConfig, name: str, full: bool) -> Part:
    index, faults = build_index(config, name)
    looks = look_at(index, name)
    faults = [*faults, *_pixel_faults(index, looks, full)]
    return Part(name, index, faults, looks, find_suspects(index))


def _pixel_faults(index: Index, looks: Looks, full: bool) -> list[Fault]:
    """Images whose header can be read but not their pixels."""
    found = {}
    for i, why in looks.unreadable.items():
        path = index.path(i)
        text = f"{why.removeprefix(f'{path}: ')}: copy, export or download it again"
        found[path] = Fault.of("image-corrupt", path, "", text)
    if full:
        found |= {path: fault for path, fault in decode_faults([index.path(i) for i in range(len(index))]) if fault}
    return [found[path] for path in sorted(found)]


# ------------------------------------------------------------------------------------------------ text


def summary(findings: Findings) -> str:
    """The report as text."""
    config = findings.config
    head = f"{short_path(config.file)}: {many(config.nc, 'class')}; paths below are relative to "
    blocks = [
        [head + short_path(config.root), *map(printable, findings.notes)],
        _split_lines(findings),
        _class_lines(findings),
        _fault_lines(findings),
        _suspect_lines(findings),
        _twin_lines(findings),
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def _split_lines(findings: Findings) -> list[str]:
    lines = [f"{'split':<7}{'images':>9}{'objects':>11}{'no object':>11}{'objects/image':>16}   image sizes"]
    for part in findings.parts:
        index, counts = part.index, part.index.counts
        sizes = " x ".join(_span(index.sizes[:, axis]) for axis in (0, 1))
        each = f"{index.objects / max(len(index), 1):.1f} ({_span(counts)})"
        lines.append(f"{part.name:<7}{len(index):>9,}{index.objects:>11,}{index.backgrounds:>11,}{each:>16}   {sizes}")
    return lines


def _span(values: np.ndarray) -> str:
    low, high = int(values.min(initial=1 << 30)), int(values.max(initial=0))
    return str(high) if low >= high else f"{low}-{high}"


def _class_lines(findings: Findings) -> list[str]:
    counts, names = findings.class_counts, [printable(name) for name in findings.config.names]
    width = min(max(map(len, names)) + 2, 30)
    lines = [f"{'class':<{width}}" + "".join(f"{part.name:>11}{'':>8}" for part in findings.parts)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    order = np.argsort(-counts.sum(0), kind="stable")[:CLASSES] if len(names) > CLASSES else range(len(names))
    for i in order:
        cells = "".join(f"{n:>11,}{share:>7.1%} " for n, share in zip(counts[:, i], shares[:, i], strict=True))
        name = names[i] if len(names[i]) < width else f"{names[i][: width - 3]}…"
        lines.append(f"{name:<{width}}{cells}".rstrip())
    if len(names) > CLASSES:
        lines.append(f"and {len(names) - CLASSES} rarer classes")
    extremes = findings.imbalance()
    if extremes:
        most, least, times = extremes
        lines.append(f"{findings.parts[0].name} has {times:.1f} times as many {names[most]} as {names[least]}")
    for words, classes in findings.missing().items():
        lines.append(f"{many(len(classes), 'class')} {words}: {_listed(names[i] for i in classes)}")
    return lines


def _listed(words: Iterable[str], most: int = 10) -> str:
    words = list(words)
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _fault_lines(findings: Findings) -> list[str]:
    if not findings.faults:
        return ["no faults"]
    stops = sum(fault.stops for _, fault in findings.faults)
    lines = [f"{many(len(findings.faults), 'fault')}, {stops or 'none'} of which would stop a training"]
    for kind, members in faults_by_kind(findings.faults).items():
        lines.append(f"  {printable(kind)}: {len(members):,}")
        lines += [
            f"    {split + ': ' if split else ''}{_relative(fault, findings)}" for split, fault in members[:EXAMPLES]
        ]
        lines += [f"    and {len(members) - EXAMPLES:,} more"] * (len(members) > EXAMPLES)
    return lines


def _suspect_lines(findings: Findings) -> list[str]:
    lines = []
    for kind in findings.parts[0].suspects:
        counts = {part.name: len(part.suspects[kind]) for part in findings.parts}
        if any(counts.values()):
            shown = ", ".join(f"{split} {count:,}" for split, count in counts.items() if count)
            lines.append(f"  {kind}: {shown}; such as {_example(findings, kind)}")
    flat = {part.name: int(part.looks.flat.sum()) for part in findings.parts}
    if any(flat.values()):
        lines.append("  images of one colour: " + ", ".join(f"{split} {n:,}" for split, n in flat.items() if n))
    return ["suspicious boxes and images, none of them a fault", *lines] if lines else ["no suspicious boxes"]


def _example(findings: Findings, kind: str) -> str:
    part = next(part for part in findings.parts if len(part.suspects[kind]))
    box = int(part.suspects[kind][0, 0])
    image = int(np.searchsorted(part.index.offsets, box, side="right")) - 1
    corners = ", ".join(f"{value:.6g}" for value in part.index.boxes[box])
    name = findings.config.names[part.index.classes[box]]
    return f"{printable(part.index.name(image))}: {printable(name)} ({corners})"


def _twin_lines(findings: Findings) -> list[str]:
    lines = []
    for pairs in findings.leaks:
        if len(pairs):
            first, second = pairs.first.name, pairs.second.name
            same = int(pairs.same_file.sum())
            own = f", {same:,} of them the very same file" if same else ""
            alike = "is, or looks like" if len(pairs) == 1 else "are, or look like"
            lines.append(f"  {len(pairs):,} of the {len(pairs.second.index):,} images of {second} {alike}, "
                         f"one of {first}{own}; such as {_pair(pairs)}")  # fmt: skip
    for pairs in findings.twins:
        if len(pairs):
            lines.append(f"  {many(len(pairs), 'pair')} within {pairs.first.name}; such as {_pair(pairs)}")
    return ["near-duplicate images", *lines] if lines else ["no near-duplicate images"]


def _pair(pairs: Pairs) -> str:
    first, second = pairs.images[0].tolist()
    return f"{printable(pairs.first.index.name(first))} and {printable(pairs.second.index.name(second))}"


def _relative(fault: Fault, findings: Findings) -> str:
    return str(replace(fault, file=fault.file.removeprefix(f"{findings.config.root}{os.sep}")))


# ------------------------------------------------------------------------------------------------ command line


COMMON_NAMES = ("data", "dataset")  # of data yamls: their folder says which set it is


def page_path(html: str, config: DataConfig) -> Path:
    """Where the page goes; `UserError` for a name that is no page's (it could be a file of the user's)."""
    name, folder = config.file.stem, config.file.resolve().parent.name
    name = folder if name in COMMON_NAMES and folder else name
    path = Path(html or f"runs/check/{name}.html")
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise UserError(f"--html {printable(html)}: must be a file called .html")
    return path


def write_page(path: Path, page: str) -> None:
    """Write the page whole or not at all; one that is there gives way."""
    content = page.encode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(content))
    except OSError as error:
        raise cannot_write(path, "the page", error, len(content)) from error


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if words and not words[0].startswith("-"):
        words = ["--data", *words]
    options = parse(CheckOptions, words, "python -m data.check", "Check a data set, and show it.")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # what it warns of is reported as a fault
    config = load_data_config(options.data, options.single_cls, options.download)
    path = None if options.html is None else page_path(options.html, config)
    findings = examine(config, full=options.check == "full")
    text = summary(findings)
    if path is not None:
        write_page(path, build_page(findings))
        text += f"\n\npage with pictures: {printable(str(path))}"
    tell(sys.stdout, text + "\n")
    return EXIT_USAGE if findings.faults else EXIT_DONE


if __name__ == "__main__":
    run_cli(lambda: sys.exit(main()))
