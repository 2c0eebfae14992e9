"""Events of the kernel: what our BPF programs send in; stacks of the processes of then out."""
