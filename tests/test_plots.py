"""Pictures: what is drawn is what was given, nothing written on them overlaps, and odd input draws something, too."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from utils import plots
from utils.plots import (
    class_color,
    draw_boxes,
    plot_confusion,
    plot_curves,
    plot_images,
    plot_labels,
    plot_lr,
    plot_lr_find,
    plot_lr_scheduler,
    plot_results,
    read_results,
)

HEADER = (
    "epoch,time,train/box_loss,train/cls_loss,train/dfl_loss,metrics/precision,metrics/recall,metrics/mAP50,"
    "metrics/mAP50-95,val/box_loss,val/cls_loss,val/dfl_loss,lr/decay,lr/no_decay,lr/bias"
)
ODD_NAMES = ["$x^$", "_hidden", "细胞", "a name that is very much longer than what fits", "", "%s {0}"]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved while a test runs."""
    saved: list[Figure] = []
    save = Figure.savefig

    def spy(figure: Figure, *args: object, **options: object) -> None:
        saved.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return saved


def assert_picture(path: Path) -> np.ndarray:
    """The file is a picture that is not of one colour."""
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None and image.std() > 1
    return image


def overlaps(boxes: list) -> list:
    pairs = itertools.combinations([box.padded(-0.5) for box in boxes if box.width > 1 and box.height > 1], 2)
    return [(a, b) for a, b in pairs if a.overlaps(b)]


def assert_legible(figure: Figure) -> None:
    """No two tick labels of an axis, titles or legends overlap; all lie on the page and are no smaller than 4 pt."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    page = figure.bbox.padded(1)
    for axes in figure.axes:
        ticks = [[t for t in axis.get_ticklabels() if t.get_text()] for axis in (axes.xaxis, axes.yaxis)]
        others = [text for text in (axes.title, axes.xaxis.label, axes.yaxis.label) if text.get_text()]
        others += [axes.get_legend()] if axes.get_legend() else []
        low, high = np.sort(axes.get_xlim()), np.sort(axes.get_ylim())
        shown = [
            [t for t in ticks[0] if low[0] <= t.get_position()[0] <= low[1]],
            [t for t in ticks[1] if high[0] <= t.get_position()[1] <= high[1]],
        ]
        for texts in (*shown, others):
            boxes = [text.get_window_extent(renderer) for text in texts]
            assert not overlaps(boxes)
            assert all(page.containsx(b.x0) and page.containsx(b.x1) for b in boxes)
            assert all(page.containsy(b.y0) and page.containsy(b.y1) for b in boxes)
        assert all(text.get_fontsize() >= 4 for text in [*shown[0], *shown[1], *axes.texts])
    titles = [a.title.get_window_extent(renderer) for a in figure.axes if a.title.get_text()]
    assert not overlaps(titles)


def lr_of(epochs: int, steps: int = 5, close_mosaic: int | None = None) -> SimpleNamespace:
    warmup = min(3 * steps, epochs * steps // 10)
    factor = np.linspace(1, 0.01, epochs).repeat(steps)
    ramp = np.minimum(1, np.arange(epochs * steps) / max(warmup, 1))
    return SimpleNamespace(
        schedule="linear",
        epochs=epochs,
        steps_per_epoch=steps,
        warmup_steps=warmup,
        close_mosaic_epoch=close_mosaic,
        lr={"decay": 0.01 * factor * ramp, "no_decay": 0.01 * factor * ramp, "bias": 0.1 - 0.09 * ramp * factor},
        momentum=0.8 + 0.1 * ramp,
        extended=(),
    )


def shown_at(line: Any, places: np.ndarray) -> np.ndarray:
    """The heights of a line of steps, which hold from each point on."""
    return line.get_ydata()[np.searchsorted(line.get_xdata(), places, side="right") - 1]


@pytest.mark.parametrize(("epochs", "close_mosaic"), [(1, None), (2, 0), (40, 30), (300, 290)])
def test_lr_picture_shows_every_value(
    tmp_path: Path, figures: list[Figure], epochs: int, close_mosaic: int | None
) -> None:
    curve = lr_of(epochs, close_mosaic=close_mosaic)
    plot_lr(curve, tmp_path / "lr.png")
    assert_picture(tmp_path / "lr.png")
    upper, lower = figures[0].axes
    assert upper.get_title() == f"linear, {epochs} epoch{'s' * (epochs > 1)}"
    for line, name in zip(upper.lines, ("decay", "bias"), strict=True):  # no_decay's would only hide decay's
        values = curve.lr[name]
        assert line.get_drawstyle() == "steps-post"
        np.testing.assert_array_equal(shown_at(line, np.arange(5 * epochs) / 5), values)
        assert line.get_xdata()[-1] == epochs and line.get_ydata()[-1] == values[-1]
    np.testing.assert_array_equal(shown_at(lower.lines[0], np.arange(5 * epochs) / 5), curve.momentum)
    shaded = {patch.get_label(): (patch.get_x(), patch.get_width()) for patch in upper.patches}
    expected = {"warm-up": (0, curve.warmup_steps / 5)} if curve.warmup_steps else {}
    if close_mosaic is not None:
        expected["without mosaic"] = (close_mosaic, epochs - close_mosaic)
    assert shaded.keys() == expected.keys()
    assert all(shaded[name] == pytest.approx(expected[name]) for name in expected)
    assert_legible(figures[0])


def test_lr_picture_of_a_long_run_has_a_point_for_each_change(tmp_path: Path, figures: list[Figure]) -> None:
    curve = lr_of(400)
    plot_lr(curve, tmp_path / "lr.png")
    changes = 1 + np.count_nonzero(np.diff(curve.lr["decay"]))
    assert len(figures[0].axes[0].lines[0].get_xdata()) == changes + 1 < 500


def test_a_picture_that_cannot_be_written_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot_lr(lr_of(2), tmp_path / "none" / "lr.png")
    assert (
        capsys.readouterr().err
        == f"warning: {tmp_path}/none/lr.png: could not be written (No such file or directory)\n"
    )


def test_lr_picture_marks_what_was_trained_before_and_where_the_run_was_extended(
    tmp_path: Path, figures: list[Figure]
) -> None:
    curve = lr_of(20)
    curve.extended = (10, 16)
    plot_lr(curve, tmp_path / "lr.png", resumed_step=curve.steps_per_epoch * 16 + 3)
    begin = 16 + 3 / curve.steps_per_epoch
    for axes in figures[0].axes:
        lines = {line.get_label(): line.get_xdata()[0] for line in axes.lines if not line.get_label().startswith("_")}
        assert lines["extended"] == 10 and lines[f"resumed after {begin:g} epochs"] == begin
        spans = {patch.get_label(): (patch.get_x(), patch.get_width()) for patch in axes.patches}
        assert spans["trained before"] == pytest.approx((0, begin))
    plot_lr(lr_of(20), tmp_path / "lr.png")
    assert not any("resumed" in str(line.get_label()) for line in figures[1].axes[0].lines)


def test_lr_picture_names_start_peak_and_end(tmp_path: Path, figures: list[Figure]) -> None:
    plot_lr(lr_of(40), tmp_path / "lr.png")
    texts = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert (
        texts[0] == "decay, no_decay:\n0 → 0.009238 → 0.0001"
    )  # 0.01 · (1 − 0.99·3/39), in the first epoch after warm-up


# ---- learning rate: range test and schedulers ------------------------------------------------------------------------


def range_test_of(n: int, diverged: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """lr, loss and smoothed loss that fall from 3 to about 1 and end at `diverged`."""
    x = np.linspace(-6, 0, n)
    smoothed = 3 - 2 / (1 + np.exp(-4 * (x + 3)))
    loss = smoothed + 0.1 * np.random.default_rng(seed).standard_normal(n)
    loss[-1], smoothed[-1] = diverged, diverged / 10
    return 10**x, loss, smoothed


MARKS = {"steepest": 1e-3, "valley": 0.0021, "minimum/10": 0.01}


@pytest.mark.parametrize(("n", "recommended"), zip([20, 100, 400], MARKS, strict=True))
@pytest.mark.parametrize("diverged", [3.0, 1e4, 1e300, np.inf, np.nan])
def test_range_test_picture(tmp_path: Path, figures: list[Figure], n: int, diverged: float, recommended: str) -> None:
    lr, loss, smoothed = range_test_of(n, diverged)
    plot_lr_find(lr, loss, smoothed, MARKS, recommended, tmp_path / "lr_find.png")
    assert_picture(tmp_path / "lr_find.png")
    (axes,) = figures[0].axes
    assert axes.get_xscale() == "log"
    low, high = axes.get_ylim()
    assert 0 < low < 1 and 3 < high < 4  # the fall fills the picture, whatever comes after it
    raw, thick, *marks = axes.lines
    assert raw.get_linewidth() < thick.get_linewidth()
    for line, values in ((raw, loss), (thick, smoothed)):
        np.testing.assert_array_equal(line.get_xdata(), lr)
        np.testing.assert_array_equal(line.get_ydata()[:-1], values[:-1])
    assert [line.get_xdata()[0] for line in marks] == [*MARKS.values()]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    expected = ["steepest: 0.001", "valley: 0.0021", "minimum/10: 0.01"]
    chosen = [*MARKS].index(recommended)
    expected[chosen] += ", recommended"
    assert texts == ["loss", "smoothed", *expected]
    widths = [line.get_linewidth() for line in marks]
    assert max(widths) == widths[chosen] and widths.count(max(widths)) == 1
    assert_legible(figures[0])


@pytest.mark.parametrize(("low", "high"), [(1e-12, 1e-8), (0.5, 2), (0.011, 0.019), (1e-9, 100)])
def test_range_test_picture_without_a_recommendation(
    tmp_path: Path, figures: list[Figure], low: float, high: float
) -> None:
    lr, flat = np.geomspace(low, high, 40), np.full(40, 2.0)
    plot_lr_find(lr, flat, flat, {}, "", tmp_path / "lr_find.png")
    assert_picture(tmp_path / "lr_find.png")
    (axes,) = figures[0].axes
    assert axes.get_title() == "nothing is recommended" and len(axes.lines) == 2
    assert_legible(figures[0])
    ticks = [t.get_text() for t in axes.get_xticklabels() if low <= t.get_position()[0] <= high]
    assert len([float(tick.replace("−", "-")) for tick in ticks if tick]) >= (1 if high / low < 2 else 2)


@pytest.mark.parametrize("losses", [[np.nan], [1.0, np.nan], [1.0, 2.0, 40.0]])
def test_range_test_picture_of_next_to_nothing(tmp_path: Path, losses: list[float]) -> None:
    lr = 1e-5 * 10.0 ** np.arange(len(losses))
    plot_lr_find(lr, np.array(losses), np.array(losses), {}, "", tmp_path / "lr_find.png")
    assert_picture(tmp_path / "lr_find.png")


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": lambda groups: SGD(groups, lr=0.1, momentum=0.9),
    "Adam": lambda groups: Adam(groups, lr=0.1),
}


def sequential(optimizer: Optimizer) -> LRScheduler:
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=3), CosineAnnealingLR(optimizer, 9)], [3])


SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "lambda": lambda o: LambdaLR(o, [lambda epoch: 1 / (1 + epoch), lambda epoch: 1.0]),
    "multiplicative": lambda o: MultiplicativeLR(o, lambda epoch: 0.9),
    "step": lambda o: StepLR(o, 3, 0.1),
    "multi_step": lambda o: MultiStepLR(o, [2, 5], 0.1),
    "constant": lambda o: ConstantLR(o, 0.25, 3),
    "linear": lambda o: LinearLR(o, 0.1, total_iters=5),
    "exponential": lambda o: ExponentialLR(o, 0.8),
    "polynomial": lambda o: PolynomialLR(o, 8, 2.0),
    "cosine": lambda o: CosineAnnealingLR(o, 12, 1e-3),
    "warm_restarts": lambda o: CosineAnnealingWarmRestarts(o, 3, 2),
    "one_cycle": lambda o: OneCycleLR(o, 0.5, total_steps=12),
    "cyclic": lambda o: CyclicLR(o, 0.01, 0.1, 3, mode="exp_range", cycle_momentum=False),
    "sequential": sequential,
    "chained": lambda o: ChainedScheduler([ConstantLR(o, 0.5, 4), ExponentialLR(o, 0.9)], optimizer=o),
}


def scheduled(optimizer: str, scheduler: str) -> tuple[Optimizer, LRScheduler]:
    groups = [
        {"name": "decay", "params": [nn.Parameter(torch.ones(3, 2))]},
        {"name": "bias", "params": [nn.Parameter(torch.ones(3))], "lr": 0.02},
    ]
    built = OPTIMIZERS[optimizer](groups)
    return built, SCHEDULERS[scheduler](built)


def really_trained(optimizer: Optimizer, scheduler: LRScheduler, epochs: int) -> np.ndarray:
    """Train, and return the lrs float64[epochs, groups] that `optimizer.step` met."""
    used: list[list[float]] = []
    handle = optimizer.register_step_pre_hook(lambda o, args, kwargs: used.append([g["lr"] for g in o.param_groups]))
    for _ in range(epochs):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 0.1)
        optimizer.step()
        scheduler.step()
    handle.remove()
    return np.array(used)


def everything(optimizer: Optimizer, scheduler: LRScheduler) -> tuple[Any, ...]:
    """What a plot must not change: values, by copy, and which objects hold them."""
    groups = optimizer.param_groups
    state = [(id(tensor), id(slots)) for tensor, slots in optimizer.state.items()]
    objects = [id(groups), *map(id, groups), *(id(p) for group in groups for p in group["params"]), state]
    members = getattr(scheduler, "_schedulers", [])
    values = [
        optimizer.state_dict(),
        scheduler.state_dict(),
        [vars(m).keys() for m in (optimizer, scheduler, *members)],
    ]
    return objects, [m.optimizer is optimizer for m in (scheduler, *members)], repr(values)


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # by SequentialLR of torch 2.6
@pytest.mark.parametrize("epochs_done", [0, 4])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_scheduler_plot_shows_what_a_run_will_use_and_leaves_no_trace(
    tmp_path: Path, figures: list[Figure], optimizer: str, scheduler: str, epochs_done: int
) -> None:
    mine, other = scheduled(optimizer, scheduler), scheduled(optimizer, scheduler)
    for pair in (mine, other):
        really_trained(*pair, epochs_done)
    before = everything(*mine)
    drawn = plot_lr_scheduler(*mine, 12 - epochs_done, tmp_path)
    alone = plot_lr_scheduler(*mine, 1, tmp_path)
    assert everything(*mine) == before
    used = really_trained(*other, 12 - epochs_done)
    assert list(drawn) == ["decay", "bias"] and all(lrs.dtype == np.float64 for lrs in drawn.values())
    np.testing.assert_array_equal(np.stack([*drawn.values()], axis=1), used)
    np.testing.assert_array_equal(np.stack([*alone.values()], axis=1), used[:1])
    np.testing.assert_array_equal(really_trained(*mine, 12 - epochs_done), used)  # and a run goes on as if undisturbed

    assert [path.name for path in tmp_path.iterdir()] == ["LR.png"]
    (axes,) = figures[0].axes
    for line, lrs in zip(axes.lines, drawn.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata()[:-1], lrs)
        np.testing.assert_array_equal(line.get_xdata(), np.arange(epochs_done, 13))
    for figure in figures:
        assert_legible(figure)


def test_scheduler_plot_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1.0, 0.5)])
    monkeypatch.chdir(tmp_path)
    lrs = plot_lr_scheduler(optimizer, StepLR(optimizer, 2, 0.1), 5)
    assert_picture(tmp_path / "LR.png")
    assert list(lrs) == [0, 1]
    np.testing.assert_allclose(lrs[0], [1, 1, 0.1, 0.1, 0.01], rtol=1e-12)
    np.testing.assert_allclose(lrs[1], [0.5, 0.5, 0.05, 0.05, 0.005], rtol=1e-12)


def test_scheduler_plot_copies_no_tensor_but_a_lr_that_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = torch.tensor(0.1)
    optimizer = Adam([nn.Parameter(torch.ones(1000))], lr=rate)
    scheduler = ExponentialLR(optimizer, 0.5)
    really_trained(optimizer, scheduler, 1)
    copied: list[int] = []
    real = torch.Tensor.__deepcopy__

    def spy(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        copied.append(tensor.numel())
        return real(tensor, memo)

    monkeypatch.setattr(torch.Tensor, "__deepcopy__", spy)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", spy)
    lrs = plot_lr_scheduler(optimizer, scheduler, 3, tmp_path)
    np.testing.assert_allclose(lrs[0], [0.05, 0.025, 0.0125], rtol=1e-6)
    assert optimizer.param_groups[0]["lr"] is rate and float(rate) == pytest.approx(0.05)
    assert copied and max(copied) == 1


def test_scheduler_plot_of_what_cannot_be_known(tmp_path: Path) -> None:
    optimizer, scheduler = scheduled("SGD", "one_cycle")
    with pytest.raises(ValueError, match="total"):
        plot_lr_scheduler(optimizer, scheduler, 14, tmp_path)
    with pytest.raises(ValueError, match="another optimizer"):
        plot_lr_scheduler(scheduled("SGD", "step")[0], scheduler, 3, tmp_path)
    with pytest.raises(ValueError, match="1 or more"):
        plot_lr_scheduler(optimizer, scheduler, 0, tmp_path)
    with pytest.raises(ValueError, match="follows a metric"):
        plot_lr_scheduler(optimizer, ReduceLROnPlateau(optimizer), 3, tmp_path)
    assert not [*tmp_path.iterdir()]


def write_results(path: Path, epochs: int, every: int = 1) -> None:
    rows = [HEADER]
    for epoch in range(1, epochs + 1):
        known = [0.5, 0.4, 0.3 + epoch / 1000, 0.9 - abs(epoch - 30) / 400, 1, 2, 3] if epoch % every == 0 else [""] * 7
        rows.append(",".join(map(str, [epoch, epoch * 2.5, 3 / epoch, 2 / epoch, 1, *known, 0.01, 0.01, 0.02])))
    path.write_text("\n".join(rows) + "\n")


def test_results_are_read_with_their_gaps(tmp_path: Path) -> None:
    write_results(tmp_path / "results.csv", epochs=6, every=3)
    table = read_results(tmp_path / "results.csv")
    assert list(table) == HEADER.split(",")
    assert table["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert np.flatnonzero(~np.isnan(table["metrics/mAP50"])).tolist() == [2, 5]
    assert table["train/box_loss"][2] == 1.0


@pytest.mark.parametrize(("epochs", "every"), [(1, 1), (2, 1), (40, 1), (300, 5)])
def test_results_picture_shows_all_epochs(tmp_path: Path, figures: list[Figure], epochs: int, every: int) -> None:
    write_results(tmp_path / "results.csv", epochs, every)
    plot_results(tmp_path / "results.csv", tmp_path / "results.png")
    assert_picture(tmp_path / "results.png")
    panels = figures[0].axes
    train, validation = panels[0].lines
    np.testing.assert_allclose(train.get_ydata(), 3 / np.arange(1, epochs + 1))
    assert validation.get_xdata().tolist() == list(range(every, epochs + 1, every))
    assert panels[3].get_title().endswith(f"epoch {min(epochs, 30)}")
    assert_legible(figures[0])


@pytest.mark.parametrize("text", ["", HEADER, "epoch,time\n1,2\n2,4\n", "epoch,metrics/mAP50-95\n1,\n"])
def test_results_without_values_are_drawn_all_the_same(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    plot_results(tmp_path / "results.csv", tmp_path / "results.png")
    assert_picture(tmp_path / "results.png")


def labels_of(nc: int, images: int = 50) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(nc)
    counts = rng.integers(0, 30, images)
    offsets = np.concatenate([[0], counts.cumsum()])
    corner = rng.uniform(0, 400, (offsets[-1], 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 200, (offsets[-1], 2))], axis=1).astype(np.float32)
    sizes = np.tile(np.int32([[640, 640]]), (images, 1))
    return rng.integers(0, nc, offsets[-1]).astype(np.int32), boxes, sizes, offsets


@pytest.mark.parametrize("nc", [1, 3, 12, 80, 300])
def test_labels_picture_counts_the_classes(tmp_path: Path, figures: list[Figure], nc: int) -> None:
    classes, boxes, sizes, offsets = labels_of(nc)
    plot_labels(classes, boxes, sizes, offsets, [f"a class, no. {i}" for i in range(nc)], tmp_path / "labels.png")
    assert_picture(tmp_path / "labels.png")
    heights = [bar.get_height() for bar in figures[0].axes[0].patches]
    counts = np.bincount(classes, minlength=nc)
    assert heights == (counts if nc <= 100 else np.sort(counts)[::-1][:100]).tolist()
    assert f"{len(boxes)}" in figures[0].axes[0].get_title().replace(",", "")
    assert_legible(figures[0])


@pytest.mark.parametrize("boxes", [0, 1])
def test_labels_picture_of_none_and_of_one_box(tmp_path: Path, boxes: int) -> None:
    box = np.float32([[10, 10, 40, 30]])[:boxes]
    plot_labels(np.zeros(boxes, int), box, np.int32([[64, 48]]), np.array([0, boxes]), ["a"], tmp_path / "labels.png")
    assert_picture(tmp_path / "labels.png")


def curves_of(nc: int, missing: int | None = None) -> SimpleNamespace:
    x = np.linspace(0, 1, 1000)
    power = np.linspace(0.5, 3, nc)[:, None]
    precision, recall = x**power * 0.5 + 0.5, (1 - x) ** power
    curves = SimpleNamespace(
        confidence=x,
        pr_recall=x,
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall),
        pr_precision=1 - x**power,
        ap50=np.linspace(0.4, 0.9, nc),
    )
    if missing is not None:
        for rows in (curves.precision, curves.recall, curves.f1, curves.pr_precision, curves.ap50):
            rows[missing] = np.nan
    curves.best_confidence = x[np.nan_to_num(curves.f1).sum(axis=0).argmax()]
    return curves


@pytest.mark.parametrize("nc", [1, 3, 16, 80])
def test_curves_are_drawn_with_a_legible_legend(tmp_path: Path, figures: list[Figure], nc: int) -> None:
    curves = curves_of(nc)
    plot_curves(curves, [f"class number {i}" for i in range(nc)], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "F1_curve.png",
        "PR_curve.png",
        "P_curve.png",
        "R_curve.png",
    ]
    for figure, rows in zip(figures, (curves.pr_precision, curves.f1, curves.precision, curves.recall), strict=True):
        *lines, mean = figure.axes[0].lines
        for line, row in zip(lines, rows, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), row)
        np.testing.assert_allclose(mean.get_ydata(), rows.mean(axis=0))
        assert len(figure.axes[0].get_legend().get_texts()) == (1 if nc > 16 else nc + 1)
        assert_legible(figure)


def test_curves_leave_out_classes_without_truth(tmp_path: Path, figures: list[Figure]) -> None:
    plot_curves(curves_of(3, missing=1), ["a", "b", "c"], tmp_path)
    texts = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert texts == ["a 0.400", "c 0.900", "mean of 2 classes 0.650"]


def test_curves_of_nothing(tmp_path: Path) -> None:
    plot_curves(curves_of(1, missing=0), ["a"], tmp_path)
    for path in tmp_path.iterdir():
        assert_picture(path)


@pytest.mark.parametrize("nc", [1, 3, 14, 80, 200])
def test_confusion_matrix_is_normalised_by_column(tmp_path: Path, figures: list[Figure], nc: int) -> None:
    matrix = np.random.default_rng(0).integers(0, 4, (nc + 1, nc + 1)) ** 3 + np.diag(np.arange(nc + 1)) * 9
    matrix[:, 0] = matrix[-1, -1] = 0  # a class without truth
    plot_confusion(matrix, [f"class number {i}" for i in range(nc)], tmp_path / "confusion_matrix.png")
    assert_picture(tmp_path / "confusion_matrix.png")
    axes = figures[0].axes[0]
    shares = np.ma.filled(np.ma.masked_invalid(axes.images[0].get_array()), 0)
    np.testing.assert_allclose(shares.sum(axis=0)[1:], 1)
    np.testing.assert_allclose(shares[:, 1:] * matrix.sum(axis=0)[1:], matrix[:, 1:])
    if nc == 3:
        texts = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
        assert texts[(2, 2)] == f"{matrix[2, 2] / matrix[:, 2].sum():.2f}\n{matrix[2, 2]}"
        assert len(texts) == np.count_nonzero(matrix)
    assert_legible(figures[0])


def test_odd_class_names_are_drawn_without_a_warning(tmp_path: Path, figures: list[Figure]) -> None:
    nc = len(ODD_NAMES)
    classes, boxes, sizes, offsets = labels_of(nc)
    plot_labels(classes, boxes, sizes, offsets, ODD_NAMES, tmp_path / "labels.png")
    plot_confusion(np.eye(nc + 1, dtype=int), ODD_NAMES, tmp_path / "confusion_matrix.png")
    plot_curves(curves_of(nc), ODD_NAMES, tmp_path)
    legend = [text.get_text().strip() for text in figures[2].axes[0].get_legend().get_texts()]
    assert legend[0].startswith("$x^$") and legend[1].startswith("_hidden") and len(legend) == nc + 1
    draw_boxes(np.zeros((200, 200, 3), np.uint8), boxes[:nc], np.arange(nc), ODD_NAMES)


def test_matplotlib_is_imported_late_and_without_pyplot(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
import numpy as np
import utils.plots
assert "matplotlib" not in sys.modules
utils.plots.plot_confusion(np.eye(3, dtype=int), ["a", "b"], Path({str(tmp_path)!r}, "c.png"))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(plots.__file__).parents[1])


# ---- images ----------------------------------------------------------------------------------------------------------


def test_class_colors_differ() -> None:
    assert len({class_color(i) for i in range(200)}) == 200
    assert all(len(class_color(i)) == 7 and int(class_color(i)[1:], 16) >= 0 for i in range(200))


def test_boxes_are_drawn_where_they_are_in_the_color_of_their_class() -> None:
    image = np.full((100, 200, 3), 90, np.uint8)
    before = image.copy()
    drawn = draw_boxes(image, [[20, 40, 80, 90]], [1], ["a", "b"])
    assert (image == before).all() and drawn.shape == image.shape and drawn.dtype == np.uint8
    color = [int(class_color(1)[i : i + 2], 16) for i in (1, 3, 5)]
    assert drawn[70, 20].tolist() == drawn[70, 80].tolist() == drawn[90, 50].tolist() == color
    assert (drawn[45:85, 25:75] == 90).all()  # neither filled nor written over: the label is outside
    assert (drawn[70, 85:] == 90).all()


def test_lines_are_as_wide_as_asked_for() -> None:
    image, box = np.full((300, 300, 3), 90, np.uint8), [[50, 100, 250, 250]]
    sides = [(draw_boxes(image, box, [0], ["a"], line=line)[180] != 90).any(-1).sum() // 2 for line in (1, 3, 7, 15)]
    assert sides[0] == 1 and all(wide - line in (0, 1, 2) for wide, line in zip(sides, (1, 3, 7, 15), strict=True))


def test_no_boxes_leave_the_image_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    assert (draw_boxes(image, np.zeros((0, 4)), np.zeros(0), ["a"]) == image).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 20, 300])
def test_labels_neither_overlap_nor_hide_boxes_nor_leave_the_image(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 600, (count, 2))
    boxes = np.concatenate([corner, corner + np.exp(rng.uniform(1.5, 5, (count, 2)))], axis=1).clip(0, 640)
    extents = [(int(w), 14) for w in rng.integers(30, 90, count)]
    spots = plots._place_labels(boxes, extents, (640, 640, 3))
    placed = [(x, y, x + w, y + h) for (x, y), (w, h) in ((s, e) for s, e in zip(spots, extents, strict=True) if s)]
    assert spots[0] is not None and (count > 20 or len(placed) > 0.9 * count)
    for x1, y1, x2, y2 in placed:
        assert 0 <= x1 < x2 <= 640 and 0 <= y1 < y2 <= 640
        for bx1, by1, bx2, by2 in boxes:
            hidden = max(0, min(x2, bx2) - max(x1, bx1)) * max(0, min(y2, by2) - max(y1, by1))
            assert hidden <= 0.5 * max(bx2 - bx1, 1) * max(by2 - by1, 1)
    for a, b in itertools.combinations(placed, 2):
        assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


def test_a_label_wider_than_the_image_is_no_error() -> None:
    draw_boxes(np.zeros((12, 12, 3), np.uint8), [[1, 1, 9, 9], [-5, -5, 30, 30]], [0, 0], ["a long name"], [0.5, 0.6])


def test_page_of_images(tmp_path: Path) -> None:
    images = np.full((5, 3, 48, 64), 100, np.uint8)
    images[1, 0] = 200  # the second is reddish: RGB stays RGB
    boxes = [np.float32([[8, 8, 40, 40], [0, 0, 0, 0]])] * 5
    classes = [np.array([2, -1])] * 5  # the second row is padding
    path = tmp_path / "Bögen 一.jpg"
    plot_images(images, boxes, classes, ["a", "b", "c"], path, max_images=4)
    page = assert_picture(path)[..., ::-1].astype(int)
    legend = page.shape[0] - 1440
    assert page.shape[1] == 1920 and 20 < legend < 60  # two rows and columns of 960 × 720, and one line of legend
    assert np.abs(page[600, 100] - 100).max() < 6
    assert np.abs(page[600, 1060] - [200, 100, 100]).max() < 6
    color = [int(class_color(2)[i : i + 2], 16) for i in (1, 3, 5)]
    near_edge = page[300:400, 112:130].reshape(-1, 3)  # x = 8 · 15
    assert np.abs(near_edge - color).max(axis=1).min() < 40
    assert np.abs(page[1440:] - color).max(axis=2).min() < 40  # and in the legend


def test_page_of_images_without_boxes_and_with_scores(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (1, 3, 32, 32)).astype(np.uint8)
    plot_images(images, [np.zeros((0, 4))], [np.zeros(0)], ["a"], tmp_path / "a.jpg", scores=[np.zeros(0)])
    assert assert_picture(tmp_path / "a.jpg").shape == (1920, 1920, 3)
    plot_images(images, [[[1, 1, 30, 30]]], [[0]], ["a"], tmp_path / "b.jpg", scores=[[0.5]])
    assert assert_picture(tmp_path / "b.jpg").shape[0] > 1920


def test_real_images(tmp_path: Path, bccd: Path) -> None:
    files = sorted((bccd / "JPEGImages").glob("*.jpg"))[:4]
    images = np.stack([cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files]).transpose(0, 3, 1, 2)
    boxes = [np.float32([[100, 100, 200, 180]])] * 4
    plot_images(images, boxes, [[0]] * 4, ["RBC"], tmp_path / "batch.jpg", scores=[[0.9]] * 4)
    page = assert_picture(tmp_path / "batch.jpg")[..., ::-1]
    first = cv2.resize(np.ascontiguousarray(images[0].transpose(1, 2, 0)), (960, 720), interpolation=cv2.INTER_CUBIC)
    assert np.abs(page[400:700, 400:900].astype(int) - first[400:700, 400:900]).mean() < 4


def test_heat_maps_of_labels_show_where_the_box_lies_and_its_size(tmp_path: Path, figures: list[Figure]) -> None:
    box = np.array([[0, 80, 20, 90]], np.float32)  # low on the left; twice as wide as high
    plot_labels(np.array([0]), box, np.array([[100, 100]]), np.array([0, 1]), ["a"], tmp_path / "labels.png")
    where, extent = (axes for axes in figures[0].axes if axes.get_title() in ("centres", "width and height"))
    for axes, (x, y) in ((where, (0.1, 0.85)), (extent, (0.2, 0.1))):
        cells = axes.images[0].get_array()
        assert cells[int(y * len(cells)), int(x * len(cells))] > 0
    assert where.yaxis_inverted() and not extent.yaxis_inverted()


@pytest.mark.parametrize(("scores", "best"), [([0.9, 0.2], 0), ([0.2, 0.9], 1), (None, 0)])
def test_the_best_of_boxes_in_one_place_is_drawn_last(scores: list[float] | None, best: int) -> None:
    drawn = draw_boxes(np.full((100, 200, 3), 90, np.uint8), [[20, 40, 80, 90]] * 2, [0, 1], ["a", "b"], scores)
    assert "#{:02x}{:02x}{:02x}".format(*drawn[70, 20]) == class_color(best)
