"""Doctor, preset readiness, recommendation and warnings about a request."""
