"""Packed datasets: schema, manifest, writer, splits, the plan of an epoch, quarantine."""
