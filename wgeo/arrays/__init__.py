"""Check input arrays, and read them in chunks of rows."""
