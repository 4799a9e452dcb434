"""Train the diffusion prior: ``accelerate launch train_prior.py --config demo [--out DIR] [--SETTING VALUE …]``."""

import sys

from embedprior.prior.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
