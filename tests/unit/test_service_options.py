from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as Packed

from shimd.api.containerd import runc_options_pb2 as runc
from shimd.api.containerd import runtime_options_pb2 as generic
from shimd.errors import InvalidArgument, Unimplemented
from shimd.service.options import Options, create_options, read_options

# What `containerd config default` of 1.6 and 1.7 prints for runc.
DEFAULT_SECTION = """
BinaryName = ""
CriuImagePath = ""
CriuPath = ""
CriuWorkPath = ""
IoGid = 0
IoUid = 0
NoNewKeyring = false
NoPivotRoot = false
Root = ""
ShimCgroup = ""
SystemdCgroup = false
"""


def packed(message: Any) -> Packed:
    return Packed(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def body(text: str, **fields: str) -> Packed:
    return packed(generic.Options(config_body=text.encode(), **fields))


def test_none() -> None:
    assert read_options(Packed()) == Options()


@pytest.mark.parametrize("prefix", ["", "types.containerd.io/", "type.googleapis.com/"])
def test_those_of_runc(prefix: str) -> None:
    options = packed(runc.Options(no_pivot_root=True, no_new_keyring=True, io_uid=1000, io_gid=2000))
    options.type_url = prefix + options.type_url
    assert read_options(options) == Options(no_pivot_root=True, no_new_keyring=True, io_uid=1000, io_gid=2000)


def test_what_has_no_meaning_here_is_taken() -> None:
    """Docker's own, among others."""
    options = runc.Options(
        root="/var/run/docker/runtime-runc",
        binary_name="runc",
        shim_cgroup="/x",
        criu_image_path="/i",
        criu_work_path="/w",
    )
    assert read_options(packed(options)) == Options()


@pytest.mark.parametrize("options", [packed(runc.Options(systemd_cgroup=True)), body("SystemdCgroup = true")])
def test_systemd_cgroup(options: Packed) -> None:
    assert read_options(options) == Options(systemd_cgroup=True)
    assert create_options(read_options(options), gate=True).systemd_cgroup is True


def test_without_systemd_cgroup_the_path_decides() -> None:
    assert create_options(Options(), gate=True).systemd_cgroup is None


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", Options()),
        (DEFAULT_SECTION, Options()),
        ("NoPivotRoot = true\nIoUid = 7", Options(no_pivot_root=True, io_uid=7)),
        ("no_new_keyring = true\nio_gid = 4294967295", Options(no_new_keyring=True, io_gid=4294967295)),
        ('TypeUrl = "containerd.runc.v1.Options"\nConfigPath = ""\nRoot = "/run/x"', Options()),
    ],
)
def test_generic(text: str, options: Options) -> None:
    assert read_options(body(text)) == options
    assert read_options(body(text, type_url="containerd.runc.v1.Options")) == options


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (Packed(type_url="io.containerd.runsc.v1.options"), InvalidArgument, "runsc"),
        (Packed(type_url="containerd.runc.v1.Options", value=b"\xff"), InvalidArgument, "malformed"),
        (Packed(type_url="runtimeoptions.v1.Options", value=b"\xff"), InvalidArgument, "malformed"),
        (body("", type_url="io.containerd.runsc.v1.options"), InvalidArgument, "runsc"),
        (body("", config_path="/etc/x.toml"), Unimplemented, "ConfigPath"),
        (body("NoPivotRoot"), InvalidArgument, "no TOML"),
        (packed(generic.Options(config_body=b"\xff")), InvalidArgument, "no TOML"),
        (body("NoPivotRot = true"), InvalidArgument, "option NoPivotRot is unknown"),
        (body("NoPivotRoot = 1"), InvalidArgument, "option NoPivotRoot: 1 is not of type bool"),
        (body('NoPivotRoot = "yes"'), InvalidArgument, "NoPivotRoot"),
        (body("IoUid = true"), InvalidArgument, "IoUid"),
        (body("IoUid = -1"), InvalidArgument, "IoUid"),
        (body("IoUid = 4294967296"), InvalidArgument, "IoUid"),
        (body("Root = 1"), InvalidArgument, "Root"),
        (body("[Root]\na = 1"), InvalidArgument, "Root"),
    ],
)
def test_what_is_refused(options: Packed, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        read_options(options)


def test_for_the_runtime() -> None:
    made = create_options(Options(no_pivot_root=True, no_new_keyring=True), gate=False)
    assert (made.no_pivot, made.no_new_keyring, made.gate) == (True, True, False)
