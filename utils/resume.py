"""What a run starts from: nothing, or the state of one that was interrupted or is over and goes on."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils import dist
from utils.checkpoint import find_state
from utils.errors import UserError, many
from utils.hyp import Hyp, load_hyp, stated
from utils.options import TrainOptions
from utils.rundir import HYP, OPTIONS, read_options
from utils.schedule import EXTENSIONS, Course, CustomFactor, Schedule, describe_jump, load_custom
from utils.stopping import EarlyStopping, is_evaluated

# What may differ when a run goes on: nothing of it changes the weights of a run that doesn't diverge. `data` says where
# the data lie now; that they are the same data is the fingerprint's to say.
FREE_ON_RESUME = {"resume", "data", "device", "workers", "cache", "noplots", "download", "project", "nosave"}
FREE_ON_RESUME |= {"save_period", "plan", "extend", "on_divergence", "save_minutes", "force", "check"}
FREE_ON_EXTEND = {"epochs", "patience"}


@dataclass(frozen=True)
class Origin:
    """Hyper-parameters and a course; and for a run that goes on its saved state, its folder, whether by force, and the
    file that the state was read from."""

    hyp: Hyp
    course: Course
    custom: CustomFactor | None = None
    content: dict[str, Any] | None = None
    folder: Path | None = None
    force: bool = False
    taken: Path | None = None

    @property
    def before(self) -> Course:
        """The course without its last extension."""
        return replace(self.course, extensions=self.course.extensions[:-1])

    def jump(self, before: Course, after: Course, epoch: int) -> str:
        """Say what an extension at `epoch` does to the lr of the saved run."""
        schedules = (Schedule(self.hyp, course, 1, self.custom) for course in (before, after))
        saved = self.content["state"]["components"]
        group = next(iter(saved["optimizer"]["groups"].values()))
        lr0 = saved["scheduler"]["base_lrs"][0] / group["lr_scale"]
        return describe_jump(*schedules, epoch, lr0)


def custom_factor(options: TrainOptions, saved: dict[str, Any] | None = None) -> CustomFactor | None:
    """Import the user's schedule, if the command line names one; on resume it must be the same, to the source.

    Raises:
        UserError: the run has a schedule of the user's, and the command line doesn't name it, or its source changed.
    """
    spec, known = options.schedule, saved["options"]["schedule"] if saved else ""
    if ":" in known and spec != known:
        raise UserError(
            f"this run's schedule is code of yours; a checkpoint names no code to run: add --schedule {known}"
        )
    custom = load_custom(spec) if ":" in spec else None
    if custom and saved and custom.sha256 != saved.get("schedule_sha256"):
        raise UserError(
            f"--schedule {spec}: its source is not what this run began with, and a resumed run is the same run"
        )
    return custom


def start_anew(options: TrainOptions) -> Origin:
    """Return what a new run starts from."""
    hyp = load_hyp(options.hyp, list(options.set), options.hyp_flags())
    if hyp.one_to_one == 0 and not options.nms:
        raise UserError("one_to_one 0 leaves the NMS-free branch untrained, and it is what is evaluated: add --nms")
    return Origin(hyp, Course(options.epochs), custom_factor(options))


def go_on(options: TrainOptions, path: Path) -> tuple[TrainOptions, Origin]:
    """Return the options of the run whose state lies at `path`, and what it starts from; `--extend` makes it longer.

    What the command line says anew is taken where it cannot change the weights.

    Raises:
        UserError: no such run, one that is over, or a flag that would make it another run.
    """
    content, taken = find_state(path)
    saved = TrainOptions.from_dict(content["options"], source=str(path))
    if not os.path.isfile(saved.data) and os.path.isfile(content["data"]):  # begun in another working directory
        saved = replace(saved, data=content["data"])
    free = FREE_ON_RESUME | (FREE_ON_EXTEND if options.extend else set())
    course = Course.from_dict(content.get("course"))
    origin = Origin(
        Hyp.from_dict(content["hyp"]),
        course,
        custom_factor(options, content),
        content,
        path.parents[1],
        options.force,
        taken,
    )
    over = is_over(content, saved)
    used = replace(saved, imgsz=saved.imgsz or content["imgsz"])  # 0: from the data
    for name in sorted(options.explicit - free):
        if getattr(options, name) != getattr(used, name) and not (over and name == "epochs"):
            given, flag = getattr(options, name), f"--{name.replace('_', '-')}"
            has = f"{flag} {_words(given)}: this run has {_words(getattr(used, name))}"
            raise UserError(
                f"{f'{flag}: this run is without it' if given is True else has}, and a resumed run is the same run; "
                f"leave {flag} out, or start a new one from it: --weights {path}"
            )
    if "hyp" in options.explicit:
        _check_hyp(options, saved, origin.hyp)
    done = content["state"]["progress"]["epoch"]
    if options.extend and "epochs" not in options.explicit:
        raise UserError(f"--extend {options.extend}: goes with --resume [PATH] and --epochs N, the new number in all")
    if bool(over) != bool(options.extend) or (options.extend and options.epochs <= done):
        raise UserError(how_to_go_on(replace(options, batch_size=saved.batch_size), origin, path, done, over))
    _check_own_files(origin, {name: value for name, value in content["options"].items() if name not in free})
    if options.extend:
        origin = replace(origin, course=course.extend(done, options.epochs, options.extend))
    given = {name: getattr(options, name) for name in options.explicit & free - {"project", "force"}}
    return replace(replace(saved, extend=""), **given, explicit=saved.explicit | {"cfg"}), origin


def _check_hyp(options: TrainOptions, saved: TrainOptions, own: Hyp) -> None:
    """Raise `UserError` where the file that is named again no longer holds what the run began with."""
    given = load_hyp(options.hyp, list(saved.set), saved.hyp_flags()).to_dict()
    if apart := _apart(own.to_dict(), given):
        raise UserError(f"--hyp {options.hyp}: {apart}; leave --hyp out, or start a new one")


def _check_own_files(origin: Origin, options: Mapping[str, Any]) -> None:
    """Raise `UserError` where somebody edited the run's `hyp.yaml` or `opt.yaml`, which only say what the run began
    with; where it goes on by force, say that it goes on with what the state has."""
    hyp, opt = origin.folder / HYP, origin.folder / OPTIONS
    longer = "; a run that is over goes on by --resume RUN --epochs N --extend replan"
    for file, own, read, way in (
        (hyp, origin.hyp.to_dict(), stated, f", or start a new one with --hyp {hyp}"),
        (opt, options, read_options, longer),
    ):
        try:
            apart = _apart(own, read(file)) if file.is_file() else ""
        except UserError as error:
            if origin.force:
                continue
            raise UserError(f"{error}\n  the state has what the run began with: remove the file to go on") from None
        if apart and not origin.force:
            raise UserError(f"{file}: {apart}: put it back{way} (without the file this one goes on as it began)")
        if apart and dist.is_main():
            print(f"warning: {file}: {apart}: it goes on as it began, and the file will say so", file=sys.stderr)


def _apart(own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Say which value given is the first that is not the run's own; empty if none is."""
    for key, value in own.items():
        stands = list(given[key]) if isinstance(given.get(key), tuple) else given.get(key, value)
        if stands != value:
            return f"{key} is {stands}, this run has {value}, and a resumed run is the same run"
    return ""


def _words(value: object) -> str:
    """An option's value as it is typed."""
    text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text or "none"


def is_over(content: dict[str, Any], saved: TrainOptions) -> str:
    """Say why a saved run has nothing left to do; an empty text where it has."""
    stopping = EarlyStopping(saved.patience)
    try:
        stopping.load_state_dict(content["state"]["components"]["stopping"])
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"the saved state of stopping is not one that this program wrote: {error!r}") from None
    done = content["state"]["progress"]["epoch"]
    if done >= saved.epochs:
        return f"this run has trained all of its {many(saved.epochs, 'epoch')}"
    stopped = content["state"]["progress"]["batch"] == 0 and done > 0 and stopping.should_stop(done - 1)
    stopped = stopped and is_evaluated(done, saved.epochs, saved.val_period, saved.noval)
    return f"this run stopped early, after epoch {done} of {saved.epochs}" if stopped else ""


def resume_words(folder: str | Path | None, schedule: str) -> str:
    """The flags that go on with a run, as they are typed. A checkpoint names no code: a schedule of one's own is among
    them."""
    return f"--resume {_typed(folder)}{f' --schedule {_typed(schedule)}' if ':' in schedule else ''}"


def _typed(value: object) -> str:
    """A word as a shell takes it: Windows' own has backslashes in its paths, and knows double quotes only."""
    text = str(value)
    return shlex.quote(text) if os.name != "nt" else f'"{text}"' if " " in text else text


def how_to_go_on(options: TrainOptions, origin: Origin, path: Path, done: int, over: str) -> str:
    """Say what resuming, extending and fine-tuning would each do to this run, with numbers."""
    if not over:
        return (
            f"--extend {options.extend}: this run is at epoch {done} of {origin.course.epochs}; --resume finishes it, "
            f"then it can be extended"
        )
    planned = origin.course.epochs if origin.course.epochs > done else done + max(done // 2, 1)
    epochs = options.epochs if "epochs" in options.explicit and options.epochs > done else planned
    course, words = origin.course, resume_words(path.parents[1], origin.custom.spec if origin.custom else "")
    lines = [
        f"{path}: {over}, so there is nothing to resume. To go on with it, extend it, for example to {epochs} epochs:"
    ]
    for mode, means in zip(EXTENSIONS, ("the same schedule over the new length", "stay at the last lr"), strict=True):
        jump = origin.jump(course, course.extend(done, epochs, mode), done)
        lines.append(f"  {words} --epochs {epochs} --extend {mode:<6}  {means}: {jump}")
    best = _typed(path.with_name("best.pt"))
    lines.append(f"  --weights {best}  is fine-tuning: a new run from its best weights, with a schedule from lr0 on")
    return "\n".join(lines)
