"""Image file formats: one module per family, and the parts of the larger ones.

A new format needs its signature, opener and suffix in `imaging/image_file.py` (`SIGNATURES`, `OPENED`,
`open_container`, `SUFFIXES`), its suffix for training in `imaging/files.py` (`EXTENSIONS`), a module here or
a row in `pillow_file.py`, its inventory in `imaging/inventory.py`, and a kind in `tests/imaging/kinds.py`.
"""

QUALITY = 95  # for formats that cannot be written without loss


def reencoding_note(kind: str) -> str:
    """The note for a kind of file of which every pixel changes a little."""
    return f"{kind} is re-encoded at quality {QUALITY} and changes a little (--lossless: PNG)"


def add_note(notes: list[str], note: str) -> None:
    """Append a note, unless it is there already."""
    if note not in notes:
        notes.append(note)
