import errno
from pathlib import Path

import pytest

from utils import atomic_path, run_program


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupt_is_one_line_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_program(interrupted, "test.py")
    assert ended.value.code == 130 and capsys.readouterr().err == "test.py: interrupted\n"


def test_a_full_disk_names_the_file_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> int:
        with atomic_path(tmp_path / "report.md"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit) as ended:
        run_program(write, "test.py")
    assert ended.value.code == 2
    expected = f"test.py: error: cannot write {tmp_path / 'report.md'}: No space left on device\n"
    assert capsys.readouterr().err == expected and not [*tmp_path.iterdir()]
