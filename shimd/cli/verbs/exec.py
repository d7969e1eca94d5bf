"""``exec``: one more process in a container."""

from __future__ import annotations

import os

from shimd.cli.command import Call, Command, flag, number, text, texts
from shimd.cli.handover import Handover
from shimd.errors import InvalidArgument
from shimd.oci.model import Capabilities, ConsoleSize, Process, User
from shimd.oci.read import MAX_BYTES, read_process
from shimd.runtime.control import derive_status
from shimd.runtime.interrupts import unwind_on_signals
from shimd.runtime.model import Container, ExecOptions, ExecProcess, Stdio
from shimd.runtime.status import Operation, check

_MAX_ID = (1 << 32) - 2  # the kernel keeps the one above for "none"

COMMAND = Command(
    "execute new process inside the container",
    """<container-id> <command> [command options]  || -p process.json <container-id>

Where "<container-id>" is the name of the container and "<command>" is what to run
in it. "<command>" may be left out only with "-p". For example:

       # {program} exec <container-id> ps""",
    options=(
        text("console-socket", "path to a unix socket that is sent the master end of the process's terminal"),
        text("pidfd-socket", "path to a unix socket that is sent a pidfd of the process"),
        text("cwd", "current working directory in the container"),
        texts("env", "set an environment variable", "e"),
        flag("tty", "allocate a pseudo terminal", "t"),
        text("user", "the user (format: <uid>[:<gid>])", "u"),
        texts("additional-gids", "an additional group", "g"),
        text("process", "path to a file with the process in JSON, in place of all that describes it", "p"),
        flag("detach", "detach from the process", "d"),
        text("pid-file", "the file to write the process id to"),
        text("process-label", "the SELinux label of the process"),
        text("apparmor", "the AppArmor profile of the process"),
        flag("no-new-privs", "set no_new_privs for the process"),
        texts("cap", "add a capability", "c"),
        number("preserve-fds", "pass N additional descriptors to the process"),
        texts("cgroup", "run the process in an existing sub-cgroup (format: [<controller>[,…]:]<cgroup>)"),
        flag("ignore-paused", "allow exec in a paused container"),
    ),
    least=1,
    most=-1,
    stop_at=1,
    code=255,
    prefix="exec failed",
)


def run(call: Call) -> int:
    with call.container() as container:
        operation = Operation.EXEC_IGNORE_PAUSED if call.flag("ignore-paused") else Operation.EXEC
        check(operation, derive_status(container), container.id)
        process = make_process(call, container.spec.process)
        detach = call.flag("detach")
        with Handover(call, terminal=process.terminal, detach=detach, activation=False) as handover:
            if detach:
                unwind_on_signals()
                _detached(call, container, process, handover)
                return 0
            return _foreground(call, container, process, handover)


def _detached(call: Call, container: Container, process: Process, handover: Handover) -> None:
    made = _start(call, container, process, handover, Stdio(0, 1, 2))
    _hand_out_pid(call, container, made, handover)
    os.close(made.pidfd)


def _foreground(call: Call, container: Container, process: Process, handover: Handover) -> int:
    from shimd.cli.foreground import Foreground

    with Foreground(terminal=process.terminal) as foreground:
        if foreground.console_size is not None:
            process = process._replace(console_size=ConsoleSize(*foreground.console_size))
        made = _start(call, container, process, handover, foreground.stdio)
        _hand_out_pid(call, container, made, handover)
        try:
            return foreground.follow(made.pid, made.pidfd, made.console_fd)
        finally:
            os.close(made.pidfd)


def _start(call: Call, container: Container, process: Process, handover: Handover, stdio: Stdio) -> ExecProcess:
    options = ExecOptions(
        console_socket=handover.console_socket,
        pidfd_socket=handover.pidfd_socket,
        preserve_fds=handover.fds,
        ignore_paused=call.flag("ignore-paused"),
        cgroup=sub_cgroups(call.texts("cgroup")),
        raw_newlines=process.terminal and not call.flag("detach"),
    )
    made = call.runtime().exec(container, f"shimrun-{os.getpid()}", process, stdio=stdio, options=options)
    for warning in made.warnings:
        call.messages.warn(warning)
    if call.messages.debugging:
        _log(call, container, process, made)
    return made


def _log(call: Call, container: Container, process: Process, made: ExecProcess) -> None:
    from shimd.cli.phases import EXEC, log_affinity, log_filter, log_phases
    from shimd.plan.process import cpus

    affinity = process.exec_cpu_affinity or container.spec.process.exec_cpu_affinity
    log_affinity(call.messages, cpus(affinity.initial) if affinity else ())
    log_filter(call.messages, container.spec.linux.seccomp, call.runtime().env.host)
    log_phases(call.messages, made.timings, EXEC)


def _hand_out_pid(call: Call, container: Container, made: ExecProcess, handover: Handover) -> None:
    try:
        handover.write_pid(made.pid)
    except BaseException:
        call.runtime().kill_exec(container, made, 9)
        raise


# ---- what the options say --------------------------------------------------------------------------------------------


def make_process(call: Call, template: Process) -> Process:
    """``template`` is the container's own process. Raises InvalidArgument, InvalidSpec, OSError."""
    if path := call.text("process"):
        return read_process(_read(path))
    if len(call.arguments) < 2:
        raise InvalidArgument("exec args cannot be empty")
    cwd = call.text("cwd") or template.cwd
    if not cwd.startswith("/"):
        raise InvalidArgument(f"Cwd must be an absolute path: {cwd}")
    return template._replace(
        args=tuple(call.arguments[1:]),
        cwd=cwd,
        env=template.env + tuple(_variable(entry) for entry in call.texts("env")),
        terminal=call.flag("tty"),
        console_size=None,
        user=_user(call, template),
        capabilities=_with_capabilities(template.capabilities, call.texts("cap")),
        no_new_privileges=call.flag("no-new-privs") if call.given("no-new-privs") else template.no_new_privileges,
        apparmor_profile=call.text("apparmor") or template.apparmor_profile,
        selinux_label=call.text("process-label") or template.selinux_label,
    )


def _read(path: str) -> bytes:
    """Engines write a file; a person may well give a pipe, which has to be waited for."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidArgument(f"read {path}: {error.strerror}") from error


def _variable(entry: str) -> str:
    if "=" not in entry or entry.startswith("="):
        raise InvalidArgument(f'--env "{entry}": not of the form NAME=VALUE')
    return entry


def _user(call: Call, template: Process) -> User:
    user = template.user
    wanted = call.text("user")
    if wanted:
        uid, colon, gid = wanted.partition(":")
        user = user._replace(uid=_id("uid", uid))
        if colon:
            user = user._replace(gid=_id("gid", gid))
    more = tuple(_id("additional gid", gid) for gid in call.texts("additional-gids"))
    return user._replace(additional_gids=user.additional_gids + more)


def _id(what: str, value: str) -> int:
    """Only a number: a name would have to be looked up in a file that the image has written (CVE-2016-3697)."""
    if not (value.isascii() and value.isdecimal()) or len(value) > len(str(_MAX_ID)) or int(value) > _MAX_ID:
        raise InvalidArgument(f'bad {what}: "{value}" is not a number from 0 to {_MAX_ID}')
    return int(value)


def _with_capabilities(sets: Capabilities | None, names: list[str]) -> Capabilities | None:
    """Never inheritable ones (CVE-2022-29162), and ambient ones only where that set has some already."""
    if not names:
        return sets
    sets = sets or Capabilities()
    more = tuple(names)
    return sets._replace(
        bounding=sets.bounding + more,
        effective=sets.effective + more,
        permitted=sets.permitted + more,
        ambient=sets.ambient + more if sets.inheritable else sets.ambient,
    )


def sub_cgroups(values: list[str]) -> dict[str, str]:
    """By controller, or one for all under ""; raises InvalidArgument."""
    paths: dict[str, str] = {}
    for value in values:
        controllers, colon, path = value.partition(":")
        if not colon:
            if len(values) > 1:
                raise InvalidArgument(f"invalid --cgroup argument: {value} (missing <controller>: prefix)")
            return {"": value}
        for controller in controllers.split(","):
            if not controller:
                raise InvalidArgument(f"invalid --cgroup argument: {value} (empty <controller> prefix)")
            if controller in paths:
                raise InvalidArgument(f"invalid --cgroup argument(s): controller {controller} specified multiple times")
            paths[controller] = path
    return paths
