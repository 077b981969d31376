"""The parts of the transform `transplant`: new rows from known ones."""
