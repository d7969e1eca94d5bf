"""Start a keeper: detached from the caller's session, from an interpreter that no container can write to, ready on
return.
"""

from __future__ import annotations

import fcntl
import os

from shimd.errors import Unavailable
from shimd.linux.selfexe import spawn_python

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from shimd.keeper.main import main; main(sys.argv[2], int(sys.argv[3]))"
)


def spawn_keeper(state_dir: str) -> None:
    """Returns when ``<state_dir>/keeper.sock`` answers, at once when a keeper already runs there. Raises Unavailable
    with its complaint.
    """
    directory = _open_locked(state_dir)
    try:
        answer = _start(state_dir)
    finally:
        os.close(directory)
    if answer != b"ready\n":
        raise Unavailable(
            f"keeper in {state_dir} did not start: {answer.decode(errors='replace').strip() or 'it died'}"
        )


def _open_locked(state_dir: str) -> int:
    """Two that start one at the same time would otherwise both return, the second before the first one's socket is
    there.
    """
    try:
        directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise Unavailable(f"keeper in {state_dir} did not start: {e.strerror}") from e
    fcntl.flock(directory, fcntl.LOCK_EX)
    return directory


def _start(state_dir: str) -> bytes:
    """What the keeper says when it is ready, or has failed."""
    ready, ready_child = os.pipe2(os.O_CLOEXEC)
    arguments = (_ROOT, os.path.abspath(state_dir), str(ready_child))
    with open(ready, "rb") as pipe:
        try:  # the first of two processes: it ends when the keeper, its child, is running
            pid, _ = spawn_python(_PROGRAM, *arguments, keep=ready_child, setsid=True)
        finally:
            os.close(ready_child)
        answer = pipe.read(4096)
    os.waitpid(pid, 0)
    return answer
