"""The only place that knows of other processes: reads RANK and WORLD_SIZE, wraps the model, gathers results."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError

PATIENCE = datetime.timedelta(days=1)
# What gloo, NCCL and torch's store say where another process is no longer there.
GONE = re.compile(r"closed by peer|reset by peer|broken pipe|connection refused|ncclRemoteError|TCPStore", re.I)


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """Processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_main() -> bool:
    """Is this the process that writes files and speaks to the user?"""
    return rank() == 0


def is_first_here() -> bool:
    """Is this the process that makes what all processes of its machine use?"""
    return local_rank() == 0


def launcher() -> str:
    """What a user starts a program with to have as many processes as here."""
    if world_size() == 1:
        return "python"
    several = f" --nnodes {world_size() // local_world_size()}" if world_size() > local_world_size() else ""
    return f"torchrun{several} --nproc-per-node {local_world_size()}"


def refuse(program: str) -> None:
    """Raise the `UserError` of a program that several processes would each do the whole of."""
    if world_size() > 1:
        raise UserError(f"{program} is one process: start it as python {program}, without torchrun")


def start(device: torch.device) -> None:
    """Join the process group that `torchrun` announced; nothing to do in a single process."""
    if world_size() > 1 and not torch_dist.is_initialized():
        torch_dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


@contextlib.contextmanager
def among_others() -> Iterator[None]:
    """Say in a line that another process of the training has ended: what ended it is said by that one.

    Raises:
        UserError: another is gone, in place of what torch raises then.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not GONE.search(str(error)):
            raise
        raise UserError(f"process {rank()} ends, since another process of this training has ended") from error


def stop() -> None:
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """Give the model batch norms that see the images of all processes; call before anything refers to its modules.

    Raises:
        UserError: several processes, and not on CUDA: torch has no such batch norm there.
    """
    if world_size() == 1:
        return model
    if device.type != "cuda":
        raise UserError(f"--sync-bn: works on CUDA devices only, and this training is on {device.type}")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model whose gradients are averaged over all processes; the model itself in a single process."""
    if world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    # Every parameter takes part in every loss: without any box its gradient is zero, not missing.
    wrapped = DistributedDataParallel(model, device_ids=ids, find_unused_parameters=False)
    _settle_order(wrapped)
    return wrapped


def _settle_order(wrapped: DistributedDataParallel) -> None:
    """Let torch put the gradients in their order for good.

    It sends them in that of the parameters once, and from then on in that in which the first backward pass had them
    ready. The sum of three or more processes depends on a gradient's place in what is sent: the first step of a resumed
    run would differ in its last bits. So the first pass is one through the parameters alone, and of no effect.
    """
    model = wrapped.module
    model.forward = lambda _: sum(p.sum() for p in model.parameters() if p.requires_grad)
    try:
        wrapped(None).backward()  # on CUDA something has to be moved to the device
    finally:
        del model.forward  # which hid the class's
    wrapped.zero_grad(set_to_none=True)


def averaging(model: nn.Module, now: bool) -> contextlib.AbstractContextManager[None]:
    """A context for a model's forward and backward pass, after which the gradients added so far are averaged over all
    processes if `now`. Else each process goes on adding to its own, and nothing is sent: for all batches of an
    optimizer step but the last."""
    apart = isinstance(model, DistributedDataParallel) and not now
    return model.no_sync() if apart else contextlib.nullcontext()


def from_main(value: Any) -> Any:
    """Return the main process's `value` in every process."""
    if world_size() == 1:
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=0, group=_cpu_group())
    return box[0]


def from_first_here(value: Any) -> Any:
    """Return, in every process of a machine, the value of its first process. All processes call this at one moment."""
    if world_size() == 1:
        return value
    box = [None] * world_size()
    torch_dist.all_gather_object(box, value, group=_cpu_group())
    return box[rank() - local_rank()]


def mean(values: torch.Tensor) -> torch.Tensor:
    """Average a tensor over all processes, in place."""
    if world_size() > 1:
        torch_dist.all_reduce(values)
        values /= world_size()
    return values


def any_process(value: bool) -> bool:
    """Return whether `value` is true in any process. Goes over the CPU's network: no device is waited for."""
    if world_size() == 1:
        return value
    flag = torch.tensor([int(value)])
    torch_dist.all_reduce(flag, torch_dist.ReduceOp.MAX, group=_cpu_group())
    return bool(flag.item())


@functools.cache
def _cpu_group() -> torch_dist.ProcessGroup:
    """The group of all processes that speaks of values in memory; all of them call this at the same moment.

    They wait in it for the main process to evaluate, or to decode a data set: longer than torch's 10 minutes.
    """
    return torch_dist.new_group(backend="gloo", timeout=PATIENCE)


def barrier() -> None:
    """Wait until all processes are here. Goes over the CPU's network: no device is waited for."""
    if world_size() > 1:
        torch_dist.barrier(group=_cpu_group())
