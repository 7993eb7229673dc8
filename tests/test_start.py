"""What a start imports: none of the slow packages that a run can do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPILER = ("torch._dynamo", "torch._inductor", "sympy")
FLAGS = ["--imgsz", "64", "--batch", "4", "--device", "cpu", "--workers", "0", "--cache", "off", "--epochs", "1"]


def imported(code: str, *arguments: object) -> set[str]:
    """Run `code` in a Python of its own; return the names of all that it has imported by its end."""
    code = f"import sys\n{code}\nprint('imported', *sys.modules)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("imported ")[2].split())


@pytest.fixture(scope="module")
def torch_alone() -> set[str]:
    """What importing torch brings: not for us to leave out."""
    return imported("import torch, torch.optim.lr_scheduler, torch.optim.swa_utils, torch.utils.data")


def test_a_run_without_compile_leaves_torchs_compiler_out(
    torch_alone: set[str], tiny_data: Path, tmp_path: Path
) -> None:
    """A whole run: steps, evaluation, checkpoints."""
    flags = [*FLAGS, "--data", tiny_data, "--project", tmp_path, "--noplots"]
    found = imported("import train\ntrain.main(sys.argv[1:])", *flags)
    assert (tmp_path / "exp/weights/last.pt").exists() and "torch.optim.adamw" in found
    assert [name for name in COMPILER if name in found - torch_alone] == []
    assert not {"torchvision", "matplotlib"} & found


@pytest.mark.parametrize("program", ["train", "val", "detect"])
def test_a_program_starts_without_torchvision_and_matplotlib(torch_alone: set[str], program: str) -> None:
    found = imported(f"import {program}")
    assert "torch" in found
    assert not {"torchvision", "matplotlib", "tensorboard", "faster_coco_eval"} & found
    assert [name for name in COMPILER if name in found - torch_alone] == []


def test_the_program_itself_collects_garbage_again_once_it_runs() -> None:
    """Imports are spared from collections, and a run has them; also here nothing slow is imported for the help."""
    code = "import gc, runpy\nsys.argv = ['train.py', '--help-hyp']\nrunpy.run_path('train.py', run_name='__main__')\n"
    code += "assert gc.isenabled() and gc.get_freeze_count() > 100_000"
    found = imported(code)
    assert "torch" in found and "torchvision" not in found
