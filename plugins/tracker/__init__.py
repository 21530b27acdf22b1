"""Trackers: where metrics go beside metrics.jsonl."""
