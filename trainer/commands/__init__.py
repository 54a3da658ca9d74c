"""One file per command; `trainer/cli.py` puts them together."""
