"""Scores completions of a folder of images against non-learned baselines."""
