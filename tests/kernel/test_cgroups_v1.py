from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shimd.cgroups.manager import CgroupManager, from_state, manager
from shimd.errors import FailedPrecondition, RuntimeFailure
from shimd.host.facts import HostFacts, probe
from shimd.oci.model import BlockIo, Cpu, DeviceRule, HugepageLimit, Memory, Pids, Resources, ThrottleDevice
from tests.kernel.cgroup_member import OUTSIDE, Member, Way, eat, fork_children, member, reaper, way_into, way_of_exec
from tests.kernel.child import become, run_in_child
from tests.support import wait
from tests.support.requires import lack, requires
from tests.support.session import TAG

pytestmark = [
    requires("cgroup:memory", "cgroup:cpuset", "cgroup:devices", "cgroup:freezer"),
    pytest.mark.skipif(not lack("cgroup-mode:v2"), reason="cgroups are v2 here"),
]

Make = Callable[..., CgroupManager]
TOP = f"/{TAG}"
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def host() -> HostFacts:
    return probe()


@pytest.fixture
def make(host: HostFacts) -> Iterator[Make]:
    """Managers below /TAG whose processes and cgroups end with the test."""
    made: list[CgroupManager] = []

    def build(name: str = "a", resources: Resources | None = None) -> CgroupManager:
        made.append(manager(host, cgroups_path=f"{TOP}/{name}", container_id=name))
        if resources is not None:
            made[-1].create(resources)
        return made[-1]

    with reaper():
        yield build
        for item in made:
            item.kill(signal.SIGKILL)
            item.destroy()
    for directory in tops(host):
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()


def tops(host: HostFacts) -> list[Path]:
    mounts = [hierarchy.mount_point for hierarchy in host.hierarchies]
    return [Path(mount + TOP) for mount in [*mounts, host.unified_mount] if mount]


def text(cgroup: CgroupManager, controller: str, file: str) -> str:
    return Path(cgroup.paths[controller], file).read_text().strip()


def devices_of(cgroup: CgroupManager) -> set[str]:
    return set(text(cgroup, "devices", "devices.list").splitlines())


class TestCreate:
    def test_every_hierarchy_gets_a_directory_and_the_process(self, make: Make, host: HostFacts) -> None:
        cgroup = make(resources=Resources())
        with member(way_into(cgroup)) as process:
            lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
            assert len(lines) == len(host.hierarchies) + (host.unified is not None)
            assert all(line.endswith(f":{TOP}/a") for line in lines), lines
            assert cgroup.pids() == [process.pid]

    def test_limits_are_in_force_before_anyone_enters(self, make: Make) -> None:
        wanted = Resources(
            memory=Memory(limit=64 * MEBIBYTE, reservation=32 * MEBIBYTE, swappiness=10),
            cpu=Cpu(shares=512, quota=50000, period=20000, burst=10000),
            pids=Pids(17),
            block_io=BlockIo(throttle_read_bps_device=()),
        )
        cgroup = make(resources=wanted)
        assert text(cgroup, "memory", "memory.limit_in_bytes") == str(64 * MEBIBYTE)
        assert text(cgroup, "memory", "memory.soft_limit_in_bytes") == str(32 * MEBIBYTE)
        assert text(cgroup, "memory", "memory.swappiness") == "10"
        assert text(cgroup, "cpu", "cpu.shares") == "512"
        assert text(cgroup, "cpu", "cpu.cfs_quota_us") == "50000"
        assert text(cgroup, "cpu", "cpu.cfs_period_us") == "20000"
        assert text(cgroup, "cpu", "cpu.cfs_burst_us") == "10000"
        assert text(cgroup, "pids", "pids.max") == "17"
        assert cgroup.pids() == []

    def test_cpusets_are_filled_down_to_the_new_cgroup(self, make: Make) -> None:
        first, second = make("x/y/a", Resources()), make("x/y/b", Resources())
        for cgroup in (first, second):
            assert text(cgroup, "cpuset", "cpuset.cpus")
            assert text(cgroup, "cpuset", "cpuset.mems")
        first.destroy()
        second.destroy()
        for mount in {os.path.dirname(path) for path in first.paths.values()}:
            os.rmdir(mount)
            os.rmdir(os.path.dirname(mount))

    def test_cpuset_as_asked(self, make: Make) -> None:
        cgroup = make(resources=Resources(cpu=Cpu(cpus="0")))
        assert text(cgroup, "cpuset", "cpuset.cpus") == "0"
        with member(way_into(cgroup)) as process:
            assert os.sched_getaffinity(process.pid) == {0}

    def test_parent_with_empty_cpuset_made_by_others(self, make: Make, host: HostFacts) -> None:
        for directory in tops(host):
            directory.mkdir()
        cgroup = make(resources=Resources(cpu=Cpu(mems="0")))
        assert text(cgroup, "cpuset", "cpuset.cpus")
        with member(way_into(cgroup)):
            pass

    def test_handed_over_descriptors_belong_to_the_caller(self, make: Make) -> None:
        cgroup = make(resources=Resources())
        first = cgroup.open_procs()
        again = cgroup.open_procs()
        assert len(first) == len(again) == len([name for name in cgroup.paths if name])
        cgroup.close()
        for fd in first + again:
            os.close(fd)

    def test_apply_moves_a_process_in(self, make: Make) -> None:
        cgroup = make(resources=Resources())
        process = Member(OUTSIDE)
        process.wait_ready()
        cgroup.apply(process.pid)
        assert cgroup.pids() == [process.pid]
        process.close()

    def test_state_round_trip(self, make: Make, host: HostFacts) -> None:
        cgroup = make(resources=Resources())
        assert from_state(host, cgroup.to_state()).paths == cgroup.paths


class TestRefusal:
    def test_processes_inside(self, make: Make) -> None:
        cgroup = make(resources=Resources())
        with (
            member(way_into(cgroup), lambda: fork_children(2)),
            pytest.raises(FailedPrecondition, match=r"container's cgroup is not empty: 3 process\(es\) found"),
        ):
            make().create(Resources())
        assert cgroup.exists()

    def test_processes_in_a_sub_cgroup_of_one_hierarchy(self, make: Make) -> None:
        cgroup = make(resources=Resources())
        sub = Path(cgroup.paths["pids"], "sub")
        sub.mkdir()
        process = Member(Way(-1, [os.open(sub / "cgroup.procs", os.O_WRONLY)]))
        process.wait_ready()
        with pytest.raises(FailedPrecondition, match=r"not empty: 1 process\(es\) found"):
            make().create(Resources())
        process.close()

    def test_frozen(self, make: Make) -> None:
        cgroup = make(resources=Resources())
        cgroup.freeze()
        with pytest.raises(FailedPrecondition, match="container's cgroup unexpectedly frozen"):
            make().create(Resources())
        cgroup.thaw()
        make().create(Resources())

    def test_a_refused_limit_leaves_nothing(self, make: Make, host: HostFacts) -> None:
        cgroup = make("x/a")
        with pytest.raises(RuntimeFailure) as caught:
            cgroup.create(Resources(cpu=Cpu(cpus="4000")))
        path = cgroup.paths["cpuset"]
        assert str(caught.value).startswith(f'failed to write "4000": write {path}/cpuset.cpus: ')
        assert not any(directory.exists() for directory in tops(host))

    def test_limit_of_a_controller_that_is_not_mounted(self, make: Make, host: HostFacts) -> None:
        if any("rdma" in hierarchy.controllers for hierarchy in host.hierarchies):
            pytest.skip("all controllers are mounted here")
        cgroup = make()
        missing = Resources(hugepage_limits=(HugepageLimit("2MB", 0),))
        with pytest.raises(RuntimeFailure, match="cannot set hugetlb limit"):
            cgroup.create(missing)
        assert not cgroup.exists()

    def test_bad_block_device_names_the_file(self, make: Make) -> None:
        throttle = BlockIo(throttle_read_bps_device=(ThrottleDevice(4000, 1, 10),))
        with pytest.raises(RuntimeFailure, match=r'failed to write "4000:1 10": write .*read_bps_device: '):
            make().create(Resources(block_io=throttle))


class TestDevices:
    def test_default_rules(self, make: Make, tmp_path: Path) -> None:
        cgroup = make(resources=Resources(devices=(DeviceRule(allow=False, access="rwm"),)))
        assert "c 1:3 rwm" in devices_of(cgroup)
        assert "a *:* rwm" not in devices_of(cgroup)

        def use_devices() -> None:
            os.mknod(tmp_path / "mem", 0o020600, os.makedev(1, 1))
            with open("/dev/null", "wb") as null:
                null.write(b"x")
            with pytest.raises(PermissionError):
                os.open(tmp_path / "mem", os.O_RDONLY)

        with member(way_into(cgroup), use_devices):
            pass

    def test_sequence_of_rules(self, make: Make) -> None:
        sequence = (
            DeviceRule(allow=False),
            DeviceRule(allow=True, type="b", major=7, minor=0, access="rw"),
            DeviceRule(allow=True, type="c", major=226, access="rwm"),
            DeviceRule(allow=False, type="b", major=7, minor=0, access="w"),
        )
        found = devices_of(make(resources=Resources(devices=sequence)))
        assert {"b 7:0 r", "c 226:* rwm"} <= found

    def test_allow_all(self, make: Make) -> None:
        found = devices_of(make(resources=Resources(devices=(DeviceRule(allow=True, type="a", access="rwm"),))))
        assert found == {"a *:* rwm"}

    def test_existing_cgroup_is_brought_to_the_wanted_rules(self, make: Make) -> None:
        make(resources=Resources(devices=(DeviceRule(allow=True, type="b", major=7, minor=0, access="rw"),)))
        again = make(resources=Resources(devices=(DeviceRule(allow=True, type="b", major=7, minor=1, access="r"),)))
        found = devices_of(again)
        assert "b 7:1 r" in found
        assert not any(line.startswith("b 7:0") for line in found)


class TestFreezeAndKill:
    def test_freeze_and_thaw(self, make: Make) -> None:
        cgroup = make(resources=Resources())
        with member(way_into(cgroup), lambda: fork_children(3)):
            assert not cgroup.frozen()
            cgroup.freeze()
            assert cgroup.frozen()
            cgroup.thaw()
            assert not cgroup.frozen()

    def test_frozen_from_above_is_not_frozen(self, make: Make) -> None:
        parent, child = make("p", Resources()), make("p/c", Resources())
        parent.freeze()
        assert parent.frozen()
        assert not child.frozen()
        parent.thaw()
        child.destroy()

    @pytest.mark.parametrize("frozen", [False, True])
    def test_kill_reaches_everybody(self, make: Make, frozen: bool) -> None:  # noqa: FBT001
        cgroup = make(resources=Resources())
        with member(way_into(cgroup), lambda: fork_children(5)) as process:
            if frozen:
                cgroup.freeze()
            pids = cgroup.pids()
            assert len(pids) == 6
            cgroup.kill()
            assert process.wait_end() == -signal.SIGKILL
            for pid in pids:
                wait.process_gone(pid)
        cgroup.destroy()
        assert not cgroup.exists()

    def test_other_signals_leave_a_paused_container_paused(self, make: Make) -> None:
        cgroup = make(resources=Resources())
        with member(way_into(cgroup)) as process:
            cgroup.freeze()
            cgroup.kill(signal.SIGTERM)
            assert cgroup.frozen()
            cgroup.thaw()
            assert process.wait_end() == -signal.SIGTERM

    def test_kill_finds_who_left_the_unified_hierarchy(self, make: Make, host: HostFacts) -> None:
        cgroup = make(resources=Resources())
        with member(way_into(cgroup)) as process:
            if host.unified:
                Path(host.unified.mount_point, "cgroup.procs").write_text(str(process.pid))
            cgroup.kill()
            assert process.wait_end() == -signal.SIGKILL

    def test_single_kill_of_a_frozen_process_needs_waking(self, make: Make) -> None:
        cgroup = make(resources=Resources())
        with member(way_into(cgroup)) as process:
            cgroup.freeze()
            os.kill(process.pid, signal.SIGKILL)
            cgroup.wake_killed()
            assert process.wait_end() == -signal.SIGKILL

    def test_everything_is_quiet_about_a_cgroup_that_is_gone(self, make: Make) -> None:
        cgroup = make()
        assert not cgroup.frozen()
        assert cgroup.pids() == []
        cgroup.kill()
        cgroup.wake_killed()
        cgroup.destroy()


class TestTree:
    def test_sub_cgroups_are_found_and_removed(self, make: Make) -> None:
        cgroup = make(resources=Resources())
        for path in cgroup.paths.values():
            os.makedirs(f"{path}/x/y")
            os.makedirs(f"{path}/z")
        fill_cpusets(cgroup.paths["cpuset"], "x", "y")
        with member(way_of_exec(cgroup, 0, "x/y")) as process:
            assert cgroup.pids() == [process.pid]
        cgroup.destroy()
        assert not cgroup.exists()

    def test_nesting_deeper_than_any_path(self, make: Make) -> None:
        cgroup = make(resources=Resources())
        process = Member(OUTSIDE)
        process.wait_ready()
        nest(cgroup.paths["freezer"], 40, process.pid)
        assert cgroup.pids() == [process.pid]
        cgroup.kill()
        assert process.wait_end() == -signal.SIGKILL
        process.close()
        cgroup.destroy()
        assert not cgroup.exists()

    def test_many_at_once_below_one_parent(self, host: HostFacts, make: Make) -> None:
        make()
        problems: list[Exception] = []

        def live(name: str) -> None:
            try:
                for _ in range(20):
                    cgroup = manager(host, cgroups_path=f"{TOP}/{name}", container_id=name)
                    cgroup.create(Resources(pids=Pids(5)))
                    cgroup.destroy()
                    for directory in tops(host):  # take the parent away from the others
                        with contextlib.suppress(OSError):
                            directory.rmdir()
            except Exception as err:  # noqa: BLE001 (reported by the test)
                problems.append(err)

        threads = [threading.Thread(target=live, args=(f"t{index}",)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []

    def test_busy_cgroup_is_reported_and_kept(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shimd.cgroups.files._RMDIR_ROUNDS", 2)
        cgroup = make(resources=Resources())
        with (
            member(way_into(cgroup)),
            pytest.raises(RuntimeFailure, match=r"unable to remove cgroup: rmdir .*: device or resource busy"),
        ):
            cgroup.destroy()
        assert cgroup.exists()


def fill_cpusets(path: str, *names: str) -> None:
    for name in names:
        for file in ("cpuset.cpus", "cpuset.mems"):
            Path(path, name, file).write_text(Path(path, file).read_text())
        path = f"{path}/{name}"


def nest(path: str, depth: int, pid: int) -> None:
    """Cgroups with long names, one in the other, and a process in the innermost."""
    fd = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("n" * 200, dir_fd=fd)
        inner = os.open("n" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    with open(os.open("cgroup.procs", os.O_WRONLY, dir_fd=fd), "w") as procs:
        procs.write(str(pid))
    os.close(fd)


class TestExec:
    def test_joins_the_container(self, make: Make) -> None:
        cgroup = make(resources=Resources())
        with (
            member(way_into(cgroup)) as init,
            member(way_of_exec(cgroup, init.pid)) as process,
        ):
            assert cgroup.pids() == sorted([init.pid, process.pid])

    def test_follows_an_init_whose_cgroup_was_taken_away(self, make: Make) -> None:
        cgroup, other = make("a", Resources()), make("b", Resources())
        with member(way_into(cgroup)) as init:
            other.apply(init.pid)
            cgroup.destroy()
            with member(way_of_exec(cgroup, init.pid)) as process:
                assert other.pids() == sorted([init.pid, process.pid])

    def test_missing_sub_cgroup(self, make: Make) -> None:
        cgroup = make(resources=Resources())
        with pytest.raises(RuntimeFailure, match=r"unable to enter the cgroup .*: open .*/a/sub/tasks: no such file"):
            cgroup.exec_procs(1, {"": "sub"})


class TestWithoutPermission:
    """As a rootless caller, whom the hierarchies do not belong to."""

    @staticmethod
    def as_nobody(check: Callable[[HostFacts], None]) -> None:
        host = probe()._replace(euid=65534)

        def drop() -> None:
            become(65534)
            check(host)

        run_in_child(drop)

    def test_no_limits_and_no_path_is_no_cgroup(self) -> None:
        def check(host: HostFacts) -> None:
            cgroup = manager(host, cgroups_path="", container_id=TAG)
            cgroup.create(Resources())
            assert cgroup.paths == {}
            assert cgroup.open_procs() == []
            assert cgroup.cgroup_fd() == -1
            with pytest.raises(FailedPrecondition, match="no freezer cgroup"):
                cgroup.freeze()
            assert from_state(host, cgroup.to_state()).paths == {}
            cgroup.destroy()

        self.as_nobody(check)

    @pytest.mark.parametrize(("path", "limit"), [("", 5), (TOP, None)])
    def test_limits_or_a_path_are_an_error(self, path: str, limit: int | None) -> None:
        def check(host: HostFacts) -> None:
            cgroup = manager(host, cgroups_path=path, container_id=TAG)
            with pytest.raises(RuntimeFailure, match=r"mkdir .*: permission denied"):
                cgroup.create(Resources(pids=Pids(limit)))

        self.as_nobody(check)


class TestUpdate:
    CURRENT = Resources(memory=Memory(limit=64 * MEBIBYTE), cpu=Cpu(quota=50000, period=100000), pids=Pids(10))

    def test_memory_and_swap_grow_and_shrink_together(self, make: Make) -> None:
        cgroup = make(resources=(current := Resources(memory=Memory(limit=8 * MEBIBYTE, swap=16 * MEBIBYTE))))
        for limit, swap in ((32, 64), (4, 8), (100, 100), (8, 16)):
            change = Resources(memory=Memory(limit=limit * MEBIBYTE, swap=swap * MEBIBYTE))
            current = cgroup.update(current, change)
            assert text(cgroup, "memory", "memory.limit_in_bytes") == str(limit * MEBIBYTE)
            assert text(cgroup, "memory", "memory.memsw.limit_in_bytes") == str(swap * MEBIBYTE)
        cgroup.update(current, Resources(memory=Memory(limit=-1)))
        assert int(text(cgroup, "memory", "memory.limit_in_bytes")) > 1 << 60
        assert int(text(cgroup, "memory", "memory.memsw.limit_in_bytes")) > 1 << 60

    @pytest.mark.parametrize(
        ("quota", "period", "burst"), [(10000, 10000, 0), (400000, 200000, 300000), (2000, 1000, 0)]
    )
    def test_quota_period_and_burst(self, make: Make, quota: int, period: int, burst: int) -> None:
        cgroup = make(resources=self.CURRENT)
        cgroup.update(self.CURRENT, Resources(cpu=Cpu(quota=quota, period=period, burst=burst)))
        assert text(cgroup, "cpu", "cpu.cfs_quota_us") == str(quota)
        assert text(cgroup, "cpu", "cpu.cfs_period_us") == str(period)
        assert text(cgroup, "cpu", "cpu.cfs_burst_us") == str(burst)

    def test_devices_stay(self, make: Make) -> None:
        cgroup = make(resources=self.CURRENT)
        before = devices_of(cgroup)
        cgroup.update(self.CURRENT, Resources(devices=(DeviceRule(allow=True),), pids=Pids(11)))
        assert devices_of(cgroup) == before
        assert text(cgroup, "pids", "pids.max") == "11"

    def test_failure_writes_the_old_values_back(self, make: Make) -> None:
        cgroup = make(resources=self.CURRENT)
        change = Resources(memory=Memory(limit=32 * MEBIBYTE), cpu=Cpu(cpus="4000"))
        with pytest.raises(RuntimeFailure, match=r"cpuset\.cpus"):
            cgroup.update(self.CURRENT, change)
        assert text(cgroup, "memory", "memory.limit_in_bytes") == str(64 * MEBIBYTE)

    def test_limit_below_usage(self, make: Make) -> None:
        cgroup = make(resources=self.CURRENT)
        with member(way_into(cgroup), lambda: eat(20 * MEBIBYTE)):
            change = Resources(memory=Memory(limit=MEBIBYTE, check_before_update=True))
            with pytest.raises(RuntimeFailure, match=r"rejecting memory limit 1048576 < usage \d+"):
                cgroup.update(self.CURRENT, change)
            assert text(cgroup, "memory", "memory.limit_in_bytes") == str(64 * MEBIBYTE)

    def test_limit_below_what_can_be_reclaimed(self, make: Make) -> None:
        cgroup = make(resources=self.CURRENT)
        with member(way_into(cgroup), lambda: eat(20 * MEBIBYTE)):
            change = Resources(memory=Memory(limit=MEBIBYTE, swap=MEBIBYTE))
            expected = r"unable to set memory limit to 1048576 \(current usage: \d+, peak usage: \d+\)"
            with pytest.raises(RuntimeFailure, match=expected):
                cgroup.update(self.CURRENT, change)


class TestFigures:
    def test_stats(self, make: Make) -> None:
        cgroup = make(resources=Resources(memory=Memory(limit=64 * MEBIBYTE), pids=Pids(10)))
        with member(way_into(cgroup), lambda: eat(8 * MEBIBYTE)):
            found = cgroup.stats()
        assert found.version == 1
        assert found.memory.usage.usage > 8 * MEBIBYTE
        assert found.memory.usage.limit == 64 * MEBIBYTE
        assert found.memory.raw["rss"] > 8 * MEBIBYTE
        assert found.pids == (1, 10)
        assert found.cpu.total > 0
        assert sum(found.cpu.percpu) == pytest.approx(found.cpu.total, rel=0.5)
        assert 0 in found.cpuset.cpus

    def test_oom_kills_are_counted_once_each(self, make: Make) -> None:
        cgroup = make(resources=Resources(memory=Memory(limit=16 * MEBIBYTE, swap=16 * MEBIBYTE)))
        watch = cgroup.oom_watch()
        try:
            assert watch.consume() == 0
            for _ in range(2):
                victim = Member(way_into(cgroup), lambda: eat(64 * MEBIBYTE))
                wait.readable(watch.fileno(), what="the OOM event")
                assert victim.wait_end() == -signal.SIGKILL
                victim.close()
                assert watch.consume() == 1
                assert watch.consume() == 0
            assert cgroup.stats().memory.oom_kill == 2
            cgroup.destroy()
            assert watch.consume() == 0
        finally:
            watch.close()
            watch.close()
