"""An image gives what the sources say, or nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shimd

SOURCE = Path(shimd.__file__).parent
MODULE = "linux/path.py"
_SHOW = """
import sys
sys.path[:0] = [sys.argv[1]]
from shimd.image import use
use(sys.argv[2])
from shimd.init import spare
for name, module in sys.modules.items():
    if name.startswith("shimd."):
        print(name, type(module.__loader__).__name__ == "_Image", module.__file__, hasattr(module, "__path__"))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package, with its images; beside it nothing."""
    shutil.copytree(SOURCE, tmp_path / "shimd", ignore=shutil.ignore_patterns("__pycache__", "api"))
    write(tmp_path)
    return tmp_path


def write(tree: Path) -> None:
    subprocess.run([sys.executable, "-m", "shimd.image"], cwd=tree, env={"PYTHONPATH": str(tree)}, check=True)


def loaded(tree: Path, program: str = "spare") -> dict[str, bool]:
    """The modules of a spare, and whether they came from the image."""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", _SHOW, str(tree), program],
                          capture_output=True, text=True, check=True)  # fmt: skip
    result = {}
    for line in done.stdout.splitlines():
        name, from_image, file, is_package = line.split()
        expected = tree / name.replace(".", "/")
        assert Path(file) == (expected / "__init__.py" if is_package == "True" else expected.with_suffix(".py"))
        result[name] = from_image == "True"
    return result


def test_everything_comes_from_the_image(tree: Path) -> None:
    assert {name for name, from_image in loaded(tree).items() if not from_image} == {"shimd.image", "shimd.typed"}


def test_a_changed_source_counts(tree: Path) -> None:
    source = tree / "shimd" / MODULE
    source.write_text(source.read_text() + "\n")
    result = loaded(tree)
    assert not result.pop("shimd.linux.path")
    assert result["shimd.linux.mount"]
    write(tree)
    assert loaded(tree)["shimd.linux.path"]


def test_a_source_with_another_time_counts(tree: Path) -> None:
    os.utime(tree / "shimd" / MODULE, ns=(1, 1))
    assert not loaded(tree)["shimd.linux.path"]


def test_an_image_that_was_moved_is_left_alone(tree: Path) -> None:
    moved = tree / "moved"
    moved.mkdir()
    shutil.move(tree / "shimd", moved / "shimd")
    assert not any(loaded(moved).values())


@pytest.mark.parametrize("content", [b"", b"\xe9", b"image", b"N"])
def test_an_image_that_is_none_is_left_alone(tree: Path, content: bytes) -> None:
    (image,) = tree.glob("shimd/__pycache__/spare.*.image")
    image.write_bytes(content)
    assert not any(loaded(tree).values())


def test_without_an_image_all_is_as_always(tree: Path) -> None:
    (image,) = tree.glob("shimd/__pycache__/spare.*.image")
    image.unlink()
    assert not any(loaded(tree).values())


def test_nothing_but_images_is_left_beside_them(tree: Path) -> None:
    found = [path.name for path in tree.glob("shimd/__pycache__/*") if path.suffix != ".pyc"]
    assert sorted(name.partition(".")[0] for name in found) == ["shimrun", "spare"]
