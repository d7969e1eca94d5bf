"""All containers, by namespace and id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shimd.errors import AlreadyExists, NotFound
from shimd.service.records import Container


class Registry:
    """Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._containers: dict[tuple[str, str], Container] = {}
        self._reserved: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._containers)

    def find(self, namespace: str, container_id: str) -> Container | None:
        return self._containers.get((namespace, container_id))

    def get(self, namespace: str, container_id: str) -> Container:
        """Raises NotFound."""
        container = self._containers.get((namespace, container_id))
        if container is None:
            raise NotFound(f"container {container_id} not found in namespace {namespace}")
        return container

    def all(self, namespace: str = "") -> list[Container]:
        """Those of ``namespace`` ("": of every one), by namespace and time of creation."""
        found = [c for c in self._containers.values() if not namespace or c.namespace == namespace]
        return sorted(found, key=lambda c: (c.namespace, c.created_at_ns))

    def members(self, sandbox: Container) -> list[Container]:
        """The containers of a pod, but for the one that holds its namespaces."""
        return [c for c in self.all(sandbox.namespace) if c.sandbox == sandbox.id and c is not sandbox]

    @contextmanager
    def reserved(self, namespace: str, container_id: str) -> Iterator[None]:
        """Keep the id for the duration of a Create; raises AlreadyExists when somebody has it."""
        key = (namespace, container_id)
        if key in self._containers or key in self._reserved:
            raise AlreadyExists(f"container {container_id} already exists in namespace {namespace}")
        self._reserved.add(key)
        try:
            yield
        finally:
            self._reserved.discard(key)

    def add(self, container: Container) -> None:
        self._containers[container.key] = container

    def remove(self, container: Container) -> None:
        self._containers.pop(container.key, None)
