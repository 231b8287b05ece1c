"""The documented command for training with a preset; the same program as `train.py`."""

from train import main
from utils import run_program

if __name__ == "__main__":
    run_program(lambda: main(prog="quick_train.py"), "quick_train.py")
