"""Files and folders that wgeo writes: whole or not at all, listed, and checked when read."""
