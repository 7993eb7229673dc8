"""All images decoded once, to find damage that the header doesn't show (`--check full`)."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import cv2
import numpy as np
from tqdm import tqdm

from data.faults import Fault

PROCESSES = 8


def decode_faults(paths: Sequence[str]) -> Iterator[tuple[str, Fault | None]]:
    """Yield (path, what is wrong with the image, or None) for every path, in order. A terminal shows a bar."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(PROCESSES, os.cpu_count() or 1), context) as pool:
        sound = pool.map(_decodes, paths, chunksize=16)
        bar = tqdm(paths, "decoding images", unit="image", disable=None, leave=False)
        for path, good in zip(bar, sound, strict=True):
            text = "can't be decoded: copy or download it again"
            yield path, None if good else Fault.of("image-corrupt", path, "", text)


def _decodes(path: str) -> bool:
    try:
        data = np.fromfile(path, np.uint8)
        return data.size > 0 and cv2.imdecode(data, cv2.IMREAD_COLOR) is not None
    except (OSError, cv2.error):
        return False
