"""The command line: the application, the console and one module per command."""
