"""The ``xmodal`` command."""

from __future__ import annotations

from xmodal_dist.cli.app import app, main

__all__ = ["app", "main"]
