"""utils/fingerprint.py: what it records, and what a resumed run may differ in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from utils.errors import UserError
from utils.fingerprint import ROOT, check_same_run, fingerprint, revision, source_digest

CPU = torch.device("cpu")
DATA = {"train": "a" * 64, "val": "b" * 64, "imgsz": 64}


def changed(group: str, key: str, value: object = "other") -> dict:
    made = fingerprint(DATA, CPU, "fp32", 1)
    made[group] = {**made[group], key: value}
    return made


def test_what_is_recorded() -> None:
    made = fingerprint(DATA, CPU, "fp32", 1)
    assert yaml.safe_load(yaml.safe_dump(made)) == made  # plain values
    assert made["data"] == DATA
    assert made["libraries"]["numpy"] == np.__version__ and made["libraries"]["opencv"] == cv2.__version__
    assert made["device"]["threads"] == torch.get_num_threads() and made["device"]["processes"] == 1
    assert made["code"]["sources"] == source_digest(ROOT) and len(made["code"]["sources"]) == 64
    assert check_same_run(made, fingerprint(DATA, CPU, "fp32", 1), Path("run"), force=False) == []


@pytest.mark.parametrize(
    ("group", "key"),
    [
        *(("data", key) for key in DATA),
        *(("libraries", key) for key in ("torch", "torchvision", "numpy", "opencv")),
        *(("device", key) for key in ("type", "threads", "kernels", "numbers", "processes")),
        ("code", "sources"),
    ],
)
def test_what_changes_the_weights_is_refused_unless_forced(group: str, key: str) -> None:
    with pytest.raises(UserError) as caught:
        check_same_run(changed(group, key), fingerprint(DATA, CPU, "fp32", 1), Path("run"), force=False)
    assert str(caught.value).startswith(f"run: would not go on as the same run: {group}/{key} was other, is ")
    assert "--force" in str(caught.value) and "\n" not in str(caught.value)
    (line,) = check_same_run(changed(group, key), fingerprint(DATA, CPU, "fp32", 1), Path("run"), force=True)
    assert line.startswith(f"{group}/{key} was other, is ")


@pytest.mark.parametrize(("group", "key"), [("code", "revision"), ("libraries", "python"), ("device", "name")])
def test_what_does_not_is_said(group: str, key: str) -> None:
    (line,) = check_same_run(changed(group, key), fingerprint(DATA, CPU, "fp32", 1), Path("run"), force=False)
    assert line.startswith(f"{group}/{key} was other, is ")


@pytest.mark.parametrize("saved", [None, {}, [], "text", {"data": 3}, {"data": {}, "other": {"key": 1}}])
def test_what_an_old_or_odd_checkpoint_does_not_say_is_not_held_against_it(saved: object) -> None:
    assert check_same_run(saved, fingerprint(DATA, CPU, "fp32", 1), Path("run"), force=False) == []


def test_the_source_digest_knows_every_file(tmp_path: Path) -> None:
    (tmp_path / "utils").mkdir()
    seen = {source_digest(tmp_path)}
    for path, text in (("val.py", "1"), ("val.py", "2"), ("utils/b.py", ""), ("utils/c.py", ""), ("utils/c.py", "3")):
        (tmp_path / path).write_text(text)
        seen.add(source_digest(tmp_path))
    assert len(seen) == 6
    for name in ("notes.txt", "my_schedule.py"):  # the user's own
        (tmp_path / name).write_text("no code")
    assert source_digest(tmp_path) in seen


def test_the_revision_is_gits(tmp_path: Path) -> None:
    def git(*words: str, folder: Path = tmp_path) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        result = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"git {words[0]}: {result.stderr.strip()}")
        return result.stdout.strip()

    assert revision(tmp_path) == ""
    git("init", "-q")
    assert revision(tmp_path) == ""  # no commit yet
    git("commit", "-q", "--allow-empty", "-m", "one")
    head = git("rev-parse", "HEAD")
    assert revision(tmp_path) == head
    git("pack-refs", "--all")
    assert revision(tmp_path) == head
    git("worktree", "add", "-q", "-b", "side/branch", "linked")
    git("commit", "-q", "--allow-empty", "-m", "two", folder=tmp_path / "linked")
    assert revision(tmp_path / "linked") == git("rev-parse", "HEAD", folder=tmp_path / "linked") != head
    git("checkout", "-q", "--detach")
    assert revision(tmp_path) == head
