"""SELinux: labels of processes, mounts and keys are set and seen, and the policy (selinux.policy here) is enforced."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container import boxes as container
from tests.container.boxes import Runtime, runtime
from tests.daemon.boxes import Box, MakeBox, refused, shell
from tests.lab.talking import ask, run
from tests.support.keyrings import squatter
from tests.support.requires import requires
from tests.support.rootfs import debian_rootfs
from tests.support.specs import runc_default

__all__ = ["runtime"]

pytestmark = [pytest.mark.lab("selinux"), requires("selinux", "program:checkpolicy")]

CONTAINER = "system_u:system_r:container_t:s0:c1,c2"
OTHER = "system_u:system_r:container_t:s0:c3"
FILES = "system_u:object_r:container_file_t:s0:c1,c2"
HOST = "system_u:system_r:kernel_t:s0-s0:c0.c7"
SELINUXFS = Path("/sys/fs/selinux")
CURRENT = "cat /proc/self/attr/current | tr -d '\\0'; echo"
NUL = "\0"


@pytest.fixture(scope="module", autouse=True)
def policy(module_place: Path) -> Iterator[None]:
    """Loaded once for the machine, and enforced for the tests."""
    version = (SELINUXFS / "policyvers").read_text().strip()
    binary = module_place / "policy"
    source = Path(__file__).with_name("selinux.policy")
    subprocess.run(["checkpolicy", "-M", "-U", "allow", "-c", version, "-o", binary, source], check=True)
    (SELINUXFS / "load").write_bytes(binary.read_bytes())
    (SELINUXFS / "enforce").write_text("1")
    yield
    (SELINUXFS / "enforce").write_text("0")


@pytest.fixture
def rootfs(busybox: Path) -> Path:
    for path in (busybox, *busybox.rglob("*")):
        os.setxattr(path, "security.selinux", FILES.encode(), follow_symlinks=False)
    secret = busybox / "etc" / "secret"
    secret.write_text("secret\n")
    os.setxattr(secret, "security.selinux", b"system_u:object_r:secret_t:s0")
    return busybox


def labelled(*args: str, process: str = CONTAINER, mounts: str = FILES, **more: Any) -> dict[str, Any]:
    spec = runc_default(*args)
    spec["process"] |= {"selinuxLabel": process, **more}
    spec["linux"]["mountLabel"] = mounts
    return spec


def label_of(path: Path | str) -> str:
    return os.getxattr(path, "security.selinux").decode().rstrip(NUL)


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_the_program_has_its_label(box: MakeBox, rootfs: Path, place: Path, *, no_new_privileges: bool) -> None:
    b = box(spec=labelled(*shell(CURRENT), noNewPrivileges=no_new_privileges))
    assert run(b, place) == (f"{CONTAINER}\n", 0)


def test_without_a_label_it_has_that_of_the_daemon(box: MakeBox, rootfs: Path, place: Path) -> None:
    assert run(box(spec=runc_default(*shell(CURRENT))), place) == (f"{HOST}\n", 0)


def test_the_policy_is_enforced(box: MakeBox, rootfs: Path, place: Path) -> None:
    b = box(spec=labelled(*shell("cat /etc/secret; cat /etc/hostname")))
    said = run(b, place)
    assert "can't open '/etc/secret': Permission denied" in said.output
    assert said.code == 0
    assert run(box(spec=runc_default("cat", "/etc/secret")), place) == ("secret\n", 0)


@pytest.fixture
def running(box: MakeBox, rootfs: Path) -> Box:
    spec = labelled("sleep", "1000")
    spec["linux"]["maskedPaths"] = ["/var/tmp"]
    b = box(spec=spec)
    b.make()
    b.start()
    return b


def test_the_host_sees_the_label(running: Box) -> None:
    assert Path(f"/proc/{running.state().pid}/attr/current").read_text().rstrip(NUL) == CONTAINER


def test_an_exec_has_the_containers_label(running: Box, place: Path) -> None:
    assert ask(running, place, CURRENT) == (f"{CONTAINER}\n", 0)


def test_an_exec_may_have_one_of_its_own(running: Box, place: Path) -> None:
    assert ask(running, place, CURRENT, selinuxLabel=OTHER) == (f"{OTHER}\n", 0)


@pytest.mark.parametrize("folder", ["dev", "dev/shm", "dev/mqueue", "dev/null"])
def test_file_systems_of_the_container_have_the_mount_label(running: Box, folder: str) -> None:
    assert label_of(f"/proc/{running.state().pid}/root/{folder}") == FILES


def test_file_systems_without_a_mount_label(box: MakeBox, rootfs: Path) -> None:
    b = box(spec=runc_default("sleep", "1000"))
    b.make()
    assert label_of(f"/proc/{b.state().pid}/root/dev/shm") == "system_u:object_r:file_t:s0"


def test_a_masked_folder_has_the_mount_label(running: Box) -> None:
    assert label_of(f"/proc/{running.state().pid}/root/var/tmp") == FILES


KEYCTL = 'my $b = "\\0" x 100; syscall(250, 17, -3, $b, 100) > 0 or die $!; print unpack("Z*", $b), "\\n"'
"""keyctl(KEYCTL_GET_SECURITY, KEY_SPEC_SESSION_KEYRING), in the only language that a minimal Debian has."""


def test_the_session_keyring_has_the_label_of_the_process(box: MakeBox, place: Path) -> None:
    spec = labelled("perl", "-e", KEYCTL)
    spec["root"] = {"path": str(debian_rootfs()), "readonly": True}
    b = box(spec=spec)
    (b.bundle / "config.json").write_text(json.dumps(spec))
    assert run(b, place) == (f"{CONTAINER}\n", 0)


DESCRIBE = (
    'my $b = "\\0" x 200; syscall(250, 6, -3, $b, 200) > 0 or die $!; print((split /;/, unpack("Z*", $b))[4], "\\n")'
)
"""keyctl(KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING): its name."""


@pytest.fixture
def perl(runtime: Runtime, rootfs: Path, container_id: str) -> container.Box:
    made = container.Box(runtime, container_id, rootfs.parent)
    made.spec["root"] = {"path": str(debian_rootfs()), "readonly": True}
    made.spec["process"] |= {"selinuxLabel": CONTAINER, "args": ["perl", "-e", DESCRIBE]}
    made.spec["linux"]["mountLabel"] = FILES
    (made.bundle / "config.json").write_text(json.dumps(made.spec))
    return made


def test_the_session_keyring_has_the_name_of_the_container(perl: container.Box) -> None:
    """In $RUNTIME; with ours as the policy keeps the keys of other categories apart."""
    assert perl.runtime("run", "--bundle", str(perl.bundle), perl.id) == f"_ses.{perl.id}\n"


@container.OURS_ONLY
def test_a_keyring_that_waits_for_its_container_is_left_alone(perl: container.Box) -> None:
    with squatter(f"_ses.{perl.id}", label=OTHER):
        said = perl.runtime("run", "--bundle", str(perl.bundle), perl.id)
    assert said.startswith("_ses.")
    assert said != f"_ses.{perl.id}\n"


@container.OURS_ONLY
@pytest.mark.parametrize("label", ["system_u:system_r:container_t:s0", ""])
def test_where_others_could_search_it_nobody_can_guess_its_name(perl: container.Box, label: str) -> None:
    perl.spec["process"]["selinuxLabel"] = label
    (perl.bundle / "config.json").write_text(json.dumps(perl.spec))
    said = perl.runtime("run", "--bundle", str(perl.bundle), perl.id)
    assert said.startswith("_ses.")
    assert perl.id not in said


def test_the_command_line(runtime: Runtime, rootfs: Path, container_id: str) -> None:
    """In $RUNTIME."""
    made = container.Box(runtime, container_id, rootfs.parent)
    made.spec["process"]["selinuxLabel"] = CONTAINER
    made.spec["linux"]["mountLabel"] = FILES
    made.start()
    assert label_of(f"/proc/{made.state()['pid']}/root/dev/shm") == FILES
    assert runtime("exec", made.id, "sh", "-c", CURRENT) == f"{CONTAINER}\n"
    assert runtime("exec", "--process-label", OTHER, made.id, "sh", "-c", CURRENT) == f"{OTHER}\n"


def test_a_label_that_the_policy_does_not_know(box: MakeBox, running: Box, place: Path) -> None:
    unknown = "system_u:system_r:nobody_t:s0"
    with refused("UNKNOWN", f"set SELinux label {unknown} of new keys: Invalid argument"):
        box(spec=labelled("true", process=unknown)).make()
    with refused("UNKNOWN", f"SELinux label {unknown}"):
        ask(running, place, "true", selinuxLabel=unknown)
    with refused("UNKNOWN", "Invalid argument"):
        box(spec=labelled("true", mounts=unknown)).make()
