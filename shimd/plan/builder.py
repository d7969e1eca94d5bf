"""What a compilation gathers: steps in order, and everything that is wrong with the configuration."""

from __future__ import annotations

from shimd.errors import InvalidSpec, Problem
from shimd.host.facts import HostFacts
from shimd.plan.ops import FinalizeReadonly, Op, Origin, Step, TreeSource


class Builder:
    """Filled by one function per area, in the order of the steps."""

    def __init__(self, host: HostFacts) -> None:
        self.host = host
        self.steps: list[Step] = []
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

    def warn(self, pointer: Origin, text: str) -> None:
        self.warnings.append(f"{pointer}: {text}")

    def refuse(self, pointer: Origin, text: str) -> None:
        self.problems.append(Problem(pointer, text))

    def raise_problems(self, document: str) -> None:
        """Raises InvalidSpec with all that was refused, if anything was."""
        if self.problems:
            raise InvalidSpec(self.problems, document=document)
