"""A growing array holds what was added, on systems that can move memory and on those that can't."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data.growing
from data.growing import Growing


@given(parts=st.lists(st.binary(max_size=50)))
def test_it_holds_what_was_added(parts: list[bytes]) -> None:
    growing = Growing()
    for part in parts:
        growing.add(part)
    assert growing.array("u1").tobytes() == b"".join(parts)


@pytest.mark.parametrize("moves", [True, False])
def test_large_arrays(monkeypatch: pytest.MonkeyPatch, moves: bool) -> None:
    class Fixed(mmap.mmap):
        def resize(self, size: int) -> None:
            raise SystemError("mmap: resizing not available--no mremap()")

    if not moves:
        monkeypatch.setattr(data.growing.mmap, "mmap", Fixed)
    growing = Growing()
    for i in range(40):
        growing.add(np.arange(i * 30_000, (i + 1) * 30_000))
    array = growing.array("i8")
    np.testing.assert_array_equal(array, np.arange(40 * 30_000))
    del growing
    assert array[-1] == 40 * 30_000 - 1  # it keeps its memory
