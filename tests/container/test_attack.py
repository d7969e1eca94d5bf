"""A container that goes for the host's programs: what the runtime runs in it cannot be written to (CVE-2019-5736)."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.container.boxes import OURS_ONLY, Box
from tests.support import wait

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


def test_what_comes_in_is_not_written_to(box: Box, program: Path) -> None:
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
def test_a_program_that_is_interpreted_by_its_own_interpreter(box: Box, program: Path, verb: str) -> None:
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
