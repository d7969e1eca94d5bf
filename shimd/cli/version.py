"""``--version``: engines parse the first line, ``<name> version <number>``, and that of the specification."""

from __future__ import annotations

import platform

from shimd.oci.spec import OCI_VERSION


def version() -> str:
    from importlib import metadata

    try:
        return metadata.version("shimd")
    except metadata.PackageNotFoundError:
        return "0.0.0"


def version_text(program: str) -> str:
    from shimd.plan.seccomp import libseccomp_version

    lines = [
        f"{program} version {version()}",
        "commit: ",
        f"spec: {OCI_VERSION}",
        f"python: {platform.python_version()}",
    ]
    if libseccomp := libseccomp_version():
        lines.append(f"libseccomp: {libseccomp}")
    return "\n".join(lines) + "\n"
