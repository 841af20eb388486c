"""The console proxy: from a browser or terminal to a guest's screen or serial line."""
