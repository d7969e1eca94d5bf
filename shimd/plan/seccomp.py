"""linux.seccomp as a classic BPF program, made by libseccomp and kept by content in memory and on disk.

libseccomp is loaded only when a profile is not in a cache: that and the compilation take tens of milliseconds. Entries
on disk are for the next process; their name covers the profile, the architecture and the identity of the library
file, because a newer library knows more names.
"""

from __future__ import annotations

import os
from _blake2 import blake2b  # hashlib would load OpenSSL
from _thread import get_ident
from errno import EEXIST, ENOSYS, EPERM

from shimd.caches import lru_cache
from shimd.contexts import suppress
from shimd.errors import InvalidSpec, Problem, Unimplemented
from shimd.host.facts import HostFacts
from shimd.linux import seccomp as kernel
from shimd.linux._libc import MACHINE
from shimd.oci import model
from shimd.plan import bpf
from shimd.records import Record
from shimd.typed import Any

FORMAT = b"shimd seccomp 1\n"  # to be raised when the same profile compiles to something else
_DIGEST_SIZE = 32
BINARY_TREE_FROM = 33  # system calls; libseccomp misbehaves on empty filters, and few rules need no tree

_ACTIONS = {
    "SCMP_ACT_ALLOW": kernel.SECCOMP_RET_ALLOW,
    "SCMP_ACT_ERRNO": kernel.SECCOMP_RET_ERRNO,
    "SCMP_ACT_KILL": kernel.SECCOMP_RET_KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": kernel.SECCOMP_RET_KILL_PROCESS,
    "SCMP_ACT_KILL_THREAD": kernel.SECCOMP_RET_KILL_THREAD,
    "SCMP_ACT_LOG": kernel.SECCOMP_RET_LOG,
    "SCMP_ACT_NOTIFY": kernel.SECCOMP_RET_USER_NOTIF,
    "SCMP_ACT_TRACE": kernel.SECCOMP_RET_TRACE,
    "SCMP_ACT_TRAP": kernel.SECCOMP_RET_TRAP,
}
_WITH_DATA = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
# With these an unknown call is let through to the kernel, or to a tracer that is to decide.
_PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")

# enum scmp_compare of libseccomp
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

# libseccomp's tokens: the kernel's AUDIT_ARCH_* (ELF machine, 64 bit, little endian), and made-up ones for x32.
_ARCHITECTURES = {
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_X86_64": bpf.ARCH_X86_64,
    "SCMP_ARCH_X32": bpf.ARCH_X32,
    "SCMP_ARCH_ARM": bpf.ARCH_ARM,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_LOONGARCH64": 0xC0000102,
    "SCMP_ARCH_M68K": 0x00000004,
    "SCMP_ARCH_MIPS": 0x00000008,
    "SCMP_ARCH_MIPS64": 0x80000008,
    "SCMP_ARCH_MIPS64N32": 0xA0000008,
    "SCMP_ARCH_MIPSEL": 0x40000008,
    "SCMP_ARCH_MIPSEL64": 0xC0000008,
    "SCMP_ARCH_MIPSEL64N32": 0xE0000008,
    "SCMP_ARCH_PARISC": 0x0000000F,
    "SCMP_ARCH_PARISC64": 0x8000000F,
    "SCMP_ARCH_PPC": 0x00000014,
    "SCMP_ARCH_PPC64": 0x80000015,
    "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_RISCV64": 0xC00000F3,
    "SCMP_ARCH_S390": 0x00000016,
    "SCMP_ARCH_S390X": 0x80000016,
    "SCMP_ARCH_SH": 0x4000002A,
    "SCMP_ARCH_SHEB": 0x0000002A,
}

_ATTRIBUTE_OPTIMIZE = 8  # SCMP_FLTATR_CTL_OPTIMIZE
_BINARY_TREE = 2

# The program is loaded by one thread, so TSYNC has no effect.
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": kernel.SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": kernel.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": kernel.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
}

_LIBRARY_FOLDERS = (
    f"/usr/lib/{MACHINE}-linux-gnu",
    f"/lib/{MACHINE}-linux-gnu",
    "/usr/lib64",
    "/lib64",
    "/usr/lib",
    "/lib",
)


# What equal programs may differ in.
_BESIDE_THE_PROGRAM: dict[str, Any] = {"flags": None, "listener_path": None, "listener_metadata": None}


class Filter(Record):
    """``flags`` are SECCOMP_FILTER_FLAG_*, ``program`` an array of struct sock_filter."""

    flags: int
    program: bytes
    warnings: tuple[str, ...]


class Program(Record):
    code: bytes
    unknown: tuple[str, ...]  # names of the profile that libseccomp does not know


def compile_filter(profile: model.Seccomp, host: HostFacts, *, cache: str = "") -> Filter:
    """``cache`` is a directory for compiled programs, "" for none.

    Raises Unimplemented without libseccomp, InvalidSpec for what libseccomp refuses.
    """
    program = _compiled(profile._replace(**_BESIDE_THE_PROGRAM), cache)
    return Filter(filter_flags(profile, host), program.code, _warnings(program))


def _warnings(program: Program) -> tuple[str, ...]:
    if not program.unknown:
        return ()
    return (f"/linux/seccomp/syscalls: unknown system calls are ignored: {', '.join(program.unknown)}",)


def filter_flags(profile: model.Seccomp, host: HostFacts) -> int:
    names = profile.flags
    if names is None:
        # Without it the kernel would turn speculation off for the container, which costs a lot and helps nobody.
        default = "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
        names = (default,) if default in host.seccomp_flags else ()
    flags = 0
    for name in names:
        flags |= _FLAGS[name]
    if notifies(profile):
        return flags | kernel.SECCOMP_FILTER_FLAG_NEW_LISTENER
    return flags & ~kernel.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV  # refused without a listener


def notifies(profile: model.Seccomp) -> bool:
    return any(rule.action == "SCMP_ACT_NOTIFY" for rule in profile.syscalls)


@lru_cache(maxsize=64)
def _compiled(profile: model.Seccomp, cache: str) -> Program:
    path = _cache_path(profile, cache)
    program = _read_cache(path) if path else None
    if program is None:
        program = _compile(profile)
        if path:
            _write_cache(path, program)
    return program


# ---- libseccomp ------------------------------------------------------------------------------------------------------


def _library() -> Any:
    """The distribution's binding or the one from PyPI; both have the same interface."""
    from importlib import import_module

    for name in ("seccomp", "pyseccomp"):
        with suppress(ImportError, RuntimeError):  # RuntimeError: pyseccomp does not find libseccomp
            return import_module(name)
    raise Unimplemented(
        "/linux/seccomp: config provided but seccomp is not supported: libseccomp is not installed",
        hint="install libseccomp2 and the Python module seccomp or pyseccomp",
    )


def libseccomp_version() -> str:
    """Such as "2.5.4"; "" where profiles cannot be compiled."""
    import ctypes  # slow to load, and seldom needed

    try:
        _library()
        library = ctypes.CDLL("libseccomp.so.2")
    except (OSError, Unimplemented):
        return ""
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    return ".".join(map(str, library.seccomp_version().contents))


def _compile(profile: model.Seccomp) -> Program:
    library = _library()
    default = _action(profile.default_action, profile.default_errno_ret)
    result = library.SyscallFilter(default)
    architectures = _add_architectures(library, result, profile)
    if sum(len(rule.names) for rule in profile.syscalls) >= BINARY_TREE_FROM:
        with suppress(OSError):  # before 2.5: a list is slower, nothing else
            result.set_attr(_ATTRIBUTE_OPTIMIZE, _BINARY_TREE)
    unknown = _add_rules(library, result, profile, default)
    code = _prefix(library, profile, architectures) + _export(result)
    count = len(code) // bpf.INSTRUCTION.size
    if count > bpf.MAX_INSTRUCTIONS:
        text = f"the filter has {count} instructions, the kernel takes at most {bpf.MAX_INSTRUCTIONS}"
        raise InvalidSpec([Problem("/linux/seccomp/syscalls", text)])
    return Program(code, unknown)


def _action(name: str, errno: int | None) -> int:
    action = _ACTIONS[name]
    if name in _WITH_DATA:
        action |= (EPERM if errno is None else errno) & 0xFFFF
    return action


def _add_architectures(library: Any, result: Any, profile: model.Seccomp) -> set[int]:
    """The tokens of the profile's architectures and the native one, which every filter has."""
    tokens = {library.system_arch()}
    for index, name in enumerate(profile.architectures):
        token = _ARCHITECTURES[name]
        if token in tokens:
            continue
        try:
            result.add_arch(token)
        except OSError as e:
            if e.errno != EEXIST:
                pointer = f"/linux/seccomp/architectures/{index}"
                raise InvalidSpec([Problem(pointer, f"{name} is not possible on this machine: {e.strerror}")]) from e
        tokens.add(token)
    return tokens


def _add_rules(library: Any, result: Any, profile: model.Seccomp, default: int) -> tuple[str, ...]:
    """Returns the names that libseccomp does not know."""
    native = library.system_arch()
    unknown: dict[str, None] = {}
    for index, rule in enumerate(profile.syscalls):
        action = _action(rule.action, rule.errno_ret)
        if action == default:
            continue  # libseccomp refuses such rules; they say nothing
        alternatives = _conditions(library, rule.args)
        for name in rule.names:
            number = library.resolve_syscall(native, name)
            if number == -1:
                unknown[name] = None
                continue
            try:
                for conditions in alternatives:
                    result.add_rule(action, number, *conditions)
            except OSError as e:
                pointer = f"/linux/seccomp/syscalls/{index}"
                raise InvalidSpec([Problem(pointer, f"{name}: libseccomp refuses the rule: {e.strerror}")]) from e
    return tuple(unknown)


def _conditions(library: Any, args: tuple[model.SeccompArg, ...]) -> list[list[Any]]:
    """The rules that one rule becomes: libseccomp cannot AND two conditions on one argument, so when an argument is
    there twice, each condition is a rule of its own and any of them is enough.
    """
    conditions = [library.Arg(arg.index, _OPERATORS[arg.op], arg.value, arg.value_two) for arg in args]
    if len({arg.index for arg in args}) < len(args):
        return [[condition] for condition in conditions]
    return [conditions]


def _prefix(library: Any, profile: model.Seccomp, architectures: set[int]) -> bytes:
    errno = profile.default_errno_ret
    if profile.default_action in _PERMISSIVE or (profile.default_action == "SCMP_ACT_ERRNO" and errno == ENOSYS):
        return b""
    names = {name for rule in profile.syscalls for name in rule.names}
    highest = {}
    for arch in architectures:
        numbers = [library.resolve_syscall(arch, name) for name in names]
        if arch == bpf.ARCH_ARM:
            numbers = [number for number in numbers if number < bpf.ARM_PRIVATE]
        if max(numbers, default=0) > 0:
            highest[arch] = max(numbers)
    return bpf.enosys_prefix(highest)


def _export(result: Any) -> bytes:
    with open(os.memfd_create("seccomp"), "r+b") as file:
        result.export_bpf(file)
        file.seek(0)
        return file.read()


# ---- on disk ---------------------------------------------------------------------------------------------------------


def _cache_path(profile: model.Seccomp, cache: str) -> str:
    """ "" without a cache, or when the library cannot be identified."""
    library = _library_identity() if cache else ""
    if not library:
        return ""
    subject = repr((library, MACHINE, profile))
    return os.path.join(cache, _digest(FORMAT + subject.encode("utf-8", "surrogatepass")).hex())


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_SIZE).digest()


def _library_identity() -> str:
    """Changes when another libseccomp is installed; without loading it. "" when it is in none of the usual places."""
    for folder in _LIBRARY_FOLDERS:
        try:
            status = os.stat(os.path.join(folder, "libseccomp.so.2"))
        except OSError:
            continue
        return f"{status.st_ino}.{status.st_size}.{status.st_mtime_ns}"
    return ""


def _read_cache(path: str) -> Program | None:
    """None when there is no entry or it is damaged."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    digest, payload = data[:_DIGEST_SIZE], data[_DIGEST_SIZE:]
    names, zero, code = payload.partition(b"\0")
    if not zero or digest != _digest(path.encode() + payload):
        return None
    return Program(code, tuple(names.decode().split("\n")) if names else ())


def _write_cache(path: str, program: Program) -> None:
    """A cache that cannot be written costs time, not containers."""
    payload = "\n".join(program.unknown).encode() + b"\0" + program.code
    with suppress(OSError):
        temporary = f"{path}.{os.getpid()}.{get_ident()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(_digest(path.encode() + payload) + payload)
            os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
