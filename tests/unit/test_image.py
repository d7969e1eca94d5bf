"""An image gives what the sources say, or nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shimd
from shimd.image import IMAGES

SOURCE = Path(shimd.__file__).parent
_SHOW = """
import sys
sys.path[:0] = [sys.argv[1]]
from shimd.image import load
for image in sys.argv[2].split(","):
    load(image)
early = set(sys.modules)
for name in sys.argv[3].split(","):
    __import__(name)
for name, module in sys.modules.items():
    if name.startswith("shimd.") and name != "shimd.image":
        print(name, name in early, module.__file__, module.__package__, *getattr(module, "__path__", []))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, with its images; beside it nothing."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(SOURCE, folder / "shimd", ignore=shutil.ignore_patterns("__pycache__", "api"))
    write(folder)
    return folder


@pytest.fixture
def tree(made: Path) -> Iterator[Path]:
    """At the place that the images are for."""
    kept = made.with_name("kept")
    shutil.copytree(made, kept)
    yield made
    shutil.rmtree(made)
    kept.rename(made)


def write(tree: Path) -> None:
    subprocess.run([sys.executable, "-m", "shimd.image"], cwd=tree, env={"PYTHONPATH": str(tree)}, check=True)


def loaded(tree: Path, image: str = "spare") -> dict[str, bool]:
    """What the modules of an image import, and whether it came from the image."""
    before, names = IMAGES[image]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _SHOW, str(tree), ",".join((*before, image)), ",".join(names)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    result = {}
    for line in done.stdout.splitlines():
        name, early, file, package, *path = line.split()
        place = tree / name.replace(".", "/")
        assert Path(file) == (place / "__init__.py" if path else place.with_suffix(".py"))
        assert package == (name if path else name.rpartition(".")[0])
        assert path in ([], [str(place)])
        result[name] = early == "True"
    return result


@pytest.mark.parametrize("image", IMAGES)
def test_everything_comes_from_the_image(made: Path, image: str) -> None:
    assert [name for name, early in loaded(made, image).items() if not early] == []


def test_a_changed_source_counts(tree: Path) -> None:
    source = tree / "shimd" / "init" / "main.py"
    source.write_text(source.read_text() + "\n")
    result = loaded(tree)
    assert not result["shimd.init.main"]
    assert result["shimd.linux.mount"]
    write(tree)
    assert loaded(tree)["shimd.init.main"]


def test_a_source_with_another_time_counts(tree: Path) -> None:
    os.utime(tree / "shimd" / "init" / "main.py", ns=(1, 1))
    assert not loaded(tree)["shimd.init.main"]


def test_a_source_that_is_gone_counts(tree: Path) -> None:
    (tree / "shimd" / "typed.py").unlink()
    with pytest.raises(subprocess.CalledProcessError) as raised:
        loaded(tree)
    assert "No module named 'shimd.typed'" in raised.value.stderr


def test_a_module_that_fails_leaves_nothing(tree: Path) -> None:
    source = tree / "shimd" / "init" / "main.py"
    source.write_text(source.read_text() + "\nraise RuntimeError('broken')\n")
    with pytest.raises(subprocess.CalledProcessError):
        write(tree)
    with pytest.raises(subprocess.CalledProcessError) as raised:
        loaded(tree)
    assert "RuntimeError: broken" in raised.value.stderr


def test_images_that_were_moved_are_left_alone(tree: Path) -> None:
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


def test_nothing_but_images_is_left_beside_compiled_files(made: Path) -> None:
    found = [path.name for path in made.glob("shimd/__pycache__/*") if path.suffix != ".pyc"]
    assert sorted(name.partition(".")[0] for name in found) == sorted(IMAGES)
