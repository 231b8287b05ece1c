"""docs/FILES.md states the effect of filling on every property of every format.

To write the table again: `python tests/imaging/test_file_table.py --write`.
"""

import re
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))  # if this runs as a script

from properties import observe, render  # noqa: E402

PAGE = REPOSITORY / "docs" / "FILES.md"
TABLE = re.compile(r"^\| \| known pixels.*?(?=\n\n)\n", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, dict[str, str]]]:
    pytest.importorskip("pillow_heif")
    return observe()


def test_no_property_is_lost_without_a_note(rows: list[tuple[str, dict[str, str]]]) -> None:
    good = {"kept", "renewed", "noted", "refused", "–"}
    assert [(form, name, cell) for form, row in rows for name, cell in row.items() if cell not in good] == []


def test_the_page_has_the_table_that_the_code_makes(rows: list[tuple[str, dict[str, str]]]) -> None:
    found = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == render(rows), f"write it again: python {Path(__file__).name} --write"


if __name__ == "__main__":
    table = render(observe())
    print(table)
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(TABLE.sub(lambda _: table, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
