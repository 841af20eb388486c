"""The auditor: compares database, hosts and storages both ways."""
