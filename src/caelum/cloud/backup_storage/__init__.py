"""Backup storages: where images are kept and served from."""
