import re

from jailbridge.host import boot_id


def test_a_boot_id_is_short_and_the_same_as_long_as_nothing_boots() -> None:
    assert re.fullmatch("[0-9a-f]{12}", boot_id())
    assert boot_id() == boot_id()
