"""utils/rundir.py: numbering of run folders, which run `--resume` means, and who is kept out of one."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from utils.errors import UserError
from utils.rundir import RunDir, RunLock, distinct, new_run, newest_run, resolve_resume

ROOT = Path(__file__).resolve().parents[1]


def saved(project: Path, name: str, time: int) -> Path:
    """A run whose last checkpoint was written at `time`."""
    checkpoint = RunDir(project / name).weights / "last.pt"
    checkpoint.write_bytes(b"state")
    os.utime(checkpoint, (time, time))
    return checkpoint


def test_runs_are_numbered_as_in_yolov5(tmp_path: Path) -> None:
    names = [new_run(tmp_path / "runs" / "train").path.name for _ in range(3)]
    assert names == ["exp", "exp2", "exp3"]
    (tmp_path / "runs" / "train" / "exp2").rmdir()
    assert new_run(tmp_path / "runs" / "train").path.name == "exp2", "the first free number is taken"
    assert new_run(tmp_path / "runs" / "train", "v1.5").path.name == "v1.5"
    assert new_run(tmp_path / "runs" / "train", "v1.5").path.name == "v1.52"


def test_the_weights_folder_is_there_once_it_is_asked_for(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert list(run.path.iterdir()) == []
    assert run.weights == tmp_path / "exp" / "weights" and run.weights.is_dir()


def test_exist_ok_writes_into_the_same_folder(tmp_path: Path) -> None:
    first = new_run(tmp_path, exist_ok=True)
    assert first == new_run(tmp_path, exist_ok=True) == RunDir(tmp_path / "exp")
    first.write_options({"epochs": 3})
    first.write_text("results.csv", "")
    assert new_run(tmp_path, exist_ok=True) == first
    assert first.weights.is_dir()  # it is a training's now
    first.write_options({"epochs": 4})
    assert "epochs: 3" in (first.path / "opt.yaml").read_text()


def test_exist_ok_writes_into_no_folder_that_is_not_a_runs(tmp_path: Path) -> None:
    """`detect.py --exist-ok` would write its pictures over those that it was given."""
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "a.jpg").write_text("mine")
    with pytest.raises(UserError, match="exp is no run's folder: nothing is written among the files in it"):
        new_run(tmp_path, exist_ok=True)


def test_checkpoints_of_the_run_before_are_removed_and_nothing_else(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "exp")
    mine = ["my.pt", "best.onnx", "epoch.pt", "notes.txt"]
    for name in ("last.pt", "last.previous.pt", "best.pt", "epoch12.pt", "epoch12.previous.pt", "rollback.pt", *mine):
        (run.weights / name).touch()
    run.forget_weights(keep=str(run.weights / "best.pt"))  # which the new one starts from
    assert {path.name for path in run.weights.iterdir()} == {*mine, "best.pt"}
    run.forget_weights()
    assert {path.name for path in run.weights.iterdir()} == set(mine)


def test_runs_started_at_once_get_a_folder_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: new_run(tmp_path).path.name, range(16)))
    assert sorted(paths) == sorted(["exp"] + [f"exp{number}" for number in range(2, 17)])


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for make in (
        lambda: new_run(tmp_path / "file"),
        lambda: new_run(tmp_path, "file", exist_ok=True),
        lambda: RunDir(tmp_path / "file" / "x"),
    ):
        with pytest.raises(UserError, match="cannot be made"):
            make()
    for name in ("", " ", "."):
        with pytest.raises(UserError, match="--name"):
            new_run(tmp_path, name)


def test_a_file_in_the_way_of_a_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "exp").write_text("mine")
    assert new_run(tmp_path).path.name == "exp2" and (tmp_path / "exp").read_text() == "mine"


def test_yaml_is_written_whole_with_its_header(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "exp")
    values = {"z": 1, "a": [1, 2], "name": "Größe", "none": None, "yes": True, "lr": 1e-05}
    file = run.write_yaml("opt.yaml", values, header="Options of this run.\n\nTyped: --epochs")
    assert file.read_text("utf-8").startswith("# Options of this run.\n#\n# Typed: --epochs\nz: 1\n")
    read = yaml.safe_load(file.read_text("utf-8"))
    assert read == values and list(read) == list(values)
    run.write_yaml("opt.yaml", {"z": 2})
    assert file.read_text() == "z: 2\n"
    assert sorted(path.name for path in run.path.iterdir()) == ["opt.yaml"], "nothing temporary is left"


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "exp")
    run.write_text("hyp.yaml", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"hyp.yaml: cannot be written: No space left on device"):
        run.write_text("hyp.yaml", "new")
    assert (run.path / "hyp.yaml").read_text() == "old"
    assert sorted(path.name for path in run.path.iterdir()) == ["hyp.yaml"]


def test_the_newest_run_is_the_one_saved_last(tmp_path: Path) -> None:
    assert newest_run(tmp_path) is None and newest_run(tmp_path / "none") is None
    saved(tmp_path, "exp", 3000)
    saved(tmp_path, "exp2", 1000)
    saved(tmp_path, "deep/exp9", 2000)
    RunDir(tmp_path / "exp3")  # made, never saved
    assert newest_run(tmp_path) == tmp_path / "exp"
    saved(tmp_path, "exp2", 4000)
    assert newest_run(tmp_path) == tmp_path / "exp2"
    assert resolve_resume("", tmp_path) == resolve_resume(True, tmp_path) == tmp_path / "exp2" / "weights" / "last.pt"


def test_a_run_that_lost_its_last_state_is_found_by_the_one_before(tmp_path: Path) -> None:
    saved(tmp_path, "exp", 1000)
    saved(tmp_path, "exp2", 2000)
    last = tmp_path / "exp2" / "weights" / "last.pt"
    last.rename(last.with_name("last.previous.pt"))
    for words in ("", "exp2", tmp_path / "exp2", last.parent, last):
        assert resolve_resume(words, tmp_path) == last


def test_every_way_to_name_a_run(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, "exp7", 1000)
    saved(tmp_path, "exp8", 2000)
    for arg in (checkpoint, checkpoint.parent, checkpoint.parents[1], "exp7"):
        assert resolve_resume(str(arg), tmp_path) == checkpoint
    other = checkpoint.with_name("epoch3.pt")
    other.write_bytes(b"")
    assert resolve_resume(str(other), tmp_path) == other


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--resume: no run in .* give --resume PATH"):
        resolve_resume("", tmp_path)
    saved(tmp_path, "small-first", 1000)
    with pytest.raises(UserError, match=r"small-frst: no such file or folder; did you mean 'small-first'\?"):
        resolve_resume("small-frst", tmp_path)
    RunDir(tmp_path / "empty")
    with pytest.raises(UserError, match="saved no state"):
        resolve_resume("empty", tmp_path)


def test_a_locked_run_folder_refuses_another_process_until_its_owner_is_gone(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\nfrom utils.rundir import RunLock\n"
        "lock = RunLock(pathlib.Path(sys.argv[1]))\nprint('locked', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as owner:
        assert owner.stdout.readline() == b"locked\n"
        with pytest.raises(UserError) as caught:
            RunLock(tmp_path)
        assert str(caught.value) == f"{tmp_path}: process {owner.pid} is training in it; wait for its end"
        owner.kill()
        owner.wait()
    lock = RunLock(tmp_path)  # the file is still there
    second = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert f"process {os.getpid()} is training in it" in second.stderr
    del lock
    RunLock(tmp_path).close()


def test_a_lock_that_cannot_be_made_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent/\.lock: cannot be written: No such file"):
        RunLock(tmp_path / "absent")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "b", "a"], ["a", "a_2", "b", "a_3"]),
        (["a", "a", "a_2"], ["a", "a_3", "a_2"]),  # a name that was given stays its owner's
        ([], []),
    ],
)
def test_names_of_files_in_one_folder_are_distinct(names: list[str], expected: list[str]) -> None:
    assert distinct(names) == expected
