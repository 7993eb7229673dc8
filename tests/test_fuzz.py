"""Whatever stands in a yaml or on a command line: it is taken, or refused in words; never a traceback, never a hang.

Hypothesis draws the inputs, the same ones every time. The default run takes a tenth of them, `-m torture` all 10,000.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data.config
import detect
import train
import val
from data.config import KEYS as DATA_KEYS
from data.config import OTHER_WORDS, load_data_config
from utils.errors import UserError, run_cli
from utils.hyp import _FLAGS, _GONE, KEYS, PRESETS, Hyp, load_hyp
from utils.options import DetectOptions, TrainOptions, ValOptions, flags

HYPS, DATAS, LINES = 4000, 3000, 3000
PATIENCE = 20  # seconds for one example, a thousand times what it takes
ROOT = Path(__file__).resolve().parents[1]

# What people, editors and other programs leave in a value.
SCALARS = [
    *(
        "0",
        "1",
        "-1",
        "0.5",
        "1e-3",
        "1.0e-3",
        ".5",
        "5.",
        "+1",
        "-0.0",
        "1e400",
        "-1e400",
        "9" * 20,
        "9" * 5000,
        "010",
    ),
    *("0x10", "0b1", "0o7", "1_000", "1:30", "12:30:45", ".inf", "-.INF", ".nan", "nan", "inf", "1,5", "1 000", "50%"),
    *("true", "True", "yes", "on", "off", "no", "null", "~", "None", "", "''", '""', "2024-01-01", "1e", "e1", "--1"),
    *("'0.1'", '"0.1"', "|", "|\n  0.1", ">-\n  a\n  b", "&a 1", "*a", "*b", "!!int 1", "!!float x", "!!str 1", "!x y"),
    *(
        "!!python/name:os.system",
        "!!python/object/apply:os.mkdir [made]",
        "!!binary aGk=",
        "!!set {a}",
        "!!omap [a: 1]",
    ),
    *("SGD", "adamw", "one_cycle", "linear", "custom", "a:b", "os:system", "mAP50", "backbone", "shapes", "[0.5, 0.8]"),
    *("[]", "{}", "[[1]]", "[1, a]", "{a: 1}", "{backbone: 0.1}", "{0: a, 1: b}", "[a, b]", "[a, a]", "[null]", "[1"),
    *("{a: {b: c}}", "&a [*a]", "{<<: {a: 1}}", "? a", "- 1", "#", "1 # two", "1#2", "@x", "`x`", "%x", "\tx", "a: b"),
    *('"\\x00"', '"\\u2028"', '"\\ud800"', '"\\U0010FFFF"', '"\\UFFFFFFFF"', '"\\e[2J"', "ü", "图", "\u202e", "\ufeff"),
    *(
        "x" * 300,
        "a/" * 3000,
        "../x",
        "/",
        "/dev/null",
        "/proc/self/mem",
        "~",
        "~nobody/x",
        "images",
        "labels.txt",
        ".",
    ),
    *(
        "file.yaml",
        "C:\\x",
        "\\\\server\\x",
        "https://example.org/x.zip",
        "http://x",
        "file:///etc/passwd",
        "$(reboot)",
    ),
]
NUMBERS = st.one_of(
    st.floats().map(repr), st.integers().map(str), st.floats(0, 1).map(repr), st.integers(0, 20).map(str)
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
WORDS = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=12)


def is_yaml(text: str) -> bool:
    try:
        return yaml.compose(f"key: {text}\n", Loader=yaml.SafeLoader) is not None
    except (yaml.YAMLError, ValueError, OverflowError):
        return False


SOUND = [text for text in SCALARS if is_yaml(text)]  # a file with one of these in it has values to be looked at
SCALAR = st.one_of(st.sampled_from(SCALARS), NUMBERS, TEXT)
SOUND_SCALAR = st.one_of(st.sampled_from(SOUND), NUMBERS, NUMBERS, WORDS.filter(is_yaml))
FLOW = st.recursive(
    SOUND_SCALAR.filter(lambda text: "\n" not in text),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(inner, inner), max_size=3).map(lambda pairs: "{" + ", ".join(map(": ".join, pairs)) + "}"),
    ),
    max_leaves=6,
)


def sound_yaml(keys: list[str]) -> st.SearchStrategy[str]:
    """Lines of `key: value` that any reader of yaml takes: what is wrong is what they say."""
    key = st.sampled_from(keys)
    line = st.builds("{}: {}".format, st.one_of(key, key, key, key.flatmap(misspelt)), FLOW.filter(is_yaml))
    return st.lists(line, min_size=1, max_size=7, unique_by=lambda line: line.partition(":")[0]).map(
        lambda lines: "\n".join(lines) + "\n"
    )


def broken_yaml(keys: list[str]) -> st.SearchStrategy[str]:
    """Lines of which some are no yaml."""
    key = st.one_of(st.sampled_from(keys), st.sampled_from(keys).flatmap(misspelt), st.sampled_from(SCALARS), TEXT)
    colon = st.sampled_from([": ", ": ", ": ", ":", " : ", ": \t", ":\n  ", " "])
    line = st.builds("{}{}{}".format, key, colon, st.one_of(SCALAR, FLOW))
    joint = st.sampled_from(["\n", "\n", "\n", "\r\n", "\n\n", "\n---\n", "\n# note\n", "\n  ", "\n\t", "\x85"])
    return st.builds(lambda lines, joint: joint.join(lines) + "\n", st.lists(line, max_size=7), joint)


def misspelt(word: str) -> st.SearchStrategy[str]:
    """A word with a letter left out, doubled, changed or in another case."""

    def spoil(at: int, how: str) -> str:
        at %= max(len(word), 1)
        return {
            "out": word[:at] + word[at + 1 :],
            "twice": word[: at + 1] + word[at:],
            "other": word[:at] + "x" + word[at + 1 :],
            "case": word[:at] + word[at:].upper(),
            "hyphen": word.replace("_", "-"),
        }[how]

    return st.builds(spoil, st.integers(0, 30), st.sampled_from(["out", "twice", "other", "case", "hyphen"]))


def damaged(texts: list[str]) -> st.SearchStrategy[bytes]:
    """A file that is right but for some bytes."""

    def damage(text: str, spots: list[tuple[int, bytes, int]]) -> bytes:
        content = text.encode()
        for at, new, gone in spots:
            at %= len(content) + 1
            content = content[:at] + new + content[at + gone :]
        return content

    spot = st.tuples(st.integers(0, 10_000), st.binary(max_size=3), st.integers(0, 40))
    return st.builds(damage, st.sampled_from(texts), st.lists(spot, min_size=1, max_size=3))


def file_content(keys: list[str], texts: list[str]) -> st.SearchStrategy[bytes]:
    broken, sound = (
        texts_of(keys).map(lambda text: text.encode("utf-8", "surrogatepass")) for texts_of in (broken_yaml, sound_yaml)
    )
    return st.one_of(sound, sound, sound, broken, damaged(texts), st.binary(max_size=60))


HYP_KEYS = [*KEYS, *KEYS, *_GONE, *_FLAGS]
HYP_FILES = file_content(HYP_KEYS, [path.read_text(encoding="utf-8") for path in PRESETS.glob("*.yaml")])
DATA_KEY_LIST = [*DATA_KEYS, *DATA_KEYS, *OTHER_WORDS, "roboflow", "annotations", "url", "author"]
OWN_DATA = [path.read_text(encoding="utf-8")[:2000] for path in (ROOT / "data").glob("*.yaml")]
GOOD_DATA = "train: images\nval: images\nnames: [a, b]\nnc: 2\n"
DATA_FILES = st.one_of(
    file_content(DATA_KEY_LIST, [*OWN_DATA, GOOD_DATA]),
    sound_yaml([key for key in DATA_KEY_LIST if f"{key}:" not in GOOD_DATA]).map(
        lambda text: (GOOD_DATA + text).encode("utf-8", "surrogatepass")
    ),
)
OVERRIDES = st.lists(
    st.builds("{}{}{}".format, st.sampled_from(HYP_KEYS), st.sampled_from(["=", "=", "", " = "]), SCALAR), max_size=2
)


def words(cls: type) -> st.SearchStrategy[list[str]]:
    """Command lines of a program: flags with values that fit, that don't, and none at all."""
    declared = flags(cls)
    names = [f"--{flag.name.replace('_', '-')}" for flag in declared] + [
        n for f in declared for n in f.metadata["names"]
    ]
    choices = [choice for flag in declared for choice in flag.metadata.get("choices", ())]
    name = st.one_of(st.sampled_from(names), st.sampled_from(names), st.sampled_from(names).flatmap(misspelt))
    value = st.one_of(
        st.sampled_from([*choices, *SCALARS]), NUMBERS, TEXT, st.sampled_from(["cpu", "h.yaml", "d.yaml"])
    )
    value = value.filter(lambda text: "\0" not in text)  # no system can pass these

    def typed(flag: Any) -> st.SearchStrategy[list[str]]:
        """The flag with a value of its own kind, in range or a little out of it."""
        name = f"--{flag.name.replace('_', '-')}"
        if flag.type == "bool":
            return st.just([name])
        numbers = st.one_of(st.integers(-2, 700), st.integers(0, 20).map(lambda n: 32 * n)).map(str)
        kinds = {"int": numbers, "float": st.floats(-0.1, 1.1).map(repr)}
        kind = next((kinds[kind] for kind in kinds if kind in flag.type), st.sampled_from([*SCALARS, "cpu", "h.yaml"]))
        own = flag.metadata.get("choices")
        return st.builds(lambda value: [name, value], st.sampled_from(own) if own else kind)

    fitting = st.sampled_from(declared).flatmap(typed)
    item = st.one_of(
        *(fitting, fitting, fitting, fitting, fitting, fitting),
        st.builds(lambda name: [name], name),
        st.builds(lambda name, value: [name, value], name, value),
        st.builds(lambda name, value: [name, value], name, value),
        st.builds(lambda name, value: [f"{name}={value}"], name, value),
        st.builds(lambda value: [value], value),
    )
    return st.lists(item, max_size=5).map(lambda items: [word for item in items for word in item])


PROGRAMS = {"train": (train.main, TrainOptions), "val": (val.main, ValOptions), "detect": (detect.main, DetectOptions)}
COMMANDS = st.sampled_from(list(PROGRAMS)).flatmap(
    lambda program: st.tuples(
        st.just(program),
        st.sampled_from([[], ["--weights", "junk.pt"], ["--weights", "junk.pt", "--source", "."]]),
        words(PROGRAMS[program][1]),
    )
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with little in it, in which nothing may be changed; nor in the home folder."""
    for name in ("work/images", "home", "cache"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("junk.pt").write_bytes(b"junk" * 50)
    Path("d.yaml").write_text(GOOD_DATA)
    Path("h.yaml").write_text("lr0: 0.1\n")
    monkeypatch.setattr(sys, "set_int_max_str_digits", lambda digits: None)  # hypothesis prints large numbers
    before = listing(tmp_path)
    yield tmp_path
    assert listing(tmp_path) == before


def listing(folder: Path) -> dict[str, str]:
    """What is there, and its bytes; not the file that is written for every example, nor what our cache keeps."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if path.name != "fuzzed.yaml"
    }


@contextlib.contextmanager
def watchdog() -> Iterator[None]:
    """Fail where an example takes for ever."""

    def bark(*_: Any) -> NoReturn:
        raise AssertionError(f"took more than {PATIENCE} seconds")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ends_well(action: Callable[[], Any]) -> bool:
    """Run an action as a program does: it returns or exits with 0, or says what is wrong and exits with 2.

    Returns whether it was taken.
    """
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with watchdog(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_cli(action)
        except SystemExit as ended:
            code = ended.code
    message = err.getvalue()
    assert code in (0, 2, None) and bool(message) == (code == 2), message
    if code == 2:
        assert message.startswith("error: ") and len(message) > 15
        lines = message.removesuffix("\n").split("\n")
        assert len(lines) == 1 or all(line.startswith("  ") for line in lines[1:]), message
        assert all(c.isprintable() or c.isspace() for line in lines for c in line), ascii(message)
        message.encode()  # no half characters
    return code != 2


def fuzz(count: int, check: Callable[..., None], *strategies: st.SearchStrategy) -> None:
    profile = settings(
        max_examples=count, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    profile(given(*strategies)(check))()


def share(count: int) -> pytest.MarkDecorator:
    """A tenth by default, all of them with `-m torture`."""
    return pytest.mark.parametrize("count", [count // 10, pytest.param(count, marks=pytest.mark.torture)])


@share(HYPS)
def test_hyp_yamls(count: int, place: Path) -> None:
    taken = []

    def check(content: bytes, overrides: list[str]) -> None:
        Path("fuzzed.yaml").write_bytes(content)

        def read() -> None:
            hyp = load_hyp("fuzzed.yaml", overrides)
            assert Hyp.from_dict(hyp.to_dict()) == hyp

        taken.append(ends_well(read))

    fuzz(count, check, HYP_FILES, OVERRIDES)
    assert count / 100 < sum(taken) < count, "some are sound, not all"


@share(DATAS)
def test_data_yamls(count: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fetch(archives: Any, root: Path) -> NoReturn:
        raise UserError(f"{root}: would be fetched from {archives[0].url}")

    monkeypatch.setattr(data.config, "fetch", no_fetch)
    taken = []

    def check(content: bytes, single_cls: bool, download: bool) -> None:
        Path("fuzzed.yaml").write_bytes(content)

        def read() -> None:
            config = load_data_config("fuzzed.yaml", single_cls, download)
            assert config.nc == len(config.names) > 0
            for split in config.splits:
                config.split(split)

        taken.append(ends_well(read))

    fuzz(count, check, DATA_FILES, st.booleans(), st.booleans())
    assert count / 100 < sum(taken) < count, "some are sound, not all"


@share(LINES)
def test_command_lines(count: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: Any) -> NoReturn:
        raise UserError("the options are sound; here the data would be read")

    monkeypatch.setattr(train, "build_data", reached)

    def check(command: tuple[str, list[str], list[str]]) -> None:
        program, first, rest = command
        ends_well(functools.partial(PROGRAMS[program][0], [*first, *rest]))

    fuzz(count, check, COMMANDS)
