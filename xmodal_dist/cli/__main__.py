"""``python -m xmodal_dist.cli``."""

from __future__ import annotations

from xmodal_dist.cli.app import main

if __name__ == "__main__":
    main()
