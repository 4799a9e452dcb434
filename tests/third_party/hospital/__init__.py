"""What a hospital adds to embedprior in a package of its own: an encoder, two methods, a renderer, a cohort source."""
