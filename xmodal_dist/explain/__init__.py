"""Why a model says what it says: which modality, which part of a picture or sound, which words, which columns."""
