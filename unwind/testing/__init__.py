"""For tests of unwinders, ours and others': strategies and oracles."""
