"""Data of the recipes: images, captions, labels, the default emoji, and caches of what frozen models make of them."""
