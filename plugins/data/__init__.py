"""Data: prompts, demonstrations, rankings, text."""
