"""linux.rootfsPropagation, for a rootfs on a shared mount that is not the host's root.

Without it the root is a slave with us and under runc 1.1, and private under runc 1.5.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.container.boxes import NEWER, Box

TAGS = 'awk \'$5 == "/" { for (i = 7; $i != "-"; i++) { sub(/:.*/, "", $i); print $i } }\' /proc/self/mountinfo'


@pytest.fixture
def on_a_shared_mount(box: Box) -> Iterator[Box]:
    subprocess.run(["mount", "--bind", box.bundle, box.bundle], check=True)
    subprocess.run(["mount", "--make-shared", box.bundle], check=True)
    yield box
    subprocess.run(["umount", box.bundle], check=True)


@pytest.mark.parametrize(
    ("propagation", "tags"),
    [
        ("private", ""),
        ("rprivate", ""),
        pytest.param("slave", "master\n", marks=NEWER),  # runc 1.1 makes it private
        ("rslave", "master\n"),
        pytest.param("shared", "shared\n", marks=NEWER),
        pytest.param("rshared", "shared\n", marks=NEWER),
    ],
)
def test_the_root_has_it(on_a_shared_mount: Box, propagation: str, tags: str) -> None:
    on_a_shared_mount.spec["linux"]["rootfsPropagation"] = propagation
    assert on_a_shared_mount.output(TAGS) == tags
