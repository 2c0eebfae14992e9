"""Row sources, one a module: a place in, the row in effect there out."""
