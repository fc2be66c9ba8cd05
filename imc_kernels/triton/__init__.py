"""Triton kernels and their launchers: one module per operation, imported when it is first used.

A kernel reads half precision itself and computes in float32. Programs write partial sums into a workspace, and a later
launch adds them in a fixed order: there are no atomics, so results are bitwise reproducible. Batch sizes are run-time
arguments that Triton does not specialise on; K, C and the number of views, which a model fixes, are constants of the
compiled code, which is what lets rows of any length be read in 16-byte pieces.
"""
