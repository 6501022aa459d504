"""The request: fields, stages, overrides, validation, files and presets."""
