"""Image file formats: one module per family, and the parts of the larger ones."""

QUALITY = 95  # for formats that cannot be written without loss


def reencoding_note(kind: str) -> str:
    """The note for a kind of file of which every pixel changes a little."""
    return f"{kind} is re-encoded at quality {QUALITY} and changes a little (--lossless: PNG)"


def add_note(notes: list[str], note: str) -> None:
    """Append a note, unless it is there already."""
    if note not in notes:
        notes.append(note)
