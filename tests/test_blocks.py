"""models/blocks.py: each block against the same arithmetic in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.blocks import SPPF, Bottleneck, Conv, CSPBlock


def slow_conv(block: Conv, image: np.ndarray) -> np.ndarray:
    """Convolution with zero padding, batch norm by running statistics and SiLU, one output pixel at a time."""
    conv, norm = block[0], block[1]
    weight = conv.weight.detach().double().numpy()
    mean, variance, gain, shift = (
        value.detach().double().numpy() for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    kernel, stride, pad = weight.shape[-1], conv.stride[0], weight.shape[-1] // 2
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    height = (image.shape[1] + 2 * pad - kernel) // stride + 1
    width = (image.shape[2] + 2 * pad - kernel) // stride + 1
    out = np.zeros((len(weight), height, width))
    for c, y, x in np.ndindex(out.shape):
        window = padded[:, y * stride : y * stride + kernel, x * stride : x * stride + kernel]
        value = (window * weight[c]).sum()
        value = (value - mean[c]) / math.sqrt(variance[c] + 1e-3) * gain[c] + shift[c]
        out[c, y, x] = value / (1 + math.exp(-value))
    return out


def with_random_statistics(module: nn.Module) -> nn.Module:
    """Give every batch norm statistics and affine values that differ from their start, and evaluate."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return module.eval()


@pytest.mark.parametrize(("kernel", "stride", "size"), [(1, 1, (4, 5)), (3, 1, (4, 5)), (3, 2, (6, 8)), (3, 2, (5, 7))])
def test_conv_is_convolution_norm_and_silu(kernel: int, stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block, image = with_random_statistics(Conv(3, 4, kernel, stride)), torch.randn(3, *size)
    with torch.no_grad():
        out = block(image[None])[0].numpy()
    np.testing.assert_allclose(out, slow_conv(block, image.double().numpy()), atol=1e-5)


def test_conv_has_no_bias_of_its_own_and_groups_split_the_channels() -> None:
    assert Conv(4, 8, 3)[0].bias is None
    block, image = Conv(4, 8, 3, groups=4).eval(), torch.randn(1, 4, 5, 5)
    changed = image.clone()
    changed[:, 0] += 1
    differs = (block(image) != block(changed)).flatten(2).any(-1)[0]
    assert differs.tolist() == [True, True] + [False] * 6


def test_conv_follows_the_statistics_of_some_ten_batches() -> None:
    block, images = Conv(2, 3), torch.randn(4, 2, 5, 5)
    seen = block[0](images).detach()
    block(images)
    torch.testing.assert_close(block[1].running_mean, 0.1 * seen.mean((0, 2, 3)))
    torch.testing.assert_close(block[1].running_var, 0.9 + 0.1 * seen.var((0, 2, 3)))


@pytest.mark.parametrize("shortcut", [True, False])
def test_bottleneck_adds_its_input_only_with_a_shortcut(shortcut: bool) -> None:
    block, x = Bottleneck(4, shortcut).eval(), torch.randn(2, 4, 5, 6)
    nn.init.zeros_(block.conv2[1].weight)  # the second convolution then gives SiLU(0) = 0
    assert torch.equal(block(x), x if shortcut else torch.zeros_like(x))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_csp_block_keeps_the_output_of_every_bottleneck(depth: int) -> None:
    torch.manual_seed(depth)
    block, x = with_random_statistics(CSPBlock(3, 8, depth)), torch.randn(2, 3, 6, 5)
    merged: list[Tensor] = []
    block.merge.register_forward_pre_hook(lambda _, args: merged.append(args[0]))
    with torch.no_grad():
        out = block(x)
        y = block.split(x)
        parts = [y[:, :4], y[:, 4:]]
        for bottleneck in block.bottlenecks:
            parts.append(bottleneck(parts[-1]))
    assert out.shape == (2, 8, 6, 5)
    assert merged[0].shape == (2, 4 * (2 + depth), 6, 5)
    for position, part in enumerate(parts):
        assert torch.equal(merged[0][:, 4 * position : 4 * position + 4], part)


def test_csp_block_has_the_parameters_of_its_drawing() -> None:
    """c_in 6, c_out 8, two bottlenecks of 4 channels: convolutions plus two numbers a channel for the norms."""
    split, bottleneck, merge = 6 * 8 + 2 * 8, 2 * (4 * 4 * 9 + 2 * 4), 4 * 4 * 8 + 2 * 8
    assert sum(p.numel() for p in CSPBlock(6, 8, 2).parameters()) == split + 2 * bottleneck + merge


def test_sppf_pools_over_5_9_and_13_pixels() -> None:
    torch.manual_seed(1)
    block, x = SPPF(4, 6).eval(), torch.randn(1, 4, 15, 14)
    merged: list[Tensor] = []
    block.merge.register_forward_pre_hook(lambda _, args: merged.append(args[0]))
    with torch.no_grad():
        assert block(x).shape == (1, 6, 15, 14)
        start = block.reduce(x)
    assert merged[0].shape[1] == 8
    for position, window in enumerate((1, 5, 9, 13)):
        part, reach = merged[0][0, 2 * position : 2 * position + 2], window // 2
        for c, i, j in np.ndindex(*part.shape):
            rows = slice(max(i - reach, 0), i + reach + 1)
            assert part[c, i, j] == start[0, c, rows, max(j - reach, 0) : j + reach + 1].max()


@pytest.mark.parametrize("block", [Conv(4, 4, 3), Bottleneck(4), CSPBlock(4, 4, 2), SPPF(4, 4)])
def test_gradients_reach_every_parameter_and_the_input(block: nn.Module) -> None:
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    block(x).square().sum().backward()
    for gradient in (x.grad, *(parameter.grad for parameter in block.parameters())):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0
