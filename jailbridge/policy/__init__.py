"""Policy: what evidence is worth, who is exempt, how long a ban lasts. Only `allow` reads files; the rest is pure."""
