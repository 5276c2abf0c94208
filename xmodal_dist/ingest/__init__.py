"""From raw sources (tables, class folders, the demo) to a packed dataset."""
