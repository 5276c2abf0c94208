"""What users would write today, one small program a library; they run in a virtual environment of their own."""
