"""Answers to bans and their ends: commands, the system log, mail, webhooks. Decides on no ban and delays none."""
