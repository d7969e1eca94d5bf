"""The events of containers, as containerd words them."""

from __future__ import annotations

from shimd.api.containerd import task_events_pb2 as messages
from shimd.events import model as topics
from shimd.events.bus import EventBus, TaskEvent
from shimd.service import convert
from shimd.service.records import Container, Process
from shimd.supervise.exits import Exit


class Announcer:
    """One method for each event; all on the event loop."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus

    def created(self, container: Container) -> None:
        init = container.init
        stdin, stdout, stderr = init.stdio
        io = messages.TaskIO(stdin=stdin, stdout=stdout, stderr=stderr, terminal=init.terminal)
        rootfs = [convert.mount_message(mount) for mount in container.rootfs]
        self._publish(
            container,
            topics.TASK_CREATE,
            messages.TaskCreate(container_id=container.id, bundle=container.bundle, rootfs=rootfs, io=io, pid=init.pid),
        )

    def started(self, process: Process) -> None:
        container, pid = process.container, process.pid
        if process.exec_id:
            message = messages.TaskExecStarted(container_id=container.id, exec_id=process.exec_id, pid=pid)
            self._publish(container, topics.TASK_EXEC_STARTED, message)
        else:
            self._publish(container, topics.TASK_START, messages.TaskStart(container_id=container.id, pid=pid))

    def exec_added(self, process: Process) -> None:
        container = process.container
        message = messages.TaskExecAdded(container_id=container.id, exec_id=process.exec_id)
        self._publish(container, topics.TASK_EXEC_ADDED, message)

    def exited(self, process: Process, ended: Exit) -> None:
        container = process.container
        message = messages.TaskExit(container_id=container.id, id=process.id, pid=process.pid, exit_status=ended.code)
        message.exited_at.FromNanoseconds(ended.exited_at_ns)
        self._publish(container, topics.TASK_EXIT, message)

    def deleted(self, container: Container, ended: Exit) -> None:
        message = messages.TaskDelete(container_id=container.id, pid=container.init.pid, exit_status=ended.code)
        message.exited_at.FromNanoseconds(ended.exited_at_ns)
        self._publish(container, topics.TASK_DELETE, message)

    def oom(self, container: Container) -> None:
        self._publish(container, topics.TASK_OOM, messages.TaskOOM(container_id=container.id))

    def paused(self, container: Container) -> None:
        self._publish(container, topics.TASK_PAUSED, messages.TaskPaused(container_id=container.id))

    def resumed(self, container: Container) -> None:
        self._publish(container, topics.TASK_RESUMED, messages.TaskResumed(container_id=container.id))

    def _publish(self, container: Container, topic: str, message: TaskEvent) -> None:
        # Of a sandbox containerd itself tells what it thinks worth it: to it there is no task of that name.
        origin = "" if container.is_sandbox else container.origin
        self._bus.publish(container.namespace, topic, message, origin=origin)
