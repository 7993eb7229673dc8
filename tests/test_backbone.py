"""models/backbone.py: maps at strides 8, 16 and 32, from our own stages and from torchvision's classifiers."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor

from models.backbone import STRIDES, CSPBackbone, TorchvisionBackbone, check_imagenet
from utils.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torchvision would download fails as it does without a network."""

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)


def sizes(maps: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in maps]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (32, 32)])
def test_csp_maps_have_strides_8_16_32(height: int, width: int) -> None:
    backbone = CSPBackbone((8, 16, 24, 32), (1, 1, 1))
    maps = backbone(torch.rand(2, 3, height, width))
    assert sizes(maps) == [(2, c, height // s, width // s) for c, s in zip((16, 24, 32), STRIDES, strict=True)]
    assert backbone.channels == (16, 24, 32)


def test_csp_stages_are_as_deep_as_asked_and_in_order_from_the_image() -> None:
    backbone = CSPBackbone((8, 16, 24, 32), (1, 2, 3))
    assert [len(stage[1].bottlenecks) for stage in backbone.stages] == [1, 2, 3]
    stages = backbone.freezable()
    assert len(stages) == 4
    x = torch.rand(1, 3, 64, 64)
    backbone.eval()
    maps, through = backbone(x), x
    for stage, expected in zip(stages, [None, *maps], strict=True):
        through = stage(through)
        assert expected is None or torch.equal(through, expected)
    held = {id(parameter) for stage in stages for parameter in stage.parameters()}
    assert held == {id(parameter) for parameter in backbone.parameters()}


# The last map before each halving, from the papers' tables: where the next block starts with a 1×1 convolution (the
# expansion of MobileNetV3, the reduction of ResNet-50), that one's output.
@pytest.mark.parametrize(
    ("name", "channels"),
    [("mobilenet_v3_large", (240, 672, 960)), ("resnet18", (128, 256, 512)), ("resnet50", (256, 512, 2048))],
)
def test_torchvision_maps_have_strides_8_16_32(name: str, channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        backbone = TorchvisionBackbone(name, pretrained=False)
        for height, width in ((320, 320), (96, 160)):
            maps = backbone(torch.zeros(2, 3, height, width))
            assert [x.shape[0] for x in maps] == [2, 2, 2]
            assert [tuple(x.shape[2:]) for x in maps] == [(height // s, width // s) for s in STRIDES]
            assert tuple(x.shape[1] for x in maps) == backbone.channels
    assert backbone.channels == channels


def test_torchvision_maps_are_those_of_the_network_on_normalised_images() -> None:
    torch.manual_seed(0)
    backbone = TorchvisionBackbone("resnet18", pretrained=False).eval()
    network = torchvision.models.resnet18(weights=None).eval()
    missing, unexpected = network.load_state_dict(backbone.body.state_dict(), strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"}
    assert not unexpected
    seen: list[Tensor] = []
    for layer in (network.layer2, network.layer3, network.layer4):
        layer.register_forward_hook(lambda *args: seen.append(args[2].clone()))
    image = torch.rand(1, 3, 64, 96)
    normalised = image.clone()
    for channel, (mean, deviation) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        normalised[:, channel] = (image[:, channel] - mean) / deviation
    with torch.no_grad():
        network(normalised)
        maps = backbone(image)
    for ours, theirs in zip(maps, seen, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_building_leaves_training_mode_and_statistics_fresh() -> None:
    backbone = TorchvisionBackbone("mobilenet_v3_large", pretrained=False)
    assert all(module.training for module in backbone.modules())
    for name, value in backbone.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == 0
        elif name.endswith("running_mean"):
            assert not value.any()


def test_normalisation_is_no_part_of_the_state() -> None:
    with torch.device("meta"):
        backbone = TorchvisionBackbone("resnet18", pretrained=False)
    assert not {"mean", "std"} & set(backbone.state_dict())


def test_weights_that_cannot_be_had_are_told_in_one_line() -> None:
    with torch.device("meta"), pytest.raises(UserError) as fault:
        TorchvisionBackbone("mobilenet_v3_large", pretrained=True)
    message = str(fault.value)
    assert "\n" not in message
    assert "torchvision:mobilenet_v3_large" in message
    assert "no route to host" in message
    assert "torchvision:mobilenet_v3_large:random" in message


@pytest.mark.parametrize("text", ["invalid hash\nexpected 1234", "PytorchStreamReader failed\n\nframe #0"])
def test_a_reason_of_several_lines_stays_on_one(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", broken)
    with torch.device("meta"), pytest.raises(UserError) as fault:
        TorchvisionBackbone("mobilenet_v3_small", pretrained=True)
    assert "\n" not in str(fault.value)
    assert text.partition("\n")[0] in str(fault.value)


def test_pretrained_weights_are_loaded_from_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state that torchvision's loader hands out is what the backbone has: no re-initialisation afterwards."""
    shipped = torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: shipped)
    backbone = TorchvisionBackbone("mobilenet_v3_small", pretrained=True)
    own = backbone.body.state_dict()
    assert len(own) > 100
    for name, value in own.items():
        assert torch.equal(value, shipped[name]), name


@pytest.mark.parametrize("set_before", [None, "0"])
def test_pretrained_weights_that_are_a_pickle_of_code_do_nothing(
    set_before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "executed"),)

    monkeypatch.undo()  # the loader is torch's own
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    if set_before is not None:
        monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", set_before)
    url = torchvision.models.get_model_weights("mobilenet_v3_small").DEFAULT.url
    file = tmp_path / "hub/checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save({"weight": Code()}, file)
    check_imagenet("mobilenet_v3_small", download=False)
    with torch.device("meta"), pytest.raises(UserError, match="could not be had"):
        TorchvisionBackbone("mobilenet_v3_small", pretrained=True)
    assert not (tmp_path / "executed").exists()
    assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") == set_before


def test_weights_that_are_not_here_are_fetched_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="add --download to fetch https://.*mobilenet_v3_small-.*pth"):
        check_imagenet("mobilenet_v3_small", download=False)
    check_imagenet("mobilenet_v3_small", download=True)


def test_random_weights_need_no_network() -> None:
    with torch.device("meta"):
        TorchvisionBackbone("mobilenet_v3_small", pretrained=False)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match="resnet5.*no such classifier.*did you mean 'resnet"):
        TorchvisionBackbone("resnet5", pretrained=False)
    with pytest.raises(UserError, match="torchvision:: torchvision has no such classifier"):
        TorchvisionBackbone("", pretrained=False)
    with pytest.raises(UserError, match="fasterrcnn_resnet50_fpn.*no such classifier"):
        TorchvisionBackbone("fasterrcnn_resnet50_fpn", pretrained=False)


@pytest.mark.parametrize("name", ["squeezenet1_1", "alexnet", "vit_b_16"])
def test_networks_without_the_three_strides_are_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(UserError) as fault:
        TorchvisionBackbone(name, pretrained=False)
    assert "\n" not in str(fault.value)
    assert f"torchvision:{name}: no feature maps of stride 8, 16 and 32" in str(fault.value)


def test_gradients_reach_a_torchvision_backbone() -> None:
    torch.manual_seed(0)
    backbone = TorchvisionBackbone("mobilenet_v3_small", pretrained=False)
    sum(x.square().mean() for x in backbone(torch.rand(2, 3, 64, 64))).backward()
    gradients = [parameter.grad for parameter in backbone.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
