"""What the kernel says of this host, in networks of the tests' own: wakes, addresses, services, connections."""

import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from jailbridge import process
from jailbridge.model.event import Protocol
from jailbridge.sensor.connections import Connections, ephemeral_ports
from jailbridge.sensor.links import LinkWatch, indexes
from jailbridge.sensor.listening import sockets
from jailbridge.sensor.own import addresses

pytestmark = pytest.mark.e2e

DEADLINE_S = 20.0
FOURTH, SIXTH, MAPPED = "127.0.0.1", "::1", "::ffff:127.0.0.1"
SO_BINDTODEVICE = 25

# Everything after the first lines is done as nobody. Only events make it look again: the safety net takes a minute.
WATCHER = """
import json, os, select, sys, time
from ipaddress import ip_address
from jailbridge.sensor.connections import Connections, ephemeral_ports
from contextlib import closing
from jailbridge.sensor.links import LinkWatch, indexes
from jailbridge.sensor.listening import Listening
from jailbridge.sensor.own import OwnAddresses

os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)

own, listening = OwnAddresses(), Listening()
with closing(LinkWatch()) as watch, closing(Connections()) as connections:
    own.load(time.monotonic())
    listening.refresh(time.monotonic())
    loopback = int(ip_address("127.0.0.1"))
    print(json.dumps({
        "uid": os.geteuid(),
        "ephemeral": list(ephemeral_ports())[:1],
        "none": connections.exists(4, loopback, 1, loopback, 1, time.monotonic()),
        "tcp": sorted(listening.tcp),
    }), flush=True)
    found, absent = indexes(sys.argv[1:])
    while True:
        now = time.monotonic()
        changed = watch.changed()
        if changed:
            found, absent = indexes(sys.argv[1:])
        own.refresh(now, changed)
        print(json.dumps({
            "v4": [str(ip_address(a)) for a in own.v4], "v6": [str(ip_address(a)) for a in own.v6],
            "found": sorted(found), "absent": absent,
        }), flush=True)
        select.select([watch], [], [], 0.05)
"""


def ip(command: str) -> None:
    done = process.run(["ip", *command.split()])
    assert done.code == 0, f"ip {command}: {done.err}"


def ip_batch(commands: list[str]) -> None:
    done = process.run(["ip", "-batch", "-"], given="\n".join(commands))
    assert done.code == 0, done.err


def number(address: str) -> int:
    return int(ip_address(address))


@pytest.fixture
def card(own_network: Callable[[], None]) -> str:
    ip("link add card0 type veth peer card1")
    ip("link set card1 up")
    ip("link set card0 up")
    return "card0"


class Watcher:
    def __init__(self, *names: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WATCHER, *names], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self._lines = self.process.stdout
        self.first = self._next()

    def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first state that it tells in which something holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds(state := self._next()):
            assert time.monotonic() < deadline, state
        return state

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _next(self) -> dict[str, Any]:
        if line := self._lines.readline():
            state: dict[str, Any] = json.loads(line)
            return state
        raise AssertionError(self.process.communicate()[1])


@pytest.fixture
def watching(card: str) -> Iterator[Callable[..., Watcher]]:
    with ExitStack() as stack:

        def start(*names: str) -> Watcher:
            watcher = Watcher(*names)
            stack.callback(watcher.close)
            return watcher

        yield start


def test_nobody_may_ask_everything(watching: Callable[..., Watcher]) -> None:
    with socket.create_server((FOURTH, 0)) as server:
        watcher = watching("lo")
        assert watcher.first["uid"] == 65534
        assert watcher.first["ephemeral"]
        assert watcher.first["none"] is False
        assert watcher.first["tcp"] == [server.getsockname()[1]]


def test_an_address_that_comes_or_goes_wakes_and_is_right(card: str, watching: Callable[..., Watcher]) -> None:
    watcher = watching("lo")
    ip(f"address add 198.51.100.7/24 dev {card}")
    watcher.until(lambda state: "198.51.100.7" in state["v4"])
    ip(f"address add 2001:db8::7/64 dev {card} nodad")
    watcher.until(lambda state: "2001:db8::7" in state["v6"])
    ip(f"address delete 198.51.100.7/24 dev {card}")
    watcher.until(lambda state: "198.51.100.7" not in state["v4"])
    ip(f"address delete 2001:db8::7/64 dev {card}")
    watcher.until(lambda state: "2001:db8::7" not in state["v6"])


def test_the_addresses_of_an_interface_that_vanishes_go_with_it(card: str, watching: Callable[..., Watcher]) -> None:
    ip(f"address add 198.51.100.7/24 dev {card}")
    watcher = watching("lo")
    watcher.until(lambda state: "198.51.100.7" in state["v4"])
    ip(f"link delete {card}")
    watcher.until(lambda state: state["v4"] == [FOURTH])


def test_an_interface_that_comes_is_renamed_or_goes_wakes_and_is_right(watching: Callable[..., Watcher]) -> None:
    watcher = watching("later0")
    watcher.until(lambda state: state["absent"] == ["later0"] and not state["found"])
    ip("link add later0 type bridge")
    index = socket.if_nametoindex("later0")
    watcher.until(lambda state: state["found"] == [index] and not state["absent"])
    ip("link set later0 name other0")
    watcher.until(lambda state: not state["found"] and state["absent"] == ["later0"])
    ip("link set other0 name later0")
    watcher.until(lambda state: state["found"] == [index])
    ip("link delete later0")
    watcher.until(lambda state: state["absent"] == ["later0"])
    ip("link add later0 type bridge")
    again = socket.if_nametoindex("later0")
    assert again != index
    watcher.until(lambda state: state["found"] == [again])


def test_an_interface_that_goes_down_or_up_wakes(card: str) -> None:
    with closing(LinkWatch()) as watch:
        assert not watch.changed()
        for state in ("down", "up"):
            ip(f"link set {card} {state}")
            assert select.select([watch], [], [], DEADLINE_S)[0], state
            while watch.changed():
                pass


def test_events_of_other_networks_do_not_wake(card: str, own_network: Callable[[], None]) -> None:
    with closing(LinkWatch()) as watch:
        own_network()
        ip("link add other0 type bridge")
        assert indexes(["other0"])[1] == ()
        assert not watch.changed()


def test_more_events_than_the_kernel_keeps_are_a_change_too(card: str) -> None:
    with closing(LinkWatch()) as watch, closing(LinkWatch()) as proof:
        for each in (watch, proof):
            each._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ip_batch([f"address add 10.9.0.{n}/32 dev {card}" for n in range(200)])
        with pytest.raises(OSError, match="No buffer space"):
            proof._socket.recv(1)
        assert watch.changed()
        assert not watch.changed()


def test_a_hundred_events_are_one_change(card: str) -> None:
    with closing(LinkWatch()) as watch:
        ip_batch([f"address add 10.9.0.{n}/32 dev {card}" for n in range(100)])
        assert watch.changed()
        assert not watch.changed()


def test_addresses_of_several_parts_of_the_kernels_list_are_all_read(card: str) -> None:
    hosts = [f"10.9.{a}.{b}" for a in range(10) for b in range(100)]
    ip_batch([f"address add {host}/32 dev {card}" for host in hosts])
    ip(f"address add 10.8.0.1 peer 10.8.0.2/32 dev {card}")
    v4, v6 = addresses()
    assert v4 == {number(host) for host in (*hosts, "10.8.0.1", FOURTH)}
    assert number(SIXTH) in v6


def test_every_one_of_two_thousand_udp_sockets_is_live(own_network: Callable[[], None]) -> None:
    with ExitStack() as stack:
        for port in range(2000, 4000):
            family, host = (socket.AF_INET, FOURTH) if port % 2 else (socket.AF_INET6, SIXTH)
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.bind((host, port))
        assert sockets(Protocol.UDP) == set(range(2000, 4000))
        assert sockets(Protocol.TCP) == set()


def test_the_ephemeral_ports_are_this_networks_own(own_network: Callable[[], None]) -> None:
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("20000 20999\n")
    assert ephemeral_ports() == range(20000, 21000)
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind((SIXTH, 0))
        assert sock.getsockname()[1] in ephemeral_ports()


@pytest.fixture
def connections(own_network: Callable[[], None]) -> Iterator[Connections]:
    with closing(Connections()) as connections:
        yield connections


class Pair:
    """A connection of two sockets; the listening one is closed."""

    def __init__(self, listen: str, connect: str) -> None:
        family = socket.AF_INET6 if ":" in listen else socket.AF_INET
        dual = listen == "::"
        with socket.create_server((listen, 0), family=family, dualstack_ipv6=dual) as server:
            self.near = server.getsockname()[1]
            self.client = socket.create_connection((connect, self.near))
            self.accepted, _ = server.accept()
        self.far = self.client.getsockname()[1]
        self.address = number(connect)
        self.version = ip_address(connect).version

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.accepted.close()

    def exists(self, connections: Connections, now: float = 0.0) -> bool:
        """The server's end."""
        return connections.exists(self.version, self.address, self.near, self.address, self.far, now)

    def client_exists(self, connections: Connections) -> bool:
        return connections.exists(self.version, self.address, self.far, self.address, self.near, 0.0)


@pytest.mark.parametrize(("listen", "connect"), [(FOURTH, FOURTH), (SIXTH, SIXTH), ("::", SIXTH), ("::", FOURTH)])
def test_a_connection_is_found_by_both_its_ends(connections: Connections, listen: str, connect: str) -> None:
    with Pair(listen, connect) as pair:
        assert pair.exists(connections)
        assert pair.client_exists(connections)
        assert not connections.exists(pair.version, pair.address, pair.near, pair.address, pair.far ^ 1, 0.0)


def test_the_dual_stack_connection_is_one_of_an_ipv6_socket(connections: Connections) -> None:
    with Pair("::", FOURTH) as pair:
        assert pair.accepted.family == socket.AF_INET6
        assert pair.accepted.getpeername()[0] == MAPPED
        assert pair.exists(connections)


@pytest.mark.parametrize(("listen", "connect"), [(FOURTH, FOURTH), (SIXTH, SIXTH), ("::", FOURTH)])
def test_a_connection_counts_while_it_closes_and_in_time_wait(
    connections: Connections, listen: str, connect: str
) -> None:
    with Pair(listen, connect) as pair:
        pair.client.shutdown(socket.SHUT_WR)
        assert pair.accepted.recv(1) == b""
        with closing(Connections()) as anew:
            assert pair.exists(anew), "CLOSE_WAIT"
            assert pair.client_exists(anew), "FIN_WAIT2"
        pair.accepted.close()
        assert pair.client.recv(1) == b""
        pair.client.close()
        assert pair.client_exists(connections), "TIME_WAIT"
        assert not pair.exists(connections), "the end that closed last is gone"


def test_the_last_packets_of_a_connection_that_was_seen_are_no_strangers(connections: Connections) -> None:
    with Pair(FOURTH, FOURTH) as pair:
        assert pair.exists(connections, 100.0)
        pair.client.close()
        pair.accepted.close()
        with closing(Connections()) as anew:
            assert not pair.exists(anew, 102.0)
        assert pair.exists(connections, 102.0)


def test_a_half_open_connection_is_found(connections: Connections, card: str) -> None:
    # A handshake that is never answered: nobody has the far address.
    ip(f"address add 198.51.100.7/24 dev {card}")
    ip(f"neighbour add 198.51.100.9 lladdr 02:00:00:00:00:09 dev {card}")
    with socket.socket() as client:
        client.setblocking(False)
        client.bind(("198.51.100.7", 777))
        client.connect_ex(("198.51.100.9", 80))
        with closing(Connections()) as here:
            near, far = number("198.51.100.7"), number("198.51.100.9")
            assert here.exists(4, near, 777, far, 80, 0.0)
            assert not here.exists(4, near, 778, far, 80, 0.0)


def test_a_connection_bound_to_an_interface_is_found_with_its_index(connections: Connections) -> None:
    loopback = socket.if_nametoindex("lo")
    with socket.create_server((FOURTH, 0)) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"lo")
        client.connect(server.getsockname())
        far, near = client.getsockname()[1], server.getsockname()[1]
        asked = 4, number(FOURTH), far, number(FOURTH), near, 0.0
        assert not connections.exists(*asked)
        assert connections.exists(*asked, interface=loopback)


def test_a_link_local_connection_is_found_with_the_index_of_its_interface(card: str) -> None:
    ip(f"address add fe80::7/64 dev {card} nodad")
    index = socket.if_nametoindex(card)
    with (
        closing(Connections()) as connections,
        socket.create_server(("::", 0), family=socket.AF_INET6) as server,
        socket.socket(socket.AF_INET6) as client,
    ):
        near = server.getsockname()[1]
        client.connect(("fe80::7", near, 0, index))
        accepted, (_, far, *_) = server.accept()
        server.close()
        with accepted:
            address = number("fe80::7")
            assert connections.exists(6, address, near, address, far, 0.0, interface=index)
            assert not connections.exists(6, address, near, address, far ^ 1, 0.0, interface=index)


def test_a_reset_connection_is_gone(connections: Connections) -> None:
    with Pair(FOURTH, FOURTH) as pair:
        pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.client.close()
        with pytest.raises(ConnectionResetError):
            pair.accepted.recv(1)
        assert not pair.exists(connections)
        assert not pair.client_exists(connections)
