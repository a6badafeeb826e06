"""`jailbridge install` and `uninstall`: what was done, and what is the administrator's to do next."""

from pathlib import Path

import typer

from jailbridge import service_files
from jailbridge.privileges import OWN_ACCOUNT
from jailbridge.service_files import CONFIG, ROOT, SENSOR, STATE, UNITS


def install(root: Path, *, force: bool, dry_run: bool) -> None:
    """Put our files in place and say what to run next."""
    root = root.absolute()
    # In another root nobody here can tell whether services may enter a folder.
    command = service_files.program(check=root == ROOT)
    done = service_files.install(service_files.render(command), root, force=force, dry_run=dry_run)
    for path in done.changed:
        typer.echo(f"{'would write' if dry_run else 'wrote'} {path}")
    if not done.changed:
        typer.echo("nothing to change")
    for name in done.missing:
        typer.echo(
            f"{name} is not on this machine: useradd --system --no-create-home --shell /usr/sbin/nologin {OWN_ACCOUNT}"
        )
    if dry_run:
        return
    if done.running:
        typer.echo(f"what runs is as it was until you do: systemctl restart {' '.join(done.running)}")
    typer.echo("next:")
    for line in (
        "jailbridge check-config",
        "jailbridge fail2ban install                # where there is fail2ban",
        f"systemctl enable --now {' '.join(UNITS)}",
    ):
        typer.echo(f"  {line}")
    typer.echo(f"where PortSentry itself writes the history, leave {SENSOR} out")


def uninstall(root: Path, *, purge: bool, force: bool, dry_run: bool) -> None:
    """Take our files away and say what is left."""
    root = root.absolute()
    done = service_files.uninstall(root, purge=purge, force=force, dry_run=dry_run)
    would = "would have " if dry_run else ""
    for unit in done.stopped:
        typer.echo(f"{would}stopped {unit}")
    for path in done.removed:
        typer.echo(f"{would}removed {path}")
    for path in done.edited:
        typer.echo(f"kept {path}: it is not as we wrote it; --force removes it if it is ours")
    for path in done.dropins:
        typer.echo(f"kept {path}: it is yours")
    if not done.removed:
        typer.echo("nothing to remove")
        return
    left = [str(root / place) for place in (CONFIG, STATE) if (root / place).exists() and not purge]
    if left:
        typer.echo(f"kept {' and '.join(left)}: --purge removes them")
    typer.echo(
        f"the account {OWN_ACCOUNT} and the history stay, and so do the bans in every store; "
        "to be rid of these, `jailbridge pause` comes before this command"
    )
