"""Evaluators: judges that training never saw."""
