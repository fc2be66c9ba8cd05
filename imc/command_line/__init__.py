"""What a person types and reads: flags from the fields of dataclasses, variables, the terminal, Ctrl-C."""
