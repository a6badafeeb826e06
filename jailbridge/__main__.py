"""`python -m jailbridge` is the `jailbridge` command."""

from jailbridge.cli import main

if __name__ == "__main__":
    main()
