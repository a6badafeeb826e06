import os
from pathlib import Path

import pytest

from jailbridge.config.settings import DEFAULT_ALLOW_FILES, PolicySettings
from jailbridge.errors import ParseError, RetryLater
from jailbridge.model.network import network_text
from jailbridge.policy import allow
from jailbridge.policy.allow import AllowList, allow_lists, allowed, parse_list


def settings(*paths: Path, networks: tuple[str, ...] = (), **others: object) -> PolicySettings:
    return PolicySettings.model_validate({"allow": networks, "allow_files": paths, **others})


def entries(*paths: Path, networks: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    return [(network_text(network), where) for network, where in allowed(settings(*paths, networks=networks))]


def refusal(*paths: Path) -> str:
    with pytest.raises(RetryLater) as error:
        allowed(settings(*paths))
    assert "\n" not in str(error.value)
    assert "nobody new is banned until it" in str(error.value)
    return str(error.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "allow"


def test_each_entry_says_where_it_stands(path: Path) -> None:
    path.write_bytes(
        b"# PortSentry's own\n\n127.0.0.1/32\n0.0.0.0\r\n  192.0.2.7/24\t# office\n#198.51.100.1\n"
        b"::ffff:203.0.113.7\n2001:db8::7\n2001:db8:1::/48 # caf\xe9"
    )
    assert entries(path, networks=("10.0.0.0/8",)) == [
        ("10.0.0.0/8", "policy.allow"),
        ("127.0.0.1", f"{path}:3"),
        ("0.0.0.0", f"{path}:4"),
        ("192.0.2.0/24", f"{path}:5"),
        ("203.0.113.7", f"{path}:7"),
        ("2001:db8::7", f"{path}:8"),
        ("2001:db8:1::/48", f"{path}:9"),
    ]


def test_an_empty_file_allows_nobody(path: Path) -> None:
    path.touch()
    assert entries(path) == []


def test_a_byte_order_mark_is_no_part_of_the_first_entry(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf192.0.2.7\n")
    assert entries(path) == [("192.0.2.7", f"{path}:1")]


@pytest.mark.parametrize(
    "entry",
    [
        "localhost",
        "192.0.2",
        "192.0.2.7 192.0.2.8",
        "192.0.2.0/33",
        "192.0.2.0-192.0.2.9",
        "192.0.2.*",
        "[::1]",
        "caf\xe9",
        "x\0",
    ],
)
def test_a_malformed_line_is_named_by_its_number(path: Path, entry: str) -> None:
    path.write_text(f"192.0.2.1\n# fine\n{entry}\n192.0.2.2\n", encoding="utf-8")
    assert refusal(path).startswith(f"allow file {path}:3: ")


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_only_a_newline_ends_a_line(path: Path, separator: str) -> None:
    # An editor shows one line; a comment must not let the rest of itself become an entry.
    path.write_text(f"# was:{separator}192.0.2.7\nbad\n", encoding="utf-8")
    assert refusal(path).startswith(f"allow file {path}:2: ")
    path.write_text(f"# was:{separator}192.0.2.7\n", encoding="utf-8")
    assert entries(path) == []


def test_default_files_may_be_missing_and_named_ones_may_not(path: Path) -> None:
    if not any(default.exists() for default in DEFAULT_ALLOW_FILES):
        assert allowed(PolicySettings()) == []
    assert refusal(path) == f"allow file {path} is not there; nobody new is banned until it is"


def test_a_link_into_the_void_is_not_a_missing_default_file(path: Path) -> None:
    path.symlink_to(path.with_name("not-mounted"))
    assert "is not there" in refusal(path)
    problem = allow._list(path, "", allow._allow_file, may_be_missing=True).problem
    assert problem == f"{path} is not there; nobody new is banned until it is"
    path.unlink()
    assert allow._list(path, "", allow._allow_file, may_be_missing=True) == AllowList(where=str(path))


def test_one_bad_file_is_enough(path: Path, tmp_path: Path) -> None:
    path.write_text("192.0.2.7\n")
    refusal(path, tmp_path / "missing")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert f"allow file {tmp_path} cannot be read: Is a directory" in refusal(tmp_path)


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    assert "is not a regular file" in refusal(path)
    assert "is not a regular file" in refusal(Path("/dev/zero"))


def test_a_path_through_a_file_is_refused(path: Path) -> None:
    path.touch()
    assert "cannot be read: Not a directory" in refusal(path / "x")


def test_a_huge_file_is_refused(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(allow.MAX_BYTES + 1)
    assert f"allow file {path} is over 4 MiB" in refusal(path)


def test_a_list_of_the_command_line_has_the_same_form() -> None:
    assert [(network_text(n), where) for n, where in parse_list("192.0.2.7 # x\n\n2001:db8::/64", "bans")] == [
        ("192.0.2.7", "bans:1"),
        ("2001:db8::/64", "bans:3"),
    ]
    with pytest.raises(ParseError, match=r"^bans:2: 'x' is not an IP address"):
        list(parse_list("192.0.2.7\nx\n", "bans"))


# hosts.allow


def test_a_hosts_allow_allows_what_it_lets_in_to_everything(path: Path) -> None:
    path.write_text("# x\nALL: 192.0.2.0/24 2001:db8::7\nsshd: 198.51.100.7\nALL: 203.0.113.7, [2001:db8::]/32\n")
    *_, read = allow_lists(settings(hosts_allow=path))
    assert [(network_text(network), where) for network, where in read.networks] == [
        ("203.0.113.7", f"{path}:4"),
        ("2001:db8::/32", f"{path}:4"),
    ]
    first, second = read.not_obeyed
    assert first.startswith(f"{path}:2 is not obeyed: it has an option other than ALLOW: 'db8, , 7")
    assert second == f"{path}:3 is not obeyed: it is for 'sshd', and not for ALL"
    assert allowed(settings(hosts_allow=path)) == list(read.networks)


def test_a_hosts_allow_that_is_named_and_cannot_be_read_holds_back_bans(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "x", "is not there"), (tmp_path, "cannot be read: Is a directory")):
        with pytest.raises(RetryLater, match=f"^{path} {why}; nobody new is banned until it"):
            allowed(settings(hosts_allow=path))


def test_every_list_is_told_of_though_one_cannot_be_read(path: Path, tmp_path: Path) -> None:
    path.write_text("192.0.2.7\n")
    missing, hosts_allow = tmp_path / "missing", tmp_path / "hosts.allow"
    hosts_allow.write_text("ALL: 192.0.2.8\n")
    told = list(allow_lists(settings(missing, path, networks=("10.0.0.0/8",), hosts_allow=hosts_allow)))
    assert [(one.where, len(one.networks), one.problem is None) for one in told] == [
        ("policy.allow", 1, True),
        (str(missing), 0, False),
        (str(path), 1, True),
        (str(hosts_allow), 1, True),
    ]
