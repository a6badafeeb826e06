"""Words with placeholders, as [[respond.command]] has them: `{address}` stands for a value, `{{` and `}}` for a brace.

Pure. A value is put in as it is: one argument stays one, whatever it holds.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from jailbridge.errors import ParseError
from jailbridge.model.network import shown

HOSTNAME = "hostname"
NAMES = (
    *("address", "port", "ports", "protocol", "mode"),
    HOSTNAME,
    *("reason", "until", "what", "time", "origin"),
)
"""What may be named."""

_PART = re.compile(r"\{\{|\}\}|\{(?P<name>[^{}]*)\}|[{}]")
_BRACES = {"{{": "{", "}}": "}"}


def named(words: Iterable[str]) -> Iterator[str]:
    """Yield the placeholders of words. Raises ParseError for one that there is not, and for a single brace."""
    for part in (part for word in words for part in _PART.finditer(word)):
        if part["name"] is None:
            if part[0] not in _BRACES:
                raise ParseError(f'a single "{part[0]}": for the letter itself write it twice')
        elif part["name"] not in NAMES:
            raise ParseError(f"no placeholder {shown(part[0])}: there are " + " ".join(f"{{{name}}}" for name in NAMES))
        else:
            yield part["name"]


def filled(word: str, values: Mapping[str, str]) -> str:
    """Return a word that `named` takes, with the values in the placeholders' places."""
    return _PART.sub(lambda part: _BRACES[part[0]] if part["name"] is None else values[part["name"]], word)
