"""Crashes as the kernel hands them to a program: what `unwind-core --from-kernel` is made of."""
