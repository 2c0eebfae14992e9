"""What the makers of unwind run: `python -m tools.NAME` from the top of the tree."""
