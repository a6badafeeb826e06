"""Words with placeholders."""

import pytest

from jailbridge.config.placeholders import NAMES, filled, named
from jailbridge.errors import ParseError

VALUES = {**dict.fromkeys(NAMES, "?"), "address": "192.0.2.7", "reason": "{port} %s $(id) {{"}


@pytest.mark.parametrize(
    ("word", "becomes"),
    [
        ("", ""),
        ("{address}", "192.0.2.7"),
        ("--from={address}/{address}", "--from=192.0.2.7/192.0.2.7"),
        ("{{address}}", "{address}"),
        ("{{{address}}}", "{192.0.2.7}"),
        ('{{"ip": "{address}"}}', '{"ip": "192.0.2.7"}'),
        # What a value holds is never looked at again.
        ("{reason}", "{port} %s $(id) {{"),
    ],
)
def test_values_stand_in_the_placeholders_places(word: str, becomes: str) -> None:
    list(named([word]))
    assert filled(word, VALUES) == becomes


@pytest.mark.parametrize("word", ["{", "}", "{address", "address}", "{{address}", "{address}}", "{{{address}}"])
def test_a_single_brace_is_refused(word: str) -> None:
    with pytest.raises(ParseError, match="a single"):
        list(named([word]))


@pytest.mark.parametrize(
    "word", ["{}", "{target}", "{Address}", "{address.real}", "{address!r}", "{port:5}", "{ address}"]
)
def test_another_name_is_refused_with_all_that_there_are(word: str) -> None:
    with pytest.raises(ParseError, match=r"no placeholder .*\{address\} \{port\}"):
        list(named(["x", word]))
