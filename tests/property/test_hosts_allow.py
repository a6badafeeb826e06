"""Whatever a hosts.allow holds: nothing breaks, and what is obeyed is what its line says in plain addresses."""

from hypothesis import given
from hypothesis import strategies as st

from jailbridge.model.network import network_text
from jailbridge.policy.hosts_allow import MIN_PREFIX, parse_hosts_allow

ADDRESSES = st.ip_addresses().filter(lambda a: a.version == 4 or a.ipv4_mapped is None)
CLIENTS = ADDRESSES.map(lambda a: f"[{a}]" if a.version == 6 else str(a))
WORDS = CLIENTS | st.sampled_from(
    [
        "ALL",
        "EXCEPT",
        "KNOWN",
        "LOCAL",
        ".example.com",
        "10.",
        "192.0.2.0/24",
        "[2001:db8::]/32",
        "0.0.0.0/0",
        "/x",
        "#",
    ]
)
RULES = st.builds(
    lambda daemons, clients, option, end: f"{daemons}: {' '.join(clients)}{option}{end}",
    st.sampled_from(["ALL", "sshd", "ALL EXCEPT x", "", "#"]),
    st.lists(WORDS, max_size=4),
    st.sampled_from(["", " : ALLOW", ": DENY", " : spawn x"]),
    st.sampled_from(["\n", "\\\n", "", "\r\n", " \\\n"]),
)


@given(text=st.text() | st.lists(RULES, max_size=8).map("".join))
def test_any_text_is_read_and_each_rule_is_obeyed_or_told(text: str) -> None:
    read = parse_hosts_allow(text)
    lines = text.split("\n")
    assert all(network.prefixlen >= MIN_PREFIX[network.version] for network, _ in read.networks)
    obeyed, told = {number for _, number in read.networks}, {number for number, _ in read.not_obeyed}
    assert not obeyed & told
    assert obeyed | told <= set(range(1, len(lines) + 1))
    assert all(reason and reason.isprintable() for _, reason in read.not_obeyed)


@given(clients=st.lists(ADDRESSES, min_size=1, max_size=20))
def test_literal_addresses_come_out_as_they_went_in(clients: list[object]) -> None:
    words = [f"[{address}]" if ":" in str(address) else str(address) for address in clients]
    read = parse_hosts_allow(f"ALL: {' '.join(words)}\n")
    assert [network_text(network) for network, _ in read.networks] == [str(address) for address in clients]
    assert read.not_obeyed == ()


@given(text=st.lists(RULES, max_size=8).map("".join))
def test_a_rule_before_that_denies_everybody_leaves_nothing_to_obey(text: str) -> None:
    assert parse_hosts_allow(f"ALL: ALL: DENY\n{text}").networks == ()
