"""``spec``: a config.json to start from."""

from __future__ import annotations

import json
import os

from shimd.cli.command import Call, Command, flag, text
from shimd.errors import AlreadyExists

COMMAND = Command(
    "create a new specification file",
    description="""Writes a specification file named "config.json" for the bundle. It is just a start:
its program is "sh", which the root file system has to have, and so on.

EXAMPLE:
To run the hello-world image of Docker:

    mkdir hello
    cd hello
    docker pull hello-world
    docker export $(docker create hello-world) > hello-world.tar
    mkdir rootfs
    tar -C rootfs -xf hello-world.tar
    {program} spec
    sed -i 's;"sh";"/hello";' config.json
    {program} run container1

An ordinary user can run containers whose config.json is made with --rootless. Root of
a user namespace that an ordinary user made does not need that.""",
    options=(
        text("bundle", "path to the root of the bundle directory", "b"),
        flag("rootless", "generate a configuration for a rootless container"),
    ),
)

_NAME = "config.json"


def run(call: Call) -> int:
    from shimd.host.facts import probe
    from shimd.oci.spec import default_spec

    document = default_spec(
        rootless=call.flag("rootless"), cgroup2=probe().cgroup_mode == "v2", uid=os.geteuid(), gid=os.getegid()
    )
    data = json.dumps(document, indent="\t", ensure_ascii=False).encode()
    path = os.path.join(call.text("bundle"), _NAME)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise AlreadyExists(f"File {_NAME} exists. Remove it first") from None
    with open(fd, "wb") as file:
        file.write(data)
    return 0
