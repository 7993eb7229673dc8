"""A data set as one page to look at: no script, nothing from outside, pictures and charts inside the file."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from data.charts import bars, heat_map, histogram
from data.config import Source
from data.faults import Fault
from data.findings import SUSPICIONS, Findings, Pairs, Part, faults_by_kind, visible
from data.images import IMAGE_SUFFIXES
from data.style import STYLE
from data.thumbnails import Picture, around, data_uris

SAMPLES = 8  # labelled images that are shown of each split
FAULT_PICTURES = 24  # of each kind, and FAULT_LINES without a picture after them
FAULT_LINES = 200
SUSPECTS = 16  # of each kind and split
PAIRS = 24  # of each two splits
KINDS = 12  # kinds of faults that get pictures
CLASS_ROWS = 1500
CELLS = 32  # of a map, each way


def build_page(findings: Findings) -> str:
    """The whole page, HTML. All texts from names and files are escaped; what is no character is written out."""
    sections = [
        ("classes", "Classes", _classes(findings)),
        ("faults", "Faults", _faults(findings)),
        ("leaks", "Look-alikes across splits", _all_pairs(findings, findings.leaks)),
        ("twins", "Look-alikes within a split", _all_pairs(findings, findings.twins)),
        ("suspects", "Suspicious boxes", _suspects(findings)),
        ("boxes", "Boxes and images", _charts(findings)),
        ("samples", "Samples", _samples(findings)),
    ]
    name = _e(findings.config.file.stem)
    body = "".join(
        f'<section id="{key}"><h2>{title}</h2>{content}</section>\n' for key, title, content in sections if content
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{name}: data check</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{name}</h1>{_head(findings)}</header>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _e(text: object) -> str:
    return escape(visible(str(text)), quote=True)


def _n(count: int) -> str:
    return f"{count:,}"


def _plural(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def _more(count: int, what: str) -> str:
    return f'<p class="more">and {count:,} more {what}</p>' if count > 0 else ""


# ------------------------------------------------------------------------------------------------ head


def _head(findings: Findings) -> str:
    config = findings.config
    notes = "".join(f'<p class="note">{_e(note)}</p>' for note in findings.notes)
    return (
        f'<p class="path">{_e(config.file)}<br>images and labels under {_e(config.root)}</p>{notes}'
        f'<div class="tiles">{"".join(_tiles(findings))}</div>{_split_table(findings)}'
    )


def _tiles(findings: Findings) -> Iterator[str]:
    """What was found, each a number that leads to its section."""
    stops = sum(fault.stops for _, fault in findings.faults)
    leaks, twins = sum(map(len, findings.leaks)), sum(map(len, findings.twins))
    suspects = sum(len(boxes) for part in findings.parts for boxes in part.suspects.values())
    missing = len({number for classes in findings.missing().values() for number in classes})
    extremes = findings.imbalance()
    count = len(findings.faults)
    yield _tile("faults", count, "fault", "bad" if stops else "warn" if count else "good",
                f"{stops:,} would stop a training" if stops else "none would stop a training" if count else "")  # fmt: skip
    yield _tile("leaks", leaks, "look-alike across splits", "bad" if leaks else "good", more="look-alikes across splits")
    yield _tile("twins", twins, "look-alike pair within a split", "warn" if twins else "good",
                more="look-alike pairs within a split")  # fmt: skip
    yield _tile("suspects", suspects, "suspicious box", "warn" if suspects else "good", more="suspicious boxes")
    if missing:
        yield _tile("classes", missing, "class is missing somewhere", "warn", more="classes are missing somewhere")
    if extremes:
        most, least, times = extremes
        names = [_e(findings.config.names[i]) for i in (most, least)]
        shown = f"{times:,.0f}" if times >= 10 else f"{times:.1f}"
        yield (
            f'<a class="tile" href="#classes"><b>{shown} : 1</b> in {findings.parts[0].name}, '
            f"{names[0]} to {names[1]}</a>"
        )


def _tile(section: str, count: int, one: str, tone: str, extra: str = "", more: str = "") -> str:
    words = one if count == 1 else more or one + "s"
    text = f"<b>{_n(count)}</b> {words}" + (f"<i>{extra}</i>" if extra else "")
    return f'<a class="tile {tone}" href="#{section}">{text}</a>' if count else f'<div class="tile {tone}">{text}</div>'


def _split_table(findings: Findings) -> str:
    rows = []
    for i, part in enumerate(findings.parts):
        index, counts = part.index, part.counts
        faults = sum(split == part.name for split, _ in findings.faults)
        cells = (
            len(index),
            len(index.boxes),
            index.backgrounds,
            f"{counts.mean():.1f}",
            int(np.median(counts)),
            int(counts.max(initial=0)),
            faults,
        )
        rows.append(
            f'<tr><th><span class="key s{i}"></span>{part.name}</th>'
            + "".join(f"<td>{_n(cell) if isinstance(cell, int) else cell}</td>" for cell in cells)
            + "</tr>"
        )
    heads = ("split", "images", "objects", "without object", "objects an image", "median", "most", "faults")
    head = "".join(f"<th>{text}</th>" for text in heads)
    return f'<div class="scroll"><table class="splits"><tr>{head}</tr>{"".join(rows)}</table></div>'


# ------------------------------------------------------------------------------------------------ classes


def _classes(findings: Findings) -> str:
    counts, names, parts = findings.class_counts, findings.config.names, findings.parts
    totals = np.maximum(counts.sum(1), 1)
    most = np.maximum((counts / totals[:, None]).max(1, initial=0), 1e-9)
    images = [
        np.bincount(np.unique(np.stack([part.image_of, part.index.classes], 1), axis=0)[:, 1], minlength=len(names))
        for part in parts
    ]
    heads = "".join(f'<th colspan="3"><span class="key s{i}"></span>{part.name}</th>' for i, part in enumerate(parts))
    units = '<th class="wide">objects</th><th>share</th><th>images</th>' * len(parts)
    rows = []
    for c, name in enumerate(names[:CLASS_ROWS]):
        cells = []
        for p in range(len(parts)):
            share = counts[p, c] / totals[p]
            tone = "" if counts[p, c] else ' class="none"'
            cells.append(
                f'<td{tone}><span class="meter"><span class="s{p}" style="width:{share / most[p]:.1%}"></span></span>'
                f"{_n(counts[p, c])}</td><td>{share:.1%}</td><td>{_n(images[p][c])}</td>"
            )
        rows.append(f'<tr><td>{c}</td><th class="name">{_e(name)}</th>{"".join(cells)}</tr>')
    missing = "".join(
        f'<p class="warn-text">{_plural(len(numbers), "class", "classes")} {words}: '
        f"{', '.join(_e(names[i]) for i in numbers[:50])}{_more_words(len(numbers) - 50)}</p>"
        for words, numbers in findings.missing().items()
    )
    table = f'<table class="classes"><tr><th></th><th></th>{heads}</tr><tr><th></th><th>class</th>{units}</tr>'
    body = f'{table}{"".join(rows)}</table>'
    tall = " tall" if len(names) > 30 else ""
    return f'{missing}<div class="scroll{tall}">{body}</div>{_more(len(names) - CLASS_ROWS, "classes")}'


def _more_words(count: int) -> str:
    return f" and {count:,} more" if count > 0 else ""


# ------------------------------------------------------------------------------------------------ faults


def _faults(findings: Findings) -> str:
    if not findings.faults:
        return '<p class="fine">None.</p>'
    sources = {name: split.sources for name, split in findings.config.splits.items()}
    numbers = {part.name: _numbers(part) for part in findings.parts}
    blocks = []
    for k, (kind, members) in enumerate(faults_by_kind(findings.faults).items()):
        shown = members[:FAULT_PICTURES] if k < KINDS else []
        uris = data_uris([_fault_picture(findings, numbers, sources, split, fault) for split, fault in shown])
        rows = [_fault_row(findings, *one, uri) for one, uri in zip(shown, uris, strict=True)]
        rest = members[len(shown) : len(shown) + FAULT_LINES]
        lines = "".join(_fault_row(findings, *one) for one in rest)
        if lines:
            lines = f"<details><summary>{_plural(len(rest), 'more line', 'more lines')}</summary>{lines}</details>"
        stops = sum(fault.stops for _, fault in members)
        badge = '<span class="badge bad">stops a training</span>' if stops else ""
        blocks.append(
            f'<h3>{_e(kind)} <span class="count">{_n(len(members))}</span>{badge}</h3>'
            f'<div class="faults">{"".join(rows)}</div>{lines}'
            f"{_more(len(members) - len(shown) - len(rest), 'of these')}"
        )
    return "".join(blocks)


def _fault_row(findings: Findings, split: str, fault: Fault, uri: str | None = None) -> str:
    file = fault.file.removeprefix(f"{findings.config.root}{os.sep}")
    where = f" <span class=where>{_e(fault.where)}</span>" if fault.where else ""
    words = f'<div><code>{_e(file)}</code>{where} <span class="split">{split}</span><br>{_e(fault.text)}</div>'
    return f'<div class="fault">{"" if uri is None else _image(uri)}{words}</div>'


def _numbers(part: Part) -> dict[str, int]:
    return {part.index.path(i): i for i in range(len(part.index))}


def _fault_picture(
    findings: Findings,
    numbers: dict[str, dict[str, int]],
    sources: dict[str, Sequence[Source]],
    split: str,
    fault: Fault,
) -> Picture:
    """The image that a fault speaks of, with the boxes that were taken."""
    path = image_of_fault(fault, sources.get(split, ()))
    part = next((part for part in findings.parts if part.name == split), None)
    number = numbers.get(split, {}).get(path)
    if part is None or number is None:
        return Picture(path, side=120)
    classes, boxes = part.index.labels(number)
    return Picture(path, boxes, classes.tolist(), side=120)


def image_of_fault(fault: Fault, sources: Iterable[Source]) -> str:
    """The path of the image that a fault is in; an empty text where there is none, or none can be told."""
    stem, suffix = os.path.splitext(fault.file)
    if suffix.lower() in IMAGE_SUFFIXES:
        return fault.file
    for source in sources:
        if source.annotations is None:
            parts = stem.split(os.sep)
            last = max((i for i, part in enumerate(parts[:-1]) if part == "labels"), default=None)
            stems = [stem] if last is None else [os.sep.join([*parts[:last], "images", *parts[last + 1 :]]), stem]
        elif source.annotations.is_dir():
            stems = [str(source.images / os.path.relpath(stem, source.annotations))]
        elif str(source.annotations) == fault.file:
            name = fault.where.partition(": annotation")[0]
            stems = [os.path.splitext(os.path.join(source.images, name))[0]] if name.strip() else []
        else:
            stems = []
        for one in stems:
            found = [one + end for suffix in IMAGE_SUFFIXES for end in (suffix, suffix.upper())]
            path = next(filter(os.path.isfile, found), None)
            if path is not None:
                return os.path.abspath(path)
    return ""


# ------------------------------------------------------------------------------------------------ pictures


def _image(uri: str, alt: str = "") -> str:
    if not uri:
        return '<div class="no-picture">no picture</div>'
    return f'<img src="{uri}" alt="{alt}" loading="lazy">'


def _all_pairs(findings: Findings, groups: Sequence[Pairs]) -> str:
    blocks = []
    for pairs in groups:
        if not len(pairs):
            continue
        first, second = pairs.first, pairs.second
        title = (
            f"{_plural(len(pairs), 'pair')} within {first.name}"
            if first is second
            else f"{_plural(len(pairs), 'image')} of {second.name} in {first.name} too"
        )
        same = int(pairs.same_file.sum())
        note = f'<p class="note">{_n(same)} of them the very same file</p>' if same else ""
        shown = pairs.images[:PAIRS].tolist()
        pictures = [Picture(part.index.path(i), side=200) for pair in shown for part, i in zip((first, second), pair, strict=True)]
        uris = data_uris(pictures)
        figures = []
        for k, pair in enumerate(shown):
            names = [
                f'<div><span class="split">{part.name}</span> <code>{_e(part.index.name(i))}</code></div>'
                for part, i in zip((first, second), pair, strict=True)
            ]
            how = "the same file" if pairs.same_file[k] else f"{pairs.bits[k]} of 64 bits differ"
            figures.append(
                f'<figure class="pair"><div class="two">{_image(uris[2 * k])}{_image(uris[2 * k + 1])}</div>'
                f"<figcaption>{''.join(names)}<i>{how}</i></figcaption></figure>"
            )
        blocks.append(
            f'<h3>{title}</h3>{note}<div class="pairs">{"".join(figures)}</div>'
            f"{_more(len(pairs) - len(shown), 'of these')}"
        )
    return "".join(blocks) or '<p class="fine">None.</p>'


def _suspects(findings: Findings) -> str:
    blocks = []
    for kind, why in SUSPICIONS.items():
        figures: list[str] = []
        total = shown = 0
        for part in findings.parts:
            boxes = part.suspects[kind]
            total, shown = total + len(boxes), shown + min(len(boxes), SUSPECTS)
            figures += _suspect_figures(findings, part, boxes[:SUSPECTS])
        if total:
            blocks.append(
                f'<h3>{kind} <span class="count">{_n(total)}</span></h3><p class="note">{_e(why)}</p>'
                f'<div class="gallery">{"".join(figures)}</div>{_more(total - shown, "of these")}'
            )
    flat = [(part, i) for part in findings.parts for i in np.flatnonzero(part.looks.flat).tolist()]
    if flat:
        uris = data_uris([Picture(part.index.path(i)) for part, i in flat[:SUSPECTS]])
        figures = [_figure(uri, part, i, "") for uri, (part, i) in zip(uris, flat, strict=False)]
        blocks.append(
            f'<h3>images of one colour <span class="count">{_n(len(flat))}</span></h3>'
            f'<div class="gallery">{"".join(figures)}</div>{_more(len(flat) - len(figures), "of these")}'
        )
    return "".join(blocks) or '<p class="fine">None.</p>'


def _suspect_figures(findings: Findings, part: Part, pairs: np.ndarray) -> list[str]:
    index, image_of = part.index, part.image_of
    pictures, words = [], []
    for numbers in pairs.tolist():
        chosen = [number for number in numbers if number >= 0]
        boxes, image = index.boxes[chosen], int(image_of[chosen[0]])
        names = " and ".join(dict.fromkeys(_e(findings.config.names[index.classes[i]]) for i in chosen))
        wide, high = boxes[0, 2:] - boxes[0, :2]
        region = around(boxes[0].tolist(), tuple(index.sizes[image].tolist()))
        pictures.append(Picture(index.path(image), boxes, index.classes[chosen].tolist(), region))
        words.append((image, f"{names}, {wide:.4g} x {high:.4g} px"))
    uris = data_uris(pictures)
    return [_figure(uri, part, image, text) for uri, (image, text) in zip(uris, words, strict=True)]


def _figure(uri: str, part: Part, image: int, words: str) -> str:
    caption = f'<span class="split">{part.name}</span> <code>{_e(part.index.name(image))}</code>'
    return f"<figure>{_image(uri)}<figcaption>{f'<b>{words}</b><br>' if words else ''}{caption}</figcaption></figure>"


def _samples(findings: Findings) -> str:
    blocks = []
    for part in findings.parts:
        numbers = np.unique(np.linspace(0, len(part.index) - 1, SAMPLES).round().astype(int)).tolist()
        pictures = []
        for i in numbers:
            classes, boxes = part.index.labels(i)
            pictures.append(Picture(part.index.path(i), boxes, classes.tolist(), side=280))
        uris = data_uris(pictures)
        figures = []
        for i, uri in zip(numbers, uris, strict=True):
            count = Counter(part.index.labels(i)[0].tolist()).most_common(3)
            words = ", ".join(f"{n} {_e(findings.config.names[c])}" for c, n in count) or "no object"
            figures.append(_figure(uri, part, i, words))
        blocks.append(f'<div class="gallery large">{"".join(figures)}</div>')
    return "".join(blocks)


# ------------------------------------------------------------------------------------------------ charts


def _charts(findings: Findings) -> str:
    parts = [part for part in findings.parts if len(part.index.boxes)]
    sides = [part.index.boxes[:, 2:] - part.index.boxes[:, :2] for part in parts]
    names = [part.name for part in parts]
    charts = [
        _chart("Objects an image", _count_chart(findings.parts)),
        _chart("Size of a box", _size_chart(names, sides)),
        _chart("Shape of a box", _shape_chart(names, sides)),
        _chart("Image sizes", _image_sizes(findings.parts)),
    ]
    maps = []
    for i, (part, side) in enumerate(zip(parts, sides, strict=True)):
        sizes = part.index.sizes[part.image_of]
        centres = (part.index.boxes[:, :2] + part.index.boxes[:, 2:]) / 2 / sizes
        key = f'<span class="key s{findings.parts.index(part)}"></span>'
        maps.append(_chart(f"{key}{part.name}: where boxes are", heat_map(_grid(centres), "centre x", "centre y"), i))
        shares = side / sizes * (1, -1) + (0, 1)  # small boxes at the bottom left, as in any plot
        maps.append(_chart(f"{key}{part.name}: how large boxes are", heat_map(_grid(shares), "width", "height", up=True), i))
    legend = "".join(f'<span class="key s{i}"></span>{part.name} ' for i, part in enumerate(findings.parts))
    return (
        f'<p class="legend">{legend}</p><div class="charts">{"".join(charts)}</div>'
        f'<div class="charts">{"".join(maps)}</div>'
    )


def _chart(title: str, svg: str, _: int = 0) -> str:
    return f'<figure class="chart"><figcaption>{title}</figcaption>{svg}</figure>'


def _grid(places: np.ndarray) -> np.ndarray:
    """Counts [rows, columns] of points (x, y) in shares."""
    columns, rows = (places * CELLS).astype(int).clip(0, CELLS - 1).T
    return np.bincount(rows * CELLS + columns, minlength=CELLS * CELLS).reshape(CELLS, CELLS)


def _count_chart(parts: Sequence[Part]) -> str:
    top = max(int(part.counts.max(initial=0)) for part in parts)
    step = max(math.ceil((top + 1) / 40), 1)
    bins = math.ceil((top + 1) / step)
    edges = np.arange(bins + 1) * step - 0.5
    each = max(math.ceil(bins / 8), 1) * step
    ticks = [(value + (step - 1) / 2, f"{value}" if step == 1 else f"{value}-{value + step - 1}") for value in range(0, top + 1, each)]
    return histogram(edges, [(part.name, part.counts) for part in parts], ticks, "objects; share of the images")


def _size_chart(names: Sequence[str], sides: Sequence[np.ndarray]) -> str:
    values = [np.log2(np.sqrt(side.prod(1))) for side in sides]
    low = math.floor(min((value.min() for value in values), default=0))
    high = math.ceil(max((value.max() for value in values), default=1))
    high = max(high, low + 2)
    edges = np.linspace(low, high, 4 * (high - low) + 1)
    step = 2 if high - low > 8 else 1
    ticks = [(exponent, f"{2.0**exponent:g}") for exponent in range(low, high + 1, step)]
    marks = [(math.log2(size), text) for size, text in ((32, "medium"), (96, "large")) if low < math.log2(size) < high]
    return histogram(edges, list(zip(names, values, strict=True)), ticks, "square root of the area, px; share of the boxes", marks)


def _shape_chart(names: Sequence[str], sides: Sequence[np.ndarray]) -> str:
    values = [np.log2(side[:, 0] / side[:, 1]) for side in sides]
    reach = max((float(np.abs(value).max()) for value in values), default=1.0)
    reach = min(max(math.ceil(reach), 2), 6)
    edges = np.linspace(-reach - 0.125, reach + 0.125, 8 * reach + 2)
    ticks = [(k, f"{2**k}:1" if k >= 0 else f"1:{2**-k}") for k in range(-reach, reach + 1, 2 if reach > 4 else 1)]
    return histogram(edges, list(zip(names, values, strict=True)), ticks, "width to height; share of the boxes")


def _image_sizes(parts: Sequence[Part], most: int = 6) -> str:
    """The commonest sizes of images as bars, and all others together."""
    counts = [Counter(map(tuple, part.index.sizes.tolist())) for part in parts]
    total = sum(counts, Counter())
    common = [size for size, _ in total.most_common(most)]
    rows = [(f"{w} x {h}", [count[(w, h)] for count in counts]) for w, h in common]
    rest = [count.total() - sum(count[size] for size in common) for count in counts]
    if sum(rest):
        rows.append((f"{len(total) - most:,} others", rest))
    return bars(rows, "width x height, px; number of images")


def page_name(path: Path) -> str:
    return visible(str(path))
