from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jailbridge.config.settings import Settings
from jailbridge.definitions import OURS, outdated, render, uninstall, write
from jailbridge.errors import FatalError
from jailbridge.owned_files import is_as_written, is_ours

FILTER = "filter.d/jailbridge-portsentry.conf"
JAIL = "jail.d/jailbridge.conf"


def settings(**tables: object) -> Settings:
    return Settings.model_validate(tables)


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    files = render(settings())
    assert write(files, tmp_path) == [tmp_path / name for name in files]
    assert {name: (tmp_path / name).read_text() for name in files} == files
    assert (tmp_path / JAIL).stat().st_mode & 0o777 == 0o644
    assert write(files, tmp_path) == []
    assert outdated(files, tmp_path) == []
    changed = render(settings(policy={"allow": ["192.0.2.7"]}))
    assert outdated(changed, tmp_path) == [JAIL]
    assert write(changed, tmp_path) == [tmp_path / JAIL]
    assert sorted(path.name for path in (tmp_path / "jail.d").iterdir()) == ["jailbridge.conf"]


def test_a_file_that_somebody_else_wrote_is_not_overwritten_and_nothing_else_is_written(tmp_path: Path) -> None:
    theirs = tmp_path / JAIL
    theirs.parent.mkdir()
    theirs.write_text("[portsentry]\nenabled = true\n")
    with pytest.raises(FatalError, match="was not written by jailbridge"):
        write(render(settings()), tmp_path)
    assert theirs.read_text() == "[portsentry]\nenabled = true\n"
    assert not (tmp_path / FILTER).exists()


def test_a_link_in_our_place_is_not_replaced(tmp_path: Path) -> None:
    write(render(settings()), tmp_path)
    (tmp_path / JAIL).rename(tmp_path / "elsewhere")
    (tmp_path / JAIL).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FatalError, match="was not written by jailbridge"):
        write(render(settings(policy={"allow": ["192.0.2.7"]})), tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "filter.d").write_text("a file")
    with pytest.raises(FatalError, match=r"filter\.d/jailbridge-portsentry\.conf cannot be written"):
        write(render(settings()), tmp_path)


def edited(folder: Path, name: str) -> Path:
    """One of our files with a line more."""
    path = folder / name
    path.write_text(path.read_text() + "# mine\n")
    return path


@pytest.mark.parametrize("name", OURS)
def test_what_somebody_edited_is_lost_only_by_force(tmp_path: Path, name: str) -> None:
    files = render(settings())
    write(files, tmp_path)
    theirs = edited(tmp_path, name)
    remedy = f"put your change into {theirs.stem}.local" if theirs.suffix == ".conf" else "save what you need"
    with pytest.raises(FatalError, match=f"was edited by hand: {remedy}, .*--force"):
        write(files, tmp_path)
    assert theirs.read_text().endswith("# mine\n")
    assert write(files, tmp_path, force=True) == [theirs]
    assert theirs.read_text() == files[name]


def test_an_older_rendering_is_not_taken_for_an_edited_one(tmp_path: Path) -> None:
    write(render(settings()), tmp_path)
    changed = render(settings(policy={"allow": ["192.0.2.7"]}, control={"socket": "/run/x/control.sock"}))
    assert write(changed, tmp_path) == [tmp_path / JAIL]


def test_only_what_is_as_we_wrote_it_is_removed_but_by_force(tmp_path: Path) -> None:
    write(render(settings()), tmp_path)
    theirs = edited(tmp_path, JAIL)
    assert uninstall(tmp_path) == [tmp_path / FILTER, tmp_path / "action.d/jailbridge.py"]
    assert theirs.exists()
    assert uninstall(tmp_path, force=True) == [theirs]


@given(st.binary(max_size=40), st.integers(0, 2000), st.integers(0, 40))
def test_any_change_of_a_file_is_seen(put: bytes, at: int, instead: int) -> None:
    for text in render(Settings()).values():
        content = text.encode()
        changed = content[:at] + put + content[at + instead :]
        assert is_as_written(changed) is (changed == content) or not is_ours(changed)
