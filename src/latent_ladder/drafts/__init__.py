"""Many drafts of one request, and refining the chosen ones."""
