"""What a cluster runs: ``python -m jobs.tune ...`` is ``xmodal tune ...``."""

from __future__ import annotations

import sys

from xmodal_dist.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
