"""The modules of a program in one file, for those that start for every call: to look for a hundred files, to open and
read each and to do the book-keeping of an import takes longer than to make modules of them.

An image only saves time. It stands beside Python's own compiled files and is as valid as they are: each module is
compared with its source (time of change and size), and from the first that is missing or has changed on, all is
imported as always; so is everything when the image belongs to another Python or was moved. ``python -m shimd.image``
writes the images anew.
"""

import marshal
import os
import sys

# Nothing is loaded yet: no shimd.typed, and no __future__ either.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from typing import Any

# By name: the images that are loaded before it, and the modules which are in it with all that they import.
IMAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "spare": ((), ("shimd.init.spare",)),
    "main": ((), ("shimd.cli.main",)),
    "look": (("main",), ("shimd.cli.program", "shimd.cli.start")),
    "launch": (
        ("main",),
        (
            "shimd.cli.program",
            "shimd.cli.start",
            "shimd.cli.verbs.run",
            "shimd.cli.foreground",
            "shimd.init.pending",
            "shimd.runtime.creating",
            "shimd.runtime.deleting",
        ),
    ),
    "exec": (
        ("main",),
        (
            "shimd.cli.program",
            "shimd.cli.start",
            "shimd.cli.verbs.exec",
            "shimd.cli.foreground",
            "shimd.init.pending",
            "shimd.runtime.execing",
        ),
    ),
    "v1": (("main", "look"), ("shimd.cgroups.v1",)),
    "v2": (("main", "look"), ("shimd.cgroups.v2",)),
}

_STANDARD = ("__future__", "struct")  # what nearly all need of the standard library, as the first of it

_ROOT = os.path.dirname(os.path.abspath(__file__))


def load(image: str) -> None:
    """Import what is in the image."""
    try:
        with open(path(image), "rb", buffering=0) as file:
            version, root, modules = marshal.loads(file.read())
    except (OSError, EOFError, ValueError, TypeError):  # none, or not ours
        return
    if version == sys.version and root == _ROOT:
        for name, source, changed, size, code in modules:
            if name not in sys.modules and not _load(name, f"{_ROOT}/{source}", changed, size, code):
                return


def path(image: str) -> str:
    return f"{_ROOT}/__pycache__/{image}.{sys.implementation.cache_tag}.image"


def _load(name: str, source: str, changed: int, size: int, code: "types.CodeType") -> bool:
    """False when the source has changed."""
    try:
        status = os.stat(source)
    except OSError:
        return False
    if status.st_mtime_ns != changed or status.st_size != size:
        return False
    parent, _, child = name.rpartition(".")
    module: Any = type(sys)(name)
    module.__file__ = source
    module.__package__ = parent
    if source.endswith("/__init__.py"):
        module.__package__ = name
        module.__path__ = [os.path.dirname(source)]
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    if parent:
        setattr(sys.modules[parent], child, module)
    return True


# ---- writing ---------------------------------------------------------------------------------------------------------


def _write(image: str) -> None:
    """In a process that has imported nothing of ours yet."""
    from importlib import import_module

    befores, names = IMAGES[image]
    for before in befores:
        for name in IMAGES[before][1]:
            import_module(name)
    imported = _note_imports()
    for name in (*_STANDARD, *names):
        import_module(name)
    if not befores:
        imported[:0] = _STANDARD
    os.makedirs(os.path.dirname(path(image)), exist_ok=True)
    new = f"{path(image)}.{os.getpid()}"
    try:
        with open(new, "wb") as file:
            file.write(marshal.dumps((sys.version, _ROOT, tuple(map(_entry, imported)))))
        os.rename(new, path(image))
    finally:
        if os.path.exists(new):
            os.unlink(new)


def _note_imports() -> list[str]:
    """The names of modules of ours that are imported from now on: each after those that it imports, but for packages,
    which come before what is in them.
    """
    from importlib.machinery import SourceFileLoader

    imported = []
    execute = SourceFileLoader.exec_module

    def execute_and_note(loader: SourceFileLoader, module: "types.ModuleType") -> None:
        is_package = hasattr(module, "__path__")
        if is_package and _is_ours(module.__name__):
            imported.append(module.__name__)
        execute(loader, module)
        if not is_package and _is_ours(module.__name__):
            imported.append(module.__name__)

    SourceFileLoader.exec_module = execute_and_note  # type: ignore[method-assign, assignment]
    return imported


def _is_ours(name: str) -> bool:
    return name.startswith("shimd.") and name != "shimd.image"


def _entry(name: str) -> "tuple[str, str, int, int, types.CodeType]":
    source = sys.modules[name].__file__
    assert source is not None
    with open(source, "rb") as file:
        status = os.stat(file.fileno())
        code = _compile(file.read(), source)
    return name, os.path.relpath(source, _ROOT), status.st_mtime_ns, status.st_size, code


def _compile(text: bytes, source: str) -> "types.CodeType":
    """Without what nobody reads here: docstrings and assertions (as with -OO), annotations of functions."""
    import ast

    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    return compile(tree, source, "exec", dont_inherit=True, optimize=2)


def _main() -> None:
    import subprocess

    if len(sys.argv) > 1:
        _write(sys.argv[1])
        return
    for image in IMAGES:  # no_debug_ranges: a traceback of ours tells lines, not columns
        subprocess.run([sys.executable, "-X", "no_debug_ranges", "-m", "shimd.image", image], check=True)


if __name__ == "__main__":
    _main()
