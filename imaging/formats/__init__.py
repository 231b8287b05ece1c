"""One module per family of file formats, and the parts of the larger ones."""
