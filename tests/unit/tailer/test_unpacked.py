import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from jailbridge.errors import ParseError
from jailbridge.tailer import unpacked
from jailbridge.tailer.unpacked import begins_with, open_text

COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
TEXT = b"".join(b"line %d\n" % number for number in range(1000))


@pytest.fixture(params=COMPRESS)
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"log.1{request.param}"
    path.write_bytes(COMPRESS[request.param](TEXT))
    return path


def test_the_text_is_read_under_the_files_own_identity(packed: Path) -> None:
    file = open_text(packed, Path("/log"))
    reading = file.read(10_000)
    status = packed.stat()
    assert b"".join(line.text + b"\n" for line in reading.lines) == TEXT
    assert (reading.position.offset, reading.position.path) == (len(TEXT), "/log")
    assert (reading.position.device, reading.position.inode) == (status.st_dev, status.st_ino)
    assert (file.size, file.written_ns) == (len(TEXT), status.st_mtime_ns)
    assert not file.is_deleted
    assert not file.has_writer()


def test_its_beginning_is_read_alone(packed: Path) -> None:
    assert begins_with(packed, 6) == b"line 0"


def test_nothing_is_left_open_or_behind(packed: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    open_text(packed, packed).close()
    assert set(Path("/proc/self/fd").iterdir()) <= before
    assert list(packed.parent.iterdir()) == [packed]


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda data: data[:-9],
    lambda data: data[:40] + b"\0" * 40 + data[80:],
    lambda _: b"x",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(packed: Path, damage: Callable[[bytes], bytes]) -> None:
    packed.write_bytes(damage(packed.read_bytes()))
    with pytest.raises(ParseError, match=f"log.1{packed.suffix}.* is damaged"):
        open_text(packed, packed)


def test_a_bomb_is_refused(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "MAX_TEXT", len(TEXT) - 1)
    with pytest.raises(ParseError, match=f"unpacks to more than {len(TEXT) - 1} bytes"):
        open_text(packed, packed)
    monkeypatch.setattr(unpacked, "MAX_TEXT", len(TEXT))
    open_text(packed, packed).close()


def test_a_link_is_not_followed(packed: Path) -> None:
    link = packed.with_name(f"log.2{packed.suffix}")
    link.symlink_to(packed)
    with pytest.raises(OSError, match="symbolic links"):
        open_text(link, link)
