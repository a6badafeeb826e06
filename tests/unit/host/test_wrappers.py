"""Whether anything asks TCP wrappers: made from the files of a host that is a folder."""

from pathlib import Path

import pytest

from jailbridge.host.wrappers import REFRESH_S, Wrappers

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
SOCKET = (
    "   {n}: 0100007F:0016 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 x\n"
)
WRAPPED = "7f7a79a77000-7f7a79a7a000 r--p 00000000 fe:00 131 {path}\n"


class Host:
    def __init__(self, folder: Path) -> None:
        self.proc, self.etc = folder / "proc", folder / "etc"
        self.etc.mkdir()
        (self.proc / "thread-self" / "net").mkdir(parents=True)
        for name in ("tcp", "tcp6"):
            (self.proc / "thread-self" / "net" / name).write_text(HEADER)
        (self.proc / "meminfo").touch()
        self.time = 0.0
        self.wrappers = Wrappers(self.proc, self.etc, lambda: self.time)

    def listens(self, *inodes: int, state: str = "0A", name: str = "tcp") -> None:
        lines = (SOCKET.format(n=n, state=state, inode=inode) for n, inode in enumerate(inodes))
        (self.proc / "thread-self" / "net" / name).write_text(HEADER + "".join(lines))

    def process(self, pid: int, *inodes: int, library: str = "/lib/x86_64-linux-gnu/libwrap.so.0.7.6") -> None:
        (self.proc / str(pid) / "fd").mkdir(parents=True)
        for number, target in enumerate(["/dev/null", "gone", *(f"socket:[{inode}]" for inode in inodes)]):
            (self.proc / str(pid) / "fd" / str(number)).symlink_to(target)
        (self.proc / str(pid) / "maps").write_text(WRAPPED.format(path=library) + "7ffc-7ffd rw-p 0 00:00 0 [stack]\n")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_host_on_which_nothing_listens_is_not_known(host: Host) -> None:
    host.process(7)
    assert host.wrappers.in_use() is None
    assert Wrappers(host.proc / "no", host.etc / "no").in_use() is None


@pytest.mark.parametrize("name", ["tcp", "tcp6"])
@pytest.mark.parametrize("library", ["/usr/lib/libwrap.so.0", "/lib/libwrap.so.0.7.6", "/lib/libwrap.so.0 (deleted)"])
def test_a_listener_with_libwrap_obeys(host: Host, name: str, library: str) -> None:
    host.listens(41, 42, name=name)
    host.process(7, 5)
    host.process(8, 42, library=library)
    assert host.wrappers.in_use() is True


@pytest.mark.parametrize("library", ["/usr/lib/libc.so.6", "/home/libwrap.so.d/x", "/usr/lib/notlibwrap.so.0", ""])
def test_a_listener_without_it_is_not_known(host: Host, library: str) -> None:
    host.listens(42)
    host.process(8, 42, library=library)
    host.process(9, 43)
    assert host.wrappers.in_use() is None


def test_a_connection_is_no_listener(host: Host) -> None:
    host.listens(42, state="01")
    host.process(8, 42)
    assert host.wrappers.in_use() is None


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("inetd.conf", "ftp stream tcp nowait root /usr/sbin/tcpd in.ftpd -l\n", True),
        ("inetd.conf", "# c\nftp\tstream\ttcp\tnowait\troot\ttcpd\tin.ftpd", True),
        ("inetd.conf", "#ftp stream tcp nowait root /usr/sbin/tcpd in.ftpd\n", None),
        ("inetd.conf", "ftp stream tcp nowait root /usr/sbin/in.ftpd tcpdump\n", None),
        ("xinetd.conf", "service x\n{\n  server = /usr/sbin/tcpd\n}\n", True),
        ("xinetd.d/ftp", "service ftp\n{\n\tserver\t\t= /usr/sbin/tcpd\n}\n", True),
        ("xinetd.d/ftp", "service ftp\n{\n\t# server = /usr/sbin/tcpd\n\tserver_args = /tcpd\n}\n", None),
    ],
)
def test_what_inetd_starts_by_way_of_tcpd_obeys(host: Host, file: str, text: str, told: bool | None) -> None:
    (host.etc / file).parent.mkdir(exist_ok=True)
    (host.etc / file).write_text(text)
    assert host.wrappers.in_use() is told


def test_it_looks_once_a_minute(host: Host) -> None:
    assert host.wrappers.in_use() is None
    host.listens(42)
    host.process(8, 42)
    host.time = REFRESH_S - 1
    assert host.wrappers.in_use() is None
    host.time = REFRESH_S
    assert host.wrappers.in_use() is True
