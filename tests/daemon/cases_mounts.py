"""``root`` and ``mounts`` of config.json."""

from __future__ import annotations

from typing import Any

from tests.daemon.cases import Case

Change = dict[str, Any]
OVERRIDDEN = "in runc 1.1, the mode of what is there wins"

# Mount point, options, propagation, type and superblock options of the mounts below /mnt.
MNT = "grep -F ' /mnt' /proc/self/mountinfo | cut -d' ' -f5- | sed 's/:[0-9]*//g'"
TRY = "for f in /mnt /mnt/below /mnt/file; do test -d $f && echo x >$f/new && echo ok; done; true"


def bind(*options: str, source: str = "{host}/data", to: str = "/mnt") -> Change:
    return {"mounts/+": {"destination": to, "type": "bind", "source": source, "options": list(options)}}


def tmpfs(*options: str, to: str = "/mnt") -> Change:
    return {"mounts/+": {"destination": to, "type": "tmpfs", "source": "tmpfs", "options": list(options)}}


MOUNTS = (
    Case(
        "read-only root",
        {"root/readonly": True},
        "echo x >/etc/x; test -w /etc || echo no; touch /dev/shm/x /dev/x; true",
    ),
    Case("bind", bind("bind"), f"{MNT}; {TRY}; cat /mnt/file; ls /mnt /mnt/below"),
    Case("bind by type", bind(), f"cat /mnt/file; {MNT}", alone="runc wants the option, too"),
    Case("recursive bind", bind("rbind"), f"{MNT}; {TRY}; ls /mnt/below"),
    Case("read-only bind", bind("rbind", "ro"), f"{MNT}; {TRY}"),
    Case("recursively read-only bind", bind("rbind", "rro"), f"{MNT}; {TRY}"),
    Case("recursive options", bind("rbind", "rnosuid", "rnodev", "rnoexec", "rnoatime"), MNT),
    Case(
        "recursively undone options",
        bind("rbind", "rro", "rrw", "rnoexec", "rexec"),
        f"{MNT} | cut -d' ' -f-2",
        "/mnt rw,relatime\n/mnt/below rw,relatime\n",
        alone="in runc, the first of them wins",
    ),
    Case(
        "bind with many options",
        bind("rbind", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"),
        MNT,
    ),
    Case(
        "bind with cleared options", bind("bind", "ro", "rw", "nosuid", "suid", "noexec", "exec", "nodev", "dev"), MNT
    ),
    Case("shared bind", bind("rbind", "rshared"), MNT),
    Case("slave bind", bind("rbind", "rslave"), MNT),
    Case("private bind", bind("rbind", "private"), MNT),
    Case("unbindable bind", bind("bind", "unbindable"), MNT),
    Case(
        "bind of a file",
        bind("bind", source="{host}/single", to="/etc/single"),
        "cat /etc/single; stat -c %F /etc/single",
    ),
    Case(
        "bind over a file",
        bind("bind", "ro", source="{host}/single", to="/etc/hosts"),
        "cat /etc/hosts; echo x >/etc/hosts; true",
    ),
    Case(
        "bind of a socket's kind",
        bind("bind", source="/dev/null", to="/etc/null"),
        "stat -c '%F %t:%T' /etc/null; cat /etc/null",
    ),
    Case(
        "bind to a new place",
        bind("bind", to="/new/deep/place"),
        "cat /new/deep/place/file; stat -c '%a %u %g' /new /new/deep",
    ),
    Case("bind of a link's target", bind("bind", source="{host}/link"), "cat /mnt/file"),
    Case("bind through the root's links", bind("bind", to="/var/run/../../mnt/in"), "cat /mnt/in/file"),
    Case("bind of a relative source", bind("bind", source="../host/data"), "cat /mnt/file"),
    Case("relative destination", bind("bind", to="mnt"), "cat /mnt/file"),
    Case("tmpfs", tmpfs(), f"{MNT}; stat -c '%a %u %g' /mnt; touch /mnt/x"),
    Case("tmpfs with options", tmpfs("nosuid", "size=65536k", "uid=5", "gid=6"), f"{MNT}; stat -c '%u %g' /mnt"),
    Case("tmpfs with a mode", tmpfs("mode=750"), "stat -c %a /mnt", "750\n", alone=OVERRIDDEN),
    Case("read-only tmpfs", tmpfs("ro"), f"{MNT}; touch /mnt/x; true"),
    Case("tmpfs with a mode of four digits", tmpfs("mode=1777"), "stat -c %a /mnt", "1777\n", alone=OVERRIDDEN),
    Case("tmpfs that takes the mode of what is there", tmpfs(to="/tmp"), "stat -c '%a %u %g' /tmp"),
    Case(
        "tmpfs with copies",
        tmpfs("tmpcopyup", to="/etc"),
        "ls /etc; cat /etc/passwd; touch /etc/x; stat -c '%a %u %g' /etc /etc/passwd",
    ),
    Case("read-only tmpfs with copies", tmpfs("tmpcopyup", "ro", to="/etc"), "ls /etc; touch /etc/x; true"),
    Case(
        "tmpfs with copies of links and folders",
        tmpfs("tmpcopyup", "nosuid", "nodev", to="/sbin"),
        "ls -l /sbin/mkfs.ext2 | cut -c1-10; readlink /sbin/reboot; ls /sbin | wc -l",
    ),
    Case("ramfs", {"mounts/+": {"destination": "/mnt", "type": "ramfs", "source": "ramfs"}}, f"{MNT}; touch /mnt/x"),
    Case(
        "overlay",
        {
            "mounts/+": {
                "destination": "/mnt",
                "type": "overlay",
                "source": "overlay",
                "options": ["lowerdir={host}/data", "upperdir={host}/upper", "workdir={host}/work"],
            }
        },
        "cat /mnt/file; echo x >/mnt/new; ls /mnt",
    ),
    Case(
        "second proc",
        {"mounts/+": {"destination": "/mnt", "type": "proc", "source": "proc", "options": ["ro", "nosuid"]}},
        f"{MNT}; cat /mnt/1/comm; ls /mnt > /tmp/list; grep -c '^[0-9]' /tmp/list",
    ),
    Case(
        "writable cgroups",
        {"mounts/+": {"destination": "/mnt", "type": "cgroup", "source": "cgroup", "options": ["rw", "nosuid"]}},
        "mkdir /mnt/pids/x && rmdir /mnt/pids/x; cat /mnt/pids/pids.max; ls /mnt | grep -v unified",
        needs=("file:/sys/fs/cgroup/pids",),
    ),
)
