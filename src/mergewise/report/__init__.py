"""Reports: tables and pictures about merges and methods."""
