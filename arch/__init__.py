"""Architectures as tables: each module exposes one `ARCH`."""
