"""A cloud on one machine: install what is missing, start every part, make a first VM, and take it all down again."""
