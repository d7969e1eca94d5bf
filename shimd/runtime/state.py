"""state.json: what must be known about a container to operate on it later, by whichever program comes next.

One format for the daemon and ``shimrun``: runc's keys where there are such, ours beside them. The file is written
before init is released for the last time, so a creator that is killed leaves a container that can be deleted, and
always by rename, so a reader never sees half of it. What is made before there is a process to write down stands in
``making.json``. The configuration is kept as a copy, ``config.json``, since the bundle may change.
"""

from __future__ import annotations

import os
import time
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock

from shimd import jsontext
from shimd.contexts import suppress
from shimd.errors import AlreadyExists, InvalidArgument, NotFound, RuntimeFailure
from shimd.records import Record
from shimd.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = 1
STATE_FILE = "state.json"
MAKING_FILE = "making.json"
CONFIG_FILE = "config.json"
START_SOCKET = "start.sock"
EXIT_FILE = "exit.json"
NOTIFY_DIRECTORY = "notify"
NOTIFY_SOCKET = "notify.sock"
POD_DIRECTORY = "pod"  # of a sandbox
EXEC_EXIT_SUFFIX = ".exit.json"

# By which a container says whose pod it belongs to.
SANDBOX_ANNOTATION = "io.kubernetes.cri.sandbox-id"

_MAX_STATE = 4 << 20
_ID_LENGTH = 200  # NAME_MAX less the longest suffix that is put to an id
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


class ContainerState(Record):
    """The content of state.json.

    ``created`` is RFC 3339 in UTC with nanoseconds; ``start_time`` field 22 of /proc/<pid>/stat, which together with
    the pid names a process for ever; ``cgroup`` what ``cgroups.from_state`` reads; ``rootfs_mounts`` the places under
    <bundle>/rootfs, in order, where file systems of the create request are mounted ("" is the rootfs itself);
    ``namespace_paths`` by runc's type names; ``own_pid_namespace`` whether the death of init ends all other
    processes; ``service`` what the maker wants to know again, strings and numbers; ``keyring`` the name of
    the session keyring, a secret among containers, "" for none; ``intel_rdt_*`` what ``runtime.rdt`` has in a Group.
    """

    id: str
    namespace: str
    bundle: str
    rootfs: str
    created: str
    pid: int
    start_time: int
    owner: int
    config_hash: str
    annotations: Mapping[str, str]
    cgroup: Mapping[str, Any]
    cgroup_paths: Mapping[str, str]
    namespace_paths: Mapping[str, str]
    own_pid_namespace: bool
    rootfs_mounts: tuple[str, ...]
    terminal: bool
    stdio: tuple[str, str, str]
    changed_resources: Mapping[str, Any]
    service: Mapping[str, Any] = {}
    keyring: str = ""
    intel_rdt_path: str = ""
    intel_rdt_mon_path: str = ""
    intel_rdt_owned: bool = False


class Making(Record):
    """What a creator makes outside of the state directory; fields as in ContainerState. ``has_cgroup`` is told by
    the name of the file: until the cgroup is made, one of that name is somebody else's.
    """

    bundle: str
    cgroup: Mapping[str, Any]
    rootfs_mounts: tuple[str, ...]
    has_cgroup: bool = False


_KEYS = {"pid": "init_process_pid", "start_time": "init_process_start"}


def dumps(state: ContainerState) -> bytes:
    """The bytes of state.json."""
    document: dict[str, Any] = {"schema": SCHEMA}
    for field, value in zip(state._fields, state, strict=True):
        document[_KEYS.get(field, field)] = value
    return jsontext.dumps(document).encode()


def loads(data: bytes) -> ContainerState:
    """Read state.json; raises ValueError for anything that dumps() has not written."""
    document = jsontext.loads(data.decode())
    if not isinstance(document, dict):
        raise ValueError("not an object")
    if document.get("schema") != SCHEMA:
        raise ValueError(f"schema {document.get('schema')!r} is not {SCHEMA}")
    values = {}
    for field in ContainerState._fields:
        key = _KEYS.get(field, field)
        if key not in document:
            raise ValueError(f"{key} is missing")
        values[field] = _checked(key, document[key], _TYPES[field])
    values["rootfs_mounts"] = tuple(values["rootfs_mounts"])
    values["stdio"] = tuple(values["stdio"])
    if len(values["stdio"]) != 3:
        raise ValueError("stdio has not three paths")
    return ContainerState(**values)


_TYPES: dict[str, type] = {
    "id": str, "namespace": str, "bundle": str, "rootfs": str, "created": str, "pid": int, "start_time": int,
    "owner": int, "config_hash": str, "annotations": dict, "cgroup": dict, "cgroup_paths": dict,
    "namespace_paths": dict, "own_pid_namespace": bool, "rootfs_mounts": list, "terminal": bool, "stdio": list,
    "changed_resources": dict, "service": dict, "keyring": str,
    "intel_rdt_path": str, "intel_rdt_mon_path": str, "intel_rdt_owned": bool,
}  # fmt: skip


def _checked(key: str, value: Any, expected: type) -> Any:
    if type(value) is not expected:
        raise ValueError(f"{key} is not {expected.__name__}")
    return value


def is_id(value: str) -> bool:
    """Whether it is a plain file name of the usual characters; see ``check_id``."""
    return value not in ("", ".", "..") and len(value) <= _ID_LENGTH and _ID_CHARACTERS.issuperset(value)


def check_id(kind: str, value: str) -> None:
    """Refuse an id that is no plain file name; ``kind`` is "container" or "exec"."""
    if not value or value in (".", "..") or not _ID_CHARACTERS.issuperset(value):
        raise InvalidArgument(f"invalid {kind} ID format: {value[:64]!r}")
    if len(value) > _ID_LENGTH:
        raise InvalidArgument(f"invalid {kind} ID format: longer than {_ID_LENGTH} characters")


def timestamp(nanoseconds: int | None = None) -> str:
    """RFC 3339 in UTC with nanoseconds, of now or of ``nanoseconds`` since the epoch."""
    seconds, fraction = divmod(time.time_ns() if nanoseconds is None else nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z"


class StateDir:
    """The directory of one container, held by descriptor.

    Files are reached relative to the descriptor: shorter than a path walk, and unix socket addresses stay below
    their 108 bytes whatever the ids are (``/proc/self/fd/<n>/start.sock``).
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def reserve(cls, root: str, namespace: str, container_id: str) -> StateDir:
        """Make the directory; that it did not exist is what makes the caller its owner. Raises AlreadyExists."""
        parent = os.path.join(root, namespace) if namespace else root
        path = os.path.join(parent, container_id)
        try:
            os.mkdir(path, 0o711)
        except FileNotFoundError:
            os.makedirs(parent, 0o700, exist_ok=True)
            return cls.reserve(root, namespace, container_id)
        except FileExistsError:
            raise AlreadyExists(f"container with given ID already exists: {container_id}") from None
        directory = cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW))
        flock(directory.fd, LOCK_EX)
        return directory

    def finished(self) -> None:
        """The container is made. Until then a lock tells it from what a creator that died has left."""
        flock(self.fd, LOCK_UN)

    def is_being_made(self) -> bool:
        try:
            flock(self.fd, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            return True
        self.finished()
        return False

    @classmethod
    def open(cls, root: str, namespace: str, container_id: str) -> StateDir:
        """Open an existing directory; raises NotFound."""
        path = os.path.join(root, namespace, container_id) if namespace else os.path.join(root, container_id)
        try:
            return cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"container does not exist: {container_id}") from None

    def close(self) -> None:
        """Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> StateDir:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, name: str, data: bytes) -> None:
        """Write a file of mode 0600, by rename."""
        self.prepare(name, data)
        self.commit(name)

    def prepare(self, name: str, data: bytes) -> None:
        """The first half of ``write``: all that takes time. Nobody sees the file before ``commit``."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(_temporary(name), flags, 0o600, dir_fd=self.fd)
        try:
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)

    def unprepare(self, name: str) -> None:
        self.unlink(_temporary(name))

    def commit(self, name: str) -> None:
        os.rename(_temporary(name), name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def read(self, name: str, limit: int) -> bytes:
        """Read a file of at most ``limit`` bytes; FileNotFoundError passes."""
        return _read_fd(os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.fd), name, limit)

    def make_notify(self) -> str:
        """The directory for NOTIFY_SOCKET, which the container gets to see; its path."""
        os.mkdir(NOTIFY_DIRECTORY, 0o755, dir_fd=self.fd)
        return os.path.join(self.path, NOTIFY_DIRECTORY)

    def exists(self, name: str) -> bool:
        return os.access(name, os.F_OK, dir_fd=self.fd, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        """Remove a file that may be missing."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def save(self, state: ContainerState) -> None:
        self.write(STATE_FILE, dumps(state))

    def load(self) -> ContainerState:
        """Raises NotFound without a state file (a creator died early), RuntimeFailure when it is damaged."""
        return self._load(STATE_FILE)

    def begin(self, making: Making) -> None:
        """Before any of it is made; ``commit(MAKING_FILE)`` says that the cgroup is."""
        self.prepare(MAKING_FILE, jsontext.dumps(making._asdict()).encode())

    def load_making(self) -> Making | None:
        """None when nothing was begun, or nothing that can be read."""
        has_cgroup = self.exists(MAKING_FILE)
        try:
            data = self.read(MAKING_FILE if has_cgroup else _temporary(MAKING_FILE), _MAX_STATE)
            document = jsontext.loads(data.decode())
            bundle, cgroup, mounts = (_checked(key, document[key], _TYPES[key]) for key in Making._fields[:3])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return Making(bundle, cgroup, tuple(mounts), has_cgroup)

    def load_prepared(self) -> ContainerState:
        """What a creator that died had made; raises as ``load``."""
        return self._load(_temporary(STATE_FILE))

    def _load(self, name: str) -> ContainerState:
        try:
            return loads(self.read(name, _MAX_STATE))
        except FileNotFoundError:
            raise NotFound(f"container does not exist: {os.path.basename(self.path)}") from None
        except ValueError as error:
            raise RuntimeFailure(f"read {self.path}/{name}: {error}") from error

    def remove(self) -> None:
        """Remove the directory with its files; what is already gone is fine."""
        # The keeper may write one more exit file between the listing and rmdir(2); it is removed by the next turn.
        for _ in range(5):
            for name in os.listdir(self.fd) if self.fd >= 0 else ():
                if name == NOTIFY_DIRECTORY:
                    self._remove_notify()
                elif name == POD_DIRECTORY:
                    from shimd.runtime import pod

                    pod.remove(self.path)
                else:
                    self.unlink(name)
            try:
                os.rmdir(self.path)
            except FileNotFoundError:
                return
            except OSError as error:
                last = error
            else:
                return
        raise RuntimeFailure(f"remove {self.path}: {last.strerror}") from last

    def _remove_notify(self) -> None:
        """By descriptor: the container could see what is in it, yet not change anything."""
        self.unlink(f"{NOTIFY_DIRECTORY}/{NOTIFY_SOCKET}")
        with suppress(FileNotFoundError):
            os.rmdir(NOTIFY_DIRECTORY, dir_fd=self.fd)


def _temporary(name: str) -> str:
    return f".{name}.new"


def read_file(path: str, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes; a FIFO in its place must not block."""
    return _read_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), path, limit)


def _read_fd(fd: int, name: str, limit: int) -> bytes:
    """Read and close ``fd``; a regular file takes two read(2)."""
    try:
        chunks = []
        size = 0
        while chunk := os.read(fd, 64 << 10):
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise InvalidArgument(f"{name}: larger than {limit} bytes")
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    finally:
        os.close(fd)
