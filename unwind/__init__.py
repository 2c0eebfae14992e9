"""Stack unwinding from CFI: registers, memory and modules in, frames out."""
