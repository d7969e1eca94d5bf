"""``hostname``, ``domainname`` and ``linux`` of config.json."""

from __future__ import annotations

from typing import Any

from tests.daemon.cases import Case
from tests.daemon.cases_process import NEWER

# Of the mount on /: shared, slave, unbindable.
ROOT = "cut -d' ' -f5- /proc/self/mountinfo | grep '^/ ' | cut -d' ' -f3- | sed 's/ *- .*//; s/:[0-9]*//g'"
GROUP = "/sys/fs/cgroup"
POLICY = 'read a policy b </proc/self/numa_maps; echo "$policy"'
NAMESPACES = "for f in /proc/self/ns/*; do readlink $f; done"
MAPS: dict[str, Any] = {
    "linux/namespaces/+": {"type": "user"},
    "linux/uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
    "linux/gidMappings": [{"containerID": 0, "hostID": 200000, "size": 65536}],
}


def without(*kinds: str, **changes: Any) -> dict[str, Any]:
    names = [name for name in ("pid", "network", "ipc", "uts", "mount") if name not in kinds]
    return {"linux/namespaces": [{"type": name} for name in names], **changes}


def resources(script: str, **given: Any) -> tuple[dict[str, Any], str]:
    return {f"linux/resources/{name}": value for name, value in given.items()}, script


def files(controller: str, *names: str) -> str:
    return f"cd {GROUP}/{controller}; grep . {' '.join(f'{controller}.{name}' for name in names)}"


LINUX = (
    Case("host name", {"hostname": "box"}, "hostname; uname -n; cat /proc/sys/kernel/hostname"),
    Case("no host name", {"hostname": None}, "test $(hostname) = $(hostname) && echo ok"),
    Case("domain name", {"domainname": "example.org"}, "cat /proc/sys/kernel/domainname", "example.org\n", alone=NEWER),
    Case("network of the host", without("network"), NAMESPACES),
    Case("IPC of the host", without("ipc"), NAMESPACES),
    Case("names of the host", {**without("uts"), "hostname": None}, NAMESPACES),
    Case("processes of the host", without("pid"), f"{NAMESPACES}; test $$ -gt 1 && echo not init"),
    Case(
        "cgroup namespace",
        {"linux/namespaces/+": {"type": "cgroup"}},
        f"{NAMESPACES}; cat /proc/self/cgroup; grep -F ' {GROUP}/pids ' /proc/self/mountinfo;"
        f" cat {GROUP}/pids/cgroup.procs | wc -l",
    ),
    Case(
        "user namespace",
        MAPS,
        "id; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; grep ^Cap /proc/self/status;"
        " touch /tmp/x; stat -c '%u %g' /tmp/x /proc/1 /dev /dev/null; mknod /tmp/n c 1 3; true",
    ),
    Case(
        "user of a user namespace",
        {**MAPS, "process/user": {"uid": 1000, "gid": 1000, "additionalGids": [5]}},
        "id; grep ^Cap /proc/self/status",
    ),
    Case(
        "time namespace",
        {
            "linux/namespaces/+": {"type": "time"},
            "linux/timeOffsets": {"boottime": {"secs": 10**8}, "monotonic": {"secs": 2 * 10**8}},
        },
        "cut -d. -f1 /proc/uptime | cut -c1-3; cat /proc/self/timens_offsets | tr -s ' '",
        "100\nmonotonic 200000000 0\nboottime 100000000 0\n",
        alone=NEWER,
        needs=("namespace:time",),
    ),
    Case(
        "memory policy",
        {"linux/memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}},
        f"{POLICY}; sh -c '{POLICY}'",
        "bind=static:0\nbind=static:0\n",
        alone=NEWER,
        needs=("file:/proc/self/numa_maps",),
    ),
    Case(
        "memory policy without nodes",
        {"linux/memoryPolicy": {"mode": "MPOL_LOCAL"}},
        POLICY,
        "local\n",
        alone=NEWER,
        needs=("file:/proc/self/numa_maps",),
    ),
    Case(
        "sysctls",
        {
            "linux/sysctl": {
                "net.ipv4.ip_forward": "1",
                "net/ipv4/ip_unprivileged_port_start": "0",
                "kernel.shmmax": "123456",
                "kernel.sem": "250 32000 100 128",
                "fs.mqueue.msg_max": "20",
            }
        },
        "cd /proc/sys; cat net/ipv4/ip_forward net/ipv4/ip_unprivileged_port_start kernel/shmmax kernel/sem"
        " fs/mqueue/msg_max",
    ),
    Case(
        "order of sysctls",
        {"linux/sysctl": {"net.ipv4.ip_forward": "1", "net.ipv4.conf.lo.forwarding": "0"}},
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/lo/forwarding",
        "1\n0\n",
        alone="runc knows no order",
    ),
    Case(
        "devices",
        {
            "linux/devices": [
                {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o640, "uid": 1, "gid": 2},
                {"path": "/dev/disk", "type": "b", "major": 254, "minor": 0, "fileMode": 0o600},
                {"path": "/dev/pipe", "type": "p", "fileMode": 0o622},
                {"path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 5, "fileMode": 0o666},
                {"path": "/else/zero", "type": "c", "major": 1, "minor": 5},
            ]
        },
        "stat -c '%n %F %a %u %g %t:%T' /dev/net /dev/net/tun /dev/disk /dev/pipe /dev/unbuffered /else/zero;"
        " head -c 3 /else/zero | wc -c; head -c 1 /dev/disk; true",
    ),
    Case(
        "default device of one's own",
        {"linux/devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o444}]},
        "stat -c '%F %a %t:%T' /dev/null",
        "character special file 444 1:3\n",
        alone="runc forbids the device then",
    ),
    Case(
        "device rules",
        {
            "linux/resources/devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
                {"allow": True, "type": "b", "major": 7, "access": "r"},
                {"allow": False, "type": "c", "major": 1, "minor": 5, "access": "w"},
            ]
        },
        f"sort {GROUP}/devices/devices.list; echo x >/dev/zero; head -c 2 /dev/zero | wc -c",
    ),
    Case(
        "all devices",
        {"linux/resources/devices": [{"allow": True, "access": "rwm"}]},
        f"cat {GROUP}/devices/devices.list",
    ),
    Case(
        "masked paths",
        {"linux/maskedPaths": ["/etc/passwd", "/home", "/no/such", "/proc/meminfo", "/sys/kernel"]},
        "cat /etc/passwd /proc/meminfo; ls /home /sys/kernel; touch /home/x; echo x >/etc/passwd; cat /etc/passwd",
    ),
    Case(
        "read-only paths",
        {"linux/readonlyPaths": ["/etc/passwd", "/home", "/no/such", "/proc/sys", "/dev/shm"]},
        "head -n 1 /etc/passwd; touch /home/x /dev/shm/x; echo x >/etc/passwd;"
        " echo 1 >/proc/sys/net/ipv4/ip_forward; true",
    ),
    Case(
        "nothing is masked",
        {"linux/maskedPaths": [], "linux/readonlyPaths": []},
        "wc -l </proc/keys; test -w /proc/sys/net && echo w",
    ),
    *(Case(f"{kind} root", {"linux/rootfsPropagation": kind}, ROOT) for kind in ("slave", "private", "rslave")),
    Case("shared root", {"linux/rootfsPropagation": "shared"}, ROOT, "shared\n", alone="runc 1.1 does not do it"),
    Case("unbindable root", {"linux/rootfsPropagation": "unbindable"}, ROOT, "unbindable\n", alone="runc fails"),
    Case(
        "memory limits",
        *resources(
            files(
                "memory", "limit_in_bytes", "soft_limit_in_bytes", "memsw.limit_in_bytes", "swappiness", "oom_control"
            ),
            memory={"limit": 64 << 20, "reservation": 32 << 20, "swap": 128 << 20, "swappiness": 40},
        ),
    ),
    Case(
        "no OOM killer",
        *resources(files("memory", "oom_control"), memory={"limit": 64 << 20, "disableOOMKiller": True}),
    ),
    Case(
        "CPU limits",
        *resources(
            files("cpu", "shares", "cfs_quota_us", "cfs_period_us"),
            cpu={"shares": 512, "quota": 50000, "period": 200000},
        ),
    ),
    Case(
        "burst and idle",
        *resources(files("cpu", "cfs_burst_us", "idle"), cpu={"quota": 50000, "burst": 10000, "idle": 1}),
        "cpu.cfs_burst_us:10000\ncpu.idle:1\n",
        alone=NEWER,
    ),
    Case("CPU set", *resources(files("cpuset", "cpus", "mems"), cpu={"cpus": "0", "mems": "0"})),
    Case("processes", *resources(f"{files('pids', 'max')}; (sleep 0 & sleep 0 & sleep 0 & wait)", pids={"limit": 50})),
    Case("no limit of processes", *resources(files("pids", "max"), pids={"limit": -1})),
    Case(
        "block I/O",
        *resources(
            files("blkio", "throttle.read_bps_device", "throttle.write_iops_device"),
            blockIO={
                "throttleReadBpsDevice": [{"major": 254, "minor": 0, "rate": 1 << 20}],
                "throttleWriteIOPSDevice": [{"major": 254, "minor": 0, "rate": 100}],
            },
        ),
        needs=("file:/sys/dev/block/254:0",),
    ),
    Case(
        "filter with an error",
        {
            "linux/seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
                    {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"},
                    {"names": ["no_such_call"], "action": "SCMP_ACT_ERRNO"},
                ],
            }
        },
        "mkdir /tmp/x; chmod 1 /tmp; grep ^Seccomp /proc/self/status",
    ),
    Case(
        "filter by argument",
        {
            "linux/seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                "syscalls": [
                    {
                        "names": ["kill"],
                        "action": "SCMP_ACT_ERRNO",
                        "errnoRet": 13,
                        "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}],
                    },
                    {
                        "names": ["socket"],
                        "action": "SCMP_ACT_ERRNO",
                        "args": [{"index": 0, "value": 0xFF, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}],
                    },
                ],
            }
        },
        "sleep 9 & kill -9 $$; kill -15 $!; ifconfig lo; true",
    ),
)
