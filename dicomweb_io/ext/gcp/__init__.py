"""Google Cloud, under import paths of the original library."""
