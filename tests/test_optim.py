"""utils/optim.py: every parameter in its one right group, updates worked by hand, and a state that knows names."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, field

import pytest
import torch
import torchvision
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from models.backbone import TorchvisionBackbone
from models.transfer import freeze
from models.yolo import YOLO, ModelConfig
from utils.optim import (
    NamedOptimizerState,
    accumulation,
    build_optimizer,
    clip_gradients,
    describe_groups,
    parameter_groups,
    plain_lr,
    scaled_lr,
    scaled_weight_decay,
)


@dataclass
class Settings:
    optimizer: str = "SGD"
    momentum: float = 0.9
    lr_scale: dict[str, float] = field(default_factory=dict)


KINDS = ("SGD", "Adam", "AdamW")


class Odd(nn.Module):
    """One of everything, under names that say nothing or the wrong thing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)
        self.bias_conv = nn.Conv2d(4, 8, 1, bias=False)
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
        self.deconv = nn.ConvTranspose2d(4, 8, 2)
        self.one = nn.Linear(8, 1)
        self.one_output = nn.Conv2d(8, 1, 1, bias=False)
        self.bilinear = nn.Bilinear(2, 3, 4)
        self.batch = nn.BatchNorm1d(8)
        self.sync = nn.SyncBatchNorm(8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.plain_instance = nn.InstanceNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.layer = nn.LayerNorm([4, 8])
        self.layer_without_bias = nn.LayerNorm(8, bias=False)
        self.rms = nn.RMSNorm([4, 8])
        self.embedding = nn.Embedding(5, 8)
        self.bag = nn.EmbeddingBag(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.attention_kv = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
        self.prelu = nn.PReLU(8)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.gain = nn.Parameter(torch.ones(8))
        self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))
        self.bias_table = nn.Parameter(torch.ones(4, 4))
        self.norm_weight = nn.Parameter(torch.ones(4, 4))
        self.bias = nn.Parameter(torch.ones(8))
        self.tied = nn.Conv2d(4, 8, 3)
        self.tied.weight = self.conv.weight
        self.again = self.bias_conv
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.half_frozen = nn.Conv2d(4, 4, 1)
        self.half_frozen.weight.requires_grad_(False)


ODD = {
    "decay": {
        *("conv.weight", "bias_conv.weight", "depthwise.weight", "deconv.weight", "one.weight", "bilinear.weight"),
        "one_output.weight",
        *("attention.in_proj_weight", "attention.out_proj.weight"),
        *(f"attention_kv.{name}_proj_weight" for name in "qkv"),
        *("attention_kv.out_proj.weight", "bias_table", "norm_weight"),
    },
    "no_decay": {
        *("batch.weight", "sync.weight", "instance.weight", "group.weight", "layer.weight", "rms.weight"),
        *("layer_without_bias.weight", "embedding.weight", "bag.weight", "prelu.weight"),
        *("attention.bias_k", "attention.bias_v"),  # not added to anything: one more key and value to look at
        *("scale", "gain", "layer_scale"),
    },
    "bias": {
        *("conv.bias", "depthwise.bias", "deconv.bias", "one.bias", "bilinear.bias", "tied.bias", "half_frozen.bias"),
        *("batch.bias", "sync.bias", "instance.bias", "group.bias", "layer.bias", "bias"),
        *(f"{attention}.{name}" for attention in ("attention", "attention_kv") for name in ("in_proj_bias",)),
        *("attention.out_proj.bias", "attention_kv.out_proj.bias"),
    },
}


def names_of(model: nn.Module) -> dict[str, set[str]]:
    """The names by group, after checking that they name what they hold and that nothing is there twice or missing."""
    groups = parameter_groups(model)
    held = [(name, parameter) for members in groups.values() for name, parameter in members.items()]
    assert all(model.get_parameter(name) is parameter for name, parameter in held)
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert sorted(id(parameter) for _, parameter in held) == sorted(trainable), "each exactly once"
    return {group: set(members) for group, members in groups.items()}


def test_every_parameter_of_an_odd_module_is_in_its_right_group() -> None:
    assert names_of(Odd()) == ODD


def test_a_module_of_parameters_alone_and_an_empty_one() -> None:
    lone = nn.Module()
    lone.weight = nn.Parameter(torch.ones(3, 3))
    assert names_of(lone) == {"decay": {"weight"}, "no_decay": set(), "bias": set()}
    assert names_of(nn.Identity()) == {"decay": set(), "no_decay": set(), "bias": set()}


@pytest.mark.parametrize("size", ["n", "s", "m", "l", "x"])
def test_the_groups_of_yolo(size: str) -> None:
    """Read off the kinds of layers it is made of: convolutions and batch norms, and nothing else with parameters."""
    with torch.device("meta"):
        model = YOLO(ModelConfig(size, 3))
    table: dict[str, set[str]] = {"decay": set(), "no_decay": set(), "bias": set()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            table["decay"].add(f"{name}.weight")
            if module.bias is not None:
                table["bias"].add(f"{name}.bias")
        elif isinstance(module, nn.BatchNorm2d):
            table["no_decay"].add(f"{name}.weight")
            table["bias"].add(f"{name}.bias")
    assert names_of(model) == table
    assert {name for name, _ in model.named_parameters()} == set().union(*table.values())
    assert len(table["decay"]) > len(table["no_decay"]) > 50, "the last convolutions have no norm"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny"])
def test_the_groups_of_torchvision_backbones(name: str) -> None:
    """The kinds of layers come from torchvision's own classifier: cut to its maps, a net forgets some of them."""
    torch.manual_seed(0)
    classifier = torchvision.models.get_model(name)
    kinds: dict[str, str] = {}
    for prefix, module in classifier.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            mixes = isinstance(module, (nn.Conv2d, nn.Linear)) and own == "weight"
            kinds[f"{prefix}.{own}"] = "bias" if own == "bias" else "decay" if mixes else "no_decay"
    body = TorchvisionBackbone(name, pretrained=False).body
    groups = names_of(body)
    assert {name: group for group, names in groups.items() for name in names} == {
        name: kinds[name] for name, _ in body.named_parameters()
    }
    assert all(groups.values()), "all three groups have members"


def test_frozen_parts_are_in_no_group() -> None:
    model = YOLO(ModelConfig("n", 3))
    everything = set().union(*names_of(model).values())
    freeze(model, "backbone")
    assert set().union(*names_of(model).values()) == {name for name in everything if not name.startswith("backbone.")}


def test_the_optimizer_is_made_of_named_groups() -> None:
    model = Odd()
    for kind, cls in zip(KINDS, (SGD, Adam, AdamW), strict=True):
        optimizer = build_optimizer(model, Settings(kind), 0.1, weight_decay=0.05, fused=False)
        assert type(optimizer).__mro__[1] is cls and type(optimizer).__name__ == kind
        groups = {group["name"]: group for group in optimizer.param_groups}
        assert {name: group["weight_decay"] for name, group in groups.items()} == {
            "decay": 0.05,
            "no_decay": 0.0,
            "bias": 0.0,
        }
        for name, group in groups.items():
            assert [id(p) for p in group["params"]] == [id(p) for p in parameter_groups(model)[name].values()]
            assert group["lr"] == 0.1
            assert (group["momentum"] if kind == "SGD" else group["betas"]) == (0.9 if kind == "SGD" else (0.9, 0.999))
    bare = build_optimizer(nn.Conv2d(1, 1, 1, bias=False), Settings(), 0.1, 0.05, fused=False)
    assert [group["name"] for group in bare.param_groups] == ["decay"], "groups without members are left out"


def closure_step(model: nn.Module, optimizer: Optimizer, images: torch.Tensor) -> torch.Tensor:
    """Take a step by a closure, and the optimizer's state through a dict; return the loss."""

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(images).square().mean()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return loss


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("kind", "own"), [("SGD", SGD), ("Adam", Adam), ("AdamW", AdamW)])
def test_steps_are_those_of_torchs_optimizer_to_the_last_bit(kind: str, own: type[Optimizer], fused: bool) -> None:
    """Also with a closure, which needs gradients, under a scheduler, and after its state went through a dict."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    theirs = copy.deepcopy(ours)
    optimizer = build_optimizer(ours, Settings(kind), 0.1, 0.05, fused)
    twins = dict(zip(ours.parameters(), theirs.parameters(), strict=True))
    groups = [group | {"params": [twins[p] for p in group["params"]]} for group in optimizer.param_groups]
    pairs = [(ours, optimizer), (theirs, own(groups, lr=0.1))]
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch) for _, optimizer in pairs]
    for images in torch.randn(5, 2, 3, 6, 6):
        one, other = (closure_step(model, optimizer, images) for model, optimizer in pairs)
        assert torch.equal(one, other)
        for scheduler in schedulers:
            scheduler.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert [p.requires_grad for p in ours.parameters()] == [True] * len(twins)
    one, other = (optimizer.state_dict() for _, optimizer in pairs)
    assert one["param_groups"] == other["param_groups"]
    for i, slots in other["state"].items():
        assert all(torch.equal(one["state"][i][name], slot) for name, slot in slots.items() if torch.is_tensor(slot))


def test_an_optimizer_step_records_no_gradients_and_runs_its_hooks() -> None:
    model = nn.Linear(2, 1)
    optimizer, ran = build_optimizer(model, Settings(), 0.1, 0.05, fused=False), []
    optimizer.register_step_pre_hook(lambda *_: ran.append("before"))
    optimizer.register_step_post_hook(lambda *_: ran.append("after"))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert ran == ["before", "after"]
    assert all(p.is_leaf and p.grad_fn is None for p in model.parameters()) and torch.is_grad_enabled()


def one_step(kind: str, momentum: float, gradient: float) -> tuple[float, float]:
    """Weight and bias after a step from 1.0 with lr 0.1 and weight decay 0.05."""
    model = nn.Conv2d(1, 1, 1)
    optimizer = build_optimizer(model, Settings(kind, momentum=momentum), 0.1, weight_decay=0.05, fused=True)
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    return model.weight.item(), model.bias.item()


@pytest.mark.parametrize(
    ("kind", "momentum", "gradient", "weight", "bias"),
    [
        ("SGD", 0.0, 0.5, 1 - 0.1 * 0.55, 1 - 0.1 * 0.5),  # L2: 0.05·1 joins the gradient
        ("SGD", 0.9, 0.5, 1 - 0.1 * 1.9 * 0.55, 1 - 0.1 * 1.9 * 0.5),  # Nesterov: g + 0.9·g at the first step
        ("Adam", 0.9, 0.5, 0.9, 0.9),  # the first step is lr·sign(g), whatever L2 adds
        ("Adam", 0.9, 0.0, 0.9, 1.0),  # L2 is all the gradient there is
        ("AdamW", 0.9, 0.0, 1 - 0.1 * 0.05, 1.0),  # decoupled: lr·0.05·1
        ("AdamW", 0.9, 0.5, 1 - 0.1 * 0.05 - 0.1, 0.9),
    ],
)
def test_a_step_by_hand(kind: str, momentum: float, gradient: float, weight: float, bias: float) -> None:
    assert one_step(kind, momentum, gradient) == pytest.approx((weight, bias), abs=1e-6)


class Trio(nn.Module):
    """Three layers that can be registered in another order, and one that never gets a gradient."""

    def __init__(self, order: str = "abcd") -> None:
        super().__init__()
        layers = {"a": nn.Linear(3, 4), "b": nn.LayerNorm(4), "c": nn.Linear(4, 2), "d": nn.Linear(2, 2)}
        for name in order:
            self.add_module(name, layers[name])


def step_all(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        for name, parameter in model.named_parameters():
            if not name.startswith("d."):
                values = torch.arange(parameter.numel(), dtype=torch.float32) + len(name) + step
                parameter.grad = values.sin().view_as(parameter)
        optimizer.step()


def saved_after(kind: str, fused: bool) -> tuple[Trio, Optimizer, dict, dict]:
    torch.manual_seed(0)
    model = Trio()
    optimizer = build_optimizer(model, Settings(kind), 0.1, 0.05, fused)
    step_all(model, optimizer, range(3))
    for group in optimizer.param_groups:
        group["lr"] = 0.03
    state = NamedOptimizerState(model, optimizer).state_dict()
    return model, optimizer, copy.deepcopy(model.state_dict()), copy.deepcopy(state)


@pytest.mark.parametrize(("kind", "fused"), itertools.product(KINDS, (False, True)))
@pytest.mark.parametrize("order", ["abcd", "dcba", "cadb"])
def test_the_next_steps_are_the_same_after_a_round_trip(kind: str, fused: bool, order: str) -> None:
    model, optimizer, weights, state = saved_after(kind, fused)
    other = Trio(order)
    other.load_state_dict(weights)
    new = build_optimizer(other, Settings(kind, momentum=0.1), 9.0, 0.9, fused)
    NamedOptimizerState(other, new).load_state_dict(state)
    assert {group["lr"] for group in new.param_groups} == {0.03}
    step_all(model, optimizer, range(3, 6))
    step_all(other, new, range(3, 6))
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_the_state_is_by_name() -> None:
    _, _, _, state = saved_after("Adam", False)
    assert set(state["groups"]) == {"decay", "no_decay", "bias"}
    assert set(state["state"]) == {f"{layer}.{kind}" for layer in "abc" for kind in ("weight", "bias")}
    assert {name: slots["exp_avg"].shape for name, slots in state["state"].items()}["a.weight"] == (4, 3)
    assert state["groups"]["decay"]["weight_decay"] == 0.05 and "params" not in state["groups"]["decay"]


def test_a_state_from_before_the_first_step() -> None:
    model = Trio()
    optimizer = build_optimizer(model, Settings("AdamW"), 0.1, 0.05, False)
    state = copy.deepcopy(NamedOptimizerState(model, optimizer).state_dict())
    assert state["state"] == {}
    other = build_optimizer(model, Settings("AdamW"), 0.1, 0.05, False)
    step_all(model, other, range(2))
    NamedOptimizerState(model, other).load_state_dict(state)
    assert not other.state, "what it knew is forgotten"


@pytest.mark.parametrize("change", ["a group", "a parameter", "a shape"])
def test_the_state_of_other_parameters_is_refused_and_changes_nothing(change: str) -> None:
    model, optimizer, _, state = saved_after("AdamW", False)
    if change == "a group":
        state["groups"]["scales"] = state["groups"].pop("bias")
    elif change == "a parameter":
        state["state"]["z.weight"] = state["state"].pop("a.weight")
    else:
        state["state"]["a.weight"]["exp_avg"] = torch.zeros(5, 3)
    state["groups"]["decay"]["lr"] = 7.0
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError):
        NamedOptimizerState(model, optimizer).load_state_dict(state)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(after["state"][i]["exp_avg"], slots["exp_avg"]) for i, slots in before["state"].items())


@pytest.mark.parametrize(("saved", "here"), [(True, False), (False, True)])
def test_how_steps_are_computed_is_this_machines_matter(saved: bool, here: bool) -> None:
    """A run goes on elsewhere: a kernel that was right there may not exist here, or not go with gradient scaling."""
    _, _, weights, state = saved_after("AdamW", saved)
    model = Trio()
    model.load_state_dict(weights)
    optimizer = build_optimizer(model, Settings("AdamW"), 0.1, 0.05, here)
    NamedOptimizerState(model, optimizer).load_state_dict(state)
    assert {group["fused"] for group in optimizer.param_groups} == {here}
    assert {group["lr"] for group in optimizer.param_groups} == {0.03}
    step_all(model, optimizer, range(3, 4))


def gradients(*values: list[float]) -> tuple[nn.Module, Optimizer]:
    """A model with a weight and a bias of these gradients, and a frozen layer with a huge one."""
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1).requires_grad_(False))
    optimizer = build_optimizer(model, Settings(), 0.1, 0.0, fused=False)
    model[0].weight.grad, model[0].bias.grad = torch.tensor([values[0]]), torch.tensor(values[1])
    model[1].weight.grad = torch.tensor([[1e6]])
    return model, optimizer


def test_gradients_are_clipped_by_their_norm_over_all_groups() -> None:
    model, optimizer = gradients([3.0, 4.0], [12.0])
    assert clip_gradients(optimizer, 1.0).item() == pytest.approx(13.0)
    assert model[0].weight.grad.tolist() == [pytest.approx([3 / 13, 4 / 13], abs=1e-6)]
    assert model[0].bias.grad.tolist() == pytest.approx([12 / 13], abs=1e-6)
    assert model[1].weight.grad.item() == 1e6, "what is not optimised is not looked at"


@pytest.mark.parametrize("most", [0.0, 13.5, 1e9])
def test_gradients_below_the_bound_or_without_one_stay(most: float) -> None:
    model, optimizer = gradients([3.0, 4.0], [12.0])
    assert clip_gradients(optimizer, most).item() == pytest.approx(13.0)
    assert model[0].weight.grad.tolist() == [[3.0, 4.0]] and model[0].bias.grad.tolist() == [12.0]


def test_gradients_are_clipped_as_by_torch_to_the_last_bit() -> None:
    """At the bound, too, where what torch adds to the norm decides."""
    for most in (1.0, *(13 + step * 2e-7 for step in range(-20, 21)), 14.0):
        (model, optimizer), (other, _) = gradients([3.0, 4.0], [12.0]), gradients([3.0, 4.0], [12.0])
        norm = clip_gradients(optimizer, most)
        assert torch.equal(norm, nn.utils.clip_grad_norm_(other[0].parameters(), most))
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), other[0].parameters(), strict=False))


def test_the_norm_of_broken_gradients_says_so() -> None:
    assert math.isinf(clip_gradients(gradients([math.inf, 1.0], [1.0])[1], 1.0).item())
    assert math.isnan(clip_gradients(gradients([math.nan, 1.0], [1.0])[1], 1.0).item())


@pytest.mark.parametrize(
    ("batch", "nominal", "batches"),
    [
        *((16, 64, 4), (64, 64, 1), (128, 64, 1), (10_000, 64, 1), (1, 64, 64), (16, 0, 1)),
        *((24, 64, 3), (20, 64, 3), (40, 64, 2), (43, 64, 1), (12, 64, 5), (16, 1, 1)),
    ],
)
def test_accumulation(batch: int, nominal: int, batches: int) -> None:
    """24 → 72 images rather than 48; 43 → 43 rather than 86; 12 → 60 rather than 72."""
    assert accumulation(batch, nominal) == batches


@pytest.mark.parametrize(
    ("effective", "nominal", "decay"), [(64, 64, 5e-4), (128, 64, 1e-3), (16, 64, 1.25e-4), (72, 64, 5.625e-4)]
)
def test_scaled_weight_decay(effective: int, nominal: int, decay: float) -> None:
    assert scaled_weight_decay(5e-4, effective, nominal) == pytest.approx(decay, rel=1e-15)


def test_without_a_nominal_batch_the_weight_decay_stays() -> None:
    assert scaled_weight_decay(5e-4, 16, 0) == 5e-4


def test_groups_in_words() -> None:
    model = nn.Sequential(nn.Conv2d(3, 500, 3), nn.BatchNorm2d(500))
    settings = Settings(lr_scale={"1": 0.5})
    lines = describe_groups(model, build_optimizer(model, settings, 0.1, 0.0005, fused=False))
    assert [" ".join(line.split()) for line in lines] == [
        "group decay 1 tensors 13,500 parameters, weight decay 0.0005, such as 0.weight",
        "group 1/no_decay 1 tensors 500 parameters, weight decay 0, lr x 0.5, such as 1.weight",
        "group bias 1 tensors 500 parameters, weight decay 0, such as 0.bias",
        "group 1/bias 1 tensors 500 parameters, weight decay 0, lr x 0.5, such as 1.bias",
    ]
    assert len({line.index(" tensors") for line in lines}) == 1, "columns stand under one another"


@pytest.mark.parametrize("size", ["n", "s", "m", "l", "x"])
def test_the_parts_of_every_model_size_get_their_own_lr(size: str) -> None:
    """What lies in a part is read off the module tree; nothing is lost or doubled on the way to the optimizer."""
    with torch.device("meta"):
        model = YOLO(ModelConfig(size, 3))
    optimizer = build_optimizer(model, Settings(lr_scale={"backbone": 0.1, "head": 2.0}), 0.5, 0.05, fused=False)
    lr_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for part, lr in (("backbone", 0.5 * 0.1), ("neck", 0.5), ("head", 1.0)):
        assert {lr_of[id(p)] for p in getattr(model, part).parameters()} == {lr}
    assert len(lr_of) == len(list(model.parameters())) == sum(len(g["params"]) for g in optimizer.param_groups)
    plain = build_optimizer(model, Settings(), 0.5, 0.05, fused=False)
    kind_of = {id(p): group["name"] for group in plain.param_groups for p in group["params"]}
    for group in optimizer.param_groups:
        assert {kind_of[id(p)] for p in group["params"]} == {group["kind"]} == {group["name"].rpartition("/")[2]}
        assert group["weight_decay"] == (0.05 if group["kind"] == "decay" else 0.0)


def test_a_part_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="no part backbone"):
        build_optimizer(nn.Sequential(nn.Linear(1, 1)), Settings(lr_scale={"backbone": 0.1}), 0.1, 0.0, fused=False)


@pytest.mark.parametrize(
    ("rule", "effective", "nominal", "lr"),
    [("none", 128, 64, 0.01), ("linear", 128, 64, 0.02), ("sqrt", 256, 64, 0.02), ("linear", 16, 64, 0.0025)],
)
def test_the_lr_of_a_batch(rule: str, effective: int, nominal: int, lr: float) -> None:
    assert scaled_lr(0.01, rule, effective, nominal) == pytest.approx(lr, rel=1e-15)


def test_the_lr_that_is_shown_is_one_that_no_factor_changes() -> None:
    net, lr = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 0.02
    scaled = build_optimizer(net, Settings(lr_scale={"0": 0.5}), lr, 0.0, fused=False)
    assert scaled.param_groups[0]["lr"] == 0.5 * lr and plain_lr(scaled) == lr
    everywhere = build_optimizer(net, Settings(lr_scale={"0": 0.5, "1": 0.25}), lr, 0.0, fused=False)
    assert plain_lr(everywhere) == everywhere.param_groups[0]["lr"]
