"""What a person types and reads: flags from the fields of dataclasses, the terminal, Ctrl-C."""
