"""Extensions, under import paths of the original library."""
