"""The browser page and what stands before it."""
