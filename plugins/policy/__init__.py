"""Policies: the language model being trained."""
