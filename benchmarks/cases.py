"""What both sides of a comparison are given, and the same measure for both; imports neither of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
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


EPOCHS_LOADED = 3  # a turn: one takes a fraction of a second, and the next differs by a tenth


def made_by_workers(batches: Iterable[int], ahead: int) -> dict[str, float]:
    """Images and seconds of batches of so many images each; the first `ahead` lay ready and count for 0."""
    start = time.perf_counter()
    counts = list(batches)
    seconds = time.perf_counter() - start
    time.sleep(1)  # what is prepared of the next epoch is to be ready before the other's turn
    return {"images": sum(counts[ahead:]), "seconds": seconds}


WARM_UP = 10  # steps before any is timed: kernels are chosen, memory is taken


def timed_steps(step: Callable[[], int], steps: int, device: torch.device, ahead: int = 0) -> dict[str, float]:
    """Run `step`, which returns its number of images, after a warm-up, in which the `ahead` batches that lie ready go.

    Returns the images and seconds of all, the 5th, 50th and 95th percentile of single steps in ms, and the peak of the
    device's memory in GiB. The host waits for the device at the beginning and at the end only.
    """
    on_gpu = device.type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None

    def mark() -> Any:
        if not on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    for _ in range(WARM_UP + ahead):
        step()
    wait()
    start, images, marks = time.perf_counter(), 0, [mark()]
    for _ in range(steps):
        images += step()
        marks.append(mark())
    wait()
    seconds = time.perf_counter() - start
    pairs = zip(marks, marks[1:], strict=False)
    each = sorted(a.elapsed_time(b) if on_gpu else 1e3 * (b - a) for a, b in pairs)
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float("nan")
    spread = {"low": each[len(each) // 20], "middle": statistics.median(each), "high": each[-1 - len(each) // 20]}
    return {"images": images, "seconds": seconds, **spread, "memory": memory}
