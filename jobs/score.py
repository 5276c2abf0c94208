"""What a cluster runs: ``python -m jobs.score ...`` is ``xmodal score ...``."""

from __future__ import annotations

import sys

from xmodal_dist.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
