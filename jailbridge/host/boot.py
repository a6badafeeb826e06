"""Which boot of this host it is."""

from pathlib import Path

from jailbridge.errors import RetryLater

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return a short id of this boot (kernel's boot_id, random(4)). Raises RetryLater."""
    try:
        return BOOT_ID.read_text(encoding="ascii").replace("-", "").strip()[:12]
    except OSError as error:
        raise RetryLater(f"{BOOT_ID} cannot be read: {error.strerror}") from None
