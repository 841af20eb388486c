"""Images: templates and ISOs, from their addition to their expunging."""
