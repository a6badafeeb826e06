"""The history file: its line formats (pure), and the writer that our sensor appends with."""
