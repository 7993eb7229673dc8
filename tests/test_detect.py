"""detect.py on images, folders, globs, lists and videos."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import detect
from data.images import IMAGE_SUFFIXES
from models.decode import BatchDetections
from utils.errors import UserError


def run(tiny_run: Path, source: object, project: Path, *flags: str) -> Path:
    weights = str(tiny_run / "weights" / "best.pt")
    detect.main(["--weights", weights, "--source", str(source), "--device", "cpu", "--project", str(project), *flags])
    return max(project.iterdir(), key=lambda p: p.stat().st_mtime_ns)


@pytest.fixture
def images(tiny_data: Path) -> Path:
    return tiny_data.parent / "images" / "val"


def test_folder_glob_list_and_file_name_the_same_images(images, tmp_path):
    everything = sorted(images.iterdir())
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join(map(str, everything)))
    assert detect.find_files(str(images)) == everything
    assert detect.find_files(str(images / "*.png")) == everything
    assert detect.find_files(str(listing)) == everything
    assert detect.find_files(str(everything[0])) == everything[:1]


def test_lists_and_patterns_below_a_folder_with_brackets(images, tmp_path):
    folder = tmp_path / "set [1]"
    shutil.copytree(images, folder / "in")
    (folder / "list.txt").write_text("in/0*.png\nin\nin/00.png\n")
    count = len(list(images.iterdir()))
    assert [file.parent for file in detect.find_files(str(folder / "list.txt"))] == [folder / "in"] * (2 * count + 1)


def test_a_source_of_nothing_says_what_to_write(images, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"empty\.txt: an empty list; a line each names an image, video or folder"):
        detect.find_files(str(tmp_path / "empty.txt"))
    shutil.copytree(images, tmp_path / "set" / "in")
    (tmp_path / "set").rename(tmp_path / "set [1]")
    pattern = f"{tmp_path}/set [[]1]/**/*"
    with pytest.raises(UserError, match=re.escape(f"; folders in it are searched by --source '{pattern}'")):
        detect.find_files(str(tmp_path / "set [1]"))
    assert len(detect.find_files(pattern)) == len(list(images.iterdir()))


def test_sources_that_are_not_there(images, tmp_path):
    with pytest.raises(UserError, match="no such file, folder or pattern; did you mean '00.png'"):
        detect.find_files(str(images / "00.pgn"))
    for live in ("0", "rtsp://camera/1"):
        with pytest.raises(UserError, match=f"--source {live}: no camera, stream or address is read"):
            detect.find_files(live)
    (tmp_path / "notes.md").write_text("words")
    with pytest.raises(UserError, match="no image or video in it"):
        detect.find_files(str(tmp_path))
    (tmp_path / "list.txt").write_text(f"{images}\n{images}/99.png\n")
    with pytest.raises(UserError, match=r"99\.png \(named in .*/list\.txt\): no such file"):
        detect.find_files(str(tmp_path / "list.txt"))


def test_what_the_system_will_not_look_at_is_said_in_a_line(images, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("word " * 80 + "\n")
    with pytest.raises(UserError, match=r"notes\.txt: can't be looked at: File name too long$"):
        detect.find_files(str(tmp_path / "notes.txt"))
    with pytest.raises(UserError, match=r"--source x{200}…: can't be looked at: File name too long$"):
        detect.find_files("x" * 300)

    def locked(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", locked)  # who runs the tests may be allowed everything
    with pytest.raises(UserError, match=r"val: can't be looked at: Permission denied$"):
        detect.find_files(str(images))


def test_boxes_in_the_padding_are_none(tiny_run, tmp_path, monkeypatch):
    """The image is 40 pixels high, in a canvas of 64: 12 above it are padding."""
    cv2.imwrite(str(tmp_path / "wide.png"), np.full((40, 64, 3), 90, np.uint8))
    boxes = torch.tensor([[[5.0, 2, 20, 11], [5, 5, 20, 30], [5, 20, 20, 30]]])
    found = BatchDetections(boxes, torch.tensor([[0.9, 0.8, 0.7]]), torch.zeros(1, 3).long(), torch.tensor([3]))
    monkeypatch.setattr(detect, "detect", lambda *_, **__: found)
    folder = run(tiny_run, tmp_path / "wide.png", tmp_path / "runs", "--save-crop", "--save-json")
    records = json.loads((folder / "detections.json").read_text())
    assert [record["bbox"] for record in records] == [[5, 0, 15, 18], [5, 8, 15, 10]]
    assert len(list((folder / "crops").rglob("*.jpg"))) == 2


def test_writes_pictures_labels_json_and_crops(tiny_run, images, tmp_path, capsys):
    flags = ["--save-txt", "--save-conf", "--save-json", "--save-crop", "--conf-thres", "0.05"]
    folder = run(tiny_run, images, tmp_path, *flags)
    names = sorted(path.name for path in images.iterdir())
    assert sorted(path.name for path in folder.glob("*.png")) == names
    assert not np.array_equal(cv2.imread(str(folder / names[0])), cv2.imread(str(images / names[0])))
    rows = [row for file in sorted((folder / "labels").iterdir()) for row in file.read_text().splitlines()]
    records = json.loads((folder / "detections.json").read_text())
    crops = list((folder / "crops").rglob("*.jpg"))
    assert len(rows) == len(records) == len(crops) > 0
    first = [float(x) for x in rows[0].split()]
    x, y, w, h = records[0]["bbox"]
    assert first[1:5] == pytest.approx([(x + w / 2) / 64, (y + h / 2) / 64, w / 64, h / 64], abs=2e-6)
    assert "square" in capsys.readouterr().out


def test_detections_equal_those_of_val(tiny_run, images, tmp_path):
    import val

    weights = str(tiny_run / "weights" / "best.pt")
    expected = val.main(["--weights", weights, "--device", "cpu", "--project", str(tmp_path / "v"), "--noplots"])
    folder = run(tiny_run, images, tmp_path / "d", "--save-json", "--conf-thres", "0.001")
    got = json.loads((folder / "detections.json").read_text())
    assert len(got) == len(expected.detections)
    key = np.argsort([-record["score"] for record in got], kind="stable")
    scores = np.sort(expected.detections.scores)[::-1]
    assert [got[i]["score"] for i in key] == pytest.approx(scores.tolist(), abs=1e-5)


def clip(folder: Path, images: Path, count: int) -> Path:
    """A video of `count` frames: a picture that rolls down."""
    file, picture = folder / "clip.avi", cv2.imread(str(images / "00.png"))
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 64))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no MJPG video")
    for number in range(count):
        writer.write(np.roll(picture, number, 0))
    writer.release()
    return file


def test_video_is_read_and_written_frame_by_frame(tiny_run, images, tmp_path):
    file = clip(tmp_path, images, 5)
    folder = run(tiny_run, file, tmp_path / "out", "--vid-stride", "2", "--save-txt")
    assert sorted(path.name for path in (folder / "labels").iterdir()) == ["clip_1.txt", "clip_3.txt", "clip_5.txt"]
    video = cv2.VideoCapture(str(folder / "clip.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 3 and video.get(cv2.CAP_PROP_FPS) == pytest.approx(5)


def test_a_video_that_ends_too_soon_is_named(tiny_run, images, tmp_path, capsys):
    file = clip(tmp_path, images, 40)
    run(tiny_run, file, tmp_path / "whole", "--vid-stride", "20")
    assert "warning" not in capsys.readouterr().err
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    run(tiny_run, file, tmp_path / "half", "--vid-stride", "20")
    warning = capsys.readouterr().err
    number = int(re.search(rf"warning: {file}: ends at frame (\d+) of 40: damaged from there", warning)[1])
    assert 10 < number < 30


def test_a_list_names_files_from_its_own_folder_on_and_gifs_are_not_read(tiny_run, images, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "set" / "in")
    (tmp_path / "set" / "list.txt").write_text("in/00.png\nin/01.png\n")
    folder = run(tiny_run, tmp_path / "set" / "list.txt", tmp_path / "out")
    assert sorted(path.name for path in folder.glob("*.png")) == ["00.png", "01.png"]
    (tmp_path / "set" / "list.txt").write_text("in/0*.png\n")
    assert len(detect.find_files(str(tmp_path / "set" / "list.txt"))) == len(list(images.iterdir()))
    (tmp_path / "set" / "in" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "set" / "in" / "x.GIF").write_bytes(b"GIF89a")
    run(tiny_run, tmp_path / "set" / "in", tmp_path / "more")
    said = capsys.readouterr().err
    assert f"warning: --source {tmp_path / 'set' / 'in'}: .gif is not read; left out" in said
    assert f"warning: {tmp_path / 'set' / 'in' / 'lost.png'}: a link to nothing; left out" in said


def test_frames_and_images_have_names_of_their_own(tiny_run, images, tmp_path, capsys):
    """As of frames that were taken out of the video beside it."""
    folder = tmp_path / "in"
    folder.mkdir()
    clip(folder, images, 2)
    shutil.copy(images / "00.png", folder / "clip_2.png")
    out = run(tiny_run, folder, tmp_path / "out", "--save-txt", "--save-json", "--nosave")
    names = ["clip_2.txt", "clip_frame_1.txt", "clip_frame_2.txt"]
    assert sorted(path.name for path in (out / "labels").iterdir()) == names
    assert "warning: frames of clip are called clip_frame_N: there are images called clip_N" in capsys.readouterr().out


def test_no_two_files_share_a_name_for_their_frames():
    files = [Path(name) for name in ("a.mp4", "a_frame.mp4", "a_1.jpg", "b.mp4", "b_x.jpg", "c_1.mp4", "c.mp4")]
    assert detect.name_files(files) == ["a_frame_frame", "a_frame", "a_1", "b", "b_x", "c_1", "c"]


def test_the_same_folder_is_written_again(tiny_run, images, tmp_path):
    for _ in range(2):
        run(tiny_run, images / "00.png", tmp_path, "--exist-ok", "--name", "again")
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_video_that_is_named_twice_is_written_twice(tiny_run, images, tmp_path):
    file = clip(tmp_path, images, 3)
    (tmp_path / "list.txt").write_text(f"{file}\n{file}\n")
    folder = run(tiny_run, tmp_path / "list.txt", tmp_path / "out")
    videos = [cv2.VideoCapture(str(folder / name)) for name in ("clip.mp4", "clip_2.mp4")]
    assert [int(video.get(cv2.CAP_PROP_FRAME_COUNT)) for video in videos] == [3, 3]


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file can grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_video_that_could_not_be_written_whole_is_no_success(tiny_run, images, tmp_path, monkeypatch):
    file = clip(tmp_path, images, 60)
    monkeypatch.setattr(detect, "print", lambda *_: None, raising=False)  # what pytest takes it in is a file, too
    with (
        pytest.raises(UserError, match=r"clip\.mp4: could not be written whole; is the disk full\?"),
        small_files(1500),
    ):
        run(tiny_run, file, tmp_path / "out")


def test_a_disk_that_is_full_is_not_taken_for_a_codec_that_is_missing(tiny_run, images, tmp_path, monkeypatch):
    class Refused:
        def __init__(self, *_: object) -> None:
            pass

        def isOpened(self) -> bool:  # noqa: N802
            return False

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    file = clip(tmp_path, images, 3)
    monkeypatch.setattr(detect.cv2, "VideoWriter", Refused)
    with pytest.raises(UserError, match="this OpenCV can't write mp4 videos"):
        run(tiny_run, file, tmp_path / "out")
    monkeypatch.setattr(detect, "write_file", full)
    with pytest.raises(OSError, match="No space left on device: .*clip.mp4"):
        run(tiny_run, file, tmp_path / "out")


def test_half_a_file_is_removed_and_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    with pytest.raises(OSError, match="File too large: .*noise.png"), small_files(4000):
        detect.write_image(tmp_path / "noise.png", noise)
    assert not list(tmp_path.iterdir())


def test_mixed_precision_finds_about_the_same(tiny_run, images, tmp_path):
    found = []
    for amp in ("off", "bf16"):
        folder = run(tiny_run, images, tmp_path / amp, "--save-json", "--conf-thres", "0.001", "--nosave", "--amp", amp)
        found.append([record["score"] for record in json.loads((folder / "detections.json").read_text())])
    assert found[0] != found[1] and max(found[0]) == pytest.approx(max(found[1]), rel=0.1)


def test_class_filter_and_flags(tiny_run, images, tmp_path, capsys):
    folder = run(tiny_run, images, tmp_path, "--classes", "1", "--save-json", "--conf-thres", "0.001", "--nosave")
    assert {record["category_id"] for record in json.loads((folder / "detections.json").read_text())} == {2}
    assert not list(folder.glob("*.png"))
    with pytest.raises(UserError, match="--classes 7: the model has 2 classes: 0 square, 1 bar"):
        run(tiny_run, images, tmp_path, "--classes", "7")


def test_a_broken_image_is_named_and_left_out(tiny_run, images, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"<html>not found</html>")
    (folder / "b.png").write_bytes((images / "00.png").read_bytes())
    out = run(tiny_run, folder, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {"opt.yaml", "b.png"}
    assert "a.jpg: not an image" in capsys.readouterr().err


def test_nothing_that_can_be_read_is_an_error(tiny_run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"<html>not found</html>")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="none of 1 file could be read"):
        run(tiny_run, folder, out)
    assert not out.exists()


def test_images_of_one_name_have_files_of_their_own(tiny_run, images, tmp_path, capsys):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes((images / "00.png").read_bytes())
    (tmp_path / "list.txt").write_text(f"{tmp_path}/one\n{tmp_path}/two/a.png\n")
    out = run(tiny_run, tmp_path / "list.txt", tmp_path / "out", "--save-txt")
    written = sorted(path.name for path in out.rglob("*.*"))
    assert written == ["a.png", "a.txt", "a_2.png", "a_2.txt", "opt.yaml"]
    assert "1 file called as another" in capsys.readouterr().out


def test_the_examples_of_the_docs_run(tiny_run, tiny_data, images, tmp_path, monkeypatch, capsys):
    """Each block of docs/python.md, with the tiny run and data for its names."""
    text = (Path(detect.__file__).parent / "docs" / "python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "train").mkdir(parents=True)
    (tmp_path / "runs" / "train" / "exp").symlink_to(tiny_run)
    shutil.copy(images / "00.png", "picture.jpg")
    shutil.copytree(tiny_data.parent, tmp_path / "set")
    shutil.copy(tiny_data, "my.yaml")
    (tmp_path / "my.yaml").write_text(f"path: {tmp_path}/set\n" + tiny_data.read_text())
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 3 and (tmp_path / "runs" / "train" / "mine" / "scores.csv").is_file()
    assert len(names["found"]) and names["evaluation"].scores.map > 0
    box = names["box"]
    assert 0 <= box[0] < box[2] <= 64 and re.search(r"^(square|bar) 0\.\d\d \[", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)])
def test_what_is_no_image_is_refused_by_a_detector(tiny_run, image):
    with pytest.raises(ValueError, match=r"an image is uint8 \[H, W, 3\], not "):
        detect.Detector(str(tiny_run / "weights" / "best.pt"), device="cpu")(image)


def test_says_how_much_it_found(tiny_run, images, tmp_path, capsys):
    run(tiny_run, images, tmp_path, "--save-json", "--nosave")
    records = json.loads((tmp_path / "exp" / "detections.json").read_text())
    pictures = len(list(images.iterdir()))
    end = capsys.readouterr().out.splitlines()[-1]
    assert end.startswith(f"{pictures} pictures, {len(records)} objects; results in ")


@pytest.mark.parametrize(("suffix", "drawn"), [(".jfif", ".jpg"), (".mpo", ".jpg"), (".JPE", ".JPE"), (".pgm", ".ppm")])
def test_whatever_is_trained_on_is_looked_at(tiny_run: Path, tmp_path: Path, suffix: str, drawn: str) -> None:
    (tmp_path / "in").mkdir()
    gray = Image.fromarray(np.zeros((64, 64), np.uint8))
    gray.save(tmp_path / f"in/a{suffix}", "PPM" if suffix == ".pgm" else "JPEG")
    argv = ["--weights", str(tiny_run / "weights/best.pt"), "--source", str(tmp_path / "in"), "--device", "cpu"]
    detect.main([*argv, "--project", str(tmp_path), "--name", "out"])
    (picture,) = (tmp_path / "out").glob("a.*")
    assert picture.suffix == drawn and cv2.imread(str(picture)).shape == (64, 64, 3)
    with pytest.raises(UserError, match=" ".join(f"[.]{suffix[1:]}" for suffix in sorted(IMAGE_SUFFIXES))):
        detect.find_files(str(tmp_path))


def test_a_detector_refuses_what_finds_nothing(tiny_run: Path) -> None:
    detector, image = detect.Detector(str(tiny_run / "weights/best.pt"), device="cpu"), np.zeros((64, 64, 3), np.uint8)
    for wrong in ({"conf": 25}, {"conf": -0.1}, {"iou": 1.5}, {"max_det": 0}):
        with pytest.raises(ValueError, match="from 0 to 1, and max_det .* at least 1"):
            detector(image, **wrong)
    for number in (len(detector.names), -1):
        with pytest.raises(UserError, match=f"--classes {number}: the model has"):
            detector(image, classes=[0, number])
    with pytest.raises(ValueError, match=r"an image is uint8 \[H, W, 3\], not <U11"):
        detector("picture.jpg")
    assert len(detector(image, conf=0, classes=[0], max_det=1).boxes) == 1
