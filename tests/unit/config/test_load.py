from pathlib import Path

import pytest

from jailbridge.config import DEFAULT_PATH, Settings, load, parse
from jailbridge.config.load import ConfigError
from jailbridge.errors import FatalError


def refused(path: Path) -> str:
    with pytest.raises(FatalError) as error:
        load(path)
    return str(error.value)


def test_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[policy]\nenforce = false\n")
    assert not load(path).policy.enforce


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbf[policy]\r\nenforce = false\r\n")
    assert not load(path).policy.enforce


def test_an_empty_file_is_the_default_configuration(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.touch()
    assert load(path) == Settings()


@pytest.mark.skipif(DEFAULT_PATH.exists(), reason=f"this machine has a {DEFAULT_PATH}")
def test_without_a_file_at_the_default_place_the_defaults_hold() -> None:
    assert load(None) == Settings()


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    assert refused(path) == f"{path}: no such file: create it, or leave --config out for the defaults"


def test_a_folder_is_an_error(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_a_path_through_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be read: Not a directory" in refused(tmp_path / "file" / "x.toml")


def test_bytes_that_are_not_utf8_are_an_error_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"# caf\xe9\n")
    assert refused(path) == f"{path}: not UTF-8 text at byte 5"


@pytest.mark.parametrize(
    "text",
    [
        "[sensor",
        "x = ",
        "a = 1\na = 2",
        "[a]\n[a]",
        "= 1",
        "x = 1 y",
        "\x00",
        "x = " + "[" * 100000,
        "x = " + "9" * 5000,
    ],
)
def test_what_is_not_toml_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "/x.toml")
    assert str(error.value).startswith("/x.toml: not TOML: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_malformed_toml_names_its_line() -> None:
    with pytest.raises(ConfigError, match="at line 2"):
        parse("[sensor]\nmode = stealth\n", "/x.toml")


def test_one_problem_is_one_line_and_several_are_a_list() -> None:
    with pytest.raises(ConfigError) as one:
        parse("x = 1", "/x.toml")
    assert str(one.value) == "/x.toml: x: unknown key"
    with pytest.raises(ConfigError) as two:
        parse("x = 1\ny = 1", "/x.toml")
    assert str(two.value) == "/x.toml: 2 problems\n  x: unknown key\n  y: unknown key"


def test_outsiders_text_in_a_problem_is_cut_and_quoted() -> None:
    with pytest.raises(ConfigError) as error:
        parse('[sensor]\nmode = "' + "\\u001b[2J" * 1000 + '"', "/x.toml")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("mode", ["stealth", "off"])
def test_a_sensor_that_watches_nothing_is_a_contradiction(mode: str) -> None:
    text = f'[sensor]\nmode = "{mode}"\ntcp_ports = "113"\nudp_ports = ""\n'
    if mode == "off":
        assert parse(text, "test").sensor.udp_ports == ()
    else:
        with pytest.raises(ConfigError, match=r"sensor\.tcp_ports: no port is left to watch"):
            parse(text, "test")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('mode = "stealth"\nbanner = "go away"', r'sensor\.banner: only the mode "connect" has somebody to send it to'),
        ('mode = "connect"\nack_scans = true', r'sensor\.ack_scans: only the mode "stealth" sees them'),
    ],
)
def test_a_setting_of_the_sensors_other_mode_is_a_contradiction(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(f"[sensor]\n{text}\n", "test")
