"""The head: class scores and box-side distributions at every anchor point, and their decoding."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.blocks import Conv

REG_MAX = 16  # bins of a side's distance, in units of the stride (DFL: arXiv:2006.04388)
START_DISTANCE = 2  # mean distance of a side before training, in units of the stride


class Predictions(NamedTuple):
    """Raw outputs over the A anchor points of all levels, fine levels first.

    distances: `[B, A, 4 * REG_MAX]` logits of the distances to the left, top, right, bottom side.
    logits: `[B, A, nc]` of the one-to-many branch (needs NMS).
    one_to_one: `[B, A, nc]` of the one-to-one branch (needs none).
    points: `[A, 2]` x, y of the anchor points in pixels.  strides: `[A, 1]` in pixels.
    shapes: (height, width) of each level's map.
    """

    distances: Tensor
    logits: Tensor
    one_to_one: Tensor
    points: Tensor
    strides: Tensor
    shapes: tuple[tuple[int, int], ...]


class DetectHead(nn.Module):
    """Decoupled towers for boxes and classes at each level, anchor-free (FCOS: arXiv:1904.01355).

    The class tower stands twice. The first is trained one-to-many: rich, but it fires at several points an object.
    The second is trained one-to-one and scores the same boxes, so that the best point alone answers and no NMS is
    needed (arXiv:2101.11782, arXiv:2405.14458). It shapes the features, too: on features made for many points alone
    (cut off by a `detach`, as in the second of these papers) neighbours look too much alike in runs of hundreds of
    steps.
    """

    def __init__(self, nc: int, c_in: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.nc, self.strides = nc, strides
        c_box, c_cls = max(64, c_in[0] // 4), max(c_in[0], min(nc, 100))
        self.boxes = nn.ModuleList(_tower(c, c_box, 4 * REG_MAX) for c in c_in)
        self.classes = nn.ModuleList(_tower(c, c_cls, nc) for c in c_in)
        self.one_to_one = nn.ModuleList(_tower(c, c_cls, nc) for c in c_in)
        self._init_biases()

    def _init_biases(self) -> None:
        """Start near what data looks like: boxes some four strides wide, some 5 objects of nc classes in 640 pixels.

        Distances start as a geometric distribution around two strides. The usual uniform one has its mean at 7.5
        strides: small objects then overlap no prediction, get no weight, and are learnt late or never.
        """
        falling = -torch.arange(REG_MAX) * math.log(1 + 1 / START_DISTANCE)
        for level, stride in enumerate(self.strides):
            self.boxes[level][-1].bias.data.copy_(falling.repeat(4))
            prior = 5 / self.nc / (640 / stride) ** 2
            for tower in (self.classes[level], self.one_to_one[level]):
                nn.init.constant_(tower[-1].bias, math.log(prior / (1 - prior)))

    def forward(self, maps: list[Tensor]) -> Predictions:
        """Maps `[B, C_i, H_i, W_i]` → `Predictions`."""
        points, strides = anchor_points(maps, self.strides)
        return Predictions(
            _flat([tower(x) for tower, x in zip(self.boxes, maps, strict=True)]),
            _flat([tower(x) for tower, x in zip(self.classes, maps, strict=True)]),
            _flat([tower(x) for tower, x in zip(self.one_to_one, maps, strict=True)]),
            points,
            strides,
            tuple((x.shape[2], x.shape[3]) for x in maps),
        )


def _tower(c_in: int, hidden: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(Conv(c_in, hidden, 3), Conv(hidden, hidden, 3), nn.Conv2d(hidden, c_out, 1))


def _flat(maps: list[Tensor]) -> Tensor:
    """Join `[B, C, H_i, W_i]` into `[B, ΣH_i·W_i, C]`."""
    return torch.cat([x.flatten(2) for x in maps], 2).transpose(1, 2)


def anchor_points(maps: list[Tensor], strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the centre of every cell `[A, 2]` (x, y in pixels) and its stride `[A, 1]`."""
    points, scale = [], []
    for x, stride in zip(maps, strides, strict=True):
        height, width = x.shape[-2:]
        ys = (torch.arange(height, device=x.device, dtype=torch.float32) + 0.5) * stride
        xs = (torch.arange(width, device=x.device, dtype=torch.float32) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
        points.append(torch.stack([grid_x, grid_y], -1).view(-1, 2))
        scale.append(torch.full((height * width, 1), float(stride), device=x.device))
    return torch.cat(points), torch.cat(scale)


def decode_boxes(predictions: Predictions) -> Tensor:
    """Return the boxes of all points, `[B, A, 4]`, xyxy in pixels."""
    return decode(predictions.distances, predictions.points, predictions.strides)


def decode(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Boxes `[B, N, 4]`, xyxy in pixels: each side lies its distribution's mean × stride from the point.

    Args:
        distances: `[B, N, 4 * REG_MAX]` logits.  points: `[(B,) N, 2]` pixels.  strides: `[(B,) N, 1]` pixels.
    """
    logits = distances.float().transpose(1, 2)
    bins = torch.arange(REG_MAX, device=logits.device, dtype=logits.dtype)
    # Points last, as the maps have them: nothing is copied, and the softmax runs over whole rows of points.
    shares = logits.reshape(-1, REG_MAX, logits.shape[2]).softmax(1)
    sides = torch.matmul(bins[None, None], shares).view(len(logits), 4, -1).transpose(1, 2) * strides
    return torch.cat([points - sides[..., :2], points + sides[..., 2:]], -1)
