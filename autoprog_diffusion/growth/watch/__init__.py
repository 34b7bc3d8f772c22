"""Watching a training loop: checks that nobody else undoes what growth does, or leaves its work to nobody."""
