"""Static analysis of workflows: validation, shape inference, required files, lint."""
