"""Training: ``loop`` is the file to read first; ``launch`` starts it on the workers of a Ray cluster."""
