"""Train with a preset: `train.py` with `--config`."""

import sys

from train import main

if __name__ == "__main__":
    sys.exit(main(prog="quick_train.py", presets=True))
