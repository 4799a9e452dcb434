"""Train the diffusion prior: ``accelerate launch train_prior.py --config demo [--out DIR] [--SETTING VALUE …]``."""

import sys

from embedprior.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "prior", *sys.argv[1:]]))
