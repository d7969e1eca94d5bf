"""Out of a container that runs: by devices, cgroups, sysctls, capabilities, ids, and by mounting what was hidden."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.errors import InvalidSpec, RuntimeFailure
from shimd.host.facts import probe
from shimd.runtime import creating, execing
from shimd.runtime.dialogue import InitDied
from shimd.runtime.direct import DirectLauncher
from shimd.runtime.model import Container
from tests.kernel.attack import bind, link, shell, sleeper, small_rootfs
from tests.kernel.runtime_rig import Rig, keeper_launcher
from tests.support import wait
from tests.support.requires import requires

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")


@pytest.fixture
def rig(place: Path, container_id: str) -> Rig:
    small_rootfs(place / "rootfs")
    return Rig(probe(), DirectLauncher(), place, container_id)


@pytest.fixture
def running(rig: Rig) -> Iterator[Container]:
    container = rig.create(sleeper("CAP_MKNOD", "CAP_DAC_OVERRIDE"), gate=False)
    yield container
    rig.end(container)


def status(text: str, *names: str) -> list[str]:
    """Fields of /proc/<pid>/status."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return [fields[name].strip() for name in names]


# ---- sysctls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "kernel.core_pattern",
        "net/../kernel/core_pattern",
        "net/ipv4/../../kernel/core_pattern",
        "net.ipv4/../../kernel/core_pattern",
        "kernel/shmmax/../core_pattern",
        "fs/mqueue/../../kernel/core_pattern",
        "user/../kernel/core_pattern",
        "/kernel/core_pattern",
        "net//../kernel/core_pattern",
        "net",
        "net.\0",
        "",
    ],
)
def test_no_sysctl_of_the_host_has_an_alias(rig: Rig, key: str) -> None:
    before = CORE_PATTERN.read_text()
    spec = shell("true")
    spec["linux"]["sysctl"] = {key: "|/evil"}
    with pytest.raises((InvalidSpec, RuntimeFailure), match=r"/linux/sysctl"):
        rig.create(spec)
    assert CORE_PATTERN.read_text() == before


def test_cve_2025_52881_sysctls_are_not_written_to_the_images_proc(rig: Rig) -> None:
    """No procfs is mounted at /proc, where the image has links to files that must not be written."""
    fake = rig.place / "rootfs/proc/sys/net/ipv4"
    fake.mkdir(parents=True)
    (rig.place / "target").write_text("untouched")
    link(fake / "ip_forward", "../../../../../target")
    spec = shell("cat /p/sys/net/ipv4/ip_forward", without="/proc")
    spec["mounts"].append({"destination": "/p", "type": "proc", "source": "proc"})
    spec["linux"].update(sysctl={"net.ipv4.ip_forward": "1"}, maskedPaths=[], readonlyPaths=[])
    assert rig.run(spec) == (0, "1\n")
    assert (rig.place / "target").read_text() == "untouched"


# ---- devices and cgroups --------------------------------------------------------------------------------------------


@requires("cgroup:devices")
@pytest.mark.parametrize("node", ["c 1 1", "c 1 2", "b 7 0", "b 254 0", "c 10 237"])
def test_a_node_of_ones_own_making_cannot_be_opened(rig: Rig, running: Container, node: str) -> None:
    """Memory, a disk, the loop control: CAP_MKNOD is a default of containerd's."""
    _, text = rig.output_of(running, "/bin/sh", "-c", f"mknod /tmp/node {node} && cat /tmp/node | head -c 1")
    assert text == "cat: can't open '/tmp/node': Operation not permitted\n"


def test_everything_of_a_container_is_in_its_cgroup_from_the_beginning(rig: Rig) -> None:
    """Before it can fork, and in every hierarchy."""
    container = rig.create(sleeper())
    lines = Path(f"/proc/{container.pid}/cgroup").read_text().splitlines()
    mounted = [path.split("/")[-1] for path in container.cgroup.paths.values()]
    assert mounted
    assert {line.split(":", 2)[2].split("/")[-1] for line in lines} == {rig.id}
    rig.end(container)


@pytest.mark.parametrize("path", ["..", "/..", "/", "/a/../..", "a/..", "../../.."])
def test_no_cgroups_path_is_the_root(rig: Rig, path: str) -> None:
    spec = shell("true")
    spec["linux"]["cgroupsPath"] = path
    if path in ("..", "a/..", "../../.."):  # relative: below our own, and nowhere else
        path = ""
    with pytest.raises(InvalidSpec, match=r"/linux/cgroupsPath.*root cgroup"):
        rig.create(spec)


def test_a_cgroups_path_cannot_climb(rig: Rig) -> None:
    spec = sleeper()
    spec["linux"]["cgroupsPath"] = f"/../../{rig.id}/../{rig.id}-x/../../../{rig.id}-y"
    container = rig.create(spec)
    for directory in container.cgroup.paths.values():
        assert os.path.realpath(directory) == directory
        assert directory.startswith("/sys/fs/cgroup/")
    rig.end(container)


def test_cve_2022_0492_the_cgroup_file_system_is_its_own_part_and_read_only(rig: Rig) -> None:
    script = """
    for d in /sys/fs/cgroup/*/; do
        mkdir $d/x 2>/dev/null && echo made $d/x
        echo 1 2>/dev/null > $d/cgroup.procs && echo joined $d
        test -e $d/release_agent && echo agent $d
        ls $d | grep -q shimd-test && echo sibling $d
    done
    mount -o remount,rw /sys/fs/cgroup 2>/dev/null && echo remounted
    echo end"""
    assert rig.run(shell(script)) == (0, "end\n")


@requires("userns")
def test_masks_cannot_be_shed_in_a_user_namespace(rig: Rig) -> None:
    """Nobody may mount a procfs or sysfs anew, with all of it to be seen, while a part of the old one is hidden."""
    script = """
    unshare -r -m -p -f mount -t proc proc /tmp 2>&1
    unshare -r -m -n mount -t sysfs sysfs /tmp 2>&1
    unshare -r -m umount /proc/keys 2>&1
    unshare -r -m mount -o remount,bind,rw /proc/sys 2>&1
    true"""
    code, text = rig.run(shell(script))
    assert code == 0
    assert len(text.splitlines()) == 4
    for line in text.splitlines():
        assert "ermission denied" in line or "not permitted" in line or "Invalid argument" in line, text


# ---- identity -------------------------------------------------------------------------------------------------------


def test_cve_2022_29162_capabilities_are_not_inheritable_at_exec(rig: Rig, running: Container) -> None:
    wanted = {kind: ["CAP_CHOWN", "CAP_KILL"] for kind in ("bounding", "effective", "permitted")}
    for fields in ({}, {"capabilities": wanted}, {"capabilities": wanted, "user": {"uid": 1000, "gid": 1000}}):
        code, text = rig.output_of(running, "/bin/cat", "/proc/self/status", **fields)
        assert code == 0
        assert status(text, "CapInh", "CapAmb") == ["0" * 16] * 2
        assert int(status(text, "CapBnd")[0], 16) & ~(1 | 1 << 1 | 1 << 5 | 1 << 10 | 1 << 27 | 1 << 29) == 0


def test_cve_2023_25173_groups_of_the_starter_vanish(rig: Rig) -> None:
    old = os.getgroups()
    os.setgroups([0, 4, 24, 100])
    try:
        container = rig.create(sleeper(), gate=False)
        for fields, groups in (({}, ""), ({"user": {"uid": 5, "gid": 6, "additionalGids": [7]}}, "7")):
            code, text = rig.output_of(container, "/bin/cat", "/proc/self/status", **fields)
            assert (code, status(text, "Groups")) == (0, [groups])
        assert status(Path(f"/proc/{container.pid}/status").read_text(), "Groups") == [""]
        rig.end(container)
    finally:
        os.setgroups(old)


@pytest.mark.parametrize("number", [-1, 2**32 - 1, 2**32, 2**64, -(2**31), 0.5, True, "0", None, [0]])
@pytest.mark.parametrize("field", ["uid", "gid"])
def test_cve_2024_40635_ids_out_of_range(rig: Rig, field: str, number: Any) -> None:
    spec = shell("true", user={"uid": 1, "gid": 1, field: number})
    if number is None:
        spec["process"]["user"]["additionalGids"] = [None]
    with pytest.raises(InvalidSpec, match=f"/process/user/{field if number is not None else 'additionalGids/0'}"):
        rig.create(spec)


def test_cve_2016_3697_a_number_is_never_a_name(rig: Rig) -> None:
    (rig.place / "rootfs/etc/passwd").write_text("1000:x:0:0::/root:/bin/sh\nroot:x:7:7::/seven:/bin/sh\n")
    assert rig.run(shell("id -u; echo $HOME", user={"uid": 1000, "gid": 1000})) == (0, "1000\n/\n")


# ---- a container that prepares for the next exec ---------------------------------------------------------------------


def test_an_exec_does_not_rely_on_the_containers_proc_and_dev(place: Path, container_id: str) -> None:
    """Root of the container has put traps in the place of everything that the joining process could open."""
    small_rootfs(place / "rootfs")
    script = """
    rm -f /dev/null /dev/pts/ptmx /etc/passwd
    ln -s /proc/sysrq-trigger /dev/null
    ln -s /proc/1/root/etc/shadow /etc/passwd
    mount -t tmpfs t /proc && mkdir -p /proc/self/attr /proc/1/attr && echo trap > /proc/self/attr/exec
    exec 2>&1; echo ready; exec sleep 1000"""
    spec = sleeper("CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE")
    spec["process"]["args"] = ["/bin/sh", "-c", script]
    look = "echo $HOME; cat /proc/self/attr/exec; readlink /dev/null; [ -c /dev/fd/0 ] || cat <&0"
    with keeper_launcher(place / "keeper") as launcher:
        rig = Rig(probe(), launcher, place, container_id)
        with rig.output() as output:
            container = rig.create(spec, stdio=output.stdio(), gate=False)
            wait.read_until(output.read_end, b"ready")
            code, text = rig.output_of(container, "/bin/sh", "-c", look)
            rig.launcher.forget(f"{rig.id}/x")
            rig.end(container)
        assert (code, text) == (0, "/\ntrap\n/proc/sysrq-trigger\n")


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody with a grip on a joining process stops it when it is ready, and kills it later."""
    killers: list[subprocess.Popen[bytes]] = []

    def stop(pid: int, _: object) -> None:
        os.kill(pid, signal.SIGSTOP)
        killers.append(subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -9 {pid}"]))

    monkeypatch.setattr(execing, "set_rlimits", stop)
    monkeypatch.setattr(creating, "set_rlimits", stop)
    yield
    assert [killer.wait() for killer in killers] == [0]


def test_an_init_that_is_stopped_and_killed_is_noticed(rig: Rig, stopped: None) -> None:
    with pytest.raises(InitDied, match="init died after ready"):
        rig.create(sleeper())


def test_an_exec_that_is_stopped_and_killed_is_noticed(rig: Rig, running: Container, stopped: None) -> None:
    """With the exit code of the signal, as when it was the program already."""
    process = rig.exec(running, "true")
    assert rig.wait_exec(running, process) == 137


def test_a_volume_of_the_state_directory_shows_no_way_in(rig: Rig) -> None:
    """A socket of the runtime that a container can see is of no use to a user other than root."""
    spec = sleeper()
    spec["mounts"].append(bind(rig.place, "/host"))
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    container = rig.create(spec)
    gate = f"/host/state/{rig.id}/start.sock"
    code, text = rig.output_of(
        container, "/bin/sh", "-c", f"ls /host/state; cat {gate}", user={"uid": 1000, "gid": 1000}
    )
    assert code != 0
    assert text.count("Permission denied") == 2
    rig.end(container)
