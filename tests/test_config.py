"""The data yaml: what works unchanged from other projects, and what the user is told when it can't work."""

from __future__ import annotations

import functools
import http.server
import itertools
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

import data.config
from data.cache import cache_root
from data.config import Source, load_data_config
from data.download import fetch
from data.faults import DataError
from data.formats import read_split
from data.shapes import NAMES, SPLITS
from utils.errors import UserError

DATA = Path(data.config.__file__).parent
OWN = ["shapes", "bccd", "bccd-tune", "voc", "coco"]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., data.config.DataConfig]:
    """Write a yaml to `set/data.yaml` (working directory: `work`, beside it) and load it."""
    (tmp_path / "work").mkdir()
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def write_and_load(text: str, **options: bool) -> data.config.DataConfig:
        (tmp_path / "set/data.yaml").write_text(text, encoding="utf-8")
        return load_data_config(tmp_path / "set/data.yaml", **options)

    return write_and_load


def folders(base: Path, *names: str) -> None:
    for name in names:
        (base / name).mkdir(parents=True)


def test_roboflow_yaml_works_unchanged(load: Callable, tmp_path: Path) -> None:
    folders(tmp_path / "set", "train/images", "valid/images")
    config = load(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['a b', 'c']\n\n"
        "roboflow:\n  workspace: w\n  license: CC BY 4.0\n  version: 1\n"
    )
    assert config.split("train").sources == (Source(tmp_path / "set/train/images"),)
    assert config.split("val").sources == (Source(tmp_path / "set/valid/images"),)
    assert config.names == ("a b", "c")
    with pytest.raises(UserError, match=r"data.yaml:3: test: '../test/images': no such file or folder"):
        config.split("test")  # absent, which only matters to who asks for it


def test_roboflows_quirk_is_looked_for_in_the_set_before_the_working_directory(
    load: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path, "set/train/images", "other/code", "other/train/images")
    monkeypatch.chdir(tmp_path / "other/code")
    config = load("train: ../train/images\nnames: [a]\n")
    assert config.split("train").sources == (Source(tmp_path / "set/train/images"),)


def test_ultralytics_yaml_works_unchanged(load: Callable, tmp_path: Path) -> None:
    folders(tmp_path / "datasets/coco8-pose", "images/train", "images/val")
    config = load(
        "# comment\npath: coco8-pose # dataset root dir\ntrain: images/train\nval: images/val\ntest: # optional\n\n"
        "kpt_shape: [17, 3]\nflip_idx: [0, 2, 1]\nnames:\n  0: person\nkpt_names:\n  0:\n    - nose\n"
        "download: |\n  from pathlib import Path\n  Path('executed').touch()\n"
    )
    assert config.root == tmp_path / "datasets/coco8-pose"  # `datasets` beside the working directory
    assert config.names == ("person",) and config.keypoints == 51 and config.archives == ()
    assert list(config.splits) == ["train", "val"]


def test_a_yaml_packed_into_its_set_is_beside_its_splits(load: Callable, tmp_path: Path) -> None:
    folders(tmp_path / "set", "images/train")
    text = "path: ../datasets/set\ntrain: images/train\nnames: [a]\n"
    assert load(text).root == tmp_path / "set"
    for other in ("sett", "/datasets/set", "set/images"):
        with pytest.raises(UserError, match="path: no such file or folder"):
            load(text.replace("../datasets/set", other)).split("train")
    empty = load(text.replace("images/train", "images/lost"))  # nothing of the set is here: it is elsewhere, or to come
    assert empty.root == tmp_path / "datasets/set"
    with pytest.raises(UserError, match=r"path: no such file or folder \(tried .*/datasets/set"):
        empty.split("train")
    folders(tmp_path / "datasets/set", "images/train")
    assert load(text).root == tmp_path / "datasets/set"


def test_yolov5_yaml_with_lists_relative_to_the_working_directory(load: Callable, tmp_path: Path) -> None:
    folders(tmp_path / "work", "coco")
    (tmp_path / "work/coco/train2017.txt").touch()
    config = load("train: ./coco/train2017.txt\nnc: 1\nnames: [person]\n")
    assert config.split("train").sources == (Source(tmp_path / "work/coco/train2017.txt"),)


def test_path_is_the_first_that_exists(load: Callable, tmp_path: Path) -> None:
    folders(tmp_path, "set/b/images", "c/images")
    assert load("path: [a, b, ../c]\ntrain: images\nnames: [x]\n").root == tmp_path / "set/b"
    assert load("path: [a, ../c]\ntrain: images\nnames: [x]\n").root == tmp_path / "c"
    assert load(f"path: {tmp_path}/c\ntrain: images\nnames: [x]\n").root == tmp_path / "c"


def test_a_given_path_is_the_only_base(load: Callable, tmp_path: Path) -> None:
    """With a misspelt root, another data set's images that happen to lie nearby are not taken instead."""
    folders(tmp_path, "set/images", "work/images")
    config = load("path: rooot\ntrain: images\nnames: [x]\n")
    with pytest.raises(UserError, match=r"data.yaml:1: path: no such file or folder \(tried .*rooot"):
        config.split("train")


def test_sources_of_every_kind(load: Callable, tmp_path: Path) -> None:
    base = tmp_path / "set"
    folders(base, "i", "a", "j")
    for name in ("l.txt", "m.txt", "c.json"):
        (base / name).touch()
    config = load(
        "train:\n  - i\n  - l.txt\n  - {images: i, annotations: a, split: [l.txt, m.txt]}\n"
        "val: {images: j, annotations: c.json}\nnames: [x]\n"
    )
    voc = Source(base / "i", base / "a", (base / "l.txt", base / "m.txt"))
    assert config.split("train").sources == (Source(base / "i"), Source(base / "l.txt"), voc)
    assert config.split("val").sources == (Source(base / "j", base / "c.json"),)


def test_names_stay_the_text_they_are(load: Callable) -> None:
    assert load("train: x\nnames: [no, on, 007, 1e3, null_, 'null', 3:30, ' a ']\n").names == (
        *("no", "on", "007", "1e3", "null_", "null", "3:30", "a"),
    )
    assert load("train: x\nnames: {1: yes, 0: 2024-01-01}\n").names == ("2024-01-01", "yes")
    assert load("train: x\nnc: 2\n").names == ("class_0", "class_1")


def test_single_cls(load: Callable) -> None:
    config = load("train: x\nnames: [a, b]\n", single_cls=True)
    assert (config.names, config.nc, config.label_names) == (("item",), 1, ("a", "b"))
    assert load("train: x\nnames: [a]\n", single_cls=True).names == ("a",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: x\nnames: [a, b]\nnc: 3\n", "data.yaml:3: nc: 3, but `names` has 2"),
        ("train: x\nnames: [a]\nnc: one\n", "data.yaml:3: nc: 'one' is not a number"),
        ("train: x\nnames: [a]\nnc: 0\n", "data.yaml:3: nc: '0' is not"),
        ("train: x\n", "data.yaml: names: this key is missing"),
        ("train: x\nnames: cat\n", "data.yaml:2: names: 'cat' is neither a list"),
        ("train: x\nnames: []\n", "data.yaml:2: names: [] is neither a list"),
        ("train: x\nnames: [a, '']\n", "data.yaml:2: names: name 1, '', is not a text"),
        ("train: x\nnames:\n  0: a\n  2: b\n", "data.yaml:2: names: 2 names must be numbered 0 to 1; 1 is missing"),
        ("train: x\nnames: {cat: 0}\n", "data.yaml:2: names: the map must go from number to name; 'cat'"),
        ("train: x\nnames: {0: a, 0: b}\n", "data.yaml:2: not valid yaml: the key '0' is already on line 2"),
        (
            "train: x\nval: y\ntrain: z\nnames: [a]\n",
            "data.yaml:3: not valid yaml: the key 'train' is already on line 1",
        ),
        ("train: {images: i, annotations: a}\nnames: [a, b, a]\n", "data.yaml:2: names: 'a' is there twice"),
        ("trian: x\nnames: [a]\n", "data.yaml:1: trian: unknown key; did you mean 'train'?"),
        ("train: {image: i, annotations: a}\nnames: [a]\n", "data.yaml:1: train: unknown key 'image' (allowed: images"),
        ("train: {images: i}\nnames: [a]\n", "data.yaml:1: train: a mapping needs `images`"),
        ("train: [a, [b]]\nnames: [a]\n", "data.yaml:1: train: ['b'] is not a path"),
        ("train: [a\nnames: [a]\n", "data.yaml:2: not valid yaml"),
        ("names: [a]\n", "data.yaml: none of train, val, test is there"),
        ("train: x\nvla: y\nnames: [a]\n", "data.yaml:2: vla: unknown key; did you mean 'val'?"),
        ("train: x\ndepth: 3\nnames: a\n", "data.yaml:3: names: 'a' is neither"),  # `depth` is no slip for `path`
        (f"train: x\nnames: [a]\n#{'x' * 5_000_000}\n", "data.yaml: 5,000,022 bytes, and a data yaml has at most"),
        ("train: x\nname: [a]\n", "data.yaml:2: name: unknown key; did you mean 'names'?"),
        ("train: x\nclasses: [a]\nnc: 1\n", "data.yaml:2: classes: unknown key; did you mean 'names'?"),
        ("train: x\nnames: [a]\nvalidation: y\n", "data.yaml:3: validation: unknown key; did you mean 'val'?"),
        ("train: x\nnames: [a]\nmax_missing_labels: 1.5\n", "data.yaml:3: max_missing_labels: '1.5' is not a share"),
        ("train: x\nnames: [a]\nmax_missing_labels: 50%\n", "data.yaml:3: max_missing_labels: '50%' is not a share"),
        ("train: x\nnames: [a]\nmax_missing_labels: [1]\n", "data.yaml:3: max_missing_labels: ['1'] is not a share"),
        ("- a\n", "data.yaml: not a data yaml but a list"),
        ("", "data.yaml: not a data yaml but empty"),
        ("a\n", "data.yaml: not a data yaml but a text"),
        ("path: []\ntrain: x\nnames: [a]\n", "data.yaml:1: path: [] is neither a text nor a list"),
        ("embedded: circles\ntrain: x\nnames: [a]\n", "data.yaml:1: embedded: 'circles' is not embedded"),
        ("train: x\nnames: [a]\nkpt_shape: 17\n", "data.yaml:3: kpt_shape: '17' is not"),
        (
            "train: x\nnames: [a]\ndownload: {url: 'https://x.y/z', hash: a}\n",
            "data.yaml:3: download: unknown key 'hash'",
        ),
        ("train: x\nnames: [a]\ndownload: {sha256: a}\n", "data.yaml:3: download: a mapping needs `url`"),
        ("train: x\nnames: [a]\ndownload: {url: u, sha256: abc}\n", "data.yaml:3: download: sha256: 'abc' is not"),
        ("train: x\nnames: [a]\ndownload: {url: u, size: 1 GB}\n", "data.yaml:3: download: size: '1 GB' is not"),
        ("train: x\nnames: [a]\ndownload: {url: u, to: ../x}\n", "data.yaml:3: download: to: '../x' must be"),
    ],
)
def test_a_wrong_yaml_is_named_by_file_line_and_key(load: Callable, tmp_path: Path, text: str, message: str) -> None:
    folders(tmp_path / "set", *"aixyz")
    with pytest.raises(DataError) as error:
        load(text)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert all(fault.kind.startswith("yaml-") and fault.stops and not fault.skippable for fault in error.value.faults)


def test_all_that_is_wrong_is_said_at_once(load: Callable, tmp_path: Path) -> None:
    folders(tmp_path / "set", "images/train")
    with pytest.raises(DataError) as error:
        load("path: .\ntrain: images/trian\nvalid: x\nnames: {0: a, 2: b}\nnc: 3\nmax_missing_labels: half\n")
    assert [(fault.kind, fault.where) for fault in error.value.faults] == [
        ("yaml-key-unknown", "3"),
        ("yaml-names-gap", "4"),
        ("yaml-value", "6"),
        ("yaml-split-path", "2"),
    ]
    assert str(error.value).count("\n") == 4 and "did you mean 'val'?" in str(error.value)


def test_keys_of_others_are_let_be(load: Callable, tmp_path: Path) -> None:
    """A word that resembles a key counts as a slip only where that key is absent."""
    folders(tmp_path / "set", "x")
    keys = "name: my set\nauthor: a\nroboflow: {license: b}\nflip_idx: [0]\nchannels: 3\nkpt_names: {0: [nose]}\n"
    config = load(f"path: .\ntrain: x\nval: x\ntest: x\nvalid: y\nnames: [a]\n{keys}")
    assert config.names == ("a",) and config.faults == ()


def test_names_alike_are_odd_where_labels_go_by_number(load: Callable) -> None:
    (fault,) = load("train: x\nnames: [a, b, a]\n").faults
    assert (fault.kind, fault.where, fault.stops) == ("yaml-names-alike", "2", False)
    assert "'a' is there twice, as class 0 and 2" in fault.text


@pytest.mark.parametrize(("text", "share"), [("", 0.5), ("0", 0), ("1", 1), (".25", 0.25), ("1.0", 1), ("0.9", 0.9)])
def test_max_missing_labels(load: Callable, text: str, share: float) -> None:
    assert load(f"train: x\nnames: [a]\nmax_missing_labels: {text}\n").max_missing_labels == share


def test_a_small_yaml_of_aliases_makes_no_huge_message(load: Callable) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(12)]
    with pytest.raises(DataError) as error:
        load("\n".join([*levels, "train: x", "names: [*a11]", ""]))
    assert len(str(error.value)) < 2000


def test_a_yaml_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_bytes("names: [Gr\xfcn]\n".encode("latin-1"))
    with pytest.raises(DataError, match="data.yaml: not text in UTF-8: save it as UTF-8"):
        load_data_config(file)
    file.write_text("names:\n\t- a\n")
    with pytest.raises(DataError, match="data.yaml:2: not valid yaml: a tab; indent with spaces"):
        load_data_config(file)
    for path in ("~nobody-of-this-name/x.yaml", "x" * 300, "a\0b"):
        with pytest.raises(DataError, match="no such yaml file"):
            load_data_config(path)
    file.write_text("train: x\npath: ~nobody-of-this-name\nnames: [a]\n")
    with pytest.raises(DataError, match="no such file or folder"):
        load_data_config(file).split("train")
    file.write_text(f'train: {"x" * 300}\nval: "a\\0b"\nnames: [a]\n')
    with pytest.raises(DataError, match=r"(?s)1: train: 'xxx.*': too long; a path has.*2: val: .*a control character"):
        load_data_config(file)
    file.write_text(
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in itertools.pairwise("abcdefgh"))
    )
    with pytest.raises(DataError, match="unfold into more than 200,000 values"):
        load_data_config(file)


def test_a_wrong_path_names_what_was_tried_and_the_nearest(load: Callable, tmp_path: Path) -> None:
    folders(tmp_path / "set", "images/train", "images/val")
    config = load("path: .\ntrain: images/trian\nval: imgs/val\nnames: [a]\n")
    with pytest.raises(UserError) as error:
        config.split("train")
    tried = tmp_path / "set/images/trian"
    assert f"data.yaml:2: train: 'images/trian': no such file or folder (tried {tried})" in str(error.value)
    assert f"the nearest that exists is {tmp_path}/set/images; did you mean 'train'?" in str(error.value)
    with pytest.raises(UserError, match="nearest that exists is .*/set; did you mean 'images'"):
        config.split("val")
    with pytest.raises(UserError, match=r"test: this key is missing \(the file has train, val\)"):
        config.split("test")


def test_a_roboflow_path_that_may_be_of_two_sets_is_refused(load: Callable, tmp_path: Path) -> None:
    """`../train/images` is written for what lies beside the yaml; one folder up, another set may have been unpacked."""
    folders(tmp_path, "set/train/images", "train/images")
    with pytest.raises(UserError, match=r"1: train: '../train/images' may be .* or .*: write the whole path") as error:
        load("train: ../train/images\nnames: [a]\n")
    assert f"{tmp_path}/train/images or {tmp_path}/set/train/images" in str(error.value)


def test_a_key_without_a_value_and_a_link_to_nothing_are_said(load: Callable, tmp_path: Path) -> None:
    folders(tmp_path / "set", "images")
    (tmp_path / "set/images/train").symlink_to(tmp_path / "gone")
    config = load("path: .\ntrain: images/train\nval:\nnames: [a]\n")
    with pytest.raises(UserError, match=r"val: nothing stands behind this key \(the file has train\)"):
        config.split("val")
    with pytest.raises(
        UserError, match=rf"; {tmp_path}/set/images/train is a link to {tmp_path}/gone, which isn't there"
    ):
        config.split("train")


def test_a_wrong_yaml_path_suggests(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").touch()
    with pytest.raises(UserError, match="no such yaml file.*did you mean 'bccd'"):
        load_data_config("bcdd")
    with pytest.raises(UserError, match=r"a folder; give a yaml file \(those in it: data.yaml\)"):
        load_data_config(tmp_path)
    for text in ("", ".", "data/none.yaml"):
        with pytest.raises(UserError):
            load_data_config(text)


def test_nothing_in_a_yaml_is_executed(load: Callable, tmp_path: Path) -> None:
    config = load("train: x\nnames: [a]\nextra: !!python/object/apply:os.mkdir [executed]\ndownload: mkdir executed\n")
    assert config.names == ("a",)
    with pytest.raises(UserError, match="path: no such file"):
        load("path: none\ntrain: x\nnames: [a]\ndownload: bash get.sh\n").split("train")
    with pytest.raises(UserError, match="data.yaml:4: download: is a script, and scripts are never run"):
        load("path: none\ntrain: x\nnames: [a]\ndownload: mkdir executed\n", download=True)
    assert not list(tmp_path.rglob("executed"))


def test_download_only_when_asked_and_absent(load: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served"
    served.mkdir()
    with zipfile.ZipFile(served / "toy.zip", "w") as archive:
        archive.writestr("toy/images/a.jpg", b"x")
    handler = functools.partial(_Quiet, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(data.config, "fetch", functools.partial(fetch, allow_http=True))
    text = f"path: toy\ntrain: images\nval: none\nnames: [a]\ndownload: http://127.0.0.1:{server.server_port}/toy.zip\n"
    try:
        with pytest.raises(UserError, match="add --download to fetch"):
            load(text).split("train")
        config = load(text, download=True)
    finally:
        server.shutdown()
        server.server_close()
    assert config.split("train").sources == (Source(tmp_path / "set/toy/images"),)
    config = load(text, download=True)  # it's there: the server, which is gone, isn't asked
    with pytest.raises(UserError, match="--download writes over nothing"):
        config.split("val")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("name", OWN)
def test_the_projects_own_yamls(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_data_config(name)
    assert config.file == DATA / f"{name}.yaml"
    assert config == load_data_config(f"data/{name}.yaml") == load_data_config(f"{name}.yaml")
    assert {"train", "val"} <= set(config.splits)
    for archive in config.archives:
        assert archive.url.startswith("https://")
    assert bool(config.archives) != (name == "shapes")


def test_class_names_of_the_public_sets() -> None:
    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert list(load_data_config("coco").names) == [
        name for name in categories if name not in ("__background__", "N/A")
    ]
    voc = load_data_config("voc").names
    assert len(voc) == 20 and list(voc) == sorted(voc) and {"aeroplane", "diningtable", "tvmonitor"} < set(voc)
    assert load_data_config("bccd").names == load_data_config("bccd-tune").names == ("RBC", "WBC", "Platelets")


def test_the_embedded_set_is_made_on_first_use() -> None:
    config = load_data_config("shapes")
    assert config.names == NAMES and config.root.is_relative_to(cache_root().resolve())
    for split, count in SPLITS.items():
        records, faults = read_split(config, split)
        assert len(records) == count and not faults
        assert set(np.concatenate([record.classes for record in records]).tolist()) == set(range(config.nc))


def test_bccd_tune_never_sees_the_test_images() -> None:
    tune, bccd = load_data_config("bccd-tune"), load_data_config("bccd")
    lists = {key: split.sources[0].lists[0].name for key, split in tune.splits.items()}
    assert lists == {"train": "train.txt", "val": "val.txt", "test": "test.txt"}
    lists = {key: split.sources[0].lists[0].name for key, split in bccd.splits.items()}
    assert lists == {"train": "trainval.txt", "val": "test.txt", "test": "test.txt"}
