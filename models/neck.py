"""The neck mixes the three feature maps, down and up again."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from models.blocks import Conv, CSPBlock


class PAN(nn.Module):
    """Path aggregation: coarse maps flow to fine ones and back (FPN: arXiv:1612.03144, PANet: arXiv:1803.01534).

    Args:
        c_in: channels of the maps of stride 8, 16, 32.
        channels: channels of the maps given out, same strides.
        depth: bottlenecks in each CSP block.
    """

    def __init__(self, c_in: tuple[int, ...], channels: tuple[int, int, int], depth: int) -> None:
        super().__init__()
        c3, c4, c5 = channels
        self.up4 = CSPBlock(c_in[2] + c_in[1], c4, depth, shortcut=False)
        self.up3 = CSPBlock(c4 + c_in[0], c3, depth, shortcut=False)
        self.down3 = Conv(c3, c3, 3, 2)
        self.down4 = CSPBlock(c3 + c4, c4, depth, shortcut=False)
        self.down4to5 = Conv(c4, c4, 3, 2)
        self.down5 = CSPBlock(c4 + c_in[2], c5, depth, shortcut=False)
        self.channels = channels

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps `[B, C, H/8, W/8]`, `/16`, `/32` → maps of the same sizes with `channels` channels."""
        p3, p4, p5 = maps
        n4 = self.up4(torch.cat([_resize_to(p5, p4), p4], 1))
        n3 = self.up3(torch.cat([_resize_to(n4, p3), p3], 1))
        n4 = self.down4(torch.cat([self.down3(n3), n4], 1))
        n5 = self.down5(torch.cat([self.down4to5(n4), p5], 1))
        return [n3, n4, n5]


def _resize_to(x: Tensor, like: Tensor) -> Tensor:
    return interpolate(x, size=like.shape[-2:], mode="nearest")
