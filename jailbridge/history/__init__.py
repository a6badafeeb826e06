"""What logs tell: the grammars of their lines (pure), what a whole log tells, and our sensor's history."""
