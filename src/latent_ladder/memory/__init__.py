"""Memory planning: costs, budgets, fallbacks and measurements."""
