"""The commands: each reads its arguments, asks, and shows. What takes long to import is imported where it is used."""

from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from jailbridge import __version__
from jailbridge.cli import fail2ban
from jailbridge.cli.options import ConfigOption, JsonOption, VerboseOption

app = typer.Typer(
    name="jailbridge",
    help="Detects port scans, records each ban once, and keeps every place that holds bans in agreement.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
history = typer.Typer(help="Read logs: PortSentry's history, system logs, the journal.", no_args_is_help=True)
allow = typer.Typer(help="Networks that are never banned.", no_args_is_help=True)
app.add_typer(fail2ban.app, name="fail2ban")
app.add_typer(history, name="history")
app.add_typer(allow, name="allow")

Networks = Annotated[list[str], typer.Argument(metavar="NETWORK…", help="Addresses or networks.")]
Addresses = Annotated[list[str] | None, typer.Argument(metavar="ADDRESS…", help="Addresses or networks.")]


def _reason(text: str) -> str:
    from jailbridge.config.values import parse_reason

    return parse_reason(text)


ReasonOption = Annotated[str, typer.Option(metavar="TEXT", callback=_reason, help="One line, kept with the order.")]
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
        list[str] | None,
        typer.Option(
            metavar="PART", help="Leave out sensor (another one writes the history) or respond; may be repeated."
        ),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Run everything in the foreground: sensor, tailer, policy, reconciler, commands and mail."""
    left_out = {part.strip() for parts in without or () for part in parts.split(",")}
    if not left_out <= {"sensor", "respond"}:
        raise typer.BadParameter("only sensor and respond can be left out", param_hint="--without")
    from jailbridge.cli.logs import log_to_stderr
    from jailbridge.config import load

    log_to_stderr(verbose)
    from jailbridge.daemon.run import run as run_daemon

    run_daemon(lambda: load(config), sensor="sensor" not in left_out, respond="respond" not in left_out)


@app.command()
def respond(config: ConfigOption = None, verbose: VerboseOption = False) -> None:
    """Run commands, mail and webhooks alone, for bans that another process makes and ends."""
    from jailbridge.cli.logs import log_to_stderr
    from jailbridge.config import load

    log_to_stderr(verbose)
    from jailbridge.daemon.responding import run as run_responder

    run_responder(lambda: load(config))


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
def reconcile(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    store: Annotated[str | None, typer.Option(help="This store alone.", metavar="NAME")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, as `plan` does.")] = False,
    force: Annotated[bool, typer.Option(help="Past the brake: take over whatever the stores are found with.")] = False,
) -> None:
    """Make the changes that bring the stores in line. Exit code 2: something is left over."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    chosen = {"store": store, "force": force}
    _finish(show.plan(ask.ask(load(config), "plan" if dry_run else "reconcile", **chosen), as_json))


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
def explain(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="An address or a network.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell the story of an address: sightings, decisions and changes of the stores, with the logs' own lines.

    Of a long story the first and the last things are kept.
    """
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    _finish(show.explained(ask.ask(load(config), "explain", address=address), as_json))


@app.command()
def ban(
    addresses: Addresses = None,
    duration: Annotated[str, typer.Option("--for", metavar="TIME", help="10m, 2h, 1d, 4w, permanent.")] = "permanent",
    reason: ReasonOption = "by hand",
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


@allow.command("add")
def allow_add(
    networks: Networks,
    reason: ReasonOption = "by hand",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Never ban these networks, and end at once every ban that touches them, but those made with --force."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    _finish(show.allowed(ask.ask(load(config), "allow_add", networks=networks, reason=reason), as_json))


@allow.command("remove")
def allow_remove(networks: Networks, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Take back what `allow add` said of exactly these networks."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    _finish(show.disallowed(ask.ask(load(config), "allow_remove", networks=networks), as_json))


@allow.command("list")
def allow_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show every allowed network, and who says so."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    _finish(show.allow_list(ask.ask(load(config), "allow_list"), as_json))


@app.command()
def pause(
    duration: Annotated[str, typer.Option("--for", metavar="TIME", help="10m, 2h; then it ends by itself.")] = (
        "permanent"
    ),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take every ban out of every store; the ledger keeps them, and goes on deciding."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    _finish(show.paused(ask.ask(load(config), "pause", duration=duration), as_json))


@app.command()
def resume(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """End a pause: every ban goes back into the stores."""
    from jailbridge.cli import ask, show
    from jailbridge.config import load

    _finish(show.resumed(ask.ask(load(config), "resume"), as_json))


RootOption = Annotated[
    Path, typer.Option("--root", metavar="DIR", help="Below this folder, an image's; nothing of this system is asked.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done.")]


@app.command()
def install(
    root: RootOption = Path("/"),
    force: Annotated[bool, typer.Option("--force", help="What was edited in our files by hand is lost.")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Put units, the sensor's account, a rotation and a configuration in place; enables and starts nothing."""
    from jailbridge.cli import services

    services.install(root, force=force, dry_run=dry_run)


@app.command()
def uninstall(
    root: RootOption = Path("/"),
    purge: Annotated[bool, typer.Option("--purge", help="Configuration and ledger too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="What was edited in our files by hand too.")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Stop and disable our services and take away what `install` put in place; the bans stay where they are."""
    from jailbridge.cli import services

    services.uninstall(root, purge=purge, force=force, dry_run=dry_run)


@app.command("import")
def import_machine(
    apply: Annotated[bool, typer.Option("--apply", help="Write configuration and ledger; else nothing is.")] = False,
    keep_portsentry: Annotated[
        bool, typer.Option("--keep-portsentry", help="PortSentry goes on detecting; our sensor stays off.")
    ] = False,
    only: Annotated[
        Literal["configuration", "bans"] | None, typer.Option("--only", help="One of the two alone.")
    ] = None,
    ban_for_spoofable: Annotated[
        str | None, typer.Option("--ban-for-spoofable", metavar="TIME", help="Into the configuration; default 1d.")
    ] = None,
    portsentry_conf: Annotated[Path | None, typer.Option("--portsentry-conf", metavar="FILE")] = None,
    defaults: Annotated[
        Path | None, typer.Option("--defaults", metavar="FILE", help="TCP_MODE, UDP_MODE; /etc/default/portsentry.")
    ] = None,
    history: Annotated[
        list[Path] | None, typer.Option("--history", metavar="FILE", help="One more history; may be repeated.")
    ] = None,
    hosts_deny: Annotated[Path | None, typer.Option("--hosts-deny", metavar="FILE")] = None,
    fail2ban_socket: Annotated[Path | None, typer.Option("--fail2ban-socket", metavar="FILE")] = None,
    fail2ban_database: Annotated[Path | None, typer.Option("--fail2ban-database", metavar="FILE")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a configuration; ban though a list of the exempt is unreadable.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take over what PortSentry and fail2ban hold here: shows the plan. Exit code 2: not all could be read."""
    from jailbridge.cli import importing
    from jailbridge.cli.ask import own_session
    from jailbridge.importing.configuration import Wishes
    from jailbridge.importing.migration import Asked

    usual = Asked()
    asked = Asked(
        conf=(portsentry_conf or usual.conf).absolute(),
        defaults=(defaults or usual.defaults).absolute(),
        config=config,
        histories=[path.absolute() for path in history or ()],
        hosts_deny=hosts_deny,
        socket=fail2ban_socket,
        database=fail2ban_database or usual.database,
        wishes=Wishes(keep_portsentry=keep_portsentry, ban_for_spoofable=ban_for_spoofable),
        wants_configuration=only != "bans",
        wants_bans=only != "configuration",
        force=force,
        session=own_session(),
    )
    _finish(importing.run(asked, applies=apply, as_json=as_json))


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy goes, its owner's alone.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    config: ConfigOption = None,
) -> None:
    """Copy the ledger, sound and of one moment, while the daemon goes on."""
    from jailbridge.config import load
    from jailbridge.ledger.backup import backup as copy

    settings = load(config)
    bans = copy(settings.ledger.path, file, force=force)
    typer.echo(f"{file}: the ledger with {bans} bans")


@app.command()
def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say what keeps JailBridge from working here as configured, and the remedies. Exit code 2: something does."""
    from jailbridge.cli.doctor import run

    _finish(run(config, as_json=as_json))


@app.command("check-config")
def check_config(config: ConfigOption = None) -> None:
    """Read the configuration and every allow list, and say what is wrong, all at once."""
    from jailbridge.config import DEFAULT_PATH, load
    from jailbridge.daemon.control import unusable
    from jailbridge.daemon.exemptions import unreadable
    from jailbridge.daemon.responding import unanswerable
    from jailbridge.errors import FatalError
    from jailbridge.policy.allow import allow_lists

    settings = load(config)
    rules = settings.policy
    lists = list(allow_lists(rules))
    for line in [line for one in lists for line in one.not_obeyed]:
        typer.echo(line)
    if problems := [*unreadable(rules), *unanswerable(settings.respond), *unusable(settings.control)]:
        raise FatalError("\n".join(problems))
    where = config if config is not None or DEFAULT_PATH.exists() else f"built-in defaults (no {DEFAULT_PATH})"
    counts = ", ".join(f"{len(one.networks)} by {one.where}" for one in lists if one.networks)
    total = sum(len(one.networks) for one in lists)
    typer.echo(f"{where or DEFAULT_PATH}: in order; {total} networks allowed{counts and ': ' + counts}")


@app.command()
def demo() -> None:
    """Show the whole loop on real parts, in network namespaces of its own: scan, ban, power cut, restore, unban."""
    from jailbridge.demo.story import tell

    _finish(tell())


LogFileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A log, .gz .xz .bz2 too; - is the standard input.", allow_dash=True)
]
FormatOption = Annotated[
    Literal["auto", "portsentry-1.2", "portsentry-2", "syslog", "kernel"],
    typer.Option("--format", help="The form of its lines; auto: told line by line."),
]
PrefixOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prefix", metavar="TEXT", help="--log-prefix of the kernel's LOG rules to believe; may be repeated."
    ),
]


@history.command("events")
def history_events(
    file: LogFileArgument, form: FormatOption = "auto", prefix: PrefixOption = None, as_json: JsonOption = False
) -> None:
    """Show the scan events that a log tells; refused lines are named on stderr."""
    from jailbridge.cli.history import events

    events(file, as_json, form, prefix or ())


@history.command("check")
def history_check(
    file: LogFileArgument, form: FormatOption = "auto", prefix: PrefixOption = None, as_json: JsonOption = False
) -> None:
    """Say which lines are accepted, which refused and why, and what is odd. Exit code 2: lines were refused."""
    from jailbridge.cli.history import check

    _finish(check(file, as_json, form, prefix or ()))


@history.command("stats")
def history_stats(
    file: LogFileArgument,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="So many sources and ports.")] = 10,
    form: FormatOption = "auto",
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count sources, ports and kinds, and draw a time line; in bounded memory, whatever the file's size."""
    from jailbridge.cli.history import stats

    stats(file, as_json, top, form, prefix or ())


@history.command("convert")
def history_convert(
    file: LogFileArgument,
    to: Annotated[Literal["1.2", "2"], typer.Option("--to", help="PortSentry's dialect.")],
    form: FormatOption = "auto",
    prefix: PrefixOption = None,
) -> None:
    """Print a log's lines in a dialect of PortSentry; what is lost is counted on stderr. Exit code 2: lines refused."""
    from jailbridge.cli.history import convert

    _finish(convert(file, to, form, prefix or ()))


def _finish(code: Any) -> NoReturn:
    raise typer.Exit(code)
