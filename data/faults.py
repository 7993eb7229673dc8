"""What is wrong in a data set, said in one line each; every kind that there is, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from utils.errors import UserError, printable

# What happens to the thing, for a kind that stops a run: with --skip-bad.
ROW = "the object is left out"
IMAGE = "the image is left out"
DROPPED = "dropped"
STOPS = "stops all the same"  # nothing that could be left out


class Kind(NamedTuple):
    """A sort of fault. stops: no run starts with it unasked, as leaving the thing out changes what is learned.

    note: it may be as it should be, and counts as no fault.
    """

    what: str
    stops: bool
    then: str
    note: bool = False


KINDS: dict[str, Kind] = {
    # The data yaml.
    "yaml-missing": Kind("there is no such data yaml", True, STOPS),
    "yaml-unreadable": Kind("the data yaml can't be read", True, STOPS),
    "yaml-not-utf8": Kind("the data yaml is not text in UTF-8", True, STOPS),
    "yaml-syntax": Kind("the data yaml is no yaml", True, STOPS),
    "yaml-tab": Kind("a tab in the data yaml, where yaml wants spaces", True, STOPS),
    "yaml-key-twice": Kind("a key of the data yaml is there twice", True, STOPS),
    "yaml-not-a-map": Kind("the data yaml is empty or a list, not `key: value` lines", True, STOPS),
    "yaml-key-unknown": Kind("an unknown key, spelled nearly like one that is absent", True, STOPS),
    "yaml-value": Kind("a value of a kind that its key doesn't take", True, STOPS),
    "yaml-path": Kind("the folder of `path` isn't there", True, STOPS),
    "yaml-split-path": Kind("the images or labels of a split aren't there", True, STOPS),
    "yaml-split-missing": Kind("the data yaml doesn't have the split", True, STOPS),
    "yaml-names-missing": Kind("neither class names nor `nc`", True, STOPS),
    "yaml-names-gap": Kind("the map of `names` leaves out a number", True, STOPS),
    "yaml-names-twice": Kind("two classes of one name, where the labels go by name", True, STOPS),
    "yaml-names-alike": Kind("two classes of one name, where the labels go by number", False, "read as two classes"),
    "yaml-nc": Kind("`nc` is no number of classes, or contradicts `names`", True, STOPS),
    "yaml-names-short": Kind("the labels use more classes than `names` has", True, ROW),
    # A split as a whole.
    "split-no-images": Kind("a split without an image", True, STOPS),
    "split-no-labels": Kind("no image of a split has a label file", True, STOPS),
    "split-no-boxes": Kind("a split without a sound object", True, STOPS),
    "split-few-labels": Kind("more images lack a label file than `max_missing_labels` allows", True, STOPS),
    "split-backgrounds": Kind("images without a label file", False, "taken as images of nothing", note=True),
    "split-overlap": Kind("images that are trained on and evaluated on", False, "read all the same"),
    "folder-unreadable": Kind("a folder that can't be searched", True, STOPS),
    # Lists of images.
    "list-unreadable": Kind("a list of images that is no text in UTF-8, or can't be read", True, STOPS),
    "list-image-missing": Kind("a list names an image that isn't there", True, IMAGE),
    "list-name-unclear": Kind("a list's name fits several images", True, "the first is taken"),
    "list-image-twice": Kind("a list names an image twice", False, "counts as often"),
    # Any label file.
    "label-folder": Kind("a folder where a label file should be", True, IMAGE),
    "label-link": Kind("a label file that is a link to nothing, or to itself", True, IMAGE),
    "label-unreadable": Kind("a label file that can't be read", True, IMAGE),
    "label-too-large": Kind("a label file of a size that no labels have", True, IMAGE),
    "label-no-image": Kind("labels without an image", True, "the labels are left out"),
    "label-other-names": Kind("a `classes.txt` by the labels that calls a class otherwise", False, "`names` counts"),
    "label-not-labels": Kind("a file among the labels that holds none, of no image's name", False, "not read"),
    # YOLO txt.
    "label-not-utf8": Kind("a label file that is not text in UTF-8", True, IMAGE),
    "label-binary": Kind("a label file that holds binary data", True, IMAGE),
    "label-text": Kind("a row that isn't numbers", True, ROW),
    "label-comma": Kind("commas in a row: for the decimal point, or between numbers", True, ROW),
    "label-class-name": Kind("a row with the class's name for its number", True, ROW),
    "label-columns": Kind("a row of neither a box nor a polygon", True, ROW),
    "label-class-fraction": Kind("a class that is not a whole number", True, ROW),
    "label-class-negative": Kind("a class below zero", True, ROW),
    "label-class-range": Kind("a class that `names` doesn't have", True, ROW),
    "label-not-finite": Kind("NaN or Inf in a row", True, ROW),
    "label-negative": Kind("a width or height below zero", True, ROW),
    "label-pixels": Kind("coordinates in pixels for shares of the image", True, ROW),
    # Boxes of any format.
    "box-not-finite": Kind("a box that isn't finite", True, ROW),
    "box-outside": Kind("a box outside its image", True, ROW),
    "box-mostly-outside": Kind("a box with most of its area outside its image", True, ROW),
    "box-clipped": Kind("a box that leaves its image, with less than half of its area", False, "clipped to the image"),
    "box-no-area": Kind("a box without an area", False, DROPPED),
    "box-shares": Kind("boxes in shares of the image, where the format has pixels", True, IMAGE),
    "box-twice": Kind("the same object twice", False, DROPPED),
    # Pascal VOC XML.
    "voc-empty": Kind("an empty annotation", True, IMAGE),
    "voc-not-xml": Kind("an annotation that is no XML", True, IMAGE),
    "voc-encoding": Kind("an annotation in another encoding than it says", True, IMAGE),
    "voc-doctype": Kind("an annotation with a DOCTYPE, which can hold traps", True, IMAGE),
    "voc-root": Kind("XML that is no annotation", True, IMAGE),
    "voc-size": Kind("an annotation made for an image of another size", True, IMAGE),
    "voc-name-missing": Kind("an object without a name", True, ROW),
    "voc-name-unknown": Kind("an object of a name that `names` doesn't have", True, ROW),
    "voc-box": Kind("an object whose box isn't four numbers", True, ROW),
    "voc-corners": Kind("a box with its corners swapped", True, ROW),
    # COCO JSON.
    "coco-unreadable": Kind("the JSON can't be read", True, STOPS),
    "coco-not-json": Kind("the file is no JSON", True, STOPS),
    "coco-truncated": Kind("the JSON ends in the middle", True, STOPS),
    "coco-list": Kind("the JSON is a list, such as one of detections", True, STOPS),
    "coco-keys": Kind("`images`, `annotations` or `categories` is missing", True, STOPS),
    "coco-category": Kind("a category without an id or a name", True, "its objects are left out"),
    "coco-category-twice": Kind("two categories of one id", True, STOPS),
    "coco-category-none": Kind("no category is among the names", True, STOPS),
    "coco-category-unknown": Kind("a category that `names` doesn't have", True, "its objects are left out"),
    "coco-image": Kind("an image without a usable id or file name", True, IMAGE),
    "coco-image-twice": Kind("two images of one id", True, "the second is left out"),
    "coco-file-twice": Kind("two images of one file name", True, "the second is left out"),
    "coco-size": Kind("the JSON states another size than the image has", True, IMAGE),
    "coco-annotation": Kind("an annotation that is no map", True, ROW),
    "coco-image-id": Kind("an annotation of an image that isn't listed", True, ROW),
    "coco-category-id": Kind("an annotation of a category that isn't listed", True, ROW),
    "coco-box": Kind("a bbox that isn't four numbers", True, ROW),
    "coco-negative": Kind("a bbox with a width or height below zero", True, ROW),
    "coco-crowd": Kind("an iscrowd that is neither 0 nor 1", True, ROW),
    "coco-crowds": Kind("annotations of crowds", False, "not trained on", note=True),
    "coco-annotation-twice": Kind("two annotations of one id", False, "both are read"),
    # Images.
    "image-missing": Kind("an image that isn't there", True, IMAGE),
    "image-empty": Kind("an image file of no bytes", True, IMAGE),
    "image-folder": Kind("a folder with the name of an image", True, IMAGE),
    "image-link-loop": Kind("an image that is a link to itself", True, IMAGE),
    "image-unreadable": Kind("an image that can't be read", True, IMAGE),
    "image-is-text": Kind("a web page or other text with the name of an image", True, IMAGE),
    "image-not-an-image": Kind("a file that is no image of a known kind", True, IMAGE),
    "image-kind-not-read": Kind("an image of a kind that is not read", True, IMAGE),
    "image-wrong-extension": Kind("an image of another kind than its name says", False, "read as what it is"),
    "image-animated": Kind("an image of several frames", False, "the first frame is read"),
    "image-two-of-one-stem": Kind("two images that share a label file", True, "both are read with those labels"),
    "image-truncated": Kind("an image file that ends in the middle", True, IMAGE),
    "image-no-end": Kind("an image file without its end mark", True, IMAGE),
    "image-crc": Kind("an image file with a wrong checksum", True, IMAGE),
    "image-bomb": Kind("a small file that says it is a huge image", True, IMAGE),
    "image-too-large": Kind("an image of more pixels than can be decoded", True, IMAGE),
    "image-corrupt": Kind("an image that can't be decoded (--check full)", True, IMAGE),
}


@dataclass(frozen=True)
class Fault:
    """Something in the data that is left out or mended.

    file, where: the file, and the line, object or annotation in it (empty: all of it). text: what is wrong, and how to
    mend it. kind: a short name of this sort of fault, as `docs/data.md` lists them. stops: leaving it out changes what
    is learned, so that no run starts with it unasked.
    """

    file: str
    where: str
    text: str
    kind: str = ""
    stops: bool = False

    @classmethod
    def of(cls, kind: str, file: str, where: str, text: str) -> Fault:
        """Make a fault of a kind in `KINDS`."""
        return cls(file, where, text, kind, KINDS[kind].stops)

    @property
    def skippable(self) -> bool:
        """Can a run do without the thing that is faulty?"""
        return self.kind not in KINDS or KINDS[self.kind].then != STOPS

    @property
    def is_note(self) -> bool:
        """Is it said, but no fault?"""
        return self.kind in KINDS and KINDS[self.kind].note

    def __str__(self) -> str:
        return printable(f"{self.file}:{self.where}: {self.text}" if self.where else f"{self.file}: {self.text}")


class DataError(UserError):
    """Faults that leave nothing to read. The message has a line for each."""

    def __init__(self, *faults: Fault) -> None:
        lines = [str(fault) for fault in faults]
        super().__init__(lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} faults in the data:", *lines]))
        self.faults = faults
