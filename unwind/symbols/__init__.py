"""Names: an image and a vaddr in, functions out."""
