"""What every model family promises, over the whole table of `tests/families/`."""
