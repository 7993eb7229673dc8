"""What a user can get wrong on a command line or in a yaml, case by case: exit 2, one line, the right words.

Every case runs a whole entry point in this process; a few run as a program. The expected phrases are what a reader of
the message needs: the place, the value, what is allowed, the nearest right spelling.
"""

from __future__ import annotations

import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import detect
import train
import utils.checkpoint
import val
from utils.checkpoint import TrainState, save_model, save_state
from utils.errors import run_cli
from utils.hyp import Hyp
from utils.options import TrainOptions

ROOT = Path(__file__).resolve().parents[1]
MAINS = {"train.py": train.main, "val.py": val.main, "detect.py": detect.main}
LONG = "x" * 300
FAULT_LIST = Path("runs/train/check/faults.txt")

TRAIN = [
    # numbers
    ("--epochs 0", "--epochs 0: out of range; allowed: 1 to 1000000"),
    ("--epochs -3", "--epochs -3: out of range"),
    ("--epochs 1e2", "--epochs 1e2: not a whole number"),
    ("--epochs 3.0", "--epochs 3.0: not a whole number"),
    ("--epochs 1_000", "--epochs 1_000: not a whole number"),
    ("--epochs １０", "--epochs １０: not a whole number"),
    ("--epochs 0x10", "--epochs 0x10: not a whole number"),
    ("--epochs ''", "--epochs '': not a whole number"),
    ("--epochs=", "--epochs '': not a whole number"),
    ("--epochs None", "--epochs None: not a whole number"),
    ("--epochs true", "--epochs true: not a whole number"),
    ("--epochs inf", "--epochs inf: not a whole number"),
    ("--epochs 99999999999999999999", "--epochs 99999999999999999999: out of range"),
    (f"--epochs {'9' * 5000}", "--epochs 9999", "…: not a whole number"),
    ("--epochs", "--epochs: expected one argument"),
    ("--epochs 3 5", "5: belongs to no flag"),
    ("--batch -1", "--batch-size -1: there is no automatic batch size; give a number, such as 16"),
    ("--batch 0", "--batch-size 0: out of range; allowed: 1 to 65536"),
    ("--batch auto", "--batch-size auto: not a whole number"),
    ("--batch 0.9", "--batch-size 0.9: not a whole number"),
    ("--batch 16,16", "--batch-size 16,16: not a whole number"),
    ("--img 321", "--imgsz 321: must be a multiple of 32", "320 or 352"),
    ("--img 7", "--imgsz 7: must be a multiple of 32", "largest stride: 32"),
    ("--img -640", "--imgsz -640: out of range; allowed: 0 to 8192"),
    ("--img 640x480", "--imgsz 640x480: not a whole number"),
    ("--img-size 640 480", "--imgsz 640 480: images are square; give one size"),
    ("--img 9000", "--imgsz 9000: out of range"),
    ("--workers -5", "--workers -5: out of range; allowed: -1 to 1024"),
    ("--workers many", "--workers many: not a whole number"),
    ("--seed -1", "--seed -1: out of range; allowed: 0 to 9223372036854775807"),
    ("--seed 9223372036854775808", "--seed 9223372036854775808: out of range"),
    ("--seed random", "--seed random: not a whole number"),
    ("--patience -1", "--patience -1: out of range; allowed: 0 or more"),
    ("--patience 99999999999999999999", "out of range; allowed: 0 to 2147483647"),
    ("--val-period 0", "--val-period 0: out of range; allowed: 1 or more"),
    ("--save-period -2", "--save-period -2: out of range; allowed: -1 or more"),
    ("--save-minutes -1", "--save-minutes -1.0: out of range; allowed: 0 or more"),
    ("--save-minutes nan", "--save-minutes nan: out of range"),
    ("--save-minutes inf", "--save-minutes inf: out of range"),
    ("--save-minutes 5m", "--save-minutes 5m: not a number"),
    ("--label-smoothing 1", "--label-smoothing 1.0: out of range; allowed: 0 to 0.999"),
    ("--label-smoothing 0,1", "--label-smoothing 0,1: not a number"),
    ("--lr-find --lr-find-steps 3", "--lr-find-steps 3: out of range; allowed: 20 to 100000"),
    ("--lr-find --lr-find-from 0", "--lr-find-from 0.0: out of range"),
    ("--lr-find --lr-find-from 1 --lr-find-to 0.1", "--lr-find-from 1: must be smaller than --lr-find-to 0.1"),
    # choices
    ("--optimizer sdg", "--optimizer sdg: not one of SGD, Adam, AdamW; did you mean 'SGD'?"),
    ("--optimizer Lion", "--optimizer Lion: not one of SGD, Adam, AdamW"),
    ("--amp fp8", "--amp fp8: not one of auto, off, fp16, bf16"),
    ("--amp ''", "--amp '': not one of"),
    ("--amp fp16 --device cpu", "--amp fp16: needs a CUDA device", "allowed: off, bf16"),
    ("--cache rma", "--cache rma: not one of auto, ram, disk, off; did you mean 'ram'?"),
    ("--on-divergence rolback", "not one of stop, rollback; did you mean 'rollback'?"),
    ("--extend longer --resume", "--extend longer: not one of replan, tail"),
    ("--schedule cosine", "--schedule: 'cosine' is not one of its choices", "did you mean 'one_cycle'?"),
    (
        "--schedule x",
        "--schedule: 'x' is not one of its choices; allowed: one_cycle, linear, flat_cosine, step, constant\n",
    ),
    ("--schedule custom", "--schedule custom: give the function itself, as --schedule my_module:my_factor"),
    ("--schedule no_such_module:f", "--schedule no_such_module:f: no_such_module can't be imported"),
    ("--schedule os:no_such", "--schedule os:no_such: os has no function no_such"),
    ("--schedule ../mine.py:f", "write MODULE:FUNCTION", "no path, no .py"),
    ("--cfg yolo-z", "--cfg yolo-z: not a model; there are yolo-n, yolo-s, yolo-m, yolo-l, yolo-x"),
    ("--cfg yolov5s.yaml", "--cfg yolov5s.yaml: not a model", "did you mean 'yolo-s'?"),
    ("--cfg ''", "--cfg : not a model"),
    ("--freeze nonsense", "--freeze nonsense: allowed: a number of stages, or backbone"),
    ("--freeze -1", "--freeze -1: allowed: a number of stages, or backbone"),
    ("--freeze 1.5", "--freeze 1.5: allowed"),
    ("--freeze 12345", "--freeze 12345: allowed"),
    ("--freeze 9", "--freeze 9: the backbone has 4 stages"),
    ("--freeze 0 1 2", "1: belongs to no flag"),
    ("--device gpu", "--device gpu: not a device; allowed here: cpu"),
    ("--device -1", "--device -1: not a device"),
    ("--device ,", "--device ,: not a device"),
    ("--device 0,0", "--device 0,0: not a device"),
    ("--device 99", "--device 99: not there: torch", "CUDA device(s); allowed here: cpu"),
    ("--device cuda:x", "--device cuda:x: not a device"),
    # flags
    ("--epoch 3", "--epoch: unknown flag; did you mean '--epochs'?"),
    ("--EPOCHS 3", "--EPOCHS: unknown flag; did you mean '--epochs'?"),
    ("--batchsize 3", "--batchsize: unknown flag; did you mean '--batch-size'?"),
    ("--wieghts x", "--wieghts: unknown flag; did you mean '--weights'?"),
    ("--hpy x", "--hpy: unknown flag; did you mean '--hyp'?"),
    ("--exist-okay", "--exist-okay: unknown flag; did you mean '--exist-ok'?"),
    ("--wwwwww", "--wwwwww: unknown flag; --help lists them"),
    ("-epochs 3", "-epochs: unknown flag; did you mean '--epochs'?"),
    ("-e 3", "-e: unknown flag"),
    ("-- 3", "--: unknown flag"),
    ("–epochs 3", "–epochs: flags begin with two plain hyphens: --epochs"),
    ("—img 320", "flags begin with two plain hyphens: --img"),
    ("-h5", "ignored explicit argument '5'"),
    ("epochs=3", "epochs=3: flags are written --name value: --epochs 3"),
    ("lr0=0.1", "lr0: unknown flag; it is a hyper-parameter: --set lr0=0.1"),
    ("model=yolov8n.pt", "--weights yolov8n.pt"),
    ("detect train", "detect: belongs to no flag"),
    ("--linear-lr=yes", "--linear-lr=yes: a switch takes no value: write --linear-lr"),
    ("'a\nb'", r"train.py: a\nb: belongs to no flag"),
    ("'--a\nb'", r"train.py: --a\nb: unknown flag"),
    ("--rect False", "False: belongs to no flag"),
    ("--evolve 300", "--evolve does not exist here", "--set KEY=VALUE"),
    ("--image-weights", "--image-weights does not exist here"),
    ("--noautoanchor", "--noautoanchor does not exist here: the model has no anchors"),
    ("--quad", "--quad does not exist here"),
    ("--local_rank 0", "--local-rank does not exist here", "torchrun"),
    # contradictions
    ("--linear-lr --cos-lr", "--linear-lr and --cos-lr contradict each other: give one of them"),
    ("--cos-lr --schedule step", "--cos-lr and --schedule step contradict each other"),
    ("--adam --optimizer SGD", "--adam and --optimizer SGD contradict each other"),
    ("--adam --set optimizer=SGD", "--adam and --set optimizer=… name the same thing"),
    ("--multi-scale --set multi_scale=0.2", "--multi-scale and --set multi_scale=… name the same thing"),
    ("--extend tail", "--extend tail: goes with --resume"),
    ("--extend replan --epochs 90", "--extend replan: goes with --resume"),
    ("--plan --lr-find", "--plan and --lr-find: each takes the place of training; give one of them"),
    ("--lr-find --resume", "--lr-find and --resume: give one of them"),
    ("--lr-find-steps 50", "--lr-find-steps: goes with --lr-find"),
    ("--force", "--force: goes with --resume"),
    ("--noval --val-period 3", "--noval and --val-period contradict each other"),
    ("--hyp flat.yaml --linear-lr", "--linear-lr and flat.yaml:1: schedule: flat_cosine contradict each other"),
    ("--set scale_weight_decay=true", "scale_weight_decay: true divides by nominal_batch, which is 0"),
    # paths
    ("--weights nope.pt", "--weights nope.pt: no such file"),
    ("--weights jnuk.pt", "--weights jnuk.pt: no such file; did you mean 'junk.pt'?"),
    ("--weights folder", "--weights folder: a folder, not a checkpoint"),
    ("--weights junk.pt", "junk.pt: not a sound checkpoint"),
    ("--weights pickle.pt", "pickle.pt: not a sound checkpoint"),
    ("--weights empty.pt", "empty.pt: not a sound checkpoint (too short)"),
    ("--weights torchvision:resnet19", "torchvision:resnet19: torchvision has no such classifier; did you mean"),
    ("--weights torchvision:resnet18", "its ImageNet weights are not in", "add --download to fetch https://download"),
    ("--weights torchvision:resnet18:ramdom", "write torchvision:resnet18 or torchvision:resnet18:random"),
    ("--data nope", "data 'nope': no such yaml file", "shapes"),
    ("--data shape", "data 'shape': no such yaml file", "did you mean 'shapes'?"),
    ("--data folder", "data 'folder': a folder; give a yaml file (those in it: in.yaml)"),
    ("--data junk.pt", "junk.pt: not a data yaml"),
    ("--data ''", "data '': a folder"),
    ("--hyp yolov8", "--hyp yolov8: no such file", "did you mean 'yolov7'?"),
    ("--hyp folder", "--hyp folder: a folder; the presets are default"),
    ("--hyp ''", "--hyp '': no such file"),
    ("--hyp empty.pt", "empty.pt: holds no 'key: value' lines"),
    ("--project junk.pt", "junk.pt/exp: cannot be made: junk.pt is not a folder"),
    ("--project junk.pt --plan", "junk.pt/exp: cannot be made: junk.pt is not a folder"),
    ("--name ../x", "--name ../x: leads out of --project runs/train"),
    ("--name /tmp/x", "--name /tmp/x: leads out of --project"),
    ("--name ''", "--name '': give the run's folder a name, such as exp"),
    ("--name .", "--name '.': give the run's folder a name"),
    ("--name ..", "leads out of --project"),
    ("--project . --name folder --exist-ok", "--exist-ok: folder is no run's folder: nothing is written among"),
    ("--resume nope", "--resume nope: no such file or folder"),
    ("--resume", "--resume: no run in runs/train has a weights/last.pt; give --resume PATH"),
    ("--resume folder", "--resume folder: folder holds no weights/last.pt"),
    ("--resume junk.pt", "--resume junk.pt: lies in no run's folder", "--weights junk.pt starts a new run"),
    ("--resume broken", "broken/weights/last.pt: not a sound checkpoint"),
    # texts
    *((f"--{flag} {LONG}", f"--{flag} xxx", "…: too long") for flag in ("weights", "data", "hyp", "name", "project")),
    (f"--resume {LONG}", "--resume xxx", "…: too long; a path has at most 4095 bytes, and each name in it 255"),
    ("--data 'a\nb'", r"--data a\nb: holds a control character"),
    ("--hyp '\x1b[31mred'", r"--hyp \x1b[31mred: holds a control character"),
    ("--name '\udcff'", r"--name \xff: not text in UTF-8"),
    ("--data 数据.yaml", "data '数据.yaml': no such yaml file"),
    ("--data 'my data/$(reboot).yaml'", "data 'my data/$(reboot).yaml': no such yaml file"),
    # --set
    ("--set", "--set: expected at least one argument"),
    ("--set lr0", "--set lr0: write KEY=VALUE, such as --set lr0=0.02"),
    ("--set =1", "--set =1: write KEY=VALUE"),
    ("--set ''", "--set : write KEY=VALUE"),
    ("--set lr0=", "--set lr0=: has no value; allowed: a number in (0, 10]"),
    ("--set lr0=fast", "--set lr0=fast: 'fast' is not a number; allowed: a number in (0, 10]"),
    ("--set lr0=1e-3=2", "--set lr0=1e-3=2: '1e-3=2' is not a number"),
    ("--set lr0 = 0.1", "3 faults in the command line:", "--set lr0: write KEY=VALUE", "--set 0.1: write KEY"),
    ("--set LR0=0.1", "--set LR0=0.1: LR0: unknown key; did you mean 'lr0'?"),
    ("--set lr_0=0.1", "--set lr_0=0.1: lr_0: unknown key; did you mean 'lr0'?"),
    ("--set lr0=0.1 lr0=0.2", "--set lr0=0.2: lr0 is set twice"),
    ("--set epochs=3", "epochs: not a hyper-parameter but a flag: --epochs"),
    ("--set fl_gamma=1.5", "fl_gamma: not a key here"),
    ("--set schedule=os:system", "a yaml never names code to run; give --schedule os:system on the command line"),
    ("--set step_at=0.5,0.2", "[0.5, 0.2] does not rise from number to number"),
    ("--set lr_scale=neck", "'neck' is not a map from part to number"),
    ("--set lr_scale=nek:1", "'nek' is not one of backbone, neck, head; did you mean 'neck'?"),
]
VAL = [
    ("", "val.py needs --weights PATH: checkpoint (.pt) to evaluate"),
    ("--weights ''", "val.py needs --weights PATH"),
    ("--weights nope.pt", "nope.pt: no such file"),
    ("--weights pickle.pt", "pickle.pt: not a sound checkpoint"),
    ("--weights last.pt --task tset", "--task tset: not one of train, val, test; did you mean 'test'?"),
    ("--weights last.pt --conf 25", "--conf-thres 25.0: out of range; allowed: 0 to 1"),
    ("--weights last.pt --conf nan", "--conf-thres nan: out of range"),
    ("--weights last.pt --iou -0.1", "--iou-thres -0.1: out of range"),
    ("--weights last.pt --max-det 0", "--max-det 0: out of range"),
    ("--weights last.pt --img 100", "--imgsz 100: must be a multiple of 32", "96 or 128"),
    ("--weights last.pt --half", "--half does not exist here", "off (fp32), fp16 or bf16"),
    ("--weights last.pt --augment", "--augment does not exist here: there is no test-time augmentation"),
    ("--weights last.pt --save-conf", "--save-conf: goes with --save-txt"),
    ("--weights last.pt --epochs 3", "val.py: --epochs: unknown flag"),
    ("--weights last.pt --batch big", "--batch-size big: not a whole number"),
    ("--weights misfit.pt", "misfit.pt: its weights are not those of the yolo-n that it describes"),
    ("--weights alien.pt", "alien.pt: describes a model that this program does not know: size 'q'"),
    ("--weights misfit.pt --name ../x", "--name ../x: leads out of --project runs/val"),
]
DETECT = [
    ("", "detect.py needs --weights PATH: checkpoint (.pt)"),
    ("--weights a.pt", "detect.py needs --source PATH: image, video, folder, glob, or txt list of them"),
    ("--weights a.pt --source nope.jpg", "--source nope.jpg: no such file, folder or pattern"),
    ("--weights a.pt --source picture.jgp", "--source picture.jgp: no such file", "did you mean 'picture.jpg'?"),
    ("--weights a.pt --source empty_folder", "--source empty_folder: an empty folder"),
    ("--weights a.pt --source folder", "--source folder: no image or video in it; read are .bmp"),
    ("--weights a.pt --source loop.txt", "loop.txt: entry 1 is another list, loop.txt"),
    ("--weights a.pt --source latin.txt", "latin.txt: can't be read as UTF-8 text"),
    (
        "--weights a.pt --source 'https://example.org/x.jpg'",
        "https://example.org/x.jpg: no camera, stream or address is read",
    ),
    ("--weights a.pt --source rtsp://camera", "rtsp://camera: no camera, stream or address is read"),
    ("--weights a.pt --source 0", "--source 0: no camera, stream or address is read"),
    ("--weights nope.pt --source picture.jpg", "nope.pt: no such file"),
    ("--weights a.pt --source x --classes", "--classes: expected at least one argument"),
    ("--weights a.pt --source x --classes cat", "--classes cat: not a whole number"),
    ("--weights a.pt --source x --classes -1", "--classes -1: out of range; allowed: 0 or more"),
    ("--weights a.pt --source x --vid-stride 0", "--vid-stride 0: out of range; allowed: 1 or more"),
    ("--weights a.pt --source x --line-thickness 1.5", "--line-thickness 1.5: not a whole number"),
    ("--weights a.pt --source x --agnostic-nms", "--agnostic-nms: goes with --nms"),
    ("--weights a.pt --source x --view-img", "--view-img does not exist here"),
    ("--weights a.pt --source x --data d.yaml", "--data does not exist here: the checkpoint knows its classes"),
    ("--weights a.pt --source x --img 321", "--imgsz 321: must be a multiple of 32", "320 or 352"),
    ("--weights a.pt --source x --sorce y", "--sorce: unknown flag; did you mean '--source'?"),
]
HYP = [
    ("lr0: .inf", "my.yaml:1: lr0: '.inf' is not a number; allowed: a number in (0, 10]"),
    ("lr0: .NaN", "'.NaN' is not a number"),
    ("lr0: on", "'on' is not a number"),
    ("lr0: true", "'true' is not a number"),
    ("lr0: null", "lr0: has no value"),
    ("lr0:", "lr0: has no value"),
    ("lr0: 1:30", "'1:30' is not a number"),
    ("lr0: 2024-01-01", "'2024-01-01' is not a number"),
    ("lr0: 010", "010 starts with a 0, which may mean octal"),
    ("lr0: -0.0", "lr0: 0.0 is out of range"),
    ("lr0: '0.01'", "'0.01' is written as text", "without quotes"),
    ("lr0: 1_0", "'1_0' is not a number"),
    ("lr0: 1e999", "inf is out of range"),
    ("lr0: [0.01]", "a list or mapping is not allowed here"),
    ("lr0: {a: 1}", "a list or mapping is not allowed here"),
    ("lr0: 0.01 0.02", "'0.01 0.02' is not a number"),
    ("lr0: 50%", "'50%' is not a number"),
    (f"lr0: {'7' * 1000}", "lr0: inf is out of range"),
    (f"lr0: {'x' * 1000}", "…", "is not a number"),
    ("lr0: !!python/object/apply:os.system [reboot]", "a list or mapping is not allowed here"),
    ("lr0: !!python/name:os.system ''", "the tag", "is not allowed here"),
    ("close_mosaic: 10.0", "'10.0' is not a whole number"),
    ("close_mosaic: 99999999999999999999", "is not a whole number"),
    ("close_mosaic: 1e2", "'1e2' is not a whole number"),
    ("close_mosaic: 0b11", "'0b11' is not a whole number"),
    ("close_mosaic: -1", "-1 is out of range; allowed: a whole number in [0, 100000]"),
    ("scale_weight_decay: 1", "'1' is not true or false"),
    ("scale_weight_decay: yes", "'yes' is not true or false"),
    ("optimizer: 3", "'3' is not one of its choices; allowed: SGD, Adam, AdamW"),
    ("optimizer: admw", "did you mean 'AdamW'?"),
    ("optimizer: [SGD]", "a list or mapping is not allowed here"),
    ("schedule: cosin", "'cosin' is not one of its choices"),
    ("schedule: os:system", "a yaml never names code to run"),
    ("fitness: map", "'map' is not one of its choices; allowed: mAP50-95, mAP50, precision, recall"),
    ("momentum: 1.0", "1.0 is out of range; allowed: a number in [0, 1)"),
    ("step_at: 0.5", "not a list of numbers"),
    ("step_at: []", "[] does not rise"),
    ("lr_scale: {}\nLR0: 0.1", "my.yaml:2: LR0: unknown key; did you mean 'lr0'?"),
    ("lr_0: 0.1", "lr_0: unknown key; did you mean 'lr0'?"),
    ("momentun: 0.9", "did you mean 'momentum'?"),
    ("xyzzy: 1", "xyzzy: unknown key; train.py --help-hyp lists the keys"),
    ("lr0: 0.1\nlr0: 0.2", "my.yaml:2: lr0: given twice, first in line 1"),
    ("anchor_t: 4.0", "anchor_t: not a key here: the model is anchor-free"),
    ("fl_gamma: 0.0", "fl_gamma: not a key here"),
    ("obj: 1.0", "obj: not a key here: there is no objectness branch"),
    ("copy_paste: 0.1", "copy_paste: not a key here: it needs masks"),
    ("nbs: 64", "write nominal_batch"),
    ("erasing: 0.4", "erasing: not a key here"),
    ("kobj: 1.0", "kobj: not a key here"),
    ("cos_lr: false", "write schedule: one_cycle for true, schedule: linear for false"),
    ("epochs: 100", "epochs: not a hyper-parameter but a flag: --epochs"),
    ("batch: 16", "a flag: --batch-size"),
    ("imgsz: 640", "a flag: --imgsz"),
    ("model: yolov8n.yaml", "write --cfg yolo-n, or --weights PATH"),
    ("lr0 0.1", "holds no 'key: value' lines"),
    ("lr0=0.1", "holds no 'key: value' lines"),
    ("- lr0: 0.1", "holds no 'key: value' lines"),
    ("lr0: 0.1\n\tlrf: 0.1", "my.yaml:2: not valid yaml"),
    ('lr0: "\\UFFFFFFFF"', "my.yaml", "not valid yaml"),
    ("lr0: *nothing", "my.yaml:1: not valid yaml: found undefined alias"),
    ("lr0: [" * 3000, "not valid yaml"),
    ("# " + "x" * (1 << 20) + "\nlr0: 0.1", "bytes are too many for a file of hyper-parameters"),
    ("lr_batch_rule: sqrt", "lr_batch_rule: sqrt divides by nominal_batch, which is 0"),
]
REST = "names: [a, b]\ntrain: images\nval: images"
DATA = [
    (f"{REST}\nnc: 3", "my.yaml:4: nc: 3, but `names` has 2"),
    (f"{REST}\nnc: two", "nc: 'two' is not a number of classes"),
    (f"{REST}\nnc: -1", "nc: '-1' is not a number of classes"),
    (f"{REST}\nnc: [2]", "nc: ['2'] is not a number of classes"),
    ("names: {0: a, 2: b}\ntrain: images\nval: images", "names: 2 names must be numbered 0 to 1; 1 is missing"),
    ("names: {a: 0}\ntrain: images\nval: images", "names: the map must go from number to name; 'a' is not a number"),
    ("names: a\ntrain: images\nval: images", "names: 'a' is neither a list of class names nor a map"),
    ("names: [a, [b]]\ntrain: images\nval: images", "names: name 1, ['b'], is not a text"),
    ("names: [a, null]\nnc:\ntrain: [null]", "train: 'null' is not a path"),
    (
        'names: [a, "\\e[2J"]\ntrain: images\nval: images',
        "name 1, '\\x1b[2J', is too long or holds what can't be shown",
    ),
    (f"names: [{'x' * 300}]\ntrain: images\nval: images", "name 0, 'xxx", "is too long"),
    ("train: images\nval: images", "names: this key is missing"),
    ("nmaes: [a]\ntrain: images\nval: images", "my.yaml:1: nmaes: unknown key; did you mean 'names'?"),
    ("classes: [a]\nnc: 1\ntrain: images\nval: images", "my.yaml:1: classes: unknown key; did you mean 'names'?"),
    ("names: [a]\nTrain: images\nval: images", "my.yaml:2: Train: unknown key; did you mean 'train'?"),
    ("names: [a]\ntrain: images\nvla: images", "my.yaml:3: vla: unknown key; did you mean 'val'?"),
    ("names: [a]\ntrain: images\nvalid: images", "valid: unknown key; did you mean 'val'?"),
    (f"{REST}\npaht: .", "paht: unknown key; did you mean 'path'?"),
    (f"{REST}\ntset: images", "tset: unknown key; did you mean 'test'?"),
    (f"{REST}\ntrain: images", "my.yaml:4: not valid yaml: the key 'train' is already on line 2"),
    ("names: [a]\ntrain: images", "train: no images in", "val: this key is missing"),
    ("names: [a]\nval: images", "train: this key is missing (the file has val)"),
    ("names: [a]\ntrain: imgaes\nval: images", "my.yaml:2: train: 'imgaes': no such file or folder", "'images'?"),
    ("path: /no/such\n" + REST, "my.yaml:1: path: no such file or folder"),
    ("path: 5\n" + REST, "my.yaml:1: path: no such file or folder"),
    ("path: {a: b}\n" + REST, "path: {'a': 'b'} is neither a text nor a list of texts"),
    ("names: [a]\ntrain: {images: images}\nval: images", "a mapping needs `images` (a folder) and `annotations`"),
    ("names: [a]\ntrain: {images: i, anotations: a}\nval: images", "unknown key 'anotations'", "did you mean"),
    (f"names: [a]\ntrain: {LONG}\nval: images", "train: 'xxx", ": too long; a path has"),
    ('names: [a]\ntrain: "a\\0b"\nval: images', "train: 'a\\x00b': holds a control character"),
    ("names: [a]\ntrain: images\nval: images\nkpt_shape: [²,3]", "kpt_shape", "is not [number of keypoints, 2 or 3]"),
    ("names: [a]\ntrain: a.json\nval: images", "'a.json': no such file or folder"),
    (f"{REST}\ndownload: {{url: x, sha: y}}", "download: unknown key 'sha'", "did you mean 'sha256'?"),
    (f"{REST}\ndownload: {{url: x, size: {'9' * 5000}}}", "download: size: '999", "is not a number of bytes"),
    (f"{REST}\ndownload: {{url: x, to: ../../etc}}", "download: to: '../../etc' must be a folder below"),
    ("embedded: cubes\n" + REST, "embedded: 'cubes' is not embedded; only 'shapes' is"),
    ("- a\n- b", "not a data yaml but a list: it has no `key: value` lines"),
    ("names: [a\ntrain: images", "not valid yaml"),
    ("a: &a [x, *a]\nnames: *a\ntrain: images", "unfold into more than 200,000 values"),
    ("names: [*nope]\ntrain: images", "not valid yaml: found undefined alias"),
]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of every case, with the files that the cases name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for folder in ("folder", "empty_folder", "images", "broken/weights"):
        Path(folder).mkdir(parents=True)
    Path("folder/in.yaml").touch()
    Path("empty.pt").touch()
    Path("junk.pt").write_bytes(b"junk" * 100)
    Path("pickle.pt").write_bytes(pickle.dumps({"weights": [1, 2]}))
    Path("broken/weights/last.pt").write_bytes(b"junk" * 100)
    Path("loop.txt").write_text("loop.txt\n")
    Path("latin.txt").write_bytes("straße.jpg".encode("latin-1"))
    Path("picture.jpg").write_bytes(b"no picture")
    Path("flat.yaml").write_text("schedule: flat_cosine\n")
    weights = {"w": torch.zeros(1)}
    shipped = {**DESCRIPTION, "epoch": 1, "fitness": 0.5}
    save_model(Path("misfit.pt"), weights, shipped)
    save_model(Path("alien.pt"), weights, {**shipped, "model": {"size": "q", "nc": 2, "backbone": "csp"}})
    return tmp_path


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run an entry point and return what it says on stderr; it must exit with 2, and write nothing."""

    def run(program: str, argv: list[str]) -> str:
        before = listing()
        with pytest.raises(SystemExit) as caught:
            run_cli(lambda: MAINS[program](argv))
        out, err = capfd.readouterr()
        assert caught.value.code == 2, err
        assert err.startswith("error: ") and err.endswith("\n") and "Traceback" not in err
        assert all(line.isprintable() and len(line) <= 2100 for line in err.splitlines())
        said = {line.split()[0] for line in out.splitlines()}
        assert said <= {"data", "image", "model", "device", "batch", "optimizer", "schedule", "groups"}, out
        assert listing() == before
        return err

    return run


def listing() -> set[str]:
    """All files here but the locks that a resumed run leaves, and the list of faults that stop a run."""
    paths = (path for path in Path().rglob("*") if path.name != ".lock")
    return {str(path) for path in paths if path not in FAULT_LIST.parents and path != FAULT_LIST}


def check(message: str, phrases: tuple[str, ...]) -> None:
    assert all(phrase in message for phrase in phrases), message
    faults = message.count("\n") - 1
    # Of the data a last line says how to go on.
    head = rf"error: (.*my\.yaml: {faults - 1} faults stop the run; |{faults} faults in )"
    assert faults == 0 or re.match(head, message), message


def ids(cases: list[tuple[str, ...]]) -> Iterator[str]:
    return (f"{number}-{ascii(case[0])[1:40]}" for number, case in enumerate(cases))


@pytest.mark.parametrize("case", TRAIN, ids=ids(TRAIN))
def test_train_command_line(case: tuple[str, ...], refused: Callable[..., str]) -> None:
    argv = shlex.split(case[0])
    fixed = [] if "--device" in argv else ["--device", "cpu"]
    check(refused("train.py", [*argv, *fixed] if "--resume" not in argv else argv), case[1:])


@pytest.mark.parametrize("case", VAL, ids=ids(VAL))
def test_val_command_line(case: tuple[str, ...], refused: Callable[..., str]) -> None:
    check(refused("val.py", shlex.split(case[0])), case[1:])


@pytest.mark.parametrize("case", DETECT, ids=ids(DETECT))
def test_detect_command_line(case: tuple[str, ...], refused: Callable[..., str]) -> None:
    check(refused("detect.py", shlex.split(case[0])), case[1:])


@pytest.mark.parametrize("case", HYP, ids=ids(HYP))
def test_hyp_yaml(case: tuple[str, ...], refused: Callable[..., str]) -> None:
    Path("my.yaml").write_text(case[0] + "\n", encoding="utf-8")
    check(refused("train.py", ["--hyp", "my.yaml"]), case[1:])


@pytest.mark.parametrize("case", DATA, ids=ids(DATA))
def test_data_yaml(case: tuple[str, ...], refused: Callable[..., str]) -> None:
    Path("my.yaml").write_text(case[0] + "\n", encoding="utf-8")
    check(refused("train.py", ["--data", "my.yaml", "--device", "cpu"]), case[1:])


def test_the_cases_are_many_and_each_is_there_once() -> None:
    for cases in (TRAIN, VAL, DETECT, HYP, DATA):
        assert len({case[0] for case in cases}) == len(cases)
    assert sum(map(len, (TRAIN, VAL, DETECT, HYP, DATA))) >= 300


def test_five_faults_of_a_hyp_yaml_are_all_said(refused: Callable[..., str]) -> None:
    Path("my.yaml").write_text("lr0: fast\nmomentun: 0.9\nobj: 1.0\nlrf: 2\nepochs: 3\nbox: 7.5\n")
    lines = refused("train.py", ["--hyp", "my.yaml"]).splitlines()
    assert lines[0] == "error: 5 faults in my.yaml:"
    keys = ("lr0: 'fast'", "momentun: unknown", "obj: not a key", "lrf: 2.0 is out", "epochs: not a hyper-parameter")
    assert len(lines) == 6
    for number, (line, key) in enumerate(zip(lines[1:], keys, strict=True), 1):
        assert line.startswith(f"  my.yaml:{number}: {key}")


def test_five_faults_of_a_data_yaml_are_all_said(refused: Callable[..., str]) -> None:
    Path("my.yaml").write_text("nc: many\nnames: a\ntrain: [[x]]\nkpt_shape: 3\nvla: images\ndownload: {to: x}\n")
    lines = refused("train.py", ["--data", "my.yaml", "--device", "cpu"]).splitlines()
    assert lines[0] == "error: 5 faults in the data:"
    words = sorted(line.rpartition("my.yaml:")[2].split(":")[1].strip() for line in lines[1:])
    assert words == ["download", "kpt_shape", "nc", "train", "vla"], "one a key; `names` waits for `nc`"


@pytest.mark.parametrize("text", ["1e-3", "1E-3", ".001", "1.e-3", "+0.001"])
def test_numbers_that_yaml_1_1_takes_for_text_are_numbers(text: str) -> None:
    """No case of refusal: YAML 1.1 reads `1e-3` as text, and users mean a number."""
    Path("my.yaml").write_text(f"lr0: {text}\n")
    assert train.start_anew(train.parse_opt(["--hyp", "my.yaml"])).hyp.lr0 == 0.001
    assert train.start_anew(train.parse_opt(["--set", f"lr0={text}"])).hyp.lr0 == 0.001


def test_a_negative_zero_is_zero() -> None:
    Path("my.yaml").write_text("mixup: -0.0\n")
    assert str(train.start_anew(train.parse_opt(["--hyp", "my.yaml"])).hyp.mixup) == "0.0"


# What a run folder holds, which a person or a broken disk may have changed.

DESCRIPTION: dict[str, Any] = {
    "model": {"size": "n", "nc": 2, "backbone": "csp"},
    "names": ["a", "b"],
    "imgsz": 64,
    "data": "shapes",
    "single_cls": False,
    "hyp": Hyp().to_dict(),
    "options": TrainOptions(epochs=3).to_dict(),
}


class Part:
    """A component that is no more than its state."""

    def __init__(self, **state: Any) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("a run that is refused is not restored")


def write_run(description: dict[str, Any], epoch: int = 1) -> None:
    weights = {"w": torch.zeros(1)}
    parts = {"model": Part(**weights), "ema": Part(**weights)}
    parts["stopping"] = Part(best_fitness=0.5, best_epoch=0, since=0)
    Path("run/weights").mkdir(parents=True)
    content = {"course": {"first": 3, "extensions": []}, **DESCRIPTION, **description}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.checkpoint, "_fault", lambda content: "")  # what no run of ours would write
        save_state(Path("run/weights/last.pt"), TrainState(parts, epoch=epoch), content)


def options(**changes: Any) -> dict[str, Any]:
    return {"options": {**TrainOptions(epochs=3).to_dict(), **changes}}


CHANGED_STATES = [
    (
        options(epochs="3", rect=1, epoch=3),
        "3 faults in run/weights/last.pt:",
        "epoch: unknown option",
        "--rect 1: not",
    ),
    (options(batch_size=0), "run/weights/last.pt: --batch-size 0: out of range"),
    (options(imgsz=1.5), "--imgsz 1.5: not a number"),
    (options(seed=True), "--seed True: not a number"),
    (options(set=["a", 3]), "--set a 3: not a text"),
    (options(set="lr0=1"), "--set lr0=1: not a list"),
    (options(optimizer="Lion"), "--optimizer Lion: not one of SGD, Adam, AdamW"),
    (options(name=None), "--name None: not a text"),
    (options(name="../../etc"), "--name ../../etc: leads out of --project"),
    (options(linear_lr=True, cos_lr=True), "--linear-lr and --cos-lr contradict each other"),
    (options(**{"": 1}), "unknown option"),
    (options(schedule="os:system"), "this run's schedule is code of yours; a checkpoint names no code to run"),
    ({"hyp": {"lr0": "0.1", "lr1": 1, "momentum": 2}}, "3 faults in", "lr1: unknown key", "lr0: '0.1' is not a number"),
    ({"hyp": {"lr0": float("nan")}}, "lr0: nan is out of range"),
    ({"hyp": {"close_mosaic": 1.5}}, "close_mosaic: 1.5 is not a whole number"),
    ({"hyp": {"schedule": "os:system"}}, "is not one of its choices"),
    ({"course": {"first": 0, "extensions": []}}, "a checkpoint's course of epochs must be"),
    ({"course": {"first": 1 << 60, "extensions": []}}, "a checkpoint's course of epochs must be"),
    ({"course": [3]}, "a checkpoint's course of epochs must be"),
    ({"course": {"first": 3, "extensions": [[1, 2, "eval"]]}}, "a checkpoint's course of epochs must be"),
    ({"course": {"first": 3, "extensions": [[2, 1, "tail"]]}}, "a checkpoint's course of epochs must be"),
    ({"names": ["a", "\x1b[2J"]}, "names hold what can't be shown"),
    ({"imgsz": 1 << 40}, "imgsz 1099511627776"),
]


@pytest.mark.parametrize("case", CHANGED_STATES, ids=ids([(str(case[0]),) for case in CHANGED_STATES]))
def test_a_state_whose_content_was_changed(case: tuple[Any, ...], refused: Callable[..., str]) -> None:
    write_run(case[0])
    check(refused("train.py", ["--resume", "run"]), case[1:])


@pytest.mark.parametrize(
    ("epoch", "line", "phrases"),
    [
        (1, "--seed 5", ("--seed 5: this run has 0", "leave --seed out")),
        (1, "--set lr0=0.1 lrf=0.2", ("--set lr0=0.1 lrf=0.2: this run has none, and",)),
        (1, "--epochs 9", ("--epochs 9: this run has 3", "a resumed run is the same run")),
        (1, "--batch 8", ("--batch-size 8: this run has 16",)),
        (1, "--hyp yolov7", ("--hyp yolov7: this run has hyp/default.yaml",)),
        (1, "--set lr0=0.1", ("--set",)),
        (1, "--weights misfit.pt", ("--weights misfit.pt: this run has",)),
        (1, "--exist-ok", ("--exist-ok: this run is without it",)),
        (1, "--linear-lr", ("--linear-lr: this run is without it",)),
        (1, "--extend tail --epochs 9", ("this run is at epoch 1 of 3; --resume finishes it",)),
    ],
)
def test_a_flag_that_would_make_a_resumed_run_another(
    epoch: int, line: str, phrases: tuple[str, ...], refused: Callable[..., str]
) -> None:
    write_run({}, epoch)
    check(refused("train.py", ["--resume", "run", *shlex.split(line)]), phrases)


@pytest.mark.parametrize(
    "line",
    [
        "train.py --epochs 0",
        "train.py --hyp my.yaml",
        "val.py --weights pickle.pt",
        "detect.py --weights junk.pt --source picture.jpg",
    ],
)
def test_as_a_program(line: str) -> None:
    Path("my.yaml").write_text("lr0: fast\n")
    program, *argv = shlex.split(line)
    done = subprocess.run([sys.executable, str(ROOT / program), *argv], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
