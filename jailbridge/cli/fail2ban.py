"""`jailbridge fail2ban`: our definitions put into fail2ban's folder, looked after there, and taken away again."""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jailbridge.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from jailbridge.config import Settings
    from jailbridge.definitions import Finding

# Of a log so many bytes at its end, and of these so many scans, tell whether a filter understands it.
TAIL_BYTES, SCANS = 1 << 16, 100

app = typer.Typer(help="The filter, jail and action that we ship for fail2ban.", no_args_is_help=True)

StandaloneOption = Annotated[
    bool,
    typer.Option("--standalone", help="A jail for fail2ban alone, without our daemon: fail2ban bans and remembers."),
]
IntoOption = Annotated[Path, typer.Option("--into", metavar="DIR", help="fail2ban's configuration.")]
ReloadOption = Annotated[
    bool | None,
    typer.Option("--reload/--no-reload", help="Have a running fail2ban take it up; default: if DIR is /etc/fail2ban."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="What was edited in our files by hand is lost.")]
FOLDER = Path("/etc/fail2ban")


@app.command()
def render(
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    standalone: StandaloneOption = False,
    force: ForceOption = False,
    config: ConfigOption = None,
) -> None:
    """Write filter.d, action.d and jail.d for this configuration below DIR."""
    from jailbridge.config import load
    from jailbridge.definitions import write

    definitions = _rendered(load(config), standalone)
    changed = write(definitions, directory, force=force)
    for name in definitions:
        typer.echo(f"{'wrote' if directory / name in changed else 'kept '} {directory / name}")


@app.command()
def install(
    into: IntoOption = FOLDER,
    standalone: StandaloneOption = False,
    force: ForceOption = False,
    reload: ReloadOption = None,
    config: ConfigOption = None,
) -> None:
    """Write our definitions into fail2ban's configuration, have fail2ban test it, and take it up if it runs."""
    from jailbridge import definitions as shipped
    from jailbridge.config import load
    from jailbridge.model.event import TailFormat

    settings = load(config)
    # Others' logs are made by those who write them, with their owner and mode.
    own = [tail for tail in settings.tail if tail.format not in {TailFormat.SYSLOG, TailFormat.KERNEL}]
    logs = [tail.path for tail in own if tail.path is not None and not tail.is_pattern]
    done = shipped.install(_rendered(settings, standalone), into, logs=logs, force=force)
    for path in (*done.created, *done.changed):
        typer.echo(f"{'wrote' if path.exists() else 'removed'} {path}")
    if not done.tested:
        typer.echo("not tested: fail2ban-client is not on this machine (apt install fail2ban)")
    if not done.changed:
        typer.echo("nothing to change")
    _take_up(settings, into, reload, is_action_new=any(path.suffix == ".py" for path in done.changed))


@app.command()
def uninstall(
    into: IntoOption = FOLDER,
    force: ForceOption = False,
    reload: ReloadOption = None,
    config: ConfigOption = None,
) -> None:
    """Take our definitions out of fail2ban's configuration again; logs and fail2ban's own database stay."""
    from jailbridge import definitions as shipped
    from jailbridge.config import load
    from jailbridge.errors import FatalError

    settings = load(config)
    if not into.is_dir():
        raise FatalError(f"{into} is not there: name fail2ban's configuration folder with --into")
    removed = shipped.uninstall(into, force=force)
    for path in removed:
        typer.echo(f"removed {path}")
    for path in (path for name in shipped.OURS if (path := into / name).exists()):
        typer.echo(f"kept {path}: it is not as we wrote it; --force removes it if it is ours")
    if not removed:
        typer.echo("nothing to remove")
    _take_up(settings, into, reload)


@app.command()
def check(
    into: IntoOption = FOLDER,
    standalone: StandaloneOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is missing, stale, edited, disabled, overridden, or in the wrong dialect. Exit code 2: something is."""
    from jailbridge.cli import show
    from jailbridge.config import load

    found = findings(load(config), into, standalone=standalone)
    raise typer.Exit(show.findings([(finding.what.value, finding.text) for finding in found], as_json))


def findings(settings: "Settings", into: Path = FOLDER, *, standalone: bool = False) -> Iterator["Finding"]:
    """Yield what is the matter with our definitions, on the disk and in the running server."""
    yield from _files(settings, into, standalone)
    yield from _server(settings, into, standalone)


def _rendered(settings: "Settings", standalone: bool) -> Mapping[str, str]:
    from jailbridge.definitions import render as rendered
    from jailbridge.policy.allow import allowed

    return rendered(settings, standalone=standalone, allowed=[network for network, _ in allowed(settings.policy)])


def _take_up(settings: "Settings", directory: Path, wanted: bool | None, *, is_action_new: bool = False) -> None:
    from jailbridge import definitions as shipped

    own = settings.stores.fail2ban
    if wanted is False or (wanted is None and directory != FOLDER):
        # A copy that is only being prepared must not get into the live server.
        typer.echo(f"to have a running fail2ban take it up: fail2ban-client -c {directory} reload")
    elif shipped.reload(own.jail, directory, socket=own.socket, is_action_new=is_action_new):
        typer.echo("fail2ban has taken it up")
    else:
        typer.echo(f"fail2ban is not running at {own.socket}: it will find this when it starts")


def _files(settings: "Settings", directory: Path, standalone: bool) -> Iterator["Finding"]:
    from jailbridge.definitions import check as checked

    logs = [tail.path for tail in settings.tail if tail.path is not None]
    return checked(_rendered(settings, standalone), directory, settings.stores.fail2ban.jail, logs, scans)


def _server(settings: "Settings", directory: Path, standalone: bool) -> Iterator["Finding"]:
    """Ask the running server whether it has our jail as its files say."""
    from jailbridge.daemon.wiring import fail2ban
    from jailbridge.definitions import AGAIN, Finding, What, jails
    from jailbridge.errors import FatalError, RetryLater
    from jailbridge.stores.fail2ban_socket import Fail2banSocket, Refused

    own = settings.stores.fail2ban
    # What fail2ban cannot read is told already.
    meant: Mapping[str, Sequence[str]] = {}
    with suppress(FatalError):
        meant = jails(directory).get(own.jail, {})
    try:
        with Fail2banSocket(own.socket) as server:
            for key, option in (("addaction", "actions"), ("addignoreip", "ignoreip")):
                has = server.ask("get", own.jail, option)
                if meant and isinstance(has, list) and set(map(str, has)) != set(meant.get(key, ())):
                    yield Finding(What.SERVER, f"the running fail2ban has other {option} in jail {own.jail}: {AGAIN}")
        problem = None if standalone or not own.enabled else fail2ban(settings).observe(datetime.now(UTC)).problem
    except Refused:
        problem = f"the running fail2ban has no jail {own.jail}: {AGAIN}"
    except (RetryLater, FatalError) as error:
        problem = str(error)
    if problem is not None:
        yield Finding(What.SERVER, problem)


def scans(log: Path) -> Sequence[bytes]:
    """Return lines of a PortSentry history, from its end, that should ban; none of a log that is something else."""
    from jailbridge.errors import ParseError
    from jailbridge.history import dialects

    try:
        # A pipe would be waited for.
        with FileIO(os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return ()
            file.seek(max(0, status.st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).split(b"\n")[1 if status.st_size > TAIL_BYTES else 0 : -1]
    except OSError:
        return ()
    found: list[bytes] = []
    for line in reversed(lines):
        try:
            event, _ = dialects.parse(line)
        except ParseError:
            continue
        if event.triggered is not False and not event.ignored and len(found) < SCANS:
            found.append(line)
    return found
