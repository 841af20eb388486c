"""The way in: HTTP becomes API messages here, and answers become HTTP again."""
