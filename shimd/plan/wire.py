"""Plans as bytes, for the keeper, and as JSON, for people.

The bytes are ``marshal`` of ``(WIRE_VERSION, ((opcode, origin, *fields), ...))``. marshal is the fastest decoder that
the interpreter has and init decodes on the hot path; it is safe here because only the daemon, which is as privileged,
writes to the keeper's socket. Opcodes are never reused. A change to the fields of an operation needs a new
``WIRE_VERSION``: daemon and keeper are upgraded at different times, and a plan must be refused rather than misread.
"""

from __future__ import annotations

import marshal
from binascii import b2a_base64

from shimd.errors import InternalError
from shimd.linux.process import NAMESPACE_FILES
from shimd.plan import ops
from shimd.typed import Any

WIRE_VERSION = 1

OPCODES: dict[int, type[Any]] = {
    1: ops.Sync,
    2: ops.JoinCgroup,
    3: ops.Setns,
    4: ops.Unshare,
    5: ops.TimeOffsets,
    6: ops.BecomeRoot,
    7: ops.SessionKeyring,
    8: ops.LoopbackUp,
    9: ops.PrepareRoot,
    10: ops.Mount,
    11: ops.Remount,
    12: ops.Bind,
    13: ops.MountCgroup1,
    14: ops.MountCgroup2,
    15: ops.MakeDevice,
    16: ops.Symlink,
    17: ops.RunHooks,
    18: ops.PivotRoot,
    19: ops.MakeDirectory,
    20: ops.SetPropagation,
    21: ops.Terminal,
    22: ops.Stdio,
    23: ops.FinalizeReadonly,
    24: ops.Hostname,
    25: ops.Domainname,
    26: ops.Sysctl,
    27: ops.ReadonlyPath,
    28: ops.MaskPaths,
    29: ops.AppArmor,
    30: ops.SelinuxExec,
    31: ops.NoNewPrivileges,
    32: ops.Scheduler,
    33: ops.IoPriority,
    34: ops.Personality,
    35: ops.CpuAffinity,
    36: ops.OomScoreAdj,
    37: ops.Umask,
    38: ops.Seccomp,
    39: ops.BoundingSet,
    40: ops.User,
    41: ops.Capabilities,
    42: ops.Chdir,
    43: ops.HomeEnv,
    44: ops.FindProgram,
    45: ops.WaitStart,
    46: ops.CloseFds,
    47: ops.ResetSignals,
    48: ops.Execute,
    49: ops.MemoryPolicy,
    50: ops.Dumpable,
}
_NUMBERS = {operation: opcode for opcode, operation in OPCODES.items()}

# marshal knows only exact tuples, so the records inside of records come back by (field index -> class, is a list).
_NESTED: dict[type[Any], tuple[tuple[int, type[Any], bool], ...]] = {
    operation: tuple(
        (operation._fields.index(name), record, many)
        for name, record, many in (("attr", ops.MountAttr, False), ("more", ops.MountAttr, True))
        if name in operation._fields
    )
    for operation in (ops.Mount, ops.Remount, ops.Bind, ops.MountCgroup1, ops.MountCgroup2)
}
_NESTED[ops.RunHooks] = ((ops.RunHooks._fields.index("hooks"), ops.HookSpec, True),)

# By opcode: the class, the number of its fields, its records. ``_new`` instead of a call of the class, which would run
# a function of that class: in a process that was just forked each one costs copies of pages.
_SHAPES = {
    opcode: (operation, len(operation._fields), _NESTED.get(operation, ())) for opcode, operation in OPCODES.items()
}
_new: Any = tuple.__new__

# Version 2 has no back references: equal plans are equal bytes, whoever else holds the strings.
_MARSHAL_VERSION = 2


def dumps(steps: tuple[ops.Step, ...]) -> bytes:
    """The bytes of ``Plan.steps`` or ``Plan.stage``."""
    return marshal.dumps((WIRE_VERSION, tuple(map(_flat, steps))), _MARSHAL_VERSION)


def loads(data: bytes) -> tuple[ops.Step, ...]:
    """Raises InternalError for bytes that are not a plan of this version."""
    try:
        version, rows = marshal.loads(data)
    except (ValueError, EOFError, TypeError) as e:
        raise InternalError(f"decode plan: {e}") from e
    if version != WIRE_VERSION:
        raise InternalError(f"decode plan: its version is {version}, this process understands {WIRE_VERSION}")
    if type(rows) is not tuple:
        raise InternalError("decode plan: no list of steps")
    return tuple([_step(row) for row in rows])


def _flat(step: ops.Step) -> tuple[Any, ...]:
    operation: Any = step.op
    fields = [_NUMBERS[type(operation)], step.origin, *operation]
    for index, _, many in _NESTED.get(type(operation), ()):
        value = operation[index]
        fields[index + 2] = tuple([tuple(record) for record in value]) if many else tuple(value)
    return tuple(fields)


def _step(row: Any) -> ops.Step:
    try:
        opcode, origin, *fields = row
        operation, count, nested = _SHAPES[opcode]
        if len(fields) != count:
            raise InternalError(f"decode plan: {operation.__name__} has {count} fields, not {len(fields)}")
        for index, record, many in nested:
            value = fields[index]
            fields[index] = tuple([record(*item) for item in value]) if many else record(*value)
        step: ops.Step = _new(ops.Step, (_new(operation, fields), origin))
    except KeyError as e:
        raise InternalError(f"decode plan: unknown opcode {e}") from e
    except (ValueError, TypeError, IndexError) as e:
        raise InternalError(f"decode plan: {e}") from e
    return step


def to_json(plan: ops.Plan) -> dict[str, Any]:
    """The plan as ``plan`` prints it: the fields of the record, with the steps as ``steps_to_json`` has them and the
    namespaces of the clone by name.
    """
    fields = {name: _plain(value) for name, value in plan._asdict().items()}
    fields["clone"] = [name for flag, name in NAMESPACE_FILES.items() if plan.clone & flag]
    fields["stage"] = steps_to_json(plan.stage)
    fields["steps"] = steps_to_json(plan.steps)
    return fields


def steps_to_json(steps: tuple[ops.Step, ...]) -> list[dict[str, Any]]:
    """``index`` as errors name it, ``op``, ``origin`` (JSON pointer or ""), ``text`` for people, ``fields``."""
    return [
        {
            "index": index,
            "op": type(step.op).__name__,
            "origin": step.origin,
            "text": step.op.describe(),
            "fields": _plain(step.op),
        }
        for index, step in enumerate(steps)
    ]


def _plain(value: Any) -> Any:
    """Records become objects, tuples lists, bytes base64."""
    if isinstance(value, bytes):
        return b2a_base64(value, newline=False).decode()
    if isinstance(value, tuple):
        fields = getattr(value, "_asdict", None)
        if fields is not None:
            return {name: _plain(item) for name, item in fields().items()}
        return [_plain(item) for item in value]
    return value
