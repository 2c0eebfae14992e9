"""Live processes: what `transports/process.py` is made of."""
