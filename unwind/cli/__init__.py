"""The commands, one a module: arguments in, an exit code out."""
