"""A user's containers as units of the user's systemd, which has a part of the cgroups to itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.systemd_rig import user_session
from tests.support.rootfs import busybox_rootfs

pytestmark = pytest.mark.lab("systemd")

UID = 4711  # the machine's ordinary user
TREE = Path("/sys/fs/cgroup/user.slice", f"lab-user-{UID}.service", "user.slice")
RUNTIME_DIR = Path("/run/user", str(UID))
SHIMRUN = Path(sys.executable).with_name("shimrun")


@pytest.fixture(scope="module")
def user_systemd() -> Iterator[None]:
    RUNTIME_DIR.mkdir(mode=0o700, parents=True)
    os.chown(RUNTIME_DIR, UID, UID)
    with user_session(UID, RUNTIME_DIR):
        yield
    shutil.rmtree(RUNTIME_DIR)


@pytest.fixture
def bundle(place: Path) -> Path:
    bundle = place / "bundle"
    bundle.mkdir()
    busybox_rootfs(bundle / "rootfs")
    subprocess.run(["chown", "-R", f"{UID}:{UID}", bundle], check=True)
    as_user(SHIMRUN, "spec", "--rootless", "--bundle", bundle)
    config = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["sleep", "1000"]}
    config["linux"]["resources"] = {"pids": {"limit": 20}}
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def as_user(*command: str | Path, **environment: str) -> str:
    """Its output. Nothing of ours but the user's own directory tells where systemd is."""
    become = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", "-u", "DBUS_SESSION_BUS_ADDRESS"]
    variables = [f"{name}={value}" for name, value in ({"XDG_RUNTIME_DIR": str(RUNTIME_DIR)} | environment).items()]
    done = subprocess.run([*become, *variables, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("environment", [{}, {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={RUNTIME_DIR}/bus"}])
@pytest.mark.usefixtures("user_systemd")
def test_a_whole_life(bundle: Path, container_id: str, environment: dict[str, str]) -> None:
    as_user(
        "sh",
        "-c",
        f'"$0" --systemd-cgroup create --bundle {bundle} {container_id} >/dev/null 2>&1',
        SHIMRUN,
        **environment,
    )
    cgroup = TREE / f"runc-{container_id}.scope"
    state = json.loads(as_user(SHIMRUN, "state", container_id))
    assert (cgroup / "cgroup.procs").read_text() == f"{state['pid']}\n"
    assert (cgroup / "pids.max").read_text() == "20\n"
    as_user(SHIMRUN, "start", container_id)
    # From a cgroup outside of the user's part, out of which a user cannot move a process.
    assert as_user(SHIMRUN, "exec", container_id, "cat", "/proc/self/cgroup", **environment) == "0::/\n"
    (cgroup / "sub").mkdir()
    sub = as_user(SHIMRUN, "exec", "--cgroup", "sub", container_id, "cat", "/proc/self/cgroup", **environment)
    assert sub == "0::/sub\n"
    as_user(SHIMRUN, "update", "--pids-limit", "30", container_id, **environment)
    assert (cgroup / "pids.max").read_text() == "30\n"
    as_user(SHIMRUN, "delete", "--force", container_id, **environment)
    assert not cgroup.exists()
