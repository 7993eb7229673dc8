"""val.py: one figure, however it is computed."""

from __future__ import annotations

import csv
import json
import multiprocessing
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import val
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.metrics import Detections
from utils.rundir import RunDir


def evaluate(tiny_run: Path, project: Path, *flags: str) -> val.Evaluation:
    weights = str(tiny_run / "weights" / "best.pt")
    return val.main(["--weights", weights, "--device", "cpu", "--project", str(project), "--noplots", *flags])


@pytest.mark.parametrize("batch", ["1", "3", "4"])
def test_training_val_and_pycocotools_agree_at_any_batch_size(tiny_run, tmp_path, batch):
    with (tiny_run / "results.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    best = float(row["metrics/mAP50-95"]), float(row["metrics/mAP50"])
    evaluation = evaluate(tiny_run, tmp_path, "--batch", batch, "--save-json")
    assert best[0] > 0.1, "nothing was learnt: the comparison would be of zeros"
    assert (evaluation.scores.map, evaluation.scores.map50) == pytest.approx(best, abs=1e-6)

    truth = COCO(str(tmp_path / "exp" / "truth.json"))
    judge = COCOeval(truth, truth.loadRes(str(tmp_path / "exp" / "predictions.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert judge.stats[:2] == pytest.approx(best, abs=1e-6)


def test_a_state_file_is_evaluated_by_its_averaged_weights(tiny_run, tmp_path):
    last, content = val.load_model(str(tiny_run / "weights" / "last.pt"), torch.device("cpu"))
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    averaged = content["state"]["components"]["ema"]
    assert torch.equal(last.state_dict()["head.boxes.0.2.bias"], averaged["module.head.boxes.0.2.bias"])
    with torch.no_grad():
        assert last(image).logits.shape == (1, 84, 2)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ({"size": "q"}, {}, "describes a model that this program does not know: size 'q', nc 2, backbone 'csp'"),
        ({"width": 2}, {}, "describes a model that this program does not know"),
        ({"size": "s"}, {}, "its weights are not those of the yolo-s that it describes"),
        ({}, {"head.boxes.0.2.bias": torch.zeros(3)}, "its weights are not those of the yolo-n that it describes"),
        ({}, {"extra": torch.zeros(3)}, "its weights are not those of the yolo-n that it describes"),
    ],
)
def test_a_model_that_is_not_what_it_says_is_refused(tiny_run, tmp_path, model, weights, message):
    content = load_checkpoint(tiny_run / "weights" / "best.pt")
    path = tmp_path / "other.pt"
    torch.save({**content, "model": content["model"] | model, "weights": content["weights"] | weights}, path)
    with pytest.raises(UserError) as error:
        val.main(["--weights", str(path), "--device", "cpu", "--project", str(tmp_path)])
    assert str(error.value) == f"{path}: {message}" or str(error.value).startswith(f"{path}: {message}: size")


def test_nms_reads_the_other_branch(tiny_run, tmp_path):
    plain, nms = evaluate(tiny_run, tmp_path), evaluate(tiny_run, tmp_path, "--nms")
    assert not np.array_equal(plain.detections.scores[:5], nms.detections.scores[:5])


def test_txt_rows_by_hand():
    found = Detections(
        np.zeros(2, np.int64),
        np.array([[10, 20, 30, 60], [0, 0, 100, 80]], np.float32),
        np.array([0.5, 0.25], np.float32),
        np.array([3, 0]),
    )
    assert val.yolo_rows(found, (100, 80), with_scores=True) == (
        "3 0.200000 0.500000 0.200000 0.500000 0.500000\n0 0.500000 0.500000 1.000000 1.000000 0.250000\n"
    )
    assert val.yolo_rows(found, (100, 80), with_scores=False).splitlines()[1] == "0 0.500000 0.500000 1.000000 1.000000"


def test_letterbox_is_undone_by_hand():
    # 640×480 shrunk to 320×240 on a 320×256 canvas: 8 rows of padding above.
    boxes = torch.tensor([[10.0, 18.0, 20.0, 28.0], [-5.0, 0.0, 400.0, 256.0]])
    expected = [[20.0, 20.0, 40.0, 40.0], [0.0, 0.0, 640.0, 480.0]]
    assert val.to_original_boxes(boxes, (0.5, 0.5, 0, 8), (640, 480)).tolist() == expected


def test_writes_labels_and_pictures(tiny_run, tmp_path):
    weights = str(tiny_run / "weights" / "best.pt")
    flags = ["--save-txt", "--save-conf", "--conf-thres", "0.05"]
    evaluation = val.main(["--weights", weights, "--device", "cpu", "--project", str(tmp_path), *flags])
    folder = tmp_path / "exp"
    rows = [line.split() for file in sorted((folder / "labels").iterdir()) for line in file.read_text().splitlines()]
    assert len(rows) == len(evaluation.detections) and all(len(row) == 6 for row in rows)
    assert (folder / "val_batch0_pred.jpg").stat().st_size > 1000
    assert (folder / "PR_curve.png").exists()


def test_scores_are_written_as_they_are_printed(tiny_run, tmp_path, capsys):
    evaluation = evaluate(tiny_run, tmp_path, "--noplots")
    head, *rows = (tmp_path / "exp" / "scores.csv").read_text().splitlines()
    assert head == "class,images,objects,P,R,mAP50,mAP50-95"
    assert [row.split(",")[0] for row in rows] == ["all", "square", "bar"]
    scores = [float(row.split(",")[-1]) for row in rows]
    assert scores == [evaluation.scores.map, *evaluation.scores.ap]
    printed = re.findall(r"^ +(?:all|square|bar) .* ([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    assert printed == [f"{score:.4f}" for score in scores]
    trained = (tiny_run / "scores.csv").read_text().splitlines()
    assert trained[0] == head and len(trained) == 4


def test_a_class_without_objects_has_empty_cells(tmp_path):
    val.write_scores(
        RunDir(tmp_path), [("all", 2, 3, 0.5, 0.25, 0.125, np.float64(0.0625)), ("x, y", 0, 0, *[np.nan] * 4)]
    )
    rows = list(csv.reader((tmp_path / "scores.csv").read_text().splitlines()))
    assert rows[1:] == [["all", "2", "3", "0.5", "0.25", "0.125", "0.0625"], ["x, y", "0", "0", "", "", "", ""]]


def test_a_higher_threshold_is_warned_of_and_the_best_one_lies_above_it(tiny_run, tmp_path, capsys):
    evaluation = evaluate(tiny_run, tmp_path, "--noplots", "--conf-thres", "0.2")
    assert evaluation.curves.best_confidence >= 0.2
    assert "warning: --conf-thres 0.2: what scores below it counts as not found, which lowers mAP" in (
        capsys.readouterr().out
    )
    evaluate(tiny_run, tmp_path, "--noplots", "--conf-thres", "1")
    said = capsys.readouterr().out
    assert "no detection is right at IoU 0.5, so there is no best confidence" in said and "best F1" not in said
    evaluate(tiny_run, tmp_path, "--noplots", "--conf-thres", "0.001")
    assert "warning" not in capsys.readouterr().out


def test_other_classes_are_refused(tiny_run, tiny_data, tmp_path):
    other = tiny_data.with_name("one.yaml")
    other.write_text("train: images/train\nval: images/val\nnames: [square, bar, disc]\n")
    with pytest.raises(UserError, match="has 3 classes, .* was trained on 2"):
        evaluate(tiny_run, tmp_path, "--data", str(other))


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        (("square", "bar"), ""),
        (("Square", "bar"), "class 0 is 'Square' here, 'square' in best.pt: is it"),
        (("box", "rod"), "class 0 is 'box' here, 'square' in best.pt, and so on for 2 classes: is it"),
    ],
)
def test_classes_of_other_names_are_said(names: tuple[str, ...], warning: str) -> None:
    found = val.compare_names(SimpleNamespace(file="a.yaml", nc=2, names=names), ["square", "bar"], "best.pt")
    assert len(found) == bool(warning) and all(warning in line for line in found)


def test_classes_in_another_order_are_refused(tiny_run, tiny_data, tmp_path):
    other = tiny_data.with_name("turned.yaml")
    other.write_text("train: images/train\nval: images/val\nnames: [bar, square]\n")
    with pytest.raises(UserError, match="another order than those of the model: class 0 is 'bar' here, 'square' in"):
        evaluate(tiny_run, tmp_path, "--data", str(other))


def test_says_what_is_evaluated(tiny_run, tiny_data, tmp_path, capsys):
    evaluate(tiny_run, tmp_path)
    out = capsys.readouterr().out
    assert f"{tiny_data}: val, 4 images, 2 classes" in out and "image size   64" in out
    assert re.search(r"yolo-n, epoch \d+; .*best\.pt", out)


def test_several_processes_are_refused(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"val\.py is one process: start it as python val\.py"):
        evaluate(tiny_run, tmp_path)


def test_json_is_readable_and_in_original_pixels(tiny_run, tmp_path):
    evaluation = evaluate(tiny_run, tmp_path, "--save-json")
    found = json.loads((tmp_path / "exp" / "predictions.json").read_text())
    assert len(found) == len(evaluation.detections)
    x, y, w, h = found[0]["bbox"]
    assert 0 <= x <= x + w <= 64 and 0 <= y <= y + h <= 64


def test_an_evaluation_that_breaks_off_leaves_no_worker(tiny_run, tmp_path, monkeypatch):
    """A worker that stays would be waited for at the end of the program: it leaves signals to its parent."""

    def break_off(model, loader, *_):
        next(loader.epoch(0))
        assert set(multiprocessing.active_children()) - before
        raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    monkeypatch.setattr(val, "evaluate", break_off)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_run, tmp_path, "--workers", "1")
    deadline = time.monotonic() + 30
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(multiprocessing.active_children()) - before


def test_images_of_one_name_have_labels_of_their_own(tiny_run, tiny_data, tmp_path, capsys):
    for folder in ("one", "two"):
        shutil.copytree(tiny_data.parent / "images" / "val", tmp_path / folder / "images")
        shutil.copytree(tiny_data.parent / "labels" / "val", tmp_path / folder / "labels")
    data = tmp_path / "two.yaml"
    folders = "[one/images, two/images]"
    data.write_text(f"train: {folders}\nval: {folders}\nnames: [square, bar]\n")
    evaluate(tiny_run, tmp_path, "--data", str(data), "--save-txt", "--conf", "0.05")
    files = sorted((tmp_path / "exp" / "labels").iterdir())
    assert [file.name for file in files] == [f"0{i}{again}.txt" for i in range(4) for again in ("", "_2")]
    assert all(a.read_text() == b.read_text() for a, b in zip(files[::2], files[1::2], strict=True))
    assert "4 images called as" in capsys.readouterr().out


def test_all_classes_as_one(tiny_run, tmp_path):
    """What is found counts, whatever it was taken for: more than by class, and never less."""
    apart, together = (
        evaluate(tiny_run, tmp_path / name, *flags) for name, flags in (("a", []), ("b", ["--single-cls"]))
    )
    assert together.curves.truths.tolist() == [apart.curves.truths.sum()]
    assert set(together.detections.classes.tolist()) == {0} < set(apart.detections.classes.tolist())
    found = np.column_stack([together.detections.image, together.detections.boxes])
    assert len(np.unique(found, axis=0)) == len(found) < len(apart.detections), "a point answers once"


def test_coco_annotations_keep_their_ids(tiny_run, tiny_data, tmp_path, capsys):
    """So that what is found can be scored by the file that the data yaml names."""
    evaluate(tiny_run, tmp_path / "yolo", "--save-json")
    assert "predictions.json has the ids of truth.json beside it" in capsys.readouterr().out
    truth = json.loads((tmp_path / "yolo" / "exp" / "truth.json").read_text())
    images, classes = {i["id"]: 100 + 7 * i["id"] for i in truth["images"]}, {1: 30, 2: 10}
    content = {
        "images": [{**i, "id": images[i["id"]], "file_name": Path(i["file_name"]).name} for i in truth["images"]],
        "annotations": [
            {**a, "image_id": images[a["image_id"]], "category_id": classes[a["category_id"]]}
            for a in truth["annotations"]
        ],
        "categories": [{**c, "id": classes[c["id"]]} for c in truth["categories"]],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    folder = tiny_data.parent / "images" / "val"
    split = f"{{images: {folder}, annotations: c.json}}"
    (tmp_path / "coco.yaml").write_text(f"train: {split}\nval: {split}\nnames: [square, bar]\n")
    evaluation = evaluate(tiny_run, tmp_path / "coco", "--data", str(tmp_path / "coco.yaml"), "--save-json")
    given = COCO(str(tmp_path / "c.json"))
    scored = COCOeval(given, given.loadRes(str(tmp_path / "coco" / "exp" / "predictions.json")), "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert scored.stats[0] == pytest.approx(evaluation.scores.map, abs=1e-6)
    assert "predictions.json has the ids of the annotations" in capsys.readouterr().out
