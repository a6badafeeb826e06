"""What the kernel's error numbers mean to people."""

import errno

import pytest

from jailbridge.errors import FatalError, RetryLater
from jailbridge.stores.ipset_netlink import failure


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (errno.EPERM, FatalError, "ipset: not permitted: run as root, or with CAP_NET_ADMIN"),
        (errno.EINVAL, FatalError, "ipset: this kernel has none: modprobe ip_set_hash_net, or choose another backend"),
        (
            errno.EPROTONOSUPPORT,
            FatalError,
            "ipset: this kernel has none: modprobe ip_set_hash_net, or choose another backend",
        ),
        (errno.ENOENT, RetryLater, "ipset: the set jailbridge4 is gone"),
        (errno.ENOMEM, RetryLater, "ipset: the kernel refuses jailbridge4: Cannot allocate memory"),
        (4100, RetryLater, "ipset: the kernel refuses jailbridge4: error 4100"),
    ],
)
def test_each_error_number_is_one_line_with_the_remedy_if_there_is_one(
    code: int, kind: type[Exception], text: str
) -> None:
    error = failure(code, "jailbridge4")
    assert type(error) is kind
    assert str(error) == text
