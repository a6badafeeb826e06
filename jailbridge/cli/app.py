"""The commands: each reads its arguments, asks, and shows. What takes long to import is imported where it is used."""

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from jailbridge import __version__

app = typer.Typer(
    name="jailbridge",
    help="Detects port scans, records each ban once, and keeps every place that holds bans in agreement.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
fail2ban = typer.Typer(help="The filter, jail and action that we ship for fail2ban.", no_args_is_help=True)
history = typer.Typer(help="Read PortSentry's history.", no_args_is_help=True)
app.add_typer(fail2ban, name="fail2ban")
app.add_typer(history, name="history")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration; default /etc/jailbridge/jailbridge.toml."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log every decision.")]
Addresses = Annotated[list[str] | None, typer.Argument(metavar="ADDRESS…", help="Addresses or networks.")]
FromOption = Annotated[Path | None, typer.Option("--from", metavar="FILE", help="One address a line, # comments.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"jailbridge {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    config: ConfigOption = None,
    without: Annotated[
        str, typer.Option(metavar="sensor", help="Leave the sensor out: another one writes the history.")
    ] = "",
    verbose: VerboseOption = False,
) -> None:
    """Run everything in the foreground: sensor, tailer, policy, reconciler."""
    if without not in {"", "sensor"}:
        raise typer.BadParameter("only the sensor can be left out", param_hint="--without")
    from jailbridge.cli.logs import log_to_stderr
    from jailbridge.config import load

    settings = load(config)
    log_to_stderr(verbose)
    from jailbridge.daemon.run import run as run_daemon

    run_daemon(settings, sensor=not without)


@app.command()
def sensor(config: ConfigOption = None, verbose: VerboseOption = False) -> None:
    """Run the detection daemon alone; it writes the history and bans nobody."""
    from jailbridge.cli.logs import log_to_stderr
    from jailbridge.config import load

    settings = load(config)
    log_to_stderr(verbose)
    from jailbridge.daemon.run import run_sensor

    run_sensor(settings)


@app.command(
    "portsentry",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
def portsentry(context: typer.Context) -> None:
    """Stand in for PortSentry 1.2 or 2.x: its flags, its portsentry.conf, its files and log lines (-h: more)."""
    from jailbridge.portsentry.run import main

    _finish(main(context.args))


@app.command()
def restore(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """At boot: put every live ban back into the firewall, before the network is up. Ends no ban."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    _finish(show.restored(ask.restore(load(config)), as_json))


@app.command()
def plan(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show what must change so that the stores agree with the ledger. Exit code 2: something."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    _finish(show.plan(ask.ask(load(config), "plan"), as_json))


@app.command()
def reconcile(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Make the changes that bring the stores in line. Exit code 2: something is left over."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    _finish(show.plan(ask.ask(load(config), "reconcile"), as_json))


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show how things stand. Exit code 2: drift, or a store that is unreachable or not in force."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    _finish(show.status(ask.ask(load(config), "status"), as_json))


@app.command("list")
def list_bans(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show every ban, and where it is held."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    show.bans(ask.ask(load(config), "list_bans"), as_json)


@app.command()
def ban(
    addresses: Addresses = None,
    duration: Annotated[str, typer.Option("--for", metavar="TIME", help="10m, 2h, 1d, 4w, permanent.")] = "permanent",
    reason: Annotated[str, typer.Option(metavar="TEXT")] = "by hand",
    source: FromOption = None,
    force: Annotated[bool, typer.Option("--force", help="Ban an exempt address all the same.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ban addresses or networks, all or none."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    asked = ask.addresses(addresses or [], source)
    show.banned(
        ask.ask(
            load(config),
            "ban",
            addresses=asked,
            duration=duration,
            reason=reason,
            force=force,
            session=ask.own_session(),
        ),
        as_json,
    )


@app.command()
def unban(
    addresses: Addresses = None,
    source: FromOption = None,
    everything: Annotated[bool, typer.Option("--all", help="End every ban.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """End bans everywhere. An address that is not banned is no error."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    asked = [] if everything and not addresses and source is None else ask.addresses(addresses or [], source)
    show.unbanned(ask.ask(load(config), "unban", addresses=asked, everything=everything), as_json)


@app.command("check-config")
def check_config(config: ConfigOption = None) -> None:
    """Read the configuration and every allow file, and say what is wrong, all at once."""
    from jailbridge.config import DEFAULT_PATH, load
    from jailbridge.policy.allow import allowed

    networks = allowed(load(config).policy)
    where = config if config is not None or DEFAULT_PATH.exists() else f"built-in defaults (no {DEFAULT_PATH})"
    typer.echo(f"{where or DEFAULT_PATH}: in order; {len(networks)} networks allowed")


@app.command()
def demo() -> None:
    """Show the whole loop on real parts, in network namespaces of its own: scan, ban, power cut, restore, unban."""
    from jailbridge.demo.story import tell

    _finish(tell())


StandaloneOption = Annotated[
    bool,
    typer.Option("--standalone", help="A jail for fail2ban alone, without our daemon: fail2ban bans and remembers."),
]


@fail2ban.command("render")
def fail2ban_render(
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    standalone: StandaloneOption = False,
    config: ConfigOption = None,
) -> None:
    """Write filter.d, action.d and jail.d for this configuration below DIR."""
    from jailbridge.config import load
    from jailbridge.definitions import render, write

    definitions = render(load(config), standalone=standalone)
    changed = write(definitions, directory)
    for name in definitions:
        typer.echo(f"{'wrote' if directory / name in changed else 'kept '} {directory / name}")


@fail2ban.command("install")
def fail2ban_install(
    into: Annotated[Path, typer.Option(metavar="DIR", help="fail2ban's configuration.")] = Path("/etc/fail2ban"),
    standalone: StandaloneOption = False,
    config: ConfigOption = None,
) -> None:
    """Write our definitions into fail2ban's configuration and have fail2ban test it."""
    from jailbridge.config import load
    from jailbridge.definitions import install, render

    settings = load(config)
    logs = [tail.path for tail in settings.tail]
    done = install(render(settings, standalone=standalone), into, logs=logs)
    for path in (*done.created, *done.changed):
        typer.echo(f"wrote {path}")
    if not done.tested:
        typer.echo("not tested: fail2ban-client is not on this machine (apt install fail2ban)")
    typer.echo("now run: fail2ban-client reload" if done.reload_needed else "nothing to change")


@history.command("events")
def history_events(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    as_json: JsonOption = False,
) -> None:
    """Show the scan events that a history file tells; refused lines are named on stderr."""
    from jailbridge.cli.history import events

    events(file, as_json)


def _finish(code: Any) -> NoReturn:
    raise typer.Exit(code)
