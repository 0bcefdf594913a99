"""What the page looks like: one file a tab."""
