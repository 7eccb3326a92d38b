"""The command line: arguments in, rows out. Each command in a file of its own, and what they share."""
