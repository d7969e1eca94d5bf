"""The modules of a program in one file, for those that start for every call: to look for a hundred files and to open
and read each takes longer than to make modules of them.

An image only saves time. It stands beside Python's own compiled files and is as valid as they are: each module is
compared with its source (time of change and size), and what is missing, has changed or belongs to another Python or
another place is imported as always. ``python -m shimd.image`` writes the images anew.
"""

from __future__ import annotations

import marshal
import os
import sys

from shimd.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
else:
    ModuleSpec = type(__spec__)

# What each program imports, whatever it is told to do, and what it imports on the way of most calls.
PROGRAMS = {
    "shimrun": (
        "shimd.cli.program",
        "shimd.cli.verbs.create",
        "shimd.cli.verbs.delete",
        "shimd.cli.verbs.run",
        "shimd.cli.foreground",
        "shimd.cli.signals",
        "shimd.cli.start",
        "shimd.cgroups.v1",
        "shimd.cgroups.v2",
        "shimd.init.pending",
        "shimd.keeper.protocol",
        "shimd.oci.read",
        "shimd.plan.compile",
        "shimd.runtime.creating",
        "shimd.runtime.deleting",
    ),
    "spare": ("shimd.init.spare",),
}

_ROOT = os.path.dirname(os.path.abspath(__file__))

# By module: its source below _ROOT, that one's time of change in ns and size, whether it is a package, its code.
Modules = dict[str, tuple[str, int, int, bool, bytes]]


def use(program: str) -> None:
    """Import from the program's image from now on."""
    try:
        with open(path(program), "rb", buffering=0) as file:
            version, root, modules = marshal.loads(file.read())
    except (OSError, EOFError, ValueError, TypeError):  # none, or not ours
        return
    if version == sys.version and root == _ROOT:
        sys.meta_path.insert(0, _Image(modules))


def path(program: str) -> str:
    return f"{_ROOT}/__pycache__/{program}.{sys.implementation.cache_tag}.image"


def dumps(modules: Modules) -> bytes:
    return marshal.dumps((sys.version, _ROOT, modules))


class _Image:
    """A finder of importlib, and the loader of what it finds."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        found = self._modules.get(name)
        if found is None:
            return None
        source, changed, size, package, code = found
        origin = f"{_ROOT}/{source}"
        try:
            status = os.stat(origin)
        except OSError:
            return None
        if status.st_mtime_ns != changed or status.st_size != size:
            return None
        spec = ModuleSpec(name, self, origin=origin, loader_state=code)  # type: ignore[arg-type]  # by its methods
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [os.path.dirname(origin)]
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """An ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        spec: Any = module.__spec__
        code: CodeType = marshal.loads(spec.loader_state)
        exec(code, module.__dict__)


def _write(program: str) -> None:
    from importlib import import_module

    for name in PROGRAMS[program]:
        import_module(name)
    modules: Modules = {}
    for name, module in sys.modules.items():
        if name.startswith("shimd.") and name != __name__ and module.__file__ is not None:
            status = os.stat(module.__file__)
            code = module.__loader__.get_code(name)  # type: ignore[union-attr]  # of files
            source = os.path.relpath(module.__file__, _ROOT)
            modules[name] = (
                source,
                status.st_mtime_ns,
                status.st_size,
                hasattr(module, "__path__"),
                marshal.dumps(code),
            )
    new = f"{path(program)}.{os.getpid()}"
    try:
        with open(new, "wb") as file:
            file.write(dumps(modules))
        os.rename(new, path(program))
    finally:
        if os.path.exists(new):
            os.unlink(new)


def _main() -> None:
    import subprocess

    if len(sys.argv) > 1:
        _write(sys.argv[1])
        return
    for program in PROGRAMS:  # each in a process that has imported nothing else
        subprocess.run([sys.executable, "-m", "shimd.image", program], check=True)


if __name__ == "__main__":
    _main()
