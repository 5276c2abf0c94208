"""Report pages: pure functions from results to one self-contained HTML page; the caller writes the file."""
