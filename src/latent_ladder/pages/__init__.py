"""Shared parts of HTML pages: style, script, escaping, and files as data."""
