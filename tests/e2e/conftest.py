from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from jailbridge.demo.lab import Lab

WITHOUT_FAIL2BAN = "enabled = false"


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """Labs of a test's own, gone when it ends."""
    with ExitStack() as stack:
        yield lambda extra="", **options: stack.enter_context(Lab(extra, **options))


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A host without fail2ban, and its outside."""
    return make_lab(WITHOUT_FAIL2BAN)
