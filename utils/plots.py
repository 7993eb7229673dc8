"""Every picture of a run. Nothing here opens a window, needs a display or a font that does not come with the libraries.

Charts are drawn by matplotlib, which is imported when the first one is; images are annotated by OpenCV.
"""

from __future__ import annotations

import colorsys
import copy
import csv
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
from numpy.typing import ArrayLike

from utils.atomic import write_file
from utils.errors import many, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

BLUE, ORANGE, GREEN, GREY = "#1f6fb4", "#e6730f", "#2a9134", "#777777"
# For what matplotlib's own font lacks, where one is installed: Chinese, Japanese, Korean.
FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei")
FONTS += ("PingFang SC", "Hiragino Sans", "Yu Gothic", "Malgun Gothic", "Apple SD Gothic Neo", "Arial Unicode MS")
MANY_CLASSES = 16  # more than this many curves are drawn in grey, without a legend entry each
_PALETTE = (
    "#ff3b30",
    "#00a2ff",
    "#34c759",
    "#ffcc00",
    "#af52de",
    "#ff9500",
    "#00c7be",
    "#ff2d92",
    "#5e5ce6",
    "#a2845e",
)
_PAGE = 1920  # pixels along the longer side of a page of images


class LearningRateCurve(Protocol):
    """What is known of the learning rate before the run: a value per iteration for every parameter group."""

    schedule: str
    epochs: int
    steps_per_epoch: int
    warmup_steps: int
    close_mosaic_epoch: int | None
    lr: dict[str, np.ndarray]
    momentum: np.ndarray
    extended: tuple[int, ...]


class PrecisionRecallCurves(Protocol):
    """Curves of nc classes; rows of classes without truth are NaN."""

    confidence: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    pr_recall: np.ndarray
    pr_precision: np.ndarray
    ap50: np.ndarray
    best_confidence: float


# ---- charts ----------------------------------------------------------------------------------------------------------


@contextmanager
def _picture(path: Path, width: float, height: float, layout: str = "constrained") -> Iterator[Figure]:
    """A figure of `width` × `height` inches at 150 dots per inch that is written to `path` at the end."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    # Class names are the user's: a `$` in one is no formula, and a sign that the font lacks is no reason to warn.
    style = {
        "text.parse_math": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.axisbelow": True,
        "legend.handlelength": 3,
        "font.family": ["DejaVu Sans", *(font for font in FONTS if font in fontManager.get_font_names())],
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), dpi=150, layout=layout)  # without pyplot: nothing stays open
        yield figure
        with _undisturbed(path):
            figure.savefig(path)


@contextmanager
def _undisturbed(path: Path) -> Iterator[None]:
    """A picture that can't be written, for want of room perhaps, ends nothing that is worth more."""
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            Path(path).unlink(missing_ok=True)  # half a picture
        print(f"warning: {printable(str(path))}: could not be written ({error.strerror})", file=sys.stderr)


def plot_lr(curve: LearningRateCurve, path: Path, resumed_step: int = 0) -> None:
    """Draw the learning rate of every parameter group, and the momentum, over the whole run, as planned.

    What was trained before `resumed_step` (optimizer steps from 0), where a run goes on, is greyed out.
    """
    steps = len(curve.momentum)
    epochs = np.arange(steps + 1) / curve.steps_per_epoch
    with _picture(path, 10, 6.5) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        for (names, values), style in zip(_alike(curve.lr), _line_styles(), strict=False):
            _draw_steps(upper, *_changes(epochs, values), f"{', '.join(names)}:\n{_span(values)}", **style)
        upper.set_title(f"{curve.schedule}, {many(curve.epochs, 'epoch')}", fontsize=10)
        _draw_steps(lower, *_changes(epochs, curve.momentum), "momentum", color=BLUE, lw=1.6)
        for axes, title in ((upper, "learning rate"), (lower, "momentum")):
            axes.set_ylabel(title)
            if curve.warmup_steps:
                axes.axvspan(0, curve.warmup_steps / curve.steps_per_epoch, color=ORANGE, alpha=0.12, label="warm-up")
            if curve.close_mosaic_epoch is not None and curve.close_mosaic_epoch < curve.epochs:
                axes.axvspan(curve.close_mosaic_epoch, curve.epochs, color=GREEN, alpha=0.12, label="without mosaic")
            for number, epoch in enumerate(curve.extended):
                axes.axvline(epoch, color=GREY, lw=1.2, ls=":", label="_" * (number > 0) + "extended")
            if resumed_step:
                begin = resumed_step / curve.steps_per_epoch
                axes.axvspan(0, begin, color=GREY, alpha=0.18, lw=0, label="trained before")
                axes.axvline(begin, color="black", lw=1.2, ls="--", label=f"resumed after {begin:g} epochs")
            axes.set_xlim(0, epochs[-1])
        upper.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        lower.set_title(f"momentum: {_span(curve.momentum)}", fontsize=10)
        upper.yaxis.set_major_formatter("{x:g}")
        upper.set_ylim(bottom=0)
        lower.set_xlabel(f"epoch ({many(curve.steps_per_epoch, 'step')} each)")


def plot_lr_find(
    lr: np.ndarray, loss: np.ndarray, smoothed: np.ndarray, marks: dict[str, float], recommended: str, path: Path
) -> None:
    """Draw a learning rate range test: loss over lr, and the lrs that were read from it.

    lr, loss, smoothed: float[n]; losses may end in values that are huge or not finite. marks: {name: lr}, may be empty.
    """
    low, high = _loss_limits(loss, smoothed)
    with _picture(path, 10, 6) as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        for values, style in (
            (loss, {"color": BLUE, "lw": 0.8, "alpha": 0.45, "label": "loss"}),
            (smoothed, {"color": BLUE, "lw": 2.4, "label": "smoothed"}),
        ):
            shown = np.clip(values, 2 * low - high, 2 * high - low)  # what lies far outside is more than Agg can draw
            axes.plot(lr, np.where(np.isfinite(values), shown, np.nan), **style)
        for (name, value), style in zip(marks.items(), _line_styles(), strict=False):
            chosen = name == recommended
            color, width = (ORANGE, 2.6) if chosen else (GREY, 1.4)
            text = f"{name}: {value:.2g}" + (", recommended" if chosen else "")
            dashes = "-" if chosen else style["linestyle"] if style["linestyle"] != "-" else (0, (8, 2, 1, 2))
            axes.axvline(value, color=color, lw=width, linestyle=dashes, label=text, zorder=3 if chosen else 1.5)
        axes.set_ylim(low, high)
        axes.margins(x=0.02)
        _tick_decades(axes)
        axes.set_xlabel("learning rate (lr0)")
        axes.set_ylabel("training loss")
        axes.set_title(f"lr0: {marks[recommended]:.2g} ({recommended})" if recommended else "nothing is recommended")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _tick_decades(axes: Axes) -> None:
    """Plain numbers along a logarithmic x axis, also where it spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,), numticks=10))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _loss_limits(loss: np.ndarray, smoothed: np.ndarray) -> tuple[float, float]:
    """Limits of the y axis that show the fall of a loss, and of its rise at the end no more than the start's height."""
    known = np.isfinite(smoothed)
    if not known.any():
        return 0.0, 1.0
    loss, smoothed = loss[known], smoothed[known]
    fall = slice(0, max(int(smoothed.argmin()), len(loss) // 4) + 1)
    low = min(smoothed.min(), np.percentile(loss, 1))
    high = max(smoothed[fall].max(), np.percentile(loss[fall], 98))
    margin = 0.08 * (high - low) or 0.1 * abs(low) or 1.0
    return float(low - margin), float(high + margin)


def plot_lr_scheduler(
    optimizer: Optimizer, scheduler: LRScheduler, epochs: int, save_dir: str | Path = ""
) -> dict[str | int, np.ndarray]:
    """Draw what a scheduler of torch would do to the lr of every parameter group, into `save_dir`/LR.png.

    The optimizer and the scheduler stay as they are: copies of the scheduler and of the groups' options are stepped,
    parameters and optimizer state are neither copied nor touched. (The popular function of this name copies the
    optimizer shallowly: the groups, and with them the lr, are those of the real one.)

    Args:
        scheduler: any that is stepped once an epoch without arguments, new or in the middle of a run. What it would do
            from where it is now is drawn, on an axis that starts at its current epoch.
        epochs: how many to draw.

    Returns:
        {name, or else index, of a group: float64[epochs]}, the lr used in each epoch.

    Raises:
        ValueError: the scheduler is of another optimizer, needs a metric, or ends earlier (`OneCycleLR`).
    """
    rows, first = _scheduled_lrs(optimizer, scheduler, epochs)
    names = [group.get("name", index) for index, group in enumerate(optimizer.param_groups)]
    keys = names if len(set(names)) == len(names) else range(len(names))
    lrs: dict[str | int, np.ndarray] = dict(zip(keys, rows.T, strict=True))
    with _picture(Path(save_dir) / "LR.png", 10, 4.5) as figure:
        axes = figure.subplots()
        for (key, values), style in zip(lrs.items(), _line_styles(), strict=False):
            name = f"group {key}" if isinstance(key, int) else key
            _draw_steps(axes, np.arange(first, first + epochs + 1), values, f"{name}: {_span(values)}", **style)
        axes.set_xlim(first, first + epochs)
        axes.set_ylim(bottom=min(0, rows.min()))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("epoch")
        axes.set_ylabel("learning rate")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return lrs


def _scheduled_lrs(optimizer: Optimizer, scheduler: LRScheduler, epochs: int) -> tuple[np.ndarray, int]:
    """float64[epochs, groups]: the lrs from the scheduler's current epoch on, and that epoch."""
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError("ReduceLROnPlateau follows a metric: its learning rate is not known before the run")
    if scheduler.optimizer is not optimizer:
        raise ValueError("the scheduler is of another optimizer: its learning rates are not this one's")
    if epochs < 1:
        raise ValueError(f"{epochs} epochs: allowed are 1 or more")
    memo: dict[int, Any] = {id(tensor): tensor for group in optimizer.param_groups for tensor in group["params"]}
    groups = copy.deepcopy(optimizer.param_groups, memo)
    # Not by copy(), whose __setstate__ may write into what the two share.
    stand_in = object.__new__(type(optimizer))
    stand_in.__dict__.update(optimizer.__dict__, param_groups=groups, state={})
    memo[id(optimizer)] = stand_in
    twin = copy.deepcopy(scheduler, memo)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a step before the optimizer's: there is none to wait for
        for epoch in range(epochs):
            if epoch:
                twin.step()
            rows.append([float(group["lr"]) for group in stand_in.param_groups])
    return np.array(rows, np.float64), _current_epoch(scheduler)


def _current_epoch(scheduler: LRScheduler) -> int:
    """`last_epoch`; a `ChainedScheduler` leaves it to its members."""
    if hasattr(scheduler, "last_epoch"):
        return scheduler.last_epoch
    return _current_epoch(scheduler._schedulers[0])


def plot_results(csv_path: Path, path: Path) -> None:
    """Draw results.csv: losses of training and validation, metrics, learning rates. Cells may be empty."""
    table = read_results(csv_path)
    with _picture(path, 13, 7.5) as figure:
        panels = figure.subplots(2, 3).ravel()
        for axes, loss in zip(panels[:3], ("box", "cls", "dfl"), strict=True):
            lines = {"train": f"train/{loss}_loss", "validation": f"val/{loss}_loss"}
            _draw_columns(axes, table, lines, f"{loss} loss")
        _draw_columns(panels[3], table, {n: f"metrics/{n}" for n in ("mAP50-95", "mAP50")}, "mAP")
        _draw_columns(
            panels[4],
            table,
            {n: f"metrics/{n}" for n in ("precision", "recall")},
            "precision and recall at the best F1",
        )
        groups = {name.removeprefix("lr/"): name for name in table if name.startswith("lr/")}
        _draw_columns(panels[5], table, groups, "learning rate")
        panels[5].yaxis.set_major_formatter("{x:g}")
        _mark_best(panels[3], table)
        for axes in panels[3:5]:
            axes.set_ylim(0, 1)
        for axes in panels[3:]:
            axes.set_xlabel("epoch")


def read_results(path: Path) -> dict[str, np.ndarray]:
    """The columns of results.csv as float64[rows]; an empty cell is NaN."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    names = rows[0] if rows else []
    cells = [[float(cell) if cell.strip() else np.nan for cell in row] for row in rows[1:]]
    columns = np.array(cells, np.float64).reshape(len(cells), len(names)).T
    return dict(zip(names, columns, strict=True))


def plot_labels(
    classes: np.ndarray, boxes: np.ndarray, sizes: np.ndarray, offsets: np.ndarray, names: Sequence[str], path: Path
) -> None:
    """Draw what the labels of N images are like: how many of each class, how large, of what shape and where.

    classes: int[T]; boxes: float[T, 4], xyxy in pixels; sizes: int[N, 2], width and height; offsets: int[N + 1].
    """
    image_size = np.repeat(sizes.astype(np.float64), np.diff(offsets), axis=0)
    wh = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    share = wh / image_size
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / image_size
    with _picture(path, 14, 8) as figure:
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1])
        _draw_class_counts(top.subplots(), np.bincount(classes, minlength=len(names)), names, len(sizes))
        where, extent, size, aspect = bottom.subplots(1, 4)
        _draw_density(where, centre, "centres", "x / image width", "y / image height")
        where.invert_yaxis()
        _draw_density(extent, share, "width and height", "width / image width", "height / image height")
        bounds = "√(width · height), pixels; dashed: COCO's bounds\nof small, medium and large"
        _draw_histogram(size, np.sqrt(wh.prod(axis=1).clip(0)), bounds, "size")
        for edge in (32, 96):
            size.axvline(edge, color=GREY, lw=1, ls="--")
        _draw_histogram(aspect, wh[:, 0] / wh[:, 1].clip(1e-6), "width / height", "shape")


def plot_curves(curves: PrecisionRecallCurves, names: Sequence[str], run_dir: Path) -> None:
    """Draw PR_curve.png, F1_curve.png, P_curve.png and R_curve.png into `run_dir`, a line a class and their mean."""
    known = ~np.isnan(curves.recall[:, 0])
    names = [name for name, has_truth in zip(names, known, strict=True) if has_truth]
    confidence, f1 = curves.confidence, curves.f1[known]
    best = int(np.searchsorted(confidence, curves.best_confidence))
    at = f"F1 at {confidence[best]:.2f}"
    x = "confidence threshold"
    _plot_lines(
        run_dir / "PR_curve.png",
        (curves.pr_recall, "recall"),
        (curves.pr_precision[known], "precision"),
        names,
        ("AP50", curves.ap50[known]),
    )
    _plot_lines(run_dir / "F1_curve.png", (confidence, x), (f1, "F1"), names, (at, f1[:, best]))
    _plot_lines(run_dir / "P_curve.png", (confidence, x), (curves.precision[known], "precision"), names)
    _plot_lines(run_dir / "R_curve.png", (confidence, x), (curves.recall[known], "recall"), names)


def plot_confusion(matrix: np.ndarray, names: Sequence[str], path: Path, counted: str = "") -> None:
    """Draw a confusion matrix int[nc + 1, nc + 1] (predicted × true, the last is background).

    Colours and fractions are shares of the true class, so each column adds up to 1; counts stand below them.
    `counted` says which detections are.
    """
    n = len(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=0, keepdims=True), 1)
    side = float(np.clip(0.75 * n + 3, 6.5, 15))
    cell = 72 * (side - 2.5) / n  # points
    labels = [_shorten(name) for name in [*names, "background"]]
    with _picture(path, side * 1.1, side, "compressed") as figure:
        axes = figure.subplots()
        axes.grid(False)
        shown = np.where(matrix > 0, shares, np.nan)
        picture = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="equal", interpolation="nearest")
        figure.colorbar(picture, ax=axes, shrink=0.7, fraction=0.05, pad=0.02, label="share of the true class")
        every = int(np.ceil(7 / cell))  # names smaller than this cannot be read
        size = float(np.clip(0.55 * cell, 5.5, 11))
        axes.set_xticks(np.arange(0, n, every), labels[::every], rotation=90 if n > 6 else 0, fontsize=size)
        axes.set_yticks(np.arange(0, n, every), labels[::every], fontsize=size)
        axes.set_xlabel("true")
        axes.set_ylabel(f"predicted ({counted})" if counted else "predicted")
        if cell >= 8:
            _write_cells(axes, matrix, shares, cell)


def _write_cells(axes: Axes, matrix: np.ndarray, shares: np.ndarray, cell: float) -> None:
    """Write the share, and the count where a cell (of `cell` points) has room for two lines, into the cells."""
    for row, column in zip(*np.nonzero(matrix), strict=True):
        share, count = shares[row, column], int(matrix[row, column])
        if cell >= 30:
            text, size = f"{share:.2f}\n{count}", min(11.0, cell / 4)
        else:
            text, size = f"{share:.2f}"[1 if share < 0.995 else 0 :], cell / 2.6
        if cell >= 30 or share >= 0.05:
            color = "white" if share > 0.55 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)


def _draw_steps(axes: Axes, edges: np.ndarray, values: np.ndarray, label: str, **style: Any) -> None:
    """Draw values that hold from edges[i] to edges[i + 1]."""
    axes.plot(edges, np.append(values, values[-1:]), drawstyle="steps-post", label=label, **style)


def _changes(edges: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same steps where the value changes only: a long run has millions, and drawing each takes seconds."""
    places = np.flatnonzero(np.diff(values, prepend=np.nan))
    return np.append(edges[:-1][places], edges[-1]), values[places]


def _alike(curves: dict[str, np.ndarray]) -> list[tuple[list[str], np.ndarray]]:
    """The curves with the names of each: one that is another's too would only hide it."""
    found: list[tuple[list[str], np.ndarray]] = []
    for name, values in curves.items():
        names = next((names for names, other in found if np.array_equal(values, other)), None)
        if names is None:
            found.append(([name], values))
        else:
            names.append(name)
    return found


def _line_styles() -> Iterator[dict[str, Any]]:
    """Endless styles of lines; where two lie on top of each other, the lower shows through the gaps of the upper."""
    dashes = ((0, (5, 4)), (0, (1, 2)), (0, (4, 2, 1, 2)))
    yield {"color": BLUE, "linestyle": "-", "lw": 2.2}
    for i in count():
        yield {"color": (ORANGE, GREEN, GREY, BLUE)[i % 4], "linestyle": dashes[i % 3], "lw": 1.6}


def _span(values: np.ndarray) -> str:
    """The values that a user wants to check: the first, the highest or lowest in between, the last."""
    first, last = values[0], values[-1]
    turn = values.max() if values.max() > max(first, last) else values.min()
    stations = [first, last] if min(first, last) <= turn <= max(first, last) else [first, turn, last]
    return " → ".join(f"{value:.4g}" for value in stations)


def _draw_columns(axes: Axes, table: dict[str, np.ndarray], columns: dict[str, str], title: str) -> None:
    """Draw some columns over the epochs, {label: column}; those that are missing or empty are left out."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    for (label, name), style in zip(columns.items(), _line_styles(), strict=False):
        values = table.get(name, np.zeros(0))
        known = ~np.isnan(values)
        if known.any():
            marker = "o" if known.sum() <= 30 else None
            epochs = table["epoch"][known]
            axes.plot(epochs, values[known], marker=marker, ms=4, label=label, **style)
    if axes.lines:
        axes.legend()
        if len(table["epoch"]) == 1:
            axes.set_xlim(table["epoch"][0] - 1, table["epoch"][0] + 1)
    else:
        axes.text(0.5, 0.5, "no values", ha="center", va="center", transform=axes.transAxes, color=GREY)


def _mark_best(axes: Axes, table: dict[str, np.ndarray]) -> None:
    """Point out the epoch of the highest mAP50-95."""
    values = table.get("metrics/mAP50-95", np.zeros(0))
    if np.isnan(values).all():
        return
    best = int(np.nanargmax(values))
    axes.axvline(table["epoch"][best], color=GREY, lw=1, ls="--")
    axes.set_title(f"mAP50-95: best {values[best]:.3f}, epoch {table['epoch'][best]:.0f}")


def _draw_class_counts(axes: Axes, counts: np.ndarray, names: Sequence[str], images: int) -> None:
    shown = np.arange(len(counts))
    title = f"{many(counts.sum(), 'box')} in {many(images, 'image')}"
    if len(counts) > 100:
        shown = np.argsort(-counts, kind="stable")[:100]
        title += f"; the 100 most frequent of {len(counts)} classes"
    width = min(0.8, 0.1 * len(shown))
    bars = axes.bar(np.arange(len(shown)), counts[shown], color=BLUE, width=width)
    labels = [_shorten(names[i]) for i in shown]
    crowded = len(shown) > 10
    axes.set_xticks(np.arange(len(shown)), labels, rotation=90 if crowded else 0, fontsize=7 if len(shown) > 40 else 9)
    axes.set_xlim(-0.7, len(shown) - 0.3)
    axes.grid(False, axis="x")
    axes.set_ylabel("boxes")
    axes.set_title(title)
    if len(shown) <= 40:
        axes.bar_label(bars, [f"{count:,}" for count in counts[shown]], fontsize=8 if len(shown) <= 20 else 6)
        axes.margins(y=0.12)


def _draw_density(axes: Axes, points: np.ndarray, title: str, x: str, y: str) -> None:
    """A heat map of float[n, 2] in 0…1."""
    bins = int(np.clip(np.sqrt(len(points)) / 2, 10, 50))
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=bins, range=[[0, 1], [0, 1]])
    shade = np.sqrt(counts.T)  # a few boxes far from the bulk shall be seen, too
    axes.imshow(shade, origin="lower", extent=(0, 1, 0, 1), cmap="magma", interpolation="nearest")
    axes.grid(False)
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _draw_histogram(axes: Axes, values: np.ndarray, x: str, title: str) -> None:
    """A histogram over a logarithmic axis with plain numbers on it."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    values = values[values > 0]
    low, high = (values.min(), values.max()) if len(values) else (1.0, 1.0)
    axes.hist(values, bins=np.geomspace(low / 1.1, high * 1.1, 41), color=BLUE)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.set_box_aspect(1)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel("boxes")


def _plot_lines(
    path: Path,
    x: tuple[np.ndarray, str],
    y: tuple[np.ndarray, str],
    names: Sequence[str],
    figures: tuple[str, np.ndarray] | None = None,
) -> None:
    """Draw a line a class and their mean; x and y with their titles, `figures` are numbers for the legend."""
    points, x_title = x
    rows, y_title = y
    title, numbers = figures or ("", None)
    crowded = len(names) > MANY_CLASSES
    with _picture(path, 9, 6) as figure:
        axes = figure.subplots()
        for i, (row, name) in enumerate(zip(rows, names, strict=True)):
            label = None if crowded else _shorten(name) + ("" if numbers is None else f" {numbers[i]:.3f}")
            style = {"color": GREY, "alpha": 0.35, "lw": 0.8} if crowded else {"color": class_color(i), "lw": 1.4}
            axes.plot(points, row, label=label, **style)
        if len(names):
            label = f"mean of {many(len(names), 'class')}"
            label += "" if numbers is None else f" {numbers.mean():.3f}"
            axes.plot(points, rows.mean(axis=0), color="black", lw=2.6, label=label)
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, title=title, alignment="left")
        else:
            axes.text(0.5, 0.5, "no boxes to find", ha="center", va="center")
        axes.set(xlabel=x_title, ylabel=y_title, xlim=(0, 1), ylim=(0, 1.01))


def _shorten(name: str, length: int = 24) -> str:
    """A name that fits beside others, cut in its middle: long names differ in their ends. matplotlib leaves labels with
    a leading `_` out of legends: it gets a space."""
    half = length // 2
    name = name if len(name) <= length else f"{name[: length - half - 1]}…{name[-half:]}"
    return f" {name}" if name.startswith("_") else name


# ---- images ----------------------------------------------------------------------------------------------------------


def class_color(index: int) -> str:
    """`#rrggbb` of a class: ten colours chosen to differ on any background, then hues a golden angle apart."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.55 + index % 3 * 0.2, 1 - index % 4 * 0.12)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def plot_images(
    images: ArrayLike,
    boxes: Sequence[ArrayLike],
    classes: Sequence[ArrayLike],
    names: Sequence[str],
    path: Path,
    scores: Sequence[ArrayLike] | None = None,
    max_images: int = 16,
) -> None:
    """Write a page of annotated images, with a line that says which colour is which class.

    images: uint8[B, 3, H, W], RGB; boxes: per image float[n, 4], xyxy in its pixels; classes: per image int[n], where
    negative ones are padding; scores: per image float[n].
    """
    pictures = np.asarray(images)[:max_images].transpose(0, 2, 3, 1)
    columns = int(np.ceil(np.sqrt(len(pictures))))
    rows = -(-len(pictures) // columns)
    gain = _PAGE / columns / max(pictures.shape[1:3])
    size = (round(pictures.shape[2] * gain), round(pictures.shape[1] * gain))
    page = np.full((rows * size[1], columns * size[0], 3), 255, np.uint8)
    seen: set[int] = set()
    for i, picture in enumerate(pictures):
        real = np.asarray(classes[i]) >= 0
        own = np.asarray(classes[i])[real].astype(np.int64)
        seen.update(own.tolist())
        tile = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if gain < 1 else cv2.INTER_CUBIC)
        own_scores = None if scores is None else np.asarray(scores[i])[real]
        tile = draw_boxes(tile, np.asarray(boxes[i])[real] * gain, own, names, own_scores)
        cv2.rectangle(tile, (0, 0), (size[0] - 1, size[1] - 1), (255, 255, 255), 2)
        top, left = i // columns * size[1], i % columns * size[0]
        page[top : top + size[1], left : left + size[0]] = tile
    _write_image(np.concatenate([page, _legend(sorted(seen), names, page.shape[1])]), path)


def draw_boxes(
    image: np.ndarray,
    boxes: ArrayLike,
    classes: ArrayLike,
    names: Sequence[str],
    scores: ArrayLike | None = None,
    *,
    line: int = 0,
    show_labels: bool = True,
    show_scores: bool = True,
) -> np.ndarray:
    """Return a copy of `image` (uint8[H, W, 3], RGB) with boxes float[n, 4] (xyxy, pixels) drawn in class colours.

    Labels go where they hide least of the other boxes. One that would cover another label or most of a box is left
    out: its box still tells the class by its colour. Boxes of higher score (or earlier ones) come first.
    `line`: width of the box lines in pixels; 0 suits them to the picture and the box.
    """
    image = np.ascontiguousarray(image).copy()
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    classes = np.asarray(classes, np.int64)
    order = np.arange(len(boxes)) if scores is None else np.argsort(-np.asarray(scores), kind="stable")
    long_side = max(image.shape[:2])
    scale = float(np.clip(long_side / 1500, 0.4, 1.6))
    thickness = 1 if scale < 0.8 else 2
    with_scores = scores is not None and show_scores
    labels = [names[classes[i]] + (f" {np.asarray(scores)[i]:.2f}" if with_scores else "") for i in order]

    for i in order[::-1]:
        x1, y1, x2, y2 = boxes[i].round().astype(int).tolist()
        width = line or max(1, round(min(long_side / 350, min(x2 - x1, y2 - y1) / 10)))
        cv2.rectangle(image, (x1, y1), (x2, y2), _rgb(classes[i]), width)
    extents = [_text_extent(label, scale, thickness) for label in labels]
    for i, label, spot in zip(order, labels, _place_labels(boxes[order], extents, image.shape), strict=True):
        if spot is not None:
            _draw_label(image, label, spot, _rgb(classes[i]), scale, thickness)
    return image


def _place_labels(
    boxes: np.ndarray, extents: Sequence[tuple[int, int]], shape: tuple[int, ...]
) -> list[tuple[int, int] | None]:
    """Choose the upper left corner of each label, (width, height) in `extents`; None where there is no good place."""
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(1).prod(axis=1)
    taken = np.zeros((0, 4))
    spots: list[tuple[int, int] | None] = []
    for (x1, y1, x2, y2), (width, height) in zip(boxes, extents, strict=True):
        corners = [
            (x1, y1 - height), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2),  # above, below
            (x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height),  # beside
            (x1, y1), (x2 - width, y2 - height),  # inside
        ]  # fmt: skip
        corner = np.clip(np.round(corners), 0, np.maximum([shape[1] - width, shape[0] - height], 0))
        label = np.concatenate([corner, corner + [width, height]], axis=1)
        hidden = (_shared_area(label, boxes) / areas).max(axis=1)
        cost = hidden + 0.02 * np.arange(len(label)) + 9 * (_shared_area(label, taken) > 0).any(axis=1)
        best = int(cost.argmin())
        if cost[best] < 0.5:
            taken = np.concatenate([taken, label[best : best + 1]])
            spots.append((int(corner[best, 0]), int(corner[best, 1])))
        else:
            spots.append(None)
    return spots


def _shared_area(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64[n, m]: the area that xyxy boxes [n, 4] and [m, 4] share."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return (high - low).clip(0).prod(axis=2)


def _legend(classes: Sequence[int], names: Sequence[str], width: int) -> np.ndarray:
    """A strip uint8[h, width, 3] that names the colours, in as many rows as it takes."""
    scale, gap, line = 0.7, 18, 34
    entries: list[tuple[int, int, int]] = []
    x, row = gap, 0
    for c in classes:
        needed = line + _text_extent(names[c], scale, 1)[0] + gap
        if x > gap and x + needed > width:
            x, row = gap, row + 1
        entries.append((c, x, row))
        x += needed
    strip = np.full(((row + 1) * line + 8 if entries else 0, width, 3), 255, np.uint8)
    for c, left, row in entries:
        top = row * line + 8
        cv2.rectangle(strip, (left, top + 2), (left + 22, top + 22), _rgb(c), cv2.FILLED)
        _draw_label(strip, names[c], (left + 28, top), (255, 255, 255), scale, 1)
    return strip


def _text_extent(text: str, scale: float, thickness: int) -> tuple[int, int]:
    """Width and height, in pixels, of a label with its margin."""
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    return width + 4, height + baseline + 3


def _draw_label(
    image: np.ndarray, text: str, corner: tuple[int, int], color: tuple[int, int, int], scale: float, thickness: int
) -> None:
    """Write `text` on a plate of `color`, in black or white, whichever reads better on it."""
    (left, top), (width, height) = corner, _text_extent(text, scale, thickness)
    _, baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    cv2.rectangle(image, (left, top), (left + width - 1, top + height - 1), color, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(color, (0.299, 0.587, 0.114)) > 140 else (255, 255, 255)
    spot = (left + 2, top + height - baseline - 1)
    cv2.putText(image, text, spot, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA)


def _rgb(index: int) -> tuple[int, int, int]:
    color = class_color(int(index))
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _write_image(image: np.ndarray, path: Path) -> None:
    """Write RGB pixels in the format of the file's suffix; OpenCV's own writer fails on some names of files."""
    done, data = cv2.imencode(Path(path).suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    with _undisturbed(path):
        write_file(Path(path), data.tobytes())
