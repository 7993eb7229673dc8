"""Break the program one line at a time and see that a test notices: `python -m tests.mutants [WORD …]`.

Every `*.txt` beside this file lists mutants: blocks of `file:`, `old:` (the exact text of one line), `new:` and
`test:`, with an empty line between. Each is applied in a copy of the repository, where its test must fail; without
it, the test must pass. Words choose the mutants that contain one of them. Exit 1 if a mutant survives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "runs", "datasets", "*.pt", "shared", "venv")
SECONDS = 600


class Mutant(NamedTuple):
    file: str
    old: str
    new: str
    test: str
    source: str


def read_mutants(folder: Path) -> list[Mutant]:
    """Raises ValueError for a block that is not as described above."""
    mutants = []
    for path in sorted(folder.glob("*.txt")):
        for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
            lines = [line for line in block.splitlines() if not line.startswith("#")]
            fields = {line.partition(":")[0]: line.partition(":")[2].removeprefix(" ") for line in lines}
            if list(fields) != ["file", "old", "new", "test"]:
                raise ValueError(f"{path.name}: not file, old, new, test: {block!r}")
            mutants.append(Mutant(**fields, source=path.name))
    return mutants


def apply(mutant: Mutant, root: Path) -> str:
    """Break the file in `root`; return what it was. Raises ValueError unless the line is there exactly once."""
    path = root / mutant.file
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    if lines.count(mutant.old) != 1:
        raise ValueError(f"{mutant.source}: {mutant.file} has {lines.count(mutant.old)} lines {mutant.old!r}, not 1")
    lines[lines.index(mutant.old)] = mutant.new
    path.write_text("\n".join(lines), encoding="utf-8")
    return text


def outcome(test: str, root: Path) -> str:
    """Run a test: `passed`, `failed`, or what pytest's exit code says else."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-m", "", "-p", "no:cacheprovider", test]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, timeout=SECONDS, env=os.environ)
    except subprocess.TimeoutExpired:
        return "failed"
    return {0: "passed", 1: "failed"}.get(done.returncode, f"pytest exit {done.returncode}")


def main(words: list[str]) -> int:
    mutants = [
        one for one in read_mutants(Path(__file__).parent) if not words or any(w in "\n".join(one) for w in words)
    ]
    bad, sound = 0, {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        for mutant in mutants:
            if mutant.test not in sound:
                sound[mutant.test] = outcome(mutant.test, copy)
            before = apply(mutant, copy)
            broken = outcome(mutant.test, copy)
            (copy / mutant.file).write_text(before, encoding="utf-8")
            caught = sound[mutant.test] == "passed" and broken == "failed"
            bad += not caught
            word = "caught" if caught else f"SURVIVES (whole: {sound[mutant.test]}, broken: {broken})"
            print(f"{word:<8} {mutant.file:<22} {mutant.old.strip()[:60]:<60} {mutant.test}", flush=True)
    print(f"{len(mutants) - bad} of {len(mutants)} mutants caught")
    return 1 if bad or not mutants else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
