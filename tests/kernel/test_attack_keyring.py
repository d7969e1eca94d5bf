"""Session keyrings: tickets and tokens of one container must not be in reach of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shimd.host.facts import probe
from shimd.runtime.direct import DirectLauncher
from shimd.runtime.model import Container
from tests.kernel.attack import sleeper, small_rootfs
from tests.kernel.runtime_rig import Rig
from tests.support.keyrings import squatter


@pytest.fixture
def rig(place: Path, container_id: str) -> Rig:
    small_rootfs(place / "rootfs")
    return Rig(probe(), DirectLauncher(), place, container_id)


def open_sleeper() -> dict[str, Any]:
    spec = sleeper()
    spec["linux"]["maskedPaths"] = []
    return spec


def session(rig: Rig, container: Container, name: str) -> dict[str, str]:
    """The session keyrings that a process inside can see, name to serial number: its own, and those that other
    runtimes on this machine have made.
    """
    _, text = rig.output_of(container, "cat", "/proc/keys", name=name)
    lines = [line.split() for line in text.splitlines()]
    return {words[8].rstrip(":"): words[0] for words in lines if words[7] == "keyring" and words[8].startswith("_ses.")}


def test_a_keyring_cannot_be_waiting_for_its_container(rig: Rig) -> None:
    with squatter(f"_ses.{rig.id}") as squatted:
        container = rig.create(open_sleeper(), gate=False)
        own = session(rig, container, "x")[container.state.keyring]
        assert own not in {f"{serial:08x}" for serial in squatted}, "it has joined the other one"
        rig.end(container)


def test_in_a_user_namespace_of_its_own_it_has_the_name_that_runc_gives_it(rig: Rig) -> None:
    """Where nobody from outside can make it, or find it."""
    spec = open_sleeper()
    spec["linux"]["namespaces"].append({"type": "user"})
    ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec["linux"] |= {"uidMappings": ids, "gidMappings": ids}
    with squatter(f"_ses.{rig.id}") as squatted:
        container = rig.create(spec, gate=False)
        assert container.state.keyring == f"_ses.{rig.id}"
        seen, again = session(rig, container, "x"), session(rig, container, "y")
        rig.end(container)
    assert seen[f"_ses.{rig.id}"] == again[f"_ses.{rig.id}"]
    assert seen[f"_ses.{rig.id}"] not in {f"{serial:08x}" for serial in squatted}


def test_an_exec_has_the_keyring_of_the_container_and_nobody_else(rig: Rig, container_id: str) -> None:
    """Not even by its name in a listing."""
    other = Rig(probe(), rig.launcher, rig.place, f"{container_id}-other")
    first, second = rig.create(open_sleeper(), gate=False), other.create(open_sleeper(), gate=False)
    seen, again, by_other = session(rig, first, "x"), session(rig, first, "y"), session(other, second, "x")
    name, name_of_other = first.state.keyring, second.state.keyring
    rig.end(first)
    other.end(second)
    assert seen[name] == again[name]
    assert name_of_other not in seen
    assert name_of_other in by_other
    assert name not in by_other


def test_without_a_keyring_of_its_own(rig: Rig) -> None:
    container = rig.create(open_sleeper(), gate=False, no_new_keyring=True)
    assert container.state.keyring == ""
    session(rig, container, "x")
    rig.end(container)
