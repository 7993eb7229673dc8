"""What both sides of a comparison are given, and the same measure for both; imports neither of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch


def gflops(model: torch.nn.Module, size: int) -> float:
    from torch.utils.flop_counter import FlopCounterMode  # slow to import: neither side's start is to pay for it

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, size, size))
    model.train()
    return counter.get_total_flops() / 1e9


def loss_case(settings: dict[str, Any]) -> tuple:
    """Boxes `[B, M, 4]` in shares of the image, classes, and a maker of raw maps `[B, C, A]`: the same for both."""
    size, nc, count, batch = settings["size"], settings["nc"], settings["boxes"], settings["batch"]
    draw = torch.Generator().manual_seed(0)
    centre, side = torch.rand(batch, count, 2, generator=draw) * 0.8 + 0.1, torch.rand(batch, count, 2, generator=draw)
    side = side * 0.15 + 0.02
    boxes = torch.cat([centre - side / 2, centre + side / 2], -1)
    points = sum((size // s) ** 2 for s in (8, 16, 32))

    def raw(channels: int, shift: float = 0.0) -> torch.Tensor:
        return (torch.randn(batch, channels, points, generator=draw) + shift).requires_grad_()

    return size, nc, boxes, torch.randint(0, nc, (batch, count), generator=draw), raw


def made_by_workers(batches: Iterable[int], ahead: int) -> dict[str, float]:
    """Images and seconds of an epoch of batches of so many images each; the first `ahead` lay ready and count for 0."""
    start = time.perf_counter()
    counts = list(batches)
    seconds = time.perf_counter() - start
    time.sleep(1)  # what is prepared of the next epoch is to be ready before the other's turn
    return {"images": sum(counts[ahead:]), "seconds": seconds}
