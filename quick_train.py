"""Train with a preset: `train.py` with `--config`."""

from cli import run_program
from train import main

if __name__ == "__main__":
    run_program(lambda: main(prog="quick_train.py", presets=True), "quick_train.py")
