"""``features``: the document that the specification describes; needs no privileges."""

from __future__ import annotations

import json

from shimd.cli.command import Call, Command

COMMAND = Command(
    "show the enabled features",
    description="""Shows, as JSON, what this program can do, whether or not this host can.

The result does not depend on the state of containers; its format is described by
features.md of the Open Container Initiative's runtime specification.""",
)


def run(call: Call) -> int:
    from shimd.cli.version import version
    from shimd.host.facts import probe
    from shimd.oci.features import features
    from shimd.plan.mount_options import OPTION_NAMES
    from shimd.plan.seccomp import libseccomp_version

    document = features(probe(), version=version(), libseccomp=libseccomp_version(), mount_options=OPTION_NAMES)
    call.write(json.dumps(document, indent=4, ensure_ascii=False) + "\n")
    return 0
