"""How the contract tests run a program, as a person would, on the network that a test has."""

from jailbridge import process


def done(*argv: str, given: str = "") -> str:
    """Run a program that must succeed; return what it prints."""
    result = process.run(argv, given=given, timeout_s=60)
    assert result.code == 0, f"{argv}: {result.err or result.out}"
    return result.out
