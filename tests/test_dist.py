"""utils/dist.py: nothing happens in a single process; two processes agree with one that sees all the data."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.utils import _to_kwargs

from models.loss import DetectionLoss
from models.yolo import YOLO, ModelConfig
from utils import dist
from utils.errors import UserError
from utils.hyp import Hyp

CPU = torch.device("cpu")
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

# What each of two processes does: it prints what it got.
PROCESS = """
import json, os, sys
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from utils import dist

cpu = torch.device("cpu")
dist.start(cpu)
dist.start(cpu)  # a second time is harmless
me = dist.rank()
out = {"rank": me, "local": dist.local_rank(), "size": dist.world_size(), "main": dist.is_main()}
out["from_main"] = dist.from_main({"stop": True, "best": 0.25} if me == 0 else None)
values = torch.tensor([1.0 + me, 10.0 * me])
out["here"] = [dist.is_first_here(), dist.from_first_here(f"of {me}")]
out["any"] = [dist.any_process(me == 1), dist.any_process(False)]
out["mean"], out["in_place"] = dist.mean(values).tolist(), values.tolist()
torch.manual_seed(me)  # each its own weights: those of the main process count
model = nn.Linear(2, 1)
wrapped = dist.wrap(model, cpu)
out["start"] = model.weight.tolist()
images = torch.tensor([[1.0, 2.0], [3.0, -1.0]])[me : me + 1]
sent = []
wrapped.register_comm_hook(None, lambda _, bucket: sent.append(1) or allreduce_hook(None, bucket))
for now in (False, False, True):  # three batches of a step, the same one again
    with dist.averaging(wrapped, now):
        wrapped(images).square().mean().backward()
    sent.append(now)
out["sent"], out["added"] = [*sent], model.weight.grad.tolist()
model.zero_grad()
wrapped(images).square().mean().backward()
out["weight_grad"], out["bias_grad"] = model.weight.grad.tolist(), model.bias.grad.tolist()
dist.barrier()
dist.stop()
dist.stop()
out["left"] = not torch.distributed.is_initialized()
print(json.dumps(out), flush=True)
os._exit(0)  # on a busy machine torch's own threads may abort a process on its way out, long after what is tested
"""


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
def test_in_a_single_process_nothing_happens() -> None:
    assert (dist.rank(), dist.local_rank(), dist.world_size(), dist.is_main()) == (0, 0, 1, True)
    dist.start(CPU)
    assert not torch.distributed.is_initialized()
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    assert dist.wrap(dist.synchronised(model, CPU), CPU) is model and type(model[1]) is nn.BatchNorm2d
    value, values = object(), torch.tensor([1.0, 2.0])
    assert dist.from_main(value) is value and dist.from_first_here(value) is value and dist.is_first_here()
    assert dist.mean(values) is values and values.tolist() == [1.0, 2.0]
    assert dist.any_process(True) and not dist.any_process(False)
    dist.barrier()
    dist.stop()


@pytest.mark.usefixtures("alone")
def test_the_variables_of_torchrun_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert (dist.rank(), dist.local_rank(), dist.world_size(), dist.is_main()) == (5, 1, 8, False)
    monkeypatch.setenv("RANK", "0")
    assert dist.is_main()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_together(code: str, count: int = 2, **variables: str) -> list[dict[str, Any]]:
    """What processes print that run `code` together, as JSON in their last line, the main one first."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared["OMP_NUM_THREADS"] = "1"
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=Path(__file__).resolve().parents[1],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(error[-2000:] for _, error in ends)
    return [json.loads(out.splitlines()[-1]) for out, _ in ends]


@pytest.fixture(scope="module")
def pair() -> list[dict[str, Any]]:
    return run_together(PROCESS)


def test_two_processes_know_who_they_are(pair: list[dict[str, Any]]) -> None:
    assert [(out["rank"], out["local"], out["size"], out["main"]) for out in pair] == [
        (0, 0, 2, True),
        (1, 1, 2, False),
    ]
    assert all(out["left"] for out in pair)


def test_what_the_main_process_says_holds_for_all(pair: list[dict[str, Any]]) -> None:
    assert [out["from_main"] for out in pair] == [{"stop": True, "best": 0.25}] * 2


def test_what_the_first_process_of_a_machine_says_holds_there(pair: list[dict[str, Any]]) -> None:
    assert [out["here"] for out in pair] == [[True, "of 0"], [False, "of 0"]]


def test_each_machine_has_a_first_process() -> None:
    """Two machines of one process each."""
    pair = run_together(PROCESS, LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    assert [out["here"] for out in pair] == [[True, "of 0"], [True, "of 1"]]


def test_the_mean_over_processes(pair: list[dict[str, Any]]) -> None:
    assert [out["any"] for out in pair] == [[True, False]] * 2
    assert [out["mean"] for out in pair] == [out["in_place"] for out in pair] == [[1.5, 5.0]] * 2


def test_gradients_are_those_of_one_process_with_all_the_data(pair: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    model(torch.tensor([[1.0, 2.0], [3.0, -1.0]])).square().mean().backward()
    for out in pair:
        assert out["start"] == model.weight.tolist(), "all start from the main process's weights"
        assert out["weight_grad"] == [pytest.approx(model.weight.grad[0].tolist(), rel=1e-5)]
        assert out["bias_grad"] == pytest.approx(model.bias.grad.tolist(), rel=1e-5)


def test_gradients_are_sent_once_an_optimizer_step(pair: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    (3 * model(torch.tensor([[1.0, 2.0], [3.0, -1.0]])).square().mean()).backward()
    for out in pair:
        assert out["sent"] == [False, False, 1, True]
        assert out["added"] == [pytest.approx(model.weight.grad[0].tolist(), rel=1e-5)]


ANEW = """
import copy, json, os
import torch
from torch import nn
from utils import dist

cpu = torch.device("cpu")
dist.start(cpu)

class Turned(nn.Module):  # its layers are used in another order than they are made in
    def __init__(self):
        super().__init__()
        self.last, self.frozen, self.first = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(16, 64)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.frozen(self.last(self.first(x)))

def gradients(wrapped):
    wrapped.zero_grad()
    wrapped(images).square().mean().backward()
    return [p.grad.clone() for p in wrapped.parameters() if p.requires_grad]

torch.manual_seed(0)
model = Turned()
images = torch.randn(dist.world_size(), 32, 16)[dist.rank()]
whole = dist.wrap(copy.deepcopy(model), cpu)
clean = all(p.grad is None for p in whole.parameters())
for _ in range(3):
    expected = gradients(whole)
resumed = gradients(dist.wrap(copy.deepcopy(model), cpu))
same = [torch.equal(a, b) for a, b in zip(expected, resumed, strict=True)]
print(json.dumps({"same": same, "clean": clean}), flush=True)
os._exit(0)
"""


def test_the_first_step_of_a_resumed_run_sums_as_that_of_a_run_under_way() -> None:
    """Of three numbers the order matters, and torch puts the gradients in another order after a model's first pass."""
    for out in run_together(ANEW, count=3):
        assert out == {"same": [True] * 4, "clean": True}


class AsOnCuda(nn.Module):
    """What torch's wrapper does with its arguments where it has a device."""

    def __init__(self, module: nn.Module, **_: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        moved, named = _to_kwargs(inputs, {}, CPU, False)
        return self.module(*moved[0], **named[0])


def test_a_model_is_wrapped_on_cuda_and_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "DistributedDataParallel", AsOnCuda)
    model = nn.Linear(2, 1)
    wrapped = dist.wrap(model, CPU)
    assert wrapped.module is model and "forward" not in vars(model)
    assert torch.equal(wrapped(torch.ones(1, 2)), model.weight.sum()[None, None] + model.bias)
    assert all(p.grad is None for p in model.parameters())


TRAINING = """
import hashlib, json, os, sys
import train

finished, found = train.fit, {}

def fit(training, *others):
    finished(training, *others)
    values = {name: value.tolist() for name, value in training.ema.module.named_parameters()}
    found["weights"] = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    found["steps"], found["accumulate"] = training.state.step, training.accumulate

train.fit = fit
train.main(sys.argv[1:])
print(json.dumps(found), flush=True)
os._exit(0)
"""


def test_processes_that_accumulate_have_the_same_weights(tiny_data: Path, tmp_path: Path) -> None:
    """Twelve images, two a process and batch: three batches an epoch, in steps of two and one."""
    argv = ["--data", str(tiny_data), "--img", "64", "--batch", "4", "--epochs", "2", "--workers", "0", "--noplots"]
    argv += ["--device", "cpu", "--project", str(tmp_path), "--set", "nominal_batch=8", "warmup_epochs=0"]
    code = TRAINING.replace("sys.argv[1:]", repr(argv))
    main, other = run_together(code)
    assert main == other and (main["steps"], main["accumulate"]) == (4, 2)


LEFT = """
import json, os, sys
import torch
from utils import dist
from utils.errors import UserError

dist.start(torch.device("cpu"))
dist.barrier()
said = []
if dist.rank() == 0:
    try:
        with dist.among_others():
            while True:
                CALL
    except UserError as error:
        said = [str(error), type(error.__cause__).__name__]
print(json.dumps(said), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("call", ["dist.mean(torch.ones(2))", "dist.any_process(True)", "dist.barrier()"])
def test_who_is_left_alone_ends_in_a_line(call: str) -> None:
    main, _ = run_together(LEFT.replace("CALL", call))
    assert main[0] == "process 0 ends, since another process of this training has ended"
    assert main[1] != "UserError"


def test_a_batch_without_boxes_leaves_no_parameter_without_a_gradient() -> None:
    """`wrap` counts on it: a process that waited for a missing gradient would wait for ever."""
    model = YOLO(ModelConfig("n", 3))
    loss = DetectionLoss(Hyp(), 3)(model(torch.zeros(1, 3, 64, 64)), torch.zeros(1, 1, 4), torch.full((1, 1), -1))
    loss.total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("size", "here", "expected"),
    [
        ("1", "1", "python"),
        ("2", "2", "torchrun --nproc-per-node 2"),
        ("8", "4", "torchrun --nnodes 2 --nproc-per-node 4"),
    ],
)
def test_a_run_is_started_again_as_it_was(size: str, here: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert dist.launcher() == expected


STOPPED = """
import json, os, signal, sys
import train
from utils import signals
from utils.errors import Stopped
from utils.keeper import Keeper

original = Keeper.after_step

def after_step(keeper):
    if keeper.state.step == STOP:
        os.kill(os.getpid(), signal.SIGTERM)
    original(keeper)

Keeper.after_step = after_step
signals.catch()
code = 0
try:
    train.main(ARGV)
except Stopped as stopped:
    code = stopped.code
print(json.dumps(code), flush=True)
os._exit(0)
"""


@pytest.mark.torture
def test_processes_that_were_stopped_log_the_losses_of_those_that_were_not(tiny_data: Path, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, whose mean losses are of what both processes saw before and after."""
    argv = ["--data", str(tiny_data), "--img", "64", "--batch", "4", "--epochs", "2", "--workers", "0", "--noplots"]
    argv += ["--device", "cpu", "--project", str(tmp_path)]

    def pair_of(argv: list[str], stop: int) -> list[int]:
        return run_together(STOPPED.replace("ARGV", repr(argv)).replace("STOP", str(stop)))

    assert pair_of([*argv, "--name", "whole"], 0) == [0, 0]
    assert pair_of([*argv, "--name", "parts"], 5) == [75, 75]
    assert pair_of(["--resume", str(tmp_path / "parts")], 0) == [0, 0]
    tables = []
    for name in ("whole", "parts"):
        with (tmp_path / name / "results.csv").open(newline="") as file:
            tables.append([{key: value for key, value in row.items() if key != "time"} for row in csv.DictReader(file)])
    assert tables[0] == tables[1] and len(tables[0]) == 2


def test_batch_norm_over_all_devices_needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    assert dist.synchronised(model, torch.device("cpu")) is model  # a single process has nothing to do
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    with pytest.raises(UserError, match="--sync-bn: works on CUDA devices only, and this training is on cpu"):
        dist.synchronised(model, torch.device("cpu"))
    (norm,) = dist.synchronised(model, torch.device("cuda"))
    assert isinstance(norm, torch.nn.SyncBatchNorm)
