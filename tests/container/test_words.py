"""What a failure to make a process is called, which engines and people look for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.container.boxes import NEWER, Box


def refusal(box: Box, *args: str) -> str:
    box.spec["process"]["args"] = list(args)
    box.write()
    return box.runtime.fails("create", "--bundle", str(box.bundle), box.id)


@NEWER  # runc 1.1 has other words
@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("nosuch", 'exec: \\"nosuch\\": executable file not found in $PATH'),
        ("/nosuch", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ],
)
def test_a_program_that_cannot_be_found(box: Box, program: str, text: str) -> None:
    errors = refusal(box, program)
    assert text in errors
    assert "create failed: unable to start container process: error during container init: " in errors


def test_an_interpreter_that_is_missing_is_said_where_the_program_would_speak(box: Box) -> None:
    script = Path(box.bundle / "rootfs/run.sh")
    script.write_text("#!/nosuch\n")
    script.chmod(0o755)
    box.spec["process"]["args"] = ["/run.sh"]
    box.write()
    answer = box.runtime.run("run", "--bundle", str(box.bundle), box.id)
    assert answer.code != 0
    assert answer.output + answer.errors == "exec /run.sh: no such file or directory\n"


def test_the_debug_log_tells_how_far_a_process_came(box: Box) -> None:
    box.start()
    log = box.bundle / "debug.log"
    command = [*box.runtime.command, "--debug", "--log", str(log), "exec", box.id, "true"]
    assert box.runtime.run(command=command).code == 0
    text = log.read_text()
    assert text.index("nsexec container setup") < text.index("child process in init()")
    assert text.index("child process in init()") < text.index("setns_init: about to exec")
