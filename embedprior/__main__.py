from embedprior.cli import entry

entry()
