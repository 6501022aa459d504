"""The networks: our transformer and adapters around borrowed parts."""
