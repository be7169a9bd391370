"""How good masks are, on samples."""
