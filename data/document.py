"""A data yaml as a file: every value as the text it is, with the line of each key. Nothing in it is ever executed."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import yaml

from data.faults import DataError, Fault
from utils.errors import text_fault

MAX_BYTES = 4 << 20  # of a data yaml; ten thousand class names have a tenth of that
MAX_VALUES = 200_000  # in it; a reference to a list counts as often as what it stands for
NOTHING = (None, "", "~", "null", "Null", "NULL")


class _KeyTwice(yaml.constructor.ConstructorError):
    pass


class _TextLoader(yaml.BaseLoader):
    """Leaves every scalar the text it is (a class may be called `no`, `on` or `007`) and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                problem = f"the key '{name}' is already on line {seen[name]}"
                raise _KeyTwice(None, None, problem, key.start_mark)
            seen[name] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


class Document:
    """A yaml's values as text, and the line of each top key."""

    def __init__(self, file: Path) -> None:
        self.file = file
        node, self.values = _parse(file)
        self.lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}

    def get(self, key: str) -> Any:
        """The value as str, list or dict; None where the key is absent or empty."""
        value = self.values.get(key)
        return None if isinstance(value, str) and value in NOTHING else value

    def fault(self, kind: str, key: str, text: str) -> Fault:
        return Fault.of(kind, str(self.file), str(self.lines.get(key, "")), f"{key}: {text}")

    def error(self, kind: str, key: str, text: str) -> DataError:
        return DataError(self.fault(kind, key, text))

    def texts(self, key: str, value: Any) -> list[str]:
        """A text, or a list of texts, as a list."""
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(item, str) and item not in NOTHING for item in values):
            raise self.error("yaml-value", key, f"{shorten(value)} is neither a text nor a list of texts")
        for item in values:
            if fault := text_fault(item):
                raise self.error("yaml-value", key, f"{shorten(item)}: {fault}")
        return values


def _parse(file: Path) -> tuple[yaml.MappingNode, dict[Any, Any]]:
    """A yaml's top node and its values. Raises `DataError`."""

    def refuse(kind: str, text: str, line: int | None = None) -> DataError:
        return DataError(Fault.of(kind, str(file), "" if line is None else str(line + 1), text))

    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise refuse("yaml-unreadable", f"{size:,} bytes, and a data yaml has at most {MAX_BYTES:,}: name another")
        loader = _TextLoader(file.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            what = "a list" if isinstance(node, yaml.SequenceNode) else "empty" if node is None else "a text"
            raise refuse("yaml-not-a-map", f"not a data yaml but {what}: it has no `key: value` lines")
        if not _is_small(node):
            text = (
                f"its references (`*name`) unfold into more than {MAX_VALUES:,} values: write out what they stand for"
            )
            raise refuse("yaml-unreadable", text)
        return node, loader.construct_document(node)
    except OSError as error:
        text = f"can't be read ({error.strerror or error}): check its permissions"
        raise refuse("yaml-unreadable", text) from None
    except UnicodeDecodeError:
        raise refuse("yaml-not-utf8", "not text in UTF-8: save it as UTF-8") from None
    except _KeyTwice as error:
        raise refuse("yaml-key-twice", f"not valid yaml: {error.problem}: keep one", error.problem_mark.line) from None
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        line = mark.line if mark else None
        if "\\t" in problem:
            raise refuse("yaml-tab", "not valid yaml: a tab; indent with spaces", line) from None
        raise refuse("yaml-syntax", f"not valid yaml: {problem}: correct it", line) from None


def _is_small(root: yaml.Node) -> bool:
    """Are there at most `MAX_VALUES` values in a yaml, references unfolded? Not so where one holds itself."""
    waiting, count = [root], 0
    while waiting and count + len(waiting) <= MAX_VALUES:
        node, count = waiting.pop(), count + 1
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return not waiting


def shorten(value: object) -> str:
    """A value of the yaml as a message repeats it; aliases can make a small file a huge value."""
    brief = reprlib.Repr()
    brief.maxlevel = 2
    brief.maxstring = 60
    return brief.repr(value)
