"""A CUDA device that is not there: its tensors have shapes, types and places, and no numbers (torch's fake tensors).

What would fail on a real one fails here: tensors of two devices in one operation. So does what would make the host wait
for it: to look at a number, results whose shape depends on numbers, and copies that are not asked to be non-blocking.
Gradients can't be computed: torch's autograd wants a device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from utils.device import _side_stream

CUDA = torch.device("cuda", 0)
WITHOUT_FAKES = ("_fused_", "_amp_")  # operations that torch knows no fakes of; all work in place


class Waits(AssertionError):
    """The host would wait for the device."""


class NoWaits(TorchDispatchMode):
    """Raise `Waits` where memory is copied between host and device and the host is not to go on meanwhile."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        out = None if name.startswith(WITHOUT_FAKES) else func(*args, **kwargs)
        # A scalar on the CPU may be among a kernel's arguments: it goes with the launch.
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and (x.ndim or "copy" in name)]
        places = {x.device.type for x in (*given, *tree_leaves(out)) if isinstance(x, Tensor)}
        later = kwargs.get("non_blocking") or (name in ("copy_", "_foreach_copy_") and args[-1] is True)
        if len(places) > 1 and not later:
            raise Waits(f"{name} between {' and '.join(sorted(places))}")
        return out


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Within it new tensors are fake, autocast believes in the device, and streams and events do nothing."""
    stream = SimpleNamespace(record=lambda *_: None, synchronize=lambda: None, wait_stream=lambda _: None)
    there = {"is_bf16_supported": lambda *_, **__: True}
    there |= {name: (lambda *_, **__: stream) for name in ("Stream", "Event", "current_stream")}
    there["stream"] = lambda _: contextlib.nullcontext()
    with (
        FakeTensorMode() as mode,
        mock.patch.multiple(torch.cuda, **there),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch.object(Tensor, "record_stream", lambda *_: None),
        mock.patch.object(FakeTensorMode, "__deepcopy__", lambda self, _: self, create=True),
        mock.patch.object(nn.Module, "to", lambda self, *_, **__: self),  # fakes can't be moved; `move` has done it
    ):
        _side_stream.cache_clear()
        yield mode
    _side_stream.cache_clear()


def move(model: nn.Module) -> nn.Module:
    """Put fakes on the device in place of a model's parameters and buffers."""
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, value in own.items():
                if value is not None:
                    layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
                    fake = torch.empty(value.shape, dtype=value.dtype, device=CUDA, memory_format=layout)
                    own[name] = nn.Parameter(fake) if isinstance(value, nn.Parameter) else fake
    return model
