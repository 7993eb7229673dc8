"""The detector: backbone, neck and head put together, by name and size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from models.backbone import STRIDES, CSPBackbone, TorchvisionBackbone
from models.head import DetectHead, Predictions
from models.neck import PAN
from utils.errors import UserError, suggest

# depth and width factors, and the most channels of a map
SIZES = {
    "n": (1 / 3, 0.25, 1024),
    "s": (1 / 3, 0.50, 1024),
    "m": (2 / 3, 0.75, 768),
    "l": (1.0, 1.00, 512),
    "x": (1.0, 1.25, 512),
}
MAX_STRIDE = STRIDES[-1]


@dataclass(frozen=True)
class ModelConfig:
    """What it takes to build a model again: kept in every checkpoint.

    size: a key of `SIZES`.  backbone: "csp", or the name of a torchvision classifier.
    """

    size: str
    nc: int
    backbone: str = "csp"

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> ModelConfig:
        """Build from a checkpoint's values. UserError, which names `source`: they describe no model of ours."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown or values.get("size") not in SIZES or not values.get("nc", 0) > 0:
            shown = ", ".join(f"{key} {value!r}"[:40] for key, value in list(values.items())[:5])
            raise UserError(f"{source}: describes a model that this program does not know: {shown}")
        return cls(**values)

    @property
    def name(self) -> str:
        return f"yolo-{self.size}" + ("" if self.backbone == "csp" else f" on torchvision {self.backbone}")


def parse_cfg(cfg: str) -> str:
    """Return the size letter of `yolo-n` … `yolo-x`.

    Raises:
        UserError: for any other name.
    """
    names = [f"yolo-{size}" for size in SIZES]
    name = cfg.removesuffix(".yaml")
    if name not in names:
        raise UserError(f"--cfg {cfg}: not a model; there are {', '.join(names)}{suggest(name, names)}")
    return name.removeprefix("yolo-")


class YOLO(nn.Module):
    """`[B, 3, H, W]` images, uint8 or float in [0, 1], H and W multiples of 32 → `Predictions`."""

    def __init__(self, config: ModelConfig, pretrained_backbone: bool = False) -> None:
        super().__init__()
        self.config = config
        depth_factor, width_factor, most = SIZES[config.size]

        def width(base: int) -> int:
            return math.ceil(min(base, most) * width_factor / 8) * 8

        def depth(base: int) -> int:
            return max(round(base * depth_factor), 1)

        channels = (width(256), width(512), width(1024))
        if config.backbone == "csp":
            self.backbone: nn.Module = CSPBackbone((width(128), *channels), (depth(6), depth(6), depth(3)))
        else:
            self.backbone = TorchvisionBackbone(config.backbone, pretrained_backbone)
        self.neck = PAN(self.backbone.channels, channels, depth(3))
        self.head = DetectHead(config.nc, channels, STRIDES)

    def forward(self, images: Tensor) -> Predictions:
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        return self.head(self.neck(self.backbone(images)))


def check_imgsz(imgsz: int) -> None:
    """Raise `UserError` for a side of images that is no multiple of the largest stride; 0 stands for the default."""
    if imgsz % MAX_STRIDE:
        below = imgsz // MAX_STRIDE * MAX_STRIDE
        near = f"{below} or {below + MAX_STRIDE}" if below else f"{MAX_STRIDE}"
        raise UserError(f"--imgsz {imgsz}: must be a multiple of {MAX_STRIDE}, the model's largest stride: {near}")


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
