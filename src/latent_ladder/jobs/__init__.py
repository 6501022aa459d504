"""Jobs as plain data, checked, planned and run: what the HTTP API and a worker share."""
