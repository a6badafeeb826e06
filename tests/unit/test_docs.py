"""README and code say the same: every key, every command."""

import re
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from jailbridge.cli.app import app
from jailbridge.config import Settings
from jailbridge.config.values import duration_text

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def keys(section: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in section.model_fields.items():
        kinds: list[Any] = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        found |= keys(inner, f"{prefix}{name}.") if inner else {f"{prefix}{name}"}
    return found


def documented_keys() -> set[str]:
    found, section = set(), ""
    for row in re.findall(r"^\| (.+?) \| ", README, re.MULTILINE):
        if heading := re.match(r"\*\*\[+([\w.]+)\]+\*\*", row):
            section = heading[1]
        if section:
            found |= {f"{section}.{key}" for key in re.findall(r"`(\w+)`", row)}
    return found


def test_the_configuration_table_names_real_keys_only() -> None:
    assert documented_keys() <= keys(Settings)


def test_every_key_is_in_the_table_or_named_as_not_built() -> None:
    missing = keys(Settings) - documented_keys()
    unbuilt = README[README.index("Known and refused") :]
    words = {"listen": "[metrics]"}
    for key in missing:
        name = key.rpartition(".")[2]
        assert words.get(name, name) in unbuilt, key


def test_every_command_is_in_the_readme_and_every_one_there_exists() -> None:
    command = typer.main.get_command(app)
    commands = set()
    for name, inner in command.commands.items():  # type: ignore[attr-defined]
        nested = getattr(inner, "commands", None)
        commands |= {f"{name} {sub}" for sub in nested} if nested else {name}
    told = {name for name in commands if re.search(rf"`jailbridge {name}\b", README)}
    assert told == commands
    groups = {name.partition(" ")[0] for name in commands}
    for first in re.findall(r"`jailbridge ([a-z0-9-]+)", README):
        assert first in groups, first


def test_the_defaults_in_the_table_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| (?:\*\*\S+\*\* )?`(\w+)` \| `([^`]+)` \|", README, re.MULTILINE))
    settings = Settings()
    assert rows["ipv6_prefix"] == str(settings.policy.ipv6_prefix)
    assert rows["max"] == str(settings.stores.hosts_deny.max)
    assert rows["interval"] == f'"{duration_text(settings.reconcile.interval)}"'
    assert rows["ban_for_spoofable"] == f'"{duration_text(settings.policy.ban_for_spoofable)}"'
    assert rows["ban_for"] == f'"{duration_text(settings.policy.ban_for)}"'
