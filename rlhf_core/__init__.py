"""RLHF from a pretrained language model to one that people prefer, every part a plugin."""

__version__ = "0.1.0"

RLHF_API = 1
"""The plugin API number of this release; a plugin states the one it was written for as ``rlhf_api``."""
