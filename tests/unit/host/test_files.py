import os
from pathlib import Path

from jailbridge.host.files import content, sign


def test_a_sign_tells_every_kind_of_change(tmp_path: Path) -> None:
    path, other = tmp_path / "list", tmp_path / "other"
    signs = [sign(path)]

    def note() -> None:
        signs.append(sign(path))

    path.write_text("one")
    note()
    path.write_text("three")
    note()
    os.utime(path, (1, 1))
    note()
    other.write_text("three")
    os.utime(other, (1, 1))
    other.rename(path)
    note()
    path.unlink()
    path.symlink_to(path)
    note()
    assert len(set(signs)) == len(signs)


def test_an_untouched_file_keeps_its_sign(tmp_path: Path) -> None:
    path = tmp_path / "list"
    assert sign(path) == sign(path)
    path.write_text("one")
    before = sign(path)
    assert content(path) == b"one"
    assert sign(path) == before


def test_what_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert content(tmp_path / "none") is None
