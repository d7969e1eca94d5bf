"""A machine with cgroup v2 alone for a test: a private mount of the unified hierarchy where the machine itself is
v1 or hybrid.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from shimd.cgroups.manager import CgroupManager, manager
from shimd.host.facts import HostFacts, probe
from shimd.linux import mount
from shimd.linux.process import CLONE_NEWNS
from shimd.oci.model import Resources
from tests.kernel.cgroup_member import reaper
from tests.kernel.child import run_in_child
from tests.support.requires import lack
from tests.support.session import TAG

TOP = f"/{TAG}"
ROOT = "/sys/fs/cgroup"
MEBIBYTE = 1 << 20


class World:
    """A machine with cgroup v2 alone, and managers below /TAG whose processes and cgroups end with the test."""

    def __init__(self) -> None:
        self.host: HostFacts = probe()
        assert self.host.cgroup_mode == "v2"
        self._made: list[CgroupManager] = []

    def manager(self, name: str = "a") -> CgroupManager:
        self._made.append(manager(self.host, cgroups_path=f"{TOP}/{name}", container_id=name))
        return self._made[-1]

    def create(self, name: str = "a", **resources: object) -> CgroupManager:
        made = self.manager(name)
        made.create(Resources(**resources))  # type: ignore[arg-type]  # checked by the model's own tests
        return made

    def close(self) -> None:
        for item in self._made:
            item.close()
            item.kill()
            item.destroy()
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(ROOT + TOP)


@contextlib.contextmanager
def _world() -> Iterator[World]:
    if lack("cgroup-mode:v2"):
        mount.umount2(ROOT, mount.MNT_DETACH)
        mount.mount("cgroup2", ROOT, "cgroup2", 0)
    with reaper():
        world = World()
        try:
            yield world
        finally:
            world.close()


def on_v2(test: Callable[..., None]) -> Callable[..., None]:
    """Run the test in a child with mounts of its own, where ``world`` is its first argument."""

    def run(*args: object, **kwargs: object) -> None:
        def body() -> None:
            with _world() as world:
                test(world, *args, **kwargs)

        run_in_child(body, CLONE_NEWNS)

    functools.update_wrapper(run, test)
    del run.__wrapped__  # type: ignore[attr-defined]  # pytest would ask for a fixture named world
    return run


def text(cgroup: CgroupManager, file: str) -> str:
    return Path(cgroup.paths[""], file).read_text().strip()
