"""DirectoryBackupStorage: a directory that the server itself hands out to hosts over mutual TLS."""
