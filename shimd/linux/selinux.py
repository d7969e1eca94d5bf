"""SELinux's answers, from selinuxfs (security/selinux/selinuxfs.c of the kernel)."""

from __future__ import annotations

import os

_ROOT = "/sys/fs/selinux"


def enforces() -> bool:
    """False also where there is no SELinux."""
    try:
        return _read("enforce") == "1"
    except OSError:
        return False


def allows(source: str, target: str, kind: str, permission: str) -> bool:
    """Whether the policy gives processes of one context that permission for objects of another; ``kind`` is the class
    of the objects. Raises OSError: EINVAL for a context that the policy does not know, ENOENT for a class.
    """
    wanted = 1 << int(_read(f"class/{kind}/perms/{permission}")) - 1
    fd = os.open(f"{_ROOT}/access", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(fd, f"{source} {target} {_read(f'class/{kind}/index')}".encode())
        allowed = os.read(fd, 4096).split()[0]
    finally:
        os.close(fd)
    return bool(int(allowed, 16) & wanted)


def keeps_keys_apart(label: str) -> bool:
    """Whether processes of the same type may not search keyrings with this label unless they have its categories."""
    user, role, kind, level = (label.split(":", 3) + [""] * 3)[:4]
    sensitivity = level.split("-")[0].split(":")[0]
    try:
        return enforces() and not allows(f"{user}:{role}:{kind}:{sensitivity}", label, "key", "search")
    except OSError:
        return False


def _read(name: str) -> str:
    with open(f"{_ROOT}/{name}", encoding="ascii") as file:
        return file.read().strip()
