"""``docker run``: exit codes, streams, and what each flag does to the container."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.interop.docker_rig import IMAGE, Docker
from tests.interop.dockers import IS_RUNC
from tests.support.requires import lack, requires


@pytest.mark.core
def test_output_and_exit_code_reach_the_client(docker: Docker) -> None:
    done = docker.run(IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert docker("ps", "--all", "--quiet") == ""


def test_much_output_is_complete(docker: Docker) -> None:
    done = docker.run(IMAGE, "sh", "-c", "yes 0123456789 | head -n 200000")
    assert (done.returncode, done.stdout) == (0, "0123456789\n" * 200_000)


@pytest.mark.core
def test_input_reaches_the_program_and_ends(docker: Docker) -> None:
    done = docker.run("--interactive", IMAGE, "sh", "-c", "cat; exit 3", stdin="a\nb\n")
    assert (done.returncode, done.stdout) == (3, "a\nb\n")


@pytest.mark.parametrize(
    ("code", "command", "text"),
    [
        (126, ["/etc/passwd"], "permission denied"),
        (127, ["/no/such/program"], "no such file or directory"),
        (127, ["no-such-program"], r"executable file not found in \$PATH"),
        (137, ["sh", "-c", "kill -KILL $$"], ""),
        (143, ["sh", "-c", "trap : EXIT; sh -c 'kill -TERM $$'"], ""),
        (255, ["sh", "-c", "exit 255"], ""),
    ],
)
def test_exit_codes(docker: Docker, code: int, command: list[str], text: str) -> None:
    done = docker.run("--init", IMAGE, *command) if code in (137, 143) else docker.run(IMAGE, *command)
    assert done.returncode == code, done.stderr
    assert re.search(text, done.stderr)
    assert docker("ps", "--all", "--quiet") == ""


def test_what_docker_itself_refuses_ends_with_125(docker: Docker) -> None:
    done = docker.run("--volume", "/no/such/folder/:/x:ro,nosuchoption", IMAGE, "true")
    assert done.returncode == 125
    done = docker.run("--cpuset-cpus", "9999", IMAGE, "true")
    assert done.returncode == 125


UNSHARE = "unshare: unshare(0x20000): Operation not permitted"

# flags, a shell command, what it prints
FLAGS: dict[str, tuple[str, str, str]] = {
    "user": ("--user 1000:1000 --group-add 1234", "id -u; id -g; id -G", "1000\n1000\n1000 1234"),
    "user by name": ("--user user", "id -u; echo $HOME", "1000\n/home/user"),
    "environment": ("--env A=1 --env B", "echo $A-$B-$HOME", "1--/root"),
    "working directory": ("--workdir /new/folder", "pwd", "/new/folder"),
    "hostname": ("--hostname box --domainname a.org", "hostname; cat /proc/sys/kernel/domainname", "box\na.org"),
    "read-only": ("--read-only", "touch /x 2>/dev/null || echo refused", "refused"),
    "tmpfs": (
        "--read-only --tmpfs /scratch:size=64k,mode=1770",
        "touch /scratch/x; stat -c %a /scratch; grep -o 'tmpfs .*' /proc/mounts | grep -c 'scratch.*size=64k'",
        "1770\n1",
    ),
    "shm": ("--shm-size 1m", "df -k /dev/shm | awk 'END { print $2 }'", "1024"),
    "cap-drop": ("--cap-drop ALL", "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f2 | uniq", "0" * 16),
    "cap-add": (
        "--cap-drop ALL --cap-add NET_ADMIN",
        "grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f2 | uniq",
        "0000000000001000",
    ),
    "default capabilities": ("", "grep CapEff /proc/self/status | cut -f2", "00000000a80425fb"),
    "user has none": ("--user 1000", "grep CapEff /proc/self/status | cut -f2", "0" * 16),
    "ulimit": ("--ulimit nofile=100:200", "ulimit -Sn; ulimit -Hn", "100\n200"),
    "sysctl": ("--sysctl net.ipv4.ip_forward=1", "cat /proc/sys/net/ipv4/ip_forward", "1"),
    "seccomp": ("", "grep Seccomp: /proc/self/status | cut -f2; unshare -m true 2>&1", "2\n" + UNSHARE),
    "seccomp off": ("--security-opt seccomp=unconfined", "grep Seccomp: /proc/self/status | cut -f2", "0"),
    "no new privileges": ("--security-opt no-new-privileges", "grep NoNewPrivs /proc/self/status | cut -f2", "1"),
    "masked": ("", "wc -c </proc/timer_list; ls /sys/firmware; test -w /proc/sysrq-trigger || echo ro", "0\nro"),
    "unmasked": ("--security-opt systempaths=unconfined", "touch /proc/sys/kernel/domainname && echo ok", "ok"),
    "oom score": ("--oom-score-adj 500", "cat /proc/self/oom_score_adj", "500"),
    "init": ("--init", "tr '\\0' ' ' </proc/1/cmdline | cut -d' ' -f1; exit 0", "/sbin/docker-init"),
}  # fmt: skip


@pytest.mark.parametrize("case", FLAGS)
def test_flags(docker: Docker, case: str) -> None:
    flags, command, printed = FLAGS[case]
    done = docker.run(*flags.split(), IMAGE, "sh", "-c", command)
    assert (done.stdout.removesuffix("\n"), done.stderr) == (printed, "")


@requires("file:/dev/loop-control")
def test_privileged(docker: Docker) -> None:
    if IS_RUNC and docker.setup.version == "20.10" and (reason := lack("capability:24")):
        pytest.skip(f"{reason}: runc fails where Docker 20.10 asks for all capabilities that it knows")
    script = "mount -t tmpfs none /mnt && echo x >/proc/sys/kernel/domainname && ls /dev/loop-control"
    assert docker.run("--privileged", IMAGE, "sh", "-c", script).stdout == "/dev/loop-control\n"


LIMITS = {
    "memory/memory.limit_in_bytes memory.max": ("--memory 32m", "33554432"),
    "memory/memory.soft_limit_in_bytes memory.low": ("--memory-reservation 16m", "16777216"),
    "pids/pids.max pids.max": ("--pids-limit 50", "50"),
    "cpu/cpu.cfs_quota_us cpu.max": ("--cpus 0.5", "50000"),
    "cpuset/cpuset.cpus cpuset.cpus": ("--cpuset-cpus 0", "0"),
}


@pytest.mark.core
def test_limits_are_in_force(docker: Docker) -> None:
    flags = [word for text, _ in LIMITS.values() for word in text.split()]
    script = "cd /sys/fs/cgroup; " + "; ".join(f"cat {files} 2>/dev/null" for files in LIMITS)
    done = docker.run(*flags, IMAGE, "sh", "-c", script)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [value for _, value in LIMITS.values()]


@requires("file:/dev/loop-control")
def test_device_with_read_access_alone(docker: Docker) -> None:
    device = ("--device", "/dev/loop-control:/dev/given:r")
    done = docker.run(*device, IMAGE, "sh", "-c", ": </dev/given && echo read; : >/dev/given && echo written")
    assert done.stdout == "read\n"
    assert "Operation not permitted" in done.stderr


def test_volumes(docker: Docker, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    tmp_path.chmod(0o755)
    volumes = (
        "--volume",
        f"{tmp_path}:/writable",
        "--volume",
        f"{tmp_path}:/readable:ro",
        "--volume",
        f"{name}:/named",
    )
    script = "cat /readable/file; touch /readable/x; echo new >/writable/new; ls -d /named"
    done = docker.run(*volumes, IMAGE, "sh", "-c", script)
    assert done.stdout == "from the host\n/named\n"
    assert "Read-only file system" in done.stderr
    assert (tmp_path / "new").read_text() == "new\n"
    docker("volume", "rm", name)


def test_custom_seccomp_profile(docker: Docker, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW",'
        ' "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}'
    )
    done = docker.run("--security-opt", f"seccomp={profile}", IMAGE, "mkdir", "/x")
    assert "Operation not supported" in done.stderr


def test_host_pid_namespace(docker: Docker) -> None:
    done = docker.run("--pid", "host", IMAGE, "sh", "-c", f"cat /proc/{os.getpid()}/comm")
    assert done.stdout == Path("/proc/self/comm").read_text()


def test_namespaces_of_another_container(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.sleeper(name, "--ipc", "shareable")
        own = docker(
            "exec", name, "sh", "-c", "readlink /proc/1/ns/pid; readlink /proc/1/ns/ipc; readlink /proc/1/ns/net"
        )
        joined = [f"--{kind}=container:{name}" for kind in ("pid", "ipc", "network")]
        links = "readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc; readlink /proc/self/ns/net"
        assert docker.run(*joined, IMAGE, "sh", "-c", links).stdout == f"{own}\n"
