"""The services of the cloud, one folder per subject."""
