"""Arrays as they come in: checked, and read in chunks of rows."""
