"""The public operations: one module each, with its checks, its autograd and its table of backends."""
