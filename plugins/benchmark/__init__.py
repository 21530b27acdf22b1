"""Implementations of ops for ``rlhf bench`` to compare: plain PyTorch, ours, and those of other packages."""
