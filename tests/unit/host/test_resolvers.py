import os
from pathlib import Path

import pytest

from jailbridge.errors import RetryLater
from jailbridge.host.files import MAX_BYTES
from jailbridge.host.resolvers import nameservers, resolvers

RESOLVED = b"""\
# This is /run/systemd/resolve/resolv.conf managed by man:systemd-resolved(8).
# Do not edit.
nameserver 192.0.2.53
nameserver 2001:db8::53
# Too many DNS servers configured, the following entries may be ignored.
nameserver fe80::1%eth0
nameserver 198.51.100.53
search example.com
"""


@pytest.mark.parametrize(
    ("line", "address"),
    [
        (b"nameserver 192.0.2.53", "192.0.2.53"),
        (b"nameserver\t 192.0.2.53 \t", "192.0.2.53"),
        (b"nameserver 192.0.2.53\r", "192.0.2.53"),
        (b"nameserver 192.0.2.53 # the office's", "192.0.2.53"),
        (b"nameserver fe80::1%eth0", "fe80::1"),
        (b"nameserver ::ffff:192.0.2.53", "192.0.2.53"),
        (b"#nameserver 192.0.2.53", None),
        (b"; nameserver 192.0.2.53", None),
        (b" nameserver 192.0.2.53", None),
        (b"nameservers 192.0.2.53", None),
        (b"nameserver192.0.2.53", None),
        (b"nameserver", None),
        (b"nameserver ns.example.com", None),
        (b"nameserver 192.0.2.053", None),
        (b"nameserver \xff\xfe", None),
        (b"search 192.0.2.53", None),
        (b"\0\0\0", None),
    ],
)
def test_a_name_server_is_what_libc_takes_for_one(line: bytes, address: str | None) -> None:
    around = b"options edns0\n" + line + b"\nnameserver 203.0.113.53"
    assert [str(found) for found in nameservers(around)] == [*([address] if address else []), "203.0.113.53"]


def test_each_server_is_told_once_with_the_file_that_names_it_first(tmp_path: Path) -> None:
    libc, resolved = tmp_path / "resolv.conf", tmp_path / "resolved"
    libc.write_bytes(b"nameserver 127.0.0.53\nnameserver 198.51.100.53\n")
    resolved.write_bytes(RESOLVED)
    assert [(str(address), why) for address, why in resolvers([libc, resolved])] == [
        ("127.0.0.53", f"nameserver in {libc}"),
        ("198.51.100.53", f"nameserver in {libc}"),
        ("192.0.2.53", f"nameserver in {resolved}"),
        ("2001:db8::53", f"nameserver in {resolved}"),
        ("fe80::1", f"nameserver in {resolved}"),
    ]


def test_a_file_that_is_not_there_names_nobody(tmp_path: Path) -> None:
    # As at boot, when resolv.conf is a link to what resolved has not written yet.
    link = tmp_path / "resolv.conf"
    link.symlink_to("stub-resolv.conf")
    assert resolvers([link, tmp_path / "none"]) == []


def test_a_file_that_cannot_be_read_is_told_and_not_waited_for(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for path, why in (
        (pipe, "is not a regular file"),
        (large, "is over 4 MiB"),
        (tmp_path, "cannot be read: Is a dir"),
    ):
        with pytest.raises(RetryLater, match=f"{path} {why}.*; nobody new is banned until it is mended$"):
            resolvers([path])
