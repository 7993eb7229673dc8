"""utils/checkpoint.py: what is saved comes back whole, damage is seen, and at any moment a sound file stands."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import resource
import stat
import sys
import zipfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from utils.checkpoint import (
    VERSION,
    TrainState,
    find_checkpoint,
    find_state,
    load_checkpoint,
    load_state,
    model_weights,
    restart_from,
    save_model,
    save_state,
)
from utils.ema import ModelEMA
from utils.errors import UserError
from utils.hyp import Hyp
from utils.optim import NamedOptimizerState, build_optimizer
from utils.options import TrainOptions
from utils.stopping import EarlyStopping

DESCRIPTION: dict[str, Any] = {
    "model": {"size": "n", "nc": 2, "backbone": "csp"},
    "names": ["cell", "platelet"],
    "imgsz": 320,
    "data": "bccd.yaml",
    "single_cls": False,
    "hyp": Hyp().to_dict(),
    "options": TrainOptions(data="bccd").to_dict(),
}
SHIPPED: dict[str, Any] = {**DESCRIPTION, "epoch": 2, "fitness": 0.5}


def run(width: int = 3, steps: int = 0) -> TrainState:
    """A run with all the components that train.py saves, after some steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width))
    optimizer = build_optimizer(model, Hyp(), 0.01, 0.05, fused=False)
    ema, stopping = ModelEMA(model, 0.9, 5.0), EarlyStopping(3)
    scheduler = LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
    state = TrainState(
        {
            "model": model,
            "ema": ema,
            "optimizer": NamedOptimizerState(model, optimizer),
            "scheduler": scheduler,
            "scaler": torch.amp.GradScaler("cpu"),
            "stopping": stopping,
        }
    )
    for step in range(steps):
        model(torch.full((1, 2, 5, 5), step + 1.0)).square().sum().backward()
        optimizer.step()
        ema.update_parameters(model)
        scheduler.step()
        stopping.update(step, step / 10)
        state.epoch, state.step, state.batch, state.seconds = step + 1, 10 * step + 3, 3, 1.5 * step
        state.means["loss"] = torch.tensor([0.1, 0.2, 0.3, step])
    return state


def equal(a: Any, b: Any) -> bool:
    """The same structure, types, and values to the last bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(equal(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """A sound `last.pt` after three epochs."""
    save_state(tmp_path / "last.pt", run(steps=3), DESCRIPTION)
    return tmp_path / "last.pt"


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """`last.pt` of epoch 2, and before it `last.previous.pt` of epoch 1."""
    for steps in (1, 2):
        save_state(tmp_path / "last.pt", run(steps=steps), DESCRIPTION)
    return tmp_path / "last.pt"


def epoch_of(path: Path) -> int:
    return load_checkpoint(path)["state"]["progress"]["epoch"]


def test_a_state_comes_back_whole(last: Path) -> None:
    saved, fresh = run(steps=3), run()
    content = load_state(last)
    assert not equal(fresh.state_dict(), saved.state_dict())
    fresh.load_state_dict(content["state"])
    assert equal(fresh.state_dict(), saved.state_dict())
    assert (fresh.epoch, fresh.batch, fresh.step, fresh.seconds) == (3, 3, 23, 3.0)
    assert fresh.components["stopping"].best_fitness == 0.2 and fresh.components["stopping"].best_epoch == 2
    assert fresh.components["ema"].updates == 3
    described = {key: value for key, value in content.items() if key in DESCRIPTION}
    assert equal(described, copy.deepcopy(DESCRIPTION))
    assert Hyp.from_dict(content["hyp"]) == Hyp()
    assert all(tensor.dtype != torch.float16 for tensor in content["state"]["components"]["model"].values())


def test_both_kinds_hold_nothing_but_tensors_and_plain_values(last: Path) -> None:
    save_model(last.with_name("best.pt"), run().components["model"].state_dict(), SHIPPED)
    for path, kind in ((last, "state"), (last.with_name("best.pt"), "model")):
        content = torch.load(path, weights_only=True)
        assert (content["lockstep"], content["kind"]) == (VERSION, kind)


def test_a_state_of_other_components_is_refused_before_anything_is_taken(last: Path) -> None:
    other = run()
    before = copy.deepcopy(other.state_dict())
    del other.components["scaler"]
    with pytest.raises(UserError, match="scaler"):
        other.load_state_dict(load_state(last)["state"])
    before["components"].pop("scaler")
    assert equal(other.state_dict(), before)


def test_a_run_without_scaled_gradients_goes_on_with_them_where_forced(last: Path) -> None:
    saved, other = load_state(last)["state"], run()
    saved["components"]["scaler"] = torch.amp.GradScaler("cpu", enabled=False).state_dict()
    before = other.components["scaler"].state_dict()
    with pytest.raises(UserError, match="the saved state of scaler does not fit this run"):
        other.load_state_dict(saved)
    other.load_state_dict(saved, forced=True)
    assert other.components["scaler"].state_dict() == before and other.step == saved["progress"]["step"]


def test_too_little_memory_for_a_state_is_no_fault_of_it(last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = run()

    def full(_: dict) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(other.components["ema"], "load_state_dict", full)
    with pytest.raises(torch.OutOfMemoryError):
        other.load_state_dict(load_state(last)["state"])


def test_a_model_comes_back_whole(tmp_path: Path) -> None:
    weights = run(steps=2).components["ema"].module.state_dict()
    save_model(tmp_path / "best.pt", weights, SHIPPED)
    content = load_checkpoint(tmp_path / "best.pt")
    assert equal(model_weights(content, "x.pt"), dict(weights)) and content["fitness"] == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"], "a model keeps no earlier one"


def test_the_weights_of_a_state_are_the_averaged_ones(last: Path) -> None:
    state = run(steps=3)
    weights = model_weights(load_state(last), "x.pt")
    assert equal(weights, dict(state.components["ema"].module.state_dict()))
    assert not torch.equal(weights["0.weight"], state.components["model"].state_dict()["0.weight"])


def test_the_one_before_is_kept_under_its_own_name(tmp_path: Path) -> None:
    path, previous = tmp_path / "last.pt", tmp_path / "last.previous.pt"
    save_state(path, run(steps=1), DESCRIPTION)
    assert not previous.exists()
    for steps in (2, 3):
        save_state(path, run(steps=steps), DESCRIPTION)
        assert (epoch_of(path), epoch_of(previous)) == (steps, steps - 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.previous.pt", "last.pt"], "nothing else is left"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.25, 0.5, 0.75, 0.95, 0.999])
def test_a_cut_off_file_is_not_sound(last: Path, share: float) -> None:
    whole = last.read_bytes()
    for size in {int(share * len(whole)), max(int(share * len(whole)) - 1, 0)}:
        last.write_bytes(whole[:size])
        with pytest.raises(UserError, match="last.pt: not a sound checkpoint") as error:
            load_checkpoint(last)
        assert "\n" not in str(error.value)


def seen(path: Path, whole: bytes, position: int, new: bytes) -> bool:
    """Write other bytes into the file: is it seen? If it is not, the content must be what it was."""
    path.write_bytes(whole[:position] + new + whole[position + len(new) :])
    try:
        content = load_checkpoint(path)
    except UserError:
        return True
    path.write_bytes(whole)
    assert equal(content, load_checkpoint(path)), f"{new[:8]!r} at {position} of {len(whole)} is believed"
    return False


def flip(path: Path, whole: bytes, position: int, mask: int) -> bool:
    return seen(path, whole, position, bytes([whole[position] ^ mask]))


def test_flipped_bytes_are_seen_or_harmless(last: Path) -> None:
    whole = last.read_bytes()
    flips = [flip(last, whole, len(whole) * part // 50 + part, 0xFF) for part in range(50)]
    assert sum(flips) > 20, "most of the file is checked; padding and spare fields are harmless"


def test_a_lost_sector_is_seen(last: Path) -> None:
    """What a crashed file system leaves: blocks of zeros in a file of the right length."""
    whole = last.read_bytes()
    for position in range(0, len(whole) - 512, 512):
        assert seen(last, whole, position, bytes(512))


def test_every_byte_of_the_stored_tensors_is_checked(last: Path) -> None:
    whole = last.read_bytes()
    with zipfile.ZipFile(last) as archive:
        for info in archive.infolist():
            name_and_extra = whole[info.header_offset + 26 : info.header_offset + 30]
            begin = info.header_offset + 30 + sum(int.from_bytes(name_and_extra[i : i + 2], "little") for i in (0, 2))
            if "/data/" in info.filename:
                assert flip(last, whole, begin, 0x01) and flip(last, whole, begin + info.file_size - 1, 0x80)


@pytest.mark.parametrize("bit", range(8))
def test_flipped_bits_of_the_table_of_contents_are_seen_or_harmless(last: Path, bit: int) -> None:
    """Here a bit makes of a stored entry a compressed or encrypted one, a folder, or another one's namesake."""
    whole = last.read_bytes()
    tensor = whole.index(b"archive/data/1", whole.index(b"PK\x01\x02")) - 46  # its entry in the table
    assert whole[tensor : tensor + 4] == b"PK\x01\x02"
    for position in (*range(tensor, tensor + 46 + 14), *range(len(whole) - 98, len(whole))):
        flip(last, whole, position, 1 << bit)


def test_an_entry_marked_as_a_folder_is_seen(last: Path) -> None:
    """Torch would take it for empty, without a word, and fill its tensor with whatever lies in memory."""
    whole = last.read_bytes()
    with zipfile.ZipFile(last) as archive:
        entries = len(archive.infolist())
    position = whole.index(b"PK\x01\x02")
    for _ in range(entries):
        assert flip(last, whole, position + 38, 0x10)
        position = whole.find(b"PK\x01\x02", position + 1)
    assert position == -1


def damage(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 :] = b""
    path.write_bytes(whole)


def test_a_damaged_state_falls_back_to_the_one_before(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_state(two)["state"]["progress"]["epoch"] == 2 and capsys.readouterr() == ("", "")
    damage(two)
    assert load_state(two)["state"]["progress"]["epoch"] == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("warning: ") and f"taking {two.with_name('last.previous.pt')}" in captured.err
    two.unlink()
    assert load_state(two)["state"]["progress"]["epoch"] == 1
    assert "no such checkpoint; taking" in capsys.readouterr().err


def test_a_damaged_state_never_takes_the_place_of_the_sound_one_before_it(two: Path) -> None:
    """Whatever ends the first save after it: the state before must outlast it."""
    damage(two)
    content, taken = find_state(two)
    assert taken == two.with_name("last.previous.pt") == find_state(taken)[1]
    state, sound = run(), taken.read_bytes()
    state.load_state_dict(content["state"])
    restart_from(taken, two, state, DESCRIPTION)
    assert taken.read_bytes() == sound  # it was not replaced by the damaged one
    assert load_checkpoint(two)["state"]["progress"]["epoch"] == 1
    damage(two)
    assert load_state(two)["state"]["progress"]["epoch"] == 1


def test_two_damaged_states_are_an_error(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(two)
    damage(two.with_name("last.previous.pt"))
    with pytest.raises(UserError, match="last.previous.pt: not a sound checkpoint"):
        load_state(two)
    assert "last.pt: not a sound checkpoint" in capsys.readouterr().err
    two.with_name("last.previous.pt").unlink()
    with pytest.raises(UserError, match="last.pt: not a sound checkpoint"):
        load_state(two)


def test_a_version_of_the_future_is_no_damage(two: Path) -> None:
    """Going back to the state before would throw away what the newer program trained."""
    content = load_checkpoint(two)
    torch.save({**content, "lockstep": VERSION + 1}, two)
    with pytest.raises(UserError, match=f"version {VERSION + 1}; this program reads version {VERSION}"):
        load_state(two)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such checkpoint"),
        (lambda path: path.mkdir(), "not a sound checkpoint"),
        (lambda path: path.write_bytes(b""), "not a sound checkpoint"),
        (lambda path: path.write_text("weights"), "not a sound checkpoint"),
        (lambda path: torch.save({"a": 1}, path, _use_new_zipfile_serialization=False), "not a sound checkpoint"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "hello"), "not a sound checkpoint"),
        (lambda path: torch.save({"model": {}}, path), "not a Lockstep checkpoint"),
        (lambda path: torch.save(torch.zeros(3), path), "not a Lockstep checkpoint"),
        (os.mkfifo, "not a sound checkpoint"),
    ],
)
def test_what_is_no_checkpoint_of_ours(tmp_path: Path, write: Callable[[Path], Any], message: str) -> None:
    path = tmp_path / "x.pt"
    write(path)
    for load in (load_checkpoint, load_state):
        with pytest.raises(UserError) as error:
            load(path)
        assert str(error.value).startswith(f"{path}: {message}") and "\n" not in str(error.value)


@pytest.mark.parametrize("module", ["models.yolo", "ultralytics.nn.tasks", None, "mine"])
def test_weights_of_the_programs_that_users_come_from(
    tmp_path: Path, module: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They save whole nets by the name of their class, or dictionaries of tensors (None)."""
    path, content = tmp_path / "yolov8n.pt", {"model": {"0.conv.weight": torch.zeros(2)}}
    if module:
        net = type("DetectionModel", (), {"__module__": module})
        for parent in accumulate(module.split("."), "{}.{}".format):
            monkeypatch.setitem(sys.modules, parent, SimpleNamespace(DetectionModel=net, __path__=[]))
        content = {"model": net()}
    torch.save(content, path)
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert ("YOLOv5, YOLOv7 and Ultralytics" in str(error.value)) == (module != "mine")


def test_a_folder_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = tmp_path / "last.pt"
    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"last\.pt: not a sound checkpoint \(.*Permission denied\)"):
        load_state(path)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("wrapping", ["torch", "torch of ours", "pickle", "zipped pickle"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, wrapping: str) -> None:
    path, sprung = tmp_path / "x.pt", tmp_path / "sprung"
    trap = {"lockstep": VERSION, "kind": "state", "state": Trap(sprung)} if "ours" in wrapping else Trap(sprung)
    if wrapping.startswith("torch"):
        torch.save(trap, path)
    elif wrapping == "pickle":
        path.write_bytes(pickle.dumps(trap))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", pickle.dumps(trap, protocol=2))
            archive.writestr("x/version", "3")
    for load in (load_checkpoint, load_state):
        with pytest.raises(UserError, match="not a sound checkpoint"):
            load(path)
    assert not sprung.exists()
    os.mkdir(sprung)
    assert sprung.exists(), "the trap would have worked"


def test_resuming_from_a_model_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    save_model(path, run().components["model"].state_dict(), SHIPPED)
    with pytest.raises(UserError) as error:
        load_state(path)
    assert f"--weights {path}" in str(error.value) and "--resume continues from last.pt" in str(error.value)


def fail(number: int) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("where", "name", "number"),
    [(os, "fsync", errno.EIO), (os, "replace", errno.EACCES), (Path, "open", errno.EROFS), (torch, "save", errno.EIO)],
)
def test_a_failed_write_leaves_the_old_file(
    two: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fail(number))
        with pytest.raises(UserError) as error:
            save_state(two, run(steps=7), DESCRIPTION)
    assert os.strerror(number) in str(error.value) and str(two) in str(error.value)
    assert str(error.value).endswith("; the one before it stands")
    assert epoch_of(two) == 2 and epoch_of(two.with_name("last.previous.pt")) in (1, 2)
    assert sorted(path.name for path in two.parent.iterdir()) == ["last.previous.pt", "last.pt"]


def test_a_full_disk_leaves_the_old_file(two: Path) -> None:
    """The system itself refuses: no file may grow past a bound that lies below the new checkpoint's size."""
    before = two.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        with pytest.raises(UserError, match="could not be written"):
            save_state(two, run(width=20_000), DESCRIPTION)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert two.read_bytes() == before
    assert sorted(path.name for path in two.parent.iterdir()) == ["last.previous.pt", "last.pt"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.last\.pt: the checkpoint could not be written") as error:
        save_state(tmp_path / "nowhere" / "last.pt", run(), DESCRIPTION)
    assert "the one before it stands" not in str(error.value), "there is none"


class PowerCut(BaseException):
    """Nothing after it is run: no handler of ours catches it."""


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
@pytest.mark.parametrize("number", [1, 2])
def test_whenever_the_power_goes_a_sound_state_stands(
    two: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    real, calls = getattr(os, call), []

    def cut(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == number:
            raise PowerCut
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, cut)
        try:
            save_state(two, run(steps=3), DESCRIPTION)
        except PowerCut:
            pass
        else:
            assert (call, number) == ("link", 2), "there is but one"
    assert epoch_of(two) in (2, 3)
    assert epoch_of(two.with_name("last.previous.pt")) in (1, 2)
    save_state(two, run(steps=4), DESCRIPTION)
    assert epoch_of(two) == 4, "what lies about does not stand in the way"
    assert sorted(path.name for path in two.parent.iterdir()) == ["last.previous.pt", "last.pt"]


def test_the_file_is_on_disk_before_its_name_is_and_the_name_before_we_go_on(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str | int]] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        events.append(("fsync", "folder" if stat.S_ISDIR(status.st_mode) else status.st_size))
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        events.append(("replace", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    save_state(two, run(steps=3), DESCRIPTION)
    size = two.stat().st_size
    assert events == [
        ("fsync", size),  # the whole file, so everything was written before
        ("replace", "last.previous.pt"),
        ("replace", "last.pt"),
        ("fsync", "folder"),
    ]


def test_a_file_system_without_hard_links(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", fail(errno.EPERM))
    save_state(two, run(steps=3), DESCRIPTION)
    assert epoch_of(two) == 3


def test_a_file_system_that_does_not_flush_folders(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems answer EINVAL; the new file stands all the same."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    save_state(two, run(steps=3), DESCRIPTION)
    assert epoch_of(two) == 3


def test_a_checkpoint_that_is_not_there_names_what_may_be_meant(tmp_path):
    run = tmp_path / "exp"
    (run / "weights").mkdir(parents=True)
    for folder in (run, run / "weights"):
        with pytest.raises(UserError, match=f"--weights {folder}: a folder, not a checkpoint$"):
            find_checkpoint(str(folder))
    best = run / "weights" / "best.pt"
    best.write_bytes(b"")
    for folder in (run, run / "weights"):
        with pytest.raises(UserError, match=f"a folder, not a checkpoint; did you mean '{best}'"):
            find_checkpoint(str(folder))
    with pytest.raises(UserError, match="no such file; did you mean 'best.pt'"):
        find_checkpoint(str(run / "weights" / "bets.pt"))
    assert find_checkpoint(str(best)) == best


@pytest.mark.parametrize("name", ["step", "get_last_lr", "state_dict"])
def test_a_state_that_would_hide_a_method_is_refused(name: str) -> None:
    """torch's schedulers take a saved state into their `__dict__` as it is."""
    state, saved = run(steps=1), run(steps=1).state_dict()
    saved["components"]["scheduler"][name] = 0
    with pytest.raises(UserError, match=f"the saved state of scheduler does not fit this run: it has {name}$"):
        state.load_state_dict(saved)


@pytest.mark.parametrize("kind", ["model", "state"])
def test_weights_that_are_no_numbers_are_not_used(last: Path, kind: str) -> None:
    weights = {"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])}
    ema = {"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in weights.items()}}
    content = {"kind": kind, "weights": weights, "state": {"components": {"ema": ema}}}
    with pytest.raises(UserError, match=r"best.pt: its weights are not finite \(b\): of a training that diverged"):
        model_weights(content, "best.pt")
