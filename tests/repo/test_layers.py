"""Who may import whom. What the table does not list is forbidden."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.repo.tree import ROOT, python_files, read


class Layer(NamedTuple):
    """What a package may import beside itself and the standard library."""

    ours: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


GRPC = ("grpc", "grpc_health", "grpc_reflection", "google")
ALL = ("shimd",)

LAYERS = {
    "shimd": Layer(),
    "shimd.errors": Layer(),
    "shimd.records": Layer(),
    "shimd.typed": Layer(),
    "shimd.contexts": Layer(),
    "shimd.caches": Layer(),
    "shimd.image": Layer(),
    "shimd.jsontext": Layer(),
    "shimd.settings": Layer(("shimd.errors",)),
    "shimd.logs": Layer(("shimd.settings",)),
    "shimd.systemd": Layer(("shimd.errors",)),
    "shimd.sockets": Layer(("shimd.errors",)),
    "shimd.linux": Layer(),
    "shimd.oci": Layer(("shimd.errors",)),
    "shimd.host": Layer(("shimd.linux",)),
    "shimd.plan": Layer(
        ("shimd.oci", "shimd.host", "shimd.linux", "shimd.errors"),
        ("seccomp", "pyseccomp"),  # libseccomp compiles the filters
    ),
    "shimd.cgroups": Layer(
        ("shimd.linux", "shimd.errors", "shimd.oci.model", "shimd.oci.values", "shimd.host"),
        ("jeepney",),  # D-Bus, for the systemd driver alone
    ),
    "shimd.init": Layer(("shimd.plan", "shimd.linux", "shimd.errors")),
    "shimd.keeper": Layer(("shimd.init", "shimd.linux", "shimd.plan.wire", "shimd.errors")),
    "shimd.runtime": Layer(
        (
            "shimd.oci",
            "shimd.host",
            "shimd.plan",
            "shimd.linux",
            "shimd.cgroups",
            "shimd.keeper.client",
            "shimd.keeper.protocol",  # Exit, without the client's imports
            "shimd.init.handshake",
            "shimd.init.request",
            "shimd.init.pending",  # launching without a keeper
            "shimd.errors",
        ),
        ("pyroute2",),  # network devices of the host
    ),
    "shimd.supervise": Layer(
        ("shimd.linux", "shimd.keeper.client", "shimd.events.model", "shimd.cgroups.oom", "shimd.errors")
    ),
    "shimd.events": Layer(("shimd.errors", "shimd.api", "shimd.rpc"), ("google", "grpc")),
    "shimd.rpc": Layer(("shimd.api", "shimd.errors"), GRPC),
    "shimd.service": Layer(
        (
            "shimd.api",
            "shimd.rpc",
            "shimd.runtime",
            "shimd.supervise",
            "shimd.events",
            "shimd.oci",
            "shimd.cgroups.stats",
            "shimd.plan.ops",  # plans, printed by the Plan call
            "shimd.plan.wire",
            "shimd.errors",
        ),
        ("google",),
    ),
    # linux: terminals, and what a caller in the foreground does for its process.
    "shimd.cli": Layer(
        (
            "shimd.oci",
            "shimd.host",
            "shimd.plan",
            "shimd.runtime",
            "shimd.cgroups.stats",
            "shimd.linux",
            "shimd.errors",
            "shimd.image",
        )
    ),
    "shimd.daemon": Layer(ALL, (*GRPC, "uvloop")),
    # oci.spec: the template that `shimctl spec` prints needs no daemon.
    "clients": Layer(("shimd.api", "shimd.oci.spec"), (*GRPC, "click", "rich")),
    # What the launcher does where no daemon can: remove a container, and tell what the runtime has.
    "clients.containerd_shim": Layer(
        (
            "shimd.runtime",
            "shimd.host",
            "shimd.keeper.client",
            "shimd.linux.mount",
            "shimd.oci.features",
            "shimd.plan.mount_options",
            "shimd.plan.seccomp",
            "shimd.errors",
        )
    ),
}
# The version, what classes and annotations are made of, and what takes the place of slow parts of the library.
EVERYWHERE = ("shimd", "shimd.records", "shimd.typed", "shimd.contexts", "shimd.caches", "shimd.jsontext")
# Entry points that nobody imports.
TOPS = ("shimd.daemon", "shimd.cli")

# What runs in a container's first process, or is forked into it: slow to import, or not to be had once the root
# changed.
FORBIDDEN_IN_INIT = {"asyncio", "logging", "dataclasses", "subprocess"}
LEAN = ("shimd.linux", "shimd.plan", "shimd.init", "shimd.keeper")


class Import(NamedTuple):
    name: str  # file
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.name}:{self.line}: imports {self.module}"


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def layer_of(module: str) -> str:
    """The longest entry of the table that holds the module."""
    return max((entry for entry in LAYERS if within(module, (entry,))), key=len)


def imports(name: str) -> Iterator[Import]:
    """Every import statement of a file, wherever in it; of ``from package import x`` the submodule x, if it is one."""
    for node in ast.walk(ast.parse(read(name), name)):
        if isinstance(node, ast.Import):
            yield from (Import(name, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                path = ROOT / node.module.replace(".", "/") / alias.name
                is_module = path.is_dir() or path.with_suffix(".py").exists()
                yield Import(name, node.lineno, f"{node.module}.{alias.name}" if is_module else node.module)


def is_allowed(module: str, imported: str) -> bool:
    own = layer_of(module)
    layer = LAYERS[own]
    if imported.split(".")[0] not in ("shimd", "clients", "tests", "bench"):
        return imported.split(".")[0] in sys.stdlib_module_names or within(imported, layer.others)
    if imported in EVERYWHERE:
        return True
    if within(imported, TOPS):
        return within(module, TOPS) and own == layer_of(imported)
    return (own != "shimd" and within(imported, (own,))) or within(imported, layer.ours)


def test_every_import_is_allowed() -> None:
    names = [name for name in python_files() if name.startswith(("shimd/", "clients/"))]
    found = [i for name in names for i in imports(name) if not is_allowed(module_of(name), i.module)]
    assert not found, "not allowed by LAYERS:\n  " + "\n  ".join(map(str, found))


def test_tests_through_the_command_line_import_nothing_of_ours() -> None:
    names = [name for name in python_files() if name.startswith(("tests/container/", "tests/containerd/"))]
    found = [i for name in names for i in imports(name) if within(i.module, ("shimd", "clients"))]
    assert not found, "these run against other runtimes, too:\n  " + "\n  ".join(map(str, found))


def test_every_entry_of_the_table_exists() -> None:
    modules = {module_of(name) for name in python_files()}
    assert sorted(entry for entry in LAYERS if entry not in modules) == []


def test_lean_packages_name_nothing_slow() -> None:
    names = [name for name in python_files() if within(module_of(name), LEAN)]
    found = [i for name in names for i in imports(name) if i.module.split(".")[0] in FORBIDDEN_IN_INIT]
    assert not found, "too slow to import here:\n  " + "\n  ".join(map(str, found))


@pytest.mark.parametrize("package", LEAN)
def test_lean_packages_really_import_nothing_slow(package: str) -> None:
    """In an interpreter like the keeper's: isolated, and without the site module. Our dependencies are not needed."""
    modules = sorted(module_of(name) for name in python_files() if within(module_of(name), (package,)))
    program = f"import sys; sys.path.append({str(ROOT)!r})\nimport {', '.join(modules)}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert not loaded & FORBIDDEN_IN_INIT


def test_records_are_not_named_tuples() -> None:
    """What the command lines load must load fast: shimd.records."""
    names = [name for name in python_files() if name.startswith("shimd/") and name != "shimd/records.py"]
    assert [name for name in names if "NamedTuple" in read(name)] == []
