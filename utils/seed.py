"""Randomness keyed by what it is for: every draw is a pure function of (seed, purpose, key)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

# A purpose's number is part of every result ever trained: append, never reorder.
PURPOSES = (
    *("init", "order", "mosaic", "affine", "mixup", "hsv", "flip", "multi_scale", "shapes", "transfer"),
    "forward",
)


def rng(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Return the generator of one draw, e.g. `rng(seed, "mosaic", epoch, index)`.

    Philox keyed by a `SeedSequence` (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): generators of
    different keys are independent, and none has a state that a resumed run would need.
    """
    words = (seed, 0, 0, 0, PURPOSES.index(purpose), *key)
    if max(words) < 1 << 32:  # what `SeedSequence` makes of a seed and a spawn key, in half the time
        sequence = np.random.SeedSequence(np.array(words, np.uint32))
    else:
        sequence = np.random.SeedSequence(seed, spawn_key=words[4:])
    return np.random.Generator(np.random.Philox(sequence))


def seed_torch(device: torch.device, seed: int, purpose: str, *key: int) -> None:
    """Key what torch's own random functions draw next, on the CPU and on `device`, such as those of a forward pass."""
    number = int(rng(seed, purpose, *key).integers(2**63))
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)


@contextlib.contextmanager
def torch_seeded(seed: int, purpose: str, *key: int) -> Iterator[None]:
    """Run torch's own random functions (weight initialisation) under a keyed seed; the global state is put back."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(torch.device("cpu"), seed, purpose, *key)
        yield
