"""Templates: tried out before they are used, harmless to whoever wrote what they show."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from jailbridge.errors import GiveUp
from jailbridge.respond.digest import MAX_COUNTED, MAX_LISTED
from jailbridge.respond.mail import BUILT_IN, HTML, SUBJECT, TEXT
from jailbridge.respond.postbox import Batch
from jailbridge.respond.templates import MAX_CHARACTERS, MAX_TEXT, Template, printable, samples, view
from tests.unit.respond.test_digest import event

HOSTILE = (
    "evil\r\nBcc: all@example.org\x00\x1b[2J\u202e\u2028 <script>alert(1)</script> {{ 7 * 7 }} " + "x" * 10_000_000
)


def problem(tmp_path: Path, text: str | bytes, *, html: bool = False) -> str:
    path = tmp_path / "text.j2"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(GiveUp) as raised:
        Template(path, html=html)
    said = str(raised.value)
    assert "\n" not in said
    assert said.startswith(str(path))
    return said.removeprefix(str(path))


def test_a_template_shows_what_happened(tmp_path: Path) -> None:
    path = tmp_path / "text.j2"
    path.write_text("{{ host }}{% for e in events %} {{ e.address }} {{ e.ports }}{% endfor %} {{ total }}\n")
    batch = Batch(listed=(replace(event("192.0.2.1"), ports=("tcp/23",)),), counted={}, total=1)
    assert Template(path).render(view(batch, "box")) == "box 192.0.2.1 tcp/23 1\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\n{{ adress }}", ":3: 'adress' is undefined"),
        ("\n{% for e in events %}\n{{ e.adress }}{% endfor %}", ":3: 'dict object' has no attribute 'adress'"),
        ("{% if total > 100 %}\n{{ adress }}{% endif %}", ":2: 'adress' is not known here: there are host, events,"),
        ("\n{{ host", ":2: unexpected end of template"),
        ("{% if %}", ":1: Expected an expression"),
        ("\n{% include 'other.j2' %}", ":2: there is no 'other.j2' in its folder to include"),
        ("{% include '../../../../../../etc/hostname' %}", ":1: there is no '../../../../../../etc/hostname'"),
        ("\n{{ host.__class__.__mro__ }}", ":2: access to attribute '__class__'"),
        ("\n{{ 1 / 0 }}", ":2: division by zero"),
        ("a\nb\n\xff".encode("latin-1"), ":3: not UTF-8 text"),
        ("{% for n in range(20000) %}{{ 'x' * 100 }}{% endfor %}", f": makes a text of over {MAX_CHARACTERS} char"),
        ("x" * (1 << 20) + "y", " is over 1 MiB"),
    ],
)
def test_what_is_wrong_with_a_template_is_said_with_its_file_and_line(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    assert said in problem(tmp_path, text)


def test_a_template_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(GiveUp, match=r"text\.j2 cannot be read: No such file or directory"):
        Template(tmp_path / "text.j2")


def test_what_is_wrong_with_an_included_file_is_said_of_that_file(tmp_path: Path) -> None:
    (tmp_path / "text.j2").write_text("{% include 'foot.j2' %}")
    (tmp_path / "foot.j2").write_text("\n\n{{ nobody }}")
    with pytest.raises(GiveUp, match=r"foot\.j2:3: 'nobody' is undefined"):
        Template(tmp_path / "text.j2")


def test_a_name_that_a_template_sets_itself_is_known(tmp_path: Path) -> None:
    path = tmp_path / "text.j2"
    path.write_text("{% if total %}{% set a = 1 %}{% else %}{% for a in range(2) %}{{ a }}{% endfor %}{% endif %}")
    assert Template(path).render(samples()[0]) == ""


def test_an_outsiders_text_is_one_line_of_a_size() -> None:
    shown = printable(HOSTILE)
    assert len(shown) <= MAX_TEXT
    assert shown.isprintable()
    assert shown.startswith("evil Bcc: all@example.org [2J <script>")
    assert printable("a\ud800b") == "a b"
    assert printable("ünï 漢字") == "ünï 漢字"


@pytest.mark.parametrize("name", [SUBJECT, TEXT, HTML])
def test_the_built_in_templates_show_anything_harmlessly_and_in_bounds(name: str) -> None:
    template = Template(BUILT_IN / name, html=name == HTML)
    ports = tuple(f"tcp/{60000 + n}" for n in range(32))
    listed = tuple(
        replace(event(f"2001:db8:{n:x}:ffff:ffff:ffff:ffff:ffff"), reason="<'" + HOSTILE[:5000], ports=ports)
        for n in range(MAX_LISTED)
    )
    whose = SimpleNamespace(name="\"'<&>" * 1000, country=HOSTILE[:999], network=HOSTILE[:999], abuse="<'&" * 999)
    counted = {f"2001:db8:{n:x}::/48": 10_000 for n in range(MAX_COUNTED)}
    batch = Batch(listed=listed, counted=counted, total=10_000_000)
    text = template.render(view(batch, "x" * 253, dict.fromkeys([one.network for one in listed], whose)))
    assert len(text) < MAX_CHARACTERS
    assert "\r" not in text
    assert "\u202e" not in text
    assert name == SUBJECT or "{{ 7 * 7 }}" in text, "what is shown is no template"
    assert name != HTML or "<script" not in text


def test_the_built_in_templates_tell_all_of_one_source() -> None:
    first, *_, digest = samples()
    for name in (TEXT, HTML):
        text = Template(BUILT_IN / name, html=name == HTML).render(first)
        for told in ("203.0.113.7", "tcp/23 tcp/80", "stealth", "2026-11-22T06:40:59Z", "scan: tcp/23"):
            assert told in text
        for told in ("EXAMPLE-NET (DE)", "203.0.113.0/24", "abuse@example.net"):
            assert told in text
        text = Template(BUILT_IN / name, html=name == HTML).render(digest)
        for told in ("203.0.113.7", "2001:db8::/64", "12 bans", "permanent", "let in again", "1 more"):
            assert told in text


def test_samples_can_be_said_in_json() -> None:
    assert json.loads(json.dumps(samples()))[0]["events"][0]["whois"]["country"] == "DE"
