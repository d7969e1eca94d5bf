"""Events as the daemon keeps them: containerd's topics and messages, with a number and a time of our own."""

from __future__ import annotations

from shimd.records import Record

TASK_CREATE = "/tasks/create"
TASK_START = "/tasks/start"
TASK_EXEC_ADDED = "/tasks/exec-added"
TASK_EXEC_STARTED = "/tasks/exec-started"
TASK_OOM = "/tasks/oom"
TASK_EXIT = "/tasks/exit"
TASK_DELETE = "/tasks/delete"
TASK_PAUSED = "/tasks/paused"
TASK_RESUMED = "/tasks/resumed"


class Event(Record):
    """One published event; ``payload`` is the serialised message of type ``type_name``."""

    sequence: int
    time_ns: int
    namespace: str
    container_id: str
    topic: str
    type_name: str  # "containerd.events.TaskExit"
    payload: bytes
    origin: str = ""  # the containerd that the container belongs to, by name


class Filter(Record):
    """Which events a subscriber wants; an empty field does not restrict."""

    namespace: str = ""
    container_ids: frozenset[str] = frozenset()
    topics: tuple[str, ...] = ()  # exact, or a prefix that ends in "/"

    def wants(self, event: Event) -> bool:
        if self.namespace and event.namespace != self.namespace:
            return False
        if self.container_ids and event.container_id not in self.container_ids:
            return False
        return not self.topics or any(_matches(event.topic, topic) for topic in self.topics)


def _matches(topic: str, wanted: str) -> bool:
    return topic == wanted or (wanted.endswith("/") and topic.startswith(wanted))
