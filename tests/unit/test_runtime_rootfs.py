"""Options of the mounts of a create request."""

from __future__ import annotations

import pytest

from shimd.errors import InvalidArgument, Unimplemented
from shimd.linux import mount as m
from shimd.runtime import mapped
from shimd.runtime.rootfs import join_layers, parse_options, split_layers


def test_no_option_asks_for_nothing() -> None:
    assert not any(parse_options([]))


def test_flags_become_attributes_and_superblock_words() -> None:
    parsed = parse_options(["ro", "nosuid", "nodev", "noexec", "noatime"])
    attributes = m.MOUNT_ATTR_RDONLY | m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC
    assert parsed.attr_set == attributes | m.MOUNT_ATTR_NOATIME
    assert parsed.attr_clear == m.MOUNT_ATTR__ATIME
    assert parsed.superblock == ("ro",)


def test_of_contradicting_options_the_last_wins() -> None:
    assert parse_options(["ro", "rw"]).attr_set == 0
    assert parse_options(["ro", "rw"]).superblock == ()
    assert parse_options(["rw", "ro"]).attr_set == m.MOUNT_ATTR_RDONLY
    assert parse_options(["noatime", "strictatime"]).attr_set == m.MOUNT_ATTR_STRICTATIME


@pytest.mark.parametrize(("option", "recursive"), [("bind", False), ("rbind", True)])
def test_binds(option: str, recursive: bool) -> None:  # noqa: FBT001  # a parameter of the test
    parsed = parse_options([option])
    assert (parsed.bind, parsed.recursive) == (True, recursive)


def test_propagation_loop_and_data() -> None:
    parsed = parse_options(["rslave", "loop", "defaults", "size=1m,mode=755", "index=off"])
    assert (parsed.propagation, parsed.propagation_recursive) == (m.MS_SLAVE, True)
    assert parsed.loop
    assert parsed.data == ("size=1m", "mode=755", "index=off")


def test_a_comma_is_part_of_an_overlay_path() -> None:
    assert parse_options(["lowerdir=/a,b:/c"]).data == ("lowerdir=/a,b:/c",)


def test_what_cannot_be_done_is_refused_by_name() -> None:
    with pytest.raises(Unimplemented, match="remount"):
        parse_options(["remount"])


def test_maps() -> None:
    options = ["uidmap=0:1000:10,10:5000:5", "gidmap=0:7:1", "ro", "index=off"]
    maps = mapped.read(options)
    assert maps == (((0, 1000, 10), (10, 5000, 5)), ((0, 7, 1),))
    assert parse_options(options).data == ("index=off",)
    assert mapped.read(["ro"]) is None


@pytest.mark.parametrize(
    "options",
    [
        ["uidmap=0:1:2"],
        ["uidmap=0:1:2", "gidmap="],
        ["uidmap=0:1", "gidmap=0:1:2"],
        ["uidmap=0:1:2", "gidmap=0:1:-2"],
        ["uidmap=0:1:0", "gidmap=0:1:2"],
        ["uidmap=0:1:2", "uidmap=0:1:2", "gidmap=0:1:2"],
    ],
)
def test_wrong_maps(options: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="idmap"):
        mapped.read(options)


def test_a_null_byte_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="null byte"):
        parse_options(["size=1\0"])


@pytest.mark.parametrize(
    ("value", "layers"),
    [
        ("/a", [("lowerdir+", "/a")]),
        ("/a:/b", [("lowerdir+", "/a"), ("lowerdir+", "/b")]),
        ("/a\\:b:/c\\\\d", [("lowerdir+", "/a:b"), ("lowerdir+", "/c\\d")]),
        ("/a::/data", [("lowerdir+", "/a"), ("datadir+", "/data")]),
    ],
)
def test_layers_of_an_overlay(value: str, layers: list[tuple[str, str]]) -> None:
    assert split_layers(value) == layers
    assert join_layers(layers) == value
