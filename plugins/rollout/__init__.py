"""Rollouts: how responses are sampled."""
