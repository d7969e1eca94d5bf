"""Seccomp filters around the start of a program."""

from __future__ import annotations

from typing import Any

from tests.container.boxes import NEWER, Box


def filtered(*names: str, action: str, number: int = 0) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": action}
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule | ({"errnoRet": number} if number else {})]}


@NEWER  # runc 1.1 does not say which kind of hook
def test_a_start_container_hook_is_under_the_filter(box: Box) -> None:
    box.spec["linux"]["seccomp"] = filtered("mkdir", "mkdirat", action="SCMP_ACT_KILL")
    box.spec["process"]["rlimits"] = [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    box.spec["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "exec /bin/mkdir /dev/shm/x"]}]}
    box.write()
    errors = box.runtime.fails("run", "--bundle", str(box.bundle), box.id)
    assert "error running startContainer hook" in errors
    assert "bad system call" in errors


def test_a_filter_may_refuse_what_new_programs_do_without(box: Box) -> None:
    box.spec["process"]["args"] = ["echo", "run"]
    box.spec["process"]["noNewPrivileges"] = False
    box.spec["linux"]["seccomp"] = filtered(
        "close_range",
        "fsopen",
        "openat2",
        "open_tree",
        "move_mount",
        "mount_setattr",
        action="SCMP_ACT_ERRNO",
        number=38,
    )
    box.write()
    assert box.runtime("run", "--bundle", str(box.bundle), box.id) == "run\n"
