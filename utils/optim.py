"""The optimizer: named parameter groups, and a state that is kept by parameter name."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, Adam, AdamW, Optimizer

GROUPS = ("decay", "no_decay", "bias")
# Their weights may have several dimensions; those of other norms are vectors.
NO_DECAY = (nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)
ADAM_BETA2 = 0.999
KERNEL_OPTIONS = ("fused", "foreach", "capturable")


class OptimizerSettings(Protocol):
    """The hyper-parameters that the optimizer reads."""

    optimizer: str
    lr0: float
    momentum: float


def parameter_groups(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Sort the trainable parameters into `decay`, `no_decay` and `bias` by what they are, not by their names.

    `bias` holds what modules add (their `bias`, norms' included); `no_decay` the weights of norms, embeddings and all
    other vectors and scalars, which scale or look up rather than mix; `decay` the rest. A parameter that is shared
    appears once, under its first name; frozen ones (`requires_grad` off) do not appear.

    Returns:
        {group: {qualified name: parameter}} with all three groups, also empty ones.
    """
    groups: dict[str, dict[str, nn.Parameter]] = {name: {} for name in GROUPS}
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            groups[_group_of(module, name, parameter)][f"{prefix}.{name}" if prefix else name] = parameter
    return groups


def _group_of(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    if name == "bias" or (isinstance(module, nn.MultiheadAttention) and name == "in_proj_bias"):
        return "bias"
    if isinstance(module, NO_DECAY) or parameter.ndim <= 1:
        return "no_decay"
    # Vectors that are shaped to broadcast, such as a layer scale `[C, 1, 1]`.
    if parameter.ndim > 2 and parameter.numel() == max(parameter.shape) and not isinstance(module, _ConvNd):
        return "no_decay"
    return "decay"


def build_optimizer(model: nn.Module, settings: OptimizerSettings, weight_decay: float, fused: bool) -> Optimizer:
    """Build SGD (Nesterov), Adam or AdamW over the model's named groups.

    Adam's first beta is `momentum`, as in the classic recipe; the second is 0.999. `weight_decay` is L2 for SGD and
    Adam, decoupled for AdamW (arXiv:1711.05101), and acts on `decay` alone.
    """
    groups = [
        {"name": name, "params": list(members.values()), "weight_decay": weight_decay if name == "decay" else 0.0}
        for name, members in parameter_groups(model).items()
        if members
    ]
    if settings.optimizer == "SGD":
        return SGD(groups, lr=settings.lr0, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=fused)
    kind = {"Adam": Adam, "AdamW": AdamW}[settings.optimizer]
    return kind(groups, lr=settings.lr0, betas=(settings.momentum, ADAM_BETA2), fused=fused)


class NamedOptimizerState:
    """The optimizer's state by group and parameter name, so that it survives a change of their order.

    `state_dict()` gives `{"groups": {group: {option: value}}, "state": {parameter: {slot: tensor}}}`.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.names = {parameter: name for name, parameter in model.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        groups = {
            group["name"]: {key: value for key, value in group.items() if key not in ("params", "name")}
            for group in self.optimizer.param_groups
        }
        state = {self.names[parameter]: dict(slots) for parameter, slots in self.optimizer.state.items()}
        return {"groups": groups, "state": state}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take a saved state; which kernels compute the steps stays as it was chosen for this machine.

        Raises:
            ValueError: its groups or parameters are not those of this optimizer.
        """
        current = self.optimizer.state_dict()
        shapes = {self.names[p]: p.shape for group in self.optimizer.param_groups for p in group["params"]}
        if {g["name"] for g in current["param_groups"]} != set(saved["groups"]):
            raise ValueError("the saved parameter groups are not those of this model")
        for name, slots in saved["state"].items():
            saved_shapes = {slot.shape for slot in slots.values() if torch.is_tensor(slot) and slot.ndim}
            if name not in shapes or saved_shapes - {shapes[name]}:
                raise ValueError(f"the saved optimizer state is of other parameters: {name}")
        for group in current["param_groups"]:
            options = saved["groups"][group["name"]]
            group.update({key: value for key, value in options.items() if key not in KERNEL_OPTIONS})
        current["state"] = {i: saved["state"][name] for i, name in enumerate(shapes) if name in saved["state"]}
        self.optimizer.load_state_dict(current)


def clip_gradients(optimizer: Optimizer, max_norm: float) -> torch.Tensor:
    """Scale all gradients down to a total norm of `max_norm` where they exceed it; return the norm before.

    `max_norm` 0 clips nothing.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf"))


def accumulation(batch_size: int, nominal_batch: int) -> int:
    """Return how many batches make an optimizer step: as many as come closest to `nominal_batch` images, at least 1."""
    return max(1, round(nominal_batch / batch_size)) if nominal_batch else 1


def scaled_weight_decay(weight_decay: float, effective_batch: int, nominal_batch: int) -> float:
    """Return `weight_decay · effective_batch / nominal_batch`, the classic recipe's scaling."""
    return weight_decay * effective_batch / nominal_batch if nominal_batch else weight_decay


def describe_groups(optimizer: Optimizer) -> list[str]:
    """A line a parameter group: its number of tensors and parameters, and its weight decay."""
    return [
        f"group        {group['name']:<9}{len(group['params']):>4} tensors "
        f"{sum(p.numel() for p in group['params']):>11,} parameters, weight decay {group['weight_decay']:g}"
        for group in optimizer.param_groups
    ]
