"""The optimizer: named parameter groups, and a state that is kept by parameter name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, Adam, AdamW, Optimizer

from utils.errors import many
from utils.hyp import Hyp

GROUPS = ("decay", "no_decay", "bias")
# Their weights may have several dimensions; those of other norms are vectors.
NO_DECAY = (nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)
ADAM_BETA2 = 0.999
CLIP_EPS = 1e-6  # what torch adds to a norm before it divides by it
KERNEL_OPTIONS = ("fused", "foreach", "capturable")


def eager(kind: type[Optimizer]) -> type[Optimizer]:
    """Return `kind` without what guards its methods against being compiled; its steps are the same to the last bit.

    `torch.compile` gets no optimizer here (`compile_regions` takes parts of the model), but on its first call a guard
    imports all of torch's compiler, which takes as long as importing the rest of torch. `functools.wraps` keeps the
    guarded function in `__wrapped__`, where `inspect.unwrap` finds it; a method that has no guard stays what it is.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))})


KINDS = {kind.__name__: eager(kind) for kind in (SGD, Adam, AdamW)}


class OptimizerSettings(Protocol):
    """The hyper-parameters that the optimizer reads."""

    optimizer: str
    momentum: float
    lr_scale: Mapping[str, float]


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


def part_of(model: nn.Module, parts: Mapping[str, float]) -> dict[nn.Parameter, str]:
    """Return {parameter: part} for the parameters of the named children of `model`.

    Raises:
        ValueError: the model has no such part.
    """
    children = dict(model.named_children())
    missing = [part for part in parts if part not in children]
    if missing:
        raise ValueError(f"the model has no part {missing[0]}; it has {', '.join(children)}")
    return {parameter: part for part in parts for parameter in children[part].parameters()}


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, lr: float, weight_decay: float, fused: bool
) -> Optimizer:
    """Build SGD (Nesterov), Adam or AdamW over the model's named groups.

    A part of the model that `lr_scale` names has groups of its own, `backbone/decay` and so on, whose lr is `lr` times
    its factor. Every group carries its `name`, its `kind` (decay, no_decay, bias) and its `lr_scale`.
    Adam's first beta is `momentum`, as in the classic recipe; the second is 0.999. `weight_decay` is L2 for SGD and
    Adam, decoupled for AdamW (arXiv:1711.05101), and acts on `decay` alone.
    """
    part = part_of(model, settings.lr_scale)
    groups: dict[str, dict[str, Any]] = {}
    for kind, members in parameter_groups(model).items():
        for parameter in members.values():
            own = part.get(parameter)
            scale = settings.lr_scale[own] if own else 1.0
            options = {"kind": kind, "lr_scale": scale, "lr": lr * scale}
            options["weight_decay"] = weight_decay if kind == "decay" else 0.0
            name = f"{own}/{kind}" if own else kind
            groups.setdefault(name, {"name": name, **options, "params": []})["params"].append(parameter)
    ordered = list(groups.values())
    kind = KINDS[settings.optimizer]
    if settings.optimizer == "SGD":
        return kind(ordered, lr=lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=fused)
    return kind(ordered, lr=lr, betas=(settings.momentum, ADAM_BETA2), fused=fused)


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
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    # Below the bound torch multiplies by 1; a CPU, which may look at the norm without a wait, leaves that out.
    if max_norm > 0 and (norm.device.type != "cpu" or not norm + CLIP_EPS <= max_norm):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def plain_lr(optimizer: Optimizer) -> float:
    """The lr of the first group that no factor changes; of the first of all where there is none."""
    groups = optimizer.param_groups
    return next((group["lr"] for group in groups if group["lr_scale"] == 1), groups[0]["lr"])


def accumulation(batch_size: int, nominal_batch: int) -> int:
    """Return how many batches make an optimizer step: as many as come closest to `nominal_batch` images, at least 1."""
    return max(1, round(nominal_batch / batch_size)) if nominal_batch else 1


def scaled_weight_decay(weight_decay: float, effective_batch: int, nominal_batch: int) -> float:
    """Return `weight_decay · effective_batch / nominal_batch`, the classic recipe's scaling."""
    return weight_decay * effective_batch / nominal_batch if nominal_batch else weight_decay


def idle_scales(model: nn.Module, lr_scale: Mapping[str, float]) -> list[str]:
    """Say of which parts of the model an lr of their own does nothing, as nothing of them is trained."""
    frozen = (part for part in lr_scale if not any(p.requires_grad for p in getattr(model, part).parameters()))
    return [f"lr_scale     {part} {lr_scale[part]:g} does nothing: all of it is frozen" for part in frozen]


def scaled_lr(lr0: float, rule: str, effective_batch: int, nominal_batch: int) -> float:
    """Return lr0 for this batch: as it is (`none`), times the batches' ratio (`linear`, Goyal et al. 2017,
    arXiv:1706.02677) or its root (`sqrt`, Krizhevsky 2014, arXiv:1404.5997)."""
    ratio = effective_batch / nominal_batch if nominal_batch else 1.0
    return lr0 * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]


class UpdatePlan(NamedTuple):
    """accumulate: batches an update.  images: in one, at most.  lr0, weight_decay: as the optimizer has them."""

    accumulate: int
    images: int
    lr0: float
    weight_decay: float


def plan_update(hyp: Hyp, batch_size: int, count: int) -> UpdatePlan:
    """Return how batches of a set of `count` images become updates, and what of `hyp` is scaled by that."""
    accumulate = accumulation(batch_size, hyp.nominal_batch)
    images = min(accumulate * batch_size, count)  # a small set is one step
    lr0, decay = scaled_lr(hyp.lr0, hyp.lr_batch_rule, images, hyp.nominal_batch), hyp.weight_decay
    if hyp.scale_weight_decay:
        decay = scaled_weight_decay(decay, images, hyp.nominal_batch)
    return UpdatePlan(accumulate, images, lr0, decay)


def describe_update(hyp: Hyp, batch_size: int, plan: UpdatePlan) -> list[str]:
    """Say how batches become updates, and everything about them that was derived rather than given."""
    accumulate, effective, lr0, decay = plan
    nominal = f" (nominal_batch {hyp.nominal_batch})" if hyp.nominal_batch else ""
    few = ", all there are" if effective < accumulate * batch_size else ""
    step = f"{accumulate} a step{nominal}: {many(effective, 'image')} an update{few}"
    betas = "" if hyp.optimizer == "SGD" else f", betas {hyp.momentum:g} (momentum) and {ADAM_BETA2:g}"
    ratio = f"{effective}/{hyp.nominal_batch}"
    how = "" if hyp.lr_batch_rule == "none" else f" = {hyp.lr0:g} scaled by {ratio} ({hyp.lr_batch_rule})"
    scaled = f" = {hyp.weight_decay:g} x {ratio}" if hyp.scale_weight_decay else ""
    return [
        f"batch        {many(batch_size, 'image')}, {step}",
        f"optimizer    {hyp.optimizer}{betas}, lr0 {lr0:g}{how}, weight decay {decay:g}{scaled}",
    ]


def describe_groups(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """A line a parameter group: tensors, parameters, weight decay, factor on the lr where there is one, an example."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    width = max(len(group["name"]) for group in optimizer.param_groups)
    lines = []
    for group in optimizer.param_groups:
        members = group["params"]
        scale = "" if group["lr_scale"] == 1 else f", lr x {group['lr_scale']:g}"
        lines.append(
            f"group        {group['name']:<{width}} {len(members):>4} tensors {sum(p.numel() for p in members):>11,} "
            f"parameters, weight decay {group['weight_decay']:g}{scale}, such as {names[members[0]]}"
        )
    return lines
