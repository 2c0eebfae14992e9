"""BPF programs and what loads them."""
