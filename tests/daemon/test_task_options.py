"""The options of Create, as containerd's clients send them."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as Packed

from shimd.api.containerd import runc_options_pb2 as runc
from shimd.api.containerd import runtime_options_pb2 as generic
from tests.daemon.boxes import MakeBox, refused, shell
from tests.support.fifo import Fifos
from tests.support.specs import runc_default


def packed(message: runc.Options | generic.Options) -> Packed:
    return Packed(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


OWNER = shell("stat -L -c %u:%g /proc/self/fd/1 /proc/self/fd/2")


@pytest.mark.parametrize(
    "options",
    [
        packed(runc.Options(io_uid=1000, io_gid=2000)),
        packed(generic.Options(config_body=b"IoUid = 1000\nIoGid = 2000")),
    ],
)
def test_owner_of_pipes(box: MakeBox, place: Path, options: Packed) -> None:
    """Also of those of execs. As with runc, the user of the process gets them from who is named here."""
    b = box(*shell("stat -L -c %u:%g /proc/self/fd/1 /proc/self/fd/2; exec sleep 1000"))
    with Fifos(place / "init") as init, Fifos(place / "exec") as exec_:
        b.make(stdout=init.stdout, stderr=init.stderr, options=options)
        b.start()
        assert init.stdout_until(b"\n0:2000\n") == b"0:2000\n0:2000\n"
        b.exec("e", *OWNER, stdout=exec_.stdout, stderr=exec_.stderr)
        b.start("e")
        b.wait("e")
        b.delete("e")
        assert exec_.read_stdout() == b"0:2000\n0:2000\n"


def test_no_pivot_root_and_no_new_keyring(box: MakeBox) -> None:
    b = box(*shell("test -d /proc/self && exit 4"))
    b.make(options=packed(runc.Options(no_pivot_root=True, no_new_keyring=True)))
    b.start()
    assert b.wait() == 4


def test_systemd_cgroup_wants_a_path_that_names_a_unit(box: MakeBox) -> None:
    spec = runc_default("true")
    spec["linux"]["cgroupsPath"] = "/no/unit"
    b = box(spec=spec)
    with refused("INVALID_ARGUMENT", 'cgroupsPath: expected cgroupsPath to be of format "slice:prefix:name"'):
        b.make(options=packed(runc.Options(systemd_cgroup=True)))
    assert b.topics() == []


def test_what_others_need_is_taken(box: MakeBox) -> None:
    b = box("true")
    b.make(options=packed(runc.Options(root="/run/other", binary_name="/usr/sbin/runc", shim_cgroup="/shims")))
    b.start()
    assert b.wait() == 0
