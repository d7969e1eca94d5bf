"""The verbs of shimrun, a module each; ``shimd.cli`` says what is in one."""
