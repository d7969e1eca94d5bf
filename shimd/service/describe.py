"""Containers, processes and plans as the messages of shimd.v1."""

from __future__ import annotations

import json

from shimd.api.v1 import runtime_pb2 as api
from shimd.plan import wire
from shimd.plan.ops import Plan
from shimd.runtime.container import Runtime
from shimd.service import convert
from shimd.service.records import STOPPED, Container, Process, StdioPaths


def container(record: Container) -> api.Container:
    init = record.init
    ended = init.exit
    return api.Container(
        namespace=record.namespace,
        id=record.id,
        bundle=record.bundle,
        pid=0 if init.status == STOPPED else init.pid,
        status=init.status,
        created_at=convert.timestamp(record.created_at_ns),
        started_at=convert.timestamp(init.started_at_ns),
        exited_at=convert.timestamp(ended.exited_at_ns) if ended else None,
        exit_status=ended.code if ended else 0,
        terminal=init.terminal,
        stdio=_stdio(init.stdio),
        annotations=dict(record.runtime.state.annotations),
        execs=[_exec(process) for process in record.execs.values()],
        command=record.runtime.spec.process.args,
        oom_killed=record.oom_killed,
    )


def _exec(process: Process) -> api.Exec:
    ended = process.exit
    return api.Exec(
        exec_id=process.exec_id,
        pid=0 if process.status == STOPPED else process.pid,
        status=process.status,
        started_at=convert.timestamp(process.started_at_ns),
        exited_at=convert.timestamp(ended.exited_at_ns) if ended else None,
        exit_status=ended.code if ended else 0,
        terminal=process.terminal,
        stdio=_stdio(process.stdio),
        command=process.spec.args if process.spec else (),
    )


def _stdio(paths: StdioPaths) -> api.Stdio:
    return api.Stdio(stdin=paths.stdin, stdout=paths.stdout, stderr=paths.stderr)


def inspect(runtime: Runtime, record: Container) -> api.InspectResponse:
    """Reads files, so not for the event loop's thread."""
    made = record.runtime
    return api.InspectResponse(
        container=container(record),
        spec=made.config_bytes(),
        rootfs=made.state.rootfs,
        rootfs_mounts=[convert.mount_message(mount) for mount in record.rootfs],
        cgroup_paths=dict(made.state.cgroup_paths),
        state_dir=made.directory.path,
        state=json.dumps(runtime.state_document(made)).encode(),
        phases=convert.phases(record.init.timings),
    )


def plan(compiled: Plan) -> api.PlanResponse:
    document = wire.to_json(compiled)
    return api.PlanResponse(
        plan=json.dumps(document).encode(),
        steps=[step["text"] for step in (*document["stage"], *document["steps"])],
        warnings=compiled.warnings,
    )
