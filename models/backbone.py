"""Backbones: an image in, feature maps of stride 8, 16 and 32 out."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from models.blocks import SPPF, Conv, CSPBlock
from utils.errors import UserError, suggest

STRIDES = (8, 16, 32)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CSPBackbone(nn.Module):
    """Five stages, each halving the image; the last three are given out.

    The first two stages are plain convolutions: at strides 2 and 4 a CSP block costs more time than any other part
    of the net (few channels, many pixels: bound by memory) and adds next to nothing.

    Args:
        channels: output channels of the stages of stride 4, 8, 16, 32.
        depths: bottlenecks in the CSP blocks of stride 8, 16, 32.
    """

    def __init__(self, channels: tuple[int, int, int, int], depths: tuple[int, int, int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, channels[0] // 2, 3, 2), Conv(channels[0] // 2, channels[0], 3, 2))
        self.stages = nn.ModuleList(
            nn.Sequential(Conv(c_in, c_out, 3, 2), CSPBlock(c_out, c_out, depth))
            for c_in, c_out, depth in zip(channels, channels[1:], depths, strict=False)
        )
        self.stages[-1].append(SPPF(channels[3], channels[3]))
        self.channels = channels[1:]

    def freezable(self) -> list[nn.Module]:
        """The stages from the image on, for `--freeze N`."""
        return [self.stem, *self.stages]

    def forward(self, images: Tensor) -> list[Tensor]:
        """`[B, 3, H, W]` in [0, 1] → maps `[B, C_i, H / stride_i, W / stride_i]`."""
        x, maps = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class TorchvisionBackbone(nn.Module):
    """A classification network of torchvision cut to its feature maps of stride 8, 16 and 32.

    The cut is found by running a small image through it: the last node of each stride is taken. Images are normalised
    with ImageNet's mean and deviation, as the weights expect.

    Args:
        name: a name of `torchvision.models.list_models(torchvision.models)`.
        pretrained: load torchvision's default ImageNet weights; else random ones.
    Raises:
        UserError: unknown name, weights that cannot be had, or a net without maps of the three strides.
    """

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        from torchvision.models.feature_extraction import create_feature_extractor

        nodes = _stride_nodes(name)
        self.body = create_feature_extractor(_torchvision_model(name, pretrained), nodes)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.channels = _map_channels(self.body)

    def freezable(self) -> list[nn.Module]:
        return list(self.body.children())

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body((images - self.mean) / self.std).values())


def _classifiers() -> ModuleType:
    """`torchvision.models`, imported here by those who ask for it: it takes a second, and most runs do without."""
    import torchvision.models

    return torchvision.models


def check_imagenet(name: str, download: bool) -> None:
    """Raise `UserError` where torchvision's weights of `name` would have to be fetched, and nobody asked for that."""
    classifiers = _classifiers()
    if download or name not in classifiers.list_models(classifiers):
        return
    url = classifiers.get_model_weights(name).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        raise UserError(
            f"--weights torchvision:{name}: its ImageNet weights are not in {file.parent}: add --download to fetch "
            f"{url}, or start from random ones: torchvision:{name}:random"
        )


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """Keep torchvision from reading its files as pickles that may do anything; it takes no argument to that end."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _torchvision_model(name: str, pretrained: bool) -> nn.Module:
    classifiers = _classifiers()
    known = classifiers.list_models(classifiers)
    if name not in known:
        raise UserError(f"--weights torchvision:{name}: torchvision has no such classifier{suggest(name, known)}")
    try:
        with _tensors_only():
            return classifiers.get_model(name, weights="DEFAULT" if pretrained else None)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--weights torchvision:{name}: the ImageNet weights could not be had ({reason}); "
            f"'torchvision:{name}:random' starts from random ones"
        ) from error


def _probe(body: nn.Module, size: int = 128) -> dict[str, Tensor]:
    """Run one grey image through `body` in eval mode, leaving its mode and statistics as they were."""
    training = body.training
    body.eval()
    with torch.no_grad():
        maps = body(torch.zeros(1, 3, size, size))
    body.train(training)
    return maps


def _stride_nodes(name: str) -> dict[str, str]:
    """Return {graph node: "p<stride>"} of the last 4-d output at each of the three strides."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model, size = _torchvision_model(name, pretrained=False), 128
    nodes = get_graph_node_names(model)[1]
    found: dict[int, str] = {}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints a traceback of its own
            outputs = _probe(create_feature_extractor(model, {n: n for n in nodes[1:]}), size)
    except (AssertionError, RuntimeError) as error:  # transformers that take one image size only
        raise UserError(
            f"--weights torchvision:{name}: no feature maps of stride 8, 16 and 32 (it takes no image of {size} pixels)"
        ) from error
    for node, out in outputs.items():
        if isinstance(out, Tensor) and out.ndim == 4 and out.shape[-1] > 1 and size // out.shape[-1] in STRIDES:
            found[size // out.shape[-1]] = node
    if sorted(found) != list(STRIDES):
        raise UserError(f"--weights torchvision:{name}: no feature maps of stride 8, 16 and 32 (found {sorted(found)})")
    return {found[stride]: f"p{stride}" for stride in STRIDES}


def _map_channels(body: nn.Module) -> tuple[int, ...]:
    return tuple(out.shape[1] for out in _probe(body).values())
