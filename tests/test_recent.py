"""Decoded images that processes share."""

from __future__ import annotations

import multiprocessing
import sys

import numpy as np
import pytest

from data.recent import RecentImages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is inherited by fork")


def plain(number: int, height: int = 30, width: int = 40) -> np.ndarray:
    return np.full((height, width, 3), number % 251, np.uint8)


def test_an_image_comes_back_as_it_was_put_until_another_takes_its_slot() -> None:
    images = RecentImages(4, 3600)
    assert images.get(2, 0) is None  # memory begins as zeros, which are no image 0
    drawn = np.random.default_rng(0).integers(0, 256, (20, 60, 3), dtype=np.uint8)
    images.put(2, 0, drawn)
    found = images.get(2, 0)
    assert (found == drawn).all() and found.shape == (20, 60, 3)
    found[:] = 0
    assert (images.get(2, 0) == drawn).all()  # a copy was changed
    assert images.get(2, 7) is None and images.get(3, 0) is None
    images.put(5, 1, plain(1))
    assert (images.get(2, 0) == drawn).all()
    images.put(6, 7, plain(7, 5, 3))  # the slot of place 2
    assert images.get(2, 0) is None and (images.get(6, 7) == plain(7, 5, 3)).all()


class Broken:
    """An image whose copy ends in the middle, as when a process is killed."""

    size, shape = 3600, (30, 40, 3)

    def reshape(self, _: int) -> np.ndarray:
        raise KeyboardInterrupt


def test_what_was_half_written_is_no_image() -> None:
    images = RecentImages(4, 3600)
    images.put(1, 5, plain(5))
    with pytest.raises(KeyboardInterrupt):
        images.put(1, 9, Broken())
    assert images.get(1, 5) is None and images.get(1, 9) is None


def rummage(images: RecentImages, seed: int, results: multiprocessing.Queue) -> None:
    """Put and get images at random; report how many were found, and how many of those were no whole image."""
    draw, found, broken = np.random.default_rng(seed), 0, 0
    for number in draw.integers(0, 12, 1500).tolist():
        if draw.random() < 0.5:
            images.put(number, number, plain(number, 200 + number, 300))
        image = images.get(number, number)
        if image is not None:
            found, broken = found + 1, broken + (not np.array_equal(image, plain(number, 200 + number, 300)))
    results.put((found, broken))


def test_processes_see_each_others_images_and_never_half_of_one() -> None:
    images, fork = RecentImages(3, 3 * 220 * 300), multiprocessing.get_context("fork")
    images.put(0, 0, plain(0))
    results = fork.Queue()
    processes = [fork.Process(target=rummage, args=(images, seed, results)) for seed in range(4)]
    for process in processes:
        process.start()
    counts = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(found > 300 for found, _ in counts) and sum(broken for _, broken in counts) == 0
