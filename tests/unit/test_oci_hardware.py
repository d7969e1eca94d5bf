"""The rules about pieces of the machine: network interfaces, memory nodes, Intel RDT."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_oci_rules import document, namespaces, problems


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, 'mode: invalid memory policy mode ""'),
        ({"nodes": "0-7"}, 'mode: invalid memory policy mode ""'),
        ({"mode": "INTERLEAVE", "nodes": "0"}, 'mode: invalid memory policy mode "INTERLEAVE"'),
        (
            {"mode": "MPOL_PREFERRED", "flags": ["MPOL_F_RELATIVE_NODES", "badflag"]},
            'flags/1: invalid memory policy flag "badflag"',
        ),
        (
            {"mode": "MPOL_DEFAULT", "nodes": "0-7"},
            "nodes: MPOL_DEFAULT: memory policy mode requires 0 nodes but got 8",
        ),
        ({"mode": "MPOL_LOCAL", "nodes": "0"}, "nodes: MPOL_LOCAL: memory policy mode requires 0 nodes but got 1"),
        ({"mode": "MPOL_BIND"}, "nodes: MPOL_BIND: memory policy mode requires at least one node but got 0"),
        (
            {"mode": "MPOL_BIND", "nodes": "0-9876543210"},
            'nodes: invalid memory policy nodes "0-9876543210": "0-9876543210" is not a number or a range',
        ),
        ({"mode": "MPOL_BIND", "nodes": "3,1024"}, 'nodes: invalid memory policy nodes "3,1024": 1024 is above 1023'),
        (
            {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]},
            "flags: MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other",
        ),
    ],
)
def test_memory_policy(policy: dict[str, Any], expected: str) -> None:
    assert problems(document(memoryPolicy=policy)) == [f"/linux/memoryPolicy/{expected}"]


@pytest.mark.parametrize(
    "policy",
    [
        {"mode": "MPOL_DEFAULT"},
        {"mode": "MPOL_PREFERRED"},
        {"mode": "MPOL_PREFERRED", "nodes": "0"},
        {"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0-1023", "flags": ["MPOL_F_NUMA_BALANCING"]},
    ],
)
def test_good_memory_policies(policy: dict[str, Any]) -> None:
    assert problems(document(memoryPolicy=policy)) == []


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ({"": {}}, '/: invalid network device name ""'),
        ({".": {}}, '/.: invalid network device name "."'),
        ({"..": {}}, '/..: invalid network device name ".."'),
        ({"a/b": {}}, '/a~1b: invalid network device name "a/b"'),
        ({"sixteen-bytes-it": {}}, '/sixteen-bytes-it: invalid network device name "sixteen-bytes-it"'),
        ({"eth0": {"name": "e 0"}}, '/eth0/name: invalid network device name "e 0"'),
        ({"eth0": {"name": "e:0"}}, '/eth0/name: invalid network device name "e:0"'),
        ({"eth0": {"name": "e\u00a00"}}, '/eth0/name: invalid network device name "e\\u00a00"'),
        ({"eth0": {"name": "ääääääää"}}, "/eth0/name: invalid network device name"),
        ({"lo": {"name": "eth0"}}, "/lo: every network namespace has its own lo"),
        ({"eth0": {"name": "lo"}}, "/eth0: every network namespace has its own lo"),
        ({"eth0": {"name": "x"}, "eth1": {"name": "x"}}, '/eth1/name: "x" is the name of "eth0" in the container, too'),
        ({"eth0": {"name": "eth1"}, "eth1": {}}, '/eth1/name: "eth1" is the name of "eth0" in the container, too'),
    ],
)
def test_network_devices(devices: dict[str, Any], expected: str) -> None:
    (problem,) = problems(document(netDevices=devices))
    assert problem.startswith(f"/linux/netDevices{expected}")


def test_network_devices_need_a_namespace() -> None:
    assert problems(document(netDevices={"eth0": {}}, namespaces=namespaces("network"))) == [
        "/linux/netDevices: unable to move network devices without a private network namespace"
    ]


def test_good_network_devices() -> None:
    devices = {"eth0": {"name": "eth1"}, "eth1": {"name": "eth0"}, "fifteen-bytes-x": {"name": "ä"}}
    assert problems(document(netDevices=devices)) == []


@pytest.mark.parametrize("name", [".", "..", "a/b", "/a", "info", "mon_groups", "mon_data", "two\nlines"])
def test_names_that_are_no_class_of_rdt(name: str) -> None:
    (problem,) = problems(document(intelRdt={"closID": name}))
    assert problem.startswith("/linux/intelRdt/closID: invalid intelRdt.ClosID ")


def test_schemata_are_lines() -> None:
    assert problems(document(intelRdt={"closID": "/", "schemata": ["L3:0=f", "a\nb"]})) == [
        '/linux/intelRdt/schemata/1: "a\\nb" is more than one line'
    ]
