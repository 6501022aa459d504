"""Commands of ``ladder``, one module per topic: ``register(app)`` adds its commands to the app."""
