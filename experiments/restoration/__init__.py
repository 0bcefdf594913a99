"""Restoration, compared with exact posteriors, classical methods and another library."""
