"""Memory that processes share, and what trainers of one machine keep in it once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from data.memory import SharedMemory
from tests.test_dist import run_together

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is inherited by fork")

# Two trainers with a worker each: what they decode, what they get, and where their caches lie.
TRAINERS = """
import hashlib, json, os, sys
from pathlib import Path
import torch
from data import cache as cache_module, dataset as dataset_module
from data.config import load_data_config
from data.dataset import DetectionDataset
from data.index import build_index
from data.loader import Loader
from utils import dist
from utils.errors import UserError
from utils.hyp import Hyp

folder = Path(os.environ["FOLDER"])
me = dist.rank()
dist.start(torch.device("cpu"))
index, _ = build_index(load_data_config(str(folder / "data.yaml")), "train")
load = cache_module.load_indexed

def note(images, i, imgsz):
    with (folder / f"decoded-{phase}").open("a") as file:
        file.write(".")
    return load(images, i, imgsz)

cache_module.load_indexed = dataset_module.load_indexed = note

def data(cache=None):
    return DetectionDataset(index, 64, Hyp(), seed=0, epochs=99, augment=True, cache=cache)

def digests(batches):
    found = []
    for batch in batches.epoch(0):
        found.append(hashlib.sha256(batch.images.numpy().tobytes()).hexdigest())
        dist.barrier()  # trainers keep step: they wait for each other's gradients
    return found

out, phase = {}, "alone"
plan = {"seed": 0, "shuffle": True, "rank": me, "world_size": 2}
out["alone"] = digests(Loader(data(), 4, workers=0, **plan))
dist.barrier()
phase = "shared"
batches = Loader(data(), 4, workers=1, **plan)
out["shared"] = digests(batches)
batches.close()
dist.barrier()
phase = "ram"
kept = data("ram")
out["ram"], out["path"] = digests(Loader(kept, 4, workers=0, **plan)), kept._cache.path
dist.barrier()
phase = "broken"
(folder / "images" / "3.png").write_bytes(b"no image")
dist.barrier()
try:
    data("ram")
except UserError as error:
    out["error"] = str(error)
dist.barrier()
print(json.dumps(out), flush=True)
os._exit(0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of 160 images of noise, a box each."""
    cv2 = pytest.importorskip("cv2")
    draw = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for i in range(160):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), draw.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        (tmp_path / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [box]\n")
    return tmp_path


def test_trainers_of_one_machine_decode_an_image_once(folder: Path) -> None:
    """The same samples as each makes by itself, with half of the work, and one copy of a cache."""
    pair = run_together(TRAINERS, FOLDER=str(folder))
    decoded = {phase: (folder / f"decoded-{phase}").stat().st_size for phase in ("alone", "shared", "ram")}
    assert [len(out["alone"]) for out in pair] == [20, 20]
    for out in pair:
        assert out["shared"] == out["alone"] and len(set(out["alone"])) == 20
    assert decoded["alone"] > 1.5 * 160  # what there is to save
    assert decoded["shared"] < 1.3 * 160
    assert decoded["ram"] == 160
    assert pair[0]["path"] == pair[1]["path"]
    assert pair[0]["error"] == pair[1]["error"] and "3.png: not an image" in pair[0]["error"]


def test_memory_is_seen_by_the_forked_and_by_its_path() -> None:
    memory = SharedMemory(64)
    ours, theirs = memory.array((2, 4), np.int64), SharedMemory(64, memory.path).array((4,), np.int64, 32)
    assert not ours.any()
    theirs[:] = [1, 2, 3, 4]
    assert ours.tolist() == [[0] * 4, [1, 2, 3, 4]]

    def write() -> None:
        ours[0] = 7

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join(60)
    assert ours[0].tolist() == [7] * 4 and process.exitcode == 0


def test_a_lock_keeps_others_out_until_its_process_ends() -> None:
    memory, context = SharedMemory(8), multiprocessing.get_context("fork")
    steps, log = context.Semaphore(0), context.Queue()

    def hold() -> None:
        with memory.locked(1):
            steps.release()
            signal.pause()

    def wait() -> None:
        with memory.locked(0):
            log.put("another lock is free")
        with memory.locked(1):
            log.put("had it")

    holder = context.Process(target=hold, daemon=True)
    holder.start()
    assert steps.acquire(timeout=60)
    waiter = context.Process(target=wait, daemon=True)
    waiter.start()
    assert log.get(timeout=60) == "another lock is free"
    waiter.join(0.3)
    assert waiter.is_alive() and log.empty()
    os.kill(holder.pid, signal.SIGKILL)
    assert log.get(timeout=60) == "had it"
    for process in (holder, waiter):
        process.join(60)
