"""Checks before a job, each with what to do: of this machine, a cluster's nodes, and a dataset with its settings."""
