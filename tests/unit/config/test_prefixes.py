"""[[tail]] prefixes: which LOG rules of the kernel are believed, and where they have a meaning."""

import pytest

from jailbridge.config import parse
from jailbridge.config.fields import MAX_PREFIX
from jailbridge.config.load import ConfigError


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "/x.toml")
    return tuple(str(problem) for problem in caught.value.problems)


def tail(rest: str) -> str:
    return f'[[tail]]\npath = "/var/log/kern.log"\n{rest}\n'


@pytest.mark.parametrize("prefix", ["x", "PORTSCAN:", "portscan nft: ", " [psd] %s 'x' ", "p" * MAX_PREFIX])
@pytest.mark.parametrize("form", ["auto", "kernel"])
def test_what_iptables_and_nft_take_is_a_prefix(form: str, prefix: str) -> None:
    (followed,) = parse(tail(f'format = "{form}"\nprefixes = ["{prefix}", "other"]'), "/x.toml").tail
    assert followed.prefixes == (prefix, "other")


@pytest.mark.parametrize("prefix", ["", "p" * (MAX_PREFIX + 1), "a\\tb", "a\\nb", "ü", "a\\u0000"])
def test_nothing_else_is_a_prefix(prefix: str) -> None:
    (problem,) = problems(tail(f'prefixes = ["{prefix}"]'))
    assert problem.startswith("tail.0.prefixes.0: should be a LOG rule's prefix of 1 to 127 printable ASCII letters")


def test_the_kernels_format_needs_prefixes() -> None:
    (problem,) = problems(tail('format = "kernel"'))
    assert problem == 'tail.0.prefixes: name the prefixes of the LOG rules to believe, like ["portscan: "]'


@pytest.mark.parametrize("form", ["portsentry-1.2", "portsentry-2", "syslog"])
def test_a_format_without_the_kernel_has_no_use_for_prefixes(form: str) -> None:
    (problem,) = problems(tail(f'format = "{form}"\nprefixes = ["portscan: "]'))
    assert problem == ('tail.0.prefixes: only "kernel" and "auto" read them: set tail.format to one, or leave them out')


def test_a_syslog_file_is_followed_without_prefixes() -> None:
    (followed,) = parse(tail('format = "syslog"'), "/x.toml").tail
    assert followed.prefixes == ()
