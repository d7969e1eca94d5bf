"""Reading and writing cgroup files, by descriptor and beneath one mount.

A cgroup directory is opened once with openat2(2) relative to the mount's root, so that no ``..``, symbolic link or
foreign mount can lead elsewhere; its files are then opened relative to that descriptor by a single name. Errors are
``OSError`` whose ``filename`` is the absolute path; :func:`write_error` turns one into the words that users know
from runc.
"""

from __future__ import annotations

import os
import time
from errno import EACCES, EBUSY, EEXIST, EINTR, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM, EROFS

from shimd.contexts import ExitStack, suppress
from shimd.errors import ResourceExhausted, RuntimeFailure
from shimd.linux import path as linux_path
from shimd.records import Record
from shimd.typed import Callable, Iterable, Sequence

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BENEATH = (
    linux_path.RESOLVE_BENEATH
    | linux_path.RESOLVE_NO_MAGICLINKS
    | linux_path.RESOLVE_NO_SYMLINKS
    | linux_path.RESOLVE_NO_XDEV
)
_READ_SIZE = 65536
NO_PERMISSION = (EACCES, EPERM, EROFS)
GONE = (ENOENT, ENODEV)  # ENODEV: the cgroup was removed while the file was open

# rmdir answers EBUSY until the last task has left its cgroup, which is a little after it was reaped. There is
# nothing to wait on in v1, so the pause doubles: 16 rounds from 0.05 ms are 3.3 s in the worst case.
_RMDIR_ROUNDS = 16
_RMDIR_FIRST_PAUSE = 0.00005

_MAX_STEPS = 1_000_000  # of a walk: a container can make cgroups as fast as they are visited


class Write(Record):
    """One value for one file. ``ignore``: errnos that are no failure. ``retry``: on EINVAL write again after the
    others (values that the kernel checks against each other, as the CPU quota and period).
    """

    file: str
    value: str
    ignore: tuple[int, ...] = ()
    retry: bool = False


class Directory:
    """An open cgroup directory; a context manager. ``path`` is absolute and only for messages."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def open(self, file: str, flags: int) -> int:
        """A descriptor of a file of this cgroup; ``file`` is one name without a slash."""
        if "/" in file:
            raise OSError(EINVAL, os.strerror(EINVAL), f"{self.path}/{file}")
        try:
            return os.open(file, flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.fd)
        except OSError as err:
            err.filename = f"{self.path}/{file}"
            raise

    def write(self, file: str, value: str) -> None:
        """One write(2): the kernel takes a cgroup file's value whole or not at all."""
        fd = self.open(file, os.O_WRONLY)
        try:
            write_fd(fd, value, f"{self.path}/{file}")
        finally:
            os.close(fd)

    def read(self, file: str) -> str:
        fd = self.open(file, os.O_RDONLY)
        try:
            return read_fd(fd, f"{self.path}/{file}")
        finally:
            os.close(fd)

    def read_or(self, file: str, default: str) -> str:
        """The text of the file, or ``default`` when this kernel or this moment has no such file."""
        try:
            return self.read(file)
        except OSError as err:
            # EOPNOTSUPP: pressure files of kernels started without psi=1
            if err.errno in GONE or err.errno == EOPNOTSUPP:
                return default
            raise

    def has(self, file: str) -> bool:
        return os.access(file, os.F_OK, dir_fd=self.fd)

    def apply(self, writes: Sequence[Write]) -> None:
        """Writes in order, then those again that were refused with EINVAL and may be. Raises RuntimeFailure."""
        late = self._write_each(writes, retry=True)
        self._write_each(late, retry=False)

    def _write_each(self, writes: Sequence[Write], *, retry: bool) -> list[Write]:
        """The writes to be tried again. A run of writes to one file, as of device rules, opens it once."""
        late = []
        with ExitStack() as stack:
            fd, opened = -1, ""
            for item in writes:
                try:
                    if item.file != opened:
                        fd, opened = self.open(item.file, os.O_WRONLY), item.file
                        stack.callback(os.close, fd)
                    write_fd(fd, item.value, f"{self.path}/{item.file}")
                except OSError as err:
                    if err.errno == EINVAL and item.retry and retry:
                        late.append(item)
                    elif err.errno not in item.ignore:
                        raise write_error(err, item.value) from err
        return late

    def children(self) -> list[str]:
        """Names of the sub-cgroups."""
        # kernfs counts sub-directories in the link count: most cgroups have none, and this spares reading 40 entries.
        if os.fstat(self.fd).st_nlink <= 2:
            return []
        with os.scandir(self.fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def open_beneath(mount: str, relative: str) -> int:
    """A descriptor of the directory ``relative`` (no leading slash, "" is the mount's root) of a cgroup mount."""
    if not relative:
        return os.open(mount, _DIRECTORY)
    root = os.open(mount, _DIRECTORY | os.O_PATH)
    try:
        return linux_path.openat2(root, relative, _DIRECTORY, resolve=_BENEATH)
    except OSError as err:
        err.filename = f"{mount}/{relative}"
        raise
    finally:
        os.close(root)


def open_file(mount: str, relative: str, flags: int) -> int:
    """A descriptor of a cgroup file ("a/b/cgroup.procs") without opening its directory. Raises OSError."""
    root = os.open(mount, _DIRECTORY | os.O_PATH)
    try:
        return linux_path.openat2(root, relative, flags, resolve=_BENEATH)
    except OSError as err:
        err.filename = f"{mount}/{relative}"
        raise
    finally:
        os.close(root)


def open_directory(mount: str, relative: str) -> Directory:
    """Raises OSError: ENOENT when there is no such cgroup."""
    return Directory(open_beneath(mount, relative), f"{mount}/{relative}" if relative else mount)


def open_if_there(mount: str, relative: str) -> Directory | None:
    try:
        return open_directory(mount, relative)
    except OSError as err:
        if err.errno in GONE:
            return None
        raise


def write_fd(fd: int, value: str, path: str) -> None:
    data = value.encode()
    while True:
        try:
            os.write(fd, data)
        except OSError as err:
            if err.errno == EINTR:
                continue
            err.filename = path
            raise
        return


def read_fd(fd: int, path: str) -> str:
    parts = []
    try:
        while part := os.read(fd, _READ_SIZE):
            parts.append(part)
    except OSError as err:
        err.filename = path
        raise
    return b"".join(parts).decode("utf-8", "replace")


def errno_text(err: OSError) -> str:
    """strerror(3) as the other runtimes print it: without a capital."""
    text = err.strerror or os.strerror(err.errno or 0)
    return text[:1].lower() + text[1:]


def write_error(err: OSError, value: str) -> RuntimeFailure:
    """``failed to write "5": write /sys/fs/cgroup/pids/x/pids.max: permission denied``"""
    verb = "open" if err.errno in (ENOENT, EEXIST) else "write"
    return RuntimeFailure(f'failed to write "{value}": {verb} {err.filename}: {errno_text(err)}')


def open_error(attempt: str, err: OSError) -> RuntimeFailure:
    """``enter the cgroup: open /sys/fs/cgroup/pids/x/tasks: no such file or directory``"""
    return RuntimeFailure(f"unable to {attempt}: open {err.filename}: {errno_text(err)}")


def make_directories(mount: str, relative: str) -> list[str]:
    """mkdir -p beneath ``mount``; the names that were made, outermost first.

    Another container's removal may take a parent away between two steps, so a vanished parent is made again; every
    round makes progress for somebody, hence a bound that only a hostile loop can reach.
    """
    for _ in range(100):
        try:
            os.mkdir(f"{mount}/{relative}", 0o755)
            return [relative]
        except FileExistsError:
            return []
        except FileNotFoundError:
            parent = os.path.dirname(relative)
            if not parent:
                raise
        made = make_directories(mount, parent)
        try:
            os.mkdir(f"{mount}/{relative}", 0o755)
            return [*made, relative]
        except FileExistsError:
            return made
        except FileNotFoundError:
            continue
    raise OSError(EBUSY, os.strerror(EBUSY), f"{mount}/{relative}")


def remove_made(mount: str, made: Iterable[str]) -> None:
    """Undo make_directories after a failure; what others use in the meantime stays."""
    for relative in reversed(list(made)):
        with suppress(OSError):
            os.rmdir(f"{mount}/{relative}")


def remove_trees(places: Iterable[tuple[str, str]]) -> None:
    """rmdir each (mount, relative path) with its sub-cgroups; a missing one is fine. Raises RuntimeFailure naming
    what stayed.

    All hierarchies share one schedule of retries, so that ten of them do not wait ten times.
    """
    left = list(places)
    pause = _RMDIR_FIRST_PAUSE
    failure: OSError | None = None
    for _ in range(_RMDIR_ROUNDS):
        busy = []
        for place in left:
            try:
                _remove_tree(*place)
            except OSError as err:
                if err.errno != EBUSY:
                    raise _remove_error(err) from err
                busy.append(place)
                failure = err
        left = busy
        if not left:
            return
        time.sleep(pause)
        pause *= 2
    assert failure is not None
    raise _remove_error(failure) from failure


def _remove_error(err: OSError) -> RuntimeFailure:
    return RuntimeFailure(f"unable to remove cgroup: rmdir {err.filename}: {errno_text(err)}")


def _remove_tree(mount: str, relative: str) -> None:
    path = f"{mount}/{relative}"
    try:
        os.rmdir(path)
        return
    except OSError as err:
        # EROFS and EPERM come even for a path that does not exist; EBUSY may mean sub-cgroups
        if err.errno == ENOENT or not os.path.lexists(path):
            return
    visit(mount, relative, leave=_remove_child)
    with suppress(FileNotFoundError):
        os.rmdir(path)


def _remove_child(parent: Directory, name: str) -> None:
    with suppress(FileNotFoundError):
        try:
            os.rmdir(name, dir_fd=parent.fd)
        except OSError as err:
            err.filename = f"{parent.path}/{name}"
            raise


def visit(
    mount: str,
    relative: str,
    *,
    enter: Callable[[Directory], None] = lambda _: None,
    leave: Callable[[Directory, str], None] = lambda _parent, _name: None,
) -> None:
    """``enter`` each cgroup of a subtree, ``leave`` (parent, name) each but the top after those below it; vanished
    ones are skipped.

    A container that manages cgroups below its own may nest them deeper than PATH_MAX, the descriptor limit or
    Python's stack allow, to keep us from finding its processes; so this goes down and up by name, one descriptor at
    a time.
    """
    current = open_if_there(mount, relative)
    if current is None:
        return
    names: list[str] = []
    try:
        enter(current)
        pending = [current.children()]
        for _ in range(_MAX_STEPS):
            if pending[-1]:
                child = _open_child(current, pending[-1].pop())
                if child is not None:
                    names.append(os.path.basename(child.path))
                    current.close()
                    current = child
                    enter(current)
                    pending.append(current.children())
                continue
            pending.pop()
            if not names:
                return
            parent = Directory(os.open("..", _DIRECTORY, dir_fd=current.fd), os.path.dirname(current.path))
            current.close()
            current = parent
            leave(current, names.pop())
    finally:
        current.close()
    raise ResourceExhausted(f"{mount}/{relative} has too many cgroups")


def _open_child(parent: Directory, name: str) -> Directory | None:
    try:
        return Directory(os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent.fd), f"{parent.path}/{name}")
    except OSError as err:
        if err.errno in GONE:
            return None
        raise


def ids_of(directory: Directory) -> list[int]:
    """The processes of one cgroup; [] when it is gone."""
    try:
        text = directory.read("cgroup.procs")
    except OSError as err:
        if err.errno in GONE:
            return []
        if err.errno != EOPNOTSUPP:
            raise
        # A threaded cgroup of v2 has no processes of its own, only threads of processes of its domain.
        text = directory.read_or("cgroup.threads", "")
    return [int(word) for word in text.split()]


def pids_of(mount: str, relative: str) -> list[int]:
    """The processes of a cgroup and its sub-cgroups, ascending; [] when it is gone. 0 (a process that this pid
    namespace cannot see) is left out: nothing good comes of a signal to pid 0.
    """
    found: set[int] = set()
    visit(mount, relative, enter=lambda directory: found.update(ids_of(directory)))
    found.discard(0)
    return sorted(found)
