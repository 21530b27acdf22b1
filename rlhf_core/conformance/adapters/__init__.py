"""Implementations that the suite knows: ours, and peers by their real code. One file a distribution.

Each has ``VARIANTS``, the names of its columns, and ``implementation(variant)``. What a peer has no function for, or
what can only be had from it by writing its formula here, is not offered.
"""
