"""Followers: who goes through the log under a name, and remembers how far they are."""
