"""Mounts that show other owners than the file system has: who owns a file inside, with and without a user namespace."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shimd.errors import InvalidArgument, InvalidSpec, RuntimeFailure
from shimd.host.facts import probe
from shimd.linux.process import CLONE_NEWUSER
from shimd.runtime.direct import DirectLauncher
from tests.kernel.attack import shell, small_rootfs
from tests.kernel.runtime_rig import Rig, rig_with
from tests.support.requires import requires

pytestmark = requires("kernel:6.3", "userns")  # the version that maps ids on tmpfs

RANGE = [{"containerID": 0, "hostID": 100000, "size": 65536}]
OVERFLOW = 65534
FAR, NEAR, DEEP = 100, 0, 7  # owners of the files


def _rootfs(place: Path) -> None:
    """Of the users of RANGE, so that root of a user namespace can make mount points."""
    subprocess.run(["chown", "-R", "100000:100000", small_rootfs(place / "rootfs")], check=True)


@pytest.fixture(params=["direct", "keeper"])
def rig(request: pytest.FixtureRequest, place: Path, container_id: str) -> Iterator[Rig]:
    _rootfs(place)
    with rig_with(request.param, place, container_id) as made:
        yield made


@pytest.fixture
def direct(place: Path, container_id: str) -> Rig:
    _rootfs(place)
    return Rig(probe(), DirectLauncher(), place, container_id)


@pytest.fixture
def source(place: Path) -> Iterator[Path]:
    """A tmpfs where only root of the host comes to, with another one mounted in it."""
    folder = place / "private/source"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    for where in (folder, folder / "below"):
        where.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "source", where], check=True)
    for name, owner in (("far", FAR), ("near", NEAR), ("below/deep", DEEP)):
        (folder / name).touch()
        os.chown(folder / name, owner, owner + 1)
    yield folder
    subprocess.run(["umount", folder / "below", folder], check=True)


def mapped(source: object, *options: str, to: str = "/data", **maps: Any) -> dict[str, Any]:
    return {"destination": to, "type": "bind", "source": str(source), "options": list(options or ("rbind",)), **maps}


def both(maps: list[dict[str, int]]) -> dict[str, Any]:
    return {"uidMappings": maps, "gidMappings": maps}


def owners(*mounts: dict[str, Any], script: str = "", userns: bool = False) -> dict[str, Any]:
    spec = shell(script or "cd /data; stat -c '%u %g' far near below/deep")
    spec["mounts"] += mounts
    if userns:
        spec["linux"]["namespaces"].append({"type": "user"})
        spec["linux"].update(both(RANGE))
    return spec


def test_maps_of_the_mount(rig: Rig, source: Path) -> None:
    code, text = rig.run(owners(mapped(source, **both(RANGE))))
    assert (code, text) == (0, f"{100000 + FAR} {100001 + FAR}\n100000 100001\n{DEEP} {DEEP + 1}\n")


def test_maps_of_the_mount_in_a_user_namespace(rig: Rig, source: Path) -> None:
    """What is shifted there and back looks as on the host; what is not, belongs to nobody."""
    code, text = rig.run(owners(mapped(source, **both(RANGE)), userns=True))
    assert (code, text) == (0, f"{FAR} {FAR + 1}\n0 1\n{OVERFLOW} {OVERFLOW}\n")


@pytest.mark.parametrize(("option", "deep"), [("idmap", f"{OVERFLOW} {OVERFLOW}"), ("ridmap", f"{DEEP} {DEEP + 1}")])
def test_maps_of_the_container(rig: Rig, source: Path, option: str, deep: str) -> None:
    code, text = rig.run(owners(mapped(source, "rbind", option), userns=True))
    assert (code, text) == (0, f"{FAR} {FAR + 1}\n0 1\n{deep}\n")


def test_every_mount_of_the_tree_without_a_user_namespace(direct: Rig, source: Path) -> None:
    code, text = direct.run(owners(mapped(source, "rbind", "ridmap", **both(RANGE))))
    assert (code, text.splitlines()[-1]) == (0, f"{100000 + DEEP} {100001 + DEEP}")


def test_maps_of_a_joined_user_namespace(direct: Rig, source: Path) -> None:
    holder = direct.create(owners(script="exec sleep 1000", userns=True), gate=False)
    other = Rig(direct.runtime.env.host, direct.launcher, direct.place, f"{direct.id}-2")
    spec = owners(mapped(source, "rbind", "ridmap"))
    spec["linux"]["namespaces"].append({"type": "user", "path": f"/proc/{holder.pid}/ns/user"})
    assert other.run(spec) == (0, f"{FAR} {FAR + 1}\n0 1\n{DEEP} {DEEP + 1}\n")
    direct.end(holder)


def test_different_maps_of_one_source(direct: Rig, source: Path) -> None:
    pieces = [{"containerID": 0, "hostID": 5000, "size": 1}, {"containerID": 100, "hostID": 6000, "size": 10}]
    spec = owners(
        mapped(source, "bind", "ro", to="/one", uidMappings=pieces, gidMappings=RANGE),
        mapped(source, "bind", to="/two", **both(RANGE)),
        mapped(source, "bind", to="/three", **both(RANGE)),
        mapped(source, "bind", to="/plain"),
        script="stat -c '%u %g' /one/far /one/near /two/far /three/near /plain/far; touch /one/new || echo read-only",
    )
    _, text = direct.run(spec)
    assert text.splitlines() == [
        "6000 100101",
        "5000 100001",
        "100100 100101",
        "100000 100001",
        "100 101",
        "touch: /one/new: Read-only file system",
        "read-only",
    ]


def test_what_is_written_has_the_owner_of_the_file_system(direct: Rig, source: Path) -> None:
    source.chmod(0o777)
    spec = owners(mapped(source, **both(RANGE)), script="touch /data/new", userns=True)
    spec["process"]["user"] = {"uid": 5, "gid": 6}
    assert direct.run(spec) == (0, "")
    status = (source / "new").stat()
    assert (status.st_uid, status.st_gid) == (5, 6)


def test_an_owner_that_the_maps_do_not_have_writes_nothing(direct: Rig, source: Path) -> None:
    code, text = direct.run(owners(mapped(source, **both(RANGE)), script="touch /data/new"))
    assert code == 1
    assert "Value too large" in text
    assert not (source / "new").exists()


def test_relative_source_and_destination(direct: Rig, source: Path) -> None:
    spec = owners(mapped("../private/source", to="data", **both(RANGE)), userns=True)
    assert direct.run(spec)[1].splitlines()[:2] == [f"{FAR} {FAR + 1}", "0 1"]


@pytest.mark.parametrize("userns", [False, True])
def test_a_file_with_propagation(direct: Rig, source: Path, *, userns: bool) -> None:
    spec = owners(
        mapped(source / "far", "bind", "shared", **both(RANGE)),
        script="stat -c %u /data; grep ' /data ' /proc/self/mountinfo | grep -c -w shared:[0-9]*",
        userns=userns,
    )
    assert direct.run(spec) == (0, f"{FAR if userns else 100000 + FAR}\n1\n")


@pytest.mark.parametrize("ids", [{}, both(RANGE)])
@pytest.mark.parametrize("userns", [False, True])
def test_mounts_of_mounts_of_the_container(direct: Rig, source: Path, ids: dict[str, Any], *, userns: bool) -> None:
    """A source in the rootfs is what earlier mounts made of it, though only root of the host may come there."""
    rootfs = direct.place / "rootfs"
    (rootfs / "first").mkdir()
    (source / "again").mkdir()
    spec = owners(
        mapped(source, to="/first"),
        mapped(f"{rootfs}/first/below", to=f"{rootfs}/first/again"),
        mapped(f"{rootfs}/first", to=f"{rootfs}/data", **ids),
        script="cd /data; stat -c %u near; test -e below/deep && test -e again/deep && echo all",
        userns=userns,
    )
    inside = {(False, False): 0, (False, True): OVERFLOW, (True, False): 100000, (True, True): 0}[bool(ids), userns]
    assert direct.run(spec) == (0, f"{inside}\nall\n")


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("userns", [False, True])
def test_a_file_system_without_maps(rig: Rig, *, userns: bool) -> None:
    spec = owners(mapped("/proc/version", "bind", **both(RANGE)), userns=userns)
    what = "map the ids of mount source /proc/version" if userns else r"\(/mounts/\d+\): map the ids of /proc/version"
    with pytest.raises(RuntimeFailure, match=f"{what}.*: Invalid argument; the file system may not support"):
        rig.create(spec)
    assert not rig.state_dir().exists()


def test_a_mount_that_has_maps_already(direct: Rig, source: Path) -> None:
    rootfs = direct.place / "rootfs"
    again = mapped(f"{rootfs}/first", "bind", **both(RANGE))
    with pytest.raises(RuntimeFailure, match="map the ids of /first on /data: Operation not permitted"):
        direct.create(owners(mapped(source, "bind", to="/first", **both(RANGE)), again))


def test_a_path_that_is_no_user_namespace(direct: Rig, source: Path) -> None:
    spec = owners(mapped(source, "bind", "idmap"))
    spec["linux"]["namespaces"].append({"type": "user", "path": "/proc/self/ns/mnt"})
    with pytest.raises(InvalidArgument, match="it is a mnt namespace"):
        direct.create(spec)


def test_without_privileges(direct: Rig) -> None:
    rootless = Rig(direct.runtime.env.host._replace(euid=1000), direct.launcher, direct.place, direct.id)
    spec = owners(mapped("/tmp", "bind", "idmap"), userns=True)
    with pytest.raises(InvalidSpec, match="id-mapped mounts are not supported for rootless containers"):
        rootless.create(spec)


# ---- attacks ---------------------------------------------------------------------------------------------------------


def test_the_user_namespaces_of_maps_are_not_the_containers(direct: Rig, source: Path) -> None:
    """A descriptor of one would let root of the container become any id of its maps."""
    mounts = [mapped(source, "bind", to=f"/m{number}", **both(RANGE)) for number in range(20)]
    wide = [{"containerID": 0, "hostID": 0, "size": 4294967295}]
    script = "ls -l /proc/self/fd /proc/1/fd 2>/dev/null | grep -c user: ; readlink /proc/1/ns/user"
    _, text = direct.run(owners(*mounts, mapped(source, "bind", to="/w", **both(wide)), script=script))
    assert text == f"0\n{os.readlink('/proc/self/ns/user')}\n"


def test_maps_that_make_the_hosts_root_show_give_no_rights(direct: Rig, source: Path) -> None:
    """Root of a user namespace stays nobody to a mount whose owners are those of the host."""
    wide = [{"containerID": 0, "hostID": 0, "size": 4294967295}]
    os.chmod(source, 0o755)
    script = "stat -c %u /data/near; echo x >>/data/near || chown 0 /data/near || mknod /data/n c 1 3 || echo refused"
    _, text = direct.run(owners(mapped(source, "bind", **both(wide)), script=script, userns=True))
    assert (text.splitlines()[0], text.splitlines()[-1]) == (str(OVERFLOW), "refused")
    assert (source / "near").stat().st_size == 0


@pytest.mark.parametrize(
    "maps",
    [
        [{"containerID": 0, "hostID": 0, "size": 10}, {"containerID": 5, "hostID": 100, "size": 10}],
        [{"containerID": number, "hostID": number, "size": 1} for number in range(341)],
        [{"containerID": 5, "hostID": 4294967290, "size": 10}],
    ],
)
def test_maps_that_the_kernel_would_refuse(direct: Rig, source: Path, maps: list[dict[str, int]]) -> None:
    with pytest.raises(InvalidSpec, match=r"/mounts/7/uidMappings.*; /mounts/7/gidMappings"):
        direct.create(owners(mapped(source, "bind", **both(maps))))


def test_the_kernel_takes_as_many_maps_as_validation(direct: Rig, source: Path) -> None:
    maps = [{"containerID": number * 2, "hostID": 10000 + number * 3, "size": 1} for number in range(340)]
    assert direct.run(owners(mapped(source, "bind", **both(maps)), script="stat -c %u /data/far")) == (0, "10150\n")


def test_nothing_is_left_of_many_maps(direct: Rig, source: Path) -> None:
    mounts = [
        mapped(source, "bind", to=f"/m{number}", **both([{"containerID": 0, "hostID": number, "size": 500}]))
        for number in range(30)
    ]
    code, text = direct.run(owners(*mounts, script="stat -c %u /m29/far", userns=True))
    assert (code, text) == (0, f"{OVERFLOW}\n")


def test_a_plan_makes_each_namespace_once(direct: Rig, source: Path) -> None:
    one, other = both(RANGE), both([{"containerID": 0, "hostID": 7, "size": 3}])
    spec = owners(*(mapped(source, "bind", to=f"/m{n}", **(other if n == 3 else one)) for n in range(6)), userns=True)
    spec["mounts"].append(mapped(source, "bind", "idmap", to="/implied"))
    direct.bundle.mkdir()
    (direct.bundle / "config.json").write_text(json.dumps(spec))
    plan = direct.runtime.plan(direct.id, str(direct.bundle))
    assert [source.slot for source in plan.id_maps] == ["ids.0", "ids.1"]
    assert plan.clone & CLONE_NEWUSER
