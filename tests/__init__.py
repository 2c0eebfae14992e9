"""The tests: one module for each module of the library, and some for its structure."""
