"""Weights from elsewhere into a model, and parts of a model held still."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.yolo import YOLO
from utils.errors import UserError, many, printable, some


@dataclass(frozen=True)
class Transfer:
    """Which entries of a model's state were taken from a checkpoint, and which were not because names or shapes differ.

    taken, left: {name: how many numbers}.  kept, new: classes of the model whose outputs the checkpoint has, and whose
    it hasn't; both empty where the classes are the same.
    """

    taken: dict[str, int]
    left: dict[str, int]
    kept: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    def share(self, part: str = "") -> float:
        """Which share of the numbers, of those whose names begin with `part`, was taken."""
        taken, left = (sum(n for name, n in d.items() if name.startswith(part)) for d in (self.taken, self.left))
        return taken / (taken + left)

    def __str__(self) -> str:
        share, count = self.share(), len(self.taken) + len(self.left)
        rounded = f"{share:.1%}" if share < 0.9995 else "over 99.9%" if self.left or self.new else "100%"
        text = f"{len(self.taken)} of {count} tensors transferred, {rounded} of the numbers"
        for what, names in (("classes kept", self.kept), ("new classes", self.new)):
            text += f"; {what}: {printable(some(names, 5))}" if names else ""
        if self.left:
            text += f"; new: {', '.join(list(self.left)[:3])}{', …' if len(self.left) > 3 else ''}"
        return text + "; is --cfg that of the checkpoint?" * (share < 0.5)


def transfer_weights(
    model: YOLO, weights: dict[str, Tensor], old_names: tuple[str, ...], new_names: tuple[str, ...]
) -> Transfer:
    """Copy all weights whose name and shape agree; class outputs are matched by class name.

    Raises:
        UserError: nothing at all fits.
    """
    own = model.state_dict()
    pairs = [(old_names.index(name), i) for i, name in enumerate(new_names) if name in old_names]
    outputs = {name for name in own if _is_class_output(name)}
    taken: dict[str, int] = {}
    left: dict[str, int] = {}
    with torch.no_grad():
        for name, value in own.items():
            theirs = weights.get(name)
            if theirs is not None and theirs.shape == value.shape and (name not in outputs or old_names == new_names):
                value.copy_(theirs)
            elif (
                name in outputs and theirs is not None and theirs.shape == (len(old_names), *value.shape[1:]) and pairs
            ):
                for old, new in pairs:
                    value[new].copy_(theirs[old])
            else:
                left[name] = value.numel()
                continue
            if not name.endswith("num_batches_tracked"):  # a counter fits any model
                taken[name] = value.numel()
    if not taken:
        raise UserError("--weights: no tensor of the checkpoint fits this model; is --cfg the one it was trained with?")
    if old_names == new_names:
        return Transfer(taken, left)
    kept = tuple(name for name in new_names if name in old_names)
    return Transfer(taken, left, kept, tuple(name for name in new_names if name not in old_names))


def _is_class_output(name: str) -> bool:
    """Is this the last convolution of a class tower (`head.classes.0.2.weight`)?"""
    parts = name.split(".")
    return parts[0] == "head" and parts[1] in ("classes", "one_to_one") and parts[3] == "2"


def freeze(model: YOLO, what: str) -> list[nn.Module]:
    """Hold still the whole backbone (`"backbone"`) or its first N stages (`"N"`): no gradients.

    Returns:
        the modules held still; keep them in eval mode while training (`hold`), so that batch-norm statistics stay too.

    Raises:
        UserError: more stages than there are.
    """
    if not what:
        return []
    stages = model.backbone.freezable()
    count = len(stages) if what == "backbone" else int(what)
    if count > len(stages):
        raise UserError(
            f"--freeze {what}: the backbone has {len(stages)} stages; allowed: 0 to {len(stages)}, or backbone"
        )
    for stage in stages[:count]:
        stage.requires_grad_(False)
    return stages[:count]


def describe_frozen(frozen: list[nn.Module], trained: bool) -> list[str]:
    """Say how much is held still, and that it is of no use yet where it isn't `trained`; nothing where nothing is."""
    if not frozen:
        return []
    held = sum(p.numel() for module in frozen for p in module.parameters())
    untrained = "" if trained else "; random as they are: --weights gives trained ones"
    return [f"frozen       {held:,} of them, {many(len(frozen), 'stage')} of the backbone{untrained}"]


def hold(frozen: list[nn.Module]) -> None:
    """Put frozen modules into eval mode again; call after every `model.train()`."""
    for module in frozen:
        module.eval()
