"""The text of a configuration file: settings in tables, each with the reason for it. Pure."""

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple, TypeAlias

Value: TypeAlias = str | bool | int | Sequence[str]


class Entry(NamedTuple):
    """One setting. `table` is its head as it is written: `[sensor]`, `[[tail]]`; `why` a comment, or nothing."""

    table: str
    key: str
    value: Value
    why: str = ""


def written(head: Sequence[str], entries: Iterable[Entry], tail: Sequence[str] = ()) -> str:
    """Return the file's text; `head` and `tail` are lines of comments. Entries of one table stand together."""
    text = [f"# {line}".rstrip() for line in head]
    for table, group in groupby(entries, key=lambda entry: entry.table):
        text += ["", table]
        for entry in group:
            setting = f"{entry.key} = {_value(entry.value)}"
            text.append(f"{setting}  # {entry.why}" if entry.why else setting)
    if tail:
        text += ["", *(f"# {line}".rstrip() for line in tail)]
    return "\n".join([*text, ""])


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        # TOML's basic strings have JSON's escapes (https://toml.io/en/v1.0.0#string); DEL has to be one there.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return "[" + ", ".join(map(_value, value)) + "]"
