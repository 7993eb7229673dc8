"""Find objects in images and videos: `python detect.py --weights best.pt --source pictures/`."""

from __future__ import annotations

from utils import signals
from utils.errors import EXIT_INTERRUPTED

if __name__ == "__main__":
    signals.end_at_once(EXIT_INTERRUPTED, signals.INTERRUPT)  # while the slow imports run

# isort: split
import glob
import json
import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from data.augment import letterbox
from data.cache import decode, read_image, resize_long_side
from data.images import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES
from models.decode import detect
from models.yolo import MAX_STRIDE, check_imgsz
from utils import dist
from utils.atomic import write_file
from utils.device import Precision, select_device, within_memory
from utils.errors import UserError, many, printable, run_cli, suggest
from utils.metrics import Detections, detections_to_coco
from utils.options import DetectOptions, parse
from utils.plots import draw_boxes
from utils.rundir import RunDir, distinct, met_again, new_run
from val import check_branch, load_model, to_original_boxes, yolo_rows

SHOWN = 200  # characters of a source that a message repeats
DRAWN_AS = {".jfif": ".jpg", ".mpo": ".jpg", ".pgm": ".ppm"}  # what OpenCV writes only under another name, or in gray
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


@dataclass(frozen=True)
class Frame:
    """One picture of the source.

    image: uint8 `[H, W, 3]`, RGB.  file: where it comes from.  stem: how what is written of that file is called.
    number: of the frame in a video (from 1), else 0.  fps: frames a second of those that are read, else 0.
    """

    image: np.ndarray
    file: Path
    stem: str
    number: int = 0
    fps: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.stem}_{self.number}" if self.number else self.stem


def find_files(source: str, where: str = "") -> list[Path]:
    """Return the images and videos that an image, a video, a folder, a glob or a txt list of these names.

    where: what a message adds to the source's name.

    Raises:
        UserError: nothing there, nothing of a kind that can be read, or what may not be looked at.
    """
    try:
        return _known_files(source, where)
    except OSError as error:  # no permission, or a name that the system knows is none
        brief = f"{source[:SHOWN]}{'…' * (len(source) > SHOWN)}"
        raise UserError(f"--source {brief}{where}: can't be looked at: {error.strerror or error}") from None


def _known_files(source: str, where: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = sorted(path.iterdir())
    elif path.is_file() and path.suffix.lower() == ".txt":
        lines = [_beside(path.parent, line) for line in _read_list(path)]
        if not lines:
            raise UserError(f"--source {source}{where}: an empty list; a line each names an image, video or folder")
        found = [file for line in lines for file in find_files(line, f" (named in {source})")]
    elif path.is_file():
        found = [path]
    else:
        found = _matches(path)
    if not found:
        if path.is_dir():
            raise UserError(f"--source {source}{where}: an empty folder")
        near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        live = source.isdecimal() or "://" in source
        why = "no camera, stream or address is read" if live else f"no such file, folder or pattern{near}"
        raise UserError(f"--source {source}{where}: {why}")
    known = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES + VIDEOS and file.is_file()]
    if not known:
        below = any(file.is_dir() for file in found)
        start = glob.escape(source) if path.is_dir() else source
        deeper = (
            f"; folders in it are searched by --source {shlex.quote(str(Path(start) / '**' / '*'))}" if below else ""
        )
        kinds = " ".join((*sorted(IMAGE_SUFFIXES), *VIDEOS))
        raise UserError(f"--source {source}{where}: no image or video in it; read are {kinds}{deeper}")
    for file in found:
        if file.is_symlink() and not file.exists():
            print(f"warning: {printable(str(file))}: a link to nothing; left out", file=sys.stderr)
    passed = sorted({file.suffix.lower() for file in found} & set(OTHER_IMAGE_SUFFIXES))
    if passed:
        print(f"warning: --source {printable(source)}: {' '.join(passed)} is not read; left out", file=sys.stderr)
    return known


def _beside(folder: Path, line: str) -> str:
    """A line of a list, as in a list of training images: from the list's folder, or else from the current one."""
    if (folder / line).exists():
        return str(folder / line)
    pattern = os.path.join(glob.escape(str(folder)), line)
    return pattern if _matches(Path(pattern)) else line


def _matches(pattern: Path) -> list[Path]:
    """What is at a path, or fits it as a pattern."""
    return [pattern] if pattern.exists() else [Path(file) for file in sorted(glob.glob(str(pattern), recursive=True))]


def _read_list(path: Path) -> list[str]:
    """The lines of a txt file, each an image, a video, a folder or a glob; no list of lists, which may hold itself."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--source {path}: can't be read as UTF-8 text ({type(error).__name__})") from None
    for number, line in enumerate(lines, 1):
        if line.lower().endswith(".txt"):
            raise UserError(f"--source {path}: entry {number} is another list, {line}: name images, videos or folders")
    return lines


def read_frames(files: Sequence[Path], names: Sequence[str], stride: int) -> Iterator[Frame]:
    """Read images, and every `stride`-th frame of videos, one at a time. names: as of `name_files`."""
    for file, stem in zip(files, names, strict=True):
        if file.suffix.lower() in VIDEOS:
            yield from _video_frames(file, stem, stride)
            continue
        try:
            image = read_image(file, decode)
        except UserError as error:
            print(f"warning: {printable(str(error))}; left out", file=sys.stderr)
            continue
        yield Frame(image, file, stem)


def name_files(files: Sequence[Path]) -> list[str]:
    """Names for what is written of each file: its stem, made different from all others.

    Frames are called by that and their number, as an image may be too: then `_frame` is put between.
    """
    names = distinct([file.stem for file in files])
    is_video = [file.suffix.lower() in VIDEOS for file in files]
    parts = [name.rpartition("_") for name, video in zip(names, is_video, strict=True) if not video]
    like_frames = {stem for stem, _, number in parts if number.isdecimal()}
    taken = like_frames.union(names)
    for i in np.flatnonzero(is_video):
        if names[i] in like_frames:
            while names[i] in taken:
                names[i] += "_frame"
            taken.add(names[i])
    return names


def _video_frames(file: Path, stem: str, stride: int) -> Iterator[Frame]:
    video = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG)  # other readers take a name for a camera or a pipeline
    fps = (video.get(cv2.CAP_PROP_FPS) or 25.0) / stride
    number = 0
    while video.grab():
        number += 1
        if (number - 1) % stride == 0:
            got, image = video.retrieve()
            if got:
                yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), file, stem, number, fps)
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))  # of some containers an estimate
    video.release()
    if number == 0:
        print(f"warning: {printable(str(file))}: not a video that OpenCV can decode; left out", file=sys.stderr)
    elif number < 0.98 * count - 1:
        print(
            f"warning: {printable(str(file))}: ends at frame {number} of {count}: damaged from there", file=sys.stderr
        )


class Detector:
    """A checkpoint's model, ready to find objects in one image after another.

    names: of the classes.  imgsz: the longest side that images are resized to, in pixels.
    """

    def __init__(self, weights: str, device: str = "", amp: str = "auto", imgsz: int = 0, nms: bool = False) -> None:
        """Arguments as the flags of the same names; `imgsz` 0 is that of the training.

        Raises:
            UserError: no sound checkpoint, no such device, or what it can't do.
        """
        check_imgsz(imgsz)
        self.precision, self.nms = Precision(select_device(device), amp), nms
        self.model, content = load_model(weights, self.precision.device)
        check_branch(content, weights, nms)
        self.names = tuple(content["names"])
        self.imgsz = imgsz or content["imgsz"]

    @torch.inference_mode()
    def __call__(
        self,
        image: np.ndarray,
        *,
        conf: float = 0.25,
        iou: float = 0.45,
        max_det: int = 300,
        classes: Sequence[int] = (),
        agnostic: bool = False,
    ) -> Detections:
        """Return the detections of one image, uint8 `[H, W, 3]`, RGB: boxes in its own pixels, best first.

        What lies wholly in the padding around the image is none.

        iou, agnostic: of NMS.  classes: only these, by number; none are all.

        Raises:
            ValueError: no such image, or a number that is out of range.
            UserError: a class that the model hasn't.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"an image is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
        if not (0 <= conf <= 1 and 0 <= iou <= 1 and max_det >= 1):
            raise ValueError(f"conf {conf} and iou {iou} are to be from 0 to 1, and max_det {max_det} at least 1")
        check_classes(classes, self.names)
        height, width = image.shape[:2]
        small = resize_long_side(image, self.imgsz)
        shape = (-(-side // MAX_STRIDE) * MAX_STRIDE for side in small.shape[:2])
        canvas = np.empty((*shape, 3), np.uint8)
        left, top = letterbox(small, canvas)
        batch = torch.from_numpy(canvas).permute(2, 0, 1)[None].to(self.precision.device)
        with self.precision.autocast():
            predictions = self.model(batch)
        settings = {"conf": conf, "iou": iou, "max_det": max_det, "agnostic": agnostic, "classes": classes}
        found = detect(predictions, nms=self.nms, **settings).split()[0]
        way = (small.shape[1] / width, small.shape[0] / height, left, top)
        boxes = to_original_boxes(found.boxes, way, (width, height))
        all_found = Detections(
            np.zeros(len(boxes), np.int64), *(_array(x) for x in (boxes, found.scores, found.classes))
        )
        return all_found.take((all_found.boxes[:, 2:] > all_found.boxes[:, :2]).all(1))


def check_classes(classes: Sequence[int], names: Sequence[str]) -> None:
    """Raise `UserError` for a class that the model hasn't."""
    wrong = [one for one in classes if not 0 <= one < len(names)]
    if wrong:
        listed = ", ".join(f"{i} {name}" for i, name in enumerate(names))
        raise UserError(f"--classes {wrong[0]}: the model has {many(len(names), 'class')}: {listed}")


def _array(x: Tensor) -> np.ndarray:
    return x.cpu().numpy()


class Writer:
    """Writes what the options ask for, frame by frame; videos and detections.json are ended by `close`."""

    def __init__(self, run: RunDir, options: DetectOptions, names: tuple[str, ...], stack: ExitStack) -> None:
        self.folder, self.options, self.names, self.stack = run.path, options, names, stack
        self.videos: dict[str, cv2.VideoWriter] = {}  # by the names of their files
        self.records: list[dict] = []

    def write(self, frame: Frame, found: Detections) -> None:
        height, width = frame.image.shape[:2]
        if not self.options.nosave:
            self._draw(frame, found)
        if self.options.save_txt:
            rows = yolo_rows(found, (width, height), self.options.save_conf)
            write_file(self._sub("labels") / f"{frame.name}.txt", rows)
        if self.options.save_json:
            for record in detections_to_coco(found):
                self.records.append({**record, "image_id": frame.name, "file_name": str(frame.file)})
        if self.options.save_crop:
            self._crop(frame, found)

    def close(self) -> None:
        """Write detections.json, end the videos, and look whether they can be read."""
        if self.options.save_json:
            write_file(self.folder / "detections.json", json.dumps(self.records))
        cut = []
        for stem, video in self.videos.items():
            video.release()
            target = self.folder / f"{stem}.mp4"
            if not cv2.VideoCapture(str(target), cv2.CAP_FFMPEG).grab():  # its writer says nothing of a full disk
                cut.append(str(target))
        if cut:
            raise UserError(f"{', '.join(cut)}: could not be written whole; is the disk full?")

    def _draw(self, frame: Frame, found: Detections) -> None:
        options = self.options
        picture = draw_boxes(
            frame.image,
            found.boxes,
            found.classes,
            self.names,
            found.scores,
            line=options.line_thickness,
            show_labels=not options.hide_labels,
            show_scores=not options.hide_conf,
        )
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        if frame.number:
            self._video(frame, picture).write(picture)
        else:
            kind = DRAWN_AS.get(frame.file.suffix.lower(), frame.file.suffix)
            write_image(self.folder / f"{frame.stem}{kind}", picture)

    def _video(self, frame: Frame, picture: np.ndarray) -> cv2.VideoWriter:
        if frame.stem not in self.videos:
            target, codec = self.folder / f"{frame.stem}.mp4", cv2.VideoWriter_fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(target), codec, frame.fps, picture.shape[1::-1])
            if not writer.isOpened():
                write_file(target, b" " * 4096)  # of a full disk this says so
                target.unlink()
                raise UserError(f"{target}: this OpenCV can't write mp4 videos; --nosave with --save-txt writes text")
            self.stack.callback(writer.release)
            self.videos[frame.stem] = writer
        return self.videos[frame.stem]

    def _crop(self, frame: Frame, found: Detections) -> None:
        for number, (box, label) in enumerate(zip(found.boxes, found.classes, strict=True), 1):
            x1, y1 = np.floor(box[:2]).astype(int)
            x2, y2 = np.ceil(box[2:]).astype(int)
            folder = self._sub(f"crops/{_folder_name(self.names[label])}")
            crop = cv2.cvtColor(frame.image[y1:y2, x1:x2], cv2.COLOR_RGB2BGR)
            write_image(folder / f"{frame.name}_{number}.jpg", crop)

    def _sub(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _folder_name(name: str) -> str:
    """A class's name as that of a folder: it comes from a checkpoint, and may be `../..` or hold a `/`."""
    safe = re.sub(r'[/\\:*?"<>|]', "_", printable(name)).encode()[:200].decode(errors="ignore").strip(". ")
    return safe or "_"


def write_image(path: Path, picture: np.ndarray) -> None:
    """Write a BGR picture; the bytes go through Python, as OpenCV can't open every file name on every system."""
    good, data = cv2.imencode(path.suffix, picture)
    if not good:
        raise UserError(f"{path}: OpenCV can't write a picture of this kind")
    write_file(path, data.tobytes())


@within_memory("a smaller --imgsz needs less")
def main(argv: list[str] | None = None) -> None:
    options = parse(DetectOptions, sys.argv[1:] if argv is None else argv, "detect.py", "Find objects with a model.")
    dist.refuse("detect.py")
    check_imgsz(options.imgsz)
    files = find_files(options.source)
    detector = Detector(options.weights, options.device, options.amp, options.imgsz, options.nms)
    names = detector.names
    check_classes(options.classes, names)
    stems, called = [file.stem for file in files], name_files(files)
    for line in met_again(stems, "file"):
        print(line)
    for plain, name in zip(distinct(stems), called, strict=True):
        if name != plain:
            print(printable(f"warning: frames of {plain} are called {name}_N: there are images called {plain}_N"))
    frames = read_frames(files, called, options.vid_stride)
    first = next(frames, None)
    if first is None:
        raise UserError(f"--source {options.source}: none of {many(len(files), 'file')} could be read")
    run = new_run(options.project, options.name, options.exist_ok)
    run.write_options(options.to_dict())
    total: Counter[str] = Counter()
    with ExitStack() as stack:
        writer = Writer(run, options, names, stack)
        for frame in chain([first], frames):
            start = time.perf_counter()
            found = detector(
                frame.image,
                conf=options.conf_thres,
                iou=options.iou_thres,
                max_det=options.max_det,
                classes=options.classes,
                agnostic=options.agnostic_nms,
            )
            milliseconds = (time.perf_counter() - start) * 1000
            writer.write(frame, found)
            total.update(pictures=1, objects=len(found))
            counts = Counter(names[label] for label in found.classes)
            said = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "nothing"
            where = f"{frame.file} frame {frame.number}" if frame.number else f"{frame.file}"
            print(printable(f"{where}: {said} ({milliseconds:.0f} ms)"))
        writer.close()
    print(f"{many(total['pictures'], 'picture')}, {many(total['objects'], 'object')}; results in {run.path}")


if __name__ == "__main__":
    signals.as_usual()
    run_cli(main)
