"""Reading images, and keeping them decoded."""

from __future__ import annotations

import multiprocessing
import operator
import os
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from data import cache
from data.cache import build_cache, cache_root, load_image, load_indexed, resized_size, resized_sizes
from data.images import read_header
from utils.errors import UserError


class Images:
    """An index of images in a folder, as far as the cache needs one."""

    def __init__(self, paths: list[Path], sizes: list[tuple[int, int]]) -> None:
        self.paths, self.sizes = paths, np.array(sizes, np.int32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, i: int) -> str:
        return str(self.paths[i])


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Nine images of three shapes, of noise."""
    draw = np.random.default_rng(0)
    sizes = [(40, 30), (17, 64), (50, 50)] * 3
    paths = [tmp_path / f"{i}.png" for i in range(len(sizes))]
    for path, (width, height) in zip(paths, sizes, strict=True):
        cv2.imwrite(str(path), draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Images(paths, sizes)


def write(path: Path, image: np.ndarray) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def test_cache_root_is_the_variable_or_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.setenv("LOCKSTEP_CACHE", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_root() == Path("/home/someone/.cache/lockstep")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UserError, match="there is no home folder to keep caches in: name one, as LOCKSTEP_CACHE="):
        cache_root()


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    ("size", "imgsz", "expected"),
    [
        ((640, 480), 320, (320, 240)),
        ((480, 640), 320, (240, 320)),
        ((500, 333), 320, (320, 213)),  # 213.12
        ((4, 3), 2, (2, 2)),  # 1.5: halves go up
        ((4, 1), 2, (2, 1)),  # 0.5
        ((1000, 1), 32, (32, 1)),  # 0.032: never nothing
        ((20, 10), 640, (640, 320)),
        ((7, 7), 7, (7, 7)),
    ],
)
def test_resized_sizes(size: tuple[int, int], imgsz: int, expected: tuple[int, int]) -> None:
    assert tuple(resized_sizes(np.array(size), imgsz)) == resized_size(*size, imgsz) == expected
    assert resized_sizes(np.array([size, size], np.int32), imgsz).tolist() == [list(expected)] * 2


def test_channels_come_as_rgb(tmp_path: Path) -> None:
    blue, green, red = 10, 20, 30
    path = write(tmp_path / "a.png", np.full((4, 6, 3), (blue, green, red), np.uint8))
    image = load_image(path, 6)
    assert image.shape == (4, 6, 3)
    assert (image == (red, green, blue)).all()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".webp", ".jpg"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("imgsz", [8, 16, 32, 64])
def test_every_kind_comes_as_rgb_at_any_fraction(tmp_path: Path, suffix: str, kind: type, imgsz: int) -> None:
    if kind == np.uint16 and suffix not in (".png", ".tif"):
        pytest.skip("a format of bytes")
    blue, green, red = 20, 90, 200
    path = write(
        tmp_path / f"a{suffix}", np.full((48, 64, 3), (blue, green, red), kind) * (257 if kind == np.uint16 else 1)
    )
    image = load_image(path, imgsz)
    assert image.shape == (imgsz * 3 // 4, imgsz, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - (red, green, blue)).max() <= (4 if suffix in (".webp", ".jpg") else 0)


@pytest.mark.parametrize("size", [(640, 480), (642, 481), (333, 1000), (8, 8), (1, 1)])
@pytest.mark.parametrize("imgsz", [32, 64, 160, 320, 321, 640])
def test_a_jpeg_decoded_at_a_fraction_is_the_whole_one_resized(
    tmp_path: Path, size: tuple[int, int], imgsz: int
) -> None:
    draw = np.random.default_rng(0)
    smooth = cv2.resize(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC)
    path = write(tmp_path / "a.jpg", smooth)
    image = load_image(path, imgsz)
    width, height = resized_sizes(np.array(size), imgsz)
    assert image.shape == (height, width, 3)
    whole = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    way = cv2.INTER_AREA if imgsz < max(size) else cv2.INTER_LINEAR
    expected = cv2.resize(whole, (int(width), int(height)), interpolation=way)
    limit = 2 if size in ((640, 480), (8, 8)) else 0  # what can't be halved exactly is decoded whole
    assert np.abs(image.astype(int) - expected).mean() <= limit


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("imgsz", [32, 64, 256])
@pytest.mark.parametrize("padding", [b"", b"\xff"])  # the latter is read by Pillow
def test_a_turned_jpeg_is_upright_at_any_fraction(tmp_path: Path, orientation: int, imgsz: int, padding: bytes) -> None:
    pixels = np.full((128, 256, 3), 255, np.uint8)
    pixels[:64, :64] = 0  # the top left quarter of the left half
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:2] + padding + data[2:])
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")))
    assert read_header(tmp_path / "a.jpg").size == (upright.shape[1], upright.shape[0])
    step = 256 // imgsz
    assert np.abs(load_image(tmp_path / "a.jpg", imgsz).astype(int) - upright[::step, ::step]).max() <= 2


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 4)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_any_png_becomes_three_channels_of_bytes(tmp_path: Path, shape: tuple[int, ...], kind: type) -> None:
    path = write(tmp_path / "a.png", np.full(shape, np.iinfo(kind).max, kind))
    image = load_image(path, 5)
    assert image.dtype == np.uint8 and image.shape == (5, 5, 3) and (image == 255).all()


def test_a_file_name_may_have_any_letters(tmp_path: Path) -> None:
    path = write(tmp_path / "Größe 图 📷.jpg", np.zeros((8, 8, 3), np.uint8))
    assert load_image(path, 8).shape == (8, 8, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    pil = pytest.importorskip("PIL.Image")
    ops = pytest.importorskip("PIL.ImageOps")
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = pil.Exif()
    exif[0x0112] = orientation
    pil.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100)
    upright = np.asarray(ops.exif_transpose(pil.open(tmp_path / "a.jpg")))
    image = load_image(tmp_path / "a.jpg", 32)
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).max() <= 8  # two JPEG decoders


def test_shrinking_averages_areas_and_growing_interpolates(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    grey = draw.integers(0, 256, (4, 8)).astype(np.uint8)
    small = load_image(write(tmp_path / "a.png", grey), 4)
    blocks = grey.reshape(2, 2, 4, 2).mean((1, 3))
    assert np.abs(small[..., 0] - blocks).max() <= 0.5
    # From centres at 0.5 and 1.5 to centres at 0.25, 0.75, 1.25 and 1.75.
    large = load_image(write(tmp_path / "b.png", np.array([[0, 100]], np.uint8)), 4)
    assert large[0, :, 0].tolist() == [0, 25, 75, 100]


@pytest.mark.parametrize("content", [None, b"", b"no image at all", b"\xff\xd8\xff\xe0 cut off"])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="broken.jpg") as caught:
        load_image(path, 32)
    assert "\n" not in str(caught.value)


def test_an_image_that_changed_since_its_labels_were_read_is_named(images: Images) -> None:
    load_indexed(images, 0, 32)
    images.sizes[0] = 30, 40
    with pytest.raises(UserError, match=r"0\.png.*30×40"):
        load_indexed(images, 0, 32)


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_the_cache_holds_what_load_image_gives(images: Images, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 4)
    kept = build_cache(images, 32, mode)
    assert len(kept) == len(images)
    for i in range(len(images)):
        assert (kept[i] == load_image(images.path(i), 32)).all()
        with pytest.raises(ValueError, match="read-only"):
            kept[i][0, 0, 0] = 1


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_another_process_maps_the_same_memory(images: Images, mode: str) -> None:
    kept = build_cache(images, 64, mode)
    assert len(pickle.dumps(kept)) < 1000 < kept[0].nbytes
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply(operator.getitem, (kept, 4))
    assert (theirs == kept[4]).all()


def test_memory_is_given_back(images: Images) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here")
    before = open_files()
    kept = build_cache(images, 32, "ram")
    assert open_files() > before
    del kept
    assert open_files() == before


def test_the_disk_cache_is_reused_until_an_image_changes(images: Images, capsys: pytest.CaptureFixture[str]) -> None:
    build_cache(images, 32, "disk")
    assert re.match(r"image cache: 9 images, .*, decoded into .* in \d", capsys.readouterr().out)
    build_cache(images, 32, "disk")
    assert "reused" in capsys.readouterr().out
    build_cache(images, 64, "disk")
    assert "decoded" in capsys.readouterr().out

    for value in (0, 9):
        stat = images.paths[2].stat()
        write(images.paths[2], np.full((50, 50, 3), value, np.uint8))
        os.utime(images.paths[2], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as an archive may say of all its files
        assert (build_cache(images, 32, "disk")[2] == value).all()


def test_a_disk_cache_of_another_length_is_made_anew(images: Images) -> None:
    build_cache(images, 32, "disk")
    (file,) = [path for path in (cache_root() / "images").iterdir() if path.stat().st_mtime_ns >= _newest()]
    with open(file, "r+b") as handle:
        handle.truncate(100)
    assert (build_cache(images, 32, "disk")[8] == load_image(images.path(8), 32)).all()


def _newest() -> int:
    return max(path.stat().st_mtime_ns for path in (cache_root() / "images").iterdir())


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_a_broken_image_is_named_and_leaves_no_cache(
    images: Images, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "cache"))
    images.paths[5].write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"5\.png"):
        build_cache(images, 32, mode)
    folder = tmp_path / "cache" / "images"
    assert not folder.exists() or not list(folder.iterdir())


def test_too_little_memory_is_said_before_anything_is_read(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "available_memory", lambda: 20_000)
    monkeypatch.setattr(cache, "load_image", None)
    with pytest.raises(UserError, match="--cache ram: 9 images need 0.0 MB of memory.*--cache disk"):
        build_cache(images, 32, "ram")


def test_too_small_a_disk_is_said_before_anything_is_read(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    monkeypatch.setattr(cache, "load_image", None)
    with pytest.raises(UserError, match="--cache disk: 9 images need .*LOCKSTEP_CACHE"):
        build_cache(images, 33, "disk")


def test_a_cache_folder_that_cannot_be_made_is_named(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        build_cache(images, 32, "disk")


def test_available_memory_is_within_the_machines() -> None:
    free = cache.available_memory()
    if free is None:
        pytest.skip("not known on this system")
    assert 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
