"""Identity: accounts, sessions, who owns what, and what is shared with whom."""
