"""What every node type does, one module a topic; ``MEANINGS`` is the table of them all."""
