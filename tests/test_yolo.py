"""models/yolo.py: sizes, shapes, determinism, and that a small net learns four images by heart."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from models.decode import detect
from models.loss import DetectionLoss
from models.yolo import MAX_STRIDE, SIZES, YOLO, ModelConfig, count_parameters, parse_cfg
from utils.errors import UserError
from utils.seed import torch_seeded

# Channels of strides 4, 8, 16, 32 and bottlenecks of strides 8, 16, 32, worked out by hand: 128, 256, 512, 1024 (no
# more than 1024, 1024, 768, 512, 512) times 0.25, 0.5, 0.75, 1, 1.25; 6, 6, 3 times 1/3, 1/3, 2/3, 1, 1.
TABLE = {
    "n": ((32, 64, 128, 256), (2, 2, 1)),
    "s": ((64, 128, 256, 512), (2, 2, 1)),
    "m": ((96, 192, 384, 576), (4, 4, 2)),
    "l": ((128, 256, 512, 512), (6, 6, 3)),
    "x": ((160, 320, 640, 640), (6, 6, 3)),
}
HYP = SimpleNamespace(
    box=7.5, cls=0.5, dfl=1.5, one_to_one=1.0, label_smoothing=0.0, assign_topk=10, assign_alpha=0.5, assign_beta=6.0
)


def points_of(height: int, width: int) -> int:
    return sum((height // s) * (width // s) for s in (8, 16, 32))


def meta_model(size: str, nc: int = 3) -> YOLO:
    with torch.device("meta"):
        return YOLO(ModelConfig(size, nc))


@pytest.mark.parametrize("size", TABLE)
def test_each_size_has_its_channels_depths_and_shapes(size: str) -> None:
    model, (channels, depths) = meta_model(size), TABLE[size]
    assert model.backbone.stem[-1][0].out_channels == channels[0]
    assert model.backbone.channels == model.neck.channels == channels[1:]
    assert [len(stage[1].bottlenecks) for stage in model.backbone.stages] == list(depths)
    assert len(model.neck.up4.bottlenecks) == depths[2]
    for height, width in ((320, 320), (96, 160), (32, 224)):
        out = model(torch.zeros(2, 3, height, width, device="meta"))
        count = points_of(height, width)
        assert out.distances.shape == (2, count, 64)
        assert out.logits.shape == out.one_to_one.shape == (2, count, 3)
        assert out.points.shape == (count, 2)


def test_there_are_five_sizes_each_larger_than_the_one_before() -> None:
    assert list(SIZES) == list(TABLE)
    counts = [count_parameters(meta_model(size, 80)) for size in SIZES]
    assert counts == sorted(set(counts))
    assert 3e6 < counts[0] < 4e6


def test_parameters_are_counted() -> None:
    assert count_parameters(torch.nn.Linear(3, 5)) == 20


@pytest.mark.parametrize(("text", "size"), [("yolo-n", "n"), ("yolo-x", "x"), ("yolo-m.yaml", "m")])
def test_parse_cfg_takes_the_five_names(text: str, size: str) -> None:
    assert parse_cfg(text) == size


@pytest.mark.parametrize(
    "text", ["", "n", "yolo-", "yolo-nn", "yolo-t", "YOLO-N", "models/yolo-n.yaml", "yolov5n.yaml"]
)
def test_parse_cfg_refuses_all_others(text: str) -> None:
    with pytest.raises(UserError) as fault:
        parse_cfg(text)
    assert str(fault.value).startswith(f"--cfg {text}: ")
    assert "yolo-n, yolo-s, yolo-m, yolo-l, yolo-x" in str(fault.value)


def test_parse_cfg_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'yolo-s'"):
        parse_cfg("yolos")


def test_a_config_goes_through_a_checkpoint() -> None:
    config = ModelConfig("m", 7, "resnet18")
    assert ModelConfig(**config.to_dict()) == config
    assert config.name == "yolo-m on torchvision resnet18"
    assert ModelConfig("n", 1).name == "yolo-n"


@pytest.mark.parametrize("training", [True, False])
def test_uint8_and_float_images_agree(training: bool) -> None:
    torch.manual_seed(0)
    model = YOLO(ModelConfig("n", 2)).train(training)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        whole, unit = model(images), model(images.float() / 255)
    assert whole.distances.shape == (2, points_of(64, 96), 64)
    assert whole.shapes == unit.shapes
    assert all(torch.equal(a, b) for a, b in zip(whole[:-1], unit[:-1], strict=True))
    assert all(x.isfinite().all() for x in whole[:-1])


def test_in_eval_mode_an_image_is_judged_by_itself_and_changes_nothing() -> None:
    torch.manual_seed(1)
    model = YOLO(ModelConfig("n", 2)).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    for a, b in zip(together[:3], alone[:3], strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_training_mode_follows_the_batch() -> None:
    model = YOLO(ModelConfig("n", 2)).train()
    model(torch.rand(2, 3, 64, 64))
    counters = [value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counters
    assert all(value == 1 for value in counters)


def test_the_seed_alone_makes_the_weights() -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        with torch_seeded(seed, "init"):
            return YOLO(ModelConfig("n", 2)).state_dict()

    torch.manual_seed(1)
    first, state = weights(0), torch.get_rng_state()
    torch.rand(100)
    again, other = weights(0), weights(1)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["backbone.stem.0.0.weight"], other["backbone.stem.0.0.weight"])


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_a_torchvision_backbone_goes_under_neck_and_head(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = YOLO(ModelConfig("n", 2, "mobilenet_v3_small"))
        out = model(torch.zeros(1, 3, *size))
    assert out.logits.shape == (1, points_of(*size), 2)
    assert model.neck.channels == (64, 128, 256)
    assert MAX_STRIDE == 32


def scenes() -> tuple[Tensor, Tensor, Tensor]:
    """Four 64 × 96 images of bright or dark rectangles on noise, the last without any; class −1 pads."""
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(100, 156, (4, 3, 64, 96), dtype=torch.uint8, generator=noise)
    objects = [
        [(8, 8, 40, 48, 0), (56, 20, 88, 60, 1)],
        [(20, 4, 90, 36, 1)],
        [(4, 30, 30, 62, 0), (40, 2, 60, 22, 0)],
        [],
    ]
    boxes, classes = torch.zeros(4, 2, 4), torch.full((4, 2), -1)
    for i, found in enumerate(objects):
        for j, (x1, y1, x2, y2, kind) in enumerate(found):
            images[i, :, y1:y2, x1:x2] = 255 if kind else 0
            boxes[i, j], classes[i, j] = torch.tensor([x1, y1, x2, y2]), kind
    return images, boxes, classes


def learn(model: YOLO, images: Tensor, boxes: Tensor, classes: Tensor, steps: int) -> list[float]:
    """Train on one batch with the lr falling to 0; return the loss of each step."""
    criterion = DetectionLoss(HYP, model.config.nc)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for _ in range(steps):
        loss = criterion(model(images), boxes, classes)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.total.item())
    return losses


def test_a_small_net_learns_four_images_by_heart() -> None:
    images, boxes, classes = scenes()
    with torch_seeded(0, "init"):
        model = YOLO(ModelConfig("n", 2)).train()
    losses = learn(model, images, boxes, classes, 80)
    assert losses[-1] < losses[0] / 5
    with torch.no_grad():
        predictions = model.eval()(images)
    for nms in (False, True):
        for found, truth, kinds in zip(detect(predictions, nms=nms, conf=0.3).split(), boxes, classes, strict=True):
            truth, kinds = truth[kinds >= 0], kinds[kinds >= 0]
            assert len(found.boxes) == len(truth)
            if len(truth):
                best, which = box_iou(truth, found.boxes).max(1)
                assert (best > 0.7).all()
                assert torch.equal(found.classes[which], kinds)
