"""``process`` of config.json."""

from __future__ import annotations

from tests.daemon.cases import Case

CAPABILITIES = "grep -E '^(Cap|NoNew)' /proc/self/status"
NEWER = "runc 1.1 does not know it"


def _sets(**names: str) -> dict[str, list[str]]:
    return {kind: [f"CAP_{name}" for name in given.split()] for kind, given in names.items()}


PROCESS = (
    Case("user", {"process/user": {"uid": 1000, "gid": 1000}}, "id; echo $HOME; echo x >/etc/x; ls -ld /proc/1"),
    Case("user without a name", {"process/user": {"uid": 4321, "gid": 8765}}, "id; echo $HOME"),
    Case(
        "highest ids",
        {"process/user": {"uid": 2**32 - 2, "gid": 2**32 - 2}},
        "id -u; id -g",
        "4294967294\n4294967294\n",
        alone="runc knows only half of them",
    ),
    Case("additional groups", {"process/user": {"uid": 5, "gid": 6, "additionalGids": [7, 2000]}}, "id -u; id -G"),
    Case("root with groups", {"process/user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]}}, "id -u; id -G"),
    Case(
        "umask",
        {"process/user": {"uid": 0, "gid": 0, "umask": 0o27}},
        "umask; touch /tmp/x; stat -c %a /tmp/x /dev /dev/null /proc",
    ),
    Case("umask of zero", {"process/user": {"uid": 0, "gid": 0, "umask": 0}}, "umask; mkdir /tmp/x; stat -c %a /tmp/x"),
    Case("home is kept", {"process/env": ["PATH=/bin", "HOME=/elsewhere"]}, "env | sort"),
    Case("empty home", {"process/env": ["PATH=/bin", "HOME="]}, 'echo "$HOME"'),
    Case("environment", {"process/env": ["A=1", "PATH=/bin", "A=2", "EMPTY=", "EQUALS=a=b", "ü=ö"]}, "env | sort"),
    Case("no environment", {"process/env": [], "process/args": ["/bin/busybox", "env"]}, ""),
    Case("program by PATH", {"process/env": ["PATH=/nowhere:/usr/bin:/bin"], "process/args": ["busybox", "pwd"]}, ""),
    Case("relative program", {"process/cwd": "/bin", "process/args": ["./busybox", "pwd"]}, ""),
    Case("cwd", {"process/cwd": "/home/user"}, "pwd"),
    Case("cwd is made", {"process/cwd": "/a/b/c"}, "pwd; stat -c '%a %u %g' /a /a/b /a/b/c"),
    Case(
        "cwd of another user",
        {"process/cwd": "/home/user", "process/user": {"uid": 1000, "gid": 1000}},
        "pwd; touch here; true",
    ),
    Case(
        "limits",
        {
            "process/rlimits": [
                {"type": f"RLIMIT_{name}", "soft": soft, "hard": hard}
                for name, soft, hard in (
                    ("CORE", 0, 1000),
                    ("CPU", 50, 60),
                    ("DATA", 2**30, 2**31),
                    ("FSIZE", 2**40, 2**41),
                    ("LOCKS", 5, 6),
                    ("MEMLOCK", 4096, 8192),
                    ("MSGQUEUE", 7, 8),
                    ("NOFILE", 64, 128),
                    ("NPROC", 900, 1000),
                    ("RSS", 2**34, 2**35),
                    ("SIGPENDING", 10, 11),
                    ("STACK", 2**22, 2**23),
                    ("AS", 2**33, 2**34),
                )
            ]
        },
        "cat /proc/self/limits",
    ),
    Case("no limits", {"process/rlimits": []}, "cat /proc/self/limits"),
    Case("no capabilities", {"process/capabilities": {}}, CAPABILITIES),
    Case(
        "capabilities are missing",
        {"process/capabilities": None},
        "grep -qE 'CapEff:.0+$' /proc/self/status || echo kept",
        "kept\n",
        alone="runc 1.1 drops all; newer ones leave them as they are",
    ),
    Case(
        "all kinds of capabilities",
        {
            "process/capabilities": _sets(
                bounding="CHOWN KILL NET_RAW",
                effective="CHOWN KILL",
                permitted="CHOWN KILL",
                inheritable="KILL",
                ambient="KILL",
            )
        },
        CAPABILITIES,
    ),
    Case(
        "ambient capabilities of a user",
        {
            "process/user": {"uid": 1000, "gid": 1000},
            "process/capabilities": _sets(
                bounding="CHOWN NET_RAW", effective="CHOWN", permitted="CHOWN", inheritable="CHOWN", ambient="CHOWN"
            ),
        },
        f"{CAPABILITIES}; touch /tmp/x; chown 5 /tmp/x; stat -c %u /tmp/x",
    ),
    Case(
        "user without ambient capabilities",
        {
            "process/user": {"uid": 1000, "gid": 1000},
            "process/capabilities": _sets(bounding="CHOWN", effective="CHOWN", permitted="CHOWN"),
        },
        f"{CAPABILITIES}; touch /tmp/x; chown 5 /tmp/x; true",
    ),
    Case(
        "unknown capability",
        {"process/capabilities": _sets(bounding="CHOWN NO_SUCH", effective="CHOWN NO_SUCH", permitted="CHOWN")},
        CAPABILITIES,
    ),
    Case("new privileges", {"process/noNewPrivileges": False}, CAPABILITIES),
    Case("OOM score", {"process/oomScoreAdj": 321}, "cat /proc/self/oom_score_adj /proc/1/oom_score_adj", "321\n321\n"),
    Case("OOM score of zero", {"process/oomScoreAdj": 0}, "cat /proc/self/oom_score_adj"),
    Case(
        "batch scheduling",
        {"process/scheduler": {"policy": "SCHED_BATCH", "nice": 7}},
        "grep ^policy /proc/1/sched | tr -d ' '; cut -d' ' -f19 /proc/1/stat",
        "policy:3\n7\n",
        alone=NEWER,
    ),
    Case(
        "idle scheduling",
        {"process/scheduler": {"policy": "SCHED_IDLE"}},
        "cut -d' ' -f41 /proc/1/stat",
        "5\n",
        alone=NEWER,
    ),
    Case(
        "scheduling reset on fork",
        {"process/scheduler": {"policy": "SCHED_OTHER", "nice": -3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}},
        "cut -d' ' -f19 /proc/1/stat; cut -d' ' -f19 /proc/self/stat; true",
        "-3\n0\n",
        alone=NEWER,
    ),
    Case(
        "I/O priority",
        {"process/ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6}},
        "ionice -p 1; ionice",
        "best-effort: prio 6\nbest-effort: prio 6\n",
        alone=NEWER,
    ),
    Case(
        "idle I/O",
        {"process/ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0}},
        "ionice",
        "idle\n",
        alone=NEWER,
    ),
    Case(
        "personality",
        {"linux/personality": {"domain": "LINUX32"}},
        "uname -m",
        "i686\n",
        alone=NEWER,
        needs=("runs:setarch i686 true",),
    ),
    Case("plain personality", {"linux/personality": {"domain": "LINUX"}}, "uname -m", alone=NEWER),
)
