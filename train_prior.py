"""Train the diffusion prior: ``accelerate launch train_prior.py --config demo [--out DIR] [--SETTING VALUE …]``."""

import sys

from embedprior.cli import entry

if __name__ == "__main__":
    sys.argv[1:1] = ["train", "prior"]
    entry()
