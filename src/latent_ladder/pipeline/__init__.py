"""Stages and the store of what they made."""
