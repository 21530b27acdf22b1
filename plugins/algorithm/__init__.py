"""Algorithms: how a policy gets better from data."""
