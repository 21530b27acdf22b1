"""Rewards: what scores responses."""
