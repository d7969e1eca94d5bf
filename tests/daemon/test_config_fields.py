"""Each field of config.json does what it says, and what runc makes of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.cases import Case, host_folder, spec_of
from tests.daemon.cases_linux import LINUX
from tests.daemon.cases_mounts import MOUNTS
from tests.daemon.cases_process import PROCESS
from tests.daemon.sidebyside import difference, run_with_runc, run_with_shimd, tidy
from tests.support.client import Client
from tests.support.fixtures import MakeBundle
from tests.support.requires import requires
from tests.support.rootfs import busybox_rootfs


@pytest.fixture
def host(place: Path) -> Iterator[Path]:
    """``{host}`` of the cases: a folder with another mount below it."""
    folder = host_folder(place / "host")
    subprocess.run(["mount", "-t", "tmpfs", "below", folder / "data/below"], check=True)
    (folder / "data/below/deep").write_text("below\n")
    yield folder
    subprocess.run(["umount", folder / "data/below"], check=True)


def _parameters(cases: Iterable[Case]) -> list[Any]:
    return [pytest.param(case, id=str(case), marks=[requires(*case.needs, *_cgroups(case))]) for case in cases]


def _cgroups(case: Case) -> list[str]:
    """Scripts that look into a hierarchy of cgroup v1 need it."""
    return [f"file:{path}" for path in sorted(set(re.findall(r"/sys/fs/cgroup/\w+", case.script)))]


@pytest.mark.parametrize("case", _parameters([*PROCESS, *MOUNTS, *LINUX]))
def test_field(client: Client, bundle: MakeBundle, place: Path, container_id: str, host: Path, case: Case) -> None:
    spec = spec_of(case, host)
    spec["linux"].setdefault("cgroupsPath", f"/{container_id}")
    ours = run_with_shimd(client, bundle(spec, busybox_rootfs(place / "rootfs1")), container_id)
    assert ours.code == 0, ours.output
    if case.expected is not None:
        assert tidy(ours.output) == case.expected
    if not case.alone and shutil.which("runc"):
        theirs = run_with_runc(bundle(spec, busybox_rootfs(place / "rootfs2")), container_id)
        assert theirs.code == 0, theirs.output
        report = difference(ours.output, theirs.output)
        assert not report, report
