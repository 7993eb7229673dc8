"""A model as the command line asks for it: by size, from a checkpoint, or on a torchvision backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from models.backbone import check_imagenet
from models.transfer import freeze, transfer_weights
from models.yolo import YOLO, ModelConfig, check_imgsz, parse_cfg
from utils.checkpoint import find_checkpoint, load_checkpoint, model_weights
from utils.errors import UserError, many
from utils.seed import torch_seeded

TORCHVISION = "torchvision:"


class Start(NamedTuple):
    """Where a model's weights come from, in words; and whether its backbone was trained before, for the most part."""

    text: str
    trained: bool

    def __str__(self) -> str:
        return self.text


def check_request(cfg: str, weights: str, imgsz: int, frozen: str = "") -> dict[str, Any] | None:
    """Raise the `UserError` that can be known without the data: before minutes are spent on reading them.

    Returns:
        the checkpoint, where `weights` is one: it is read whole to be checked.
    """
    config, content = ModelConfig(parse_cfg(cfg), 1), None
    check_imgsz(imgsz)
    if weights.startswith(TORCHVISION):
        config = replace(config, backbone=weights.removeprefix(TORCHVISION).partition(":")[0])
    elif weights:
        content = load_checkpoint(find_checkpoint(weights, "; torchvision:NAME starts from ImageNet weights"))
        config = replace(config, backbone=ModelConfig.from_dict(content["model"], weights).backbone)
    if frozen not in ("", "backbone"):  # a number, which may be too large
        freeze(YOLO(config), frozen)
    return content


def rebuild_model(description: dict[str, Any], names: tuple[str, ...]) -> tuple[YOLO, Start]:
    """Build the model of a run that goes on, as its state describes it; what it once started from is not needed.

    Raises:
        UserError: the data have more or fewer classes than the model.
    """
    own = ModelConfig.from_dict(description, "the saved state")
    if own.nc != len(names):
        raise UserError(
            f"the data have {many(len(names), 'class')}, this run's model {own.nc}: it can't go on with them; "
            f"start a new run from its weights with --weights"
        )
    return YOLO(ModelConfig(own.size, len(names), own.backbone)), Start("weights of the saved state", True)


def build_model(
    cfg: str,
    weights: str,
    names: tuple[str, ...],
    seed: int,
    cfg_given: bool,
    download: bool = False,
    content: dict[str, Any] | None = None,
) -> tuple[YOLO, Start]:
    """Build the model and say where its weights come from.

    Args:
        cfg: `yolo-n` … `yolo-x`.  cfg_given: the user typed it; else a checkpoint's own shape is taken.
        weights: empty (random), a checkpoint, `torchvision:NAME` (ImageNet weights) or `torchvision:NAME:random`.
        download: ImageNet weights that are not on this machine may be fetched.
        content: of the checkpoint, where it was read already.
    Raises:
        UserError: unknown names, unreadable weights.
    """
    size = parse_cfg(cfg)
    if weights.startswith(TORCHVISION):
        name, _, start = weights.removeprefix(TORCHVISION).partition(":")
        if start not in ("", "random"):
            raise UserError(f"--weights {weights}: write {TORCHVISION}{name} or {TORCHVISION}{name}:random")
        if start != "random":
            check_imagenet(name, download)
        with torch_seeded(seed, "init"):
            model = YOLO(ModelConfig(size, len(names), name), pretrained_backbone=start != "random")
        trained = start != "random"
        return model, Start(f"backbone {'ImageNet' if trained else 'random'} weights, the rest random", trained)
    if not weights:
        with torch_seeded(seed, "init"):
            return YOLO(ModelConfig(size, len(names))), Start("random weights", False)
    content = content or load_checkpoint(Path(weights))
    own = ModelConfig.from_dict(content["model"], weights)
    config = ModelConfig(size if cfg_given else own.size, len(names), own.backbone)
    with torch_seeded(seed, "init"):
        model = YOLO(config)
    transfer = transfer_weights(model, model_weights(content, weights), tuple(content["names"]), names)
    return model, Start(f"{weights}: {transfer}", transfer.share("backbone.") >= 0.5)
