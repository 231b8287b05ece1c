"""Reading and writing image and mask files."""

import logging

for _library in ("imagecodecs", "tifffile"):  # without a handler, they would print warnings about metadata
    logging.getLogger(_library).addHandler(logging.NullHandler())
