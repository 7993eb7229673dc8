"""Where the time of a training step goes: a table of its phases and operations, and a trace to look at."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile, record_function

phase = record_function  # a named stretch of a step; next to nothing where no profiler listens
PHASES = ("loader", "prepare", "forward", "loss", "backward", "update")
WARM_UP = 3  # steps before any is timed: memory and kernels are chosen in them
ROWS = 25  # operations in the table


def profile_steps(step: Callable[[], int], count: int, folder: Path | None, device: torch.device) -> list[str]:
    """Time `count` steps, then record as many, and write `profile.txt` and `trace.json` (for chrome://tracing).

    Args:
        step: runs one step, whose phases are named by `phase`, and returns its number of images.
        folder: None: nothing is written.
    Returns:
        lines for the user: images/s, and each phase's mean time and share.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its greeting is about a GPU that need not be there
    for _ in range(WARM_UP):
        step()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start, images = time.perf_counter(), sum(step() for _ in range(count))
    wait()
    seconds = time.perf_counter() - start
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as recorded:
        for _ in range(count):
            step()
        wait()
    table = recorded.key_averages()
    lines = [f"{count} steps of {images / count:g} images: {1e3 * seconds / count:.1f} ms a step, "
             f"{images / seconds:.1f} images/s"]  # fmt: skip
    lines.append("the host's time in them while they are recorded, which slows it:")
    lines += phase_lines({event.key: event for event in table if event.key in PHASES and on_host(event)}, count)
    where = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        text = table.table(sort_by=where, row_limit=ROWS, max_name_column_width=40)
        (folder / "profile.txt").write_text("\n".join([*lines, "", "Operations, recorded:", text, ""]))
        recorded.export_chrome_trace(str(folder / "trace.json"))
    return lines


def on_host(event: FunctionEventAvg) -> bool:
    """Is this what the host did? A phase on CUDA has a second entry, of the device."""
    return event.device_type == DeviceType.CPU


def phase_lines(events: Mapping[str, FunctionEventAvg], count: int) -> list[str]:
    """A line a phase: mean time of the host in it, and its share. A GPU's times are in the table of operations."""
    host = {name: getattr(events.get(name), "cpu_time_total", 0) / 1e3 / count for name in PHASES}
    whole = max(sum(host.values()), 1e-9)
    return [f"  {name:<10}{host[name]:9.2f} ms {100 * host[name] / whole:6.1f} %" for name in PHASES]
