"""shimd/api/ is what the generator makes of protos/, no more and no less."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.repo.tree import ROOT, files


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    settings = [f"OUT={tmp_path}", f"PYTHON={sys.executable}", f"BIN={Path(sys.executable).parent}", "READY="]
    command = ["make", "--no-print-directory", "protos", *settings]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    made = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kept = {name: (ROOT / name).read_bytes() for name in files() if name.startswith("shimd/api/")}
    drifted = sorted(name for name in made | kept if made.get(name) != kept.get(name) and not is_package_file(name))
    assert not drifted, f"run `make protos` and commit: {drifted}"


def is_package_file(name: str) -> bool:
    """Written by hand, because protoc does not make them."""
    return name.endswith("/__init__.py")
