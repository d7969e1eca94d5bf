"""The options of Create: runc's, so that configurations written for runc's shim keep working.

    no_pivot_root, no_new_keyring     as for runc
    io_uid, io_gid                    own the pipes of standard streams
    systemd_cgroup                    as for runc; without it, too, for a cgroupsPath that only systemd can be meant by
                                      (``system.slice:docker:ID``: Docker sends that, and no options to other runtimes)
    root, binary_name, shim_cgroup    without meaning here: state is the daemon's, there is no runtime program, and no
                                      shim for each container
    criu_*, task_api_*                without meaning as long as checkpoints are refused; out of use

containerd's CRI plugin (and Docker) know how to make these for runc's runtime type only. For all other types they
send the generic ``runtimeoptions.v1.Options``, whose body is the section of the configuration file as TOML:

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.shimd.options]
      NoPivotRoot = true
"""

from __future__ import annotations

import tomllib
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from shimd.api.containerd import runc_options_pb2, runtime_options_pb2
from shimd.errors import InvalidArgument, Unimplemented
from shimd.records import Record
from shimd.runtime.model import CreateOptions

_RUNC = runc_options_pb2.Options.DESCRIPTOR
_GENERIC = runtime_options_pb2.Options.DESCRIPTOR

_TYPES = {FieldDescriptor.TYPE_BOOL: bool, FieldDescriptor.TYPE_STRING: str, FieldDescriptor.TYPE_UINT32: int}
_OUT_OF_USE = "criupath"  # but containerd 1.6 writes it into its default configuration
_MAX_UINT32 = 0xFFFFFFFF

M = TypeVar("M", bound=Message)


class Options(Record):
    """What of them concerns us."""

    no_pivot_root: bool = False
    no_new_keyring: bool = False
    systemd_cgroup: bool = False
    io_uid: int = 0
    io_gid: int = 0


def read_options(packed: Any) -> Options:
    """Raises InvalidArgument for what is not understood, Unimplemented for what must not be ignored."""
    name = packed.type_url.rpartition("/")[2]
    if not name:
        return Options()
    if name == _RUNC.full_name:
        options = _parse(runc_options_pb2.Options, packed.value)
    elif name == _GENERIC.full_name:
        options = _read_generic(_parse(runtime_options_pb2.Options, packed.value))
    else:
        raise InvalidArgument(f"options of type {name!r} are not understood")
    return Options(
        options.no_pivot_root, options.no_new_keyring, options.systemd_cgroup, options.io_uid, options.io_gid
    )


def create_options(options: Options, *, gate: bool) -> CreateOptions:
    return CreateOptions(
        gate=gate,
        no_pivot=options.no_pivot_root,
        no_new_keyring=options.no_new_keyring,
        systemd_cgroup=options.systemd_cgroup or None,
    )


def _parse(cls: type[M], data: bytes) -> M:
    try:
        return cls.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"options are malformed: {error}") from error


def _read_generic(generic: runtime_options_pb2.Options) -> runc_options_pb2.Options:
    if generic.type_url not in ("", _RUNC.full_name):
        raise InvalidArgument(f"options of type {generic.type_url!r} are not understood")
    if generic.config_path:
        raise Unimplemented("option ConfigPath: a file of options is not supported; put them beside it")
    try:
        table = tomllib.loads(generic.config_body.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"options are no TOML: {error}") from error
    options = runc_options_pb2.Options()
    ignored = {_OUT_OF_USE, *(_key(field.name) for field in _GENERIC.fields)}
    fields = {_key(field.name): field for field in _RUNC.fields}
    for name, value in table.items():
        if _key(name) not in ignored:
            _set(options, fields.get(_key(name)), name, value)
    return options


def _key(name: str) -> str:
    """Go's TOML reader takes NoPivotRoot, no_pivot_root and nopivotroot for the same."""
    return name.replace("_", "").lower()


def _set(options: runc_options_pb2.Options, field: FieldDescriptor | None, name: str, value: object) -> None:
    if field is None:
        raise InvalidArgument(f"option {name} is unknown")
    wanted = _TYPES[field.type]
    if type(value) is not wanted or (isinstance(value, int) and not 0 <= value <= _MAX_UINT32):
        raise InvalidArgument(f"option {name}: {value!r} is not of type {wanted.__name__}")
    setattr(options, field.name, value)
