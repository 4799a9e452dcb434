"""The diffusion prior p(z_CT | z_CXR): network, process, sampling, training.

Importing this package, or ``embedprior.prior.config``, does not import torch.
"""
