"""The command line. `main` is where every error becomes one line and an exit code."""

import sys


def main() -> None:
    """Run the command. Exit codes: 0 done or agreement, 1 error, 2 drift or something left over, 130 interrupted."""
    from typer.exceptions import Abort, TyperException

    from jailbridge.cli.app import app
    from jailbridge.errors import JailBridgeError

    try:
        code = app(standalone_mode=False)
    except Abort:
        code = 130
    except TyperException as error:
        # Typer's own exit code for a wrong option is 2, which means drift here.
        code = _fail(error.format_message())
    except JailBridgeError as error:
        code = _fail(str(error))
    except KeyboardInterrupt:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str) -> int:
    if text.strip():
        sys.stderr.write(f"jailbridge: {text}\n")
    return 1
