"""What a compilation gathers: steps in order, and everything that is wrong with the configuration."""

from __future__ import annotations

from shimd.errors import InvalidSpec, Problem
from shimd.host.facts import HostFacts
from shimd.plan.ops import FinalizeReadonly, IdMap, IdMapSource, Op, Origin, Step, TreeSource

IdMaps = tuple[IdMap, ...]


class Builder:
    """Filled by one function per area, in the order of the steps."""

    def __init__(self, host: HostFacts) -> None:
        self.host = host
        self.steps: list[Step] = []
        self.id_maps: dict[tuple[IdMaps, IdMaps, str], IdMapSource] = {}
        self.trees: list[TreeSource] = []
        self.deferred: list[tuple[FinalizeReadonly, Origin]] = []  # mounts that become read-only at the end
        self.warnings: list[str] = []
        self.problems: list[Problem] = []

    def add(self, operation: Op, origin: Origin = "") -> None:
        self.steps.append(Step(operation, origin))

    def take_steps(self) -> tuple[Step, ...]:
        """The steps so far, which leave the builder."""
        steps = tuple(self.steps)
        self.steps.clear()
        return steps

    def id_map(self, uid_map: IdMaps, gid_map: IdMaps, path: str) -> str:
        """The slot of the user namespace with these maps, or of the one at ``path``."""
        key = (uid_map, gid_map, path)
        source = self.id_maps.setdefault(key, IdMapSource(f"ids.{len(self.id_maps)}", *key))
        return source.slot

    def warn(self, pointer: Origin, text: str) -> None:
        self.warnings.append(f"{pointer}: {text}")

    def refuse(self, pointer: Origin, text: str) -> None:
        self.problems.append(Problem(pointer, text))

    def raise_problems(self, document: str) -> None:
        """Raises InvalidSpec with all that was refused, if anything was."""
        if self.problems:
            raise InvalidSpec(self.problems, document=document)
