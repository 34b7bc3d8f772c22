"""Progressive pretraining of vision transformers, on the same growth core. Arrives in a later version; see README."""
