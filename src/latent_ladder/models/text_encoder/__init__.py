"""Text encoder: tokenizer, Gemma 3, projections and connectors."""
