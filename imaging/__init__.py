"""Image and mask files, in and out."""

import logging

for _library in ("imagecodecs", "tifffile"):  # which would print what they think of a file's metadata
    logging.getLogger(_library).addHandler(logging.NullHandler())
