"""Batches, their order, and the workers that make them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data import dataset as dataset_module
from data import loader as loader_module
from data.augment import Picture
from data.dataset import DetectionDataset, Sample, SampleKey
from data.loader import (
    PREFETCH,
    Batch,
    Loader,
    Plan,
    collate,
    default_workers,
    multi_scale_range,
    multi_scale_size,
    resize_batch,
)
from data.processes import cores
from tests.test_dataset import ALL, Labelled
from tests.test_device import check_that_memory_is_kept
from tests.test_handover import free
from utils import signals
from utils.errors import UserError

FIELDS = ("images", "boxes", "classes", "indices", "letterbox")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Eleven images of noise in two shapes, the i-th with i % 4 boxes."""
    folder = tmp_path_factory.mktemp("noise")
    draw = np.random.default_rng(0)
    paths, sizes, boxes = [], [], []
    for i in range(11):
        width, height = ((64, 40), (30, 64))[i % 3 == 0]
        paths.append(folder / f"{i}.png")
        cv2.imwrite(str(paths[-1]), draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        sizes.append((width, height))
        boxes.append([[2.0 + k, 3, 20 + k, 30] for k in range(i % 4)])
    return Labelled(paths, sizes, boxes)


def dataset(index: Labelled, **options) -> DetectionDataset:
    return DetectionDataset(index, 64, ALL, **({"seed": 1, "epochs": 9, "augment": True} | options))


def loader(source: DetectionDataset, workers: int = 0, **options) -> Loader:
    return Loader(source, 4, workers=workers, **({"seed": 1, "shuffle": True} | options))


def same(first: list[Batch], second: list[Batch]) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(first, second, strict=True) for name in FIELDS]
    return all(a.shape == b.shape and torch.allclose(a, b, 0, 0, equal_nan=True) for a, b in pairs)


def plan(shapes: np.ndarray, batch: int, epoch: int = 0, shuffle: bool = True, **options: int) -> list[list[int]]:
    made = Plan(shapes, batch, seed=3, shuffle=shuffle, **options)
    keys = list(made.keys(epoch))
    assert len(keys) == len(made) and {key.epoch for batch in keys for key in batch} <= {epoch}
    batches = [[key.index for key in batch] for batch in keys]
    return batches


def test_collate_pads_boxes() -> None:
    pixels = np.arange(2 * 2 * 4 * 3, dtype=np.uint8).reshape(2, 2, 4, 3)
    way, boxes = np.float32([0.5, 0.5, 1, 2]), np.float32([[0, 0, 1, 1], [1, 1, 2, 2]])
    full = Sample(pixels[1], boxes, np.array([7, 8]), 5, way)
    empty = Sample(pixels[0], boxes[:0], np.zeros(0, np.int64), 2, way * 2)
    batch = collate([empty, full], pixels)
    assert batch.images.shape == (2, 3, 2, 4) and batch.images.dtype == torch.uint8 and len(batch) == 2
    assert (batch.images.permute(0, 2, 3, 1).numpy() == pixels).all()
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.boxes.tolist() == [[[0.0] * 4] * 2, boxes.tolist()] and batch.boxes.dtype == torch.float32
    assert batch.classes.tolist() == [[-1, -1], [7, 8]] and batch.classes.dtype == torch.int64
    assert batch.indices.tolist() == [2, 5]
    assert batch.letterbox.tolist() == [(way * 2).tolist(), way.tolist()]


def test_a_batch_without_boxes_has_one_row_of_padding() -> None:
    way, none = np.ones(4, np.float32), np.zeros((0, 4), np.float32)
    sample = Sample(np.zeros((2, 2, 3), np.uint8), none, np.zeros(0, np.int64), 0, way)
    batch = collate([sample, sample], np.zeros((2, 2, 2, 3), np.uint8))
    assert batch.boxes.shape == (2, 1, 4) and batch.classes.tolist() == [[-1], [-1]]


@pytest.mark.parametrize("count", [1, 5, 8, 23])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_image_comes_once_and_ranks_share_alike(count: int, batch: int, ranks: int) -> None:
    shapes = np.full((count, 2), 64)
    parts = [plan(shapes, batch, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert len({tuple(map(len, part)) for part in parts}) == 1
    counts = Counter(i for part in parts for keys in part for i in keys)
    assert set(counts) == set(range(count))
    assert sum(counts.values()) == -(-count // ranks) * ranks  # only so many are repeated as ranks need
    if ranks == 1:
        assert set(counts.values()) == {1}
        assert [len(keys) for keys in parts[0]] == [min(batch, count - k) for k in range(0, count, batch)]


def test_ranks_split_the_order_of_one() -> None:
    shapes = np.full((24, 2), 64)
    whole = [i for keys in plan(shapes, 6) for i in keys]
    for rank in range(3):
        assert [i for keys in plan(shapes, 2, rank=rank, world_size=3) for i in keys] == whole[rank::3]
    together = [plan(shapes, 2, rank=rank, world_size=3) for rank in range(3)]
    for number, keys in enumerate(plan(shapes, 6)):
        assert sorted(keys) == sorted(i for part in together for i in part[number])


def test_the_order_is_keyed_by_the_epoch() -> None:
    shapes = np.full((50, 2), 64)
    first, again, other = plan(shapes, 8), plan(shapes, 8), plan(shapes, 8, epoch=1)
    assert first == again != other
    assert plan(shapes, 8, shuffle=False, epoch=1) == [list(range(k, min(k + 8, 50))) for k in range(0, 50, 8)]
    firsts = {plan(shapes, 8, epoch=epoch)[0][0] for epoch in range(20)}
    assert len(firsts) > 10


@pytest.mark.parametrize("ranks", [1, 2])
def test_batches_are_of_one_shape(ranks: int) -> None:
    shapes = np.array([[64, 32], [32, 64], [64, 64]])[np.random.default_rng(0).integers(0, 3, 40)]
    parts = [plan(shapes, 4, rank=rank, world_size=ranks) for rank in range(ranks)]
    for number in range(len(parts[0])):
        keys = [i for part in parts for i in part[number]]
        assert len(np.unique(shapes[keys], axis=0)) == 1
    assert {i for part in parts for keys in part for i in keys} == set(range(40))
    order = [tuple(shapes[keys[0]]) for keys in parts[0]]
    assert order != sorted(order)  # shuffled, not shape by shape
    plain = [tuple(shapes[keys[0]]) for keys in plan(shapes, 4, shuffle=False)]
    assert plain == sorted(plain)


def test_no_images_are_no_batches() -> None:
    assert plan(np.zeros((0, 2), int), 4) == []


@pytest.mark.parametrize("options", [{}, {"augment": False, "rect": True}, {"cache": "ram"}])
def test_workers_change_no_byte(index: Labelled, options: dict) -> None:
    alone, helped = loader(dataset(index, **options)), loader(dataset(index, **options), workers=2)
    try:
        for epoch in (0, 3):
            assert same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))
    finally:
        helped.close()


def watch_decoding(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[[], list[int]]:
    """Return what gives the images that all processes have decoded so far."""
    load, log = dataset_module.load_indexed, folder / "decoded"

    def note(source: Labelled, i: int, imgsz: int) -> np.ndarray:
        with log.open("a") as file:
            file.write(f"{i}\n")
        return load(source, i, imgsz)

    monkeypatch.setattr(dataset_module, "load_indexed", note)
    return lambda: [int(i) for i in log.read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is inherited by fork")
def test_workers_take_from_each_other_what_is_decoded(
    index: Labelled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decoded = watch_decoding(monkeypatch, tmp_path)
    many = Labelled(index.paths * 40, index.sizes.tolist() * 40, [[]] * 440)
    alone = list(loader(dataset(many)).epoch(0))
    once = len(decoded())
    helped = loader(dataset(many), workers=2)
    try:
        assert same(alone, list(helped.epoch(0)))
    finally:
        helped.close()
    total = len(decoded())
    assert total - once < 1.4 * once  # without sharing nearly twice as many
    assert len(list(helped.epoch(0))) == 110  # it still loads, and waits for no worker that was ended
    assert len(decoded()) > total


def torch_files() -> int:
    """The tensors' files that are mapped into this process."""
    return Path("/proc/self/maps").read_text().count("/torch_")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is inherited by fork")
@pytest.mark.parametrize("augment", [True, False])
def test_batches_come_through_memory_that_is_used_again_and_is_no_file(index: Labelled, augment: bool) -> None:
    many = Labelled(index.paths * 10, index.sizes.tolist() * 10, [[]] * 110)
    source = dataset(many, augment=augment, rect=not augment)
    alone, helped = list(loader(source).epoch(2)), loader(source, workers=1)
    slots, files = helped._source.slots, torch_files()
    total = free(slots)
    try:
        next(helped.epoch(1))  # abandoned
        for ours, batch in zip(alone, helped.epoch(2), strict=True):
            assert same([ours], [batch]) and batch.images.is_contiguous(memory_format=torch.channels_last)
            kept = batch.images[0]  # the one before is kept until now
        assert torch_files() == files
        assert torch.equal(kept, alone[-1].images[0]) and free(slots) >= total - 1 - PREFETCH
        del batch, kept
        assert free(slots) >= total - PREFETCH  # the next epoch's are prepared
        kept = list(helped.epoch(2))  # more than there is room for
        assert len(kept) > total and same(alone, kept) and torch_files() == files
        del kept
        assert free(slots) >= total - PREFETCH
    finally:
        helped.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_start_at_any_batch(index: Labelled, workers: int) -> None:
    batches = loader(dataset(index), workers)
    try:
        whole = list(batches.epoch(2))
        assert len(whole) == len(batches) == 3 and [len(batch) for batch in whole] == [4, 4, 3]
        for start in (1, 2, 3):
            assert same(list(batches.epoch(2, start)), whole[start:])
        next(batches.epoch(5))  # abandoned
        assert same(list(batches.epoch(2)), whole)
    finally:
        batches.close()


def test_any_course_of_epochs_gives_the_batches_of_one_process(index: Labelled) -> None:
    """One after the other, again, backwards, broken off in the middle and gone on with."""
    alone, helped = loader(dataset(index)), loader(dataset(index), workers=2)
    course = [
        (0, 0, 3),
        (1, 0, 3),
        (2, 0, 2),
        (2, 2, 1),
        (3, 0, 1),
        (3, 0, 3),
        (4, 1, 2),
        (5, 0, 3),
        (5, 0, 3),
        (0, 0, 3),
    ]
    try:
        for epoch, start, count in course:
            expected, got = (list(islice(batches.epoch(epoch, start), count)) for batches in (alone, helped))
            assert len(got) == count and same(expected, got)
    finally:
        helped.close()


@pytest.mark.parametrize("augment", [True, False])
def test_workers_prepare_the_next_epoch_before_it_is_asked_for(
    index: Labelled, augment: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decoded = watch_decoding(monkeypatch, tmp_path)
    source = dataset(index, augment=augment, rect=not augment, epochs=0)  # without mosaics: an image a sample
    batches = loader(source, workers=1, shuffle=augment)
    starts: list[tuple[int, int]] = []
    begin = type(batches._torch_loader).__iter__
    monkeypatch.setattr(
        type(batches._torch_loader), "__iter__", lambda own: starts.append(batches._onward.begin) or begin(own)
    )
    monkeypatch.setattr(dataset_module, "KEPT", 4)  # a batch
    ahead = list(batches._plan.keys(int(augment)))[:PREFETCH]
    alone = dataset(index, augment=augment, rect=not augment, epochs=0)
    for keys in [*batches._plan.keys(0), *ahead]:
        alone.samples(keys)
    here, ahead = decoded(), [i for batch in ahead for _, i in batch]
    assert len(here) >= len(index) + (not augment) * len(ahead)
    try:
        list(batches.epoch(0))
        deadline = time.monotonic() + 30
        while len(decoded()) < 2 * len(here) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert decoded() == 2 * here
        assert [int(i) for batch in batches.epoch(int(augment)) for i in batch.indices][: len(ahead)] == ahead
        assert starts == [(0, 0)], "they went on"
    finally:
        batches.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_ends_in_its_one_line(index: Labelled, workers: int, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    paths = [*index.paths[:3], tmp_path / "broken.jpg"]
    broken = Labelled(paths, [tuple(size) for size in index.sizes[:4].tolist()], [[]] * 4)
    source = DetectionDataset(broken, 64, ALL, seed=0, epochs=1, augment=False)
    batches = loader(source, workers)
    try:
        with pytest.raises(UserError) as caught:
            list(batches.epoch(0))
    finally:
        batches.close()
    first, _, remedy = str(caught.value).partition("; ")
    assert first == f"{tmp_path / 'broken.jpg'}: not an image that OpenCV can decode (8 bytes)"
    assert remedy == "--check full finds all such images, and with --skip-bad leaves them out"


class Probe:
    """Stands for a data set; its samples tell about the process that made them."""

    def __len__(self) -> int:
        return 4

    def shapes(self) -> np.ndarray:
        return np.full((4, 2), 32)

    def batch_shape(self, keys: list[SampleKey]) -> tuple[int, int, int, int]:
        return len(keys), 32, 32, 3

    def samples(self, keys: list[SampleKey], pixels: np.ndarray) -> list[Sample]:
        facts = [cv2.getNumThreads(), torch.get_num_threads(), os.getpid(), os.getpgrp()]
        parts = np.zeros(0), np.zeros((4, 4), np.float32), np.array(facts)
        return [Sample(*parts, key.index, np.zeros(4, np.float32)) for key in keys]


def test_workers_run_one_thread_outside_of_the_trainers_process_group() -> None:
    batches = loader(Probe(), workers=1)
    try:
        (batch,) = batches.epoch(0)
    finally:
        batches.close()
    opencv, threads, pid, group = batch.classes[0].tolist()
    assert opencv == threads == 1
    assert pid != os.getpid() and group == pid


def test_more_workers_than_cores_are_no_matter_for_torch(index: Labelled) -> None:
    """Its warning, an error here, is of several lines; the trainer says it in one."""
    with contextlib.closing(loader(dataset(index, augment=False), workers=cores() + 1)) as source:
        assert sum(map(len, source.epoch(0))) == len(index)


def test_close_ends_the_workers(index: Labelled) -> None:
    before = set(multiprocessing.active_children())
    batches = loader(dataset(index), workers=2)
    list(batches.epoch(0))
    mine = set(multiprocessing.active_children()) - before
    assert len(mine) == 2
    list(batches.epoch(1))
    assert set(multiprocessing.active_children()) - before == mine  # the same ones for all epochs
    batches.close()
    deadline = time.monotonic() + 10
    while set(multiprocessing.active_children()) & mine and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(multiprocessing.active_children()) & mine


# Torch is told of a device, and pinning takes a while. The batches are larger messages than a pipe holds.
CLOSING = """
import time
from types import SimpleNamespace
import numpy as np, torch
torch.cuda.is_available = lambda: True
torch.cuda.current_device, torch.cuda.set_device = lambda: 0, lambda _: None
torch.accelerator = SimpleNamespace(
    is_available=lambda: True, current_accelerator=lambda *_, **__: torch.device("cuda"),
    current_device_index=lambda: 0, set_device_index=lambda _: None,
)
from data.dataset import Sample
from data.loader import Batch, Loader

Batch.pin_memory = lambda self: time.sleep(0.02) or self

class Full:
    def shapes(self):
        return np.full((4096, 2), 32)

    def room_to_share(self, _):
        return None

    def batch_shape(self, keys):
        return len(keys), 32, 32, 3

    def samples(self, keys, pixels):
        parts = np.zeros(0), np.zeros((60, 4), np.float32), np.zeros(60, np.int64)
        return [Sample(*parts, key.index, np.zeros(4, np.float32)) for key in keys]

for count in range(2, 8):
    batches = Loader(Full(), 64, workers=2, seed=1, shuffle=True, pin_memory=True)
    given = batches.epoch(0)
    for _ in range(count):
        next(given)
    assert batches._torch_loader._iterator._pin_memory_thread.is_alive()
    batches.close()
print("closed")
"""


def test_close_does_not_wait_for_the_rest_of_a_message() -> None:
    """Where batches are pinned a thread reads them: a worker that is killed in the middle of one never ends it."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-W", "ignore", "-c", CLOSING]
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120).stdout == "closed\n"


def test_where_a_worker_is_killed_others_go_on_with_the_same_batches(
    index: Labelled, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, helped = (loader(dataset(index), workers=workers) for workers in (0, 2))
    with contextlib.closing(helped):
        batches = [*helped.epoch(0)]
        given = helped.epoch(1)
        batches += islice(given, 1)
        for worker in helped._torch_loader._iterator._workers:  # whichever was to make the next batch
            os.kill(worker.pid, signal.SIGKILL)
        signals.check()  # nothing is raised here, where a save might be under way
        batches += given
    assert same(batches, [*alone.epoch(0), *alone.epoch(1)])
    said = capsys.readouterr().err
    assert said.count("\n") <= 2 and "a loader worker ended by itself" in said and "the same batches" in said


class Deadly(DetectionDataset):
    """One of its images ends the process that decodes it."""

    def _load(self, i: int, key: SampleKey | None = None) -> Picture:
        if i == 7 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._load(i, key)


def test_a_batch_that_kills_its_worker_each_time_is_an_error(index: Labelled) -> None:
    source = Deadly(index, 64, ALL, seed=1, epochs=9, augment=False)
    with contextlib.closing(loader(source, workers=1, shuffle=False)) as batches:
        given = batches.epoch(0)
        assert next(given).indices.tolist() == [0, 1, 2, 3]
        with pytest.raises(UserError, match="twice at one batch: use fewer --workers"):
            next(given)
    assert len(list(loader(source, shuffle=False).epoch(0))) == 3


def test_workers_leave_signals_to_the_trainer() -> None:
    batches = loader(Probe(), workers=1)
    try:
        (batch,) = batches.epoch(0)
        for number in signals.STOPPING:
            os.kill(int(batch.classes[0, 2]), number)
        (again,) = batches.epoch(1)
    finally:
        batches.close()
    assert again.classes[0, 2] == batch.classes[0, 2]


def test_loading_leaves_the_global_generators_alone(index: Labelled) -> None:
    batches = loader(dataset(index), workers=1)
    before, old = torch.get_rng_state(), np.random.get_state()[1].tolist()
    try:
        list(batches.epoch(0))
    finally:
        batches.close()
    assert (torch.get_rng_state() == before).all() and np.random.get_state()[1].tolist() == old


def test_pinned_memory_is_for_cuda_only(index: Labelled) -> None:
    batches = loader(dataset(index), workers=1, pin_memory=True)
    try:
        assert all(batch.images.is_pinned() == torch.cuda.is_available() for batch in batches.epoch(0))
    finally:
        batches.close()


def test_to_moves_everything(index: Labelled) -> None:
    moved = next(loader(dataset(index)).epoch(0)).to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in FIELDS)


def test_resize_scales_pictures_and_boxes() -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[16:48, 24:72] = 200
    way, box = np.float32([0.5, 0.5, 4, 8]), np.float32([[24, 16, 72, 48]])
    batch = collate([Sample(image, box, np.array([1]), 0, way)] * 2, np.stack([image, image]))
    for size, (width, height) in {192: (192, 128), 128: (128, 96), 64: (64, 32)}.items():
        out = resize_batch(batch, size)
        assert out.images.shape == (2, 3, height, width) and out.images.dtype == torch.uint8
        scale = torch.tensor([width / 96, height / 64] * 2)
        assert torch.allclose(out.boxes, batch.boxes * scale) and torch.allclose(out.letterbox, batch.letterbox * scale)
        bright = out.images[0, 0].numpy() > 100
        x, y = np.flatnonzero(bright.any(0)), np.flatnonzero(bright.any(1))
        extent = torch.tensor([x[0], y[0], x[-1] + 1, y[-1] + 1])
        assert (extent - out.boxes[0, 0]).abs().max() <= 1
        assert out.images.max() == 200
    assert resize_batch(batch, 96) is batch


def test_multi_scale_sizes() -> None:
    sizes = [multi_scale_size(0, 3, number, 320, 0.5, 32) for number in range(400)]
    assert set(sizes) == set(range(160, 481, 32))
    assert max(Counter(sizes).values()) < 3 * min(Counter(sizes).values())
    assert sizes == [multi_scale_size(0, 3, number, 320, 0.5, 32) for number in range(400)]
    assert sizes != [multi_scale_size(0, 4, number, 320, 0.5, 32) for number in range(400)]
    assert {multi_scale_size(0, 0, number, 320, 0.0, 32) for number in range(20)} == {320}
    assert {multi_scale_size(0, 0, number, 32, 0.75, 32) for number in range(50)} == {32}
    assert {multi_scale_size(0, 0, number, 320, 0.25, 32) for number in range(200)} == {256, 288, 320, 352, 384}
    for imgsz in range(32, 1313, 32):
        for percent in range(96):  # in whole numbers, which nothing rounds
            sides = [side for side in range(32, 2 * imgsz, 32) if 100 * abs(side - imgsz) <= percent * imgsz]
            low, high = multi_scale_range(imgsz, percent / 100, 32)
            assert (32 * low, 32 * high) == (sides[0], sides[-1]), (imgsz, percent)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's switch")
def test_a_worker_keeps_freed_memory_whatever_the_trainer_does() -> None:
    """On CUDA the trainer doesn't."""
    check_that_memory_is_kept("data.loader", "_init_worker(0)")


@pytest.mark.parametrize(
    ("device", "cores", "ranks", "expected"),
    [("cpu", 2, 1, 0), ("cpu", 16, 1, 2), ("mps", 8, 1, 2), ("cuda", 2, 1, 2), ("cuda", 64, 1, 8), ("cuda", 16, 8, 2)],
)
def test_workers_by_default(
    device: str, cores: int, ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert default_workers(torch.device(device)) == expected
