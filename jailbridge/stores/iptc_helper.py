"""The one process that loads python-iptables, for hosts with legacy iptables. Run by `xtables`; never import it there.

python-iptables crashes under threads, takes no lock, swallows the kernel's errors when it commits by itself, and its
memory errors end whoever holds it: so it lives here, by itself, commits once a request, and only ever gets words that
were checked on both sides. It refuses to look for its C libraries by compiler and ldconfig, as it else would.

Lines of JSON on standard input, each answered by one: {"ask": "lock"} takes the lock of `iptables -w`, {"ask": "write",
"family", "steps"} makes all steps in one commit or none, {"ask": "unlock"}. An answer is {} or {"refused", "why"},
where `refused` says what was wrong: "target", "gone" (a rule to delete), "permission", "other".
"""

import ctypes
import ctypes.util
import fcntl
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TextIO

# iptables.c of 1.8: XT_LOCK_NAME, unless XTABLES_LOCKFILE says otherwise; opened with O_CREAT, mode 0600.
LOCK = "/run/xtables.lock"
_OURS = frozenset({"jailbridge", "jailbridge-probe"})
_CHAINS = _OURS | {"INPUT", "FORWARD", "DOCKER-USER"}
_PLAIN = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
# NFLOG with a prefix corrupts python-iptables' heap: nothing is built but what we write.
_TARGETS = frozenset({"DROP", "RETURN", "REJECT", "TARPIT", "CHAOS", "DELUDE", "jailbridge"})
_OPTIONS = frozenset({(), ("--tarpit",)})
_REJECT_WITH = re.compile(r"icmp6?-[a-z-]{1,30}|tcp-reset")


class Refused(Exception):
    """A request that cannot be done; `kind` is the answer's `refused`."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    # What C code prints is no answer.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    serve(sys.stdin, answers)


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer each line of `requests`."""
    writer = _Writer()
    for line in requests:
        answer: dict[str, str] = {}
        try:
            writer.obey(json.loads(line))
        except Refused as error:
            answer = {"refused": error.kind, "why": str(error)}
        except Exception as error:  # noqa: BLE001 - python-iptables raises any; whoever asked decides
            answer = {"refused": "other", "why": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class _Writer:
    def __init__(self) -> None:
        self._lock: int | None = None
        self._iptc: Any = None

    def obey(self, request: dict[str, Any]) -> None:
        match request:
            case {"ask": "lock"}:
                if self._iptc is None:
                    self._iptc = _loaded()
                self.unlock()
                path = os.environ.get("XTABLES_LOCKFILE", LOCK)
                self._lock = os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            case {"ask": "write", "family": "iptables" | "ip6tables" as family, "steps": list(steps)}:
                if self._lock is None:
                    raise Refused("other", "the xtables lock is not held")
                self.write(family, steps)
            case {"ask": "unlock"}:
                self.unlock()
            case _:
                raise Refused("other", "not a request")

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, family: str, steps: list[Any]) -> None:
        iptc = self._iptc
        for step in steps:
            check(step, family)
        try:
            table = (iptc.Table if family == "iptables" else iptc.Table6)("filter", autocommit=False)
            table.refresh()
        except iptc.IPTCError as error:
            raise Refused("permission" if os.geteuid() else "other", _text(error)) from None
        try:
            for step in steps:
                self._make(table, family, *step)
            table.commit()
        except iptc.IPTCError as error:
            why = _text(error)
            raise Refused("target" if "No chain/target/match by that name" in why else "other", why) from None
        finally:
            # Forgets what was not committed.
            table.refresh()

    def _make(self, table: Any, family: str, do: str, chain: str, position: int, spec: dict[str, Any] | None) -> None:
        match do, spec:
            case "make", None if table.is_chain(chain):
                table.flush_entries(chain)
            case "make", None:
                table.create_chain(chain)
            case "flush", None:
                table.flush_entries(chain)
            case "remove", None:
                table.delete_chain(chain)
            case "append", dict():
                self._iptc.Chain(table, chain).append_rule(self._rule(family, spec))
            case "insert", dict():
                self._iptc.Chain(table, chain).insert_rule(self._rule(family, spec), position=position - 1)
            case _, dict():
                try:
                    self._iptc.Chain(table, chain).delete_rule(self._rule(family, spec))
                except self._iptc.IPTCError as error:
                    raise Refused("gone", _text(error)) from None

    def _rule(self, family: str, spec: dict[str, Any]) -> Any:
        rule = self._iptc.Rule() if family == "iptables" else self._iptc.Rule6()
        if spec["source"] is not None:
            rule.src = spec["source"]
        if spec["protocol"] is not None:
            rule.protocol = spec["protocol"]
        if spec["match_set"] is not None:
            try:
                rule.create_match("set").match_set = [spec["match_set"], "src"]
            except ValueError:
                raise Refused("other", f"there is no set {spec['match_set']}") from None
        if spec["comment"] is not None:
            rule.create_match("comment").comment = spec["comment"]
        try:
            target = rule.create_target(spec["target"])
            for name, value in _parameters(spec["options"]):
                target.set_parameter(name, value)
        except (self._iptc.XTablesError, ValueError, AttributeError) as error:
            raise Refused("target", _text(error)) from None
        return rule


def _loaded() -> Any:
    """Return python-iptables, its C libraries found by the dynamic linker alone. Raises Refused."""
    xtables = _library("libxtables.so", (12, 11, 10))
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    folder = next(str(Path(line.split()[-1]).parent) for line in maps.splitlines() if "/libxtables.so" in line)
    os.environ["PYTHON_IPTABLES_XTABLES_VERSION"] = xtables.rpartition(".")[2]
    os.environ.setdefault("XTABLES_LIBDIR", f"{folder}/xtables")
    os.environ["IPTABLES_LIBDIR"] = f"{sysconfig.get_path('platlib')}:{folder}"
    names = {"c": "libc.so.6", "ip4tc": _library("libip4tc.so", (2, 0)), "ip6tc": _library("libip6tc.so", (2, 0))}
    ctypes.util.find_library = names.get  # type: ignore[assignment]
    # It does without; setuptools' copy costs a fifth of a second.
    sys.modules["distutils"] = None  # type: ignore[assignment]
    try:
        import iptc  # noqa: PLC0415 - not before its surroundings are set
    except ImportError as error:
        raise Refused("other", f"python-iptables cannot be loaded ({error}): pip install python-iptables") from None
    # A target is looked for in every table: each that is named here would be made, with hooks of its own.
    iptc.Table.ALL = iptc.Table6.ALL = ["filter"]
    return iptc


def _library(name: str, versions: tuple[int, ...]) -> str:
    for version in versions:
        with suppress(OSError):
            ctypes.CDLL(f"{name}.{version}", mode=ctypes.RTLD_GLOBAL)
            return f"{name}.{version}"
    raise Refused("other", f"{name} is not on this machine: apt install iptables")


def check(step: Any, family: str) -> None:
    """Raise Refused for what is no step of ours: a wrong word must never come near C code."""
    match step:
        case ["make" | "flush" | "remove", str(chain), 0, None] if chain in _OURS:
            return
        case [
            "append" | "insert" | "delete" as do,
            str(chain),
            int(position),
            {
                "target": str(target),
                "options": list(options),
                "protocol": None | "tcp",
                "source": source,
                "match_set": match_set,
                "comment": comment,
            },
        ] if (
            chain in _CHAINS
            and (1 <= position < 1 << 20 if do == "insert" else position == 0)
            and target in _TARGETS
            and _is_option(target, options)
            and all(word is None or (isinstance(word, str) and _PLAIN.fullmatch(word)) for word in (match_set, comment))
        ):
            if source is not None and not _is_network(source, 4 if family == "iptables" else 6):
                raise Refused("other", "not a source of this family")
        case _:
            raise Refused("other", "not a step")


def _is_network(source: Any, version: int) -> bool:
    try:
        return isinstance(source, str) and ip_network(source).version == version
    except ValueError:
        return False


def _is_option(target: str, options: list[Any]) -> bool:
    if target == "REJECT":
        return len(options) == 2 and options[0] == "--reject-with" and bool(_REJECT_WITH.fullmatch(str(options[1])))
    return tuple(options) in _OPTIONS


def _parameters(options: list[str]) -> Iterator[tuple[str, str]]:
    words = [*options, ""]
    while words[0].startswith("--"):
        name, value, *_ = words
        yield name.removeprefix("--"), "" if value.startswith("--") else value
        words = words[1:] if not value or value.startswith("--") else words[2:]


def _text(error: Exception) -> str:
    return str(error).replace("b'", "").replace("'", "").replace("\n", " ")


if __name__ == "__main__":
    main()
