"""A data set as one page to look at: no script, nothing from outside, pictures and charts inside the file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from data.distributions import distributions, key
from data.faults import Fault
from data.findings import SUSPICIONS, Findings, Pairs, Part, faults_by_kind, image_of_fault, short_path
from data.style import STYLE
from data.thumbnails import PALETTE, Picture, around, data_uris
from utils.errors import many, plural, printable

SAMPLES = {"train": 8}  # labelled images that are shown of a split, of the others half as many
FAULT_PICTURES = 12  # of each kind, and FAULT_LINES without a picture after them
FAULT_LINES = 200
SUSPECTS = 12  # of each kind and split
PAIRS = 16  # of each two splits
KINDS = 12  # kinds of faults that get pictures
CLASS_ROWS = 1500


def build_page(findings: Findings) -> str:
    """The whole page, HTML. All texts from names and files are escaped; what is no character is written out."""
    sections = [
        ("classes", "Classes", _classes(findings)),
        ("samples", "Samples", _samples(findings)),
        ("faults", "Faults", _faults(findings)),
        ("leaks", "Look-alikes across splits", _all_pairs(findings, findings.leaks)),
        ("twins", "Look-alikes within a split", _all_pairs(findings, findings.twins)),
        ("suspects", "Suspicious boxes", _suspects(findings)),
        ("boxes", "Boxes and images", distributions(findings.parts)),
    ]
    name = _e(findings.config.file.stem)
    body = "".join(
        f'<section id="{anchor}"><h2>{title}</h2>{content}</section>\n' for anchor, title, content in sections
    )
    links = " ".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{name}: data check</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{name}</h1>{_head(findings)}<nav>{links}</nav></header>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _e(text: object) -> str:
    return escape(printable(str(text)), quote=True)


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _n(count: int) -> str:
    return f"{count:,}"


def _more(count: int, what: str) -> str:
    return f'<p class="more">and {count:,} more {what}</p>' if count > 0 else ""


# ------------------------------------------------------------------------------------------------ head


def _head(findings: Findings) -> str:
    config = findings.config
    notes = "".join(f'<p class="note">{_e(note)}</p>' for note in findings.notes)
    return (
        f'<p class="path">{_e(short_path(config.file))}<br>'
        f"paths below are relative to {_e(short_path(config.root))}</p>{notes}"
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
    extra = f"{_n(stops) if stops else 'none'} would stop a training" if count else ""
    yield _tile("faults", count, "fault", "bad" if stops else "warn" if count else "good", extra)
    yield _tile(
        "leaks", leaks, "look-alike across splits", "bad" if leaks else "good", more="look-alikes across splits"
    )
    yield _tile("twins", twins, "look-alike pair within a split", "warn" if twins else "good",
                more="look-alike pairs within a split")  # fmt: skip
    yield _tile("suspects", suspects, "suspicious box", "warn" if suspects else "good")
    if missing:
        yield _tile("classes", missing, "class is missing somewhere", "warn", more="classes are missing somewhere")
    if extremes:
        most, least, times = extremes
        names = [_e(_short(findings.config.names[i])) for i in (most, least)]
        shown = f"{times:,.0f}" if times >= 10 else f"{times:.1f}"
        yield (
            f'<a class="tile" href="#classes"><b>{shown} : 1</b> in {findings.parts[0].name}, '
            f"{names[0]} to {names[1]}</a>"
        )


def _tile(section: str, count: int, one: str, tone: str, extra: str = "", more: str = "") -> str:
    words = one if count == 1 else more or plural(count, one)
    text = f"<b>{_n(count)}</b> {words}" + (f"<i>{extra}</i>" if extra else "")
    return f'<a class="tile {tone}" href="#{section}">{text}</a>' if count else f'<div class="tile {tone}">{text}</div>'


def _split_table(findings: Findings) -> str:
    rows = []
    for i, part in enumerate(findings.parts):
        index, counts = part.index, part.index.counts
        faults = sum(split == part.name for split, _ in findings.faults)
        cells = (
            len(index),
            index.objects,
            index.backgrounds,
            f"{index.objects / max(len(index), 1):.1f}",
            f"{np.median(counts) if len(counts) else 0:g}",
            int(counts.max(initial=0)),
            faults,
        )
        rows.append(
            f"<tr><th>{key(i)}{part.name}</th>"
            + "".join(f"<td>{_n(cell) if isinstance(cell, int) else cell}</td>" for cell in cells)
            + "</tr>"
        )
    heads = ("split", "images", "objects", "no object", "objects/image", "median", "most", "faults")
    head = "".join(f"<th>{text}</th>" for text in heads)
    return f'<div class="scroll"><table class="splits"><tr>{head}</tr>{"".join(rows)}</table></div>'


# ------------------------------------------------------------------------------------------------ classes


def _classes(findings: Findings) -> str:
    counts, names, parts = findings.class_counts, findings.config.names, findings.parts
    totals = np.maximum(counts.sum(1), 1)
    most = np.maximum((counts / totals[:, None]).max(1, initial=0), 1e-9)
    images = []
    for part in parts:
        one = ~part.index.crowd
        met = np.unique(np.stack([part.image_of[one], part.index.classes[one]], 1), axis=0)[:, 1]
        images.append(np.bincount(met, minlength=len(names)))
    heads = "".join(f'<th colspan="4" class="group">{key(i)}{part.name}</th>' for i, part in enumerate(parts))
    units = '<th class="bar"></th><th>objects</th><th>share</th><th>images</th>' * len(parts)
    rows = []
    for c, name in enumerate(names[:CLASS_ROWS]):
        cells = []
        for p in range(len(parts)):
            share = counts[p, c] / totals[p]
            tone = "" if counts[p, c] else ' class="none"'
            bar = f'<div class="s{p}" style="width:{share / most[p]:.1%}"></div>' if counts[p, c] else ""
            cells.append(
                f'<td class="bar"><div class="meter">{bar}</div></td>'
                f"<td{tone}>{_n(counts[p, c])}</td><td>{share:.1%}</td><td>{_n(images[p][c])}</td>"
            )
        rows.append(f'<tr><td>{c}</td><th class="name">{_e(name)}</th>{"".join(cells)}</tr>')
    missing = "".join(
        f'<p class="warn-text">{many(len(numbers), "class")} {words}: '
        f"{', '.join(_e(names[i]) for i in numbers[:50])}{_more_words(len(numbers) - 50)}</p>"
        for words, numbers in findings.missing().items()
    )
    table = (
        f'<table class="classes"><tr><th></th><th></th>{heads}</tr><tr><th></th><th class="name">class</th>{units}</tr>'
    )
    body = f"{table}{''.join(rows)}</table>"
    tall = " tall" if len(names) > 30 else ""
    return f'{missing}<div class="scroll{tall}">{body}</div>{_more(len(names) - CLASS_ROWS, "classes")}'


def _more_words(count: int) -> str:
    return f" and {count:,} more" if count > 0 else ""


# ------------------------------------------------------------------------------------------------ faults


def _faults(findings: Findings) -> str:
    if not findings.faults:
        return '<p class="fine">None.</p>'
    numbers = {part.name: {part.index.path(i): i for i in range(len(part.index))} for part in findings.parts}
    blocks = []
    for k, (kind, members) in enumerate(faults_by_kind(findings.faults).items()):
        shown = members[:FAULT_PICTURES] if k < KINDS else []
        rest = members[len(shown) : len(shown) + FAULT_LINES]
        lines = "".join(f'<div class="fault">{_fault_words(findings, *one)}</div>' for one in rest)
        if lines:
            lines = f"<details><summary>{many(len(rest), 'more line')}</summary>{lines}</details>"
        stops = any(fault.stops for _, fault in members)
        badge = '<span class="badge bad">stops a training</span>' if stops else ""
        blocks.append(
            f'<h3>{_e(kind)} <span class="count">{_n(len(members))}</span>{badge}</h3>'
            f'<div class="faults">{_fault_blocks(findings, numbers, shown)}</div>{lines}'
            f"{_more(len(members) - len(shown) - len(rest), 'of these')}"
        )
    return "".join(blocks)


def _fault_blocks(findings: Findings, numbers: dict[str, dict[str, int]], members: Sequence[tuple[str, Fault]]) -> str:
    """Faults beside the image that they are in; all of one image stand together."""
    groups: dict[tuple[str, str], list[Fault]] = {}
    for k, (split, fault) in enumerate(members):
        sources = findings.config.splits[split].sources if split else ()
        groups.setdefault((split, image_of_fault(fault, sources) or f"\0{k}"), []).append(fault)
    pictures = [_fault_picture(findings, numbers, split, path) for split, path in groups if path[0] != "\0"]
    images = iter([_image(uri) for uri in data_uris(pictures)])
    blocks = []
    for (split, path), faults in groups.items():
        image = "" if path[0] == "\0" else next(images)
        words = "".join(f"<p>{_fault_words(findings, split, fault)}</p>" for fault in faults)
        blocks.append(f'<div class="fault">{image}<div>{words}</div></div>')
    return "".join(blocks)


def _fault_words(findings: Findings, split: str, fault: Fault) -> str:
    file = fault.file.removeprefix(f"{findings.config.root}{os.sep}")
    where = f' <span class="where">{_e(fault.where)}</span>' if fault.where else ""
    badge = f' <span class="split">{split}</span>' if split else ""
    return f"<code>{_e(file)}</code>{where}{badge}<br>{_e(fault.text)}"


def _fault_picture(findings: Findings, numbers: dict[str, dict[str, int]], split: str, path: str) -> Picture:
    """An image with the boxes that were taken of it."""
    number = numbers.get(split, {}).get(path)
    if number is None:
        return Picture(path, side=120)
    index = next(part.index for part in findings.parts if part.name == split)
    classes, boxes = index.labels(number)
    return Picture(path, boxes, classes.tolist(), side=120)


# ------------------------------------------------------------------------------------------------ pictures


def _image(uri: str) -> str:
    if not uri:
        return '<div class="no-picture">can’t be read</div>'
    return f'<img src="{uri}" alt="" loading="lazy">'


def _all_pairs(findings: Findings, groups: Sequence[Pairs]) -> str:
    blocks = []
    for pairs in groups:
        if not len(pairs):
            continue
        first, second = pairs.first, pairs.second
        title = (
            f"{many(len(pairs), 'pair')} within {first.name}"
            if first is second
            else f"{many(len(pairs), 'image')} of {second.name} in {first.name} too"
        )
        same = int(pairs.same_file.sum())
        note = f'<p class="note">{_n(same)} of them the very same file</p>' if same else ""
        shown = pairs.images[:PAIRS].tolist()
        pictures = [
            Picture(part.index.path(i), side=200)
            for pair in shown
            for part, i in zip((first, second), pair, strict=True)
        ]
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
    """Labelled images from all over each split, and which class has which colour."""
    names = findings.config.names
    colours = [f'<span><span class="key" style="background:rgb{colour}"></span>{_e(_short(name))}</span> '
               for name, colour in zip(names, PALETTE, strict=False)]  # fmt: skip
    blocks = [f'<p class="legend">{"".join(colours)}</p>' if len(names) <= len(PALETTE) else ""]
    for part in findings.parts:
        count = SAMPLES.get(part.name, 4)
        numbers = np.unique(
            np.linspace(0, max(len(part.index) - 1, 0), min(count, len(part.index))).astype(int)
        ).tolist()
        labels = [part.index.labels(i) for i in numbers]
        pictures = [
            Picture(part.index.path(i), boxes, classes.tolist(), side=280)
            for i, (classes, boxes) in zip(numbers, labels, strict=True)
        ]
        figures = []
        for i, (classes, _), uri in zip(numbers, labels, data_uris(pictures), strict=True):
            begin, end = part.index.offsets[i : i + 2].tolist()
            common = Counter(classes[~part.index.crowd[begin:end]].tolist()).most_common(3)
            words = ", ".join(f"{n} {_e(_short(names[c]))}" for c, n in common) or "no object"
            figures.append(_figure(uri, part, i, words))
        blocks.append(f'<div class="gallery large">{"".join(figures)}</div>')
    return "".join(blocks)
