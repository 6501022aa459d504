"""Sweeps: one clip with many settings of its later stages, measured against its draft."""
