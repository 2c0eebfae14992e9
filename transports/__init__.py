"""Transports, one a module: each exposes one `TRANSPORT`, which opens snapshots."""
