"""What a cluster runs: ``python -m jobs.pack ...`` is ``xmodal pack ...``."""

from __future__ import annotations

import sys

from xmodal_dist.cli import main

if __name__ == "__main__":
    main(["pack", *sys.argv[1:]])
