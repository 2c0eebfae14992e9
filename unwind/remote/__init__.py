"""The GDB remote serial protocol: packets, a stub's documents, and the commands of a client."""
