"""Files that wgeo writes: written atomically, recorded in manifests, and checked when read."""
