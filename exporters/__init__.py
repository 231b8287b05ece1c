"""The network as one file that needs none of this project."""
