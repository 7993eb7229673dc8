"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # side by side (`-n`): more threads than cores would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, before any deterministic run

import cv2
import numpy as np
import pytest

import train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The BCCD data set's folder: $LOCKSTEP_BCCD, or `shared/data/BCCD` beside the checkout."""
    folder = Path(os.environ.get("LOCKSTEP_BCCD", ROOT.parent / "shared" / "data" / "BCCD")).resolve()
    if not folder.is_dir():
        pytest.skip(f"BCCD is not at {folder}")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of a test never land in, or are read from, the user's."""
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data yaml of 12 training and 4 validation images of 64×64 (one 64×48) with bright squares and dark bars."""
    root = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(7)
    for split, count in (("train", 12), ("val", 4)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            height = 48 if number == 1 else 64
            image = random.integers(90, 140, (height, 64, 3), np.uint8)
            rows = []
            for label in range(2):
                w, h = (20, 20) if label == 0 else (28, 10)
                x, y = int(random.integers(0, 64 - w)), int(random.integers(0, height - h))
                image[y : y + h, x : x + w] = 250 if label == 0 else 5
                rows.append(f"{label} {(x + w / 2) / 64} {(y + h / 2) / height} {w / 64} {h / height}\n")
            cv2.imwrite(str(root / "images" / split / f"{number:02d}.png"), image)
            (root / "labels" / split / f"{number:02d}.txt").write_text("".join(rows))
    file = root / "tiny.yaml"
    file.write_text("train: images/train\nval: images/val\nnames: [square, bar]\n")
    return file


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of some seconds on `tiny_data`, with weights good enough to find something."""
    project = tmp_path_factory.mktemp("runs")
    flags = ["--imgsz", "64", "--batch", "4", "--device", "cpu", "--noplots", "--workers", "0", "--cache", "off"]
    settings = ["--set", "mosaic=0", "scale=0", "warmup_epochs=0", "ema_tau=10", "ema_decay=0.9"]
    train.main(["--data", str(tiny_data), "--project", str(project), "--epochs", "40", "--noval", *flags, *settings])
    return project / "exp"
