"""Stub."""
from . import cpu
from .dispatch import set_backend, status, used
from .gae import GAE, shaped_gae
