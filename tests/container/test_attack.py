"""Through the command line: a container that goes for the host's programs, configurations that are made to be misread,
other users of the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.container.boxes import OURS_ONLY, Box
from tests.support import wait
from tests.support.requires import requires

WATCH = """
echo ready
while :; do
    for p in /proc/[0-9]* /proc/self; do
        { echo x 1<> $p/exe; } 2>/dev/null && echo "wrote to $p: $(readlink $p/exe)"
    done
done"""

# Python programs run with the interpreter that the runtime has put into the container, through the link to it.
STEAL = """#!/proc/self/exe
import os
print(os.readlink("/proc/self/exe"), flush=True)
fd = os.open("/proc/self/exe", os.O_RDONLY)
os.set_inheritable(fd, True)
place = f"/proc/self/fd/{fd}"
for attack in (
    lambda: os.open(place, os.O_WRONLY), lambda: os.truncate(place, 0), lambda: os.chmod(place, 0o777),
    lambda: os.open("/proc/self/exe", os.O_RDWR),
):
    try:
        print("worked:", attack())
    except OSError:
        pass
# By now nobody runs the program, so it is not ETXTBSY that keeps it.
os.execv("/bin/sh", ["sh", "-c", f"echo x >>{place} && echo written; echo x 1<>{place} && echo written"])
"""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def program(box: Box) -> Path:
    """What the runtime is, or is interpreted by."""
    own = Path(shutil.which(box.runtime.command[0]) or box.runtime.command[0]).resolve()
    if own.read_bytes()[:4] == b"\x7fELF":
        return own
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def test_cve_2019_5736_what_comes_in_is_not_written_to(box: Box, program: Path) -> None:
    before = digest(program)
    box.spec["root"]["readonly"] = True  # or the attackers overwrite their own busybox
    box.shell(WATCH)
    box.write()
    command = [*box.runtime.command, "run", "--bundle", str(box.bundle), box.id]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        wait.read_until(process.stdout.fileno(), b"ready\n")
        for _ in range(10):
            assert box.exec("--", "true").code == 0
        box.runtime("kill", box.id, "KILL")
        assert process.stdout.read() == b""
    assert digest(program) == before


@OURS_ONLY
@pytest.mark.parametrize("verb", ["run", "exec"])
def test_cve_2019_5736_a_program_that_is_interpreted_by_its_own_interpreter(box: Box, program: Path, verb: str) -> None:
    before = digest(program)
    for place in ("/lib", "/lib64", "/usr/lib", sys.base_prefix):
        if os.path.exists(place):
            mount = {"destination": place, "source": place, "type": "bind", "options": ["bind", "ro"]}
            box.spec["mounts"].append(mount)
    box.spec["process"]["env"] += [f"PYTHONHOME={sys.base_prefix}", f"LD_LIBRARY_PATH={sys.base_prefix}/lib"]
    evil = box.bundle / "rootfs/evil"
    evil.write_text(STEAL)
    evil.chmod(0o755)
    if verb == "run":
        box.spec["process"]["args"] = ["/evil"]
        answer = box.run()
    else:
        box.start()
        answer = box.exec("--", "/evil")
    assert program.name in answer.output, f"the attack did not run: {answer}"
    assert answer.code != 0
    assert "worked" not in answer.output
    assert "written" not in answer.output
    assert digest(program) == before


# ---- strings of config.json ------------------------------------------------------------------------------------------

LENGTHS = (2**16 - 1, 2**16, 2**16 + 1, 2**17 - 100)  # the last is nearly what the kernel takes (MAX_ARG_STRLEN)


@pytest.mark.parametrize("length", LENGTHS)
def test_cve_2021_43784_long_strings_stay_whole(box: Box, length: int) -> None:
    """Where a length has 16 bits, the rest of such a string becomes the next field of the message."""
    value = "x" * (length - 2)
    box.spec["process"]["env"].append(f"A={value}")
    box.spec["annotations"] = {"a": value}
    box.spec["process"]["args"] = ["sh", "-c", "echo ${#A} ${#1}; id -u", "sh", value]
    box.spec["process"]["user"] = {"uid": 7, "gid": 7}
    answer = box.run()
    assert answer.output == f"{length - 2} {length - 2}\n7\n", answer


@pytest.mark.parametrize("length", LENGTHS)
def test_cve_2021_43784_sources_that_are_too_long(box: Box, place: Path, length: int) -> None:
    """The attack on runc: what is behind the 64 KiB of a source was a message to the process that makes namespaces."""
    source = f"{place}/{'/'.join(['d' * 200] * (length // 201))}"
    box.spec["mounts"].append({"destination": "/mnt", "type": "bind", "source": source, "options": ["bind"]})
    answer = box.run()
    assert answer.code == 1
    assert "too long" in answer.errors
    assert os.listdir(box.runtime.root) == []


def put(node: Any, pointer: str, value: str) -> None:
    *way, last = (int(name) if name.isdigit() else name for name in pointer.strip("/").split("/"))
    for name in way:
        node = node[name]
    node[last] = value


@OURS_ONLY  # others let the kernel, or nobody, see that a string ends too early
@pytest.mark.parametrize(
    "field",
    [
        "/process/args/0", "/process/cwd", "/process/env/0", "/process/apparmorProfile", "/process/selinuxLabel",
        "/root/path", "/hostname", "/mounts/0/source", "/mounts/0/destination", "/mounts/0/type", "/mounts/0/options/0",
        "/hooks/poststart/0/path", "/hooks/poststart/0/args/0", "/linux/cgroupsPath", "/linux/maskedPaths/0",
        "/linux/readonlyPaths/0", "/linux/namespaces/0/path", "/linux/devices/0/path", "/linux/mountLabel",
        "/linux/sysctl/net.ipv4.ip_forward",
    ],
)  # fmt: skip
def test_cve_2021_43784_strings_do_not_end_in_the_middle(box: Box, field: str) -> None:
    box.spec["hooks"] = {"poststart": [{"path": "/bin/true", "args": ["true"]}]}
    box.spec["mounts"].insert(0, {"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]})
    box.spec["linux"] |= {"sysctl": {}, "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3}]}
    put(box.spec, field, "/mnt\0/etc")
    answer = box.run()
    assert answer.code == 1
    assert f"{field}: " in answer.errors
    assert "contains a NUL byte" in answer.errors
    assert os.listdir(box.runtime.root) == []


# ---- other users of the machine --------------------------------------------------------------------------------------


def test_cve_2021_41103_cve_2024_25621_nobody_else_sees_the_state(box: Box, place: Path) -> None:
    """With any umask; below the state there are configurations, with what is secret in their environment."""
    box.runtime.root.rmdir()  # made by the runtime, then
    mask = os.umask(0)
    try:
        box.start()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(box.runtime.root.stat().st_mode) == 0o700
    for path in box.runtime.root.rglob("*"):
        assert path.is_symlink() or stat.S_IMODE(path.stat().st_mode) & 0o022 == 0, path


@OURS_ONLY
def test_cve_2021_41103_cve_2024_25621_nor_in_a_folder_that_is_open(box: Box) -> None:
    """The fixture's, which everybody may pass."""
    box.create()
    files = [path for path in box.runtime.root.rglob("*") if not path.is_dir()]
    assert len(files) > 2
    assert [path for path in files if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


# ---- what a container is given ---------------------------------------------------------------------------------------


def test_cve_2022_24769_the_default_configuration_has_nothing_to_inherit(box: Box, place: Path) -> None:
    """Inheritable capabilities come back at the execve of a file that has them, for any user of the container."""
    (place / "made").mkdir()
    box.runtime("spec", cwd=place / "made")
    process = json.loads((place / "made/config.json").read_text())["process"]
    assert not process["capabilities"].get("inheritable")
    box.spec["process"]["capabilities"] = process["capabilities"]
    assert box.output("grep -E 'Cap(Inh|Amb)' /proc/self/status | tr -d '\t\n'") == "".join(
        f"{name}:{0:016x}" for name in ("CapInh", "CapAmb")
    )


@requires("userns", "cgroup:pids")
def test_cve_2025_47291_a_user_namespace_does_not_lead_out_of_the_cgroup(box: Box) -> None:
    box.spec["linux"]["namespaces"].append({"type": "user"})
    for name in ("uidMappings", "gidMappings"):
        box.spec["linux"][name] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    box.spec["linux"]["resources"]["pids"] = {"limit": 10}
    box.start()
    inside = Path(f"/proc/{box.state()['pid']}/cgroup").read_text()
    assert {line.split(":", 2)[2] for line in inside.splitlines()} <= {f"/{box.id}", "/"}
    forks = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done 2>&1; wait"
    assert "can't fork" in box.exec("--", "sh", "-c", forks).output
    assert (box.cgroup("pids") / "pids.max").read_text() == "10\n"
