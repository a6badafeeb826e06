"""Joins the stages: reads what the tailer brings, has policy decide, writes the ledger, has the stores reconciled."""
