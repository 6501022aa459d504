"""Stages of the pipeline, one file per kind; :mod:`.table` lists them."""
