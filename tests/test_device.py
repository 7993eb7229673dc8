"""utils/device.py: the device that was named or none, and the precision that goes with it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import detect
import train
import val
from utils.device import Precision, _side_stream, compile_regions, prefetch, select_device, within_memory
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with two CUDA devices, as far as selection can tell; the list takes those that were made current."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def native_bf16(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "cuda:0"), ("0", "cuda:0"), ("1", "cuda:1"), ("cuda:1", "cuda:1"), ("CUDA", "cuda:0"), ("cpu", "cpu")],
)
def test_one_process(text: str, expected: str, gpus: list[torch.device]) -> None:
    device = select_device(text)
    assert device == torch.device(expected)
    assert gpus == ([device] if device.type == "cuda" else []), "the device used is the current one"


@pytest.mark.parametrize("text", ["", "0,1", "cuda:0,1", " 0, 1 "])
def test_a_device_for_each_process(text: str, gpus: list[torch.device]) -> None:
    assert [select_device(text, rank, 2) for rank in (0, 1)] == [torch.device("cuda", 0), torch.device("cuda", 1)]


def test_the_order_of_the_list_counts(gpus: list[torch.device]) -> None:
    assert select_device("1,0", local_rank=0, processes=2) == torch.device("cuda", 1)


def test_processes_may_share_the_cpu(no_gpu: None) -> None:
    assert select_device("", 1, 2) == select_device("cpu", 1, 2) == CPU


@pytest.mark.parametrize(
    ("text", "processes", "words"),
    [
        ("2", 1, "sees 2 CUDA device.* allowed here: cpu, 0, 1"),
        ("0,2", 2, "sees 2 CUDA device"),
        ("", 3, "--device 2: not there"),
        ("0,1", 1, "names 2 device.* torchrun --nproc-per-node 2"),
        ("0", 2, r"names 1 device\(s\) for 2 process"),
        ("0,0", 2, "not a device"),
        ("0,", 1, "not a device"),
        ("-1", 1, "not a device"),
        ("gpu", 1, "not a device; allowed here: cpu, 0, 1"),
        ("cuda:x", 1, "not a device"),
        ("²", 1, "not a device"),
    ],
)
def test_a_device_that_is_not_there(text: str, processes: int, words: str, gpus: list[torch.device]) -> None:
    with pytest.raises(UserError, match=words):
        select_device(text, 0, processes)


def test_without_cuda_nothing_takes_its_place(no_gpu: None) -> None:
    assert select_device("") == CPU
    for text in ("0", "cuda", "cuda:0"):
        with pytest.raises(UserError, match="sees 0 CUDA device"):
            select_device(text)


def test_metal_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="no Metal device"):
        select_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert select_device("mps") == torch.device("mps")


@pytest.mark.parametrize(("mode", "dtype"), [("auto", torch.float32), ("off", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_on_the_cpu(mode: str, dtype: torch.dtype) -> None:
    precision = Precision(CPU, mode)
    with precision.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == precision.dtype == dtype
    assert not precision.scaler.is_enabled()
    assert precision.description.startswith({torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype])


@pytest.mark.parametrize(
    ("capability", "allowed", "words"),
    [((8, 0), True, "fp32, convolutions in TF32"), ((8, 0), False, "fp32"), ((7, 5), True, "fp32")],
)
def test_fp32_on_cuda_says_what_convolutions_compute_in(
    capability: tuple[int, int], allowed: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_bf16(monkeypatch, capability >= (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    with torch.backends.cudnn.flags(allow_tf32=allowed):
        assert Precision(torch.device("cuda", 0), "off").description == words


def test_fp32_means_fp32_within_an_autocast_of_others() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), Precision(CPU, "off").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_scaler_that_is_off_lets_losses_and_steps_through() -> None:
    scaler = Precision(CPU).scaler
    weight = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scaler.scale(weight * 3).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert weight.item() == 1.0 - 0.5 * 3


@pytest.mark.parametrize(
    ("mode", "native", "expected", "scaled"),
    [
        *(("auto", True, "bf16", False), ("auto", False, "fp16", True), ("fp16", True, "fp16", True)),
        *(("bf16", True, "bf16", False), ("off", True, "off", False)),
    ],
)
def test_precision_on_cuda(
    mode: str, native: bool, expected: str, scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_bf16(monkeypatch, native)
    asked: list[bool] = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: asked.append(enabled))
    assert Precision(torch.device("cuda", 0), mode).mode == expected
    assert asked == [scaled]


def test_precision_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    native_bf16(monkeypatch, False)
    for device, mode, words in [
        ("cpu", "fp16", "needs a CUDA device, and this run is on cpu"),
        ("mps", "bf16", "--amp bf16: not on mps; allowed: off"),
        ("cuda:0", "bf16", "does not compute in it; allowed: fp16, off"),
        ("cpu", "fp8", "allowed: auto, off, fp16, bf16"),
    ]:
        with pytest.raises(UserError, match=words):
            Precision(torch.device(device), mode)


@pytest.mark.cuda
@pytest.mark.parametrize(("mode", "dtype"), [("fp16", torch.float16), ("off", torch.float32)])
def test_a_step_on_a_real_device(mode: str, dtype: torch.dtype) -> None:
    device = select_device("0")
    precision = Precision(device, mode)
    layer = torch.nn.Linear(4, 1, device=device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.weight.clone()
    with precision.autocast():
        output = layer(torch.ones(2, 4, device=device))
    assert output.dtype == dtype and precision.scaler.is_enabled() == (mode == "fp16")
    precision.scaler.scale(output.float().mean() / 4).backward()  # more would be no fp16 number once scaled
    precision.scaler.step(optimizer)
    precision.scaler.update()
    torch.testing.assert_close(layer.weight, before - 0.025)


@pytest.mark.cuda
def test_auto_is_bf16_where_the_device_computes_in_it() -> None:
    native = torch.cuda.get_device_capability(0) >= (8, 0)
    assert Precision(select_device("0")).mode == ("bf16" if native else "fp16")


def check_that_memory_is_kept(module: str, call: str) -> None:
    """After a call, pages are no longer fetched from the kernel: counted in a process of its own, as it stays so."""
    code = f"""
import resource, torch, {module}

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
without = faults()
{module}.{call}
print(without, [faults() for _ in range(30)][-1])  # the first find no room that is large enough yet
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    without, kept = map(int, out)
    if without < 1000:
        pytest.skip("this C library keeps memory by itself")
    assert kept < without / 10


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's switch")
def test_kept_memory_is_not_fetched_anew() -> None:
    check_that_memory_is_kept("utils.device", "keep_freed_memory()")


@dataclass(frozen=True)
class One:
    """A batch of a single tensor."""

    x: torch.Tensor

    def to(self, device: torch.device) -> One:
        return One(self.x.to(device))


def test_prefetch_on_a_cpu_asks_for_a_batch_when_it_is_wanted() -> None:
    asked: list[int] = []

    def source() -> Iterator[One]:
        for i in range(3):
            asked.append(i)
            yield One(torch.tensor(i))

    for expected, batch in enumerate(prefetch(source(), CPU)):
        assert int(batch.x) == expected and asked[-1] == expected


class Watched(torch.Tensor):
    """A tensor that notes which stream it is said to be used on, and where it is copied."""

    log: list[str] = []

    def record_stream(self, stream: SimpleNamespace) -> None:
        self.log.append(f"used on {stream.name}")


def test_prefetch_copies_on_a_stream_of_its_own_and_the_other_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of what is asked of CUDA, with streams that only take notes."""
    log = Watched.log
    log.clear()
    side = SimpleNamespace(name="side")
    current = SimpleNamespace(name="main", wait_stream=lambda stream: log.append(f"main waits for {stream.name}"))

    @contextlib.contextmanager
    def stream(which: SimpleNamespace) -> Iterator[None]:
        log.append(f"enter {which.name}")
        yield
        log.append(f"leave {which.name}")

    _side_stream.cache_clear()
    made: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or side)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(One, "to", lambda self, device: log.append("copy") or self)
    for _ in range(2):  # epochs
        for _ in prefetch([One(torch.zeros(2).as_subclass(Watched)) for _ in range(2)], torch.device("cuda", 0)):
            log.append("compute")
    _side_stream.cache_clear()
    one = ["enter side", "copy", "leave side", "main waits for side", "used on main", "compute"]
    assert log == one * 4 and made == [torch.device("cuda", 0)]


@pytest.mark.cuda
def test_prefetch_on_a_gpu_hands_over_what_was_there() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    batches = [One(torch.full((1 << 18,), float(i)).pin_memory()) for i in range(8)]
    sums = [(batch.x @ batch.x) for batch in prefetch(batches, device)]
    assert [float(x) for x in sums] == [float(i * i * (1 << 18)) for i in range(8)]


def too_much_of_torch() -> None:
    torch.empty(2**48, dtype=torch.uint8)


def too_much_of_numpy() -> None:
    np.ones(2**48, np.uint8)


def too_much_of_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has some.\nSee its manual")


@pytest.mark.parametrize("call", [too_much_of_torch, too_much_of_numpy, too_much_of_a_gpu])
def test_too_little_memory_is_said_in_a_line(call: Callable[[], None]) -> None:
    with pytest.raises(UserError, match=r"^the memory is too small: buy some \(.*[Aa]llocate.*\)$") as error:
        within_memory("buy some")(call)()
    assert "\n" not in str(error.value)


def test_other_errors_than_of_memory_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="^of another kind$"), within_memory("buy some"):
        raise RuntimeError("of another kind")


@pytest.mark.parametrize("program", [train, val, detect])
def test_the_programs_say_so(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").touch()
    monkeypatch.setattr(program, "select_device", lambda *_: too_much_of_a_gpu())
    argv = ["--data", "shapes"] if program is train else ["--weights", "x.pt"]
    with pytest.raises(UserError, match="too small: a smaller .*--imgsz needs less.*CUDA out of memory"):
        program.main([*argv, *["--source", str(tmp_path)] * (program is detect), "--device", "cpu"])


def test_compiled_modules_keep_names_copies_and_results(monkeypatch: pytest.MonkeyPatch) -> None:
    import copy

    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.SiLU())
    whole = torch.nn.Sequential(copy.deepcopy(plain), torch.nn.Linear(4, 2))
    monkeypatch.setattr(torch, "compile", lambda function: function)  # no compiler is needed for what is tested here
    compiled: list[tuple[torch.nn.Module, bool | None]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, dynamic: compiled.append((self, dynamic)))
    names = list(whole.state_dict())
    for fixed in (True, False):
        compile_regions([whole[0]], CPU, fixed)
    assert compiled == [(whole[0], False), (whole[0], None)] and list(whole.state_dict()) == names


def test_a_machine_that_cant_compile_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object) -> object:
        def call(*_: object) -> None:
            raise RuntimeError("No working C++ compiler found\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"^--compile: torch can't compile here \(No working C\+\+ compiler found\)"):
        compile_regions([], CPU, True)
