"""Training and detection on a CUDA device that is not there: nothing mixes devices, and the host never waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import train
import val
from data.loader import Batch, resize_batch
from models.decode import detect
from models.loss import DetectionLoss
from models.yolo import YOLO, ModelConfig
from tests.fake_cuda import CUDA, NoWaits, Waits, fake_cuda, move
from utils import guard as guard_module
from utils.device import Arriving, Precision, prefetch
from utils.ema import ModelEMA
from utils.guard import StepGuard
from utils.hyp import Hyp
from utils.optim import build_optimizer
from utils.telemetry import Telemetry

STEPS = [0, 1, guard_module.LOOK_EVERY]  # the guard looks at the first and the last, and reads at the last
VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),  # by torch's deepcopy
    pytest.mark.skipif(VERSION < (2, 11), reason="fakes of older versions (2.6) compute convolutions, and abort"),
]


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors within dicts."""
    for one in value.values():
        if isinstance(one, dict):
            yield from tensors(one)
        elif isinstance(one, Tensor):
            yield one


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=False),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.tensor([1.0], device=CUDA),
        lambda x: torch.ones(3).to(CUDA),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(3)]),
    ],
)
def test_the_fake_device_tells_what_waits_and_what_mixes(act: Callable[[Tensor], object]) -> None:
    with fake_cuda(), NoWaits():
        x = torch.ones(3, device=CUDA)
        with pytest.raises(Exception, match="between cpu and cuda|Expected all tensors|local_scalar_dense|nonzero"):
            act(x)


def test_the_fake_device_lets_other_work_pass() -> None:
    with fake_cuda(), NoWaits():
        x = torch.ones(3, device=CUDA)
        done = [x + 1, torch.where(x > 0, x, 0.0), x * torch.tensor(2.0), x.new_full((1,), 3), x[:2]]
        done.append(torch.ones(3).to(CUDA, non_blocking=True))
        assert all(y.device == CUDA for y in done)
        (back,) = Arriving(x).read()
        assert back.device.type == "cpu" and back.shape == x.shape


def model_without_numbers(nc: int) -> YOLO:
    """To be made before, and moved within, the fake device's mode."""
    with torch.device("meta"):
        return YOLO(ModelConfig("n", nc))


def fake_training(model: YOLO, optimizer: str, amp: str, scale: float) -> SimpleNamespace:
    """What `train.backward` and `train.update` need of a training, on the fake device."""
    hyp = Hyp(optimizer=optimizer, multi_scale=scale)
    built = build_optimizer(model, hyp, hyp.lr0, hyp.weight_decay, fused=True)
    ema, guard = ModelEMA(model, hyp.ema_decay, hyp.ema_tau), StepGuard(model, built, str)
    built.register_step_post_hook(lambda *_: ema.update_parameters(model, guard.skipped))
    guard.begin()
    return SimpleNamespace(
        model=model,
        ema=ema,
        criterion=DetectionLoss(hyp, 3),
        optimizer=built,
        clip_grad_norm=hyp.clip_grad_norm,
        precision=Precision(CUDA, amp),
        prepare=train.preparation(0, 64, scale, train.defers_colour(CUDA)),
        reseed=train.reseeding(0, CUDA),
        guard=guard,
        telemetry=Telemetry(built, hyp.clip_grad_norm, 1),
        state=SimpleNamespace(epoch=0, step=0, means={}),
    )


def batch_of(images: int, boxes: int) -> Batch:
    """A batch as the loader makes it, on the host."""
    pixels = torch.zeros(images, 64, 64, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    classes, indices = (torch.zeros(shape, dtype=torch.int64) for shape in ((images, boxes), (images,)))
    corners, letterbox, colour = (torch.zeros(images, *shape) for shape in ((boxes, 4), (4,), (3, 3)))
    return Batch(pixels, corners, classes, indices, letterbox, colour)


@pytest.mark.parametrize(
    ("optimizer", "amp", "scale"), [("AdamW", "bf16", 0.0), ("SGD", "fp16", 0.5), ("Adam", "off", 0.5)]
)
def test_no_step_of_training_waits(optimizer: str, amp: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def read(report: guard_module._Report) -> int:
        (count,) = report._count.read()
        looked.append(count.device.type)
        return 0

    monkeypatch.setattr(guard_module._Report, "read", read)
    model = model_without_numbers(3)
    with fake_cuda():
        training = fake_training(move(model).train(), optimizer, amp, scale)

        def backward(loss: Tensor) -> None:
            assert loss.device == CUDA and loss.shape == () and loss.requires_grad
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(Tensor, "backward", backward)
        batches = prefetch([batch_of(4, boxes) for boxes in (1, 5, 9)], CUDA)
        with NoWaits():
            for training.state.step, batch in zip(STEPS, batches, strict=True):
                loss = train.backward(training, batch, training.state.step)
                train.update(training)
        assert training.precision.scaler.is_enabled() == (amp == "fp16")
        assert loss.parts.device == training.guard.skipped.device == CUDA
        kept = [*tensors(training.state.means), *tensors(training.ema.state_dict()), *tensors(training.optimizer.state)]
        assert {x.device for x in kept} == {CUDA} and len(training.state.means) == 3
    assert looked == ["cpu"]


def test_detection_without_nms_waits_for_nothing() -> None:
    model = model_without_numbers(80).eval()
    with fake_cuda(), torch.no_grad(), NoWaits():
        found = detect(move(model)(torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device=CUDA)))
        assert {x.device for x in found} == {CUDA} and found.boxes.shape == (2, 300, 4)


def test_a_resized_batch_waits_for_nothing_and_the_loop_shows_where_one_would() -> None:
    with fake_cuda(), NoWaits():
        batch = batch_of(2, 3).to(CUDA)
        assert resize_batch(batch, 96).boxes.device == CUDA
        with pytest.raises(Waits, match="_to_copy between cpu and cuda"):
            batch.boxes * torch.tensor([1.5] * 4, device=CUDA)


def test_an_evaluation_reads_a_batch_when_the_next_is_under_way(tiny_run: Any, tmp_path: Any, monkeypatch) -> None:
    log: list[str] = []

    class Noted(Arriving):
        def __init__(self, *parts: Tensor) -> None:
            log.append("asked")
            super().__init__(*parts)

        def read(self) -> list[Tensor]:
            log.append("read")
            return super().read()

    monkeypatch.setattr(val, "Arriving", Noted)
    weights = str(tiny_run / "weights" / "best.pt")
    flags = ["--device", "cpu", "--project", str(tmp_path), "--noplots", "--batch", "1"]
    val.main(["--weights", weights, *flags])
    assert log == ["asked", *["asked", "read"] * 3, "read"]
