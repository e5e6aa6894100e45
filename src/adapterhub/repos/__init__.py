"""Repositories: names, commits, branches, tags and pull requests, with the object ids git would give them."""
