"""Networks: Docker hands them to the runtime as namespaces, or fills them from a hook."""

from __future__ import annotations

import socket

import pytest

from tests.interop.conftest import StartDocker
from tests.interop.docker_rig import IMAGE, Docker
from tests.support.wait import SECONDS

INTERFACES = ("ls", "/sys/class/net")
SERVER = "echo hello >/tmp/index.html; exec httpd -f -h /tmp -p 80"


def http(address: str, port: int) -> str:
    with socket.create_connection((address, port), SECONDS) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        data = b""
        while chunk := connection.recv(4096):
            data += chunk
    return data.decode().partition("\r\n\r\n")[2]


def await_listening(docker: Docker, name: str) -> None:
    docker("exec", name, "sh", "-c", "until netstat -ltn | grep -q ':80 '; do sleep 0.05; done")


def test_none(docker: Docker) -> None:
    assert docker.run("--network=none", IMAGE, *INTERFACES).stdout == "lo\n"


def test_host(start_docker: StartDocker) -> None:
    docker = start_docker()  # it keeps the network mounted
    assert "docker0" in docker.run("--network=host", IMAGE, *INTERFACES).stdout.split()


@pytest.mark.core
def test_bridge_and_published_port(docker: Docker, name: str) -> None:
    with docker.removed(name):
        docker.detached(name, "--network=bridge", "--publish", "127.0.0.1::80", IMAGE, "sh", "-c", SERVER)
        await_listening(docker, name)
        assert http(docker.inspect(name, "{{.NetworkSettings.IPAddress}}"), 80) == "hello\n"
        assert http("127.0.0.1", int(docker("port", name, "80").splitlines()[0].rpartition(":")[2])) == "hello\n"
        joined = docker.run(f"--network=container:{name}", IMAGE, "wget", "-q", "-O", "-", "http://127.0.0.1/")
        assert joined.stdout == "hello\n"
        files = docker("exec", name, "cat", "/etc/hosts", "/etc/hostname")
        assert docker.inspect(name, "{{.Config.Hostname}}") in files


def test_network_of_ones_own_is_joined_and_left_while_the_container_runs(docker: Docker, name: str) -> None:
    docker("network", "create", name)
    with docker.removed(name):
        docker.sleeper(name, "--network=bridge")
        docker("network", "connect", name, name)
        assert docker("exec", name, *INTERFACES).split() == ["eth0", "eth1", "lo"]
        docker("network", "disconnect", name, name)
        assert docker("exec", name, *INTERFACES).split() == ["eth0", "lo"]
    docker("network", "rm", name)
