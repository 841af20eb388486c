"""LocalStorage: a directory on every host of the attached clusters."""
