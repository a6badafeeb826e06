"""What the words of iptables and of the helper process mean."""

import pytest

from jailbridge import process
from jailbridge.errors import FatalError, RetryLater
from jailbridge.stores.protocol import Drifted
from jailbridge.stores.xtables_rules import Family
from jailbridge.stores.xtables_writers import TargetMissing, failure, program


def failed(said: str) -> Exception:
    return failure(Family.IPV4, process.Result(code=1, out="", err=said))


@pytest.mark.parametrize(
    "said",
    [
        "iptables-nft-restore: line 2 failed: Bad rule (does a matching rule exist in that chain?).\n",
        "iptables-nft-restore: \nline 4: RULE_DELETE failed (No such file or directory): rule in chain jailbridge\n",
    ],
)
def test_a_rule_that_is_gone_is_drift(said: str) -> None:
    error = failed(said)
    assert isinstance(error, Drifted)
    assert str(error) == "iptables: a rule of ours is gone"


@pytest.mark.parametrize(
    "said",
    [
        'iptables-nft-restore v1.8.9 (nf_tables): unknown option "--tarpit"\nError occurred at line: 3\n',
        "iptables-nft-restore v1.8.9 (nf_tables): Chain 'CHAOS' does not exist\nError occurred at line: 4\n",
        "iptables-restore v1.8.9 (legacy): Couldn't load target `CHAOS':No such file or directory\n",
        "iptables-nft-restore: \nline 3: RULE_APPEND failed (No such file or directory): rule in chain x\n",
    ],
)
def test_a_target_that_iptables_or_the_kernel_lacks_is_told_so(said: str) -> None:
    error = failed(said)
    assert isinstance(error, TargetMissing)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "said",
    [
        "iptables-nft v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied\n",
        "iptables-save v1.8.9 (legacy): Cannot initialize: Permission denied (you must be root)",
        "iptables: Operation not permitted",
    ],
)
def test_without_the_right_to_do_it_a_person_is_told(said: str) -> None:
    with pytest.raises(FatalError, match="not permitted: run as root, or with CAP_NET_ADMIN"):
        raise failed(said)


def test_everything_else_is_tried_again_and_told_in_its_first_line() -> None:
    error = failed(
        "iptables-nft-restore v1.8.9 (nf_tables): Set jailbridge4 doesn't exist.\n\nError occurred at line: 3\n"
    )
    assert type(error) is RetryLater
    said = "iptables failed: iptables-nft-restore v1.8.9 (nf_tables): Set jailbridge4 doesn't exist."
    assert str(error) == said
    warning = "# Warning: iptables-legacy tables present, use iptables-legacy to see them\nWarning: Extension x\n"
    assert str(failed(f"{warning}{said[17:]}")) == said, "a warning is no reason"
    assert str(failed(warning)) == "iptables failed: exit code 1"


def test_a_program_without_its_kind_in_the_name_is_the_only_kind_there_is(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SEARCH_PATH", str(tmp_path))
    with pytest.raises(FatalError, match=r"^ip6tables-save is not on this machine: apt install iptables$"):
        program(Family.IPV6, "legacy", "save")
