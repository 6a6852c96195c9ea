"""What travels to the target: the standard library, numpy and TensorRT only, and relative imports only.

The folder is copied to a board as it is and runs there as a plain package, under any name.
"""
