"""For the tests that are marked `cuda`: a device that is there."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def never_waiting() -> Iterator[None]:
    """Whatever would make the host wait for the device raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls it a prototype once, which would be an error in the tests
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
