"""Nothing in an input runs: whole programs on hostile inputs, watched by Python's audit events and by strace.

The data set, its yaml, the class names, file names and planted modules all try to be executed; each would leave a
file whose name has `executed` in it. What the programs do to network, processes and files is held against what a run
may do: no socket but within the machine, no other program, no write but in the run's folder, the cache and temp.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detect
import train
import val
from data.config import load_data_config
from data.formats import read_split
from utils.errors import UserError, run_cli
from utils.hyp import load_hyp

ROOT = Path(__file__).resolve().parents[1]
SYSCALLS = "execve,execveat,socket,connect,bind,open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,unlink,unlinkat,"
SYSCALLS += "rmdir,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate,chmod,fchmodat,chown,fchownat,"
SYSCALLS += "lchown,utimensat,setxattr,lsetxattr"
STARTS = ("subprocess.Popen", "os.posix_spawn", "os.exec")
FILES = [  # names that a shell, a formatter, a page or a command line would take for something else
    *("$(touch executed).png", "a;touch executed1;.png", "`touch executed2`.png", "{0.__class__}.png", "%s%n%(a)d.png"),
    *("<script>executed()</script>.png".replace("/", ""), "-rf.png", "'; DROP TABLE.png", "a b\tc.png", "ü→.png"),
    *("${HOME}.png", "~.png", "x&&touch executed3.png", "|touch executed4.png"),
]
NAMES = [
    "$(touch executed5)",
    "<img src=x onerror=executed()>",
    "../../executed6",
    "/tmp/executed7",
    "{self.__class__}%s",
]
YAML = """path: .
train: images/train
val: images/val/../val
names: {names}
download: |
  import os
  os.mkdir("executed8")
  rm -rf images
roboflow: !!python/object/apply:os.mkdir [executed9]
extra: !!python/object/new:subprocess.Popen [[touch, executed10]]
more: !!python/name:os.system
"""


@dataclass
class Watched:
    """What three programs did: lines of strace (none where it isn't installed), and audit events."""

    base: Path
    data: Path
    before: dict[str, tuple[str, int, int]]
    calls: list[str]
    events: list[list]
    home: Path

    def allowed(self, path: str) -> bool:
        """May a run write there? In its folder, the cache, temp; and matplotlib keeps a list of fonts."""
        full = os.path.normpath(self.base / "work" / path)
        fonts = [self.home / part for part in (".cache", ".cache/matplotlib", ".config", ".config/matplotlib")]
        folders = [self.base / "runs", self.base / "cache", self.base / "tmp", *fonts[1::2], "/dev/shm", "/proc"]
        exact = [*folders, *fonts, self.base / "events.txt", "/dev/null", "/dev/tty"]
        return full in map(str, exact) or full.startswith(tuple(f"{folder}/" for folder in folders))

    def expected(self, command: str) -> bool:
        """Is this a program that a library asks about the machine, and not about anything of ours?"""
        name = re.search(r"[\w.+-]*/?\b(ldconfig|uname|fc-list|gcc|cc|ld|objdump)\b", command)
        return name is not None and str(self.base) not in command and "executed" not in command


def snapshot(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Names, bytes, modes and times of everything below."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        state = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (digest, state.st_mode, state.st_mtime_ns)
    return found


def make_data(root: Path) -> None:
    draw = np.random.default_rng(5)
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for number, name in enumerate(FILES):
            image = draw.integers(90, 140, (64, 64, 3), np.uint8)
            image[10:30, 10:40] = 250
            good, coded = cv2.imencode(".png", image)
            assert good
            (root / "images" / split / name).write_bytes(coded.tobytes())
            row = f"{number % len(NAMES)} 0.390625 0.3125 0.46875 0.3125\n"
            (root / "labels" / split / f"{name[:-4]}.txt").write_text(row)
    (root / "data.yaml").write_text(YAML.replace("{names}", str(NAMES)), encoding="utf-8")
    for planted in ("numpy", "torch", "yaml", "cv2", "sitecustomize", "usercustomize", "conftest", "my_schedule"):
        (root / f"{planted}.py").write_text(f"import os; os.mkdir({str(root / 'executed11')!r})\n")
    (root / "detections.txt").write_text("not an image\n")
    (root / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/executed.ts\n")
    (root / "list.mp4").write_text("ffconcat version 1.0\nfile 'http://127.0.0.1:9/executed.mp4'\n")


def make_video(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 64))
    for shade in range(3):
        writer.write(np.full((64, 64, 3), 60 * shade, np.uint8))
    writer.release()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Train an epoch, evaluate and detect on hostile data, as programs."""
    base = tmp_path_factory.mktemp("watched")
    data, work, home = base / "data", base / "work", base / "home"
    for folder in (work, home, base / "cache", base / "tmp", base / "runs"):
        folder.mkdir()
    make_data(data)
    make_video(data / "film.mp4")
    shutil.copytree(data, work, dirs_exist_ok=True, ignore=lambda folder, names: [n for n in names if n[-3:] != ".py"])
    for file in data.glob("*.py"):
        shutil.copy(file, work)
    before = snapshot(data)
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MPL", "XDG", "PYTHON", "TMP", "TORCH"))
        },
        **{"HOME": str(home), "TMPDIR": str(base / "tmp"), "LOCKSTEP_CACHE": str(base / "cache")},
        **{"PYTHONPATH": str(ROOT / "tests" / "watched"), "LOCKSTEP_WATCH": str(base / "events.txt")},
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    tracer = ["strace", "-f", "-qq", "--seccomp-bpf", "-s", "300", "-e", f"trace={SYSCALLS}"]
    tracer += ["-o", str(base / "calls.txt"), "-A"]
    can_trace = (
        shutil.which("strace") and not subprocess.run([*tracer, sys.executable, "-c", ""], check=False).returncode
    )
    (base / "calls.txt").unlink(missing_ok=True)
    flags = ["--device", "cpu", "--project", str(base / "runs"), "--name"]
    best = str(base / "runs/train/weights/best.pt")
    lines = [
        ["train.py", "--data", str(data / "data.yaml"), "--epochs", "1", "--img", "64", "--batch", "7", *flags, "train"]
        + ["--workers", "1", "--cache", "disk", "--set", "mosaic=0.5"],
        ["val.py", "--weights", best, "--img", "64", "--workers", "1", "--save-txt", "--save-json", "--verbose"]
        + [*flags, "val"],
        ["detect.py", "--weights", best, "--source", "all.txt", "--conf", "0", "--max-det", "5", *flags, "detect"]
        + ["--save-txt", "--save-crop", "--save-json"],
    ]
    (work / "all.txt").write_text(f"{data / 'images/train'}\n{data}\n")
    for program, *argv in lines:
        command = [sys.executable, str(ROOT / program), *argv]
        done = subprocess.run(
            [*tracer, *command] if can_trace else command,
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    calls = (base / "calls.txt").read_text(errors="replace").splitlines() if can_trace else []
    events = [ast.literal_eval(line) for line in (base / "events.txt").read_text().splitlines()]
    return Watched(base, data, before, calls, events, home)


def test_the_watch_sees_what_it_is_there_for(tmp_path: Path) -> None:
    program = """import os, pickle, socket, subprocess, sys
if os.fork() == 0:
    socket.socket(socket.AF_INET).close()
    os._exit(0)
os.wait()
subprocess.run([sys.executable, "-c", ""])
os.system("true")
open("w.txt", "w").close(); os.rename("w.txt", "x.txt"); os.mkdir("folder")
pickle.loads(pickle.dumps(os.getcwd))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "watched"), "LOCKSTEP_WATCH": "events.txt"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    lines = (tmp_path / "events.txt").read_text().splitlines()
    events = {tuple(ast.literal_eval(line)[1:3]) for line in lines}
    expected = {("socket.__new__", int(socket.AF_INET)), ("subprocess.Popen", sys.executable), ("os.system", "b'true'")}
    assert expected | {("open", "w.txt"), ("os.rename", "w.txt"), ("os.mkdir", "folder")} <= events
    assert any(event == "pickle.find_class" and module in ("posix", "nt") for event, module in events)


def test_the_runs_did_their_work(watched: Watched) -> None:
    """Without this, nothing having happened would prove nothing."""
    runs = watched.base / "runs"
    assert (runs / "train/weights/best.pt").is_file() and (runs / "train/results.png").is_file()
    assert len(list((runs / "detect").glob("*.png"))) == len(FILES)
    assert len(list((runs / "val/labels").glob("*.txt"))) == len(FILES)
    assert (runs / "detect/film.mp4").is_file()
    assert {event[0] for event in watched.events} and any(event[1] == "open" for event in watched.events)
    assert any(str(runs) in str(event[2:]) for event in watched.events)


def test_data_is_only_read(watched: Watched) -> None:
    assert snapshot(watched.data) == watched.before


def test_nothing_was_executed_anywhere(watched: Watched) -> None:
    canaries = {f"executed{number}" for number in ("", *range(1, 12))}
    everywhere = {path.name for path in watched.base.rglob("*")}
    assert not canaries & everywhere and not Path("/tmp/executed7").exists()


def test_crops_stay_in_their_folder(watched: Watched) -> None:
    folders = {path.name for path in (watched.base / "runs/detect/crops").iterdir()}
    assert folders and folders <= {re.sub(r'[/\\:*?"<>|]', "_", name).strip(". ") for name in NAMES}


def test_no_event_of_network_or_of_another_program(watched: Watched) -> None:
    for _, event, *words in watched.events:
        if event == "socket.__new__":
            assert words[0] == socket.AF_UNIX, (event, words)
        elif event.startswith("socket."):
            assert event in ("socket.bind", "socket.connect", "socket.sendmsg", "socket.gethostname"), words
            assert not words or "family=1," in words[0], words
        elif event in STARTS:
            assert watched.expected(words[1]), words
        assert not event.startswith(("os.system", "os.spawn", "pty.", "ftplib", "urllib", "http")), words


def test_no_event_of_a_write_elsewhere(watched: Watched) -> None:
    for _, event, *words in watched.events:
        if event == "open" or (event.startswith(("os.", "shutil.")) and event not in STARTS):
            assert all(watched.allowed(path) for path in words), (event, words)


def test_what_is_unpickled_is_between_our_own_processes(watched: Watched) -> None:
    found = {tuple(words) for _, event, *words in watched.events if event == "pickle.find_class"}
    harmless = ("torch", "data.", "numpy", "utils.errors", "multiprocessing", "collections", "matplotlib")
    assert all(module.startswith(harmless) for module, _ in found), found


def test_no_system_call_of_network_or_of_another_program(watched: Watched) -> None:
    if not watched.calls:
        pytest.skip("strace is not installed, or may not trace")
    started = [line for line in watched.calls if re.search(r"\bexecve(at)?\(", line) and " = -1 " not in line]
    own = [line for line in started if re.search(rf'\["[^"]*", "{re.escape(str(ROOT))}/(train|val|detect)\.py"', line)]
    assert len(own) == 3
    assert [line for line in started if line not in own and not watched.expected(line)] == []
    sockets = [line for line in watched.calls if re.search(r"\b(socket|connect|bind)\(", line)]
    assert all("AF_UNIX" in line or "AF_NETLINK" in line for line in sockets), sockets


def test_no_system_call_that_writes_elsewhere(watched: Watched) -> None:
    if not watched.calls:
        pytest.skip("strace is not installed, or may not trace")
    reads = re.compile(r"\b(execve|execveat|socket|connect|bind)\(")
    for line in watched.calls:
        opens = re.search(r"\bopen(at2?)?\(", line)
        if (
            reads.search(line)
            or " = -1 " in line
            or (opens and not re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", line))
        ):
            continue
        paths = [bytes(p, "utf-8").decode("unicode_escape") for p in re.findall(r'"((?:[^"\\]|\\.)*)"', line)]
        assert all(watched.allowed(path.encode("latin-1").decode(errors="replace")) for path in paths), line


# What a single reader is given, in this process.


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def write_checkpoint(kind: str, path: Path, marker: Path) -> None:
    code = Code(marker)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(code))
    elif kind == "torch":
        torch.save({"lockstep": 1, "kind": "model", "weights": {"w": torch.zeros(1)}, "names": code}, path)
    elif kind == "old torch":
        torch.save({"lockstep": 1, "code": code}, path, _use_new_zipfile_serialization=False)
    elif kind == "module":
        torch.save({"model": torch.nn.Linear(1, 1), "ema": code}, path)  # as other trainers save whole objects
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(code, protocol=2))
            archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch", "module", "zip"])
def test_a_checkpoint_of_code_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/weights").mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(b"x")
    path = tmp_path / "run/weights/last.pt"
    write_checkpoint(kind, path, tmp_path / "executed")
    for main, argv in [
        (train.main, ["--weights", str(path), "--device", "cpu"]),
        (train.main, ["--resume", "run"]),
        (val.main, ["--weights", str(path), "--device", "cpu"]),
        (detect.main, ["--weights", str(path), "--source", "a.png", "--device", "cpu"]),
    ]:
        with pytest.raises(SystemExit) as ended:
            run_cli(functools.partial(main, argv))
        error = capfd.readouterr().err
        assert ended.value.code == 2 and "not a sound checkpoint" in error and error.count("\n") == 1, error
        assert not (tmp_path / "executed").exists()


@pytest.fixture
def visits() -> Iterator[tuple[int, list[bytes]]]:
    """The port of a server on this machine, and what it was asked: nothing, if all is well."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(1000))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1], asked
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


def test_external_entities_of_voc_are_not_fetched(tmp_path: Path, visits: tuple[int, list[bytes]]) -> None:
    port, asked = visits
    (tmp_path / "secret").write_text("cat")
    for folder in ("images", "xml"):
        (tmp_path / folder).mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    heads = {
        "file": f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>',
        "http": f'<!DOCTYPE a [<!ENTITY x SYSTEM "http://127.0.0.1:{port}/x">]>',
        "outside": f'<!DOCTYPE a SYSTEM "http://127.0.0.1:{port}/a.dtd">',
        "laughs": '<!DOCTYPE a [<!ENTITY y "cat"><!ENTITY x "&y;&y;&y;">]>',
        "include": f'<?xml-stylesheet href="http://127.0.0.1:{port}/s.xsl"?>',
        "plain": "",
    }
    for name, head in heads.items():
        cv2.imwrite(str(tmp_path / f"images/{name}.png"), np.zeros((20, 20, 3), np.uint8))
        text = "cat" if name in ("plain", "include") else "&x;"
        body = f"<annotation><object><name>{text}</name>{box}</object></annotation>"
        (tmp_path / f"xml/{name}.xml").write_text(head + body)
    (tmp_path / "d.yaml").write_text("train: {images: images, annotations: xml}\nnames: [cat]\n")
    records, faults = read_split(load_data_config(tmp_path / "d.yaml"), "train")
    assert [record.name for record in records] == ["images/include.png", "images/plain.png"]
    assert sorted(Path(fault.file).stem for fault in faults) == ["file", "http", "laughs", "outside"]
    assert all("DOCTYPE" in str(fault) for fault in faults) and not asked


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".webm", ".mov"])
def test_a_playlist_called_a_video_fetches_nothing(
    suffix: str, tmp_path: Path, visits: tuple[int, list[bytes]], capfd: pytest.CaptureFixture[str]
) -> None:
    port, asked = visits
    bodies = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/a.mp4'\n",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n",
        f'<?xml version="1.0"?><MPD><Period><BaseURL>http://127.0.0.1:{port}/</BaseURL></Period></MPD>',
    ]
    files = [tmp_path / f"{number}{suffix}" for number in range(len(bodies))]
    for file, body in zip(files, bodies, strict=True):
        file.write_text(body)
    assert not list(detect.read_frames(files, detect.name_files(files), 1)) and not asked
    assert capfd.readouterr().err.count("not a video that OpenCV can decode") == len(files)


def test_a_schedule_is_run_only_if_the_command_line_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted_schedule.py").write_text(f"import os; os.mkdir({str(tmp_path / 'executed')!r})\n")
    (tmp_path / "hyp.yaml").write_text("schedule: planted_schedule:factor\n")
    for argv in (["--hyp", "hyp.yaml"], ["--set", "schedule=planted_schedule:factor"]):
        with pytest.raises(SystemExit) as ended:
            run_cli(functools.partial(train.main, argv))
        assert ended.value.code == 2 and "a yaml never names code to run" in capfd.readouterr().err
        assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [executed]",
        "!!python/object/new:os.mkdir [executed]",
        "!!python/object:subprocess.Popen {args: [touch, executed]}",
        "!!python/module:antigravity",
        "!!python/tuple [1, 2]",
        "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [executed]",
        "${oc.env:HOME}",
        "{{ cycler.__init__.__globals__.os.mkdir('executed') }}",
        "$(mkdir executed)",
        "`mkdir executed`",
        "; mkdir executed",
    ],
)
def test_no_value_of_a_yaml_is_executed(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value = text if text.startswith("!") else f"'{text.replace(chr(39), chr(39) * 2)}'"
    for key in ("lr0", "optimizer", "schedule", "step_at", "lr_scale", "other"):
        (tmp_path / "h.yaml").write_text(f"{key}: {value}\n")
        with pytest.raises(UserError):
            load_hyp("h.yaml")
    for key in ("path", "train", "names", "nc", "download", "embedded", "kpt_shape", "other"):
        rest = {"train": "x", "names": "[a]"}
        rest.pop(key, None)
        (tmp_path / "d.yaml").write_text("".join(f"{k}: {v}\n" for k, v in rest.items()) + f"{key}: {value}\n")
        with contextlib.suppress(UserError):
            load_data_config("d.yaml", download=True).split("train")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.yaml", "h.yaml"]
