"""What clients ask of the management nodes themselves."""
