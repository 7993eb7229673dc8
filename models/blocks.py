"""The pieces that backbone, neck and head are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv(nn.Sequential):
    """Convolution, batch norm, SiLU: `[B, c_in, H, W]` → `[B, c_out, H/stride, W/stride]`."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
            # Running statistics over some 10 batches: at the usual 0.03 a run of 100 steps would still be full of the
            # initial ones.
            nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.1),
            nn.SiLU(),  # in place, autograd would copy what it changes
        )


class Bottleneck(nn.Module):
    """Two 3×3 convolutions, with a residual path where `shortcut` is set."""

    def __init__(self, channels: int, shortcut: bool = True) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, 3)
        self.conv2 = Conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CSPBlock(nn.Module):
    """Cross-stage partial block that keeps the output of each of its `depth` bottlenecks.

    Half of the channels pass by, half go through the bottlenecks, and all are mixed by a 1×1 convolution
    (CSPNet, arXiv:1911.11929; the aggregation of every stage is ELAN's, arXiv:2211.04800).
    """

    def __init__(self, c_in: int, c_out: int, depth: int, shortcut: bool = True) -> None:
        super().__init__()
        hidden = c_out // 2
        self.split = Conv(c_in, 2 * hidden)
        self.bottlenecks = nn.ModuleList(Bottleneck(hidden, shortcut) for _ in range(depth))
        self.merge = Conv((2 + depth) * hidden, c_out)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, 1))
        for bottleneck in self.bottlenecks:
            parts.append(bottleneck(parts[-1]))
        return self.merge(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling by three max-poolings in a row (windows of 5, 9 and 13; SPP: arXiv:1406.4729)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.reduce = Conv(c_in, c_in // 2)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.merge = Conv(c_in * 2, c_out)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.reduce(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.merge(torch.cat(parts, 1))
