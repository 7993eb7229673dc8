"""data/report.py: the page as a reader's browser takes it: well-formed, self-contained, nothing of the data obeyed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data import report
from data.check import examine, write_page
from data.config import load_data_config
from data.findings import Findings
from data.report import build_page
from data.style import STYLE
from tests.small_data import coco_set, picture, voc_set, write_image, yolo_row, yolo_set
from utils.errors import printable

EVIL = "<script>alert(1)</script>"
NAMES = [EVIL, "a \"quoted\" & 'other' name", "c &#10; new line &lt;", "</style></title><img src=x onerror=alert(1)>"]
VOID = {"meta", "img", "br", "link", "input", "hr"}
BOXES = [
    (0, 10.0, 10.0, 40.0, 40.0),
    (1, 50.0, 10.0, 80.0, 40.0),
    (2, 10.0, 45.0, 40.0, 65.0),
    (3, 50.0, 45.0, 80.0, 65.0),
]


class Page(HTMLParser):
    """What a page holds: its elements with attributes, its text; tags that don't match are a failure."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attributes: list) -> None:
        assert len(dict(attributes)) == len(attributes), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def found(yaml: Path) -> Findings:
    return examine(load_data_config(yaml))


def assert_harmless(page: str) -> Page:
    """No script, nothing from outside, no attribute that a name could have made; links lead somewhere."""
    parsed = Page(page)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "foreignobject", "image", "use"}
    known = {
        "class",
        "id",
        "style",
        "src",
        "alt",
        "loading",
        "href",
        "charset",
        "name",
        "content",
        "http-equiv",
        "lang",
    }
    known |= {"colspan", "viewbox", "role", "aria-label", "points", "d", "transform", "x", "y", "x1", "x2", "y1", "y2"}
    known |= {"width", "height", "fill-opacity", "text-anchor"}
    ids = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    for tag, attributes in parsed.elements:
        assert attributes.keys() <= known, (tag, attributes.keys() - known)
        assert "src" not in attributes or str(attributes["src"]).startswith("data:image/jpeg;base64,")
        assert "href" not in attributes or str(attributes["href"])[1:] in ids
    assert not re.search(r"https?:|url\(|@import|expression\(|javascript:", re.sub(r'src="data:[^"]*"', "", page))
    return parsed


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a range of faults and names that try to get out of the page."""
    root = tmp_path_factory.mktemp("evil")
    yaml = yolo_set(root, {"train": [BOXES] * 5, "val": [BOXES[:1]]}, NAMES)
    folder = root / "images/train"
    shutil.copy(
        folder / "0.jpg", os.fsencode(folder) + b"/caf\xe9\n\"quoted\" 'too' <img src=x onerror=alert(1)>&amp;.jpg"
    )
    (folder / "torn <b>.jpg").write_bytes((folder / "1.jpg").read_bytes()[:600])
    (folder / 'no "image".png').write_bytes(b"<script>")
    rows = [yolo_row(box, 96, 72) for box in (BOXES[0], (0, 10.0, 10.0, 40.0, 40.5), (1, 10.0, 10.0, 40.0, 40.0))]
    rows += [
        yolo_row((0, 0.0, 0.0, 96.0, 72.0), 96, 72),
        yolo_row((0, 5.0, 5.0, 6.0, 60.0), 96, 72),
        f"{EVIL}\n",
        "0 0.5 0.5 0 0\n",
        "0 0.3 0.5 0 0\n",
    ]
    (root / "labels/train/2.txt").write_text("".join(rows))
    write_image(folder / "3.jpg", np.zeros((72, 96, 3), np.uint8))
    write_image(root / "images/val/0.jpg", picture(4, 144, 108))
    return yaml


def test_names_and_files_are_shown_and_not_obeyed(evil: Path) -> None:
    findings = found(evil)
    page = assert_harmless(build_page(findings))
    for words in (*NAMES, "torn <b>.jpg", 'no "image".png'):
        assert words in page.text, words
    assert "caf\\xe9\\n\"quoted\" 'too' <img src=x onerror=alert(1)>&amp;.jpg" in page.text
    build_page(findings).encode("utf-8")


def test_every_fault_is_on_the_page_with_its_image(evil: Path) -> None:
    findings = found(evil)
    assert len(findings.faults) >= 5
    page = Page(build_page(findings))
    for _, fault in findings.faults:
        assert printable(fault.text) in page.text and printable(os.path.basename(fault.file)) in page.text
    html = build_page(findings)
    faults = html[html.index('<section id="faults">') : html.index('<section id="leaks">')]
    seen = {fault.kind for _, fault in findings.faults if fault.file.endswith("2.txt")}
    assert faults.count("<img") == len(seen), "faults of one kind in one image stand beside one picture"
    assert faults.count("no-picture") == 2, "the two files that are no images"
    assert ("stops a training" in faults) == any(fault.stops for _, fault in findings.faults)


def test_suspicions_and_pairs_are_shown(evil: Path) -> None:
    html = build_page(found(evil))
    for section, images in (("leaks", 2), ("twins", 2)):
        part = html[html.index(f'<section id="{section}">') :]
        assert part[: part.index("</section>")].count("<img") == images, section
    part = html[html.index('<section id="suspects">') :]
    part = part[: part.index("</section>")]
    for kind in ("doubled", "two classes", "tiny", "huge", "thin", "images of one colour"):
        assert f"<h3>{kind} <span" in part, kind


def rows_of(html: str, table: str) -> list[list[str]]:
    body = html[html.index(f'<table class="{table}">') :]
    body = body[: body.index("</table>")]
    return [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", body)
    ]


@pytest.mark.parametrize("write", [yolo_set, voc_set, coco_set])
def test_the_tables_hold_the_counts(write, tmp_path: Path) -> None:
    html = build_page(
        found(write(tmp_path, {"train": [BOXES[:3], [BOXES[0]], []], "val": [[BOXES[1]]]}, ["a", "b", "c", "d"]))
    )
    assert_harmless(html)
    assert rows_of(html, "splits")[1:] == [
        ["train", "3", "4", "1", "1.3", "1", "3", "0"],
        ["val", "1", "1", "0", "1.0", "1", "1", "0"],
    ]
    assert [[cell for cell in row if cell] for row in rows_of(html, "classes")[2:]] == [
        ["0", "a", "2", "50.0%", "2", "0", "0.0%", "0"],
        ["1", "b", "1", "25.0%", "1", "1", "100.0%", "1"],
        ["2", "c", "1", "25.0%", "1", "0", "0.0%", "0"],
        ["3", "d", "0", "0.0%", "0", "0", "0.0%", "0"],
    ]
    assert html.count('class="tile good"') == 4


def test_crowds_are_in_none_of_the_counts(tmp_path: Path) -> None:
    """Two images, each with a crowd of the class `clump`; cells: two and one."""
    (tmp_path / "img").mkdir()
    sizes = {"width": 96, "height": 72}
    entries = [{"id": i, "file_name": f"{i}.jpg", **sizes} for i in range(2)]
    annotations = []
    for i in range(2):
        write_image(tmp_path / "img" / f"{i}.jpg", picture(i))
        annotations.append({"image_id": i, "category_id": 2, "bbox": [5, 5, 50, 50], "iscrowd": 1})
    for i, x in ((0, 5), (0, 40), (1, 5)):
        annotations.append({"image_id": i, "category_id": 1, "bbox": [x, 5, 20, 20], "iscrowd": 0})
    annotations = [{"id": number, **annotation} for number, annotation in enumerate(annotations)]
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "clump"}]
    truth = {"images": entries, "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(truth))
    split = "{images: img, annotations: a.json}"
    file = tmp_path / "d.yaml"
    file.write_text(f"train: {split}\nnames: [cell, clump]\n")
    html = build_page(found(file))
    (clump,) = (row for row in rows_of(html, "classes") if "clump" in row)
    assert clump[clump.index("clump") + 1 :] == ["", "0", "0.0%", "0"]
    train = rows_of(html, "splits")[1]
    assert train[1:7] == ["2", "3", "0", "1.5", "1.5", "2"]
    assert "2 cell" in html and "1 clump" not in html


def test_a_single_class_without_val(tmp_path: Path) -> None:
    html = build_page(found(yolo_set(tmp_path, {"train": [[BOXES[0]]]}, ["only"])))
    assert_harmless(html)
    assert "this key is missing (the file has train)" in html


def test_pictures_are_few_however_much_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "FAULT_LINES", 30)
    yaml = yolo_set(
        tmp_path,
        {"train": [[BOXES[0], (0, 10.0, 10.0, 40.0, 40.2), (1, *BOXES[0][1:])]] * 60, "val": [[BOXES[0]]]},
        ["a", "b"],
    )
    for i in range(60):
        with open(tmp_path / f"labels/train/{i}.txt", "a") as file:
            file.write("7 0.5 0.5 0.1 0.1\n0 0.5 0.5 0 0\n")
        write_image(tmp_path / f"images/train/{i}.jpg", picture(i % 4))
    findings = found(yaml)
    assert len(findings.faults) >= 100 and len(findings.twins[0]) >= 28
    html = build_page(findings)
    assert html.count("<img") < 200 and len(html) < 2_000_000
    assert "more of these" in html
    assert_harmless(html)


def test_many_classes_are_all_in_the_table(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(300)]
    html = build_page(found(yolo_set(tmp_path, {"train": [[(299, *BOXES[0][1:])]]}, names)))
    assert len(rows_of(html, "classes")) == 302
    assert "and 249 more" in Page(html).text, "of the 299 that no label has"


def test_the_style_is_one_that_a_tag_can_hold() -> None:
    assert "<" not in STYLE and STYLE.count("{") == STYLE.count("}")
    assert not re.search(r"url\(|@import|https?:", STYLE)


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
def test_a_browser_has_nothing_to_complain_of(evil: Path, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", build_page(found(evil)))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}/user",
    ]
    result = subprocess.run(
        [BROWSER, *flags, "--dump-dom", f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in result.stderr
    assert "<script" not in result.stdout and "<h2>Suspicious boxes</h2>" in result.stdout
