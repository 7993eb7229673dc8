"""utils/profiler.py: where the time of a step goes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from utils.profiler import PHASES, WARM_UP, phase, profile_steps

CPU = torch.device("cpu")


def test_phases_are_timed_and_written(tmp_path: Path) -> None:
    taken = []

    def step() -> int:
        taken.append(1)
        with phase("loader"):
            time.sleep(0.03)
        with phase("forward"):
            time.sleep(0.01)
        return 4

    lines = profile_steps(step, 3, tmp_path / "profile", CPU)
    assert len(taken) == WARM_UP + 3 + 3
    words = {line.split()[0]: float(line.split()[1]) for line in lines[2:]}
    assert list(words) == list(PHASES)
    assert 30 <= words["loader"] < 3 * words["forward"] + 25 and words["forward"] >= 10 and words["loss"] == 0
    rate = float(lines[0].split(",")[1].split()[0])
    assert rate == pytest.approx(4 / 0.04, rel=0.3)
    table = (tmp_path / "profile" / "profile.txt").read_text()
    assert all(line in table for line in lines) and "Self CPU" in table
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "loader" and event.get("ph") == "X" for event in events) == 3


def test_the_command_profiles_and_begins_no_run(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "--data", "shapes", "--img", "64", "--batch", "4", "--device", "cpu"]
    command += ["--profile", "2", "--project", str(tmp_path), "--workers", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"profile"}
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {"profile.txt", "trace.json"}
    assert "2 steps of 4 images" in done.stdout
    for name in ("loader", "forward", "loss", "backward", "update"):
        share = next(line for line in done.stdout.splitlines() if line.split()[:1] == [name])
        assert float(share.split()[1]) > 0


@pytest.mark.parametrize("others", [["--plan"], ["--lr-find"], ["--resume"]])
def test_one_thing_at_a_time(others: list[str]) -> None:
    command = [sys.executable, "train.py", "--profile", "2", *others]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "--profile" in done.stderr and others[0] in done.stderr
