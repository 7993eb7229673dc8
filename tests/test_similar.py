"""data/similar.py: what a hash doesn't see, what it does, and that the search finds every pair."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import similar
from data.config import load_data_config
from data.index import Index, build_index
from data.similar import MAX_DISTANCE, MIN_CORRELATION, Looks, correlation, look, look_at, nearest, popcount
from tests.small_data import picture, write_image, yolo_set

BOX = (0, 10.0, 10.0, 40.0, 40.0)


def grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def shift(image: np.ndarray, by: int) -> np.ndarray:
    return np.clip(image.astype(int) + by, 0, 255).astype(np.uint8)


SAME = {
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "a third of the size": lambda image: cv2.resize(image, None, fx=0.31, fy=0.31, interpolation=cv2.INTER_AREA),
    "twice the size": lambda image: cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC),
    "another shape": lambda image: cv2.resize(image, None, fx=1, fy=0.8, interpolation=cv2.INTER_AREA),
    "jpeg 30": lambda image: jpeg(image, 30),
    "brighter": lambda image: shift(image, 25),
    "darker": lambda image: shift(image, -25),
    "more contrast": lambda image: np.clip(1.2 * image, 0, 255).astype(np.uint8),
    "gamma": lambda image: (255 * (image / 255.0) ** 0.8).astype(np.uint8),
}
OTHER = {
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "a cut-out": lambda image: image[: image.shape[0] // 2, : image.shape[1] // 2],
    "negative": lambda image: 255 - image,
}


def alike(first: np.ndarray, second: np.ndarray) -> bool:
    (one, first_look, _), (two, second_look, _) = look(grey(first)), look(grey(second))
    near = (one ^ two).bit_count() <= MAX_DISTANCE
    return near and correlation(first_look[None], second_look[None])[0] >= MIN_CORRELATION


@pytest.mark.parametrize("change", SAME)
def test_a_changed_picture_is_alike(change: str) -> None:
    for seed in range(12):
        image = picture(seed, 320, 240)
        assert alike(image, SAME[change](image)), seed


@pytest.mark.parametrize("change", OTHER)
def test_another_picture_is_not(change: str) -> None:
    for seed in range(12):
        image = picture(seed, 320, 240)
        assert not alike(image, OTHER[change](image)), seed
        assert not alike(image, picture(seed + 100, 320, 240))


def test_photographs_changed_are_alike_and_different_ones_are_not(bccd: Path) -> None:
    paths = sorted((bccd / "JPEGImages").glob("*.jpg"))[::12]
    images = [cv2.imread(str(path)) for path in paths]
    for i, image in enumerate(images):
        for name, change in SAME.items():
            assert alike(image, change(image)), (paths[i], name)
        assert not any(alike(image, other) for other in images[:i]), paths[i]


def test_the_hash_is_the_sign_of_the_lowest_waves() -> None:
    """Against the transform written out as a sum, in double precision, on a picture of the miniature's size."""
    image = np.random.default_rng(4).integers(0, 256, (32, 32)).astype(np.uint8)
    waves = np.cos(np.pi / 32 * np.outer(np.arange(8), np.arange(32) + 0.5))
    scale = np.where(np.arange(8) == 0, np.sqrt(1 / 32), np.sqrt(2 / 32))
    strength = (waves @ image @ waves.T * np.outer(scale, scale)).ravel()
    strength[0] = 0
    bits = strength > np.median(strength[1:])
    assert look(image)[0] == int("".join("01"[int(bit)] for bit in bits), 2)


def test_one_colour_has_no_look() -> None:
    assert look(np.full((50, 60), 90, np.uint8))[2] and look(np.zeros((50, 60), np.uint8))[2]
    faint = np.full((50, 60), 90, np.uint8)
    faint[::7, ::5] += 2
    assert look(faint)[2] and not look(grey(picture(0)))[2]
    assert not look(np.array([[0, 255]], np.uint8))[2], "two pixels are a picture"


def random_looks(count: int, seed: int, flips: int = 6) -> Looks:
    """Families of hashes near each other; of each, about half have one look, the others each one of their own."""
    random = np.random.default_rng(seed)
    family = random.integers(0, max(count // 4, 1), count)
    hashes = random.integers(0, 2**63, count, dtype=np.uint64)[family]
    for _ in range(flips):
        hashes ^= np.uint64(1) << random.integers(0, 64, count, dtype=np.uint64)
    looks = random.integers(-127, 128, (count, 256))
    own = random.random(count) < 0.5
    looks[own] = random.integers(-127, 128, (count, 256))[family[own]]
    return Looks(hashes, looks.astype(np.int8), random.random(count) < 0.1, {1: "torn"} if count > 1 else {})


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
@pytest.mark.parametrize("sizes", [(120, 90), (1, 1), (0, 5), (5, 0)])
def test_the_search_finds_what_comparing_all_finds(
    sizes: tuple[int, int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similar, "BLOCK", block)
    queries, others = random_looks(sizes[0], 1), random_looks(sizes[1], 1)
    for target in (None, others):
        found, bits = nearest(queries, target)
        base = queries if target is None else target
        for i in range(len(queries.hashes)):
            near = {}
            for j in range(len(base.hashes)):
                if not (queries.usable[i] and base.usable[j]) or (target is None and i == j):
                    continue
                distance = (int(queries.hashes[i]) ^ int(base.hashes[j])).bit_count()
                match = np.corrcoef(queries.looks[i], base.looks[j])[0, 1]
                if distance <= MAX_DISTANCE and match >= MIN_CORRELATION:
                    near[j] = distance
            assert (found[i] >= 0) == bool(near), i
            if near:
                assert bits[i] == min(near.values()) == near[int(found[i])], i


def test_some_pairs_are_found_in_that_test() -> None:
    found, _ = nearest(random_looks(120, 1))
    assert 20 < (found >= 0).sum() < 100


def test_bits_are_counted_with_and_without_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.random.default_rng(0).integers(0, 2**64, (7, 11), dtype=np.uint64)
    words[0, :2] = 0, 2**64 - 1
    true = [[int(word).bit_count() for word in row] for row in words]
    np.testing.assert_array_equal(popcount(words), true)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    np.testing.assert_array_equal(popcount(words), true)
    assert popcount(words).dtype == np.uint8


# ------------------------------------------------------------------------------------------------ reading and cache


def index_of(root: Path, count: int = 5) -> Index:
    config = load_data_config(yolo_set(root, {"train": [[BOX]] * count}, ["thing"]))
    return build_index(config, "train", cache=False)[0]


def test_every_image_is_looked_at_and_a_torn_one_is_named(tmp_path: Path) -> None:
    index = index_of(tmp_path)
    file = tmp_path / "images/train/3.jpg"
    file.write_bytes(file.read_bytes()[:700])
    looks = look_at(index, cache=False)
    assert list(looks.unreadable) == [3] and str(file) in looks.unreadable[3]
    np.testing.assert_array_equal(looks.usable, [True, True, True, False, True])
    for i in (0, 1, 2, 4):
        assert (int(looks.hashes[i]) ^ look(grey(picture(i)))[0]).bit_count() <= 4


def test_a_large_image_is_decoded_small_and_looks_the_same(tmp_path: Path) -> None:
    index = index_of(tmp_path, 2)
    large = picture(77, 1600, 1200)
    write_image(index.path(0), large)
    index = build_index(load_data_config(tmp_path / "set.yaml"), "train", cache=False)[0]
    assert alike(large, picture(77, 200, 150))
    assert (int(look_at(index, cache=False).hashes[0]) ^ look(grey(large))[0]).bit_count() <= 4


def test_only_what_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "cache"))
    index = index_of(tmp_path / "data")
    first = look_at(index)
    read: list[str] = []
    decode = similar.decode
    monkeypatch.setattr(
        similar, "decode", lambda path, *more, **words: read.append(path) or decode(path, *more, **words)
    )
    again = look_at(index)
    assert read == []
    for name in ("hashes", "looks", "flat"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    write_image(index.path(2), picture(99))
    third = look_at(index)
    assert read == [index.path(2)] and third.hashes[2] != first.hashes[2]
    np.testing.assert_array_equal(np.delete(third.hashes, 2), np.delete(first.hashes, 2))


def test_a_torn_image_is_tried_again(tmp_path: Path) -> None:
    index = index_of(tmp_path)
    file = Path(index.path(1))
    whole, stat = file.read_bytes(), file.stat()
    file.write_bytes(whole[:700])
    assert list(look_at(index).unreadable) == [1]
    file.write_bytes(whole)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not look_at(index).unreadable


@pytest.mark.parametrize("content", [b"", b"PK no archive", None])
def test_a_damaged_cache_is_only_slower(content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "cache"))
    index = index_of(tmp_path / "data")
    first = look_at(index)
    file = next((tmp_path / "cache/similar").iterdir())
    if content is None:
        np.savez(file, keys=np.zeros(0, np.uint64), hashes=np.zeros(0, np.uint64), looks=np.zeros((0, 256), np.int8),
                 flat=np.zeros(0, bool))  # fmt: skip
    else:
        file.write_bytes(content)
    np.testing.assert_array_equal(look_at(index).hashes, first.hashes)
    np.testing.assert_array_equal(look_at(index).hashes, first.hashes)


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "file"))
    assert not look_at(index_of(tmp_path / "data")).unreadable


def test_what_is_flat() -> None:
    noise = np.random.default_rng(0).standard_normal((32, 32))
    assert look(np.rint(128 + noise.repeat(2, 0).repeat(2, 1)).astype(np.uint8))[2]
    assert not look(np.rint(128 + 12 * noise.repeat(8, 0).repeat(8, 1)).astype(np.uint8))[2]
