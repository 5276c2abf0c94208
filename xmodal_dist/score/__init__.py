"""Scoring: every record of an input exactly once, whoever dies on the way; ``job`` is the file to read first."""
