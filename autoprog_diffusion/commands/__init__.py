"""The `autoprog-diffusion` command: a file for every subcommand, and their registry in `main.py`."""
