"""Files and folders that wgeo writes: written atomically, listed, and checked when read."""
