"""Reads a configuration file into settings, or reports every problem in one error."""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from jailbridge.config.consistency import contradictions, unbuilt
from jailbridge.config.settings import Settings
from jailbridge.errors import FatalError
from jailbridge.model.network import shown

# Pydantic's words for a wrong type, in TOML's.
_SHOULD = {
    "model_type": "should be a table",
    "tuple_type": "should be a list",
    "string_type": "should be text in quotes",
    "int_type": "should be a whole number",
    "bool_type": "should be true or false",
    "missing": "is required",
}
DEFAULT_PATH = Path("/etc/jailbridge/jailbridge.toml")


class ConfigError(FatalError):
    """The configuration cannot be used; `problems` has one line for each, with its key."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = problems if len(problems) == 1 else [f"{len(problems)} problems", *(f"  {line}" for line in problems)]
        super().__init__(f"{where}: " + "\n".join(lines))


def load(path: Path | None) -> Settings:
    """Return the settings of the file at `path`; None means the default place, or the defaults where nothing is there.

    Raises ConfigError.
    """
    chosen = path or DEFAULT_PATH
    try:
        text = chosen.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        if path is None:
            return Settings()
        raise ConfigError(str(path), ["no such file: create it, or leave --config out for the defaults"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(chosen), [f"not UTF-8 text at byte {error.start}"]) from None
    except OSError as error:
        raise ConfigError(str(chosen), [f"cannot be read: {error.strerror}"]) from None
    return parse(text, str(chosen))


def parse(text: str, where: str) -> Settings:
    """Return the settings that the TOML `text` names; `where` stands in errors. Raises ConfigError."""
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(where, ["not TOML: nested too deeply"]) from None
    except ValueError as error:  # TOMLDecodeError is one; a number beyond Python's limit of digits is another
        raise ConfigError(where, [f"not TOML: {error}"]) from None
    unprintable = [f"{key}: should have no control characters" for key in _unprintable(data)]
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        problems = [_problem(dict(item)) for item in error.errors(include_url=False)]
        named = {problem.partition(": ")[0] for problem in problems}
        problems += [problem for problem in unprintable if problem.partition(": ")[0] not in named]
        raise ConfigError(where, problems) from None
    problems = [*unprintable, *(f"{key}: {problem}" for key, problem in contradictions(settings))]
    problems += [f"{key}: not built in this release: {remedy}" for key, remedy in unbuilt(settings)]
    if problems:
        raise ConfigError(where, problems)
    return settings


def _unprintable(data: object, place: tuple[object, ...] = ()) -> Iterator[str]:
    """Yield the key of each text that would break a line of a log or of another program's file."""
    match data:
        case dict():
            for part, value in data.items():
                yield from _unprintable(value, (*place, part))
        case list():
            for n, value in enumerate(data):
                yield from _unprintable(value, (*place, n))
        case str() if not data.isprintable():
            yield _key(place)


def _problem(error: Mapping[str, Any]) -> str:
    place, kind = error["loc"], error["type"]
    key = _key(place)
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), _keys(place[:-1]), n=1)
        return f"{key}: unknown key" + (f", did you mean {near[0]}?" if near else "")
    message = _SHOULD.get(kind) or str(error["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    return f"{key}: {message}{_not(error['input']) if kind != 'value_error' else ''}"


def _key(place: Sequence[object]) -> str:
    # https://toml.io/en/v1.0.0#keys: anything but a bare key stands in quotes.
    parts = map(str, place)
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else shown(part) for part in parts)


def _not(given: object) -> str:
    match given:
        case str():
            return f", not {shown(given)}"
        case bool():
            return f", not {str(given).lower()}"
        case int() if given.bit_length() > 64:
            return ""
        case int() | float():
            return f", not {given}"
        case _:
            return ""


def _keys(place: Sequence[object]) -> list[str]:
    section: type[BaseModel] = Settings
    for part in place:
        field = section.model_fields.get(str(part))
        if field is None:
            continue
        found = [
            kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(kind, type)
        ]
        section = next((kind for kind in found if issubclass(kind, BaseModel)), section)
    return list(section.model_fields)
