"""Subcommands of ``ladder``, one module each: ``register(app)`` hangs them onto the command."""
