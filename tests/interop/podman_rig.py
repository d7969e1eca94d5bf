"""Podman with a storage, a configuration and a cgroup parent of its own, as root or as an ordinary user."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.interop.dockers import IS_RUNC, SHIMRUN
from tests.lab.systemd_rig import user_session
from tests.support import leaks, session, wait
from tests.support.rootfs import busybox_rootfs

IMAGE = "localhost/busybox:latest"
PARENT = f"{session.TAG}-podman"
IS_SYSTEMD = os.environ.get("LAB_VM") == "systemd"

_DEPLOYED = Path(__file__).parents[2] / "deploy/podman/containers.conf"
_ENGINE = """\
[engine]
cgroup_manager = "{manager}"
events_logger = "file"
lock_type = "file"
"""
_CONTAINERS = """\
[containers]
log_driver = "k8s-file"
# Higher ones, as are the defaults, need CAP_SYS_RESOURCE.
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[network]
network_config_dir = "{folder}/networks"
"""
_CONTAINERFILE = f"""\
FROM {IMAGE}
RUN echo built by $(id -un) >/file
COPY containers.conf /copied
RUN test -s /copied && rm /copied
CMD cat /file
"""
_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run/storage"
[storage.options.overlay]
skip_mount_home = "true"
"""


class User(NamedTuple):
    """Who runs it. With an id of 0 that is root."""

    uid: int = 0
    name: str = "root"

    @property
    def prefix(self) -> list[str]:
        if self.uid == 0:
            return []
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]


ROOT = User()
USER = User(4711, "podman")

ACCOUNT = {
    "/etc/passwd": f"{USER.name}:x:{USER.uid}:{USER.uid}::{{folder}}:/bin/sh\n",
    "/etc/group": f"{USER.name}:x:{USER.uid}:\n",
    "/etc/subuid": f"{USER.name}:300000:65536\n",
    "/etc/subgid": f"{USER.name}:300000:65536\n",
}


@contextlib.contextmanager
def account(folder: Path) -> Iterator[None]:
    """USER's, in files that are mounted over the machine's: this test run's mounts are its own."""
    with contextlib.ExitStack() as stack:
        for index, (path, line) in enumerate(ACCOUNT.items()):
            file = folder / f"account-{index}"
            file.write_text(Path(path).read_text() + line.format(folder=folder))
            file.chmod(0o644)
            subprocess.run(["mount", "--bind", str(file), path], check=True)
            stack.callback(subprocess.run, ["umount", path], check=True)
        yield


def helpers() -> set[int]:
    """Monitors of containers, and what they start to clean up after them: they go on after podman has answered."""
    names = (" conmon", " podman", " runc", " shimrun")
    return {int(line.split()[0]) for line in leaks.marked_processes() if line.endswith(names)}


@contextlib.contextmanager
def _own_folders_of_unmounted_controllers() -> Iterator[None]:
    """Podman 4.3 takes each controller to be in a hierarchy of cgroup v1 that is mounted at its name. Where one is not,
    it makes folders and files in the tmpfs below /sys/fs/cgroup, which all programs share, and leaves them.
    """
    top = Path("/sys/fs/cgroup")
    rows = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()[1:]]
    mounted = {os.path.basename(point) for point in leaks.cgroup_mount_points()}
    names = [name for name, *_ in rows if name not in mounted] if "unified" in mounted or len(mounted) > 1 else []
    with contextlib.ExitStack() as stack:
        for name in names:
            if not (top / name).exists():
                (top / name).mkdir()
                stack.callback(os.rmdir, top / name)
            subprocess.run(["mount", "-t", "tmpfs", "podman", str(top / name)], check=True)
            stack.callback(subprocess.run, ["umount", "--lazy", str(top / name)], check=True)
        yield


@contextlib.contextmanager
def _parent_of_pods() -> Iterator[None]:
    """Podman makes it for the first pod of a machine, in all hierarchies, and leaves it: it is not a test's."""
    parents = [Path(point) / "libpod_parent" for point in leaks.cgroup_mount_points()]
    made = [path / "conmon" for path in parents if not path.exists()]
    for path in made:
        for folder in (path.parent, path):
            folder.mkdir()
            for file in ("cpuset.cpus", "cpuset.mems"):  # of cgroup v1: nobody can enter without
                if (folder / file).exists():
                    (folder / file).write_text((folder.parent / file).read_text())
    yield
    for path in made:
        with contextlib.suppress(OSError):  # what is in it the leak check reports
            path.rmdir()
            path.parent.rmdir()


class Podman:
    """Use as a context manager."""

    def __init__(self, folder: Path, user: User = ROOT) -> None:
        self.folder = folder
        self.user = user
        self._stack = contextlib.ExitStack()
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": f"{folder}/run",
            "CONTAINERS_CONF": f"{folder}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
            "TMPDIR": f"{folder}/tmp",
        }
        self.environment.pop("DBUS_SESSION_BUS_ADDRESS", None)
        for name in ("run", "tmp"):
            (folder / name).mkdir(mode=0o700)
        deployed = _DEPLOYED.read_text().replace("/usr/local/bin/shimrun", str(SHIMRUN))
        engine = _ENGINE.format(manager="systemd" if IS_SYSTEMD else "cgroupfs")
        (folder / "containers.conf").write_text(
            deployed.replace("[engine]\n", engine) + _CONTAINERS.format(folder=folder)
        )
        (folder / "storage.conf").write_text(_STORAGE.format(folder=folder))

    def __enter__(self) -> Podman:
        if self.user == ROOT:
            self._stack.enter_context(_own_folders_of_unmounted_controllers())
            self._stack.enter_context(_parent_of_pods())
        rootfs = busybox_rootfs(self.folder / "rootfs")
        with tarfile.open(self.folder / "busybox.tar", mode="w") as tar:
            tar.add(rootfs, arcname=".")
        shutil.rmtree(rootfs)
        for path in (self.folder, *self.folder.iterdir()):
            os.chown(path, self.user.uid, self.user.uid)
        if IS_SYSTEMD and self.user != ROOT:
            self._stack.enter_context(user_session(self.user.uid, self.folder / "run"))
        try:
            self("import", "busybox.tar", IMAGE)
            # What the first one makes and leaves is not a test's: the parent of the cgroups, a user's namespaces.
            assert self.run(IMAGE, "true").returncode == 0
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()

    def command(self, *arguments: str) -> list[str]:
        options = ["--runtime", "runc"] if IS_RUNC else []
        if self.user == ROOT:
            options += ["--tmpdir", f"{self.folder}/run/libpod"]
        return [*self.user.prefix, "podman", *options, *arguments]

    def attempt(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """``podman ARGUMENT...``, however it ends."""
        return subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.folder,
            timeout=90,
            check=False,
        )

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Its standard output without the last newline; fails with what it says."""
        done = self.attempt(*arguments, stdin=stdin)
        assert done.returncode == 0, f"podman {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.removesuffix("\n")

    def run_arguments(self, *arguments: str) -> list[str]:
        """Of ``podman run``."""
        words = " ".join(arguments)
        network = () if "--network" in words or "--pod" in words else ("--network", "none")
        parent = () if self.user != ROOT or IS_SYSTEMD or "--pod" in words else ("--cgroup-parent", f"/{PARENT}")
        return ["run", *parent, *network, *arguments]

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """``podman run --rm``, however it ends."""
        return self.attempt(*self.run_arguments("--rm", *arguments), stdin=stdin)

    def detached(self, name: str, *arguments: str) -> None:
        self(*self.run_arguments("--detach", "--name", name, *arguments))

    def inspect(self, name: str, template: str) -> str:
        return self("inspect", "--format", template, name)

    @contextlib.contextmanager
    def removed(self, *names: str) -> Iterator[None]:
        """Remove the containers in the end, whatever state they are in."""
        try:
            yield
        finally:
            self.attempt("rm", "--force", "--time", "0", "--volumes", *names)

    def await_log(self, name: str, text: str, *, times: int = 1) -> None:
        """Until the container has printed the text as often."""
        deadline = time.monotonic() + wait.SECONDS
        while (text_so_far := self("logs", name)).count(text) < times:
            assert time.monotonic() < deadline, f"not {times} times {text!r} from {name}: {text_so_far!r}"

    def settle(self) -> None:
        """Until the monitors of what has ended, and what they start, have ended too."""
        for pid in helpers():
            wait.process_gone(pid)

    def pod_flags(self) -> list[str]:
        """Podman 4.3 cannot remove a pod's cgroups where a controller is in no hierarchy of version 1."""
        if self.user != ROOT or IS_SYSTEMD:
            return []
        return ["--cgroup-parent", f"/{PARENT}", "--share-parent=false"]

    @contextlib.contextmanager
    def pod(self, name: str) -> Iterator[None]:
        """A pod whose infra container is of the local image."""
        infra = ("--infra-image", IMAGE, "--infra-command", "/bin/sleep 1000")
        self("pod", "create", "--name", name, "--network", "none", *self.pod_flags(), *infra)
        try:
            yield
        finally:
            self.attempt("pod", "stop", "--time", "0", name)
            self("pod", "rm", "--force", name)

    def build(self, name: str) -> None:
        """An image of a Containerfile, each of whose commands is a container."""
        (self.folder / "Containerfile").write_text(_CONTAINERFILE)
        self("build", "--isolation", "oci", "--network", "none", "--tag", f"localhost/{name}", ".")

    def close(self) -> None:
        """Remove all, and end the process that keeps a user's namespaces."""
        try:
            self.attempt("pod", "rm", "--all", "--force", "--time", "0")
            self.attempt("rm", "--all", "--force", "--time", "0", "--volumes")
        finally:
            self._end_pause_process()
            self.settle()
            self._remove_rest()
            self._stack.close()

    def _end_pause_process(self) -> None:
        for file in self.folder.glob("run/**/pause.pid"):
            pid = int(file.read_text())
            os.kill(pid, signal.SIGKILL)
            wait.process_gone(pid)

    def _remove_rest(self) -> None:
        with open("/proc/self/mountinfo") as file:
            points = [line.split()[4] for line in file]
        for point in reversed(points):
            if point.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", point], check=False)
        for point in leaks.cgroup_mount_points():
            for path in (f"{point}/{PARENT}/conmon", f"{point}/{PARENT}"):
                with contextlib.suppress(OSError):  # what is in it the leak check reports
                    os.rmdir(path)
