"""Docstrings, comments and documents are written in plain English, with the field's own terms."""

import ast
import io
import re
import tokenize
from pathlib import Path

from conftest import REPOSITORY

FILES = [
    path
    for path in sorted(REPOSITORY.rglob("*.py"))
    if not any(
        part.startswith((".", "experiments", "results")) for part in path.relative_to(REPOSITORY).parts
    )
]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
ELLIPTIC_DOCSTRING = re.compile(r"(what|how|where|as|of|which)\b", re.IGNORECASE)
ELLIPTIC_COMMENT = re.compile(r"(of|as|that|which|such|from)\b", re.IGNORECASE)
TO_A_TOOL = re.compile(r"$|noqa|type:|fmt:|!|pragma")
MAX_WORDS = 40  # in a sentence of a document
ALLOWED = ("floor(", "--floor", '"floor"')  # the function, and the earlier name of a flag
# private or archaic words, each with the term to write instead
PRIVATE = {
    r"floors?": "baseline",
    r"learnt": "learned",
    r"spoil(t|ed|s)?": "nonfinite, damaged, corrupt",
    r"sittings?": "session, across resumes",
    r"(is|are|be) heard|hears?\b": "attended to, changes",
    r"come along|comes along": "bundled",
    r"the seed's": "(the project's description)",
    r"present network": "current network",
    r"(first|second|third) heat": "experiment 1",
    r"guesswork": "unreliable",
    r"doctor": "check",
    r"laid end to end": "concatenated",
    r"at its word": "as given",
    r"doubled": "duplicated",
    r"trapezoid": "warmup-stable-decay",
}


def docstrings() -> list[str]:
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                found += [f"{path.relative_to(REPOSITORY)}: {text.splitlines()[0]}"] if text else []
    return found


def comments() -> list[str]:
    found = []
    for path in FILES:
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        texts = [token.string.lstrip("#: ") for token in tokens if token.type == tokenize.COMMENT]
        found += [f"{path.relative_to(REPOSITORY)}: {text}" for text in texts if not TO_A_TOOL.match(text)]
    return found


def share(lines: list[str], pattern: re.Pattern[str]) -> tuple[float, list[str]]:
    """The share of lines whose text, after the file's name, begins as the pattern says, and those lines."""
    hits = [line for line in lines if pattern.match(line.partition(": ")[2])]
    return len(hits) / len(lines), hits


def sentences(path: Path) -> list[str]:
    """The sentences of a Markdown document, without code, tables, headings and the targets of links."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$", "\n\n", path.read_text(), flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)|<[^>]*>", "]", text)
    lines = ["" if line.startswith(("|", "#", "!")) else line for line in text.splitlines()]
    blocks = re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) ", "\n".join(lines))
    return [
        sentence
        for block in blocks
        for sentence in re.split(r"(?<=[.!?:;])[\"')\]]*\s+", " ".join(block.split()))
    ]


def test_docstrings_begin_with_their_noun_or_verb() -> None:
    ratio, hits = share(docstrings(), ELLIPTIC_DOCSTRING)
    assert ratio < 0.01, "\n".join(hits)


def test_comments_name_what_they_speak_of() -> None:
    ratio, hits = share(comments(), ELLIPTIC_COMMENT)
    assert ratio < 0.03, "\n".join(hits)


def test_documents_have_no_endless_sentence() -> None:
    long = [
        f"{path.name}: {text}"
        for path in DOCUMENTS
        for text in sentences(path)
        if len(text.split()) > MAX_WORDS
    ]
    assert not long, "\n".join(long)


def test_the_terms_are_the_fields_own() -> None:
    texts = {path: path.read_text() for path in [*FILES, *DOCUMENTS] if path.name != "test_language.py"}
    hits = [
        f"{path.relative_to(REPOSITORY)}:{number}: {match.group(0)} (write: {term})"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        for word, term in PRIVATE.items()
        if (match := re.search(rf"\b({word})\b", line, re.IGNORECASE))
        and not any(allowed in line for allowed in ALLOWED)
    ]
    assert not hits, "\n".join(hits)
