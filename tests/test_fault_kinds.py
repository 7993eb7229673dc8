"""Every kind of fault, provoked once: its file, place and words, whether it stops, and that docs/data.md says all this.

Each builder breaks a data set in its own way and returns (the file, the place in it, words of the text).
"""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from data.config import load_data_config
from data.faults import KINDS, STOPS, DataError, Fault
from data.splits import read_splits
from tests.label_files import annotation, coco, image, text, voc
from tests.test_images import JPEG, PNG, png_of
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
ROWS = "0 .5 .5 .5 .5\n"
Expected = tuple[str, str, str]
BUILDERS: dict[str, Callable[[Set], Expected]] = {}


@dataclass
class Set:
    """A sound data set of two images a split, in all formats, for a builder to break."""

    root: Path
    yaml: dict[str, str] = field(default_factory=dict)
    patches: list[tuple[str, object]] = field(default_factory=list)
    full: bool = False  # decode all images

    def __post_init__(self) -> None:
        self.yaml = {"path": str(self.root), "train": "images/train", "val": "images/val", "names": "[cat, dog]"}
        for split in ("train", "val"):
            for name in ("a", "b"):
                image(self.root / f"images/{split}/{name}.png")
                self.label(ROWS, f"{split}/{name}")
                text(self.root / f"xml/{split}/{name}.xml", voc(("cat", 1, 2, 30, 40)))

    def image(self, content: bytes, name: str = "a.png") -> str:
        path = self.root / f"images/train/{name}"
        path.write_bytes(content)
        return str(path)

    def label(self, rows: str | bytes, name: str = "train/a") -> str:
        path = self.root / f"labels/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
        return str(path)

    def voc(self, content: str | bytes) -> str:
        self.yaml["train"] = "{images: images/train, annotations: xml/train}"
        path = self.root / "xml/train/a.xml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def coco(self, content: object) -> str:
        self.yaml["train"] = "{images: images/train, annotations: c.json}"
        return str(text(self.root / "c.json", content if isinstance(content, str) else json.dumps(content)))

    def parts(self, *extra: object) -> dict:
        """A sound COCO file's content, with more annotations."""
        return json.loads(coco([{"id": 1, "file_name": "a.png"}], [note(1), *extra], ("cat", "dog")))

    @property
    def file(self) -> str:
        return str(self.root / "data.yaml")

    def write(self) -> str:
        return str(text(Path(self.file), "".join(f"{key}: {value}\n" for key, value in self.yaml.items())))


def note(number: int, **more: object) -> dict:
    return annotation(number, **{"category": 20, **more})


def breaks(kind: str) -> Callable[[Callable[[Set], Expected]], Callable[[Set], Expected]]:
    def register(builder: Callable[[Set], Expected]) -> Callable[[Set], Expected]:
        BUILDERS[kind] = builder
        return builder

    return register


def by_row(kind: str, row: str, words: str) -> None:
    BUILDERS[kind] = lambda s: (s.label(f"{ROWS}{row}\n"), "line 2", words)


def by_object(kind: str, item: tuple, words: str) -> None:
    BUILDERS[kind] = lambda s: (s.voc(voc(("cat", 1, 2, 30, 40), item)), "object 2", words)


def by_annotation(kind: str, item: object, words: str) -> None:
    BUILDERS[kind] = lambda s: (
        s.coco(s.parts(item)),
        f"annotation {item['id'] if isinstance(item, dict) else 2}",
        words,
    )


def by_image(kind: str, content: bytes, words: str) -> None:
    BUILDERS[kind] = lambda s: (s.image(content), "", words)


def by_xml(kind: str, content: str | bytes, where: str, words: str) -> None:
    BUILDERS[kind] = lambda s: (s.voc(content), where, words)


def by_json(kind: str, content: str, words: str) -> None:
    BUILDERS[kind] = lambda s: (s.coco(content), "", words)


def by_key(kind: str, key: str, value: str, line: str, words: str) -> None:
    def builder(s: Set) -> Expected:
        s.yaml[key] = value
        return s.file, line, words

    BUILDERS[kind] = builder


def by_yaml(kind: str, content: bytes, line: str, words: str) -> None:
    def builder(s: Set) -> Expected:
        s.write = lambda: s.file  # the file stands as it is
        Path(s.file).write_bytes(content)
        return s.file, line, words

    BUILDERS[kind] = builder


by_yaml("yaml-not-utf8", "names: [Grün]\n".encode("latin-1"), "", "not text in UTF-8")
by_yaml("yaml-syntax", b"train: [a\nnames: [b]\n", "2", "not valid yaml")
by_yaml("yaml-tab", b"names:\n\t0: a\n", "2", "a tab; indent with spaces")
by_yaml("yaml-key-twice", b"train: a\nval: b\ntrain: c\n", "3", "the key 'train' is already on line 1")
by_yaml("yaml-not-a-map", b"- a\n", "", "not a data yaml but a list")
by_yaml("yaml-names-missing", b"train: .\nval: .\n", "", "names: this key is missing")
by_key("yaml-key-unknown", "tset", "images/test", "5", "tset: unknown key; did you mean 'test'?")
by_key("yaml-value", "names", "cat", "4", "names: 'cat' is neither a list")
by_key("yaml-path", "path", "nowhere", "1", "path: no such file or folder (tried")
by_key("yaml-split-path", "val", "images/vla", "3", "val: 'images/vla': no such file or folder (tried")
by_key("yaml-names-gap", "names", "{0: cat, 2: dog}", "4", "2 names must be numbered 0 to 1; 1 is missing")
by_key("yaml-names-alike", "names", "[cat, cat]", "4", "'cat' is there twice, as class 0 and 1")
by_key("yaml-nc", "nc", "3", "5", "nc: 3, but `names` has 2")
by_row("label-text", "bird .5 .5 .1 .1", "not numbers: 'bird .5 .5 .1 .1'")
by_row("label-comma", "0 0,5 0,5 0,1 0,1", "a comma for the decimal point")
by_row("label-class-name", "dog .5 .5 .1 .1", "the class's name, 'dog', for its number: write 1")
by_row("label-columns", "0 .5 .5 .1 .1 .9", "6 numbers; a row is a class and a box (5 numbers)")
by_row("label-class-fraction", "0.5 .5 .5 .1 .1", "class 0.5 is not a whole number")
by_row("label-class-negative", "-1 .5 .5 .1 .1", "class -1 is below zero")
by_row("label-class-range", "2 .5 .5 .1 .1", "class 2 is out of range (names has 2: 0 to 1)")
by_row("label-not-finite", "0 nan .5 .1 .1", "not finite: '0 nan .5 .1 .1'")
by_row("label-negative", "0 .5 .5 -.1 .1", "the width -0.1 is below zero")
by_row("label-pixels", "0 50 25 10 10", "looks like pixels, not shares of the image")
by_row("box-outside", "0 1.5 .5 .1 .1", "is outside the 100 x 50 image")
by_row("box-mostly-outside", "0 1 .5 .2 1.8", "has only 28% of its area inside the 100 x 50 image")
by_row("box-clipped", "0 .95 .5 .2 .2", "leaves the 100 x 50 image, with 25% of its area: clipped")
by_row("box-no-area", "0 .5 .5 0 .1", "has no area: dropped")
by_row("box-twice", ROWS.strip(), "the same class and box as line 1: dropped")
by_xml("voc-empty", "", "", "empty: put back the annotation")
by_xml("voc-not-xml", "<annotation><object>", "line 1", "ends in the middle")
by_xml("voc-encoding", "<annotation>Gr\xfcn</annotation>".encode("latin-1"), "line 1", "save it as UTF-8")
by_xml("voc-doctype", "<!DOCTYPE a><annotation/>", "", "has a DOCTYPE")
by_xml("voc-root", "<html/>", "", "begins with <html>, not <annotation>")
by_xml("voc-size", voc(("cat", 1, 2, 3, 4), size=(64, 64)), "size", "made for 64 x 64 pixels, the image has 100 x 50")
by_object("voc-name-missing", ("", 1, 2, 3, 4), "has no name")
by_object("voc-name-unknown", ("cta", 1, 2, 3, 4), "'cta' isn't among the names; did you mean 'cat'?")
by_object("voc-box", ("cat", "", 2, 3, 4), "the bndbox isn't four numbers")
by_object("voc-corners", ("cat", 9, 9, 1, 1), "has its corners swapped")
by_object("box-not-finite", ("cat", "nan", 2, 3, 4), "box (nan, 2, 3, 4) isn't finite")
BUILDERS["box-shares"] = lambda s: (s.voc(voc(("cat", 0.1, 0.2, 0.5, 0.7))), "", "no coordinate is above 1")
by_json("coco-not-json", "<html>", "not JSON (Expecting value")
by_json("coco-truncated", '{"images": [{"id": 1', "the JSON ends in the middle")
by_json("coco-list", "[]", "a list, such as one of detections")
by_json("coco-keys", "{}", "has no list called 'images'")
by_annotation("coco-annotation", 7, "'7' is no map")
by_annotation("coco-image-id", note(9, image_id="1"), "image_id '1' isn't an image's, the number 1 is")
by_annotation("coco-category-id", note(9, category=5), "category_id 5 isn't a category's")
by_annotation("coco-box", note(9, bbox=[1, 2, 3]), "bbox [1, 2, 3] isn't four numbers")
by_annotation("coco-negative", note(9, bbox=[1, 2, -3, 4]), "bbox [1, 2, -3, 4] has a size below zero")
BUILDERS["coco-crowds"] = lambda s: (
    s.coco(s.parts(note(2, iscrowd=1))) and s.file,
    "train",
    "1 of 2 annotations outlines a crowd (iscrowd 1), which is no object",
)
by_annotation("coco-crowd", note(9, iscrowd="0"), "iscrowd '0' is neither 0 nor 1")
by_annotation("coco-annotation-twice", note(1, bbox=[5, 6, 7, 8]), "the id is there twice")


@breaks("yaml-missing")
def _(s: Set) -> Expected:
    s.write = lambda: f"{s.root}/dta.yaml"
    return f"data '{s.root}/dta.yaml'", "", "no such yaml file"


@breaks("yaml-unreadable")
def _(s: Set) -> Expected:
    s.write = lambda: "/proc/self/mem"  # a file that nobody may read from its start
    return "/proc/self/mem", "", "can't be read ("


@breaks("yaml-split-missing")
def _(s: Set) -> Expected:
    del s.yaml["val"]
    return s.file, "val", "this key is missing (the file has train)"


@breaks("yaml-names-twice")
def _(s: Set) -> Expected:
    s.yaml |= {"train": "{images: images/train, annotations: xml/train}", "names": "[cat, dog, cat]"}
    return s.file, "4", "'cat' is there twice, as class 0 and 2, and these annotations go by name"


@breaks("yaml-names-short")
def _(s: Set) -> Expected:
    s.label("2 .5 .5 .1 .1\n7 .5 .5 .1 .1\n")
    s.label(f"{ROWS}2 .5 .5 .1 .1\n", "val/a")
    return s.file, "", "has 2 classes (0 to 1), the labels also use 2 (2 rows), 7 (1 row): add their names"


@breaks("split-no-images")
def _(s: Set) -> Expected:
    (s.root / "empty").mkdir()
    s.yaml["train"] = "empty"
    return s.file, "train", f"no images in {s.root}/empty"


@breaks("split-no-labels")
def _(s: Set) -> Expected:
    for name in "ab":
        (s.root / f"labels/train/{name}.txt").unlink()
    return s.file, "train", "none of 2 images has a label file; for images/train/a.png it would be"


@breaks("label-other-names")
def _(s: Set) -> Expected:
    (s.root / "labels/train/classes.txt").write_text("dog\ncat\n")
    return str(s.root / "labels/train/classes.txt"), "", "class 0 is 'dog' here and 'cat' in the data yaml"


@breaks("split-no-boxes")
def _(s: Set) -> Expected:
    for name in "ab":
        s.label("", f"val/{name}")
    return s.file, "val", "no object in 2 images: all labels are empty"


@breaks("split-few-labels")
def _(s: Set) -> Expected:
    for name in "cde":
        image(s.root / f"images/train/{name}.png")
    return s.file, "train", f"3 of 5 images (60.0%) without a label file; for images/train/c.png it would be {s.root}"


@breaks("split-backgrounds")
def _(s: Set) -> Expected:
    image(s.root / "images/train/c.png")
    return s.file, "train", "1 of 3 images (33.3%) without a label file, taken as images of nothing"


@breaks("split-overlap")
def _(s: Set) -> Expected:
    s.yaml["val"] = "images/train"
    return s.file, "val", "2 of 2 images are in `train` too, such as images/train/a.png"


@breaks("folder-unreadable")
def _(s: Set) -> Expected:
    def walk(folder: Path, onerror: Callable[[OSError], None], **_: object) -> Iterator[tuple]:
        onerror(PermissionError(errno.EACCES, "Permission denied", str(folder)))
        yield from ()

    s.patches.append(("os.walk", walk))  # root may search any folder
    return f"{s.root}/images/train", "", "can't be searched (Permission denied)"


@breaks("list-unreadable")
def _(s: Set) -> Expected:
    s.yaml["train"] = "train.txt"
    (s.root / "train.txt").write_bytes(b"\xff\xfea")
    return f"{s.root}/train.txt", "", "not text in UTF-8"


@breaks("list-image-missing")
def _(s: Set) -> Expected:
    s.yaml["train"] = "train.txt"
    text(s.root / "train.txt", "images/train/a.png\nimages/train/x.png\n")
    return f"{s.root}/train.txt", "line 2", f"no such image: images/train/x.png (tried {s.root}/images/train/x.png"


@breaks("list-name-unclear")
def _(s: Set) -> Expected:
    s.yaml["train"] = "{images: images/train, annotations: xml/train, split: train.txt}"
    image(s.root / "images/train/a.jpg")
    text(s.root / "train.txt", "b\na\n")
    return f"{s.root}/train.txt", "line 2", "'a' names 2 images (a.jpg, a.png): write which one"


@breaks("list-image-twice")
def _(s: Set) -> Expected:
    s.yaml["train"] = "train.txt"
    text(s.root / "train.txt", "images/train/a.png\nimages/train/a.png\n")
    return f"{s.root}/images/train/a.png", "", "listed 2 times, and counts as often"


@breaks("label-folder")
def _(s: Set) -> Expected:
    path = Path(s.label(""))
    path.unlink()
    path.mkdir()
    return str(path), "", "a folder, where a label file should be"


@breaks("label-link")
def _(s: Set) -> Expected:
    path = Path(s.label(""))
    path.unlink()
    path.symlink_to(path.name)
    return str(path), "", "a link that leads back to itself"


@breaks("label-unreadable")
def _(s: Set) -> Expected:
    path = Path(s.label(""))
    path.unlink()
    os.mkfifo(path)
    return str(path), "", "a pipe or a device, where a label file should be"


@breaks("label-too-large")
def _(s: Set) -> Expected:
    path = s.label("")
    os.truncate(path, 100_000_000)
    return path, "", "100 MB, where an image's labels have at most 67"


@breaks("label-no-image")
def _(s: Set) -> Expected:
    return s.label(ROWS, "train/x"), "", "no image has the name of these labels"


@breaks("label-not-labels")
def _(s: Set) -> Expected:
    return s.label("made by hand", "train/readme"), "", "no image has this name, and it holds no labels"


@breaks("label-not-utf8")
def _(s: Set) -> Expected:
    return s.label(ROWS.encode("utf-16")), "", "text in UTF-16: save it as UTF-8"


@breaks("label-binary")
def _(s: Set) -> Expected:
    return s.label(b"0 \x00\x01"), "", "holds binary data"


@breaks("coco-unreadable")
def _(s: Set) -> Expected:
    s.yaml["train"] = "{images: images/train, annotations: /proc/self/mem}"
    return "/proc/self/mem", "", "can't be read ("


@breaks("coco-category")
def _(s: Set) -> Expected:
    content = s.parts()
    content["categories"].append({"id": 7})
    return s.coco(content), "category 3", "id 7, name None: a category has both"


@breaks("coco-category-twice")
def _(s: Set) -> Expected:
    content = s.parts()
    content["categories"].append({"id": 10, "name": "bird"})
    return s.coco(content), "category 3", "the id 10 is there twice"


@breaks("coco-category-none")
def _(s: Set) -> Expected:
    s.yaml["names"] = "[RBC, WBC]"
    path = s.coco(s.parts())
    return s.file, "names", f"none is a category of {path} (it has dog, cat; the yaml has RBC, WBC)"


@breaks("coco-category-unknown")
def _(s: Set) -> Expected:
    content = s.parts(note(2, category=7))
    content["categories"].append({"id": 7, "name": "bird"})
    return s.coco(content), "category 'bird'", "isn't among the names, and 1 annotation has it"


@breaks("coco-image")
def _(s: Set) -> Expected:
    content = s.parts()
    content["images"].append({"id": True, "file_name": "b.png"})
    return s.coco(content), "image 2", "id True, file_name 'b.png': an image has a number or text and a file"


@breaks("coco-image-twice")
def _(s: Set) -> Expected:
    content = s.parts()
    content["images"].append({"id": 1, "file_name": "b.png"})
    return s.coco(content), "image 2", "the id 1 is that of 'a.png' already: give 'b.png' an id of its own"


@breaks("coco-file-twice")
def _(s: Set) -> Expected:
    content = s.parts()
    content["images"].append({"id": 2, "file_name": "a.png"})
    return s.coco(content), "image 2", "'a.png' is there already, with the id 1"


@breaks("coco-size")
def _(s: Set) -> Expected:
    content = s.parts()
    content["images"].append({"id": 2, "file_name": "b.png", "width": 50, "height": 100})
    return (
        s.coco(content),
        "b.png",
        "made for 50 x 100 pixels, the image has 100 x 50 (as before a turn by its EXIF tag)",
    )


@breaks("image-missing")
def _(s: Set) -> Expected:
    content = s.parts()
    content["images"].append({"id": 2, "file_name": "x.png"})
    s.coco(content)
    return f"{s.root}/images/train/x.png", "", "no such image"


@breaks("image-kind-not-read")
def _(s: Set) -> Expected:
    Image.new("RGB", (8, 8)).save(s.root / "images/train/c.gif")
    return f"{s.root}/images/train/c.gif", "", "not a kind of image that is read"


by_image("image-empty", b"", "an empty file")
by_image("image-is-text", b"<!DOCTYPE html><html>404</html>", "not an image but an HTML page (a failed download)")
by_image("image-not-an-image", b"%PDF-1.7 and more", "not an image but a PDF")
by_image("image-truncated", PNG[:-20], "a PNG that ends within a chunk")
by_image("image-no-end", JPEG[:-2], "a JPEG without its end marker")
by_image("image-crc", PNG[:30] + b"XX" + PNG[32:], "a PNG with a broken header")
by_image("image-bomb", png_of(30_000, 30_000, zlib.compress(b"")), "30000 x 30000 pixels, which")
by_image("image-too-large", png_of(40_000, 40_000, bytes(9)), "40000 x 40000 pixels are more than can be decoded")


@breaks("image-folder")
def _(s: Set) -> Expected:
    (s.root / "images/train/c.png").mkdir()
    return f"{s.root}/images/train/c.png", "", "a folder with the name of an image"


@breaks("image-link-loop")
def _(s: Set) -> Expected:
    path = s.root / "images/train/a.png"
    path.unlink()
    path.symlink_to(path)
    return str(path), "", "a link that leads to itself"


@breaks("image-unreadable")
def _(s: Set) -> Expected:
    path, real = f"{s.root}/images/train/a.png", os.open

    def refuse(file: object, *more: object, **named: object) -> int:
        if file == path:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(file, *more, **named)

    s.patches.append(("os.open", refuse))  # root may read any file
    return path, "", "can't be read (Permission denied)"


@breaks("image-wrong-extension")
def _(s: Set) -> Expected:
    os.rename(s.root / "images/train/a.png", s.root / "images/train/a.jpg")
    return f"{s.root}/images/train/a.jpg", "", "a PNG file named .jpg"


@breaks("image-animated")
def _(s: Set) -> Expected:
    path = s.root / "images/train/a.png"
    frames = [Image.new("RGB", (100, 50), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return str(path), "", "an image of several frames"


@breaks("image-two-of-one-stem")
def _(s: Set) -> Expected:
    image(s.root / "images/train/a.jpg")
    return f"{s.root}/labels/train/a.txt", "", "the labels of images/train/a.jpg and of images/train/a.png"


@breaks("image-corrupt")
def _(s: Set) -> Expected:
    s.full = True
    return s.image(JPEG[: len(JPEG) // 2] + b"\xff\xd9", "c.jpg"), "", "part of it is made up by the decoder"


# ---------------------------------------------------------------- what is held of each


def faults_of(broken: Set) -> list[Fault]:
    """All that reading both splits finds."""
    try:
        config = load_data_config(broken.write())
    except DataError as error:
        return list(error.faults)
    found: list[Fault] = []

    def keep(config: object, faults: dict, *_: object) -> str:
        found.extend(faults)
        return ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.splits.refusal", keep)
        for name, value in broken.patches:
            patch.setattr(name, value)
        try:
            return list(read_splits(config, ("train", "val"), broken.root / "runs", broken.full).faults)
        except UserError:
            return found


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_fault_is_found_named_and_told(kind: str, tmp_path: Path) -> None:
    broken = Set(tmp_path)
    if kind in ("yaml-unreadable", "coco-unreadable") and not os.path.exists("/proc/self/mem"):
        pytest.skip("needs Linux's /proc")
    file, where, words = BUILDERS[kind](broken)
    faults = faults_of(broken)
    fault = next(fault for fault in faults if fault.kind == kind)
    assert (fault.file, fault.where) == (file, where) and words in fault.text
    assert fault.stops == KINDS[kind].stops and fault.skippable == (KINDS[kind].then != STOPS)
    assert str(fault).startswith(f"{file}:{where}: " if where else f"{file}: ") and "\n" not in str(fault)
    expected = {kind} | {"label-class-range", "yaml-names-short"} if "-short" in kind or "-range" in kind else {kind}
    assert {fault.kind for fault in faults} <= expected | {"split-backgrounds", "label-no-image"}, faults


def test_the_sound_set_has_no_fault(tmp_path: Path) -> None:
    assert faults_of(Set(tmp_path)) == []


# ---------------------------------------------------------------- registry, code, documents


def test_every_kind_has_a_builder() -> None:
    assert set(BUILDERS) == set(KINDS)
    assert len(KINDS) >= 60


def test_every_kind_in_the_code_is_in_the_registry_and_the_other_way_round() -> None:
    words = re.compile(r"(yaml|split|folder|list|label|box|voc|coco|image)(-[a-z0-9]+)+")
    used = set()
    for path in (ROOT / "data").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if path.name != "faults.py":
            used |= {text for text in strings if words.fullmatch(text)}
    assert used == set(KINDS)


def table() -> dict[str, list[str]]:
    """The rows of docs/data.md's tables of kinds: slug → cells."""
    rows = {}
    for line in (ROOT / "docs/data.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if re.fullmatch("`[a-z0-9]+(-[a-z0-9]+)+`", cells[0]):
            assert cells[0] not in rows, f"{cells[0]} is there twice"
            rows[cells[0].strip("`")] = cells[1:]
    return rows


def test_the_document_has_every_kind_as_the_registry_says_it() -> None:
    rows = table()
    assert list(rows) == list(KINDS)
    for kind, (what, _, stops, then) in rows.items():
        assert what == KINDS[kind].what, kind
        assert stops == ("yes" if KINDS[kind].stops else "no"), kind
        assert then == KINDS[kind].then, kind


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_document_shows_the_real_message(kind: str, tmp_path: Path) -> None:
    """Up to what is long or of one machine, which the document leaves out with `…`."""
    broken = Set(tmp_path)
    BUILDERS[kind](broken)
    shown = re.fullmatch("`` ?(.*?) ?``", table()[kind][1])
    pattern = ".*".join(map(re.escape, shown[1].split("…")))
    told = [str(fault) for fault in faults_of(broken) if fault.kind == kind]
    assert re.fullmatch(pattern, told[0]), told
