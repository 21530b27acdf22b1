"""``rlhf conformance``: golden vectors against any implementation of the formulas of RLHF.

``checks/`` has the vectors, ``oracles/`` computes what to expect as loops over Python floats, ``signatures.py`` says
what an implementation looks like, ``adapters/`` knows ours and some peers, ``run.py`` asks and compares.
"""

from .command import main

__all__ = ["main"]
