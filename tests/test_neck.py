"""models/neck.py: sizes and channels of the maps, and the paths between them."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from models.neck import PAN, _resize_to

CHANNELS = (8, 16, 24)


def maps_of(sizes: list[tuple[int, int]], channels: tuple[int, ...] = (4, 6, 10)) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, c, *size, requires_grad=True) for c, size in zip(channels, sizes, strict=True)]


@pytest.mark.parametrize(
    "sizes",
    [
        [(8, 8), (4, 4), (2, 2)],
        [(12, 20), (6, 10), (3, 5)],  # a 96 × 160 image: odd maps
        [(4, 4), (2, 2), (1, 1)],  # one cell
        [(5, 7), (3, 4), (2, 2)],  # backbones that round up
    ],
)
def test_maps_keep_their_sizes_and_get_the_channels(sizes: list[tuple[int, int]]) -> None:
    neck = PAN((4, 6, 10), CHANNELS, 1)
    out = neck(maps_of(sizes))
    assert [tuple(x.shape) for x in out] == [(2, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]
    assert neck.channels == CHANNELS


def test_every_map_out_depends_on_every_map_in() -> None:
    neck = PAN((4, 6, 10), CHANNELS, 1).eval()
    for level in range(3):
        maps = maps_of([(8, 8), (4, 4), (2, 2)])
        neck(maps)[level].square().sum().backward()
        assert all(x.grad.abs().sum() > 0 for x in maps)


def test_the_middle_map_given_out_has_seen_the_fine_one() -> None:
    """The coarse output's gradient with respect to the fine input passes the way up: PANet, not only FPN."""
    neck, maps = PAN((4, 6, 10), CHANNELS, 1).eval(), maps_of([(8, 8), (4, 4), (2, 2)])
    finer = [maps[0] + 1, *maps[1:]]
    before, after = neck(maps), neck(finer)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_resizing_repeats_each_cell() -> None:
    coarse = torch.arange(6.0).view(1, 1, 2, 3)
    fine = _resize_to(coarse, torch.zeros(1, 1, 4, 6))[0, 0]
    for y in range(4):
        for x in range(6):
            assert fine[y, x] == coarse[0, 0, y // 2, x // 2]


def test_depth_counts_the_bottlenecks() -> None:
    for depth in (1, 2, 3):
        neck = PAN((4, 6, 10), CHANNELS, depth)
        for block in (neck.up4, neck.up3, neck.down4, neck.down5):
            assert len(block.bottlenecks) == depth
            assert not any(bottleneck.shortcut for bottleneck in block.bottlenecks)


def test_which_map_comes_first_where_two_are_joined() -> None:
    """Another order would load every checkpoint and compute nonsense."""
    neck, seen = PAN((8, 16, 32), (8, 16, 32), 1).eval(), {}
    for name in ("up4", "up3", "down3", "down4", "down4to5", "down5"):
        hook = partial(lambda name, module, given, out: seen.update({name: (given[0], out)}), name)
        getattr(neck, name).register_forward_hook(hook)
    p3, p4, p5 = maps = [torch.randn(1, c, side, side) for c, side in ((8, 8), (16, 4), (32, 2))]
    neck(maps)

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    for name, first, second in (
        ("up4", doubled(p5), p4),
        ("up3", doubled(seen["up4"][1]), p3),
        ("down4", seen["down3"][1], seen["up4"][1]),
        ("down5", seen["down4to5"][1], p5),
    ):
        assert torch.equal(seen[name][0], torch.cat([first, second], 1)), name
