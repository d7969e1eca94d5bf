"""What a program can find out about the container that it runs in: shell fragments for busybox and Debian alike."""

from __future__ import annotations

MARK = "=== "

PROBES = {
    "mounts": "cat /proc/self/mountinfo",
    "devices": "cd /dev; ls -d * pts/* shm/* mqueue/* 2>/dev/null | while read f; do"
    " stat -c '%n|%F|%a|%u|%g|%t:%T' $f; readlink $f; done; cd /",
    "root folder": "for f in / /*; do stat -c '%n %F %a %u %g' $f; done; ls -a /root /home /run /tmp",
    "status": "grep -E '^(Umask|Tracer|Uid|Gid|Groups|NS[a-z]*id|Sig[^Q]|Shd|Cap|NoNew|Sec|Spec|Cpus_|Mems_|Core|THP)'"
    " /proc/self/status",
    "limits": "cat /proc/1/limits",
    "environment": "tr '\\0' '\\n' </proc/1/environ; readlink /proc/1/cwd; readlink /proc/1/root; umask; id",
    "cgroups": "cat /proc/1/cgroup; ls -l /sys/fs/cgroup | tr -s ' ' | cut -d' ' -f1-4,9-",
    "devices allowed": "cat /sys/fs/cgroup/devices/devices.list 2>&1",
    "namespaces": "for f in /proc/1/ns/*; do readlink $f; done",
    "names": "hostname; cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname",
    "descriptors": "ls /proc/1/fd",
    "attributes": "cd /proc/1; for f in oom_score_adj oom_adj loginuid sessionid setgroups uid_map gid_map personality"
    ' coredump_filter timerslack_ns timens_offsets comm attr/current; do echo "$f: $(cat $f 2>&1)"; done; cd /',
    "scheduling": "grep -E '^(policy|prio)' /proc/1/sched; cut -d' ' -f 4-8,18,19,40,41 /proc/1/stat",
    "sysctls": "cd /proc/sys; for f in net/ipv4/ip_forward net/ipv4/ping_group_range"
    " net/ipv4/ip_unprivileged_port_start net/core/somaxconn kernel/shmmax kernel/msgmax kernel/sem"
    ' fs/mqueue/msg_max; do echo "$f: $(cat $f 2>&1)"; done;'
    " cd /",
    "keyrings": "cat /proc/keys | wc -l",
    "masked": "for f in /proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list"
    " /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do"
    " stat -c '%n %F %a %u %g %t:%T' $f; ls -a $f; cat $f | wc -c; echo x >$f/x; done",
    "writable": "for f in / /bin /proc/bus /proc/fs /proc/irq /proc/sys /proc/sys/kernel/hostname /proc/sysrq-trigger"
    " /proc/1 /proc/1/oom_score_adj /sys /sys/kernel /sys/fs/cgroup/pids /dev /dev/shm /dev/mqueue /tmp /run; do"
    " test -w $f && echo $f || echo no: $f; done",
    "network": "ls /sys/class/net; cat /sys/class/net/lo/flags /sys/class/net/lo/operstate; wc -l </proc/net/route;"
    " cat /proc/net/if_inet6; cat /proc/net/unix | wc -l",
    "processes": "set -- /proc/[0-9]*; echo $#",
    # What must not be possible, and with which error it is not.
    "attempts": "mknod /tmp/null c 1 3; mknod /dev/shm/disk b 254 0 && head -c 1 /dev/shm/disk; mknod /dev/x c 10 229"
    " && cat /dev/x; mknod /dev/y c 1 5 && head -c 1 /dev/y | wc -c; mount -t tmpfs none /mnt; umount /proc;"
    " mount -o remount,rw /; mount -o remount,rw /sys; hostname other; chroot / true; chown 5 /etc/passwd;"
    " su nobody -s /bin/sh -c id; nice -n -5 true; renice -n -5 1; ulimit -n 4096; unshare -m true; unshare -U true;"
    " unshare -n true; date -s @5; dmesg | head -n 1; echo 1 >/proc/sys/net/ipv4/ip_forward;"
    " echo 5 >/proc/1/oom_score_adj; head -c 1 /dev/full | wc -c; echo x >/dev/full; echo x >/dev/tty; tty;"
    " chmod 777 /proc/1; ln -s x /proc/1/x; echo +pids >/sys/fs/cgroup/unified/cgroup.subtree_control;"
    " mkdir /sys/fs/cgroup/pids/x; kill -0 1; echo 1 >/proc/sysrq-trigger; true",
}


def script() -> str:
    """Runs all of them; what each says on both streams follows a line with its name."""
    return "exec 2>&1\n" + "\n".join(f"echo '{MARK}{name}'\n{probe}" for name, probe in PROBES.items())


def answers(output: str) -> dict[str, str]:
    """By probe."""
    parts = (part.partition("\n") for part in output.split(MARK)[1:])
    return {name: text for name, _, text in parts}
