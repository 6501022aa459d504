"""Files on disk: atomic writes, the artefact store, locks, run records, hashes."""
