"""A process that is ready to run one thing again and again, and one that tells it when: so two can take turns.

The worker prints one JSON line when it is ready (facts about itself), and one for each `go` it reads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[], dict[str, float]]
Stage = Callable[[dict[str, Any]], tuple[Run, dict[str, Any]]]


def quiet() -> None:
    """Wait until nobody else computes: a busy neighbour is up to ten times as slow, not a bit."""
    for _ in range(60):
        with open("/proc/stat") as file:
            before = [int(x) for x in file.readline().split()[1:]]
        time.sleep(1)
        with open("/proc/stat") as file:
            after = [int(x) for x in file.readline().split()[1:]]
        spent = [b - a for a, b in zip(before, after, strict=True)]
        if sum(spent) - spent[3] - spent[4] < 0.15 * sum(spent):
            return
    print("warning: the machine is busy; these figures are worth little", flush=True)


def serve(stages: dict[str, Stage]) -> None:
    """In the worker: argv is the stage's name and its settings as JSON. A stage returns (run, facts)."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    run, facts = stages[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps(facts), file=out, flush=True)
    for line in sys.stdin:
        if line.strip() != "go":
            break
        start = time.perf_counter()
        result = run()
        result.setdefault("seconds", time.perf_counter() - start)
        print(json.dumps(result), file=out, flush=True)


def start_side(stage: str, settings: dict[str, Any], peer_python: str, log: Path) -> Worker:
    """A process of ours at `stage`, or of the other's where it begins with `peer:`."""
    theirs = stage.startswith("peer:")
    python, script = (peer_python, "stages_theirs.py") if theirs else (sys.executable, "stages_ours.py")
    return Worker(python, Path(__file__).with_name(script), stage.removeprefix("peer:"), settings, log)


class Worker:
    """In the driver: one such process."""

    def __init__(self, python: str, script: Path, stage: str, settings: dict[str, Any], log: Path) -> None:
        self.log = log
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, str(script), stage, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=kept,  # pip compiled the other's modules when it was installed; ours are by their first start
            )
        self.facts = self._answer()

    def go(self) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        while line and not line.startswith("{"):  # what a library says where it is imported for the first time
            line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args)} ended; its last words:\n{self.log.read_text()[-2000:]}")
        return json.loads(line)
