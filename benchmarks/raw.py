"""Keep raw predictions on BCCD's test set, of an untrained net and of two checkpoints: `raw.py WEIGHTS_FOLDER OUT`."""

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from data.config import load_data_config
from data.dataset import DetectionDataset
from data.index import build_index
from data.loader import Loader
from models.yolo import YOLO, ModelConfig
from utils.hyp import Hyp
from val import load_model


def main() -> None:
    folder, target = Path(sys.argv[1]), sys.argv[2]
    index, _ = build_index(load_data_config("bccd"), "val")
    dataset = DetectionDataset(index, 320, Hyp(), seed=0, epochs=1, augment=False, rect=True)
    loader = Loader(dataset, 16, workers=0, seed=0, shuffle=False)
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    models = {"untrained": YOLO(ModelConfig("n", 3)).eval()}
    models |= {
        name: load_model(str(folder / file), cpu)[0] for name, file in (("mid", "epoch2.pt"), ("trained", "best.pt"))
    }
    with torch.no_grad():
        raw = {name: [tuple(model(batch.images)) for batch in loader.epoch(0)] for name, model in models.items()}
    torch.save(raw, target)


if __name__ == "__main__":
    main()
