"""Train with a preset: `train.py` with `--config`."""

from train import main
from utils import run_program

if __name__ == "__main__":
    run_program(lambda: main(prog="quick_train.py", presets=True), "quick_train.py")
