"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The BCCD data set's folder: $LOCKSTEP_BCCD, or `shared/data/BCCD` beside the checkout."""
    folder = Path(os.environ.get("LOCKSTEP_BCCD", ROOT.parent / "shared" / "data" / "BCCD"))
    if not folder.is_dir():
        pytest.skip(f"BCCD is not at {folder}")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of a test never land in, or are read from, the user's."""
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
