"""Where to compute, and in which precision."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from utils.errors import UserError

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of mallopt's, from malloc.h
MODES = ("auto", "off", "fp16", "bf16")
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory")  # torch's words, of any device


def select_device(text: str = "", local_rank: int = 0, processes: int = 1) -> torch.device:
    """Return this process's device.

    `text` is '' (the first CUDA device, else the CPU), 'cpu', 'mps', 'cuda', '0', 'cuda:0', or '0,1' for as many
    processes on this machine, of which this one is the `local_rank`-th. Raises `UserError` where it is not there;
    a device that the user named is never replaced by another.
    """
    name = text.strip().lower()
    if name == "cpu" or (not name and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: this machine has no Metal device; allowed here: " + _present())
        return torch.device("mps")
    numbers = _cuda_numbers(text, name, processes)
    if len(numbers) != processes:
        start = f"torchrun --nproc-per-node {len(numbers)} train.py …" if len(numbers) > 1 else "without torchrun"
        raise UserError(
            f"--device {text} names {len(numbers)} device(s) for {processes} process(es); start one each: {start}"
        )
    device = torch.device("cuda", numbers[local_rank])
    torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> None:
    """Let this process keep what it frees, rather than give it back and take it again in the next step.

    A step on a CPU makes and frees hundreds of megabytes, and the kernel clears every page that it hands out: up to
    two thirds of the time of the loss. Only glibc has this switch (mallopt(3)); elsewhere nothing changes.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, -1)


def prefetch(batches: Iterable[T], device: torch.device) -> Iterator[T]:
    """Yield batches (dataclasses of tensors that have `.to`) on the device.

    On CUDA a batch is copied on a stream of its own, while what was started before still computes: the host is ahead of
    the device, since nothing in a step waits. The copy runs beside it only from pinned memory.
    """
    side = _side_stream(device) if device.type == "cuda" else None
    for batch in batches:
        if side is None:
            yield batch.to(device)
            continue
        with torch.cuda.stream(side):
            moved = batch.to(device)
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in vars(moved).values():
            tensor.record_stream(current)  # its memory belongs to the side stream: not to be used again before this one
        yield moved


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs: memory that was copied to on a stream is kept for that stream."""
    return torch.cuda.Stream(device)


class Arriving:
    """Tensors on their way to the host: asked for now, read some work later, when they have long arrived."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors, self._arrived = [_on_its_way(tensor) for tensor in tensors], None
        if any(tensor.is_cuda for tensor in tensors):
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[Tensor]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return [tensor.cpu() for tensor in self._tensors]


def _on_its_way(tensor: Tensor) -> Tensor:
    """A copy in page-locked memory, not there yet, of what is on a CUDA device."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


@contextlib.contextmanager
def within_memory(advice: str) -> Iterator[None]:
    """Say in a line that a device's memory, or the machine's, is too small.

    Raises:
        UserError: in place of what torch or NumPy raises where it was not enough; `advice` says what needs less.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error))):
            raise
        said = (str(error) or "MemoryError").strip().splitlines()[0][:200]
        raise UserError(f"the memory is too small: {advice} ({said})") from error


def compile_regions(regions: Iterable[nn.Module], device: torch.device, fixed: bool) -> None:
    """Compile modules in place, each by itself; their weights' names, copies and checkpoints stay as they are.

    Args:
        fixed: all batches but the last of an epoch have one shape, and kernels are made for each shape alone. Torch
            would make slower ones, for any shape, when it meets the second.

    Raises:
        UserError: this machine can't compile; found out on a small function, before minutes are spent.
    """
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler comes as many kinds of error
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--compile: torch can't compile here ({text[0][:200]}): leave the flag out") from None
    for region in regions:
        region.compile(dynamic=False if fixed else None)


def set_deterministic(wanted: bool) -> None:
    """Make torch take only kernels whose sums have a fixed order, or refuse; or let it choose freely again.

    A resumed run on CUDA is then the uninterrupted one, bit for bit. Call before the device is used: cuBLAS reads its
    workspace's size once.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Only where it changes something: the call imports torch's compiler, which takes a second.
    if wanted or torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False


def _cuda_numbers(text: str, name: str, processes: int) -> list[int]:
    """Return the CUDA devices that `name` means, each of them there."""
    listed = name.removeprefix("cuda").removeprefix(":")
    words = [word.strip() for word in listed.split(",")] if listed else [str(number) for number in range(processes)]
    if not all(word.isascii() and word.isdecimal() for word in words) or len(set(words)) != len(words):
        raise UserError(f"--device {text}: not a device; allowed here: {_present()}")
    numbers = [int(word) for word in words]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if max(numbers) >= count:
        reason = f"torch {torch.__version__} sees {count} CUDA device(s)"
        raise UserError(f"--device {text or max(numbers)}: not there: {reason}; allowed here: {_present()}")
    return numbers


def _present() -> str:
    """Return what `--device` may be on this machine."""
    names = [str(number) for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ", ".join(["cpu", *names, *(["mps"] if torch.backends.mps.is_available() else [])])


class Precision:
    """The number format of a run: what autocast does, and whether gradients are scaled.

    `auto` is bf16 where the CUDA device computes in it, else fp16, and fp32 on everything that is not CUDA. Only fp16
    needs `scaler` (its gradients underflow; Micikevicius et al. 2018, "Mixed Precision Training"); elsewhere it is
    switched off and passes losses and steps through.
    """

    def __init__(self, device: torch.device, mode: str = "auto") -> None:
        if mode not in MODES:
            raise UserError(f"--amp {mode}: allowed: {', '.join(MODES)}")
        native_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        if mode == "auto":
            mode = ("bf16" if native_bf16 else "fp16") if device.type == "cuda" else "off"
        if device.type not in ("cpu", "cuda") and mode != "off":
            raise UserError(f"--amp {mode}: not on {device.type}; allowed: off")
        if mode == "fp16" and device.type != "cuda":
            raise UserError(f"--amp fp16: needs a CUDA device, and this run is on {device.type}; allowed: off, bf16")
        if mode == "bf16" and device.type == "cuda" and not native_bf16:
            raise UserError("--amp bf16: this CUDA device does not compute in it; allowed: fp16, off")
        self.device = device
        self.mode = mode
        self.dtype = {"off": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[mode]
        self.scaler = torch.amp.GradScaler("cuda", enabled=mode == "fp16")

    def autocast(self) -> torch.autocast:
        """Return a context for the forward pass and the loss; in fp32 it switches autocast off."""
        dtype = None if self.mode == "off" else self.dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.mode != "off")

    @property
    def description(self) -> str:
        # As torch has it by itself: of a product's 23 bits of fraction, 10 are taken. It has NVIDIA's Ampere and later.
        tf32 = self.device.type == "cuda" and torch.backends.cudnn.allow_tf32
        tf32 = tf32 and torch.cuda.get_device_capability(self.device) >= (8, 0)
        full = "fp32, convolutions in TF32" if tf32 else "fp32"
        return {"off": full, "fp16": "fp16 with gradient scaling", "bf16": "bf16, weights in fp32"}[self.mode]
