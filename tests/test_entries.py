"""Packed names: the order, repetitions and label files of plain lists of entries."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data.entries
from data.entries import Entries, Listed, block_of
from data.labels import Entry, Record

# Letters whose order differs between UTF-8 bytes and characters, and a byte that is no UTF-8.
NAMES = st.text("ab/.é😀\udcff", min_size=1, max_size=6).filter(lambda name: "\0" not in name)


def entry(name: str, number: int) -> Entry:
    return Entry(name, f"/images/{name}", f"/labels/{name.rpartition('.')[0]}", str(number), lambda *_: None)


def packed(*groups: list[Entry]) -> Entries:
    entries = Entries()
    for group in groups:
        entries.add(Listed(group), [(one.name, one.label) for one in group])
    entries.finish()
    return entries


@given(groups=st.lists(st.lists(NAMES, max_size=12), min_size=1, max_size=3), some=st.integers(1, 5))
def test_entries_are_a_sorted_list(groups: list[list[str]], some: int) -> None:
    made = [[entry(name, 100 * k + i) for i, name in enumerate(names)] for k, names in enumerate(groups)]
    plain = [one for group in made for one in group]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.entries, "SOME", some)
        entries = packed(*made)
    assert list(entries) == sorted(plain, key=lambda one: one.name)
    assert entries.repeated == [(name, n) for name, n in Counter(one.name for one in plain).items() if n > 1]
    for first in range(len(plain)):
        names, lengths = entries.names(first, len(plain))
        assert names.tobytes() == b"".join(os.fsencode(entries[i].name) for i in range(first, len(plain)))
        assert lengths.sum() == len(names) and len(lengths) == len(plain) - first


def test_label_files_of_several_images_and_of_none() -> None:
    names = ["b.png", "a.jpg", "a.x.jpg", "a.png", "c.jpg", "a.jpg", "c.jpg"]
    entries = packed([entry(name, i) for i, name in enumerate(names)])
    assert list(entries.shared_labels()) == [("/labels/a", ["a.jpg", "a.png"])]  # c.jpg is one image, listed twice
    labels = [f"/labels/{name}" for name in ("a", "a.x", "b", "d", "c", "e")]
    assert list(entries.without_images(iter(labels))) == ["/labels/d", "/labels/e"]
    assert list(packed().without_images(iter(labels))) == labels


def test_images_without_a_label_file_of_their_own_share_none() -> None:
    entries = Entries()
    group = [entry("a.jpg", 0), entry("a.png", 1)]
    entries.add(Listed(group), [(one.name, "") for one in group])
    entries.finish()
    assert not list(entries.shared_labels())


def test_records_come_out_of_a_block_as_they_went_in() -> None:
    draw = np.random.default_rng(0)
    records = []
    for name, count in (("images/a.jpg", 2), ("images/\udcff😀.jpg", 0), ("../x/b.jpg", 3)):
        arrays = (
            draw.random((count, 4), np.float32),
            draw.integers(0, 9, count).astype(np.int32),
            draw.random(count) < 0.5,
        )
        path = Path(os.path.normpath(f"/set/{name}"))
        records.append(Record(path, name, 4 + count, 5, *arrays, draw.random(count, np.float32)))
    block = block_of(records)
    assert len(block) == 3 and len(block.boxes) == 5
    for record, expected in zip(block.records("/set"), records, strict=True):
        for key, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(record, key), value, err_msg=key)
