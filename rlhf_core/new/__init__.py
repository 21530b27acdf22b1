"""``rlhf new``: a plugin's package, whole, with a working example to change.

``name.py`` says which names a plugin can have, ``package.py`` fills the files of ``templates/`` in.
"""

from .command import main

__all__ = ["main"]
